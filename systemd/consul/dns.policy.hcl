# What the default token (or the anonymous one) of each host's Consul agent needs, so that `rebootd.query.consul` answers
# in DNS, where no token can be shown. Most fleets let it read every node and service already; then this adds nothing.

service "${service}" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
