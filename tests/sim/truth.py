"""What is true, as seen from outside: every record as it stands in the store, and what a leader can know of it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from itertools import compress
from operator import is_not
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.errors import InvalidInput
from rebootd.core.model import Cycle, CycleState, Machine, RackRecord, State
from rebootd.core.policy import DEFAULT_POLICY, Policy, parse_policy
from rebootd.core.states import WORKING
from tests.sim.checks_gates import GateChecks, failing_too_long
from tests.sim.checks_lock import LockChecks
from tests.sim.checks_pace import PaceChecks
from tests.sim.checks_power import PowerChecks

if TYPE_CHECKING:
    from rebootd.core.model import OpenWindow
    from rebootd.core.selectors import Selector
    from rebootd.store.port import Entry
    from tests.sim.world import World

FOREIGN_GRACE = 20.0
"""Seconds that a foreign rack lock may be unknown to the leader (its watch may be late or cut)."""
HEARD_GRACE = 20.0
"""Seconds by which our idea of when a leader last heard of a machine may differ from its own."""
SKEW_GRACE = 150.0
"""Seconds after which a leader must have noticed that its clock is far off."""
POLICY_GRACE = 30.0
"""Seconds that a decision by an earlier policy may be on its way to the store."""
EDIT_GRACE = 30.0
"""Seconds in which a leader need not know yet that people changed a cycle's record past it."""
BACK_BOUND = 180.0
"""Seconds, beside the soak, in which an undisturbed machine that is well must be back (S5)."""
STORM_TIME = 120.0
STORM = 60
"""Transactions for each machine in STORM_TIME seconds that only a loop without end can make."""
PREFIX = "rebootd/"
ENDED = {CycleState.DONE, CycleState.CANCELLED}


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, name: str, at: float, text: str) -> None:
        self.name = name
        self.at = at
        super().__init__(f"{name} at {at:.3f} s: {text}")


def boot_number(boot_id: str) -> int:
    """Which boot of its machine it is; those of machines without an agent have no numbers."""
    return 0 if boot_id.startswith("fleetlock:") else int(boot_id.rpartition("-b")[2])


class Seen:
    """What is known from outside about one leadership."""

    def __init__(self, daemon: str, session: str) -> None:
        self.daemon = daemon
        self.session = session
        self.heard: dict[str, float] = {}
        self.off_since: float | None = None


class Truth:
    """The outside picture of one world. ``counts`` is what happened, for the test that enough did."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.counts: dict[str, int] = defaultdict(int)
        self.records: dict[str, Machine] = {}
        """Every machine's record as it stands in the store."""
        self.known: dict[str, Machine] = {}
        """The same as a leader wrote or loaded it: what people wrote past it, it need not know."""
        self.working: dict[str, Machine] = {}
        """Those of them that are on their way."""
        self.asides: set[str] = set()
        self.known_asides: set[str] = set()
        self.cycles: dict[str, Cycle] = {}
        self.cycles_edited: dict[str, float] = {}
        """Cycle: when people wrote its record."""
        self.policy: Policy = DEFAULT_POLICY
        self.policy_before = (0.0, DEFAULT_POLICY)
        """When the policy changed, and what it was before."""
        self.policy_broken = False
        self.rack_sessions: dict[str, str] = {}
        """The session by which each rack is ours, as the last record of it said that could be read."""
        self.permits: dict[str, dict[str, float]] = defaultdict(dict)
        """boot_id: nonce: the true time until which its permit is valid."""
        self.forgotten: set[str] = set()
        """boot_ids whose permit was in a record that people deleted."""
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
        self._locks: dict[str, tuple[Entry | None, Entry | None]] = {}
        """Rack: its lock and its record in the store when they were looked at."""
        self._selected: dict[Selector, tuple[dict[str, Machine], dict[str, bool]]] = {}
        self.disturbed_until = 0.0
        self.waiting_since: dict[str, tuple[int, float]] = {}
        self.in_service: dict[str, bool] = {}
        self.permit_trick = ""
        """What is done when the next permit is answered: ``restore``, ``freeze``, ``forget`` or ``delay``."""
        self.epoch_at = 0.0
        self.leader_of: dict[int, str] = {}
        """Epoch: the daemon that began it."""
        self.decided_at: dict[int, float] = {}
        """Epoch: when its leader decided last."""
        self.clocks_touched = False
        """Whether any clock has been wrong so far: what leaders measure with it is not judged to the second then."""
        self.edited = False
        """Whether a record that waves depend on was edited by hand: the leader may not know it as it is."""
        self._lock_keys = {r: (f"{PREFIX}racks/{r}/.lock", f"{PREFIX}racks/{r}/record") for r in world.plan.racks}
        self.gates = GateChecks(self)
        self.powers = PowerChecks(self)
        self.pace = PaceChecks(self)
        self.locks = LockChecks(self)
        self._commits_then = (0.0, 0)

    def fail(self, name: str, text: str) -> None:
        """Ends the run."""
        violation = Violation(name, self.world.loop.now, text)
        if self.world.loop.failure is None:
            self.world.loop.failure = violation
            self.world.say(f"VIOLATION {violation}")

    def _machine(self, name: str, value: bytes | None, *, ours: bool) -> tuple[Machine | None, Machine | None]:
        before = self.records.get(name)
        after: Machine | None = None
        self.asides.discard(name)
        if value is not None:
            try:
                after = msgspec.json.decode(value, type=Machine)
            except msgspec.MsgspecError:
                self.asides.add(name)
        if ours or value is None:
            self.known_asides.discard(name)
        if value is None and not ours:
            # With a record that is deleted by hand go its permit and its past: no leader can know of them any more.
            self.pace.forget(name)
            self.forgotten |= {b for b in self.permits if b.startswith((f"{name}-b", f"fleetlock:{name}:"))}
        self.locks.wrote(name, after, ours=ours)
        if after is None:
            self.records.pop(name, None)
            self.working.pop(name, None)
            if ours:
                self.known.pop(name, None)
            return before, None
        if before is not None and before.ended != after.ended and not ours:
            self.pace.dated(name, after.ended - (self.world.true_time() - self.world.loop.now))
        self.records[name] = after
        if after.state in WORKING:
            self.working[name] = after
        else:
            self.working.pop(name, None)
        if ours:
            self.known[name] = after
        self.history[name][after.version] = (after.state, after.boot_id)
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

    def _rack(self, rack: str, value: bytes | None, *, ours: bool) -> None:
        """Who spoils or deletes the record takes no lock away: the leader may hold it without having looked."""
        if value is None:
            if ours:
                self.rack_sessions.pop(rack, None)
            return
        with contextlib.suppress(msgspec.MsgspecError):
            self.rack_sessions[rack] = msgspec.json.decode(value, type=RackRecord).session

    def policies(self) -> list[Policy]:
        """Those that a decision which lands now may have been made by, where its transaction does not guard it."""
        at, before = self.policy_before
        return [self.policy, before] if self.world.loop.now - at < POLICY_GRACE else [self.policy]

    def _policy(self, value: bytes) -> None:
        self.policy_broken = True
        try:
            before, self.policy = self.policy, parse_policy(value.decode())
            self.policy_before = (self.world.loop.now, before)
        except (InvalidInput, UnicodeDecodeError):
            return
        self.policy_broken = False

    def _epoch(self, actor: str, value: bytes) -> None:
        epoch = int(msgspec.json.decode(value)["epoch"])
        if epoch <= self.epoch:
            self.fail("EPOCH", f"{actor} begins epoch {epoch} after epoch {self.epoch}")
        self.epoch = epoch
        self.counts["leaderships"] += 1
        holder = self.world.consul.entries[f"{PREFIX}leader"].session
        self.leadership = Seen(actor, holder)
        self.leader_of[epoch] = actor
        # Who is parked there will be heard as soon as the desk opens.
        parked = self.world.daemons[actor].station.open.values()
        self.leadership.heard = {call.box.name: self.world.loop.now for call in parked}
        self.epoch_at = self.world.loop.now
        self.known = dict(self.records)
        self.known_asides = set(self.asides)
        self.world.say(f"{actor} leads, epoch {epoch}")

    def unavailable(self, name: str) -> bool:
        """Whether the leader must count the machine as unavailable."""
        known, actual = self.known[name], self.records.get(name)
        if known.state is not State.IN_SERVICE:
            # Edited or deleted by hand meanwhile, it may be either; then it is not held against the leader.
            return actual is not None and actual.state is not State.IN_SERVICE
        if failing_too_long(self, name):
            return True
        seen = self.leadership
        if seen is None:
            return True
        if name in self.locks.machines:
            # Nobody calls from there but to ask: what its client was told is what is known of it.
            return name in self.locks.told
        heard = seen.heard.get(name)
        if heard is None:
            return True
        return self.world.loop.now - heard > self.policy.unreachable_after + HEARD_GRACE + self.policy.clock_tolerance

    def open_racks(self) -> set[str]:
        """Racks with a machine on its way, and racks that others have had locked for a while."""
        opened = {m.rack for m in self.working.values() if m.rack}
        now = self.world.loop.now
        return opened | {rack for rack, since in self.foreign_since.items() if now - since > FOREIGN_GRACE}

    def members(self, selector: Selector) -> list[str]:
        """Which of the known machines it selects; it is asked of records that are new."""
        known = self.known
        asked, matches = self._selected.get(selector, ({}, {}))
        for name in compress(known, map(is_not, known.values(), map(asked.get, known))):
            matches[name] = selector.matches(known[name])
        self._selected[selector] = (dict(known), matches)
        return list(compress(known, map(matches.__getitem__, known)))

    def _look_at_locks(self) -> None:
        entries, now = self.world.consul.entries, self.world.loop.now
        for rack, (lock_key, record_key) in self._lock_keys.items():
            lock, record = entries.get(lock_key), entries.get(record_key)
            seen = self._locks.get(rack, (None, None))
            if seen[0] is lock and seen[1] is record:
                continue
            self._locks[rack] = lock, record
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

    def _windows(self) -> tuple[OpenWindow, ...]:
        from rebootd.core.model import OpenWindow

        prefix = f"{PREFIX}windows/"
        found = []
        for key, entry in self.world.consul.entries.items():
            if key.startswith(prefix):
                with contextlib.suppress(msgspec.MsgspecError):
                    found.append(msgspec.json.decode(entry.value, type=OpenWindow))
        return tuple(found)

    def _who(self) -> str:
        seen = self.leadership
        return f"{seen.daemon} (epoch {self.epoch})" if seen else "nobody"
