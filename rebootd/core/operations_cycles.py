"""What operators may ask for about cycles, as plans, and how far a cycle is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from rebootd.core.advance import ENDED, at_target, selected
from rebootd.core.amounts import parse_amount
from rebootd.core.counts import Counts
from rebootd.core.decision import Change, RecordWrite
from rebootd.core.emergency import check_emergency, emergency_note
from rebootd.core.errors import InvalidInput, NotFound, Refused
from rebootd.core.fleetlock_record import CYCLE as FLEETLOCK
from rebootd.core.inputs import counted, parse_name
from rebootd.core.model import Cycle, CycleState, State
from rebootd.core.operations import audit
from rebootd.core.operations_inputs import Because, alike
from rebootd.core.policy_reboot import parse_method
from rebootd.core.selector_hints import hints
from rebootd.core.selectors import parse_selector
from rebootd.core.standing import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rebootd.core.model import Machine, Snapshot

MAX_CYCLE_ID = 64


LEGAL: dict[str, tuple[frozenset[CycleState], CycleState]] = {
    "pause": (frozenset({CycleState.RUNNING}), CycleState.PAUSED),
    "resume": (frozenset({CycleState.PAUSED, CycleState.HALTED}), CycleState.RUNNING),
    "cancel": (frozenset({CycleState.RUNNING, CycleState.PAUSED, CycleState.HALTED}), CycleState.CANCELLED),
}
"""Each verb: the states it is legal in, and the state it leads to."""


def progress(cycle: Cycle, machines: Iterable[Machine]) -> tuple[Counts, dict[str, Counts]]:
    """The counts of a cycle as a whole and by rack, as the machines' records tell them."""
    total = Counts()
    racks: dict[str, Counts] = {}
    ended = cycle.state in ENDED
    for machine in machines:
        outcome = machine.outcomes.get(cycle.id, "")
        away = machine.cycle == cycle.id and machine.state is not State.IN_SERVICE
        if cycle.standing:
            outcome = "" if away else count(machine, cycle)
            if not (outcome or away) or (outcome == "waiting" and not selected(cycle, machine)):
                continue
        out = not outcome and away
        if not (outcome or out) and (ended or not selected(cycle, machine)):
            continue
        for counts in (total, racks.setdefault(machine.rack, Counts())):
            counts.selected += 1
            if outcome.startswith("rebooted"):
                counts.rebooted += 1
            elif outcome.startswith("failed"):
                counts.failed += 1
            elif outcome == "waiting":
                counts.waiting += 1
            elif out:
                counts.out += 1
            elif outcome or at_target(cycle, machine):
                counts.skipped += 1
            else:
                counts.waiting += 1
    if cycle.totals:
        total = Counts(**{f: cycle.totals.get(f, 0) for f in ("selected", "rebooted", "failed", "skipped")})
    return total, racks


def start_cycle(
    snapshot: Snapshot,
    *,
    cycle_id: str,
    selector: str,
    target: str = "",
    failure_budget: int | str | None = None,
    because: Because,
    allow_empty: bool = False,
    waves: bool = True,
    emergency: bool = False,
    skip_gates: Sequence[str] = (),
    method: str = "",
) -> Change:
    """Starts a cycle. ``failure_budget`` is a number, per cent of the machines selected now, or
    None for the policy's. An id can be used once: machines remember how it ended for them. ``waves`` tells whether it
    goes in the policy's waves. ``emergency`` needs a reason, and skips windows and the gates in ``skip_gates``.
    ``method`` is how its machines reboot (``""``: as the policy or each host says).
    """
    because = because.checked()
    if len(parse_name(cycle_id, "id")) > MAX_CYCLE_ID:
        raise InvalidInput("id", cycle_id, f"1 to {MAX_CYCLE_ID} characters of A-Z a-z 0-9 . _ - (not dots alone)")
    wanted = parse_selector(target, "target").keys() if target.strip() else frozenset()
    if method and parse_method(method, "method") == "soft-reboot" and "kernel" in wanted:
        raise InvalidInput("method", method, f"a method that starts a kernel, since the target is {target.strip()}")
    matches = parse_selector(selector, "selector").matches
    used = snapshot.cycles.get(cycle_id)
    policy = snapshot.policy
    if (policy.standing.enabled and cycle_id == policy.standing.id) or cycle_id == FLEETLOCK:
        raise Refused(f"the id {cycle_id} is that of the policy's standing cycle; choose another")
    if used is not None:
        raise Refused(f"the id {cycle_id} is in use by a cycle that is {used.state.value}; choose another")
    if any(cycle_id in m.outcomes or m.cycle == cycle_id for m in snapshot.machines.values()):
        raise Refused(f"machines remember an earlier cycle {cycle_id}; choose another id")
    size = sum(1 for m in snapshot.machines.values() if matches(m))
    if not size and not allow_empty:
        raise InvalidInput("selector", selector, _selectable(snapshot, selector))
    budget = snapshot.policy.failure_budget
    if failure_budget is not None:
        budget = parse_amount(failure_budget, "failure_budget").of(size)
    skipped = check_emergency(snapshot.policy, emergency=emergency, skip_gates=skip_gates, because=because)
    cycle = Cycle(
        id=cycle_id,
        selector=selector.strip(),
        target=target.strip(),
        created=snapshot.now,
        changed=snapshot.now,
        by=because.by,
        reason=because.reason,
        failure_budget=budget,
        waves=waves,
        epoch=snapshot.epoch,
        emergency=emergency,
        skip_gates=skipped,
        method=method,
        request=because.request,
    )
    note = f"selector {cycle.selector}, {counted(size, 'machine')}, failure budget {budget}"
    if method:
        note = f"{note}, {method}"
    if emergency:
        note = f"{emergency_note(cycle)}; {note}"
    return Change(
        writes=(_write(cycle),),
        events=(audit(snapshot, "cycle-start", because, cycle=cycle_id, note=note),),
    )


def move_cycle(snapshot: Snapshot, verb: str, cycle_id: str, because: Because) -> Change:
    """Pauses, resumes or cancels a cycle (``verb``). Machines that are out come back all the same.

    Who resumes a cycle tolerates what has failed in it so far: its budget is raised to that, and one more halts it.
    """
    because = because.checked()
    if verb not in LEGAL:
        raise InvalidInput("verb", verb, f"one of {', '.join(LEGAL)}")
    cycle = need_cycle(snapshot, cycle_id)
    legal, to = LEGAL[verb]
    if cycle.state not in legal:
        raise Refused(f"cycle {cycle_id} is {cycle.state.value}; to {verb} it, it must be {' or '.join(sorted(legal))}")
    if cycle.standing and verb == "cancel":
        field = "fleetlock.enabled" if cycle_id == FLEETLOCK else "standing.enabled"
        raise Refused(f"{cycle_id} is the policy's standing cycle: pause it, or set {field}: false")
    after = replace(
        cycle,
        state=to,
        changed=snapshot.now,
        epoch=snapshot.epoch,
        version=cycle.version + 1,
        why="" if to is CycleState.RUNNING else because.sentence(),
        failure_budget=_budget(snapshot, cycle, to),
    )
    note = f"it was {cycle.state.value}{f': {cycle.why}' if cycle.why else ''}"
    return Change(
        writes=(_write(after),), events=(audit(snapshot, f"cycle-{verb}", because, cycle=cycle_id, note=note),)
    )


def _budget(snapshot: Snapshot, cycle: Cycle, to: CycleState) -> int:
    if to is not CycleState.RUNNING:
        return cycle.failure_budget
    failed = sum(m.outcomes.get(cycle.id, "").startswith("failed") for m in snapshot.machines.values())
    return max(cycle.failure_budget, failed)


def need_cycle(snapshot: Snapshot, cycle_id: str) -> Cycle:
    """The cycle. Raises NotFound, naming cycles that are spelled alike."""
    cycle = snapshot.cycles.get(cycle_id)
    if cycle is None:
        raise NotFound(f"no cycle is called {cycle_id[:80]!r}{alike(cycle_id, snapshot.cycles)}")
    return cycle


def _write(cycle: Cycle) -> RecordWrite:
    return RecordWrite(key=f"cycles/{cycle.id}", value=msgspec.json.encode(cycle))


def _selectable(snapshot: Snapshot, selector: str) -> str:
    said = hints(snapshot, parse_selector(selector))
    return f"a selector that matches a machine ({said}); allow_empty starts the cycle all the same"
