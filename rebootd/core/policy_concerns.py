"""Which machines a new policy concerns, section by section, on the fleet as it is."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.advance import ENDED
from rebootd.core.fit import Fit
from rebootd.core.model import Cycle, State
from rebootd.core.policy import DEADLINE_FIELDS
from rebootd.core.policy_at_once import at_once
from rebootd.core.policy_reboot import method_for
from rebootd.core.policy_told import Concern
from rebootd.core.roll import Roll
from rebootd.core.standing import wants
from rebootd.core.states import WORKING
from rebootd.core.times import utc
from rebootd.core.waves import rack_ranks, wave_plan
from rebootd.core.windows import judge_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.policy import Policy

    Named = dict[str, tuple[object, Callable[[Machine], bool]]]
    Told = Iterator[tuple[str, Iterable[str]]]

EXAMPLES = 5
BY_MACHINE = (
    "limits",
    "gates",
    "quorums",
    "standing",
    "forecast",
    "waves",
    "drains",
    "reboot",
    "fleetlock",
    "racks.unavailable",
    "racks.order",
)
"""Fields whose changes concern the machines that are told for them, if any; changes of all others concern everybody."""


def concerns(old: Policy, new: Policy, snapshot: Snapshot) -> Iterator[Concern]:
    """What differs and for whom; limits are told of by themselves.

    Gates, quorum groups and standing cycles are told of also where they concern nobody. Last comes what would be
    another at once (see :mod:`rebootd.core.policy_at_once`).
    """
    for what, found in _declared(old, new, snapshot):
        yield _concern(what, found)
    told = chain(
        _required(old, new, snapshot),
        _racks(old, new, snapshot),
        _waves(old, new, snapshot),
        _windows(old, new, snapshot),
        _states(old, new, snapshot),
        _silence(old, new, snapshot),
        _drains(old, new, snapshot),
        _methods(old, new, snapshot),
        _clients(old, new, snapshot),
        at_once(old, new, snapshot),
    )
    for what, found in told:
        concern = _concern(what, found)
        if concern.machines:
            yield concern


def _concern(what: str, found: Iterable[str]) -> Concern:
    names = tuple(sorted(found))
    return Concern(what, len(names), names[:EXAMPLES], names)


def _declared(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    before, after = _named(old), _named(new)
    for what in sorted(before.keys() | after.keys()):
        was, will = before.get(what), after.get(what)
        if was is not None and will is not None and was[0] == will[0]:
            continue
        tests = [matches for _, matches in (x for x in (was, will) if x is not None)]
        yield what, (m.name for m in snapshot.machines.values() if any(test(m) for test in tests))


def _named(policy: Policy) -> Named:
    found: Named = {}
    for gate in policy.gates:
        # Without `covers` it is the gate's kind that chooses, once it has been read: it may be any.
        found[f"gate {gate.name}"] = (gate, gate.covers.matches if gate.covers is not None else _any)
    for quorum in policy.quorums:
        found[f"quorum group {quorum.name}"] = (quorum, quorum.selector.matches)
    if policy.standing.enabled:
        found[f"standing cycle {policy.standing.id}"] = (policy.standing, policy.standing.selector.matches)
    return found


def _any(_: Machine) -> bool:
    return True


def _required(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    standing = new.standing
    if standing.enabled and standing != old.standing:
        cycle = Cycle(id=standing.id, selector=standing.selector.text, created=snapshot.now, standing=True)
        wanted = wants(new, cycle, snapshot.now)
        machines = (m for m in snapshot.machines.values() if m.state is State.IN_SERVICE)
        yield f"standing cycle {standing.id}: it wants these now", (m.name for m in machines if wanted(m))


def _by_rack(snapshot: Snapshot) -> dict[str, list[Machine]]:
    racks: dict[str, list[Machine]] = {}
    for m in snapshot.machines.values():
        if m.rack:
            racks.setdefault(m.rack, []).append(m)
    return racks


def _racks(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    racks = _by_rack(snapshot)
    if old.rack_unavailable != new.rack_unavailable:
        groups: dict[tuple[int, int], list[str]] = {}
        for here in racks.values():
            was, will = old.rack_unavailable.of(len(here)), new.rack_unavailable.of(len(here))
            if was != will:
                groups.setdefault((was, will), []).extend(m.name for m in here)
        for (was, will), names in sorted(groups.items()):
            yield f"racks.unavailable: at most {will} of a rack at once instead of {was}", names
    if old.rack_order != new.rack_order:
        before, after = (sorted(racks, key=rack_ranks(p, racks).__getitem__) for p in (old, new))
        moved = [rack for rack, other in zip(after, before, strict=True) if rack != other]
        what = f"racks.order: another place for {len(moved)} of {len(racks)} racks; first {', '.join(after[:EXAMPLES])}"
        yield what, (m.name for rack in moved for m in racks[rack])


def _waves(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    """The waves that differ, of every cycle that goes in waves, or else of a cycle over all machines."""
    if old.waves == new.waves:
        return
    cycles = [c for c in snapshot.cycles.values() if c.state not in ENDED and c.waves and not c.standing]
    for cycle in cycles or [Cycle(id="", selector="*", created=snapshot.now)]:
        of = f"of cycle {cycle.id}" if cycle.id else "of a cycle over all machines"
        before, after = (_in_waves(p, cycle, snapshot) for p in (old, new))
        for number, wave in enumerate(new.waves):
            same = number < len(old.waves) and old.waves[number] == wave and before[number] == after[number]
            if not same:
                yield f"waves: wave {number + 1} of {len(new.waves)} ({wave.name}) {of}", after[number]
        if not new.waves:
            yield f"waves: none any more {of}", frozenset().union(*before)


def _in_waves(policy: Policy, cycle: Cycle, snapshot: Snapshot) -> list[set[str]]:
    """Who is still to go in each wave."""
    if not policy.waves:
        return []
    machines = snapshot.machines.values()
    last = {m.name for m in machines if any(q.selector.matches(m) for q in policy.quorums)}
    over = {m.name for m in machines if cycle.id in m.outcomes}
    waves: list[set[str]] = [set() for _ in policy.waves]
    roll = Roll(replace(snapshot, policy=policy), (cycle,))
    for name, number in wave_plan(policy, cycle, roll, last).index.items():
        if name not in over:
            waves[number].add(name)
    return waves


def _windows(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    """What the next windows are, and who fits into none any more, or does so again."""
    if all(getattr(old, f) == getattr(new, f) for f in ("windows", "window_required", "expected", "soak")):
        return
    until_now, then = (_opens(p, snapshot) for p in (old, new))
    if then != until_now:
        yield f"windows: {then} (until now {until_now})", snapshot.machines
    before, after = (_too_slow(p, snapshot) for p in (old, new))
    yield "windows: none is long enough for its reboot", after - before
    yield "windows: one is long enough for its reboot again", before - after


def _opens(policy: Policy, snapshot: Snapshot) -> str:
    verdict = judge_windows(policy, snapshot.windows, snapshot.now)
    if verdict.open:
        return f"open until {utc(verdict.until)}" if verdict.until is not None else "open at any time"
    if verdict.next is None:
        return "closed, and none is planned: only while an operator opens one (rebootctl window open)"
    return f"closed, the next opens at {utc(verdict.next)}"


def _too_slow(policy: Policy, snapshot: Snapshot) -> set[str]:
    fit = Fit(replace(snapshot, policy=policy), judge_windows(policy, snapshot.windows, snapshot.now))
    if not fit.tight:
        return set()
    return {m.name for m in snapshot.machines.values() if (b := fit.blocker(m)) is not None and b.kind == "never"}


def _states(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    """Who is in the state now whose deadline or soak differs."""
    changed = {f: f"deadlines.{f}" for f in DEADLINE_FIELDS if getattr(old.deadlines, f) != getattr(new.deadlines, f)}
    machines = snapshot.machines.values()
    for state, field in changed.items():
        yield f"{field}: {state} now", (m.name for m in machines if m.state.value == state)
    if old.soak != new.soak:
        yield "soak: enabling now", (m.name for m in machines if m.state is State.ENABLING)
    if old.silences != new.silences:
        yield "silences: out of service now", (m.name for m in machines if m.state in WORKING)


def _silence(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    """Whose silence counts otherwise."""
    was, will = old.unreachable_after, new.unreachable_after
    if was == will:
        return
    ages = {name: snapshot.now - seen.at for name, seen in snapshot.observed.items() if name in snapshot.machines}
    yield "unreachable_after: unavailable, silent for longer", (n for n, age in ages.items() if was >= age > will)
    yield "unreachable_after: available again", (n for n, age in ages.items() if will >= age > was)


def _drains(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    was, will = old.drains.nomad, new.drains.nomad
    if was == will:
        return
    before, after = (
        {m.name for m in snapshot.machines.values() if nomad is not None and nomad.machines.matches(m)}
        for nomad in (was, will)
    )
    yield "drains.nomad: drained at Nomad from now on", after - before
    yield "drains.nomad: no longer drained at Nomad", before - after
    if was is not None and will is not None and replace(was, machines=will.machines) != will:
        yield "drains.nomad: drained at Nomad in another way", before & after


def _methods(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    if old.reboot == new.reboot:
        return
    groups: dict[tuple[str, str], list[str]] = {}
    for m in snapshot.machines.values():
        was, will = method_for(old, None, m), method_for(new, None, m)
        if was != will:
            groups.setdefault((was, will), []).append(m.name)
    for (was, will), names in sorted(groups.items()):
        yield f"reboot.methods: {will or 'as the host says'} instead of {was or 'as the host says'}", names


def _clients(old: Policy, new: Policy, snapshot: Snapshot) -> Told:
    if old.fleetlock != new.fleetlock:
        clients = (m.name for m in snapshot.machines.values() if m.fleetlock is not None)
        yield "fleetlock: it has a FleetLock client", clients
