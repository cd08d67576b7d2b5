"""Checked on every message and on every real action of a host (S3, S4, what is said and what is obeyed)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.agent.journal import decode
from rebootd.core.wire import PermitAnswer, PermitRequest

if TYPE_CHECKING:
    from rebootd.agent.client import Reply
    from tests.sim.machines import Machine as SimMachine
    from tests.sim.net import Box, Station

from tests.sim.checks_lock import PREFIX as LOCKS
from tests.sim.checks_out import GoingOut


class _Epoch(msgspec.Struct):
    """Which epoch an answer is of."""

    epoch: int


class _Of(msgspec.Struct):
    """Whom a report or a directive is of."""

    boot_id: str
    name: str = ""


class _Answer(_Epoch):
    """What is judged of an answer to a report."""

    index: int
    state: str
    directive: _Of | None = None


REPORT, ANSWER, EPOCH = msgspec.json.Decoder(_Of), msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Epoch)
"""What is checked of messages, and no more: each of them is read."""


class Wire(GoingOut):
    """Messages, and what hosts do."""

    def on_request(self, box: Box, station: Station, path: str, body: bytes) -> None:
        """A daemon takes a request."""
        self.counts["requests"] += 1
        if path.startswith(LOCKS):
            self.locks.on_request(path, body)
        elif path.endswith("/report"):
            self._heard(station, path)
        else:
            self._permit_asked(msgspec.json.decode(body, type=PermitRequest))

    def on_reply(self, box: Box, station: Station, path: str, body: bytes, reply: Reply) -> None:
        """A daemon answers."""
        if path.startswith(LOCKS):
            self.locks.on_reply(station, path, body, reply)
            return
        if reply[0] != 200:
            return
        if path.endswith("/permit"):
            self._permit_answer(
                msgspec.json.decode(body, type=PermitRequest), msgspec.json.decode(reply[2], type=PermitAnswer)
            )
            return
        self._heard(station, path)
        report, answer = REPORT.decode(body), ANSWER.decode(reply[2])
        speaks_on = self.world.loop.now - self.epoch_at - self.world.plan.tuning.deadline
        if answer.epoch < self.epoch and speaks_on > 1.0:
            self.fail("SPEAK", f"{report.name} is answered in epoch {answer.epoch}, {speaks_on:.1f} s too late")
        if not answer.state:
            return
        committed = self.history[report.name].get(answer.index)
        if committed is None or committed[0] != answer.state:
            self.fail("COMMITTED", f"{report.name} is told {answer.state} v{answer.index}, which is not committed")
        elif answer.directive is not None and answer.directive.boot_id != report.boot_id:
            self.fail("COMMITTED", f"{report.name} at {report.boot_id} gets a directive for {answer.directive.boot_id}")
        elif answer.directive is not None and committed[1] != report.boot_id:
            self.fail("COMMITTED", f"{report.name} reports the stale {report.boot_id} and gets a directive")

    def _permit_answer(self, asked: PermitRequest, answer: PermitAnswer) -> None:
        if answer.granted and answer.nonce not in self.permits[answer.boot_id]:
            self.fail("S3", f"{asked.name} is told of a permit for {answer.boot_id} that is not committed")

    def _permit_asked(self, asked: PermitRequest) -> None:
        data = self.world.machines[asked.name].disk.data or b""
        if asked.boot_id == self.world.machines[asked.name].boot_id and asked.nonce.encode() not in data:
            self.fail("JOURNAL", f"{asked.name} asks under {asked.nonce}, which is not on its disk")

    def _heard(self, station: Station, path: str) -> None:
        seen = self.leadership
        if seen is not None and station.url == self.world.daemons[seen.daemon].url:
            seen.heard[path.split("/")[3]] = self.world.loop.now

    def on_delivery(self, box: Box, path: str, reply: Reply) -> None:
        """An answer reaches an agent's host."""
        if path.startswith(LOCKS):
            self.locks.on_delivery(path, reply)
        elif reply[0] == 200:
            epoch = EPOCH.decode(reply[2]).epoch
            name = box.name
            if self.permit_trick and path.endswith("/permit") and b'"granted":true' in reply[2]:
                self._trick(self.world.machines[name])
            self.epochs[name] = max(self.epochs.get(name, 0), epoch)

    def delay(self, path: str, reply: Reply) -> float:
        """Seconds by which an answer is held up on its way."""
        if self.permit_trick != "delay" or not path.endswith("/permit") or b'"granted":true' not in reply[2]:
            return 0.0
        self.permit_trick = ""
        self.counts["hit permit delay"] += 1
        return 12.0

    def _trick(self, machine: SimMachine) -> None:
        trick, self.permit_trick = self.permit_trick, ""
        self.counts[f"hit permit {trick}"] += 1
        self.world.say(f"TRICK {trick} at the permit of {machine.name}")
        if trick == "restore":
            machine.restore()
        elif trick == "forget":
            machine.lose_journal()
        elif trick == "freeze" and machine.process is not None:
            machine.process.stop()
            self.world.loop.after(12.0 + self.policy.permit_valid / 2, machine.process.go_on)

    def rebooting(self, machine: SimMachine) -> None:
        """A reboot command is executed."""
        self.counts["reboots"] += 1
        boot_id, now = machine.boot_id, self.world.loop.now
        if boot_id in self.rebooted:
            self.fail("S3", f"{machine.name} reboots twice from {boot_id}")
        self.rebooted[boot_id] = machine.name
        agent = machine.agent
        assert agent is not None
        record = agent._journal.record
        nonces = self.permits.get(boot_id, {})
        intent = record.intent
        if intent is None or intent.nonce not in nonces:
            self.fail("S3", f"{machine.name} reboots {boot_id} without a committed permit")
        elif now > nonces[intent.nonce] + 0.01:
            self.fail("S3", f"{machine.name} reboots {now - nonces[intent.nonce]:.1f} s after its permit ended")
        if machine.disk.data is None or decode(machine.disk.data).intent != intent:
            self.fail("JOURNAL", f"{machine.name} reboots with nothing about it on its disk")
        self._current(machine, "reboots")
        self.world.say(f"{machine.name} executes its reboot of {boot_id}")

    def obeying(self, machine: SimMachine, directive: str) -> None:
        """Hooks run for a directive."""
        if directive:
            self._current(machine, f"obeys {directive}")

    def _current(self, machine: SimMachine, what: str) -> None:
        agent = machine.agent
        current = agent._runner._current if agent is not None and hasattr(agent, "_runner") else None
        if current is None:
            return
        if current.boot_id != machine.boot_id:
            self.fail("BOOT", f"{machine.name} at {machine.boot_id} {what}, said to {current.boot_id}")
        journal = agent._journal.record.epoch if agent is not None else 0
        if current.epoch < journal and what.startswith("obeys") and not self._same_step(machine, current):
            self.fail("EPOCH", f"{machine.name} {what} of epoch {current.epoch} after one of {journal}")

    def _same_step(self, machine: SimMachine, current: Any) -> bool:
        """A new leader says the same directive again: same step, same id."""
        record = self.records.get(machine.name)
        return record is not None and record.version in {current.version, current.version + 1}

    def journaled(self, machine: SimMachine) -> None:
        """The agent's journal changed on disk."""
        data = machine.disk.data or b""
        now_in = b'"in_service":true' in data
        was_in = self.in_service.get(machine.name, False)
        self.in_service[machine.name] = now_in
        told = machine.boot_id in self.enabling or not machine.boots
        if now_in and not was_in and b'"by_hand":""' in data and not told:
            self.fail("S4", f"{machine.name} goes into service at {machine.boot_id} though nobody said so")

    def mark_changes(self, machine: SimMachine, method: str, path: str, body: bytes | None) -> None:
        """The agent changes a check of its local Consul agent."""
        check = msgspec.json.decode(body)["ID"] if body else path.rpartition("/")[2]
        if check != "rebootd":
            self.fail("S4", f"{machine.name}'s agent touches the check {check} of others")
