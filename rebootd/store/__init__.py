"""The store: the port that the coordinator talks to, and its two sides.

Here live the port (operations, entries, sessions), the memory side (a model of Consul that runs
in one process, under any event loop), the Consul side, and the fenced writer that both share.
Here never live: rules about when a machine may go (core), or leadership itself (consul).
"""
