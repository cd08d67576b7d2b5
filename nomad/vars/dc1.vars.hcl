# Data center 1: rebootd and its tokens are on the hosts already (see README.md).
datacenters = ["dc1"]
token_file  = "/etc/rebootd/token"
