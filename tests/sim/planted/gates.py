"""Planted in the judging of gates and quorum groups, and in what an emergency may skip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

from msgspec.structs import replace

from rebootd.coordinator.fleet import Fleet
from rebootd.coordinator.gates import keeper
from rebootd.coordinator.gates.health import HealthWatch
from rebootd.core import gate_view, gates, limits, permits, quorums, settle, view
from rebootd.core.decision import Guard
from rebootd.core.gates import Word
from tests.sim.planted.cores import guardless
from tests.sim.planted.kind import Planted, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

Patches = list["AbstractContextManager[Any]"]


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
        put(quorums, "SMALLEST", 0),
        "pace",
    ),
    Planted("emergency-skips-limits", "an emergency goes beyond limits", _emergency_limits, "pace"),
    Planted("emergency-skips-quorums", "an emergency goes past quorum groups", _emergency_quorums, "pace"),
    Planted("emergency-skips-holds", "an emergency takes out what is held", _emergency_holds, "pace"),
    Planted("emergency-for-all", "while there is an emergency every cycle skips windows", _all_emergencies, "pace"),
)
