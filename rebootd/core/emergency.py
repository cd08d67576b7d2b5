"""Emergency cycles: what they may skip (windows and named gates), what they must say, and what they never skip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.errors import InvalidInput
from rebootd.core.inputs import parse_name
from rebootd.core.operations_inputs import alike
from rebootd.core.policy_gates import ConsulQuorum, NomadQuorum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebootd.core.model import Cycle
    from rebootd.core.operations_inputs import Because
    from rebootd.core.policy import Policy


def quorum_gates(policy: Policy) -> frozenset[str]:
    """The gates that nobody may skip: those that guard Consul's and Nomad's own servers (S7)."""
    return frozenset(g.name for g in policy.gates if isinstance(g.test, (ConsulQuorum, NomadQuorum)))


def check_emergency(policy: Policy, *, emergency: bool, skip_gates: Sequence[str], because: Because) -> tuple[str, ...]:
    """The gates to skip, each once.

    Raises InvalidInput for an emergency without a reason, for gates without an emergency, and for gates that the
    policy does not have or that guard a quorum.
    """
    if not emergency:
        if skip_gates:
            accepted = "no gate: only an emergency cycle may skip gates (emergency, with a reason)"
            raise InvalidInput("skip_gates", ", ".join(skip_gates)[:200], accepted)
        return ()
    if not because.reason:
        raise InvalidInput("reason", because.reason, "a reason: an emergency is recorded with who and why")
    known = sorted({g.name for g in policy.gates} - quorum_gates(policy))
    for index, name in enumerate(skip_gates):
        parse_name(name, f"skip_gates[{index}]")
        if name not in known:
            shown = ", ".join(known[:8]) or "it has none"
            accepted = f"a gate of the policy that guards no quorum ({shown}){alike(name, known)}"
            raise InvalidInput(f"skip_gates[{index}]", name, accepted)
    return tuple(dict.fromkeys(skip_gates))


def emergency_note(cycle: Cycle | None) -> str:
    """What every event of an emergency cycle says of it; ``""`` for other cycles and for none."""
    if cycle is None or not cycle.emergency:
        return ""
    gates = f" and the gates {', '.join(cycle.skip_gates)}" if cycle.skip_gates else ""
    return f"EMERGENCY by {cycle.by or 'an operator'}: {cycle.reason}; it skips windows{gates}"
