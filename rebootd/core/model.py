"""The words of rebootd as frozen values: what is kept in the store, and the snapshot decided on.

Times are seconds since the Unix epoch (float) on the leader's clock unless a name says
otherwise; durations are seconds. Every struct that is stored is JSON through msgspec, readable
with ``consul kv get``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.fleetlock_record import Call, FleetLock
from rebootd.core.nomad import NomadDrain
from rebootd.core.power_record import PowerCycle, PowerState
from rebootd.core.wire import CheckResult, PermitRequest, Report, Tri

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.core.durations import Durations
    from rebootd.core.gates import Held, Reading
    from rebootd.core.nomad import NomadSight
    from rebootd.core.policy import Policy

SUPERSEDED_BOOTS = 8
"""How many earlier boot_ids a record keeps, to refuse reports that come late."""


class State(StrEnum):
    """Where a machine is on its way through a reboot."""

    IN_SERVICE = "in-service"
    DRAINING = "draining"
    DRAINED = "drained"
    REBOOTING = "rebooting"
    VERIFYING = "verifying"
    ENABLING = "enabling"
    HELD = "held"
    QUARANTINED = "quarantined"


class Permit(msgspec.Struct, frozen=True):
    """The right to reboot exactly one boot_id once, until ``until``; ``nonce`` is the agent's."""

    boot_id: str
    nonce: str
    until: float
    epoch: int


class Retry(msgspec.Struct, frozen=True):
    """Something that failed and is tried again: ``what`` is ``drain`` or ``checks``, ``cycle`` whose drain it was.

    ``attempts`` is how often it has failed, ``at`` when it is tried (drain) or judged (checks) again.
    """

    what: str
    cycle: str
    attempts: int
    at: float


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's record, stored at ``machines/<name>``.

    ``version`` grows by one with every transition (not with mere facts such as labels), so it
    names the step a directive belongs to. ``boots`` are superseded boot_ids, newest last.
    ``outcomes`` maps cycle ids to ``rebooted``, ``skipped: ...`` or ``failed: ...``; only the
    most recent few are kept. ``booted`` tells that a new boot_id was seen since the machine last left
    service, ``planned`` that this boot was the one our permit was for. ``required_before`` are the reasons for a reboot
    that the boot before this one had; ``flag`` says that a reboot did not change what was required (``""``: none).
    ``unplanned_at`` are the times of the last unplanned boots, ``retry`` what is tried again. ``ended`` is when a cycle
    last ended for it, ``required_since`` since when it reports that a reboot is required (0: it does not).
    ``turned_back`` counts how often in a row a gate brought it back undone, at ``turned_back_at`` for the last time.
    ``announced`` tells that a shutdown by somebody else's hand is coming: the next boot is no crash. ``nomad`` is what
    its Nomad client was before our drain, until it is so again. ``method`` is how it is to reboot (``""``: as its host
    is set up to). ``fleetlock`` is what asks for its reboots in the place of an agent (None: it has an agent).
    """

    name: str
    rack: str
    state: State
    since: float
    boot_id: str
    cycle: str = ""
    epoch: int = 0
    version: int = 1
    write_id: str = ""
    cause: str = ""
    machine_id: str = ""
    boots: tuple[str, ...] = ()
    kernel: str = ""
    chassis: str = ""
    labels: dict[str, str] = {}
    reboot_required: Tri = Tri.UNKNOWN
    reboot_reasons: tuple[str, ...] = ()
    permit: Permit | None = None
    planned: bool = False
    booted: bool = False
    outcomes: dict[str, str] = {}
    unplanned: int = 0
    evidence: str = ""
    unplanned_at: tuple[float, ...] = ()
    required_before: tuple[str, ...] = ()
    flag: str = ""
    retry: Retry | None = None
    ended: float = 0.0
    required_since: float = 0.0
    turned_back: int = 0
    turned_back_at: float = 0.0
    announced: bool = False
    nomad: NomadDrain | None = None
    method: str = ""
    fleetlock: FleetLock | None = None


class CycleState(StrEnum):
    """Where a cycle is. ``halted`` is what a spent failure budget does; a person resumes it."""

    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    CANCELLED = "cancelled"
    DONE = "done"


class Cycle(msgspec.Struct, frozen=True, kw_only=True):
    """One campaign, stored at ``cycles/<id>``.

    ``target`` is ``""`` or a selector that proves success after the reboot (for example
    ``kernel=6.12.9``). ``failure_budget`` is the number of failed machines that is still
    tolerated: one more halts the cycle. ``totals`` is written when the cycle ends. An ``emergency``
    cycle goes outside of windows and past the gates named in ``skip_gates``, and past nothing else.
    ``waves`` tells whether it goes in the policy's waves, ``standing`` that it is the policy's and never ends.
    ``estimated`` is the end that was forecast for it at ``estimated_at``, soon after its start (0: not yet).
    ``reestimated`` are later forecasts, (when, end), each made when half of what was left of the one before was over.
    ``method`` is how its machines are to reboot (``""``: as the policy says). ``request`` is the id of the request that
    started it.
    """

    id: str
    selector: str
    created: float
    target: str = ""
    state: CycleState = CycleState.RUNNING
    by: str = ""
    reason: str = ""
    failure_budget: int = 0
    why: str = ""
    changed: float = 0.0
    totals: dict[str, int] = {}
    emergency: bool = False
    skip_gates: tuple[str, ...] = ()
    epoch: int = 0
    version: int = 1
    write_id: str = ""
    waves: bool = True
    standing: bool = False
    estimated: float = 0.0
    estimated_at: float = 0.0
    reestimated: tuple[tuple[float, float], ...] = ()
    method: str = ""
    request: str = ""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's wish to keep a machine or a whole rack out of service until released.

    Stored at ``holds/machine/<name>`` or ``holds/rack/<rack>``; ``kind`` is that middle word.
    """

    kind: str
    name: str
    since: float
    by: str = ""
    reason: str = ""
    write_id: str = ""


class OpenWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A one-shot window that an operator opened, stored at ``windows/<id>``."""

    id: str
    start: float
    end: float
    by: str = ""
    reason: str = ""
    write_id: str = ""


class Halt(msgspec.Struct, frozen=True):
    """No new machine goes out of service. Any value at ``control/halt`` is one, even bare text."""

    reason: str
    since: float = 0.0


class RackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What we know of our lock on a rack, stored at ``racks/<rack>/record``.

    ``session`` is the id of the Consul session that holds ``racks/<rack>/.lock`` for us, or ``""``.
    """

    rack: str
    session: str = ""
    since: float = 0.0
    epoch: int = 0
    write_id: str = ""


class RackLock(msgspec.Struct, frozen=True):
    """How a rack's lock stands now: ``holder`` is ``free``, ``ours`` or ``other``.

    ``session`` and ``node`` describe the holder so that a person can find them. ``since`` is when it was taken, or
    when this leader first saw it taken by others. ``record_error`` says why our own record of the rack, at
    ``record_key``, cannot be read: then nobody knows whether such a lock is ours.
    """

    holder: str = "free"
    session: str = ""
    node: str = ""
    since: float = 0.0
    record_error: str = ""
    record_key: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """A permit that was refused a moment ago: to which boot_id, why, and when."""

    boot_id: str
    reason: str
    at: float


class Observation(msgspec.Struct, frozen=True):
    """What a machine last told this leader: the report and the leader's time of it.

    ``enabled_at`` is when the result of the present enable directive was first seen (0: not yet);
    the soak is counted from it. ``quiet_for`` is a record that the report is known to change nothing about.
    """

    report: Report
    at: float
    enabled_at: float = 0.0
    quiet_for: Machine | None = None


class Aside(msgspec.Struct, frozen=True):
    """A record that cannot be read; its machine (as ``last`` known) is out of every plan and counts as unavailable."""

    name: str
    rack: str
    error: str
    since: float
    last: Machine | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one decision depends on. Never changed after it was made.

    ``conflicts`` maps names under which two machine-ids report to a sentence that tells which. ``halt`` None means no
    halt. ``leading_since`` is when this leader began (for the settle time); ``clock_skew`` is the leader's clock
    minus the median of its agents' clocks, in seconds. ``asking`` are agents' permit requests that wait for a
    verdict. ``leader_node`` is the machine that the leader itself runs on (rebooted last in its rack). ``faults`` are
    sentences about the store: while there is one, nothing goes out. ``conflict_since`` and ``fault_since`` (by
    sentence) are since when they are known. ``alarms`` are sentences that a person should read and that block
    nothing. ``durations`` are what machines have shown to need (None: nothing yet). ``power`` are the power cycles of
    late, ``controllers`` the addresses (and systems behind them) at which this leader can power-cycle machines,
    ``refusals`` the last refusal of a permit for each machine. ``readings`` are what gates were last seen to say,
    ``gate_since`` since when they say so (none: nobody waits, so they are not read), ``gate_changed`` when the last
    transition of a machine that a gate covers landed: later than the record's own ``since``, which is when it was
    decided. ``failing`` maps machines to why Consul says that they have failed (since ``failing_since``), ``gone``
    those that its catalog no longer has to since when. ``nomad`` is what this leader knows of Nomad (None: it was
    given none), ``fleet`` the prefix that tells this fleet's drains there from others'. ``successors`` are machines
    with another daemon that could lead (None: nobody has looked yet). ``expected`` maps machines that its catalog
    has, and no record is of, to their racks. ``calls`` are the requests of FleetLock clients that wait, by machine.
    """

    now: float
    epoch: int
    policy: Policy
    machines: Mapping[str, Machine]
    observed: Mapping[str, Observation]
    cycles: Mapping[str, Cycle]
    machine_holds: Mapping[str, Hold]
    rack_holds: Mapping[str, Hold]
    windows: tuple[OpenWindow, ...] = ()
    halt: Halt | None = None
    racks: Mapping[str, RackLock] = {}
    asking: Mapping[str, PermitRequest] = {}
    asides: Mapping[str, Aside] = {}
    conflicts: Mapping[str, str] = {}
    conflict_since: Mapping[str, float] = {}
    leading_since: float = 0.0
    clock_skew: float = 0.0
    leader_node: str = ""
    faults: tuple[str, ...] = ()
    fault_since: Mapping[str, float] = {}
    alarms: tuple[str, ...] = ()
    durations: Durations | None = None
    power: Mapping[str, PowerCycle] = {}
    controllers: Mapping[str, tuple[str, str]] = {}
    refusals: Mapping[str, Refusal] = {}
    readings: Mapping[str, Reading] = {}
    gate_since: Mapping[str, Held] = {}
    gate_changed: Mapping[str, float] = {}
    failing: Mapping[str, str] = {}
    failing_since: Mapping[str, float] = {}
    gone: Mapping[str, float] = {}
    expected: Mapping[str, str] = {}
    nomad: NomadSight | None = None
    fleet: str = "rebootd/"
    successors: frozenset[str] | None = frozenset()
    calls: Mapping[str, Call] = {}


class Blocker(msgspec.Struct, frozen=True):
    """One true reason why a machine waits: what blocks, since when, who can clear it.

    ``kind`` is a short stable word (``window``, ``halt``, ``limit``, ``racks``, ``rack-lock``,
    ``hold``, ``unseen``, ``settle``, ``clock``, ``no-rack``, ``conflict``, ``aside``, ``agent``,
    ``soak``, ``cycle``, ``store``, ``quarantine``, ``permit``, ``gate``,
    ``quorum``, ``failing``, ``fleetlock``, ...) for metrics and filters.
    """

    kind: str
    what: str
    since: float
    clears: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened, for the log, the event stream and the ring in the store.

    ``seq`` orders events within the fleet's history. ``frm`` and ``to`` are states (``""`` for
    events that are no transition); ``frm`` is written ``from`` in JSON. ``request`` is the id of the request that an
    operator's event comes from.
    """

    time: float
    machine: str = ""
    rack: str = ""
    frm: str = msgspec.field(default="", name="from")
    to: str = ""
    cause: str = ""
    cycle: str = ""
    epoch: int = 0
    seq: int = 0
    boot_id: str = ""
    kind: str = "transition"
    detail: str = ""
    request: str = ""


__all__ = [
    "SUPERSEDED_BOOTS",
    "Aside",
    "Blocker",
    "Call",
    "CheckResult",
    "Cycle",
    "CycleState",
    "Event",
    "FleetLock",
    "Halt",
    "Hold",
    "Machine",
    "Observation",
    "OpenWindow",
    "Permit",
    "PowerCycle",
    "PowerState",
    "RackLock",
    "RackRecord",
    "Refusal",
    "Report",
    "Retry",
    "Snapshot",
    "State",
    "Tri",
]
