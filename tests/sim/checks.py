"""The invariants, checked from outside: on every landed transaction, every answer, and every real action of a host."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from rebootd.agent.journal import decode
from rebootd.core.errors import InvalidInput
from rebootd.core.model import Cycle, CycleState, Machine, RackRecord, State
from rebootd.core.policy import DEFAULT_POLICY, Policy, parse_policy
from rebootd.core.states import WORKING
from rebootd.core.windows import judge_windows
from rebootd.core.wire import Answer, PermitAnswer, PermitRequest, Report
from rebootd.store.port import CheckSession, Lock, Op, Set, Unlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebootd.agent.client import Reply
    from rebootd.core.decision import Decision
    from rebootd.core.model import OpenWindow, Snapshot
    from tests.sim.machines import Machine as SimMachine
    from tests.sim.net import Box, Station
    from tests.sim.world import World

FOREIGN_GRACE = 20.0
"""Seconds that a foreign rack lock may be unknown to the leader (its watch may be late or cut)."""
HEARD_GRACE = 20.0
"""Seconds by which our idea of when a leader last heard of a machine may differ from its own."""
SKEW_GRACE = 150.0
"""Seconds after which a leader must have noticed that its clock is far off."""
BACK_BOUND = 180.0
"""Seconds, beside the soak, in which an undisturbed machine that is well must be back (S5)."""
STORM_TIME = 120.0
STORM = 60
"""Transactions for each machine in STORM_TIME seconds that only a loop without end can make."""
PREFIX = "rebootd/"
_ENDED = {CycleState.DONE, CycleState.CANCELLED}


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, name: str, at: float, text: str) -> None:
        self.name = name
        self.at = at
        super().__init__(f"{name} at {at:.3f} s: {text}")


def _boot(boot_id: str) -> int:
    """Which boot of its machine it is."""
    return int(boot_id.rpartition("-b")[2])


class Seen:
    """What is known from outside about one leadership."""

    def __init__(self, daemon: str, session: str) -> None:
        self.daemon = daemon
        self.session = session
        self.heard: dict[str, float] = {}
        self.off_since: float | None = None


class Checks:
    """Watches one world. ``counts`` is what happened, for the test that enough did."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.counts: dict[str, int] = defaultdict(int)
        self.records: dict[str, Machine] = {}
        """Every machine's record as it stands in the store."""
        self.known: dict[str, Machine] = {}
        """The same as a leader wrote or loaded it: what people wrote past it, it need not know."""
        self.asides: set[str] = set()
        self.known_asides: set[str] = set()
        self.cycles: dict[str, Cycle] = {}
        self.policy: Policy = DEFAULT_POLICY
        self.permits: dict[str, dict[str, float]] = defaultdict(dict)
        """boot_id: nonce: the true time until which its permit is valid."""
        self.history: dict[str, dict[int, tuple[str, str]]] = defaultdict(dict)
        """Machine: version: (state, boot_id) as committed."""
        self.enabling: set[str] = set()
        """boot_ids for which a machine was told to come back into service."""
        self.rebooted: dict[str, str] = {}
        self.maintained: set[str] = set()
        """Machines that a person put into maintenance (their mark must stay)."""
        self.leadership: Seen | None = None
        self.epoch = 0
        self.epochs: dict[str, int] = {}
        """Machine: the highest epoch that was delivered to its agent in this boot of the agent's journal."""
        self.foreign_since: dict[str, float] = {}
        self.disturbed_until = 0.0
        self.waiting_since: dict[str, tuple[int, float]] = {}
        self.in_service: dict[str, bool] = {}
        self.permit_trick = ""
        """What is done when the next permit is answered: ``restore``, ``freeze``, ``forget`` or ``delay``."""
        self.epoch_at = 0.0
        self._commits_then = (0.0, 0)
        world.servers.before_destroy = self.before_destroy
        world.servers.before_commit = self.before_commit
        world.consul.observers.append(self.committed)
        world.net.on_request = self.on_request
        world.net.on_reply = self.on_reply
        world.net.on_delivery = self.on_delivery
        world.net.delay = self.delay

    def fail(self, name: str, text: str) -> None:
        """Ends the run."""
        violation = Violation(name, self.world.loop.now, text)
        if self.world.loop.failure is None:
            self.world.loop.failure = violation
            self.world.say(f"VIOLATION {violation}")

    # --- the store ------------------------------------------------------------------------------

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
        ours = actor in self.world.daemons
        entries = self.world.consul.entries
        changes: list[tuple[Machine | None, Machine | None]] = []
        locks: list[str] = []
        for op in ops:
            key = op.key
            if not key.startswith(PREFIX) or not isinstance(op, Set | Lock | Unlock) and not hasattr(op, "cas"):
                continue
            rest = key[len(PREFIX) :]
            entry = entries.get(key)
            if rest.startswith("machines/"):
                changes.append(self._machine(rest[9:], entry.value if entry else None, ours=ours))
            elif rest.startswith("cycles/"):
                self._cycle(rest[7:], entry.value if entry else None)
            elif rest == "policy" and entry is not None:
                self._policy(entry.value)
            elif rest == "epoch" and ours and entry is not None:
                self._epoch(actor, entry.value)
            elif isinstance(op, Lock) and rest.startswith("racks/"):
                locks.append(rest.split("/")[1])
        if not ours:
            return
        self.counts["commits"] += 1
        if any(isinstance(op, Set) and not op.key.endswith("leader") for op in ops):
            self._fenced(actor, ops)
        for before, after in changes:
            if after is not None:
                self._transition(actor, before, after)
        for rack in locks:
            self.counts["rack locks"] += 1
        for op in ops:
            if isinstance(op, Unlock) and op.key.startswith(f"{PREFIX}racks/"):
                self._unlocked(actor, op.key.split("/")[2])

    def _machine(self, name: str, value: bytes | None, *, ours: bool) -> tuple[Machine | None, Machine | None]:
        before = self.records.get(name)
        after: Machine | None = None
        self.asides.discard(name)
        if value is not None:
            try:
                after = msgspec.json.decode(value, type=Machine)
            except msgspec.MsgspecError:
                self.asides.add(name)
        if ours:
            self.known_asides.discard(name)
        if after is None:
            self.records.pop(name, None)
            if ours:
                self.known.pop(name, None)
            return before, None
        self.records[name] = after
        if ours:
            self.known[name] = after
        self.history[name][after.version] = (after.state.value, after.boot_id)
        if after.state is State.ENABLING:
            self.enabling.add(after.boot_id)
        return before, after

    def _cycle(self, name: str, value: bytes | None) -> None:
        self.cycles.pop(name, None)
        if value is not None:
            try:
                self.cycles[name] = msgspec.json.decode(value, type=Cycle)
            except msgspec.MsgspecError:
                return

    def _policy(self, value: bytes) -> None:
        try:
            self.policy = parse_policy(value.decode())
        except InvalidInput:
            return

    def _epoch(self, actor: str, value: bytes) -> None:
        epoch = int(msgspec.json.decode(value)["epoch"])
        if epoch <= self.epoch:
            self.fail("EPOCH", f"{actor} begins epoch {epoch} after epoch {self.epoch}")
        self.epoch = epoch
        self.counts["leaderships"] += 1
        holder = self.world.consul.entries[f"{PREFIX}leader"].session
        self.leadership = Seen(actor, holder)
        # Who is parked there will be heard as soon as the desk opens.
        parked = self.world.daemons[actor].station.open.values()
        self.leadership.heard = {call.box.name: self.world.loop.now for call in parked}
        self.epoch_at = self.world.loop.now
        self.known = dict(self.records)
        self.known_asides = set(self.asides)
        self.world.say(f"{actor} leads, epoch {epoch}")

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

    # --- transitions ----------------------------------------------------------------------------

    def _transition(self, actor: str, before: Machine | None, after: Machine) -> None:
        if before is None:
            self.world.say(f"{after.name} is new: {after.state.value} v{after.version} by {actor}")
            return
        permit = after.permit
        if permit is not None and permit != before.permit:
            self.counts["permits"] += 1
            self._permitted(before, after)
        if before.version == after.version:
            return
        if _boot(after.boot_id) < _boot(before.boot_id):
            self.fail("BOOT", f"{after.name} goes back from {before.boot_id} to {after.boot_id}")
        self.world.say(
            f"{after.name} {before.state.value} -> {after.state.value} ({after.cause}) v{after.version} by {actor}"
        )
        if after.epoch != self.epoch:
            self.fail("EPOCH", f"{after.name} was written with epoch {after.epoch} in epoch {self.epoch}")
        if before.state is State.IN_SERVICE and after.state is State.DRAINING:
            self.counts["drains"] += 1
            self._going_out(before, after, "drains")

    def _permitted(self, before: Machine, after: Machine) -> None:
        permit = after.permit
        assert permit is not None
        if permit.boot_id != after.boot_id:
            self.fail("S3", f"{after.name} at {after.boot_id} is permitted to reboot {permit.boot_id}")
        nonces = self.permits[permit.boot_id]
        nonces[permit.nonce] = self.world.loop.now + self.policy.permit_valid
        if len(nonces) > 1:
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
        record = entries.get(f"{PREFIX}racks/{rack}/record")
        ours = msgspec.json.decode(record.value, type=RackRecord).session if record is not None else ""
        if lock is None or not lock.session or lock.session != ours:
            self.fail("S1", f"{self._who()} {what} {name} without holding the lock of its rack {rack}")
        opened = self.open_racks()
        if len(opened) > policy.open_racks:
            self.fail("S1", f"{self._who()} {what} {name} of {rack}: {sorted(opened)} are open, {policy.open_racks} allowed")
        self._limits(after, what)

    def _wanted_by_cycle(self, after: Machine, what: str) -> None:
        entries = self.world.consul.entries
        for key in (f"{PREFIX}holds/machine/{after.name}", f"{PREFIX}holds/rack/{after.rack}"):
            if key in entries:
                self.fail("S6", f"{self._who()} {what} {after.name} for a cycle although {key} stands")
        cycle = self.cycles.get(after.cycle)
        if cycle is None or cycle.state in _ENDED:
            # The cycle's own record is not guarded; it is read by the same loop that changes it.
            self.fail("S6", f"{self._who()} {what} {after.name} for {after.cycle}, which is not under way")
        self._window(after, what)
        self._skew(after, what)

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

    def _windows(self) -> tuple[OpenWindow, ...]:
        from rebootd.core.model import OpenWindow

        prefix = f"{PREFIX}windows/"
        return tuple(
            msgspec.json.decode(e.value, type=OpenWindow)
            for k, e in self.world.consul.entries.items()
            if k.startswith(prefix)
        )

    def _skew(self, after: Machine, what: str) -> None:
        seen = self.leadership
        if seen is None or seen.off_since is None:
            return
        if self.world.loop.now - seen.off_since > SKEW_GRACE:
            self.fail("S6", f"{self._who()} {what} {after.name} though its clock is far off since {seen.off_since:.0f} s")

    def _limits(self, after: Machine, what: str) -> None:
        policy, known = self.policy, self.known
        away = {name: self.unavailable(name) for name in known}
        away |= dict.fromkeys(self.known_asides - known.keys(), True)
        members = [n for n, m in known.items() if m.rack == after.rack]
        self._limit(f"rack {after.rack}", members, away, policy.rack_unavailable.of(len(members)), after, what)
        for limit in policy.limits:
            if limit.selector.matches(after):
                group = [n for n, m in known.items() if limit.selector.matches(m)]
                maximum = limit.max.of(len(group))
                self._limit(f"limit {limit.name}", group, away, maximum, after, what)

    def _limit(
        self, name: str, members: list[str], away: dict[str, bool], maximum: int, after: Machine, what: str
    ) -> None:
        lost = [n for n in members if away.get(n)]
        if len(lost) > maximum:
            self.fail(
                "S7" if name == "limit quorum" else "S2",
                f"{self._who()} {what} {after.name}, but {name} has {len(lost)} unavailable ({', '.join(lost)}), "
                f"{maximum} allowed",
            )

    def unavailable(self, name: str) -> bool:
        """Whether the leader must count the machine as unavailable."""
        known, actual = self.known[name], self.records.get(name)
        if known.state is not State.IN_SERVICE:
            # Edited or deleted by hand meanwhile, it may be either; then it is not held against the leader.
            return actual is not None and actual.state is not State.IN_SERVICE
        seen = self.leadership
        if seen is None:
            return True
        heard = seen.heard.get(name)
        if heard is None:
            return True
        return self.world.loop.now - heard > self.policy.unreachable_after + HEARD_GRACE + self.policy.clock_tolerance

    def open_racks(self) -> set[str]:
        """Racks with a machine on its way, and racks that others have had locked for a while."""
        opened = {m.rack for m in self.records.values() if m.state in WORKING and m.rack}
        now = self.world.loop.now
        return opened | {rack for rack, since in self.foreign_since.items() if now - since > FOREIGN_GRACE}

    def _look_at_locks(self) -> None:
        entries, now = self.world.consul.entries, self.world.loop.now
        for rack in self.world.plan.racks:
            lock = entries.get(f"{PREFIX}racks/{rack}/.lock")
            record = entries.get(f"{PREFIX}racks/{rack}/record")
            holder = lock.session if lock is not None else ""
            ours = ""
            if record is not None:
                try:
                    ours = msgspec.json.decode(record.value, type=RackRecord).session
                except msgspec.MsgspecError:
                    ours = ""
            if holder and holder != ours:
                self.foreign_since.setdefault(rack, now)
            else:
                self.foreign_since.pop(rack, None)

    def _unlocked(self, actor: str, rack: str) -> None:
        working = [m.name for m in self.records.values() if m.rack == rack and m.state in WORKING]
        if working:
            self.fail("LOCK", f"{actor} unlocks {rack} while {', '.join(working)} are on their way")

    def _who(self) -> str:
        seen = self.leadership
        return f"{seen.daemon} (epoch {self.epoch})" if seen else "nobody"

    # --- the network ------------------------------------------------------------------------------

    def on_request(self, box: Box, station: Station, path: str, body: bytes) -> None:
        """A daemon takes a request."""
        self.counts["requests"] += 1
        if path.endswith("/report"):
            self._heard(station, path)
        else:
            self._permit_asked(msgspec.json.decode(body, type=PermitRequest))

    def on_reply(self, box: Box, station: Station, path: str, body: bytes, reply: Reply) -> None:
        """A daemon answers."""
        if reply[0] != 200:
            return
        if path.endswith("/permit"):
            self._permit_answer(msgspec.json.decode(body, type=PermitRequest), msgspec.json.decode(reply[2], type=PermitAnswer))
            return
        self._heard(station, path)
        report, answer = msgspec.json.decode(body, type=Report), msgspec.json.decode(reply[2], type=Answer)
        speaks_on = self.world.loop.now - self.epoch_at - self.world.plan.tuning.deadline
        if answer.epoch < self.epoch and speaks_on > 1.0:
            self.fail("SPEAK", f"{report.name} is answered in epoch {answer.epoch}, {speaks_on:.1f} s too late")
        if not answer.state:
            return
        committed = self.history[report.name].get(answer.index)
        if committed is None or committed[0] != answer.state:
            self.fail("COMMITTED", f"{report.name} is told {answer.state} v{answer.index}, which is not committed")
        elif answer.directive is not None and answer.directive.boot_id != report.boot_id:
            self.fail("COMMITTED", f"{report.name} at {report.boot_id} gets a directive for {answer.directive.boot_id}")
        elif answer.directive is not None and committed[1] != report.boot_id:
            self.fail("COMMITTED", f"{report.name} reports the stale {report.boot_id} and gets a directive")

    def _permit_answer(self, asked: PermitRequest, answer: PermitAnswer) -> None:
        if answer.granted and answer.nonce not in self.permits[answer.boot_id]:
            self.fail("S3", f"{asked.name} is told of a permit for {answer.boot_id} that is not committed")

    def _permit_asked(self, asked: PermitRequest) -> None:
        data = self.world.machines[asked.name].disk.data or b""
        if asked.boot_id == self.world.machines[asked.name].boot_id and asked.nonce.encode() not in data:
            self.fail("JOURNAL", f"{asked.name} asks under {asked.nonce}, which is not on its disk")

    def _heard(self, station: Station, path: str) -> None:
        seen = self.leadership
        if seen is not None and station.url == self.world.daemons[seen.daemon].url:
            seen.heard[path.split("/")[3]] = self.world.loop.now

    def on_delivery(self, box: Box, path: str, reply: Reply) -> None:
        """An answer reaches an agent's host."""
        if reply[0] == 200:
            epoch = int(msgspec.json.decode(reply[2])["epoch"])
            name = box.name
            if self.permit_trick and path.endswith("/permit") and b'"granted":true' in reply[2]:
                self._trick(self.world.machines[name])
            self.epochs[name] = max(self.epochs.get(name, 0), epoch)

    def delay(self, path: str, reply: Reply) -> float:
        """Seconds by which an answer is held up on its way."""
        if self.permit_trick != "delay" or not path.endswith("/permit") or b'"granted":true' not in reply[2]:
            return 0.0
        self.permit_trick = ""
        return 12.0

    def _trick(self, machine: SimMachine) -> None:
        trick, self.permit_trick = self.permit_trick, ""
        self.world.say(f"TRICK {trick} at the permit of {machine.name}")
        if trick == "restore":
            machine.restore()
        elif trick == "forget":
            machine.lose_journal()
        elif trick == "freeze" and machine.process is not None:
            machine.process.stop()
            self.world.loop.after(12.0 + self.policy.permit_valid / 2, machine.process.go_on)

    # --- the hosts --------------------------------------------------------------------------------

    def rebooting(self, machine: SimMachine) -> None:
        """A reboot command is executed."""
        self.counts["reboots"] += 1
        boot_id, now = machine.boot_id, self.world.loop.now
        if boot_id in self.rebooted:
            self.fail("S3", f"{machine.name} reboots twice from {boot_id}")
        self.rebooted[boot_id] = machine.name
        agent = machine.agent
        assert agent is not None
        record = agent._journal.record
        nonces = self.permits.get(boot_id, {})
        intent = record.intent
        if intent is None or intent.nonce not in nonces:
            self.fail("S3", f"{machine.name} reboots {boot_id} without a committed permit")
        elif now > nonces[intent.nonce] + 0.01:
            self.fail("S3", f"{machine.name} reboots {now - nonces[intent.nonce]:.1f} s after its permit ended")
        if machine.disk.data is None or decode(machine.disk.data).intent != intent:
            self.fail("JOURNAL", f"{machine.name} reboots with nothing about it on its disk")
        self._current(machine, "reboots")
        self.world.say(f"{machine.name} executes its reboot of {boot_id}")

    def obeying(self, machine: SimMachine, directive: str) -> None:
        """Hooks run for a directive."""
        if directive:
            self._current(machine, f"obeys {directive}")

    def _current(self, machine: SimMachine, what: str) -> None:
        agent = machine.agent
        current = agent._runner._current if agent is not None and hasattr(agent, "_runner") else None
        if current is None:
            return
        if current.boot_id != machine.boot_id:
            self.fail("BOOT", f"{machine.name} at {machine.boot_id} {what}, said to {current.boot_id}")
        journal = agent._journal.record.epoch if agent is not None else 0
        if current.epoch < journal and what.startswith("obeys") and not self._same_step(machine, current):
            self.fail("EPOCH", f"{machine.name} {what} of epoch {current.epoch} after one of {journal}")

    def _same_step(self, machine: SimMachine, current: Any) -> bool:
        """A new leader says the same directive again: same step, same id."""
        record = self.records.get(machine.name)
        return record is not None and record.version in {current.version, current.version + 1}

    def journaled(self, machine: SimMachine) -> None:
        """The agent's journal changed on disk."""
        data = machine.disk.data or b""
        now_in = b'"in_service":true' in data
        was_in = self.in_service.get(machine.name, False)
        self.in_service[machine.name] = now_in
        if now_in and not was_in and machine.boots and b'"by_hand":""' in data:
            if machine.boot_id not in self.enabling:
                self.fail("S4", f"{machine.name} goes into service at {machine.boot_id} though nobody said so")

    def mark_changes(self, machine: SimMachine, method: str, path: str, body: bytes | None) -> None:
        """The agent changes a check of its local Consul agent."""
        check = msgspec.json.decode(body)["ID"] if body else path.rpartition("/")[2]
        if check != "rebootd":
            self.fail("S4", f"{machine.name}'s agent touches the check {check} of others")

    # --- decisions and time -------------------------------------------------------------------------

    def decided(self, snapshot: Snapshot, decision: Decision) -> None:
        """A leader decided: everybody who waits is told why (S8)."""
        stepping = {s.name for s in decision.steps}
        cycles = [c for c in snapshot.cycles.values() if c.state not in _ENDED]
        for name, m in snapshot.machines.items():
            reasons = decision.reasons.get(name, ())
            if any(not (r.kind and r.what and r.clears) for r in reasons):
                self.fail("S8", f"a reason of {name} is incomplete: {reasons}")
            verdict = decision.permits.get(name)
            if reasons or name in stepping or (verdict is not None and verdict.granted):
                continue
            if m.state is not State.IN_SERVICE:
                self.fail("S8", f"{name} is {m.state.value} and nobody says why")
            elif cycles and self._waits_for_cycle(m, cycles):
                self.fail("S8", f"{name} waits for a cycle and nobody says why")

    @staticmethod
    def _waits_for_cycle(m: Machine, cycles: list[Cycle]) -> bool:
        from rebootd.core.advance import pending

        return any(pending(c, m) for c in cycles)

    def disturbed(self, until: float) -> None:
        """Until then, delays may have causes that S5 does not speak of."""
        self.disturbed_until = max(self.disturbed_until, until)

    def look(self) -> None:
        """From time to time: coming back is not delayed (S5), clocks."""
        self._look_at_locks()
        now, world = self.world.loop.now, self.world
        then, before = self._commits_then
        if now - then >= STORM_TIME:
            commits = self.counts["commits"] - before
            self._commits_then = (now, self.counts["commits"])
            if commits > STORM * len(world.machines):
                self.fail("STORM", f"{commits} transactions in {now - then:.0f} s")
        self._look_at_clock()
        for name, record in self.records.items():
            machine = world.machines.get(name)
            if machine is None or record.state not in {State.VERIFYING, State.ENABLING}:
                self.waiting_since.pop(name, None)
                continue
            version, since = self.waiting_since.get(name, (0, now))
            if version != record.version or not self._well(machine) or world.desk() is None:
                since = now
            self.waiting_since[name] = (record.version, since)
            bound = BACK_BOUND + self.policy.soak + world.plan.hook_seconds * 2
            if now - max(since, self.disturbed_until) > bound:
                self.fail("S5", f"{name} is well and {record.state.value} for {now - since:.0f} s")

    def _well(self, machine: SimMachine) -> bool:
        agent = machine.agent
        if not machine.box.up or machine.process is None or not machine.process.alive or agent is None:
            return False
        return machine.disk.data is not None and b'"status":"passed"' in machine.disk.data

    def _look_at_clock(self) -> None:
        seen, world = self.leadership, self.world
        if seen is None:
            return
        offsets = sorted(m.box.offset for m in world.machines.values() if m.box.up)
        if not offsets:
            return
        own = world.daemons[seen.daemon].box.offset
        low, high = offsets[(len(offsets) - 1) // 2], offsets[len(offsets) // 2]
        far = min(abs(own - low), abs(own - high)) > self.policy.clock_tolerance + 5.0
        if not far:
            seen.off_since = None
        elif seen.off_since is None:
            seen.off_since = world.loop.now

    # --- the end ------------------------------------------------------------------------------------

    def unsettled(self) -> str:
        """Why it is not over yet (L1), or ""."""
        for name, machine in self.world.machines.items():
            record = self.records.get(name)
            if record is None:
                if machine.gone or name in self.known:
                    # Deleted by hand, it is still known to the leader, who writes it with its next step.
                    continue
                return f"{name} has no record"
            if record.state in WORKING:
                return f"{name} is {record.state.value} ({record.cause})"
            if machine.gone or not machine.box.up:
                if record.state is State.IN_SERVICE and not machine.gone:
                    return f"{name} is down"
                continue
            marked = machine.consul.checks.get("rebootd", {}).get("Status") == "critical"
            agent = machine.agent
            if agent is None or machine.process is None or not machine.process.alive:
                return f"the agent of {name} does not run"
            if record.state is State.IN_SERVICE and (marked or not agent._journal.record.in_service):
                return f"{name} is in service by its record, but not on its host"
            if name in self.maintained and "_node_maintenance" not in machine.consul.checks:
                self.fail("S4", f"the maintenance mark of {name} is gone")
            if record.boot_id != machine.boot_id:
                return f"{name} is at {machine.boot_id}, its record at {record.boot_id}"
        for cycle in self.cycles.values():
            if cycle.state not in _ENDED:
                return f"cycle {cycle.id} is {cycle.state.value}"
        for rack in self.world.plan.racks:
            lock = self.world.consul.entries.get(f"{PREFIX}racks/{rack}/.lock")
            if lock is not None and lock.session:
                return f"rack {rack} is still locked"
        return ""
