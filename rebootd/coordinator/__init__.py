"""The leader as a scope: win, barrier read, ticks, revoke; the fleet in memory; the events.

Here live the loop that turns decisions into fenced commits, the waiting agents, and the ring of
events. Here never live: rules about safety (core), HTTP (api), or how Consul is spoken to (consul, store).
"""
