"""A real daemon process behind certificates: what a SIGHUP does."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from rebootd.tls.contexts import client_context
from rebootd.tls.identity import SERVER_NAME
from tests.support.cluster import free_ports
from tests.support.pki import Pki, field
from tests.support.secure_daemon import daemon

if TYPE_CHECKING:
    import ssl


async def serial(port: int, context: ssl.SSLContext) -> str:
    """The serial number of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=SERVER_NAME)
    try:
        return str(writer.get_extra_info("peercert")["serialNumber"])
    finally:
        writer.close()


@pytest.mark.timeout(120)
async def test_a_sighup_reloads_certificates_and_ends_nothing(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    files = pki.server()
    viewer = client_context(pki.issue("viewer", "bob"), field)
    async with daemon(tmp_path, files) as real:
        first = await serial(real.port, viewer)
        # Files that did not change are loaded by a SIGHUP alone: looks of its own pass them over.
        real.process.send_signal(signal.SIGHUP)
        await real.until(lambda: len(real.told("tls-files-loaded")) == 1)
        new = pki.server()
        for name in ("cert", "key"):
            Path(getattr(new, name)).replace(getattr(files, name))
        real.process.send_signal(signal.SIGHUP)
        await real.until(lambda: len(real.told("tls-files-loaded")) == 2)
        async with asyncio.timeout(10):
            while await serial(real.port, viewer) == first:
                await asyncio.sleep(0.02)
        # What cannot be used is not taken, and ends nothing either.
        Path(files.key).write_bytes(b"noise")
        real.process.send_signal(signal.SIGHUP)
        await real.until(lambda: bool(real.told("tls-files-not-taken")))
        assert await serial(real.port, viewer) != first
        assert real.process.returncode is None


@pytest.mark.timeout(60)
async def test_a_daemon_that_waits_for_consul_is_not_a_hung_one(tmp_path: Path) -> None:
    """Nomad would start it again and again, and its check asks the health listener when there are certificates."""
    nobody, port, health = free_ports(3)
    log = tmp_path / "log"
    words = ["--consul", f"http://127.0.0.1:{nobody}", "--listen", f"127.0.0.1:{port}"]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rebootd.cli.main", "server", *words, "--health", f"127.0.0.1:{health}"),
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as client:
            while b"consul-not-there-yet" not in log.read_bytes():
                await asyncio.sleep(0.05)
            ages = []
            until = asyncio.get_running_loop().time() + 4.0
            while asyncio.get_running_loop().time() < until:
                async with client.get(f"http://127.0.0.1:{health}/health") as response:
                    assert response.status == 200
                    ages.append(float((await response.text()).split()[3]))
                await asyncio.sleep(0.2)
        # Without ticks the last would be four seconds.
        assert ages[-1] < 3.0
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)
