"""The simulation: the real coordinator, election, API logic and agent under a virtual-time loop.

Here live the loop, the simulated network, store client, hosts and people, the faults, the invariants that are checked
from outside, and the planted bugs that show that the checks can fail. Here never live copies of product code.
``python -m tests.sim --help`` says how to run it; docs/safety.md what it proves.
"""
