"""Planted in the core: wrong decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

from msgspec.structs import replace

from rebootd.core import admit, decide, directives, limits, permits, settle, view
from rebootd.core.decision import Guard
from rebootd.core.model import Observation, RackLock, State
from rebootd.core.walk import waits
from rebootd.core.windows import WindowVerdict
from rebootd.core.wire import DirectiveKind, Report
from tests.sim.planted.kind import Planted

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from rebootd.core.model import Machine, Snapshot

Patches = list["AbstractContextManager[Any]"]


def _counting(change: Callable[[Snapshot], Snapshot]) -> Callable[[], Patches]:
    """Capacity is counted on a changed picture of the fleet."""

    def patches() -> Patches:
        init = limits.Capacity.__init__

        def counted(self: Any, snapshot: Snapshot, _roll: Any = None) -> None:
            init(self, change(snapshot))

        return [mock.patch.object(limits.Capacity, "__init__", counted)]

    return patches


def _taken_for_well(which: Callable[[Snapshot, Machine], bool]) -> Callable[[Snapshot], Snapshot]:
    def change(snapshot: Snapshot) -> Snapshot:
        machines = {
            n: replace(m, state=State.IN_SERVICE) if which(snapshot, m) else m for n, m in snapshot.machines.items()
        }
        return replace(snapshot, machines=machines)

    return change


def _all_heard(snapshot: Snapshot) -> Snapshot:
    said = {n: Report(name=n, machine_id="", boot_id=m.boot_id) for n, m in snapshot.machines.items()}
    return replace(snapshot, observed={n: Observation(r, snapshot.now) for n, r in said.items()})


def _no_foreign_locks(snapshot: Snapshot) -> Snapshot:
    racks = {r: RackLock() if lock.holder == "other" else lock for r, lock in snapshot.racks.items()}
    return replace(snapshot, racks=racks)


def _no_halt() -> Patches:
    init = view.View.__init__

    def blind(self: Any, snapshot: Snapshot) -> None:
        init(self, replace(snapshot, halt=None))

    return [mock.patch.object(view.View, "__init__", blind), *guardless(Guard.NO_HALT)()]


def _no_holds() -> Patches:
    init = view.View.__init__

    def blind(self: Any, snapshot: Snapshot) -> None:
        init(self, replace(snapshot, machine_holds={}, rack_holds={}))

    return [mock.patch.object(view.View, "__init__", blind), *guardless(Guard.NOT_HELD)()]


def guardless(*which: Guard) -> Callable[[], Patches]:
    """Steps are committed without some of their guards."""

    def patches() -> Patches:
        from rebootd.coordinator.work import Planner

        guards = Planner._guards

        def fewer(self: Any, step: Any) -> Any:
            return guards(self, replace(step, guards=step.guards - set(which)))

        return [mock.patch.object(Planner, "_guards", fewer)]

    return patches


def _second_nonce() -> Patches:
    refusal = permits._final_refusal

    def lenient(machine: Machine, request: Any) -> str:
        return refusal(replace(machine, permit=None), request)

    return [mock.patch.object(permits, "_final_refusal", lenient), mock.patch.object(permits, "still_valid", _never)]


def _never(*_: Any) -> bool:
    return False


def _always_open() -> Patches:
    return [mock.patch.object(view, "judge_windows", return_value=WindowVerdict(open=True))]


def _clock_ignored() -> Patches:
    init = view.View.__init__

    def blind(self: Any, snapshot: Snapshot) -> None:
        init(self, replace(snapshot, clock_skew=0.0))

    return [mock.patch.object(view.View, "__init__", blind)]


def _halted_return() -> Patches:
    enabling = settle._FOLLOW[State.ENABLING]

    def blocked(walk: Any, seen: Any) -> Any:
        if walk.view.snapshot.halt is not None:
            return (waits(walk.machine, "halt", "everything is halted"),)
        return enabling(walk, seen)

    return [mock.patch.dict(settle._FOLLOW, {State.ENABLING: blocked})]


def _locked_return() -> Patches:
    verifying = settle._FOLLOW[State.VERIFYING]

    def blocked(walk: Any, seen: Any) -> Any:
        lock = walk.view.snapshot.racks.get(walk.machine.rack)
        if lock is not None and lock.holder == "other":
            return (waits(walk.machine, "rack-lock", "the rack is locked"),)
        return verifying(walk, seen)

    return [mock.patch.dict(settle._FOLLOW, {State.VERIFYING: blocked})]


def _early_unlock() -> Patches:
    return [mock.patch.object(decide, "WORKING", frozenset({State.DRAINING, State.DRAINED}))]


def _endless_cycle() -> Patches:
    return [mock.patch.object(decide, "finished", return_value=None)]


def _any_boot() -> Patches:
    real = directives.directive_for

    def careless(machine: Machine, boot_id: str, epoch: int, *, held: bool, conflict: bool) -> Any:
        return real(machine, machine.boot_id, epoch, held=held, conflict=conflict)

    from rebootd.coordinator import reception

    return [mock.patch.object(reception, "directive_for", careless)]


def _no_reasons() -> Patches:
    return [mock.patch.object(admit, "explain", return_value={})]


def _no_deadlines() -> Patches:
    return [mock.patch.object(settle, "overdue", return_value=0.0)]


def _no_enable() -> Patches:
    from rebootd.coordinator import reception

    real = directives.directive_for

    def mute(*args: Any, **named: Any) -> Any:
        directive = real(*args, **named)
        return None if directive is not None and directive.kind is DirectiveKind.ENABLE else directive

    return [mock.patch.object(reception, "directive_for", mute)]


def _lock_churn() -> Patches:
    def wanted(v: Any) -> tuple[str, ...]:
        racks = v.snapshot.racks
        away = {m.rack for m in v.snapshot.machines.values() if m.state is State.QUARANTINED}
        return tuple(sorted(r for r in away if racks.get(r, RackLock()).holder == "free"))

    return [mock.patch.object(decide, "_lost_locks", wanted)]


ALL = (
    Planted(
        "limit-forgets-quarantined",
        "quarantined machines do not count as unavailable",
        _counting(_taken_for_well(lambda _, m: m.state is State.QUARANTINED)),
        "hosts",
    ),
    Planted(
        "limit-forgets-held",
        "held machines do not count as unavailable",
        _counting(_taken_for_well(lambda _, m: m.state is State.HELD)),
        "operators",
    ),
    Planted(
        "limit-forgets-older-leaders",
        "two machines of one rack are drained at a failover: what an earlier leader took out does not count",
        _counting(_taken_for_well(lambda s, m: m.epoch < s.epoch)),
        "ambushes",
    ),
    Planted(
        "limit-forgets-unseen", "machines that a new leader has not heard of count as available", _counting(_all_heard)
    ),
    Planted(
        "foreign-lock-ignored",
        "a rack that an engineer has locked is not open",
        _counting(_no_foreign_locks),
        "operators",
    ),
    Planted("halt-ignored", "neither drain nor permit looks at the halt", _no_halt, "operators"),
    Planted("hold-ignored", "neither drain nor permit looks at holds", _no_holds, "operators"),
    Planted(
        "halt-unguarded", "the transaction of a permit does not check the halt", guardless(Guard.NO_HALT), "ambushes"
    ),
    Planted("hold-unguarded", "the transaction does not check holds", guardless(Guard.NOT_HELD), "ambushes"),
    Planted(
        "lock-unguarded",
        "the transaction does not check the lock of the rack",
        guardless(Guard.RACK_LOCKED),
        "ambushes",
    ),
    Planted(
        "policy-unguarded", "the transaction does not check the policy", guardless(Guard.POLICY_UNCHANGED), "ambushes"
    ),
    Planted("permit-issued-twice", "a second nonce for one boot_id is granted", _second_nonce, "ambushes"),
    Planted("window-not-checked", "windows are always open", _always_open, ""),
    Planted("clock-not-checked", "a leader whose clock is far off goes on", _clock_ignored, "clocks"),
    Planted("enable-blocked-by-halt", "a halt keeps machines from coming back", _halted_return, "operators"),
    Planted("return-blocked-by-lock", "a foreign rack lock keeps machines from coming back", _locked_return, "locks"),
    Planted("unlock-too-early", "the rack is unlocked while machines are still rebooting", _early_unlock),
    Planted("cycle-never-ends", "nobody notices that a cycle is done", _endless_cycle),
    Planted("directive-for-any-boot", "a report of an earlier boot gets the directive of the present one", _any_boot),
    Planted("no-reasons", "waiting machines have no reason", _no_reasons),
    Planted("no-deadlines", "no state has a deadline", _no_deadlines, "hosts"),
    Planted("never-told-to-enable", "the directive to come back is never given", _no_enable),
    Planted(
        "lock-churn",
        "the lock of a rack with a quarantined machine is taken and given up for ever",
        _lock_churn,
        "hosts",
    ),
)
