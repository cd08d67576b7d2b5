"""The one function that decides: a snapshot in, steps and a reason for every waiting machine out.

It serves the live loop, ``explain``, ``plan`` and the simulation alike. It is pure: the same
snapshot always gives the same decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.admit import Admission, admit, changed, finished
from rebootd.core.advance import ENDED
from rebootd.core.decision import Decision, Lane, MachineStep, PermitVerdict
from rebootd.core.drains import settled_debts
from rebootd.core.forgetting import forgotten
from rebootd.core.model import Blocker, CycleState, Event, State
from rebootd.core.power import stale
from rebootd.core.quiet import quiet
from rebootd.core.settle import create, settle
from rebootd.core.standing import changes, resting
from rebootd.core.states import WORKING
from rebootd.core.unreadable import awaited, set_aside
from rebootd.core.view import View

if TYPE_CHECKING:
    from rebootd.core.model import Cycle, Snapshot
    from rebootd.core.walk import Settled

KEPT_CYCLES = 50
"""Ended cycles that stay to be looked at."""
KEPT_WINDOW = 86400.0
"""Seconds that a one-shot window stays to be looked at after its end."""

_LOCKED = frozenset({State.DRAINING, State.DRAINED, State.REBOOTING})


def decide(snapshot: Snapshot) -> Decision:
    """What is to be done now, and why everything else has to wait.

    Work on one machine is settled first (it brings machines back and never asks for windows, gates
    or locks); then machines are admitted out of service, on the capacity as the *store* holds it, less what
    the first part has shown to be out besides. What comes back counts as back once it has landed.
    """
    view = View(snapshot)
    steps, reasons, permits = _settled(view)
    steps += forgotten(view, {step.name for step in steps})
    steps += settled_debts(view, {step.name for step in steps})
    for name in snapshot.asking:
        if name not in permits:
            permits[name] = _no_verdict(snapshot, name)
    admission = admit(view, frozenset(step.name for step in steps))
    reasons.update(admission.reasons)
    for name, aside in snapshot.asides.items():
        reasons[name] = (set_aside(aside, view.cycles),)
    if rests := resting(view):
        told = {step.name for step in (*steps, *admission.steps)}
        reasons.update({name: why for name, why in rests.items() if name not in reasons and name not in told})
    steps, unlocks = unlocks_of(view, steps, admission)
    return Decision(
        steps=(*steps, *admission.steps),
        locks=_lost_locks(view),
        unlocks=unlocks,
        cycles=tuple(_cycles(view)),
        reasons=reasons,
        permits=permits,
        prune=_prune(view),
        power=tuple(view.power),
        gates=view.safeguards.report(),
        hand_over=admission.hand_over if snapshot.successors is not None else "",
    )


def _settled(
    view: View,
) -> tuple[list[MachineStep], dict[str, tuple[Blocker, ...]], dict[str, PermitVerdict]]:
    """Every machine that is out, has news, or is new."""
    snapshot, observed = view.snapshot, view.snapshot.observed
    steps: list[MachineStep] = []
    reasons: dict[str, tuple[Blocker, ...]] = {}
    permits: dict[str, PermitVerdict] = {}

    def keep(name: str, outcome: Settled) -> None:
        if outcome.step is not None:
            steps.append(outcome.step)
            view.learn(outcome.step)
        if outcome.blockers:
            reasons[name] = outcome.blockers
        if outcome.verdict is not None:
            permits[name] = outcome.verdict

    asking = []
    for machine in view.roll.others:
        name = machine.name
        seen = observed.get(name)
        silent = seen is None or (name not in snapshot.calls and quiet(machine, seen.report))
        if silent and machine.state is State.IN_SERVICE:
            continue
        if name in snapshot.asking:
            asking.append((machine, seen))
        else:
            keep(name, settle(view, machine, seen))
    for name, seen in observed.items():
        if name not in snapshot.machines and name not in snapshot.asides and name not in snapshot.conflicts:
            keep(name, create(view, seen))
    # Permits are judged last: a crash that was reported in the same tick counts against them.
    for machine, seen in asking:
        keep(machine.name, settle(view, machine, seen))
    return steps, reasons, permits


def _no_verdict(snapshot: Snapshot, name: str) -> PermitVerdict:
    machine = snapshot.machines.get(name)
    if machine is None:
        return PermitVerdict(granted=False, reason="there is no record of this machine", final=True)
    if machine.state in WORKING or machine.state is State.HELD:
        return PermitVerdict(granted=False, reason=f"the machine is {machine.state.value}, and must come back first")
    return PermitVerdict(granted=False, reason=f"the machine is {machine.state.value}, not drained", final=True)


def _prune(view: View) -> tuple[str, ...]:
    """Ended cycles beyond the newest few that nobody is out for, and one-shot windows that are long over."""
    snapshot = view.snapshot
    ended = [c for c in snapshot.cycles.values() if c.state in ENDED]
    if len(ended) > KEPT_CYCLES:
        in_use = {m.cycle for m in snapshot.machines.values() if m.state is not State.IN_SERVICE}
        ended = sorted((c for c in ended if c.id not in in_use), key=lambda c: (c.changed, c.id))
    old = [f"cycles/{c.id}" for c in ended[: max(0, len(ended) - KEPT_CYCLES)]]
    power = [f"power/{name}" for name in stale(snapshot)]
    return (*old, *power, *(f"windows/{w.id}" for w in snapshot.windows if view.now - w.end > KEPT_WINDOW))


def _lost_locks(view: View) -> tuple[str, ...]:
    """Racks that our own work keeps open without our lock (it was lost): it is wanted again."""
    out = []
    for rack in view.capacity.open:
        lock, members = view.snapshot.racks.get(rack), view.capacity.members.get(rack, ())
        free = lock is None or lock.holder == "free"
        if free and any(m.state in _LOCKED or (m.planned and m.state in WORKING) for m in members):
            out.append(rack)
    return tuple(sorted(out))


def unlocks_of(view: View, steps: list[MachineStep], admission: Admission) -> tuple[list[MachineStep], tuple[str, ...]]:
    """Gives up the lock of each rack whose last machine is back.

    The unlock rides with that machine's own step. While the next machine of the rack only waits for
    this one, the lock is kept; if it then cannot go after all, the next decision gives the lock up.
    """
    ours = {rack for rack, lock in view.snapshot.racks.items() if lock.holder == "ours"}
    ours -= {s.after.rack for s in admission.steps if s.after is not None}
    # Who sets out from held, or crashes just now, keeps the lock that is there.
    ours -= {s.after.rack for s in steps if s.after is not None and s.after.state in WORKING}
    if not ours:
        return steps, ()
    unlocks = []
    for rack in sorted(ours):
        members = view.capacity.members.get(rack, [])
        working = [m.name for m in members if m.state in WORKING]
        if not working:
            if rack not in admission.renewing:
                unlocks.append(rack)
            continue
        if rack in admission.wanted or len(working) > 1:
            continue
        steps = [replace(s, unlock=rack) if s.name == working[0] and s.lane is Lane.BACK else s for s in steps]
    return steps, tuple(unlocks)


def _cycles(view: View) -> list[tuple[Cycle, Event]]:
    """Cycles that end, and cycles that halt themselves because their failure budget is spent."""
    out = []
    for cycle in view.cycles:
        totals = finished(cycle, view.roll, view.snapshot.policy)
        waits = any(awaited(cycle, aside) for aside in view.snapshot.asides.values())
        if totals is not None and not waits and cycle.state is not CycleState.PAUSED:
            after = changed(view, cycle, CycleState.DONE, "", totals)
        elif cycle.id in view.spent:
            after = changed(view, cycle, CycleState.HALTED, view.spent[cycle.id])
        else:
            continue
        detail = after.why or ", ".join(f"{n} {word}" for word, n in (totals or {}).items())
        event = Event(
            time=view.now,
            kind="cycle",
            cycle=cycle.id,
            frm=cycle.state.value,
            to=after.state.value,
            cause="cycle " + after.state.value,
            epoch=view.epoch,
            detail=detail,
        )
        out.append((after, event))
    known = {cycle.id for cycle, _ in out}
    return [*out, *(turn for turn in changes(view.snapshot) if turn[0].id not in known)]
