"""One machine in each state, each kind of report that it may send, and the world around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rebootd.core.model import Machine, Observation, State
from rebootd.core.wire import CheckResult, DirectiveKind
from tests.core.worlds import FAILED, OURS, PASSED, cycle, hold, machine, out, result, seen, snapshot

if TYPE_CHECKING:
    from rebootd.core.model import Snapshot

S = State
KIND = {
    S.DRAINING: DirectiveKind.DRAIN,
    S.DRAINED: DirectiveKind.REBOOT,
    S.REBOOTING: DirectiveKind.REBOOT,
}
DONE = {"k1": "rebooted"}


def subject(state: State) -> Machine:
    """The machine of these tests: out for the cycle k1 (in service: done with it), with one earlier boot."""
    facts: dict[str, Any] = {"boots": ("m1-b0",)}
    return machine(outcomes=DONE, **facts) if state is S.IN_SERVICE else out(state, **facts)


OUT = [s for s in State if s is not S.IN_SERVICE]


def other(kind: DirectiveKind) -> DirectiveKind:
    return DirectiveKind.ENABLE if kind is not DirectiveKind.ENABLE else DirectiveKind.DRAIN


def heard(m: Machine, said: str) -> Observation | None:
    """The observation that a kind of report makes."""
    kind = KIND.get(m.state, DirectiveKind.ENABLE)
    step = m.version - 1 if m.state is S.REBOOTING else m.version
    everything = {"boot_check": PASSED, "in_service": True, "by_hand": "no leader", "result": result(m, kind)}
    facts: dict[str, dict[str, Any]] = {
        "nothing new": {},
        "step ok": {"result": result(m, kind, version=step)},
        "step failed": {"result": result(m, kind, False, version=step, detail="a hook failed")},
        "other step failed": {"result": result(m, kind, False, version=step - 2)},
        "other kind failed": {"result": result(m, other(kind), False, version=step)},
        "passed": {"boot_check": PASSED},
        "failed": {"boot_check": FAILED},
        "failed before": {"boot_check": FAILED, "index": m.version - 1},
        "by hand": {"by_hand": "no leader", "in_service": True},
        "by hand before": {"by_hand": "no leader", "in_service": True, "index": m.version - 1},
        "out by its own word": {"in_service": False},
        "out before": {"in_service": False, "index": m.version - 1},
        "new boot": {"boot_id": "m1-b2", "index": 0, "boot_check": CheckResult()},
        "new boot passed": {"boot_id": "m1-b2", "index": 0, "boot_check": PASSED},
        "new boot failed": {"boot_id": "m1-b2", "index": 0, "boot_check": FAILED},
        "new boot by hand": {"boot_id": "m1-b2", "index": 0, "by_hand": "no leader", "in_service": True},
        "superseded boot": {**everything, "boot_id": "m1-b0"},
        "another machine": {**everything, "boot_id": "clone-b1", "machine_id": "id-clone"},
    }
    return None if said == "silence" else seen(m, **facts[said])


def world(m: Machine, said: str, **facts: Any) -> Snapshot:
    observation = heard(m, said)
    holds = [hold("machine", "m1")] if m.state is S.HELD else []
    given: dict[str, Any] = {
        "cycles": [cycle()],
        "holds": holds,
        "racks": {"r1": OURS},
        "observed": {"m1": observation} if observation else {},
        "silent": ["m1"],
    }
    return snapshot(m, **(given | facts))
