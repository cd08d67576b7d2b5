"""FleetLock on a real daemon behind certificates: a machine asks for itself, and for nobody else by whatever id."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp

from rebootd.tls.contexts import client_context
from rebootd.tls.identity import SERVER_NAME
from tests.support.pki import Pki, field
from tests.support.secure_daemon import Process, daemon

if TYPE_CHECKING:
    import ssl
    from pathlib import Path


async def ask(
    process: Process, context: ssl.SSLContext, method: str, path: str, body: object
) -> tuple[int, dict[str, Any]]:
    """One request on a connection of its own."""
    url = f"https://127.0.0.1:{process.port}{path}"
    headers = {"fleet-lock-protocol": "true"}
    async with (
        aiohttp.ClientSession() as client,
        client.request(method, url, json=body, headers=headers, ssl=context, server_hostname=SERVER_NAME) as response,
    ):
        return response.status, await response.json()


async def test_a_certificate_speaks_for_its_own_client(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    admin, m1, m2 = (
        client_context(pki.issue(role, name), field)
        for role, name in (("admin", "carol"), ("machine", "m1"), ("machine", "m2"))
    )
    m1_body = {"client_params": {"id": "m1", "group": "g"}}
    async with daemon(tmp_path, pki.server(), "--memory-nodes", "m1=r1,m2=r2") as process:
        policy = {"fleetlock": {"enabled": True}, "settle": "0s"}
        async with asyncio.timeout(20):
            while (await ask(process, admin, "PUT", "/v1/policy", policy))[0] != 200:
                await asyncio.sleep(0.05)
        steady, pre = "/fleetlock/v1/steady-state", "/fleetlock/v1/pre-reboot"
        assert (await ask(process, m1, "POST", steady, m1_body))[0] == 200
        async with asyncio.timeout(20):
            while (await ask(process, m1, "POST", pre, m1_body))[0] != 200:
                await asyncio.sleep(0.05)
        for path in (steady, pre):
            # Neither ends the other's absence nor asks in its name; people ask for nobody, whatever their role.
            status, said = await ask(process, m2, "POST", path, m1_body)
            assert (status, said["kind"]) == (403, "forbidden")
            assert "machine m2's" in said["value"]
            assert (await ask(process, admin, "POST", path, m1_body))[0] == 403
        _, shown = await ask(process, admin, "GET", "/v1/machines/m1", None)
        assert shown["record"]["state"] == "rebooting"
        assert (await ask(process, m1, "POST", steady, m1_body))[0] == 200
