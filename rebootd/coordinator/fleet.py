"""The fleet in the leader's memory: every record with its index, and what the machines say.

It is loaded once after the election and then follows the leader's own commits; the small prefixes
are watched besides, since people and other tools write them too. A large prefix is never watched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from rebootd.coordinator.rack_book import RackBook
from rebootd.coordinator.records import T, checked, decode, halt_of
from rebootd.core.durations import Durations
from rebootd.core.errors import InvalidInput
from rebootd.core.fleetlock import Memo, voices
from rebootd.core.inputs import rack_name
from rebootd.core.model import (
    Aside,
    Cycle,
    Halt,
    Hold,
    Machine,
    Observation,
    OpenWindow,
    PowerCycle,
    PowerState,
    Refusal,
    Snapshot,
)
from rebootd.core.policy import DEFAULT_POLICY, parse_policy
from rebootd.core.power import STATES, controller
from rebootd.core.stamps import machine_by, newest, record_by
from rebootd.core.wire import DirectiveKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebootd.coordinator.records import Keys
    from rebootd.core.gates import Held, Reading
    from rebootd.core.model import Call, RackLock
    from rebootd.core.nomad import NomadSight
    from rebootd.core.policy import Policy
    from rebootd.core.wire import PermitRequest, Report
    from rebootd.store.port import Entry, Node


class Fleet:
    """Mutable, owned by one leadership. Only the leader's loop writes to it, between awaits."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.index: dict[str, int] = {}
        self._small: set[str] = set()
        self.machines: dict[str, Machine] = {}
        self.virgin = False
        """Whether there was no record at all when this leader began."""
        self.cycles: dict[str, Cycle] = {}
        self.machine_holds: dict[str, Hold] = {}
        self.rack_holds: dict[str, Hold] = {}
        self.windows: dict[str, OpenWindow] = {}
        self.halt: Halt | None = None
        self.policy: Policy = DEFAULT_POLICY
        self.policy_text = ""
        self.asides: dict[str, Aside] = {}
        self.observed: dict[str, Observation] = {}
        self.asking: dict[str, PermitRequest] = {}
        self.calls: dict[str, Call] = {}
        """What FleetLock clients ask now, by machine."""
        self._memo: Memo = {}
        self.conflicts: dict[str, str] = {}
        self.catalog: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        self.alarms: dict[str, str] = {}
        self._known_since: dict[str, float] = {}
        """Since when conflicts (by name) and faults (by key) are known."""
        self.book = RackBook(keys.racks, self.alarms)
        self.rack_records = self.book.records
        self.lock_holders = self.book.holders
        self.durations = Durations()
        self.power: dict[str, PowerCycle] = {}
        self.refusals: dict[str, Refusal] = {}
        self.node_meta: dict[str, dict[str, str]] = {}
        self.can_power = False
        """Whether this leader has what it takes to power-cycle machines: credentials."""
        self.addresses: dict[str, str] = {}
        self.readings: dict[str, Reading] = {}
        self.gate_since: dict[str, Held] = {}
        self.gate_changed: dict[str, float] = {}
        self.failing: dict[str, str] = {}
        self.failing_since: dict[str, float] = {}
        self.gone: dict[str, float] = {}
        self.nomad: NomadSight | None = None
        self.successors: frozenset[str] | None = frozenset()
        self.ahead: set[str] = set()
        """Machines whose records were stamped by a clock that is far ahead of ours."""

    # --- what the store says -------------------------------------------------------------

    def absorb(self, entry: Entry, now: float) -> bool:
        """Takes over one key as read or as written by us, and says whether that was news; older news is ignored."""
        key = entry.key
        if key.endswith("/"):
            # A folder, as Consul's web page makes them: no record.
            return False
        known = self.index.get(key, 0)
        if entry.modify_index < known:
            return False
        if entry.modify_index == known and not (
            # A lock that is lost with its session keeps its index.
            key.endswith("/.lock") and self.lock_holders.get(self._locked(key), "") != entry.session
        ):
            return False
        self.index[key] = entry.modify_index
        if not key.startswith(self.keys.machines):
            self._small.add(key)
        self._place(key, entry, now)
        return True

    def _locked(self, key: str) -> str:
        return key.removeprefix(self.keys.racks).removesuffix("/.lock")

    def forget(self, key: str, now: float) -> None:
        """The key is gone."""
        self._small.discard(key)
        if self.index.pop(key, None) is not None:
            self._place(key, None, now)

    def absorb_prefix(self, prefix: str, entries: Iterable[Entry], index: int, now: float) -> bool:
        """Takes over a whole prefix as read at ``index``, and says whether there was news.

        Keys that are missing are gone, except records of machines.
        """
        seen = set()
        news = False
        for entry in entries:
            seen.add(entry.key)
            news |= self.absorb(entry, now)
        gone = [k for k in self._small if k.startswith(prefix) and k not in seen and self.index[k] <= index]
        for key in gone:
            self.forget(key, now)
        return news or bool(gone)

    def _place(self, key: str, entry: Entry | None, now: float) -> None:
        keys = self.keys
        if key.startswith(keys.machines):
            self._machine(key.removeprefix(keys.machines), entry, now)
        elif key.startswith(keys.cycles):
            _put(self, self.cycles, key.removeprefix(keys.cycles), entry, Cycle, now)
        elif key.startswith(keys.holds + "machine/"):
            self._hold("machine", key.removeprefix(keys.holds + "machine/"), entry, now)
        elif key.startswith(keys.holds + "rack/"):
            self._hold("rack", key.removeprefix(keys.holds + "rack/"), entry, now)
        elif key.startswith(keys.windows):
            _put(self, self.windows, key.removeprefix(keys.windows), entry, OpenWindow, now)
        elif key.startswith(keys.power):
            self._power_cycle(key.removeprefix(keys.power), entry, now)
        elif key == keys.halt:
            self.halt = halt_of(entry.value, now) if entry is not None else None
        elif key == keys.policy:
            self._policy(entry)
        elif key == keys.durations:
            self._durations(entry)
        elif key.startswith(keys.racks):
            self.book.place(key.removeprefix(keys.racks), entry, now)

    def _machine(self, name: str, entry: Entry | None, now: float) -> None:
        before = self.asides.pop(name, None)
        if entry is None:
            seen = self.observed.get(name)
            if seen is not None and (name in self.conflicts or now - seen.at > self.policy.unreachable_after):
                # Else its record would be made anew from a report of the past, or of the wrong one of two machines.
                del self.observed[name]
            for what in (self.machines, self.conflicts, self.refusals):
                what.pop(name, None)
            return
        try:
            machine = decode(entry.value, Machine)
            if machine.name != name:
                raise msgspec.ValidationError(f"the name inside is {machine.name!r}")
        except msgspec.MsgspecError as error:
            kept = self.machines.pop(name, None) or (before.last if before else None)
            rack = kept.rack if kept else self.catalog.get(name, "")
            since = before.since if before else now
            self.asides[name] = Aside(name=name, rack=rack, error=str(error), since=since, last=kept)
        else:
            self.machines[name] = machine_by(machine, now)
            if newest(machine) > now + self.policy.clock_tolerance:
                self.ahead.add(name)

    def _hold(self, kind: str, name: str, entry: Entry | None, now: float) -> None:
        holds = self.machine_holds if kind == "machine" else self.rack_holds
        if entry is None:
            holds.pop(name, None)
            return
        try:
            # Where it stands is what it holds: so the reason says what is to be released.
            holds[name] = replace(record_by(decode(entry.value, Hold), now), kind=kind, name=name)
        except msgspec.MsgspecError:
            # Whatever stands there, somebody wanted a hold: what is unknown is not safe.
            reason = entry.value.decode(errors="replace")[:200]
            holds[name] = Hold(kind=kind, name=name, since=now, reason=reason)

    def _power_cycle(self, name: str, entry: Entry | None, now: float) -> None:
        if entry is None:
            self.power.pop(name, None)
            return
        try:
            power = decode(entry.value, PowerCycle)
            if power.machine != name:
                raise msgspec.ValidationError(f"the machine inside is {power.machine!r}")
            self.power[name] = record_by(power, now)
        except msgspec.MsgspecError as error:
            # It may have been sent: what is unknown is not safe, so this boot is not power-cycled (again).
            machine, said = self.machines.get(name), f"its record cannot be read: {error}"
            boot_id = machine.boot_id if machine is not None else ""
            self.power[name] = PowerCycle(
                machine=name, boot_id=boot_id, address="", since=now, changed=now, state=PowerState.FAILED, result=said
            )

    def _policy(self, entry: Entry | None) -> None:
        self.faults.pop("policy", None)
        self.policy_text = entry.value.decode(errors="replace") if entry is not None else ""
        try:
            self.policy = parse_policy(self.policy_text) if entry is not None else DEFAULT_POLICY
        except InvalidInput as error:
            # The last good policy keeps judging what comes back; nothing new goes out.
            self.faults["policy"] = f"the policy in the store cannot be read: {error}"

    def _durations(self, entry: Entry | None) -> None:
        if entry is None:
            return
        try:
            read = decode(entry.value, Durations)
        except msgspec.MsgspecError as error:
            # Estimates are a convenience: they start anew, and the next write puts the record right.
            self.alarms["durations"] = f"the record of durations cannot be read: {error}"
            return
        self.alarms.pop("durations", None)
        if read.samples > self.durations.samples:
            self.durations = read

    # --- what the machines say -----------------------------------------------------------

    def hear(self, report: Report, now: float, quiet_for: Machine | None = None) -> None:
        """Keeps a report; the time of a first good enable result is kept for the soak."""
        before = self.observed.get(report.name)
        enabled_at = 0.0
        result = report.result
        if result is not None and result.kind is DirectiveKind.ENABLE and result.ok:
            same = before is not None and before.report.result is not None and before.report.result.id == result.id
            enabled_at = before.enabled_at if same and before is not None and before.enabled_at else now
        self.observed[report.name] = Observation(report, now, enabled_at, quiet_for)

    # --- what the catalog says -----------------------------------------------------------

    def catalog_read(self, nodes: Iterable[Node], now: float) -> bool:
        """Takes over the catalog's nodes: their racks, their addresses, and which machines it no longer has.

        True if it has other machines than before.

        A catalog that lacks most machines is one that cannot be read as it should (rights, a lost datacenter): nobody
        is gone for that, and nobody goes out.
        """
        nodes = list(nodes)
        self.catalog = {n.name: rack_name(n.meta.get("rack", "")) for n in nodes}
        self.addresses = {n.address: n.name for n in nodes if n.address}
        missing = [name for name in self.machines if name not in self.catalog]
        if len(missing) * 2 > len(self.machines) and len(missing) > 1:
            self.faults["catalog lacks"] = f"Consul's catalog lacks {len(missing)} of {len(self.machines)} machines"
            self.gone = {}
            return True
        before, known = self.gone, self.faults.pop("catalog lacks", None) is None
        self.gone = {name: before.get(name, now) for name in missing}
        return not known or before.keys() != self.gone.keys()

    def refused(self, name: str, refusal: Refusal | None) -> None:
        """Keeps why a machine's last request for a permit was refused; None: it was granted."""
        if refusal is not None and name in self.machines:
            self.refusals[name] = refusal
        else:
            self.refusals.pop(name, None)

    # --- what is decided on --------------------------------------------------------------

    def rack_lock(self, rack: str) -> RackLock:
        """How the lock of one rack stands."""
        return self.book.lock(rack)

    def _controllers(self) -> dict[str, tuple[str, str]]:
        """Where the machines that may need it can be power-cycled."""
        if not self.can_power or not self.policy.failures.power.address:
            return {}
        found = {
            name: controller(self.policy, name, m.rack, self.node_meta.get(name, {}))
            for name, m in self.machines.items()
            if m.state in STATES
        }
        return {name: at for name, at in found.items() if at is not None}

    def _expected(self) -> dict[str, str]:
        """Nodes of the catalog that have a rack there and no record here: an agent is expected to call from them.

        Only in a fleet that begins, or has lost its records. In one that runs they are hosts without an agent, or of
        another fleet, and every new leader would wait for them in vain.
        """
        if not self.virgin:
            return {}
        return {n: rack for n, rack in self.catalog.items() if rack and n not in self.machines and n not in self.asides}

    def alarm(self, key: str, said: str) -> None:
        """Keeps a sentence that a person should read; ``""`` ends it."""
        if said:
            self.alarms[key] = said
        else:
            self.alarms.pop(key, None)

    def _alarms(self) -> tuple[str, ...]:
        no_nomad = "the policy drains at Nomad, and this leader was given no address of one (--nomad)"
        self.alarm("no nomad", no_nomad if self.policy.drains.nomad is not None and self.nomad is None else "")
        if self.policy.failures.power.address and not self.can_power:
            return (*self.alarms.values(), "the policy wants power cycles, and this leader has no credentials for them")
        return tuple(self.alarms.values())

    def _spoken_for(self, now: float) -> dict[str, Observation]:
        """What is heard of the machines that have no agent."""
        for name in self._memo.keys() - self.machines.keys():
            del self._memo[name]
        calls, nodes = self.calls, self.node_meta
        return dict(voices(self.machines, calls, nodes, self.gone, self.policy, now, self._memo))

    def snapshot(
        self, *, now: float, epoch: int, leading_since: float, clock_skew: float, leader_node: str
    ) -> Snapshot:
        """An immutable picture of now. Dicts are copied, records are shared (they are frozen)."""
        since = self._known_since
        self._known_since = known = {
            what: since.get(what, now) for what in (*self.conflicts, *(f"fault {key}" for key in self.faults))
        }
        return Snapshot(
            now=now,
            epoch=epoch,
            policy=self.policy,
            machines=dict(self.machines),
            observed=self.observed | self._spoken_for(now),
            calls=dict(self.calls),
            cycles=dict(self.cycles),
            machine_holds=dict(self.machine_holds),
            rack_holds=dict(self.rack_holds),
            windows=tuple(self.windows.values()),
            halt=self.halt,
            racks=self.book.locks(now),
            asking=dict(self.asking),
            asides=dict(self.asides),
            conflicts=dict(self.conflicts),
            conflict_since={name: known[name] for name in self.conflicts},
            leading_since=leading_since,
            clock_skew=clock_skew,
            leader_node=leader_node,
            durations=self.durations,
            faults=tuple(self.faults.values()),
            fault_since={said: known[f"fault {key}"] for key, said in self.faults.items()},
            alarms=self._alarms(),
            power=dict(self.power),
            controllers=self._controllers(),
            refusals=dict(self.refusals),
            readings=dict(self.readings),
            gate_since=dict(self.gate_since),
            gate_changed=dict(self.gate_changed),
            failing=self.failing,
            failing_since=self.failing_since,
            gone=dict(self.gone),
            expected=self._expected() if now - leading_since < self.policy.settle else {},
            nomad=self.nomad,
            fleet=self.keys.prefix,
            successors=self.successors,
        )


def _put(fleet: Fleet, where: dict[str, T], name: str, entry: Entry | None, kind: type[T], now: float) -> None:
    what = f"{kind.__name__.lower()} {name}"
    fleet.alarms.pop(what, None)
    if entry is None:
        where.pop(name, None)
        return
    try:
        where[name] = record_by(checked(decode(entry.value, kind), name), now)
    except (msgspec.MsgspecError, InvalidInput) as error:
        # An unreadable cycle or window gives nobody leave to go: it is as if it were not there.
        where.pop(name, None)
        fleet.alarms[what] = f"the record of {what} cannot be read: {error}"
