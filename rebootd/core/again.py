"""Whether what a decision changes can lead to more at once, so that it is worth while to look again when it has landed.

Most steps only take one machine further on its usual way, to where it waits for its agent: nobody else can go for that.
What gives something free is another matter: a machine that is back, is set aside or turns back, a rack's lock, a cycle
that ended or halted.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from rebootd.core.model import State

if TYPE_CHECKING:
    from rebootd.core.decision import Decision, MachineStep

_WAY = (State.DRAINING, State.DRAINED, State.REBOOTING, State.VERIFYING, State.ENABLING)
_ONWARD = frozenset({(State.IN_SERVICE, State.DRAINING), *pairwise(_WAY), (State.REBOOTING, State.ENABLING)})


def leads_on(decision: Decision, *, nomad: bool = False) -> bool:
    """Whether another decision may find something to do as soon as this one's changes are in the store.

    ``nomad`` is whether machines are drained at Nomad, too, which begins when they have set out. False is certain as
    long as nobody says anything new and no moment comes that the clock alone brings.
    """
    if decision.locks or decision.unlocks or decision.cycles or decision.power or decision.prune:
        return True
    return any(_leads_on(step, nomad=nomad) for step in decision.steps)


def _leads_on(step: MachineStep, *, nomad: bool) -> bool:
    before, after = step.before, step.after
    if before is None or after is None or step.lock or step.unlock:
        return True
    if (before.state, after.state) not in _ONWARD or (nomad and after.state is State.DRAINING):
        return True
    if (before.kernel, before.labels, before.chassis) != (after.kernel, after.labels, after.chassis):
        # What a selector looks at.
        return True
    # An outcome may end a cycle or be one failure too many. A good one ends none that the machine is still out for.
    known, own = before.outcomes, after.cycle
    new = {cycle for cycle, outcome in after.outcomes.items() if known.get(cycle) != outcome}
    failed = after.outcomes.get(own, "").startswith("failed")
    return bool(new) and (failed or new != {own})
