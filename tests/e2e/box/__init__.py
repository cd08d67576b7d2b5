"""A small data center on one Linux machine: hosts that boot real systemd, Consul, rebootd, a load balancer and load.

Here live the hosts (systemd-nspawn containers over one Debian root file system), the network between them, the power
to them, and the load generator; the tests in ``tests/e2e`` say what must hold. Nothing of the product is replaced: it
is installed on the hosts as the README says. Everything runs in namespaces of one process (``plant``), whose end is the
end of all of it. It needs root and Debian's tools (:func:`tests.e2e.box.rootfs.missing` says what lacks).
"""
