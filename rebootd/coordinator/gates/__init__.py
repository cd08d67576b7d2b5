"""How gates are read: one file for each kind, and the keeper that reads them when somebody waits.

Here are questions to Consul, Nomad, Prometheus and Alertmanager, their timeouts, and what their answers mean as values.
Whether a value lets a machine go is judged in :mod:`rebootd.core.gates`, never here.
"""
