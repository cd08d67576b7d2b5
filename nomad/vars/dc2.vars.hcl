# Data center 2: the file comes from an artifact store, certificates and tokens from Nomad Variables, which only this job
# can read: nomad var put nomad/jobs/rebootd ca=@rebootd-ca.pem crl=@rebootd-crl.pem cert=@server-0.pem
# key=@server-0-key.pem consul_token=... (one certificate for all daemons of the job: it names no host).
datacenters       = ["dc2"]
artifact          = "https://artifacts.example.com/rebootd/0.1.0/rebootd"
artifact_checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

tls_templates = {
  ca   = "{{ with nomadVar \"nomad/jobs/rebootd\" }}{{ .ca }}{{ end }}"
  crl  = "{{ with nomadVar \"nomad/jobs/rebootd\" }}{{ .crl }}{{ end }}"
  cert = "{{ with nomadVar \"nomad/jobs/rebootd\" }}{{ .cert }}{{ end }}"
  key  = "{{ with nomadVar \"nomad/jobs/rebootd\" }}{{ .key }}{{ end }}"
}
consul_token_template = "{{ with nomadVar \"nomad/jobs/rebootd\" }}{{ .consul_token }}{{ end }}"
