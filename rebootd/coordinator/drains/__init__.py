"""The leader's side of drains: one file each, and what they ask of whom.

Here are questions and orders to Nomad, their timeouts and typed errors. What an answer means and what follows from a
machine's record is decided in :mod:`rebootd.core.drains`, never here. The host's side is the agent's.
"""
