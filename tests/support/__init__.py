"""What several test folders share: real Consul agents and clusters. No tests here."""
