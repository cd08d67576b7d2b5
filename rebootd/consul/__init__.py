"""Consul itself: how to reach it, and what rebootd is in it.

Here live the settings, our transport under py-consul's endpoints, the client, finding a Consul program for tests and
the demo, the election, the service registration and the prepared query for DNS. Here never live: records and
transactions (store), what a leader does (coordinator), or rules about machines (core).
"""
