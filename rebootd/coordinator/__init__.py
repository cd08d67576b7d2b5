"""The leader as a scope: win, barrier read, ticks, revoke; the fleet in memory; the events.

Here live the loop that turns decisions into fenced commits, the waiting agents, the ring of events, what gates say
(gates), power cycles, forecasts and metrics. Here never live: rules about safety (core), the HTTP that we serve (api),
or how Consul's records and sessions are spoken to (consul, store).
"""
