"""Connections of one certificate's name, from whatever addresses."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp
import pytest

from rebootd.api.connections import Limits
from rebootd.tls.contexts import client_context
from rebootd.tls.identity import SERVER_NAME
from tests.api.secure import secured
from tests.support.pki import Pki, field

if TYPE_CHECKING:
    from pathlib import Path


async def test_one_name_has_so_many_connections_from_wherever(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    greedy, other = pki.issue("viewer", "bob"), pki.issue("viewer", "eve")
    limits = Limits(per_identity=3)
    async with secured(pki, limits=limits) as api, AsyncExitStack() as stack:
        held = client_context(greedy, field)
        for _ in range(limits.per_identity):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", api.serving.port, ssl=held, server_hostname=SERVER_NAME
            )
            stack.callback(writer.close)
        async with asyncio.timeout(3):
            while api.serving.gate.identities["rebootd://viewer/bob"] < limits.per_identity:
                await asyncio.sleep(0.01)
        with pytest.raises(aiohttp.ClientError):
            await api.ask(greedy, "GET", "/v1/status")
        assert api.serving.gate.turned_away >= 1
        assert (await api.ask(other, "GET", "/v1/status"))[0] == 200
        await stack.aclose()
        async with asyncio.timeout(3):
            while api.serving.gate.identities:
                await asyncio.sleep(0.01)
        assert (await api.ask(greedy, "GET", "/v1/status"))[0] == 200
