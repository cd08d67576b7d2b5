"""The JSON shapes of the operator API, shared by both sides and described in docs/api.md.

Times are seconds since 1970 on the leader's clock; every answer that shows ages carries ``now``.
"""

from __future__ import annotations

import msgspec

from rebootd.core.counts import Counts
from rebootd.core.forecast_told import Estimate, PastError
from rebootd.core.model import Blocker, Cycle, Event, Halt, Hold, Machine
from rebootd.core.policy_told import PolicyDiff
from rebootd.core.wire import Report

# ---------------------------------------------------------------------------------------------- requests


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that only says who and why. ``force`` is looked at by forget and unlock."""

    by: str = ""
    reason: str = ""
    force: bool = False


class CycleAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cycle to start. ``failure_budget`` is a number, per cent (``"5%"``), or null for the policy's.

    ``emergency`` (with a reason) skips windows and the gates in ``skip_gates``, and nothing else. ``method`` is how its
    machines reboot (``""``: as the policy or each host says).
    """

    id: str
    selector: str
    target: str = ""
    failure_budget: int | str | None = None
    by: str = ""
    reason: str = ""
    allow_empty: bool = False
    waves: bool = True
    emergency: bool = False
    skip_gates: tuple[str, ...] = ()
    method: str = ""


class PlanAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cycle that is only thought of. ``waves`` tells whether it would go in the policy's waves."""

    selector: str
    target: str = ""
    waves: bool = True
    emergency: bool = False
    skip_gates: tuple[str, ...] = ()


class WindowAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A window to open. ``start`` null is now; ``duration`` is seconds or text such as ``"2h30m"``."""

    duration: float | str
    id: str = ""
    start: float | str | None = None
    by: str = ""
    reason: str = ""


# ----------------------------------------------------------------------------------------------- answers


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a change came to: a sentence, the events it left, and the id of what it made, if anything."""

    done: str
    id: str = ""
    events: tuple[Event, ...] = ()


class CycleView(msgspec.Struct, frozen=True, kw_only=True):
    """A cycle and how far it is, as a whole and by rack."""

    cycle: Cycle
    counts: Counts
    racks: dict[str, Counts] = {}


class CycleShow(msgspec.Struct, frozen=True, kw_only=True):
    """One cycle with everything to follow it by. ``machines`` maps those that are out for it to their
    states, ``failed`` and ``skipped`` map names to what is remembered; ``blockers`` says why machines
    wait, most frequent first. ``estimate`` is null until there is one, ``errors`` are those of past estimates.
    """

    now: float
    cycle: Cycle
    counts: Counts
    racks: dict[str, Counts] = {}
    machines: dict[str, str] = {}
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    blockers: tuple[Reason, ...] = ()
    estimate: Estimate | None = None
    errors: tuple[PastError, ...] = ()


class Reason(msgspec.Struct, frozen=True):
    """One blocker and how many machines wait for it."""

    blocker: Blocker
    machines: int


class Cycles(msgspec.Struct, frozen=True, kw_only=True):
    """All cycles that are remembered, newest first."""

    now: float
    cycles: tuple[CycleView, ...]


class MachineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One machine in a list. ``state`` is a state, or ``unreadable`` for a record that cannot be read.

    ``seen`` is when this leader last heard of it (null: not yet). ``waiting`` is its first blocker.
    """

    name: str
    rack: str
    state: str
    since: float
    cycle: str = ""
    kernel: str = ""
    labels: dict[str, str] = {}
    reboot_required: str = "unknown"
    seen: float | None = None
    held: bool = False
    waiting: str = ""


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """Machines sorted by rack and name, and how many there are without the filters."""

    now: float
    known: int
    machines: tuple[MachineRow, ...]


class MachineShow(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one machine. ``record`` null: it cannot be read, and ``problem`` says why. A machine with a
    FleetLock client has no ``report``; ``seen`` is about when its client called.
    """

    now: float
    name: str
    record: Machine | None
    report: Report | None = None
    seen: float | None = None
    hold: Hold | None = None
    blockers: tuple[Blocker, ...] = ()
    problem: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a machine is where it is. ``report_age`` is seconds since its last report (null: none yet).

    ``says`` is a sentence for a machine that waits for nothing. ``deadline`` is when its state is given up (null:
    never). ``flag`` says that a reboot did not change what was required. ``wanted`` are the cycles that want it to go
    and have not come to it.
    """

    now: float
    machine: str
    state: str
    since: float
    rack: str
    cycle: str = ""
    cause: str = ""
    report_age: float | None = None
    reboot_required: str = "unknown"
    reboot_reasons: tuple[str, ...] = ()
    blockers: tuple[Blocker, ...] = ()
    says: str = ""
    deadline: float | None = None
    flag: str = ""
    wanted: tuple[str, ...] = ()


class Holds(msgspec.Struct, frozen=True, kw_only=True):
    """All holds, racks' first."""

    now: float
    holds: tuple[Hold, ...]


class WindowRow(msgspec.Struct, frozen=True, kw_only=True):
    """One window. ``kind`` is ``once`` (opened by an operator) or ``calendar`` (the policy's).

    ``start`` and ``end`` are of the present or next opening, or null when there is none.
    """

    id: str
    kind: str
    open: bool
    start: float | None = None
    end: float | None = None
    rule: str = ""
    by: str = ""
    reason: str = ""


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """All windows. ``allowed`` tells whether machines may go out now as far as windows are concerned;
    ``until`` when that ends, ``next`` when it begins again (null: not known). ``required`` is the policy's.
    """

    now: float
    allowed: bool
    required: bool
    until: float | None = None
    next: float | None = None
    windows: tuple[WindowRow, ...] = ()


class RackRow(msgspec.Struct, frozen=True, kw_only=True):
    """One rack. ``open`` says in a sentence why it counts as open (``""``: closed).

    ``lock`` is ``free``, ``ours`` or ``other``; ``holder`` names the session or node of another.
    """

    rack: str
    machines: int
    states: dict[str, int]
    unavailable: int
    allowed: int
    open: str = ""
    lock: str = "free"
    holder: str = ""
    hold: Hold | None = None


class Racks(msgspec.Struct, frozen=True, kw_only=True):
    """All racks by name, and how many may be open at once."""

    now: float
    open_racks: int
    racks: tuple[RackRow, ...]


class QuarantineRow(msgspec.Struct, frozen=True, kw_only=True):
    """A quarantined machine: since when, why, and its evidence (hook output, failed check)."""

    name: str
    rack: str
    since: float
    cause: str
    cycle: str = ""
    evidence: str = ""
    seen: float | None = None


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """All quarantined machines, those that wait longest first."""

    now: float
    machines: tuple[QuarantineRow, ...]


class PolicyShow(msgspec.Struct, frozen=True, kw_only=True):
    """The policy as stored (``text`` "" when none is: the defaults hold) and as it is in force."""

    text: str
    index: int
    effective: str


class PolicyApplied(msgspec.Struct, frozen=True, kw_only=True):
    """What applying a policy came to."""

    done: str
    diff: PolicyDiff
    events: tuple[Event, ...] = ()


class GateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One gate. ``verdict`` is ``pass``, ``block``, ``unknown``, or ``idle`` (nobody waits); ``about`` is its question.

    ``since`` is since when it says so, ``shut`` since when it has kept machines in (null: it does not), ``read`` when
    the latest reading began (null: none yet). ``overdue``: shut for longer than ``max_block`` seconds.
    """

    name: str
    kind: str
    about: str
    verdict: str
    why: str
    covers: str = ""
    since: float | None = None
    shut: float | None = None
    read: float | None = None
    max_age: float = 0.0
    max_block: float = 0.0
    overdue: bool = False


class QuorumRow(msgspec.Struct, frozen=True, kw_only=True):
    """One quorum group: how many members it has, which are unavailable, and why none may go (``""``: one may)."""

    name: str
    selector: str
    allow_outage: bool
    members: int
    unavailable: tuple[str, ...] = ()
    blocked: str = ""


class Gates(msgspec.Struct, frozen=True, kw_only=True):
    """All gates and quorum groups, in the order of the policy."""

    now: float
    gates: tuple[GateRow, ...]
    quorums: tuple[QuorumRow, ...] = ()


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person must look at. ``kind``: aside, conflict, store, gate, clock, quarantine, cycle, breaker,
    power, power-loss, flag.
    """

    kind: str
    what: str
    since: float = 0.0
    machine: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet on one screen. ``daemon`` describes who answers, which is the leader.

    ``unheard`` counts machines that the leader has not heard of, or not for too long.
    """

    now: float
    daemon: dict[str, str | int | float | bool | None]
    epoch: int
    leading_since: float
    halt: Halt | None
    windows: Windows
    machines: dict[str, int]
    known: int
    unheard: int
    racks: tuple[RackRow, ...]
    open_racks: int
    holds: int
    cycles: tuple[CycleView, ...]
    alarms: tuple[Alarm, ...]
