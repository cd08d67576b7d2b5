"""The names of the ways to reboot. On its own, since rebootctl starts fast by importing next to nothing."""

from __future__ import annotations

METHODS = ("reboot", "kexec", "soft-reboot", "custom")
FULL = frozenset({"reboot", "kexec"})
"""Methods that start a kernel, so that the kernel's own boot_id is another one afterwards."""
