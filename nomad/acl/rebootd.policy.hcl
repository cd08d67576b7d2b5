# Nomad ACL policy of rebootd's daemons (docs/acl.md):
#
#   nomad acl policy apply -description "rebootd" rebootd nomad/acl/rebootd.policy.hcl
#   nomad acl token create -name rebootd -policy rebootd -type client
#
# The token goes into the file that --nomad-token-file names (drains), and into a file HOST:PORT of the folder that
# --gate-tokens names (the gate). A test takes each rule away in turn and sees what breaks.

# Draining a client, making it eligible again, reading whether it is ready.
node {
  policy = "write"
}

# Which allocations are left on a client, and how many of their jobs' others run.
namespace "*" {
  capabilities = ["read-job"]
}

# The gate `nomad-quorum`: autopilot's health. Raft's configuration would take a management token, which rebootd does not
# want: without it the gate judges by autopilot alone, which lists every server of raft's configuration. Without this
# gate, leave the rule out.
operator {
  policy = "read"
}
