"""Checked on each drain for a cycle: waves, the order of racks, quorum members last, and the standing cycle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.fleetlock_record import CYCLE
from rebootd.core.model import CycleState, State
from rebootd.core.selectors import parse_selector
from rebootd.core.states import WORKING
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Cycle, Machine, Snapshot
    from tests.sim.truth import Truth

NEWS = 150.0
"""Seconds after which a leader must know what detection says on a machine (an agent's reports are a minute apart)."""
SLACK = 1.0
READY = frozenset({"next", "racks", "limit", "order"})
"""Kinds of reasons that say no more than that others go first."""


class PaceChecks:
    """Beside the other checks of one world."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.over: dict[tuple[str, str], float] = {}
        """(machine, cycle): when the cycle's outcome for the machine landed."""

    def transition(self, before: Machine, after: Machine) -> None:
        """A transition landed."""
        for cycle, outcome in after.outcomes.items():
            back = cycle == before.cycle and not after.cycle and before.booted
            if before.outcomes.get(cycle) != outcome or back:
                self.over[after.name, cycle] = self.truth.decided_at.get(after.epoch, 0.0)

    def forget(self, name: str) -> None:
        """Its record is gone, and what it remembered."""
        self.over = {key: at for key, at in self.over.items() if key[0] != name}

    def dated(self, name: str, ended: float) -> None:
        """People wrote into its record when a cycle last ended for it: it may count from then."""
        self.over.update({key: min(at, ended) for key, at in self.over.items() if key[0] == name})

    def drained(self, after: Machine) -> None:
        """A machine was taken out for its cycle."""
        truth = self.truth
        cycle = truth.cycles.get(after.cycle)
        if cycle is None:
            return
        if cycle.standing:
            if cycle.id != CYCLE:
                self._standing(after, cycle)
        elif cycle.waves and truth.policy.waves:
            self._waves(after, cycle)
        self._last(after, cycle)

    # --- the standing cycle ---------------------------------------------------------------------------

    def _standing(self, after: Machine, cycle: Cycle) -> None:
        truth, rule, name = self.truth, self.truth.policy.standing, after.name
        truth.counts["standing drains"] += 1
        machine = truth.world.machines[name]
        found, now = machine.finding.required, truth.world.loop.now

        def wrong(text: str) -> None:
            truth.fail("STANDING", f"{truth._who()} drains {name} for {cycle.id}, {text}")

        if not rule.enabled or not rule.selector.matches(after):
            wrong("which does not select it")
        if after.reboot_required is not Tri.YES or (found is not Tri.YES and now - machine.finding_at > NEWS):
            wrong(f"though it requires no reboot ({found.value})")
        ended = [at for (n, _), at in self.over.items() if n == name]
        if ended and not truth.clocks_touched and now - max(ended) < rule.every - SLACK:
            wrong(f"{now - max(ended):.0f} s after the last time; it may every {rule.every:.0f} s")

    # --- waves ----------------------------------------------------------------------------------------

    def _waves(self, after: Machine, cycle: Cycle) -> None:
        truth, waves = self.truth, self.truth.policy.waves
        if truth.asides or truth.edited:
            return
        groups = self._split(cycle)
        mine = next((i for i, names in enumerate(groups) if after.name in names), None)
        if mine is None:
            truth.fail("WAVE", f"{truth._who()} drains {after.name} for {cycle.id}, in which it has no wave")
            return
        truth.counts["wave drains"] += mine > 0
        now = truth.world.loop.now
        for number in range(mine):
            waiting = [n for n in sorted(groups[number]) if not self._done(truth.known[n], cycle)]
            if waiting:
                said = f"wave {number + 1} has {waiting} to go"
                truth.fail("WAVE", f"{truth._who()} drains {after.name} of wave {mine + 1} of {cycle.id}: {said}")
            ended = max((self.over.get((n, cycle.id), 0.0) for n in groups[number]), default=0.0)
            if not truth.clocks_touched and ended and now - ended < waves[number].soak - SLACK:
                said = f"wave {number + 1} ended {now - ended:.0f} s ago"
                truth.fail("WAVE", f"{truth._who()} drains {after.name} of wave {mine + 1} of {cycle.id}: {said}")

    def _done(self, m: Machine, cycle: Cycle) -> bool:
        if m.state in {State.HELD, State.QUARANTINED} or (m.flag and m.state is State.IN_SERVICE):
            return True
        if m.fleetlock is not None and m.state is State.IN_SERVICE and m.reboot_required is not Tri.YES:
            return True  # Nobody but its client could reboot it, and that does not ask.
        return cycle.id in m.outcomes and not (m.cycle == cycle.id and m.state in WORKING)

    def _split(self, cycle: Cycle) -> list[set[str]]:
        """The names in each wave, by the policy's own words."""
        known, policy = self.truth.known, self.truth.policy
        matches = parse_selector(cycle.selector).matches
        target = parse_selector(cycle.target, "target").matches if cycle.target else None
        chosen = [
            m
            for m in known.values()
            if m.rack and (cycle.id in (*m.outcomes, m.cycle) or (matches(m) and not (target and target(m))))
        ]
        last = [any(q.selector.matches(m) for q in policy.quorums) for m in chosen]
        order = {m.name: (late, self.rank(m.rack), m.name) for m, late in zip(chosen, last, strict=True)}
        rest, out = sorted(chosen, key=lambda m: order[m.name]), []
        for wave in policy.waves:
            if wave.machines is not None:
                taken = {m.name for m in rest if wave.machines.matches(m)}
            elif wave.racks:
                taken = {m.name for m in rest if m.rack in wave.racks}
            else:
                size = wave.size.of(len(chosen)) if wave.size is not None else 0
                taken = {m.name for m in rest[: len(rest) if wave.rest else size]}
            out.append(taken)
            rest = [m for m in rest if m.name not in taken]
        return out

    def rank(self, rack: str) -> tuple[int, int, str]:
        """Where the policy's order has a rack."""
        order = self.truth.policy.rack_order
        size = sum(m.rack == rack for m in self.truth.known.values()) if order.by == "smallest-first" else 0
        place = order.listed.index(rack) if rack in order.listed else len(order.listed)
        return place, size, rack

    # --- who goes before whom ---------------------------------------------------------------------------

    def _last(self, after: Machine, cycle: Cycle) -> None:
        """A member of a quorum group goes alone."""
        truth = self.truth
        if not any(q.selector.matches(after) for q in truth.policy.quorums):
            return
        working = [m.name for m in truth.known.values() if m.name != after.name and m.cycle and m.state in WORKING]
        # What people did to a record the leader may know, or not.
        others = [n for n in working if (record := truth.records.get(n)) is not None and record.state in WORKING]
        # Who comes back from a hold by this very decision was at rest when it was made.
        decided = truth.decided_at.get(after.epoch, 0.0)
        others = [n for n in others if truth.gates.moved.get(n, (0.0, False))[0] < decided]
        if others:
            truth.fail("ORDER", f"{truth._who()} drains {after.name}, a quorum member, while {others} are out")

    def decided(self, snapshot: Snapshot, decision: Decision) -> None:
        """Members of quorum groups go after all others, and racks in the order of the policy."""
        steps = [s for s in decision.steps if s.after is not None and s.after.state is State.DRAINING and s.guards]
        steps = [s for s in steps if s.before is not None and s.before.state is State.IN_SERVICE]
        if not steps:
            return
        policy = snapshot.policy
        running = [c for c in snapshot.cycles.values() if c.state is CycleState.RUNNING]
        alike = len(running) == 1 and not running[0].standing and not snapshot.machine_holds and not snapshot.rack_holds
        opening = {s.lock for s in steps if s.lock}
        own = snapshot.machines.get(snapshot.leader_node)
        ready = self._ready(snapshot, decision)
        for step in steps:
            after = step.after
            if after is None or not after.cycle:
                continue
            member = any(q.selector.matches(after) for q in policy.quorums)
            for (rack, late, full), name in ready.items():
                if member and not late:
                    self.truth.fail("ORDER", f"{after.name}, a quorum member, goes before {name}")
                if not (step.lock and alike and member == late and not full) or rack in opening:
                    continue
                if own is not None and own.rack in {rack, after.rack}:
                    continue
                coming = [s.after for s in decision.steps if s.after is not None and not s.guards]
                if any(m.rack == after.rack and m.state in WORKING for m in (*snapshot.machines.values(), *coming)):
                    continue  # it was open before
                if self._earlier(snapshot, rack, after.rack):
                    self.truth.fail("ORDER", f"rack {after.rack} is opened before {rack}, where {name} waits")

    @staticmethod
    def _ready(snapshot: Snapshot, decision: Decision) -> dict[tuple[str, bool, bool], str]:
        """Who waits only because others go first: the first of each kind in each rack (quorum members, limit full)."""
        crowds: dict[int, bool | None] = {}
        for reasons in {id(each): each for each in decision.reasons.values()}.values():
            never = any(r.kind == "limit" and "(the policy says never)" in r.what for r in reasons)
            kinds = {r.kind for r in reasons}
            crowds[id(reasons)] = None if never or kinds - READY else "limit" in kinds
        found: dict[tuple[str, bool, bool], str] = {}
        for name, reasons in decision.reasons.items():
            full, machine = crowds[id(reasons)], snapshot.machines.get(name)
            if full is not None and machine is not None and machine.state is State.IN_SERVICE:
                late = any(q.selector.matches(machine) for q in snapshot.policy.quorums)
                found.setdefault((machine.rack, late, full), name)
        return found

    @staticmethod
    def _earlier(snapshot: Snapshot, one: str, other: str) -> bool:
        order = snapshot.policy.rack_order

        def key(rack: str) -> tuple[int, int, str]:
            place = order.listed.index(rack) if rack in order.listed else len(order.listed)
            small = order.by == "smallest-first"
            return place, sum(m.rack == rack for m in snapshot.machines.values()) if small else 0, rack

        return key(one) < key(other)
