# Consul ACL policy of rebootd's daemons: all that they need, and nothing else. docs/acl.md tells how to put it in.
#
# A template: {prefix} is where the fleet is in the key-value store (rebootd/), {service} the service that agents look
# for (rebootd). Each rule has the reason why it is here; a test takes each away in turn and sees what breaks.

# Records, locks, policy, halt, the head of the audit chain.
key_prefix "${prefix}" {
  policy = "write"
}

# Each daemon registers itself with a check; its leadership hangs on that check.
service "${service}" {
  policy = "write"
}

# The prepared query by which booting machines find a daemon.
query "${service}" {
  policy = "write"
}

# The external node that rack locks' sessions sit on.
node "rebootd-locks" {
  policy = "write"
}

# Machines, their racks, and which of them Consul says have failed.
node_prefix "" {
  policy = "read"
}

# Sessions are made on the daemon's own node and on rebootd-locks, and those of people that lock a rack are read. Where
# daemons never move, write `session "HOST" { policy = "write" }` for each host and for rebootd-locks, and "read" here.
session_prefix "" {
  policy = "write"
}

# The daemon asks the local Consul agent for the name and the address of its host.
agent_prefix "" {
  policy = "read"
}
