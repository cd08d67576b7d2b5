"""The agent: what runs on every host, as root, and is alone allowed to reboot it.

Here live discovery of the coordinators, the report loop, the directive runner, the journal, hooks, the out mark, the
detection of a required reboot, and the state that a person on the host can read. Here never live: decisions about
which machine is next (core, coordinator), records in Consul's KV (store), or anything that needs rich or a web server.
"""
