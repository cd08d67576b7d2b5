"""The Consul of the demo: one of its own, or the one that CONSUL_HTTP_ADDR names, which is left as it was found."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.cli.demo_processes import Child, free_ports
from rebootd.consul.client import Consul, connect
from rebootd.consul.settings import ConsulSettings
from rebootd.consul.transport import failure
from rebootd.core.errors import RebootdError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

LOCK_NODE = "rebootd-locks"
READY = 30.0
"""Seconds that a Consul of our own has to become ready."""
GIVEN = 3.0
"""Seconds that one which is there already may be without a leader."""


class DemoConsul:
    """A Consul agent that the demo uses. ``environ`` is what children need to reach it; ``dns`` is ``host:port``.

    ``run`` names this run: its key prefix is ``<run>/``, its service and prepared query are ``<run>``.
    """

    def __init__(self, settings: ConsulSettings, run: str, process: Child | None) -> None:
        self.settings = settings
        self.run = run
        self.process = process
        self.environ: dict[str, str] = {"CONSUL_HTTP_ADDR": settings.address}
        self.dns = ""
        self.domain = "consul"
        self._client: Consul = connect(settings)
        self._nodes: list[str] = []
        self._had_lock_node = True

    @classmethod
    async def start(cls, program: Path, folder: Path, run: str) -> DemoConsul:
        """Starts a dev Consul on ports of its own. Raises RebootdError when it does not come up."""
        ports = free_ports(5)
        config = {
            "node_name": "demo-consul",
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {
                **dict(zip(("http", "dns", "serf_lan", "serf_wan", "server"), ports, strict=True)),
                "grpc": -1,
                "https": -1,
            },
            # Every machine of the demo shares one address; Consul's default is made for one host behind each.
            "limits": {"http_max_conns_per_client": 10_000},
            "disable_update_check": True,
        }
        path = folder / "consul.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CONSUL_")}
        command = [str(program), "agent", "-dev", f"-config-file={path}"]
        process = await Child.start(command, log=folder / "consul.log", environ=environ)
        return cls(ConsulSettings(address=f"http://127.0.0.1:{ports[0]}"), run, process)

    @classmethod
    def given(cls, environ: Mapping[str, str], run: str) -> DemoConsul:
        """The one that Consul's own environment variables name. Raises InvalidInput."""
        return cls(ConsulSettings.from_env(environ), run, None)

    async def ready(self) -> None:
        """Waits until it has a leader and knows itself. Raises Unreachable."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (READY if self.process is not None else GIVEN)
        while True:
            try:
                if await self._ask("GET", "/v1/status/leader") and await self._ask("GET", "/v1/catalog/services"):
                    break
                problem = "it has no leader"
            except RebootdError as error:
                problem = str(error)
            if self.process is not None and not self.process.running:
                raise Unreachable(f"the Consul that was started ended:\n{self.process.tail()}")
            if loop.time() > until:
                raise Unreachable(f"Consul at {self.settings.address} is of no use: {problem}")
            await asyncio.sleep(0.1)
        told = await self._ask("GET", "/v1/agent/self")
        debug = told.get("DebugConfig", {})
        self.domain = str(debug.get("DNSDomain") or "consul").strip(".")
        port = debug.get("DNSPort")
        host = self.settings.endpoint()[1]
        self.dns = f"{'127.0.0.1' if host == 'localhost' else host}:{port}" if port and port > 0 else ""
        nodes = await self._ask("GET", "/v1/catalog/nodes")
        self._had_lock_node = any(node["Node"] == LOCK_NODE for node in nodes)

    async def register(self, machines: Iterable[tuple[str, str]]) -> None:
        """Puts machines, (name, rack), into the catalog as external nodes. Raises RebootdError."""
        if self.process is None:
            # The nodes of other fleets have racks too, and never call here: the first leader waits for them this long.
            await self._client.kv.put(f"{self.run}/policy", "settle: 5s\n")
        for name, rack in machines:
            meta = {"rack": rack, "external-node": "true", "external-probe": "false"}
            self._nodes.append(name)
            await self._ask("PUT", "/v1/catalog/register", {"Node": name, "Address": "127.0.0.1", "NodeMeta": meta})

    async def epoch(self, above: int, wait: float) -> int:
        """The epoch as soon as one above ``above`` is committed, or what it is after ``wait`` seconds. 0: none yet."""
        index, until = 0, asyncio.get_running_loop().time() + wait
        while True:
            left = max(0.0, until - asyncio.get_running_loop().time())
            path = f"/v1/kv/{self.run}/epoch"
            params = [("index", index), ("wait", f"{max(0.01, left):.3f}s")] if index else None
            answer = await self._client.http.request("GET", path, params=params, timeout=left + 5)
            entries = msgspec.json.decode(answer.body, type=list[_Value]) if answer.status == 200 else []
            epoch = msgspec.json.decode(entries[0].Value, type=_Epoch).epoch if entries else 0
            if epoch > above or left <= 0:
                return epoch
            index = int(answer.headers.get("X-Consul-Index", "0"))
            await asyncio.sleep(0 if index else 0.02)

    async def clean(self) -> list[str]:
        """Removes all that this run left in a Consul that goes on living; returns what could not be removed."""
        if self.process is not None:
            return []
        problems: list[str] = []

        async def attempt(method: str, path: str, body: object = None, **params: str) -> Any:
            try:
                return await self._ask(method, path, body, **params)
            except RebootdError as error:
                problems.append(str(error))
                return None

        for id_, service in (await attempt("GET", "/v1/agent/services") or {}).items():
            if service["Service"] == self.run:
                await attempt("PUT", f"/v1/agent/service/deregister/{id_}")
        for session in await attempt("GET", "/v1/session/list") or []:
            if session["Name"].startswith(f"{self.run}/"):
                await attempt("PUT", f"/v1/session/destroy/{session['ID']}")
        await attempt("DELETE", f"/v1/kv/{self.run}/", recurse="true")
        for query in await attempt("GET", "/v1/query") or []:
            if query["Name"] == self.run:
                await attempt("DELETE", f"/v1/query/{query['ID']}")
        for name in self._nodes:
            await attempt("PUT", "/v1/catalog/deregister", {"Node": name})
        if not self._had_lock_node and not await attempt("GET", f"/v1/session/node/{LOCK_NODE}"):
            await attempt("PUT", "/v1/catalog/deregister", {"Node": LOCK_NODE})
        return problems

    async def close(self) -> None:
        """Ends our connections, and the Consul if it is ours."""
        await self._client.close()
        if self.process is not None:
            await self.process.end()

    async def _ask(self, method: str, path: str, body: object = None, **params: str) -> Any:
        data = msgspec.json.encode(body) if body is not None else None
        answer = await self._client.http.request(method, path, params=list(params.items()), body=data, timeout=5.0)
        error = failure(method, path, answer)
        if error is not None:
            raise error
        return msgspec.json.decode(answer.body) if answer.status != 404 and answer.body.strip() else None


class _Value(msgspec.Struct):
    Value: bytes


class _Epoch(msgspec.Struct):
    epoch: int
