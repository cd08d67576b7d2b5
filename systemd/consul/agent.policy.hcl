# Consul ACL policy of the rebootd agent on one machine: one policy and one token per machine, so that a token stolen from
# one host marks and unmarks that host alone. docs/acl.md tells how to put it in.
#
# A template: {node} is the machine's Consul node name, {service} the service of the daemons (rebootd).

# The out mark: a check on this machine's own node.
node "${node}" {
  policy = "write"
}

# The agent asks the local Consul agent for its node's name.
agent "${node}" {
  policy = "read"
}

# Finding the daemons through the catalog when DNS fails; Consul shows an instance only with its node.
service "${service}" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
