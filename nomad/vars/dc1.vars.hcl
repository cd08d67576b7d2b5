# Data center 1: rebootd and its certificates are on the hosts already (see README.md).
datacenters = ["dc1"]
tls_ca      = "/etc/rebootd/rebootd-ca.pem"
tls_crl     = "/etc/rebootd/rebootd-crl.pem"
tls_cert    = "/etc/rebootd/server.pem"
tls_key     = "/etc/rebootd/server-key.pem"

# Fleets without certificates: one token that agents and operators share, in place of the four files.
# token_file = "/etc/rebootd/token"
