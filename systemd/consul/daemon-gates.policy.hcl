# Beside daemon.policy.hcl, for fleets whose policy has gates on Consul; leave out what no gate asks for.

# The gate `consul-quorum`: raft's configuration and autopilot's health.
operator = "read"

# The gate `consul-service`. Narrow it to the services that your gates name.
service_prefix "" {
  policy = "read"
}
