# Nomad ACL policy of rebootd's daemons:
#
#   nomad acl policy apply -description "rebootd" rebootd nomad/acl/rebootd.policy.hcl
#   nomad acl token create -name rebootd -policy rebootd -type client
#
# The token goes into a file HOST:PORT of the folder that --gate-tokens names (docs/security.md).

# Draining a client and making it eligible again; reading clients and whether they are ready.
node {
  policy = "write"
}

# The gate `nomad-quorum`: autopilot's health. Raft's configuration would take a management token, which rebootd does not
# want: without it the gate judges by autopilot alone, which lists every server of raft's configuration.
operator {
  policy = "read"
}

# Members of the cluster, to find the servers.
agent {
  policy = "read"
}
