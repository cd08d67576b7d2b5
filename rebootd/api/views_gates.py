"""What operators are shown of gates and quorum groups. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.api import shapes
from rebootd.core.gates import overdue
from rebootd.core.policy_gates import describe
from rebootd.core.view import View

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Snapshot


def gates(snapshot: Snapshot, decision: Decision) -> shapes.Gates:
    """Every gate with what it says now, and every quorum group."""
    late = overdue(snapshot)
    rows = []
    for gate in snapshot.policy.gates:
        held, reading = snapshot.gate_since.get(gate.name), snapshot.readings.get(gate.name)
        verdict = decision.gates.get(gate.name)
        rows.append(
            shapes.GateRow(
                name=gate.name,
                kind=gate.test.kind,
                about=describe(gate.test),
                covers=gate.covers.text if gate.covers is not None else "",
                verdict=verdict.word.value if verdict is not None and held is not None else "idle",
                why=verdict.what if verdict is not None and held is not None else "nobody waits, so it is not read",
                since=held.since if held is not None else None,
                shut=held.shut if held is not None and held.shut else None,
                read=reading.at if reading is not None and reading.gate == gate else None,
                max_age=gate.max_age,
                max_block=gate.max_block,
                overdue=gate.name in late,
            )
        )
    view = View(snapshot)
    away = view.capacity.lost
    return shapes.Gates(
        now=snapshot.now,
        gates=tuple(rows),
        quorums=tuple(
            shapes.QuorumRow(
                name=g.quorum.name,
                selector=g.quorum.selector.text,
                allow_outage=g.quorum.allow_outage,
                members=len(g.members),
                unavailable=tuple(sorted(g.members & away.keys())),
                blocked=g.why(),
            )
            for g in view.safeguards.groups
        ),
    )
