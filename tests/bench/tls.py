"""The handshake storm after a leader's death, beside the bare handshakes of the same library; and what a role costs."""

from __future__ import annotations

import asyncio
import random
import signal
import ssl
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from aiohttp.test_utils import make_mocked_request

from rebootd.agent.client import Backoff
from rebootd.agent.loop import IDLE_PAUSE
from rebootd.api.guard import Guard
from rebootd.core.caller import Role
from rebootd.core.wire import Answer
from rebootd.tls.identity import PATIENT, SHOWN, Identity
from tests.bench.connection import Connection
from tests.bench.crowd import Crowd
from tests.bench.desk import Operator
from tests.bench.figures import Figure, mb, ms, percentile
from tests.bench.fleet import PREFIX, Daemon, Process, fleet
from tests.bench.machine import IDLE, Machine, source
from tests.support.cluster import free_ports, wait_for
from tests.support.pki import Pki

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebootd.tls.files import TlsFiles
    from tests.support.cluster import Agent

RACKS = 40
LOOK = 0.5
PATIENCE = 600.0
AT_ONCE = 500
"""Handshakes that one process of the crowd has under way at a time, as a network with many hosts would have more."""


class _Bare(NamedTuple):
    """How long all handshakes with the bare listener took, and its CPU, both in seconds."""

    seconds: float
    cpu: float


class _Daemon(Daemon):
    """One ``rebootd server`` with a certificate; ``viewer`` is whom it shows its metrics to."""

    def __init__(self, number: int, consul: Agent, folder: Path, files: TlsFiles, viewer: ssl.SSLContext) -> None:
        self._files = files
        # A connection for each question: urllib keeps none.
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=viewer))
        super().__init__(number, consul, folder)
        self.url = f"https://127.0.0.1:{self.port}"

    def _start(self) -> Process:
        command = [sys.executable, "-m", "rebootd.cli.main", "server", "--id", self.id]
        command += ["--listen", f"127.0.0.1:{self.port}", "--prefix", PREFIX, "--consul", self.consul.url]
        for name in ("ca", "cert", "key", "crl"):
            command += [f"--tls-{name}", getattr(self._files, name)]
        return Process(command, self._log)

    def read(self, path: str) -> bytes:
        """What a GET answers."""
        with self._opener.open(self.url + path, timeout=60) as answer:
            return bytes(answer.read())


class _Share:
    """One process's agents, each with its own certificate, connection and pauses."""

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers
        self._machines: list[Machine] = []
        self._contexts: list[ssl.SSLContext] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._handshakes = 0

    async def certify(self, ca: str, folder: str) -> None:
        """Reads the certificates, which costs more than a handshake and is not measured."""
        for number in self._numbers:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(ca)
            context.load_cert_chain(f"{folder}/{number}.pem")
            context.set_alpn_protocols([PATIENT])
            self._contexts.append(context)
            machine = Machine(number, "", 0)
            self._machines.append(machine)

    async def bare(self, port: int) -> tuple[float, float]:
        """A handshake of everybody; when the first began and the last ended."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def shake(number: int, context: ssl.SSLContext) -> Connection:
            async with turn:
                return await Connection.open("127.0.0.1", port, source(number), context)

        began = time.monotonic()
        open_ = await asyncio.gather(*map(shake, self._numbers, self._contexts))
        ended = time.monotonic()
        for connection in open_:
            connection.close()
        return began, ended

    async def wait(self, ports: Sequence[int]) -> None:
        """Everybody reports, waits, and follows the leader, until ``leave``."""
        turn = asyncio.Semaphore(AT_ONCE)
        pairs = zip(self._machines, self._contexts, strict=True)
        self._tasks = [asyncio.create_task(self._live(m, c, ports, turn)) for m, c in pairs]

    async def shaken(self) -> int:
        """How many handshakes there were so far."""
        return self._handshakes

    async def leave(self) -> None:
        """Everybody hangs up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _live(
        self, machine: Machine, context: ssl.SSLContext, ports: Sequence[int], turn: asyncio.Semaphore
    ) -> None:
        backoff, port, connection = Backoff(random.Random()), random.choice(ports), None
        try:
            while True:
                try:
                    if connection is None:
                        async with turn:
                            connection = await Connection.open("127.0.0.1", port, source(machine.number), context)
                        self._handshakes += 1
                    reply = await connection.post(machine.path, msgspec.json.encode(machine.made(IDLE)))
                except OSError:
                    # As the agent: the next instance at once, and a pause when none was of use.
                    connection, others = None, [p for p in ports if p != port]
                    port = random.choice(others)
                    await asyncio.sleep(backoff.next(IDLE_PAUSE))
                    continue
                if reply.status == 307:
                    connection.close()
                    connection, port = None, int(reply.location.split("/")[2].rpartition(":")[2])
                elif reply.status == 200:
                    answer = msgspec.json.decode(reply.body, type=Answer)
                    machine.index, machine.state = answer.index, answer.state
                    machine.obey(answer)
                    backoff.reset()
                else:
                    await asyncio.sleep(backoff.next(IDLE_PAUSE))
        finally:
            if connection is not None:
                connection.close()


def run(machines: int = 10_000, requests: int = 100_000) -> list[Figure]:
    """The storm between two rounds of bare handshakes."""
    with fleet(machines, RACKS) as found, Crowd(machines, share=_Share) as crowd:
        pki = _certificates(found.folder, machines)
        crowd.order("certify", ca=str(pki.ca), folder=str(found.folder / "machines"))
        bare = [_bare(found.folder, pki, crowd)]
        found.wait_synced()
        viewer = pki.issue("viewer", "bench")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # urllib asks for the address; that it is a daemon is not what is measured
        context.load_verify_locations(viewer.ca)
        context.load_cert_chain(viewer.cert, viewer.key)
        found.daemons = [
            _Daemon(n, server, found.folder, pki.server(f"d{n}"), context)
            for n, server in enumerate(found.consul.servers)
        ]
        old = found.leader()
        crowd.order("wait", ports=[d.port for d in found.daemons])
        _all_wait(old, machines)
        before = sum(crowd.order("shaken"))
        spent = {d.id: d.process.cpu() for d in found.daemons}
        began = time.monotonic()
        old.process.signal(signal.SIGKILL)
        new = found.leader(but=old.id, timeout=PATIENCE)
        led = time.monotonic() - began
        with Operator(new.port, context) as operator:
            _all_wait(new, machines)
            took = time.monotonic() - began
        used = new.process.cpu() - spent[new.id]
        handshakes = sum(crowd.order("shaken")) - before
        most, memory = new.process.memory("VmHWM"), new.process.memory()
        crowd.order("leave")
        found.stop()
        bare.append(_bare(found.folder, pki, crowd))
    rate = 2 * machines / sum(b.seconds for b in bare)
    alone = sum(b.cpu for b in bare) / 2 / machines
    return [
        Figure(
            what=f"TLS storm: {machines} waiting agents, each with its own certificate, after SIGKILL of the leader: "
            "until all wait again",
            value=f"{took:.1f} s, {handshakes} handshakes, {handshakes / took:.0f} a second",
            beside=f"the next leader answered after {led:.1f} s; bare listener of the same library, {machines} "
            f"handshakes, before and after: {bare[0].seconds:.1f} s and {bare[1].seconds:.1f} s ({rate:.0f} a second)",
        ),
        Figure(
            what="TLS storm: CPU of the new leader for each agent, its election, their reports and waiting included",
            value=f"{1e3 * used / machines:.2f} ms",
            beside=f"a handshake of the bare listener: {1e3 * alone:.2f} ms",
        ),
        Figure(
            what=f"TLS storm: memory of the new leader, most since its start, {machines} agents over TLS",
            value=mb(most),
            beside=f"{mb(memory)} when all wait",
        ),
        Figure(
            what="TLS storm: an operator's request to the new leader meanwhile, on a new connection",
            value=f"p50 {ms(percentile(operator.new, 0.5))}, most {ms(max(operator.new, default=0.0))}",
            beside=f"on a connection that is kept: p50 {ms(percentile(operator.kept, 0.5))}, "
            f"most {ms(max(operator.kept, default=0.0))} ({len(operator.new)} each)",
        ),
        _roles(requests),
    ]


def _certificates(folder: Path, machines: int) -> Pki:
    pki = Pki(folder / "pki")
    at = folder / "machines"
    at.mkdir()
    for number in range(machines):
        files = pki.issue("machine", Machine(number, "", 0).name)
        (at / f"{number}.pem").write_bytes(Path(files.key).read_bytes() + Path(files.cert).read_bytes())
    return pki


def _bare(folder: Path, pki: Pki, crowd: Crowd) -> _Bare:
    files, port = pki.server("bare"), free_ports(1)[0]
    command = [sys.executable, "-m", "tests.bench.bare_tls", str(port), files.ca, files.cert, files.key]
    process = Process(command, folder / "bare-tls.log")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(files.ca)
        context.load_cert_chain(files.cert, files.key)
        wait_for(partial(_listens, port), "the bare listener", 20)
        before = process.cpu()
        shares = crowd.order("bare", port=port)
        used = process.cpu() - before
    finally:
        process.end()
    return _Bare(max(ended for _, ended in shares) - min(began for began, _ in shares), used)


def _listens(port: int) -> bool:
    async def connect() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True

    return asyncio.run(connect())


def _all_wait(daemon: Daemon, machines: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while daemon.metrics()["rebootd_waiting_agents"] < machines:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {machines} agents wait")
        time.sleep(LOOK)


class _Transport:
    """What a request asks its connection for, with a certificate that has been verified."""

    def __init__(self) -> None:
        self._who = Identity(role="machine", name="m00000", serial=0x0A1B, since=0.0, expires=4e9)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._who if name == SHOWN else ("127.0.0.1", 1) if name == "peername" else default


def _roles(requests: int) -> Figure:
    transport = _Transport()
    request = make_mocked_request("POST", "/v1/machines/m00000/report", transport=transport)
    guard = Guard(tls=True)

    async def ask() -> float:
        began = time.perf_counter()
        for _ in range(requests):
            who = await guard.caller(request)
            if not who.may(Role.MACHINE) or not who.may_speak_for("m00000"):
                raise RuntimeError("the machine is refused")
        return time.perf_counter() - began

    took = asyncio.run(ask())
    return Figure(
        what=f"who asks and whether the role is enough, for one request on an open connection ({requests} requests)",
        value=f"{1e6 * took / requests:.1f} microseconds",
        beside="a certificate's name is read once for each connection; whether it is revoked, each time",
    )
