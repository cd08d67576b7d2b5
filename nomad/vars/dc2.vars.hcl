# Data center 2: the file comes from an artifact store, the tokens from Nomad Variables (nomad var put
# nomad/jobs/rebootd token=... consul_token=...), which only this job can read.
datacenters       = ["dc2"]
artifact          = "https://artifacts.example.com/rebootd/0.1.0/rebootd"
artifact_checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

token_template        = "{{ with nomadVar \"nomad/jobs/rebootd\" }}{{ .token }}{{ end }}"
consul_token_template = "{{ with nomadVar \"nomad/jobs/rebootd\" }}{{ .consul_token }}{{ end }}"
