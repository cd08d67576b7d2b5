"""What a box consists of: its hosts, their addresses and what runs on each."""

from __future__ import annotations

import msgspec

BRIDGE = "br0"
NETWORK = "10.88.0"
GATEWAY = f"{NETWORK}.1"
WEB_PORT = 8080
FRONT_PORT = 8081
API_PORT = 8473
BMC_PORT = 8000


class HostPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One host. ``rack`` empty: it is no machine of the fleet (the load balancer).

    ``stateless``: Consul's data folder and rebootd's journal are in memory, and gone with each boot.
    """

    name: str
    number: int
    rack: str = ""
    consul_server: bool = False
    daemon: bool = False
    agent: bool = False
    web: bool = False
    balancer: bool = False
    stateless: bool = False

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return f"{NETWORK}.{self.number}"


class BoxPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. ``token`` is what rebootd's callers must show; ``bmc_user`` and ``bmc_password`` open its BMC.

    ``nomad``: servers of it run beside Consul's and clients on the web hosts, and it decides where daemons run.
    """

    hosts: tuple[HostPlan, ...]
    token: str = "a-token-of-the-box"
    bmc_user: str = "rebootd"
    bmc_password: str = "power-of-the-box"
    nomad: bool = False

    @property
    def machines(self) -> tuple[HostPlan, ...]:
        """The hosts that have an agent."""
        return tuple(host for host in self.hosts if host.agent)

    @property
    def consul_servers(self) -> tuple[HostPlan, ...]:
        """The hosts that run a Consul server."""
        return tuple(host for host in self.hosts if host.consul_server)

    @property
    def daemons(self) -> tuple[HostPlan, ...]:
        """The hosts that run a rebootd daemon, or may."""
        return tuple(host for host in self.hosts if host.daemon)

    def host(self, name: str) -> HostPlan:
        """The host of that name. Raises ``KeyError``."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)

    def rack(self, rack: str) -> tuple[HostPlan, ...]:
        """The hosts of a rack."""
        return tuple(host for host in self.hosts if host.rack == rack)


def small() -> BoxPlan:
    """2 racks x 2 hosts with an agent, the daemons on three of them, one Consul server and the load balancer."""
    workers = [
        HostPlan(name=f"r{r}h{h}", number=20 + 10 * r + h, rack=f"r{r}", daemon=(r, h) != (2, 2), agent=True, web=True)
        for r in (1, 2)
        for h in (1, 2)
    ]
    return BoxPlan(hosts=(_server(1, agent=False), *workers, _balancer()))


def full(*, nomad: bool = False) -> BoxPlan:
    """Three Consul servers and six workers on three racks, all of them machines; daemons on a worker of each rack.

    The workers of the third rack are stateless. With ``nomad`` the daemons run where it puts them.
    """
    workers = [
        HostPlan(
            name=f"w{n}",
            number=20 + n,
            rack=f"r{(n - 1) % 3 + 1}",
            daemon=n <= 3 or nomad,
            agent=True,
            web=True,
            stateless=n % 3 == 0,
        )
        for n in range(1, 7)
    ]
    servers = [_server(n, agent=True) for n in (1, 2, 3)]
    return BoxPlan(hosts=(*servers, *workers, _balancer()), nomad=nomad)


PLANS = {"small": small, "full": full}
"""By their names for people. A full one can have Nomad."""


def _server(number: int, *, agent: bool) -> HostPlan:
    return HostPlan(name=f"cs{number}", number=10 + number, rack=f"r{number}", consul_server=True, agent=agent)


def _balancer() -> HostPlan:
    return HostPlan(name="lb", number=2, balancer=True)
