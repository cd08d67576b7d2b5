"""Builders of records, reports and snapshots, as short as a test can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebootd.core.decision import directive_id
from rebootd.core.model import (
    Cycle,
    CycleState,
    Halt,
    Hold,
    Machine,
    Observation,
    OpenWindow,
    Permit,
    RackLock,
    Snapshot,
    State,
)
from rebootd.core.policy import Policy
from rebootd.core.policy_failures import Failures, Retry
from rebootd.core.wire import CheckResult, DirectiveKind, PermitRequest, Report, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rebootd.core.decision import Decision, MachineStep

NOW = 1_800_000_000.0
"""A Friday, 08:00 UTC."""
AGE = 30.0
"""How long the machines that are built here have been in their state, in seconds."""
OURS = RackLock(holder="ours", session="s-ours")
OTHER = RackLock(holder="other", session="s-other", node="switch-admin", since=NOW - 700)
HALT = Halt(reason="fire drill", since=NOW - 5)
CLOSED = Policy(window_required=True)
ONCE = Policy(failures=Failures(retry=Retry(drains=0, checks=0)))
"""The policy in which nothing that failed is tried again."""
PASSED = CheckResult("passed", "all is well")
FAILED = CheckResult("failed", "unit sshd.service is failed")


def machine(name: str = "m1", rack: str = "r1", state: State = State.IN_SERVICE, **facts: Any) -> Machine:
    """A machine's record; its boot_id is ``<name>-b1`` and its machine-id ``id-<name>``."""
    given: dict[str, Any] = {"since": NOW - AGE, "boot_id": f"{name}-b1", "machine_id": f"id-{name}", "version": 7}
    return Machine(name=name, rack=rack, state=state, **(given | facts))


def cycle(cycle_id: str = "k1", **facts: Any) -> Cycle:
    """A running cycle over every machine."""
    given: dict[str, Any] = {"selector": "*", "created": NOW - 600, "state": CycleState.RUNNING}
    return Cycle(id=cycle_id, **(given | facts))


def out(state: State, name: str = "m1", rack: str = "r1", **facts: Any) -> Machine:
    """A machine that is out of service for the cycle ``k1``, as it got there by the usual way."""
    given: dict[str, Any] = {"cycle": "k1"}
    if state is State.REBOOTING:
        given["permit"] = Permit(f"{name}-b1", "nonce-1", NOW + 30, 1)
    if state in {State.VERIFYING, State.ENABLING}:
        given |= {"booted": True, "planned": True, "boots": (f"{name}-b0",)}
    return machine(name, rack, state, **(given | facts))


def report(m: Machine, **facts: Any) -> Report:
    """What the machine's agent says when nothing is new; ``index`` is the record's version."""
    given: dict[str, Any] = {
        "machine_id": m.machine_id,
        "boot_id": m.boot_id,
        "rack": m.rack,
        "kernel": m.kernel,
        "chassis": m.chassis,
        "labels": m.labels,
        "reboot_required": m.reboot_required,
        "reboot_reasons": m.reboot_reasons,
        "index": m.version,
        "in_service": m.state is State.IN_SERVICE,
        "boot_check": PASSED if m.state is State.IN_SERVICE else CheckResult(),
        "clock": NOW,
    }
    return Report(name=m.name, **(given | facts))


def seen(m: Machine, at: float = NOW - 1, enabled_at: float = 0.0, **facts: Any) -> Observation:
    """What the leader last heard of the machine."""
    return Observation(report=report(m, **facts), at=at, enabled_at=enabled_at)


def result(m: Machine, kind: DirectiveKind, ok: bool = True, *, version: int = 0, detail: str = "") -> Result:
    """The result of the directive that belongs to the machine's step, or to the step ``version``."""
    return Result(directive_id(m.name, version or m.version, kind.value), kind, ok, detail)


def asks(m: Machine, nonce: str = "nonce-1", **facts: Any) -> PermitRequest:
    """The request of the machine's agent for a permit."""
    given: dict[str, Any] = {"machine_id": m.machine_id, "boot_id": m.boot_id}
    return PermitRequest(name=m.name, nonce=nonce, **(given | facts))


def hold(kind: str, name: str, **facts: Any) -> Hold:
    """An operator's hold."""
    given: dict[str, Any] = {"since": NOW - 60, "by": "alice", "reason": "disk swap"}
    return Hold(kind=kind, name=name, **(given | facts))


def window(start: float = NOW - 60, end: float = NOW + 3600, window_id: str = "w1") -> OpenWindow:
    """A window that an operator opened."""
    return OpenWindow(id=window_id, start=start, end=end, by="alice")


def snapshot(
    *machines: Machine,
    observed: Mapping[str, Observation] | None = None,
    cycles: Iterable[Cycle] = (),
    holds: Iterable[Hold] = (),
    asking: Iterable[PermitRequest] = (),
    silent: Iterable[str] = (),
    **facts: Any,
) -> Snapshot:
    """A snapshot in which every machine has just called with nothing new, except the ``silent`` ones."""
    heard = {m.name: seen(m) for m in machines if m.name not in set(silent)} | dict(observed or {})
    given: dict[str, Any] = {"now": NOW, "epoch": 4, "policy": Policy(), "leading_since": NOW - 3600}
    holds = list(holds)
    return Snapshot(
        machines={m.name: m for m in machines},
        observed=heard,
        cycles={c.id: c for c in cycles},
        machine_holds={h.name: h for h in holds if h.kind == "machine"},
        rack_holds={h.name: h for h in holds if h.kind == "rack"},
        asking={r.name: r for r in asking},
        **(given | facts),
    )


def step_of(decision: Decision, name: str = "m1") -> MachineStep | None:
    """The step of one machine in the decision."""
    return next((s for s in decision.steps if s.name == name), None)


def kinds(decision: Decision, name: str = "m1") -> list[str]:
    """The kinds of the reasons why a machine waits."""
    return [b.kind for b in decision.reasons.get(name, ())]
