"""Planted beside the way of one machine: gates, quorum groups, power, pace, emergencies, clocks, records."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from unittest import mock

from msgspec.structs import replace

from rebootd.coordinator import forecasts, power
from rebootd.coordinator.fleet import Fleet
from rebootd.coordinator.gates import keeper
from rebootd.coordinator.gates.health import HealthWatch
from rebootd.coordinator.power import PowerRoom
from rebootd.core import (
    gate_view,
    gates,
    limits,
    pace,
    permits,
    quorums,
    roll,
    settle,
    standing,
    view,
    waves,
    wishes,
)
from rebootd.core import power as core_power
from rebootd.core.decision import Guard
from rebootd.core.gates import Word
from rebootd.core.model import State
from rebootd.core.wire import Tri
from tests.sim.planted.cores import guardless
from tests.sim.planted.kind import Planted

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

Patches = list["AbstractContextManager[Any]"]


def _put(where: Any, name: str, value: Any) -> Callable[[], Patches]:
    """One attribute is another."""
    return lambda: [mock.patch.object(where, name, value)]


# --- gates ------------------------------------------------------------------------------------------------


def _no_gates() -> Patches:
    """Gates are read and shown, and keep nobody in."""
    init = gate_view.Safeguards.__init__

    def blind(self: Any, snapshot: Any, *args: Any) -> None:
        init(self, replace(snapshot, policy=replace(snapshot.policy, gates=())), *args)

    return [mock.patch.object(gate_view.Safeguards, "__init__", blind)]


def _judging(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[], Patches]:
    """Gates are judged on changed facts."""

    def patches() -> Patches:
        real = gates.judge

        def judge(gate: Any, reading: Any, **facts: Any) -> Any:
            return real(gate, reading, **change(facts))

        return [mock.patch.object(gate_view, "judge", judge)]

    return patches


def _old_readings() -> Patches:
    real = gates._unknown

    def lenient(gate: Any, reading: Any, now: float, changed: float) -> Any:
        if reading is not None and reading.value is not None:
            now = min(now, reading.at + gate.max_age)
        return real(gate, reading, now, changed)

    # Only what is read too seldom grows old.
    return [mock.patch.object(gates, "_unknown", lenient), mock.patch.object(keeper, "SHARE", 0.2)]


def _unknown_passes() -> Patches:
    real = gates.judge

    def judge(*args: Any, **facts: Any) -> Any:
        verdict = real(*args, **facts)
        return replace(verdict, word=Word.PASS) if "cannot be read" in verdict.what else verdict

    return [mock.patch.object(gate_view, "judge", judge)]


def _no_second_look() -> Patches:
    """Gates are asked before the drain, and not again before the permit."""
    real = permits.permit_blockers

    def blockers(v: Any, machine: Any) -> Any:
        return tuple(b for b in real(v, machine) if b.kind != "gate")

    return [mock.patch.object(permits, "permit_blockers", blockers), mock.patch.object(settle, "turned", _none)]


def _none(*_: Any) -> None:
    return None


def _no_failing() -> Patches:
    """What Consul says of nodes counts nowhere."""

    async def idle(self: Any) -> None:
        self._fleet.faults.pop("health", None)

    return [mock.patch.object(HealthWatch, "run", idle)]


def _blind_leader() -> Patches:
    """That node checks cannot be read keeps nobody in."""
    snapshot = Fleet.snapshot

    def sighted(self: Any, **facts: Any) -> Any:
        self.faults.pop("health", None)
        return snapshot(self, **facts)

    return [mock.patch.object(Fleet, "snapshot", sighted)]


# --- quorum groups and emergencies ------------------------------------------------------------------------


def _quorum_counts() -> Patches:
    """A group that is not whole may lose one more."""
    real = quorums.Group._judge

    def judge(self: Any, itself: str) -> Any:
        blocker = real(self, itself)
        return None if blocker is not None and "is not whole: 1 of" in blocker.what else blocker

    return [mock.patch.object(quorums.Group, "_judge", judge)]


def _emergency_limits() -> Patches:
    """An emergency goes beyond limits, too."""
    full = limits.Capacity.full_limits

    def lenient(self: Any) -> int:
        return 0 if any(c.emergency for c in self._snapshot.cycles.values()) else full(self)

    return [mock.patch.object(limits.Capacity, "full_limits", lenient)]


def _emergency_quorums() -> Patches:
    """An emergency goes past quorum groups."""
    find = gate_view.Safeguards._find

    def lenient(self: Any, machine: Any, skip: Any) -> Any:
        blockers, renewing = find(self, machine, skip)
        if any(c.emergency for c in self._snapshot.cycles.values()):
            blockers = tuple(b for b in blockers if b.kind != "quorum")
        return blockers, renewing

    return [mock.patch.object(gate_view.Safeguards, "_find", lenient)]


def _emergency_holds() -> Patches:
    """An emergency takes out what is held."""
    init = view.View.__init__

    def deaf(self: Any, snapshot: Any) -> None:
        urgent = any(c.emergency for c in snapshot.cycles.values())
        init(self, replace(snapshot, machine_holds={}, rack_holds={}) if urgent else snapshot)

    return [mock.patch.object(view.View, "__init__", deaf), *guardless(Guard.NOT_HELD)()]


def _all_emergencies() -> Patches:
    """Every cycle goes outside of windows while there is one emergency."""
    real = view.View.closed_for

    def lenient(self: Any, cycle_id: str) -> Any:
        return () if any(c.emergency for c in self.cycles) else real(self, cycle_id)

    return [mock.patch.object(view.View, "closed_for", lenient)]


# --- power ------------------------------------------------------------------------------------------------


def _power_twice() -> Patches:
    """A machine that did not come back by its power cycle gets another."""
    real = core_power._after

    def again(v: Any, machine: Any, record: Any) -> Any:
        found = real(v, machine, record)
        if found.blocker is None:
            v.power.append(core_power._step(v, machine, (record.address, record.system), record))
            return core_power.Rescue(core_power._waits(machine, "it is being power-cycled"))
        return found

    return [mock.patch.object(core_power, "_after", again)]


def _power_uncommitted() -> Patches:
    """A power cycle is sent as soon as it is decided."""
    from rebootd.coordinator import leader

    real = leader.Leader._tick

    async def tick(self: Any) -> Any:
        for step in vars(leader)["decide"](self.snapshot()).power:
            self._rooms.power(step.after)
        return await real(self)

    return [mock.patch.object(leader.Leader, "_tick", tick)]


def _power_cap() -> Patches:
    return [mock.patch.object(core_power, "spent", return_value=0)]


def _power_at_once() -> Patches:
    """As many power cycles at once as machines are overdue."""
    real = vars(settle)["rescue"]

    def rescue(v: Any, machine: Any, overdue_by: float) -> Any:
        kept, policy = v.snapshot, v.snapshot.policy
        rule = replace(policy.failures.power, at_once=1000)
        v.snapshot = replace(kept, policy=replace(policy, failures=replace(policy.failures, power=rule)))
        try:
            return real(v, machine, overdue_by)
        finally:
            v.snapshot = kept

    return [mock.patch.object(settle, "rescue", rescue)]


def _power_of_the_last() -> Patches:
    """A new leader goes on with what the last one was about to send."""
    init = PowerRoom.__init__

    def eager(self: Any, fleet: Any, *args: Any, **named: Any) -> None:
        init(self, fleet, *args, **named)
        for record in fleet.power.values():
            if record.state.value == "asked":
                self.committed(record)

    async def run(self: Any) -> None:
        for record in self._fleet.power.values():
            if record.state.value == "asked" and self._asked.empty():
                self.committed(record)
        await real(self)

    real = PowerRoom.run
    return [
        mock.patch.object(PowerRoom, "__init__", eager),
        mock.patch.object(PowerRoom, "run", run),
        mock.patch.object(PowerRoom, "_objection", return_value=""),
    ]


# --- waves, order, the standing cycle ---------------------------------------------------------------------


def _no_waves() -> Patches:
    real = waves.WavePlan.at

    def at(self: Any, now: float, show: Any) -> Any:
        real(self, now, show)
        self.late = {}
        return self

    return [mock.patch.object(waves.WavePlan, "at", at)]


def _no_soak() -> Patches:
    split = waves._split

    def hasty(wave: Any, rest: Any, total: int) -> Any:
        return split(wave, rest, total)

    real = waves.WavePlan.at

    def at(self: Any, now: float, show: Any) -> Any:
        kept, self.waves = self.waves, tuple(replace(w, soak=0.0) for w in self.waves)
        try:
            return real(self, now, show)
        finally:
            self.waves = kept

    return [mock.patch.object(waves, "_split", hasty), mock.patch.object(waves.WavePlan, "at", at)]


def _any_order() -> Patches:
    real = wishes.rack_order

    def backwards(*args: Any) -> Any:
        return real(*args)[::-1]

    from rebootd.core import admit

    return [mock.patch.object(admit, "rack_order", backwards)]


def _members_first() -> Patches:
    init = pace.Pace.__init__

    def plain(self: Any, *args: Any) -> None:
        init(self, *args)
        self.last = frozenset()

    return [mock.patch.object(pace.Pace, "__init__", plain)]


def _unknown_required() -> Patches:
    def wants(policy: Any, now: float) -> Any:
        rule = policy.standing
        return lambda m: m.reboot_required is not Tri.NO and m.ended <= now - rule.every and rule.selector.matches(m)

    return [mock.patch.object(where, "wants", wants) for where in (wishes, roll)]


def _again_and_again() -> Patches:
    real = standing.wants

    def wants(policy: Any, now: float) -> Any:
        return real(replace(policy, standing=replace(policy.standing, every=0.0)), now)

    return [mock.patch.object(where, "wants", wants) for where in (wishes, roll)]


# --- clocks, records, forecasts, reasons ------------------------------------------------------------------


def _wall_clock() -> Patches:
    """As bug 45: a leader's time is the wall clock, whatever it does."""
    from rebootd.coordinator.clock import LeaderClock

    def now(self: Any) -> float:
        return float(self._wall())

    return [mock.patch.object(LeaderClock, "__call__", now)]


def _future_counts() -> Patches:
    """Stamps are taken as they are, from whichever clock."""
    from rebootd.coordinator import fleet

    def same(record: Any, *_: Any) -> Any:
        return record

    return [mock.patch.object(fleet, "machine_by", same), mock.patch.object(fleet, "record_by", same)]


def _bad_hold() -> Patches:
    """A hold that cannot be read is none."""
    real = Fleet._hold

    def hold(self: Any, kind: str, name: str, entry: Any, now: float) -> None:
        real(self, kind, name, entry, now)
        holds = self.machine_holds if kind == "machine" else self.rack_holds
        if entry is not None and b'"since"' not in entry.value:
            holds.pop(name, None)

    # The transaction looks at the key, too.
    return [mock.patch.object(Fleet, "_hold", hold), *guardless(Guard.NOT_HELD)()]


def _bad_policy() -> Patches:
    """A policy that cannot be read is the one of before."""
    real = Fleet._policy

    def policy(self: Any, entry: Any) -> None:
        real(self, entry)
        self.faults.pop("policy", None)

    return [mock.patch.object(Fleet, "_policy", policy)]


def _bad_machine() -> Patches:
    """A machine whose record cannot be read counts nowhere."""
    init = limits.Capacity.__init__

    def careless(self: Any, snapshot: Any, *args: Any) -> None:
        init(self, replace(snapshot, asides={}), *args)

    return [mock.patch.object(limits.Capacity, "__init__", careless)]


def _bad_forecast() -> Patches:
    """A forecast that stumbles over quarantined machines; the leader goes on, and nobody is told."""
    real = vars(forecasts)["forecast"]

    def stumbling(snapshot: Any, cycle_id: str = "") -> Any:
        if any(m.state is State.QUARANTINED for m in snapshot.machines.values()):
            raise KeyError("quarantined")
        return (yield from real(snapshot, cycle_id))

    return [mock.patch.object(forecasts, "forecast", stumbling)]


def _no_since() -> Patches:
    """Since when a halt or a window keeps machines in is not known."""
    real = view.View._stops

    def stops(self: Any) -> Any:
        return tuple(replace(b, since=math.nan) for b in real(self))

    return [mock.patch.object(view.View, "_stops", stops)]


ALL = (
    Planted("gates-ignored", "gates are read and shown, and keep nobody in", _no_gates, "gates"),
    Planted(
        "reading-before-transition",
        "a reading from before the last transition of a member counts",
        _judging(lambda facts: {**facts, "changed": 0.0}),
        "gates",
    ),
    Planted("reading-too-old", "a reading never grows too old", _old_readings, "gates"),
    Planted("unreadable-gate-passes", "a gate that cannot be read passes", _unknown_passes, "gates"),
    Planted("gates-not-asked-again", "gates are not asked again before the permit", _no_second_look, "gates"),
    Planted("node-checks-ignored", "what Consul says of nodes counts nowhere", _no_failing, "gates"),
    Planted("blind-leader-goes-on", "that node checks cannot be read keeps nobody in", _blind_leader, "gates"),
    Planted("quorum-loses-two", "a group that lacks one member may lose one more", _quorum_counts, "pace"),
    Planted(
        "small-group-needs-no-leave",
        "a group under three is like any other",
        _put(quorums, "SMALLEST", 0),
        "pace",
    ),
    Planted("emergency-skips-limits", "an emergency goes beyond limits", _emergency_limits, "pace"),
    Planted("emergency-skips-quorums", "an emergency goes past quorum groups", _emergency_quorums, "pace"),
    Planted("emergency-skips-holds", "an emergency takes out what is held", _emergency_holds, "pace"),
    Planted("emergency-for-all", "while there is an emergency every cycle skips windows", _all_emergencies, "pace"),
    Planted("power-cycled-twice", "one boot_id is power-cycled again and again", _power_twice, "power"),
    Planted("power-before-commit", "a power cycle is sent before its record has landed", _power_uncommitted, "power"),
    Planted(
        "power-no-second-look",
        "nobody asks once more before the reset",
        _put(power, "objection", lambda *_: ""),
        "power",
    ),
    Planted(
        "power-for-the-living",
        "a machine that reports is power-cycled when it is overdue",
        _put(core_power, "unheard", lambda *_: True),
        "power",
    ),
    Planted("power-cap-ignored", "there is no hourly cap of power cycles", _power_cap, "power"),
    Planted("power-all-at-once", "any number of power cycles at once", _power_at_once, "power"),
    Planted(
        "power-of-the-last-leader", "a new leader sends what the last one had asked for", _power_of_the_last, "power"
    ),
    Planted("waves-together", "all waves come at once", _no_waves, "pace"),
    Planted("waves-do-not-soak", "the next wave comes as soon as the last is over", _no_soak, "pace"),
    Planted("racks-in-any-order", "racks are opened backwards", _any_order, "pace"),
    Planted("members-not-last", "members of quorum groups go with the others", _members_first, "pace"),
    Planted("unknown-is-required", "unknown detection counts as required", _unknown_required, "pace"),
    Planted("standing-again-and-again", "the standing cycle keeps no distance", _again_and_again, "pace"),
    Planted("leader-follows-the-wall", "a jump of the wall clock is one of the leader's time", _wall_clock, "leaps"),
    Planted(
        "stamps-from-the-future", "stamps of a clock that was ahead are taken as they are", _future_counts, "leaps"
    ),
    Planted("bad-hold-is-none", "a hold that cannot be read holds nobody", _bad_hold, "records"),
    Planted("bad-policy-is-the-last", "a policy that cannot be read changes nothing", _bad_policy, "records"),
    Planted("bad-machine-is-nobody", "who has an unreadable record counts nowhere", _bad_machine, "records"),
    Planted("forecast-stumbles", "an estimate fails while somebody is quarantined", _bad_forecast, "pace"),
    Planted("reason-without-since", "a halt is a reason without a since", _no_since, "operators"),
)
