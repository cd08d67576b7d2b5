"""Checked on each drain and permit: gates (S6), quorum groups (S7), node checks of Consul (S2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rebootd.core.model import State
from rebootd.core.policy_gates import ConsulQuorum, ConsulService, NomadQuorum

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.policy_gates import Gate
    from tests.sim.instruments import Look
    from tests.sim.truth import Truth

BLIND_GRACE = 60.0
"""Seconds after which a leader must have noticed that it cannot read Consul's node checks."""
FAILING_GRACE = 60.0
"""Seconds after which a leader must count a machine whose node checks fail."""
SMALLEST = 3


class Judged:
    """A step that takes a machine out, as it was decided: when, and what each gate had said by then."""

    def __init__(self, at: float, looks: dict[str, Look]) -> None:
        self.at = at
        self.looks = looks


class GateChecks:
    """Beside the other checks of one world."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.judged: dict[str, Judged] = {}
        self.moved: dict[str, tuple[float, bool]] = {}
        """Machine: when its last transition landed, and whether that took it out of service; the last one last."""
        self.here: set[str] = set()
        """Machines that were in service when the last transaction had landed."""

    def decided(self, snapshot: Snapshot, decision: Decision) -> None:
        """Keeps what was known when machines were sent out."""
        truth, world = self.truth, self.truth.world
        instruments = world.instruments
        for step in decision.steps:
            if step.guards:
                looks = instruments.looks.get(truth.leader_of.get(snapshot.epoch, ""), {}) if instruments else {}
                self.judged[step.name] = Judged(world.loop.now, dict(looks))

    def transition(self, before: Machine, after: Machine) -> None:
        """A transition landed."""
        if after.state is State.IN_SERVICE:
            self.here.add(after.name)
        else:
            self.here.discard(after.name)
        if before.state is not after.state or before.since != after.since:
            out = before.state is State.IN_SERVICE and after.state is State.DRAINING
            self.moved.pop(after.name, None)
            self.moved[after.name] = (self.truth.world.loop.now, out)

    def going_out(self, after: Machine, what: str) -> None:
        """A drain or a permit landed."""
        truth = self.truth
        self._quorums(after, what)
        instruments = truth.world.instruments
        if instruments is None:
            if truth.policy.gates:
                gates = [g for g in truth.policy.gates if g.covers is None or g.covers.matches(after)]
                for gate in gates:
                    if gate.name not in self._skipped(after):
                        truth.fail("S6", f"{truth._who()} {what} {after.name} past {gate.name}, which nobody can read")
            return
        since = instruments.blind_since
        if since is not None and truth.world.loop.now - since > BLIND_GRACE:
            truth.fail(
                "S6", f"{truth._who()} {what} {after.name} without knowing Consul's node checks since {since:.0f}"
            )
        judged = self.judged.get(after.name)
        for gate in truth.policy.gates:
            if gate.name not in self._skipped(after):
                why = "nothing was decided about it" if judged is None else self._gate(gate, after, judged, what)
                if why:
                    truth.fail("S6", f"{truth._who()} {what} {after.name} past gate {gate.name}: {why}")

    def _skipped(self, after: Machine) -> set[str]:
        cycle = self.truth.cycles.get(after.cycle)
        if cycle is None or not cycle.emergency:
            return set()
        guarded = {g.name for g in self.truth.policy.gates if isinstance(g.test, ConsulQuorum | NomadQuorum)}
        return set(cycle.skip_gates) - guarded

    def _gate(self, gate: Gate, after: Machine, judged: Judged, what: str) -> str:
        """What is wrong with the machine's going as far as the gate is concerned, or ""."""
        truth = self.truth
        if gate.covers is not None and not gate.covers.matches(after):
            return ""
        look = judged.looks.get(gate.name)
        if look is None or look.gate != gate or look.began < truth.epoch_at:
            return "it was not read"
        if isinstance(gate.test, ConsulService) and look.nodes and gate.covers is None and after.name not in look.nodes:
            return ""
        truth.counts["gates passed"] += 1
        slack = truth.policy.clock_tolerance if truth.clocks_touched else 1.0
        if judged.at - look.began > gate.max_age + slack:
            return f"its reading was {judged.at - look.began:.0f} s old"
        for name, (at, out) in reversed(self.moved.items()):
            if at <= look.began:
                break
            member = truth.known.get(name)
            if member is None or not self._covers(gate, look, member):
                continue
            if at <= judged.at or (out and what == "drains"):
                return f"it was read {at - look.began:.3f} s before {name} changed"
        return self._said(gate, look, after)

    @staticmethod
    def _covers(gate: Gate, look: Look, member: Machine) -> bool:
        if gate.covers is not None:
            return gate.covers.matches(member)
        return not isinstance(gate.test, ConsulService) or member.name in look.nodes

    def _said(self, gate: Gate, look: Look, after: Machine) -> str:
        truth = self.truth
        known = truth.known

        def away(n: str) -> bool:
            # Who goes by the same transaction is not away yet: that no two drains of one decision pass is checked
            # above.
            return n != after.name and n in known and known[n].state is not State.IN_SERVICE and n not in self.here

        if isinstance(gate.test, ConsulService):
            test = gate.test.minimum
            least = math.ceil(len(look.nodes) * test.value / 100) if test.percent else test.value
            left = sum(n for name, n in look.nodes.items() if name != after.name and not away(name))
            return "" if left >= least and look.nodes else f"{left} instances are left, {least} must pass"
        if isinstance(gate.test, ConsulQuorum | NomadQuorum):
            ill = [n for n, well in look.healthy.items() if n != after.name and (not well or away(n))]
            if not look.healthy or ill:
                return f"servers are not well: {ill}"
            return "too few servers" if after.name in look.healthy and len(look.healthy) < SMALLEST else ""
        return "" if look.passes else "it does not pass"

    def _quorums(self, after: Machine, what: str) -> None:
        """S7: nobody else of its groups is away, and a group that any loss breaks was given leave for that."""
        truth = self.truth
        for group in truth.policy.quorums:
            if not group.selector.matches(after):
                continue
            truth.counts["quorum members out"] += 1
            members = truth.members(group.selector)
            lost = [n for n in members if n != after.name and truth.unavailable(n)]
            lost += sorted(truth.known_asides - truth.known.keys())
            if lost:
                truth.fail("S7", f"{truth._who()} {what} {after.name} of group {group.name}, which lacks {lost}")
            if len(members) < SMALLEST and not group.allow_outage:
                truth.fail("S7", f"{truth._who()} {what} {after.name} of group {group.name} of {len(members)}")


def failing_too_long(truth: Truth, name: str) -> bool:
    """Whether a leader must know by now that Consul says the machine has failed."""
    instruments = truth.world.instruments
    if instruments is None:
        return False
    since = instruments.failing_since.get(name)
    return since is not None and truth.world.loop.now - since > FAILING_GRACE
