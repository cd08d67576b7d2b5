"""A fleet that lives in fast motion: every phase takes what it is expected to, and nothing fails.

The rules are those of the live loop: :func:`~rebootd.core.settle.settle` moves machines that are out,
:func:`~rebootd.core.admit.choose` admits the next ones and :func:`~rebootd.core.decide.unlocks_of` closes racks. Only
what they look at is kept up to date step by step, instead of being counted anew for each of many thousand steps.
"""

from __future__ import annotations

import heapq
from bisect import insort
from math import inf
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.admit import choose
from rebootd.core.decide import unlocks_of
from rebootd.core.decision import directive_id
from rebootd.core.durations import Durations, keys_of, phases_left
from rebootd.core.gate_view import Safeguards
from rebootd.core.model import Machine, Observation, RackLock, State
from rebootd.core.settle import settle
from rebootd.core.states import WORKING
from rebootd.core.view import View
from rebootd.core.wire import CheckResult, DirectiveKind, PermitRequest, Report, Result, Tri
from rebootd.core.wishes import Wishes, machine_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebootd.core.admit import Admission
    from rebootd.core.decision import MachineStep
    from rebootd.core.limits import Tally
    from rebootd.core.model import Snapshot
    from rebootd.core.wishes import Wish

AGAIN = 5.0
"""Seconds after which a machine asks again for a permit that was refused; twice as long each time after that."""
MOST_AGAIN = 8
PROBES = (1.0, 15.0, 60.0, 300.0, 1200.0, 3600.0, 7200.0)
"""Seconds after which it is looked again when nothing moves: something may have been resting."""
HORIZON = 62 * 86400.0
"""How long (seconds) nothing may move before what is left counts as never."""
BARREN = 64
"""In how many windows one after another nothing may move before what is left counts as never."""
MOST_MOMENTS = 100
"""Moments that each machine of the fleet may take; more is a fleet that goes round in circles."""
SLICE = 16
"""Moments between two chances for the caller to do something else."""

_PASSED = CheckResult("passed")
_OURS = RackLock(holder="ours", session="forecast")


class Trip:
    """One machine's way: when it is taken out and when it is back (None: not yet)."""

    __slots__ = ("back", "cycle", "start")

    def __init__(self, start: float, cycle: str) -> None:
        self.start = start
        self.cycle = cycle
        self.back: float | None = None


class Course:
    """``snapshot`` is as :func:`rebootd.core.forecast.prepared` makes it; its mappings are changed as time goes on.

    ``trips`` maps machines to their latest way. ``started`` are the window openings (or 0.0) in which machines went.
    """

    def __init__(self, snapshot: Snapshot, kept: frozenset[str] = frozenset()) -> None:
        """``kept`` are machines that stay in whatever comes."""
        self._kept = kept
        self.machines = dict(snapshot.machines)
        self._observed = dict(snapshot.observed)
        self._racks = {rack: lock for rack, lock in snapshot.racks.items() if lock.holder != "free"}
        self._asking: dict[str, PermitRequest] = {}
        snapshot = replace(
            snapshot, machines=self.machines, observed=self._observed, racks=self._racks, asking=self._asking
        )
        self._durations = snapshot.durations or Durations()
        self.view = View(snapshot)
        self.view.ordered = True
        capacity = self.view.capacity
        self._place = {m.name: i for members in capacity.members.values() for i, m in enumerate(members)}
        self._working = {r: sum(m.state in WORKING for m in here) for r, here in capacity.members.items()}
        self._tallies: dict[str, tuple[Tally, ...]] = {}
        self._expected: dict[tuple[str, tuple[str, ...]], float] = {}
        self._events: list[tuple[float, str, int]] = []
        self.trips: dict[str, Trip] = {}
        self.started: set[float] = set()
        self._again: dict[str, int] = {}
        self._look_again = True
        self._opening = 0.0 if self.view.windows.open and self.view.windows.until is None else snapshot.now
        self._standing = any(cycle.standing for cycle in self.view.cycles)
        self._moved = snapshot.now
        self.rested = snapshot.now
        """The latest time at which windows were open and nothing could go."""
        for m in self.machines.values():
            if m.state in WORKING or (m.state is State.HELD and self.view.hold_of(m) is None):
                self.trips[m.name] = Trip(min(m.since, snapshot.now), m.cycle)
                self._expect(m, already=snapshot.now - m.since)
        self._look()

    # --- time ----------------------------------------------------------------------------

    def run(self) -> Iterator[float]:
        """Goes on until nothing moves any more; yields the time now and then."""
        moments = probe = barren = 0
        self._admit()
        while moments < MOST_MOMENTS * (len(self.machines) + 10):
            moments += 1
            if moments % SLICE == 0:
                yield self.view.now
            if self._events:
                soon = self._wake()
                at = self._events[0][0]
                # A window that opens, or a wave that comes, may be earlier than the next machine's news.
                earlier = soon is not None and soon < at
                self._at(soon if earlier and soon is not None else at)
                self._look_again = self._look_again or earlier
            elif not self.wanting and not self._later:
                return
            else:
                now, soon = self.view.now, self._wake()
                if self.view.windows.open:
                    self.rested = now
                at = now + PROBES[probe] if probe < len(PROBES) and self.view.windows.open else inf
                at = min(at, inf if soon is None else soon)
                probe += 1
                if at == inf or at - self._moved > HORIZON:
                    return
                opened = self.view.windows.open
                self._at(at)
                if self._standing:
                    self._look()
                if self.view.windows.open and not opened:
                    probe, barren = 0, barren + 1
                if barren > BARREN:
                    return
            freed = self._news()
            if any(plan.stale for plan in self.view.pace.plans.values()):
                self._at(self.view.now)
            if (freed or not self._events or self._look_again) and self._admit():
                probe = barren = 0

    def _wake(self) -> float | None:
        """When the clock alone changes what may go: a window's edge, a wave's soak, a new leader's patience."""
        view, now = self.view, self.view.now
        times = [plan.changes for plan in view.pace.plans.values()]
        times.append(view.windows.until if view.windows.open else view.windows.next)
        times.append(view.snapshot.leading_since + view.snapshot.policy.settle)
        return min((t for t in times if t is not None and t > now), default=None)

    def _at(self, now: float) -> None:
        view, was_open = self.view, self.view.windows.open
        came = view.later(replace(view.snapshot, now=now))
        self._look_again = self._look_again or came or view.windows.open != was_open
        if view.windows.open and not was_open:
            self._opening = now
        if came or (self._standing and view.windows.open and not was_open):
            self._look()

    def _look(self) -> None:
        """Finds out anew who wants to go; those whose wave has not come are left out for now."""
        self._look_again = True
        self._wishes = Wishes(self.view)
        order, waits = machine_order(self.view), self.view.pace.waits
        self.wanting: dict[str, list[Wish]] = {}
        self._later = False
        for rack, wishes in self._wishes.by_rack(self._kept).items():
            here = [w for w in wishes if w[1] is None or waits(w[0], w[1]) is None]
            self._later = self._later or len(here) < len(wishes)
            if here:
                self.wanting[rack] = sorted(here, key=order)

    # --- machines ------------------------------------------------------------------------

    def _expect(self, machine: Machine, already: float = 0.0) -> None:
        """Plans the next news of a machine that is out: when its present phase should be over."""
        left = phases_left(machine.state)
        policy = self.view.snapshot.policy
        seconds = 0.0
        if left:
            keys = keys_of(machine, policy)
            known = self._expected.get((left[0], keys))
            if known is None:
                known = self._expected[left[0], keys] = self._durations.expected(left[0], keys, policy)
            # What has taken longer than expected already is expected any moment.
            seconds = max(known - already, 1.0 if already else 0.0)
        heapq.heappush(self._events, (self.view.now + seconds, machine.name, machine.version))

    def _news(self) -> bool:
        """Hears every machine whose news are due; True when somebody is back or a rack may be."""
        events, now, freed = self._events, self.view.now, False
        while events and events[0][0] <= now:
            _, name, version = heapq.heappop(events)
            machine = self.machines[name]
            if machine.version != version:
                continue
            self._observed[name] = self._heard(machine)
            step = settle(self.view, machine, self._observed[name]).step
            self._asking.pop(name, None)
            if step is not None and step.after is not None:
                self._land(step)
                self._again.pop(name, None)
                freed = freed or step.after.state not in WORKING
            elif machine.state is State.ENABLING and self.view.snapshot.policy.soak > 0:
                heapq.heappush(events, (now + self.view.snapshot.policy.soak, name, version))
            elif machine.state in WORKING:
                tries = self._again[name] = min(self._again.get(name, -1) + 1, MOST_AGAIN)
                heapq.heappush(events, (now + AGAIN * 2**tries, name, version))
        return freed

    def _heard(self, m: Machine) -> Observation:
        """What the machine says when its phase is over; for a permit it asks besides."""
        boot_id, check, result, required, enabled_at = m.boot_id, _PASSED, None, m.reboot_required, 0.0
        if m.state is State.DRAINING:
            result = Result(directive_id(m.name, m.version, "drain"), DirectiveKind.DRAIN, True)
        elif m.state is State.DRAINED:
            self._asking[m.name] = PermitRequest(
                name=m.name, machine_id=m.machine_id, boot_id=boot_id, nonce="forecast"
            )
        elif m.state is State.REBOOTING:
            boot_id, check = f"forecast-{m.version}", CheckResult()
            required = Tri.NO if required is Tri.YES else required
        elif m.state is State.ENABLING:
            result = Result(directive_id(m.name, m.version, "enable"), DirectiveKind.ENABLE, True)
            before = self._observed.get(m.name)
            same = before is not None and before.report.result is not None and before.report.result.id == result.id
            enabled_at = before.enabled_at if same and before is not None and before.enabled_at else self.view.now
        report = Report(
            name=m.name,
            machine_id=m.machine_id,
            boot_id=boot_id,
            rack=m.rack,
            chassis=m.chassis,
            kernel=m.kernel,
            labels=m.labels,
            reboot_required=required,
            reboot_reasons=m.reboot_reasons if required is Tri.YES else (),
            boot_check=check,
            result=result,
            index=m.version,
        )
        return Observation(report=report, at=inf, enabled_at=enabled_at)

    def _land(self, step: MachineStep) -> None:
        """The step as if it had been committed: the record, and everything that counts it."""
        before, after = step.before, step.after
        if before is None or after is None:
            return
        name, rack, capacity = after.name, after.rack, self.view.capacity
        self.machines[name] = after
        capacity.members[rack][self._place[name]] = after
        self._working[rack] += (after.state in WORKING) - (before.state in WORKING)
        if step.lock:
            self._racks[step.lock] = _OURS
        away = after.state is not State.IN_SERVICE or name in self.view.snapshot.conflicts
        if away != (name in capacity.lost):
            self._count(after, away)
        self._open(rack)
        for plan in self.view.pace.plans.values():
            plan.update(after)
        if before.state is State.IN_SERVICE:
            self.trips[name] = Trip(self.view.now, after.cycle)
            self.started.add(self._opening)
            here = self.wanting[rack]
            here[:] = [w for w in here if w[0].name != name]
            if not here:
                del self.wanting[rack]
        if after.state in WORKING:
            self._expect(after)
        else:
            self.trips[name].back = self.view.now
            if after.state is State.IN_SERVICE:
                self._wants_again(after)

    def _count(self, machine: Machine, away: bool) -> None:
        capacity, name = self.view.capacity, machine.name
        tallies = self._tallies.get(name)
        if tallies is None:
            tallies = self._tallies[name] = (capacity.racks[machine.rack], *capacity.limits_of(machine))
        for tally in tallies:
            if away:
                tally.lost(name, self.view.now)
            else:
                tally.away.remove(name)
        if away:
            capacity.lost[name] = self.view.now
        else:
            capacity.lost.pop(name)
            if name in self.view.pace.last:
                self.view.safeguards = Safeguards(self.view.snapshot, capacity.lost)

    def _open(self, rack: str) -> None:
        lock, opened = self._racks.get(rack), self.view.capacity.open
        if self._working[rack]:
            opened.setdefault(rack, "its machines are on their way")
        elif lock is None:
            opened.pop(rack, None)

    def _wants_again(self, machine: Machine) -> None:
        """Another cycle may want the machine, or this one still: it was brought back before its reboot."""
        view = self.view
        for wish in self._wishes.among((machine,), (), view.snapshot.rack_holds.get(machine.rack)):
            if machine.name not in self._kept and (wish[1] is None or view.pace.waits(machine, wish[1]) is None):
                insort(self.wanting.setdefault(machine.rack, []), wish, key=machine_order(view))

    # --- going out -----------------------------------------------------------------------

    def _admit(self) -> bool:
        """Lets go whoever may go now; True when somebody did."""
        moved = False
        self._look_again = False
        while True:
            out = choose(self.view, self.wanting)
            for step in out.steps:
                self._land(step)
            locked = any(step.lock for step in out.steps)
            closed = self._close(out)
            moved = moved or bool(out.steps)
            if not locked and not closed:
                break
        if moved:
            self._moved = self.view.now
        return moved

    def _close(self, out: Admission) -> bool:
        _, unlocks = unlocks_of(self.view, [], out)
        for rack in unlocks:
            del self._racks[rack]
            self._open(rack)
        return bool(unlocks)
