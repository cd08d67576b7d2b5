"""S1 to S8 of the design as checks on every decision and every landing of the simulation, one method each.

They count by themselves, from records, reports and the decision's own steps, and use nothing of the code under test
beyond the words of the model: what a limit allows and which rack is open is worked out here a second time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.decide import decide
from rebootd.core.decision import Guard, Lane
from rebootd.core.model import CycleState, RackLock, State
from tests.core.worlds import CLOSED, HALT, OTHER, OURS

if TYPE_CHECKING:
    from rebootd.core.amounts import Amount
    from rebootd.core.decision import Decision, MachineStep
    from rebootd.core.model import Machine, Permit, Snapshot
    from tests.core.hosts import Host
    from tests.core.simulation import Simulation

ON_THE_WAY = {State.DRAINING, State.DRAINED, State.REBOOTING, State.VERIFYING, State.ENABLING}
BACK_IN = {State.ENABLING, State.IN_SERVICE}
ENDED = {CycleState.DONE, CycleState.CANCELLED}


class Invariants:
    """What has happened so far, and the checks. A check that fails names itself."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.decisions = 0
        self.granted: dict[str, tuple[Permit, float, float]] = {}
        self.nonces: dict[str, set[str]] = {}
        self.rebooted: set[str] = set()

    def on_decision(self, snapshot: Snapshot, decision: Decision) -> None:
        """Every check that looks at one decision."""
        self.decisions += 1
        self.s1_open_racks(snapshot, decision)
        self.s2_limits(snapshot, decision)
        self.s5_coming_back_asks_nobody(decision)
        self.s5_only_what_has_proved_itself_comes_back(snapshot, decision)
        self.a_rack_is_unlocked_only_when_nobody_works_in_it(snapshot, decision)
        self.s6_unknown_is_not_safe(snapshot, decision)
        self.halt_window_and_cycle_are_obeyed(snapshot, decision)
        self.s8_everyone_who_waits_is_told_why(snapshot, decision)
        assert decide(snapshot) == decision, "the same snapshot gave another decision"
        if self.decisions % 3 == 0:
            self.s5_nothing_delays_coming_back(snapshot, decision)
            self.quiescence(snapshot, decision)

    # --- S1 ------------------------------------------------------------------------------

    def s1_open_racks(self, snapshot: Snapshot, decision: Decision) -> None:
        """Nothing goes out while more racks are open than allowed, whatever else of the decision lands with it."""
        opened = {m.rack for m in snapshot.machines.values() if m.state in ON_THE_WAY and m.rack}
        opened |= {rack for rack, lock in snapshot.racks.items() if lock.holder != "free"}
        back = [s for s in decision.steps if s.lane is Lane.BACK and s.after is not None]
        released = {s.after.rack for s in back if s.before is not None and s.before.state is State.HELD and s.after}
        boots = {s.after.rack for s in back if s.after is not None and s.after.rack and s.after.state in ON_THE_WAY}
        opened |= boots - released
        out = [s for s in decision.steps if s.lane is Lane.OUT and s.before is not None]
        opening = {s.before.rack for s in out if s.before is not None} | set(decision.locks)
        if opening - opened:
            opened |= boots
            assert len(opened | opening) <= snapshot.policy.open_racks, f"S1: {opening} would join {opened}"
        elif out:
            # A permit opens nothing: what a release opens in the same decision does not count against it.
            assert len(opened) <= snapshot.policy.open_racks, f"S1: {[s.name for s in out]} go while {opened} are open"

    def a_rack_is_unlocked_only_when_nobody_works_in_it(self, snapshot: Snapshot, decision: Decision) -> None:
        """Our lock goes with the last machine's step or after it, and never while somebody is being sent out."""
        after = {s.name: s.after for s in decision.steps}
        given_up = {s.unlock for s in decision.steps if s.unlock} | set(decision.unlocks)
        for name, m in snapshot.machines.items():
            if m.rack in given_up:
                then = after.get(name) or m
                assert then.state not in ON_THE_WAY, f"{m.rack} is unlocked while {name} is {then.state}"
        for step in decision.steps:
            mine = step.before.rack if step.before else ""
            assert step.unlock in {"", mine}, f"{step.name} of {mine} unlocks {step.unlock}"

    # --- S2 ------------------------------------------------------------------------------

    def s2_limits(self, snapshot: Snapshot, decision: Decision) -> None:
        """Nothing goes out that leaves its rack or a limit exceeded, counting all that is known to be away."""
        out = {s.name for s in decision.steps if s.lane is Lane.OUT}
        if not out:
            return
        members = dict(snapshot.machines)
        away = {n for n, m in members.items() if m.state is not State.IN_SERVICE or not _heard(snapshot, n)}
        away |= set(snapshot.conflicts)
        for step in decision.steps:
            if step.lane is Lane.BACK and step.after is not None and step.after.state is not State.IN_SERVICE:
                members.setdefault(step.name, step.after)
                away.add(step.name)
        groups = [(f"rack {rack}", [m for m in members.values() if m.rack == rack], snapshot.policy.rack_unavailable,
                   [a for a in snapshot.asides.values() if a.rack == rack])
                  for rack in {m.rack for m in members.values()}]  # fmt: skip
        groups += [(x.name, [m for m in members.values() if x.selector.matches(m)], x.max,
                    list(snapshot.asides.values())) for x in snapshot.policy.limits]  # fmt: skip
        for name, group, amount, asides in groups:
            names = {m.name for m in group}
            if not names & out:
                continue
            lost = len((away | out) & names) + len(asides)
            allowed = _allowed(amount, len(names) + len(asides))
            assert lost <= allowed, f"S2: {name} loses {lost}, {allowed} are allowed; {out & names} were sent"

    # --- S3 ------------------------------------------------------------------------------

    def on_landing(self, step: MachineStep) -> None:
        """Permits: fully guarded, one nonce for each boot_id, only from a drained machine."""
        before, after = step.before, step.after
        assert after is not None
        if before is not None:
            assert after.version >= before.version, f"{step.name}: a step went back"
            assert after.state is before.state or after.version > before.version, f"{step.name}: silent transition"
        if step.lane is Lane.OUT:
            assert self.sim.racks.get(after.rack) is OURS, f"S1: {step.name} goes while we do not hold {after.rack}"
        permit = after.permit
        if permit is None or (before is not None and before.permit == permit):
            return
        assert before is not None, "S3: a first report came with a permit"
        assert before.state in {State.DRAINED, State.HELD, State.REBOOTING}, f"S3: a permit in {before.state}"
        assert after.state is State.REBOOTING, f"S3: a permit leads to {after.state}"
        assert step.guards == frozenset(Guard), f"S3: a permit with guards {sorted(step.guards)}"
        assert permit.boot_id == before.boot_id, "S3: a permit for another boot_id"
        nonces = self.nonces.setdefault(permit.boot_id, set())
        nonces.add(permit.nonce)
        assert len(nonces) == 1, f"S3: {permit.boot_id} got permits under {sorted(nonces)}"
        self.granted[permit.boot_id] = (permit, self.sim.time, self.sim.offset)

    def on_reboot(self, host: Host) -> None:
        """A host runs its reboot command."""
        assert host.boot_id in self.granted, f"S3: {host.boot_id} reboots without a permit"
        permit, at, offset = self.granted[host.boot_id]
        assert permit.nonce == host.nonce, f"S3: {host.boot_id} reboots with the permit of another nonce"
        # A leader whose clock is set back takes an old permit for a young one: same boot_id, same nonce, no harm.
        set_back = self.sim.offset < offset
        assert set_back or self.sim.time - at <= 60.0, f"S3: {host.boot_id} reboots {self.sim.time - at:.0f} s late"
        assert host.boot_id not in self.rebooted, f"S3: {host.boot_id} was rebooted twice"
        self.rebooted.add(host.boot_id)

    # --- S5 ------------------------------------------------------------------------------

    def s5_coming_back_asks_nobody(self, decision: Decision) -> None:
        """Steps on the way back carry no guard and take no lock."""
        for step in decision.steps:
            if step.lane is Lane.BACK:
                assert not step.guards, f"S5: {step.name} comes back under guards {sorted(step.guards)}"
                assert not step.lock, f"S5: {step.name} needs the lock of {step.lock} to come back"

    def s5_only_what_has_proved_itself_comes_back(self, snapshot: Snapshot, decision: Decision) -> None:
        """After a boot nobody is enabled whose present boot has not passed its checks."""
        for step in decision.steps:
            if step.after is None or step.after.state is not State.ENABLING or not step.after.booted:
                continue
            said = snapshot.observed[step.name].report
            assert said.boot_id == step.after.boot_id, f"S5: {step.name} comes back by the word of {said.boot_id}"
            assert said.boot_check.status == "passed", f"S5: {step.name} comes back unproved"

    def s5_nothing_delays_coming_back(self, snapshot: Snapshot, decision: Decision) -> None:
        """Who comes back, comes back under a halt, with windows closed, racks locked by others, a mad clock too."""
        hostile = replace(
            snapshot,
            halt=HALT,
            policy=replace(snapshot.policy, window_required=True, windows=CLOSED.windows, open_racks=1),
            windows=(),
            racks=dict.fromkeys({m.rack for m in snapshot.machines.values()}, OTHER),
            clock_skew=9999.0,
            faults=("Consul is slow",),
        )
        there = {s.name: s for s in decide(hostile).steps}
        for step in decision.steps:
            if step.lane is Lane.OUT or step.after is None or step.after.state not in BACK_IN:
                continue
            other = there.get(step.name)
            assert other is not None, f"S5: {step.name} does not come back in hostile times"
            assert other.after is not None
            assert other.after.state in BACK_IN, f"S5: {step.name} becomes {other.after.state} in hostile times"

    # --- S6, halt, windows, cycles -------------------------------------------------------

    def s6_unknown_is_not_safe(self, snapshot: Snapshot, decision: Decision) -> None:
        """A mad clock, a store in trouble, a silent machine, an identity conflict, a new leader: nothing goes out."""
        policy = snapshot.policy
        for step in decision.steps:
            before = step.before
            if step.lane is Lane.BACK or before is None:
                continue
            assert not snapshot.faults, f"S6: {step.name} goes while the store is in trouble"
            asks = before.state is not State.IN_SERVICE and step.name in snapshot.asking
            assert asks or _heard(snapshot, step.name), f"S6: {step.name} goes though it is silent"
            assert step.name not in snapshot.conflicts, f"S6: {step.name} goes though two claim to be it"
            if step.after is not None and step.after.cycle:
                assert abs(snapshot.clock_skew) <= policy.clock_tolerance, f"S6: {step.name} goes by a mad clock"
            if before.state is State.IN_SERVICE and snapshot.now - snapshot.leading_since < policy.settle:
                mates = [m.name for m in snapshot.machines.values() if m.rack == before.rack]
                silent = [n for n in mates if n not in snapshot.observed]
                assert not silent, f"S6: {step.name} goes before the new leader has heard of {silent}"

    def halt_window_and_cycle_are_obeyed(self, snapshot: Snapshot, decision: Decision) -> None:
        """Nothing goes out under a halt; for a cycle only in a window, while it runs, and once."""
        windowed = not snapshot.policy.window_required or any(w.start <= snapshot.now < w.end for w in snapshot.windows)
        for step in decision.steps:
            if step.lane is Lane.BACK or step.after is None or step.before is None:
                continue
            assert snapshot.halt is None, f"{step.name} goes under a halt"
            held = step.name in snapshot.machine_holds or step.before.rack in snapshot.rack_holds
            if not step.after.cycle:
                assert held, f"{step.name} goes for no cycle and no hold"
                continue
            assert windowed, f"{step.name} goes outside of every window"
            assert not held or step.before.state is State.REBOOTING, f"{step.name} goes for a cycle though it is held"
            cycle = snapshot.cycles[step.after.cycle]
            assert cycle.state is CycleState.RUNNING, f"{step.name} goes for a cycle that is {cycle.state}"
            again = cycle.id in step.before.outcomes and not cycle.standing
            assert not again, f"{step.name} goes a second time for {cycle.id}"

    # --- S8 ------------------------------------------------------------------------------

    def s8_everyone_who_waits_is_told_why(self, snapshot: Snapshot, decision: Decision) -> None:
        """Who is out or wanted out, and has no step, has a blocker with what, since when, and who clears it."""
        stepping = {s.name for s in decision.steps}
        for m in snapshot.machines.values():
            if m.name in stepping or not (m.state is not State.IN_SERVICE or _wanted(snapshot, m)):
                continue
            assert decision.reasons.get(m.name), f"S8: {m.name} ({m.state}) waits and nobody says why"
        for name in snapshot.asides:
            assert decision.reasons.get(name), f"S8: {name} is set aside and nobody says so"
        idle = not (decision.steps or decision.locks or decision.unlocks or decision.cycles)
        for name, blockers in decision.reasons.items():
            for b in blockers:
                assert b.what.strip(), f"S8: {name}: a blocker of kind {b.kind} that says nothing"
                assert b.clears.strip(), f"S8: {name}: {b.what}: nobody can clear it"
                assert math.isfinite(b.since), f"S8: {name}: {b.what}: since {b.since}"
                assert b.since > 0, f"S8: {name}: {b.what}: since {b.since}"
                assert b.kind != "next" or not idle, f"S8: {name} is said to be next, and nothing happens"
        for name, verdict in decision.permits.items():
            assert verdict.granted or verdict.reason, f"S8: {name} is refused its permit without a reason"
        assert set(decision.permits) == set(snapshot.asking), "a permit that was asked for got no verdict"

    # --- no livelock ---------------------------------------------------------------------

    def quiescence(self, snapshot: Snapshot, decision: Decision) -> None:
        """When everything lands and the world stands still, decisions end."""
        for _ in range(12 + 2 * len(snapshot.machines)):
            if not (decision.steps or decision.locks or decision.unlocks or decision.cycles):
                return
            snapshot = applied(snapshot, decision)
            decision = decide(snapshot)
        raise AssertionError(
            f"no rest: {[(s.name, s.events[-1].cause if s.events else 'facts') for s in decision.steps]}, "
            f"lock {decision.locks}, unlock {decision.unlocks}, {[c.id for c, _ in decision.cycles]}"
        )


def applied(snapshot: Snapshot, decision: Decision) -> Snapshot:
    """The snapshot after everything that was decided has landed, at the same instant."""
    machines, racks = dict(snapshot.machines), dict(snapshot.racks)
    for step in decision.steps:
        if step.after is not None:
            machines[step.name] = step.after
        if step.lock:
            racks[step.lock] = OURS
        if step.unlock:
            racks[step.unlock] = RackLock()
    racks |= dict.fromkeys(decision.locks, OURS) | {rack: RackLock() for rack in decision.unlocks}
    cycles = {**snapshot.cycles, **{c.id: c for c, _ in decision.cycles}}
    return replace(snapshot, machines=machines, racks=racks, cycles=cycles, asking={})


def _heard(snapshot: Snapshot, name: str) -> bool:
    seen = snapshot.observed.get(name)
    return seen is not None and snapshot.now - seen.at <= snapshot.policy.unreachable_after


def _allowed(amount: Amount, total: int) -> int:
    if not amount.percent:
        return amount.value
    return 0 if amount.value == 0 else max(1, math.floor(total * amount.value / 100 + 1e-9))


def _wanted(snapshot: Snapshot, m: Machine) -> bool:
    if m.name in snapshot.machine_holds or m.rack in snapshot.rack_holds:
        return True
    wanting = [c for c in snapshot.cycles.values() if c.state not in ENDED and c.selector == "*" and not c.target]
    return any(c.id not in m.outcomes for c in wanting)
