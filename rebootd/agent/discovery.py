"""Finding the coordinators: Consul DNS first, the catalog last, and nothing that answers nonsense stops the search."""

from __future__ import annotations

import ipaddress
import random
import re
from typing import TYPE_CHECKING, Any

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.rdatatype
import dns.resolver
import msgspec

from rebootd.agent.settings import split_server
from rebootd.core.codec import read_json
from rebootd.core.errors import RebootdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rebootd.agent.settings import AgentSettings
    from rebootd.consul.http import Linked

# What dnspython raises for answers that no DNS server should give, beside its own exceptions.
_DNS_FAILURES = (dns.exception.DNSException, OSError, ValueError, EOFError)
_CONSUL_ADDRESS = re.compile(r"([0-9a-f]{8}|[0-9a-f]{32})\.addr\.", re.IGNORECASE)


class _Where(msgspec.Struct):
    Address: str = ""
    Port: int = 0


class _NodeAddress(msgspec.Struct):
    Address: str = ""


class _Check(msgspec.Struct):
    Status: str = ""


class _Instance(msgspec.Struct):
    Node: _NodeAddress
    Service: _Where
    Checks: list[_Check] = []


class Discovery:
    """Looks coordinators up. ``consul`` None: no catalog to ask. ``rng`` spreads agents over equal instances."""

    def __init__(self, settings: AgentSettings, consul: Linked | None, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._consul = consul
        self._rng = rng or random.Random()

    async def batches(self) -> AsyncIterator[list[str]]:
        """URLs, one non-empty list per way that found any: prepared query, service, catalog, in that order.

        Asking for the next list looks the next way up, so that instances of the first are tried first. Never raises.
        """
        if self._settings.coordinators:
            urls = [url.rstrip("/") for url in self._settings.coordinators]
            self._rng.shuffle(urls)
            yield urls
            return
        for kind in ("query", "service"):
            found = await self._ask_dns(f"{self._settings.service}.{kind}.{self._settings.domain}.")
            if found:
                yield found
        found = await self._ask_catalog()
        if found:
            yield found

    async def _ask_dns(self, name: str) -> list[str]:
        for server in self._settings.dns:
            try:
                resolver = self._resolver(server)
                found = await self._instances(resolver, name)
            except _DNS_FAILURES:
                continue
            if found:
                return found
        return []

    def _resolver(self, server: str) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=server == "system")
        if server != "system":
            address, port = split_server(server)
            resolver.nameservers = [address]
            resolver.port = port
        resolver.lifetime = resolver.timeout = self._settings.dns_timeout
        return resolver

    async def _instances(self, resolver: dns.asyncresolver.Resolver, name: str) -> list[str]:
        answer = await _resolve(resolver, name, "SRV")
        records = [(r.priority, self._rng.random() / max(r.weight, 1), r.target, r.port) for r in answer]
        urls: list[str] = []
        for _, _, target, port in sorted(records, key=lambda r: r[:2]):
            if port and target != dns.name.root:
                urls += [
                    self._url(address, port) for address in await self._addresses(resolver, answer.response, target)
                ]
        return list(dict.fromkeys(urls))

    @staticmethod
    async def _addresses(
        resolver: dns.asyncresolver.Resolver, response: dns.message.Message, target: dns.name.Name
    ) -> list[str]:
        found = [
            record.address
            for rrset in response.additional
            if rrset.name == target and rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
            for record in rrset
        ]
        if found:
            return found
        literal = _literal(target.to_text())
        if literal:
            return [literal]
        for kind in ("A", "AAAA"):
            try:
                answer = await _resolve(resolver, target, kind)
            except _DNS_FAILURES:
                continue
            found += [record.address for record in answer]
        return found

    async def _ask_catalog(self) -> list[str]:
        if self._consul is None:
            return []
        try:
            # Stale: any server may answer, also while Consul has no leader.
            path = f"/v1/health/service/{self._settings.service}"
            response = await self._consul.http.request("GET", path, [("stale", "")], timeout=5.0)
            entries: list[Any] = read_json(response.body, list[Any]) if response.status == 200 else []
        except (RebootdError, msgspec.MsgspecError):
            return []
        healthy: list[str] = []
        others: list[str] = []
        for entry in entries:
            try:
                instance = msgspec.convert(entry, _Instance)
            except msgspec.ValidationError:
                continue
            address = instance.Service.Address or instance.Node.Address
            if address and 0 < instance.Service.Port < 65536:
                passing = all(check.Status != "critical" for check in instance.Checks)
                (healthy if passing else others).append(self._url(address, instance.Service.Port))
        self._rng.shuffle(healthy)
        return list(dict.fromkeys(healthy + others))

    def _url(self, address: str, port: int) -> str:
        return f"{self._settings.spoken}://{f'[{address}]' if ':' in address else address}:{port}"


async def _resolve(resolver: dns.asyncresolver.Resolver, name: str | dns.name.Name, kind: str) -> dns.resolver.Answer:
    try:
        # Consul cuts UDP answers to three instances without saying so; TCP has them all.
        return await resolver.resolve(name, kind, tcp=True, search=False)
    except (dns.resolver.NoNameservers, dns.resolver.LifetimeTimeout):
        return await resolver.resolve(name, kind, search=False)


def _literal(name: str) -> str:
    """The address inside one of Consul's ``<hex>.addr.<dc>.consul`` names, or ``""``."""
    match = _CONSUL_ADDRESS.match(name)
    return str(ipaddress.ip_address(bytes.fromhex(match[1]))) if match else ""
