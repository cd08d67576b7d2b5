"""What is laid over the root file system: a layer for all hosts, and one for each with its name, address, roles."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from tests.e2e.box.plan import GATEWAY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.box.plan import HostPlan

SYSTEM = "etc/systemd/system"
_MASKED = (
    *(
        "console-getty.service",
        "getty@.service",
        "e2scrub_reap.service",
        "systemd-timesyncd.service",
        "haproxy.service",
    ),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("systemd-resolved.service", "systemd-pstore.service"),
)
_WANTED = {
    "multi-user.target.wants": "systemd-networkd.service",
    "network-online.target.wants": "systemd-networkd-wait-online.service",
}
# A unit that hangs at a shutdown would keep its host for 90 s.
_MANAGER = "[Manager]\nDefaultTimeoutStopSec=5s\n"
# IPv6 link-local addresses would be waited for: 13 s at each boot.
_NETWORK = """[Match]
Name=host0
[Network]
Address={address}/24
Gateway={gateway}
IPv6AcceptRA=no
LinkLocalAddressing=no
"""


def common(layer: Path) -> None:
    """The layer of all hosts: which of Debian's units run, and logs that outlive a reboot."""
    for unit in _MASKED:
        link(layer, f"{SYSTEM}/{unit}", "/dev/null")
    for wants, unit in _WANTED.items():
        link(layer, f"{SYSTEM}/{wants}/{unit}", f"/lib/systemd/system/{unit}")
    write(layer, "etc/systemd/system.conf.d/box.conf", _MANAGER)
    write(layer, "etc/nsswitch.conf", "passwd: files systemd\ngroup: files systemd\nhosts: files myhostname\n")
    (layer / "var/log/journal").mkdir(parents=True)


def own(layer: Path, host: HostPlan) -> None:
    """The layer of one host: who it is."""
    write(layer, "etc/hostname", f"{host.name}\n")
    write(layer, "etc/machine-id", f"{uuid.uuid4().hex}\n")
    write(layer, "etc/systemd/network/10-box.network", _NETWORK.format(address=host.address, gateway=GATEWAY))


def write(layer: Path, path: str, text: str, mode: int = 0o644) -> None:
    """A file in a layer, with its folders."""
    file = layer / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)


def link(layer: Path, path: str, target: str) -> None:
    """A symbolic link in a layer."""
    file = layer / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(target)


def unit(layer: Path, name: str, text: str, *, wanted_by: str = "multi-user.target") -> None:
    """A unit, enabled."""
    write(layer, f"{SYSTEM}/{name}", text)
    link(layer, f"{SYSTEM}/{wanted_by}.wants/{name}", f"../{name}")
