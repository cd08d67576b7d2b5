"""Checked on every transaction that lands: fence, epoch, and all that lets a machine go out (S1, S2, S3, S6, S7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.model import Machine, State
from rebootd.core.windows import judge_windows
from rebootd.store.port import CheckSession, Delete, Lock, Op, Set, Unlock

if TYPE_CHECKING:
    from collections.abc import Sequence


from tests.sim.truth import EDIT_GRACE, ENDED, PREFIX, SKEW_GRACE, Truth, boot_number


class GoingOut(Truth):
    """Every landed transaction."""

    def before_commit(self, actor: str, ops: Sequence[Op]) -> None:
        """Foreign locks are noted before what happens to them."""
        self._look_at_locks()

    def before_destroy(self, actor: str, session: str) -> None:
        """A daemon ends a session: never one by which a rack is locked for rebootd (LOCK)."""
        for key, entry in self.world.consul.entries.items():
            if entry.session == session and key.endswith("/.lock"):
                self.fail("LOCK", f"{actor} ends the session that locks {key.split('/')[2]}")

    def committed(self, index: int, ops: Sequence[Op]) -> None:
        """A transaction landed."""
        actor = self.world.servers.actor
        changes = [change for op in ops if (change := self._take(actor, op)) is not None]
        if actor not in self.world.daemons:
            return
        self.counts["commits"] += 1
        if any(isinstance(op, Set) and not op.key.endswith("leader") for op in ops):
            self._fenced(actor, ops)
        for before, after in changes:
            if after is not None:
                self._transition(actor, before, after)
        for op in ops:
            if op.key.startswith(f"{PREFIX}racks/"):
                self.counts["rack locks"] += isinstance(op, Lock)
                if isinstance(op, Unlock):
                    self._unlocked(actor, op.key.split("/")[2])

    def _take(self, actor: str, op: Op) -> tuple[Machine | None, Machine | None] | None:
        """Takes over what one operation changed; before and after, if it was a machine's record."""
        if not isinstance(op, Set | Delete) or not op.key.startswith(PREFIX):
            return None
        rest = op.key[len(PREFIX) :]
        entry = self.world.consul.entries.get(op.key)
        value = entry.value if entry is not None else None
        ours = actor in self.world.daemons
        if rest.startswith("machines/"):
            self.edited = self.edited or not ours
            return self._machine(rest[9:], value, ours=ours)
        if rest.startswith("power/"):
            self.powers.landed(rest[6:], value, ours=ours)
        if rest.startswith("cycles/"):
            if not ours:
                self.cycles_edited[rest[7:]] = self.world.loop.now
            self._cycle(rest[7:], value)
        elif rest.startswith("racks/") and rest.endswith("/record"):
            self._rack(rest[6:-7], value, ours=ours)
        elif rest == "policy" and value is not None:
            self._policy(value)
        elif rest == "epoch" and ours and value is not None:
            self._epoch(actor, value)
        return None

    def _fenced(self, actor: str, ops: Sequence[Op]) -> None:
        leader = self.world.consul.entries.get(f"{PREFIX}leader")
        first = ops[0]
        if not isinstance(first, CheckSession) or first.key != f"{PREFIX}leader":
            self.fail("FENCE", f"{actor} writes without the fence: {[op.key for op in ops]}")
        elif leader is None or leader.session != first.session:
            self.fail("FENCE", f"{actor} writes past a fence that does not hold")
        elif self.leadership is not None and self.leadership.session == first.session:
            return
        elif not any(op.key == f"{PREFIX}epoch" for op in ops):
            self.fail("EPOCH", f"{actor} writes before it raised the epoch: {[op.key for op in ops]}")

    def _transition(self, actor: str, before: Machine | None, after: Machine) -> None:
        if before is None:
            self.powers.transition(before, after)
            self.world.say(f"{after.name} is new: {after.state} v{after.version} by {actor}")
            return
        permit = after.permit
        if permit is not None and permit != before.permit:
            self.counts["permits"] += 1
            self._permitted(before, after)
        if before.version == after.version:
            return
        if boot_number(after.boot_id) < boot_number(before.boot_id):
            self.fail("BOOT", f"{after.name} goes back from {before.boot_id} to {after.boot_id}")
        self._moved(before, after)
        self.world.say(f"{after.name} {before.state} -> {after.state} ({after.cause}) v{after.version} by {actor}")
        if after.epoch != self.epoch:
            self.fail("EPOCH", f"{after.name} was written with epoch {after.epoch} in epoch {self.epoch}")
        if before.state is State.IN_SERVICE and after.state is State.DRAINING:
            self.counts["drains"] += 1
            self._going_out(before, after, "drains")
            if after.cycle:
                self.pace.drained(after)
        self.gates.transition(before, after)

    def _moved(self, before: Machine, after: Machine) -> None:
        """What other checks note of a transition."""
        if after.state is State.QUARANTINED and before.state is not after.state:
            self._given_up(before, after)
        self.powers.transition(before, after)
        self.pace.transition(before, after)
        self.locks.transition(before, after)

    def _given_up(self, before: Machine, after: Machine) -> None:
        """Whoever is quarantined by a deadline has been in that state for as long, by the clock of the world."""
        limits = [limit for p in self.policies() if (limit := p.deadlines.of(before.state)) is not None]
        if not limits or not after.cause.startswith(f"{before.state.value} for more than"):
            return
        now = self.decided_at.get(after.epoch, self.world.loop.now)
        since = max(self.powers.state_since.get(after.name, 0.0), self.epoch_at)
        if now - since < min(limits) - 1.0:
            self.fail(
                "DEADLINE", f"{after.name} is given up, {before.state.value} for {now - since:.0f} s of {limit:.0f} s"
            )

    def _permitted(self, before: Machine, after: Machine) -> None:
        permit = after.permit
        assert permit is not None
        if permit.boot_id != after.boot_id:
            self.fail("S3", f"{after.name} at {after.boot_id} is permitted to reboot {permit.boot_id}")
        nonces = self.permits[permit.boot_id]
        nonces[permit.nonce] = self.world.loop.now + self.policy.permit_valid
        self.locks.permitted(after.name, nonces[permit.nonce])
        if len(nonces) > 1 and permit.boot_id not in self.forgotten:
            self.fail("S3", f"boot_id {permit.boot_id} of {after.name} was permitted under {sorted(nonces)}")
        self._going_out(before, after, "permits")

    def _going_out(self, before: Machine, after: Machine, what: str) -> None:
        """A transition of ours that takes a machine out, or further out."""
        entries, policy = self.world.consul.entries, self.policy
        name, rack = after.name, after.rack
        if f"{PREFIX}control/halt" in entries:
            self.fail("S6", f"{self._who()} {what} {name} although everything is halted")
        if after.cycle:
            self._wanted_by_cycle(after, what)
        lock = entries.get(f"{PREFIX}racks/{rack}/.lock")
        ours = self.rack_sessions.get(rack, "")
        if self.policy_broken:
            self.fail("S6", f"{self._who()} {what} {name} although the policy cannot be read")
        if lock is None or not lock.session or lock.session != ours:
            self.fail("S1", f"{self._who()} {what} {name} without holding the lock of its rack {rack}")
        opened = self.open_racks()
        if len(opened) > policy.open_racks:
            self.fail(
                "S1", f"{self._who()} {what} {name} of {rack}: {sorted(opened)} are open, {policy.open_racks} allowed"
            )
        self._limits(after, what)
        self.gates.going_out(after, what)

    def _wanted_by_cycle(self, after: Machine, what: str) -> None:
        entries = self.world.consul.entries
        for key in (f"{PREFIX}holds/machine/{after.name}", f"{PREFIX}holds/rack/{after.rack}"):
            if key in entries:
                self.fail("S6", f"{self._who()} {what} {after.name} for a cycle although {key} stands")
        cycle = self.cycles.get(after.cycle)
        edited = self.world.loop.now - self.cycles_edited.get(after.cycle, -EDIT_GRACE) < EDIT_GRACE
        if (cycle is None or cycle.state in ENDED) and not edited:
            # The cycle's own record is not guarded; it is read by the same loop that changes it.
            self.fail("S6", f"{self._who()} {what} {after.name} for {after.cycle}, which is not under way")
        if cycle is None or not cycle.emergency:
            self._window(after, what)
            self._skew(after, what)
        else:
            self.counts["emergency steps"] += 1

    def _window(self, after: Machine, what: str) -> None:
        policy = self.policy
        if not policy.window_required and not policy.windows:
            return
        permit = after.permit
        decided = permit.until - policy.permit_valid if permit is not None else after.since
        windows = self._windows()
        near = policy.clock_tolerance + 1.0
        # Decided by the leader's clock, which may be off by as much as is tolerated.
        if not any(judge_windows(policy, windows, decided + d).open for d in (-near, 0.0, near)):
            self.fail("S6", f"{self._who()} {what} {after.name} while no window is open")

    def _skew(self, after: Machine, what: str) -> None:
        seen = self.leadership
        if seen is None or seen.off_since is None:
            return
        if self.world.loop.now - seen.off_since > SKEW_GRACE:
            self.fail(
                "S6", f"{self._who()} {what} {after.name} though its clock is far off since {seen.off_since:.0f} s"
            )

    def _limits(self, after: Machine, what: str) -> None:
        policy, known = self.policy, self.known
        asides = sorted(self.known_asides - known.keys())
        away = dict.fromkeys(asides, True)
        members = [n for n, m in known.items() if m.rack == after.rack]
        members += [n for n in asides if self.world.machines[n].box.rack == after.rack]
        self._limit(f"rack {after.rack}", members, away, policy.rack_unavailable.of(len(members)), after, what)
        for limit in policy.limits:
            if limit.selector.matches(after):
                # Nobody knows the labels of who has an unreadable record.
                group = [*asides, *self.members(limit.selector)]
                maximum = limit.max.of(len(group))
                self._limit(f"limit {limit.name}", group, away, maximum, after, what)

    def _limit(
        self, name: str, members: list[str], away: dict[str, bool], maximum: int, after: Machine, what: str
    ) -> None:
        away |= {n: self.unavailable(n) for n in members if n not in away}
        lost = [n for n in members if away[n]]
        if len(lost) > maximum:
            self.fail(
                "S7" if name == "limit quorum" else "S2",
                f"{self._who()} {what} {after.name}, but {name} has {len(lost)} unavailable ({', '.join(lost)}), "
                f"{maximum} allowed",
            )

    def _unlocked(self, actor: str, rack: str) -> None:
        working = [m.name for m in self.working.values() if m.rack == rack]
        if working:
            self.fail("LOCK", f"{actor} unlocks {rack} while {', '.join(working)} are on their way")
