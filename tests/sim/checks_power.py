"""Checked on each power cycle (S3): its record when it lands, and the reset when it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rebootd.core.model import PowerCycle, PowerState, State

if TYPE_CHECKING:
    from rebootd.core.model import Machine
    from rebootd.core.policy import Policy
    from tests.sim.truth import Truth

SLACK = 2.0
"""Seconds by which the leader's idea of times may differ from ours."""
GRACE = 20.0
"""The same for when it last heard of a machine."""
HOUR = 3600.0
ACTING = 120.0
SILENT = frozenset({State.REBOOTING, State.VERIFYING})


class PowerChecks:
    """Beside the other checks of one world."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.leaves: dict[str, tuple[float, PowerCycle]] = {}
        """boot_id: when the leave to power-cycle it landed, and the leave."""
        self.sent: dict[str, float] = {}
        self.landed_at: list[float] = []
        self.open: dict[str, tuple[float, int]] = {}
        """boot_id: when its leave landed, in which epoch; until its outcome is known."""
        self.state_since: dict[str, float] = {}
        self.edited = False
        """Whether people wrote a power record: what it said can no longer be counted."""

    def transition(self, before: Machine | None, after: Machine) -> None:
        """A transition landed."""
        if before is None or before.state is not after.state or before.since != after.since:
            self.state_since[after.name] = self.truth.decided_at.get(after.epoch, 0.0)

    def landed(self, name: str, value: bytes | None, *, ours: bool) -> None:
        """A record under ``power/`` was written or deleted."""
        if not ours:
            self.edited = True
            return
        if value is None:
            return
        record = msgspec.json.decode(value, type=PowerCycle)
        if record.state is not PowerState.ASKED:
            self.open.pop(record.boot_id, None)
            return
        now = self.truth.world.loop.now
        why = [self._objection(name, record, now, policy) for policy in self.truth.policies()]
        if all(why):
            self.truth.fail("S3", f"{self.truth._who()} may power-cycle {name} at {record.boot_id}: {why[0]}")
        self.truth.counts["power leaves"] += 1
        self.leaves[record.boot_id] = (now, record)
        self.open[record.boot_id] = (now, record.epoch)
        self.landed_at.append(now)

    def _objection(self, name: str, record: PowerCycle, now: float, policy: Policy) -> str:
        truth = self.truth
        rule, machine = policy.failures.power, truth.known.get(name)
        if not rule.address:
            return "the policy has no power cycles"
        if machine is None or machine.boot_id != record.boot_id or machine.state not in SILENT:
            return f"its record is {machine.state.value if machine else 'gone'}"
        if record.boot_id in self.leaves:
            return "it was given leave before"
        seen = truth.leadership
        heard = seen.heard.get(name) if seen is not None else None
        if heard is not None and now - heard < policy.unreachable_after - GRACE:
            return f"it was heard of {now - heard:.0f} s ago"
        limit = policy.deadlines.of(machine.state) or 0.0
        since = max(self.state_since.get(name, 0.0), truth.epoch_at)
        if now - since < limit + rule.after - SLACK:
            return f"it is {machine.state.value} for {now - since:.0f} s only"
        if truth.clocks_touched or self.edited:
            return ""
        lately = sum(now - at < HOUR - SLACK for at in self.landed_at)
        if lately >= rule.per_hour:
            return f"{lately} within the last hour, {rule.per_hour} are allowed"
        busy = sum(epoch == truth.epoch and now - at < ACTING - SLACK for at, epoch in self.open.values())
        return f"{busy} are under way, {rule.at_once} are allowed" if busy >= rule.at_once else ""

    def sending(self, daemon: str, record: PowerCycle) -> None:
        """A reset is sent."""
        truth, world = self.truth, self.truth.world
        now, name = world.loop.now, record.machine
        truth.counts["power cycles"] += 1
        world.say(f"{daemon} power-cycles {name} at {record.boot_id}")

        def wrong(text: str) -> None:
            truth.fail("S3", f"{daemon} power-cycles {name} at {record.boot_id}: {text}")

        leave = self.leaves.get(record.boot_id)
        if leave is None or leave[1] != record:
            wrong("no leave for it is committed")
            return
        if record.boot_id in self.sent:
            wrong("a second time")
        self.sent[record.boot_id] = now
        if truth.leader_of.get(record.epoch) != daemon:
            wrong(f"the leave is of epoch {record.epoch}, which is not its own")
        if truth.epoch > record.epoch and now - truth.epoch_at > world.plan.tuning.deadline + 1.0:
            wrong(f"though epoch {truth.epoch} began {now - truth.epoch_at:.1f} s ago")
        machine = truth.records.get(name)
        if truth.epoch == record.epoch and machine is not None:
            if (
                machine.boot_id != record.boot_id
                and name in truth.known
                and truth.known[name].boot_id != record.boot_id
            ):
                wrong(f"it is at {machine.boot_id}")
            elif machine.state not in SILENT:
                wrong(f"it is {machine.state.value}")
        seen = truth.leadership
        heard = seen.heard.get(name, 0.0) if seen is not None and seen.daemon == daemon else 0.0
        if leave[0] + SLACK < heard < now - 0.5:
            wrong(f"it has reported {now - heard:.1f} s ago")
