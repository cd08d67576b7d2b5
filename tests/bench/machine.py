"""One simulated machine with a real connection: what its agent would say, without the agent's own weight."""

from __future__ import annotations

import asyncio
import time

import msgspec

from rebootd.core.wire import Answer, CheckResult, DirectiveKind, PermitAnswer, PermitRequest, Report, Result
from tests.bench.connection import Connection, Reply

_reports = msgspec.json.Encoder()
_answers = msgspec.json.Decoder(Answer)
_permits = msgspec.json.Decoder(PermitAnswer)
_PASSED = CheckResult("passed")
_PENDING = CheckResult("pending")
BUSY = 5.0
IDLE = 60.0
AGAIN = 0.2
"""Seconds until a request that was refused or lost is sent again (and counted as such)."""


def source(number: int) -> str:
    """The address that the connection of machine ``number`` comes from."""
    return f"127.0.1.{1 + number % 200}"


class Machine:
    """Its record as an agent would know it. ``refused`` counts answers that were none, ``lost`` lost connections."""

    def __init__(self, number: int, host: str, port: int) -> None:
        self.number = number
        self.name = f"m{number:05d}"
        self.host = host
        self.port = port
        self.boots = 1
        self.index = 0
        self.state = ""
        self.check = _PASSED
        self.result: Result | None = None
        self.in_service = False
        self.refused = 0
        self.lost = 0
        self.requests = 0
        self._connection: Connection | None = None

    @property
    def boot_id(self) -> str:
        """The boot_id of its present boot."""
        return f"{self.name}-boot-{self.boots:08d}"

    @property
    def path(self) -> bytes:
        """Where it reports."""
        return b"/v1/machines/%b/report" % self.name.encode()

    def reboot(self) -> None:
        """A new boot: out of service, nothing checked; the index of the last answer is of an earlier life."""
        self.boots += 1
        self.index = 0
        self.check = _PENDING
        self.result = None
        self.in_service = False

    def check_passed(self) -> None:
        """Its checks after this boot have passed."""
        self.check = _PASSED

    def made(self, wait: float) -> Report:
        """The next report."""
        return Report(
            name=self.name,
            machine_id="id-" + self.name,
            boot_id=self.boot_id,
            kernel="6.1.0-18-amd64",
            labels={"role": "web", "zone": "a"},
            boot_check=self.check,
            result=self.result,
            in_service=self.in_service,
            clock=time.time(),
            agent="bench",
            index=self.index,
            wait=wait,
        )

    async def report(self, wait: float) -> Answer:
        """Reports until there is an answer."""
        while True:
            reply = await self._post(self.path, _reports.encode(self.made(wait)))
            if reply is not None and reply.status == 200:
                answer = _answers.decode(reply.body)
                self.index, self.state = answer.index, answer.state
                return answer
            self.refused += reply is not None
            await asyncio.sleep(AGAIN)

    async def permit(self, directive: str, epoch: int) -> PermitAnswer | None:
        """Asks for its permit; None when there was no answer."""
        request = PermitRequest(
            name=self.name,
            machine_id="id-" + self.name,
            boot_id=self.boot_id,
            nonce=f"nonce-{self.boot_id}",
            directive=directive,
            epoch=epoch,
        )
        reply = await self._post(b"/v1/machines/%b/permit" % self.name.encode(), _reports.encode(request))
        return _permits.decode(reply.body) if reply is not None and reply.status == 200 else None

    async def _post(self, path: bytes, body: bytes) -> Reply | None:
        try:
            if self._connection is None or self._connection.lost:
                self._connection = await Connection.open(self.host, self.port, source(self.number))
            self.requests += 1
            return await self._connection.post(path, body)
        except OSError:
            self.lost += 1
            return None

    async def come_back(self, checked: bool) -> None:
        """From its first report after a boot to in-service. ``checked``: by then its checks have passed."""
        if not checked:
            await self.report(BUSY)
        self.check_passed()
        while True:
            answer = await self.report(BUSY)
            self.obey(answer)
            if answer.state == "in-service" and self.in_service:
                return

    def obey(self, answer: Answer) -> None:
        """Carries a drain or enable directive out at once."""
        directive = answer.directive
        if directive is None or directive.kind is DirectiveKind.REBOOT:
            return
        if self.result is None or self.result.id != directive.id:
            self.result = Result(directive.id, directive.kind, ok=True, epoch=directive.epoch)
            self.in_service = directive.kind is DirectiveKind.ENABLE

    async def idle(self) -> None:
        """Reports and waits, for ever."""
        while True:
            self.obey(await self.report(IDLE))

    def close(self) -> None:
        """Hangs up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
