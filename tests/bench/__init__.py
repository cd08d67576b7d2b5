"""The figures of docs/performance.md: real processes, real HTTP, a real Consul; each figure a ratio taken in one run.

Here live the load, the bare handler it is compared with, and what writes the page. Here never live
assertions on wall time: a figure that misses its limit is reported, not failed.
"""
