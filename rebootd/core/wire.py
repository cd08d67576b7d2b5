"""What goes over the wire between agent and coordinator: JSON, versioned under ``/v1``.

``POST /v1/machines/<name>/report`` takes a :class:`Report` and answers an :class:`Answer`. It both
reports and waits: while the record's version equals ``index``, the answer is delayed up to ``wait``
seconds (blocking-query style, as Consul and Nomad do it).

``POST /v1/machines/<name>/permit`` takes a :class:`PermitRequest` and answers a
:class:`PermitAnswer`. Errors are :class:`Problem` with a 4xx or 5xx status.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Tri(StrEnum):
    """A fact that may not be known. Unknown never counts as yes."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class CheckResult(msgspec.Struct, frozen=True):
    """What the agent's own checks after this boot say: ``status`` pending, passed or failed."""

    status: str = "pending"
    detail: str = ""


class DirectiveKind(StrEnum):
    """What a coordinator can ask of an agent."""

    DRAIN = "drain"
    REBOOT = "reboot"
    ENABLE = "enable"


class Directive(msgspec.Struct, frozen=True):
    """What the coordinator asks of one agent now.

    ``id`` is stable for one step of one machine (``<name>/<version>/<kind>``), whichever leader
    says it. The agent obeys only if ``boot_id`` is its own and ``epoch`` is not below the highest
    it has seen. ``method`` is how to reboot (``reboot``, ``kexec``, ``soft-reboot``, ``custom``), ``""`` as the host
    is set up to. ``request`` is the id of the request that its cycle was started with, for the logs.
    """

    id: str
    kind: DirectiveKind
    epoch: int
    version: int
    boot_id: str
    cycle: str = ""
    method: str = ""
    request: str = ""


class Result(msgspec.Struct, frozen=True):
    """How the last directive ended. Repeated in every report until another directive follows."""

    id: str
    kind: DirectiveKind
    ok: bool
    detail: str = ""
    epoch: int = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine says of itself. ``clock`` is its own time, seconds since the Unix epoch.

    ``in_service`` is the agent's own view for this boot (has an enable been carried out, or does
    no mark of ours stand); ``by_hand`` is the reason given to a local break-glass enable during
    this boot, or ``""``. ``index`` and ``wait`` (seconds) make the request wait for news.
    ``announced`` is the shutdown that the host is about to go through by somebody else's hand (``reboot``,
    ``poweroff``, ...), or ``""``. ``last_shutdown`` is how the boot before this one ended, as far as its agent saw it:
    ``permitted``, ``announced``, ``orderly`` (stopped by its service manager, unannounced), ``crash`` (the kernel left
    a trace), ``none`` (nothing was seen: power loss, a crash or reset without a trace), ``""`` (nothing is known).
    ``doing`` says how far its directive is, for people.
    """

    name: str
    machine_id: str
    boot_id: str
    rack: str = ""
    chassis: str = ""
    kernel: str = ""
    labels: dict[str, str] = {}
    reboot_required: Tri = Tri.UNKNOWN
    reboot_reasons: tuple[str, ...] = ()
    boot_check: CheckResult = CheckResult()
    result: Result | None = None
    in_service: bool = False
    by_hand: str = ""
    announced: str = ""
    doing: str = ""
    last_shutdown: str = ""
    clock: float = 0.0
    agent: str = ""
    index: int = 0
    wait: float = 0.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the coordinator says: the directive (None: nothing to do), and where the machine stands.

    ``index`` is to be sent back with the next report, ``wait`` is the longest wait (seconds) that
    will be granted next. ``waiting_for`` says in a sentence what the machine waits for, if it does.
    """

    index: int
    epoch: int
    state: str
    directive: Directive | None = None
    wait: float = 60.0
    waiting_for: str = ""


class PermitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's question just before it reboots. ``nonce`` is journaled before it is sent."""

    name: str
    machine_id: str
    boot_id: str
    nonce: str
    directive: str = ""
    epoch: int = 0


class PermitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Yes or no. ``valid_for`` counts in seconds of CLOCK_BOOTTIME from *sending* the request."""

    granted: bool
    nonce: str
    boot_id: str
    epoch: int
    valid_for: float = 0.0
    reason: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request was not done. ``field``, ``value`` and ``accepted`` are set for bad input."""

    error: str
    field: str = ""
    value: str = ""
    accepted: str = ""
