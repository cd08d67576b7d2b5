# Consul ACL policy of people on call: the emergency stop and rack locks without rebootctl, and finding the daemons.
# It deliberately may not write records, policy or the audit chain's head: those go through a daemon, which asks who it is.

# consul kv put rebootd/control/halt "why"
key "${prefix}control/halt" {
  policy = "write"
}

# consul lock rebootd/racks/r7 ./swap-switch
key_prefix "${prefix}racks/" {
  policy = "write"
}

# consul lock makes its session on the node of the agent that it talks to.
session_prefix "" {
  policy = "write"
}

agent_prefix "" {
  policy = "read"
}

# rebootctl --server srv:rebootd.service.consul, and consul catalog.
service "${service}" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
