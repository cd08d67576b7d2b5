"""Emergency cycles: what they may skip (windows and named gates), what they must say, and what they never skip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.errors import InvalidInput
from rebootd.core.inputs import parse_name
from rebootd.core.operations_inputs import alike

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rebootd.core.model import Cycle
    from rebootd.core.operations_inputs import Because


def check_emergency(
    *, emergency: bool, skip_gates: Sequence[str], because: Because, gates: Iterable[str]
) -> tuple[str, ...]:
    """The gates to skip, each once. ``gates`` are the names that the policy knows.

    Raises InvalidInput for an emergency without a reason, for gates without an emergency, and for unknown gates.
    """
    if not emergency:
        if skip_gates:
            accepted = "no gate: only an emergency cycle may skip gates (emergency, with a reason)"
            raise InvalidInput("skip_gates", ", ".join(skip_gates)[:200], accepted)
        return ()
    if not because.reason:
        raise InvalidInput("reason", because.reason, "a reason: an emergency is recorded with who and why")
    known = sorted(gates)
    for index, name in enumerate(skip_gates):
        parse_name(name, f"skip_gates[{index}]")
        if name not in known:
            accepted = f"a gate of the policy ({', '.join(known[:8]) or 'it has none'}){alike(name, known)}"
            raise InvalidInput(f"skip_gates[{index}]", name, accepted)
    return tuple(dict.fromkeys(skip_gates))


def emergency_note(cycle: Cycle | None) -> str:
    """What every event of an emergency cycle says of it; ``""`` for other cycles and for none."""
    if cycle is None or not cycle.emergency:
        return ""
    gates = f" and the gates {', '.join(cycle.skip_gates)}" if cycle.skip_gates else ""
    return f"EMERGENCY by {cycle.by or 'an operator'}: {cycle.reason}; it skips windows{gates}"
