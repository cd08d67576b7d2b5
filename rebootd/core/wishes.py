"""Who wants to go out, for which cycle or hold, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.model import State
from rebootd.core.selectors import parse_selector
from rebootd.core.standing import wants

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from rebootd.core.model import Cycle, Hold, Machine
    from rebootd.core.roll import Crowd, Mark
    from rebootd.core.view import View

Wish = tuple["Machine", "Cycle | None", "Hold | None"]
"""A machine in service, and the cycle or the hold that wants it out."""


class Wanting:
    """Who wants to go out, by rack.

    ``wishes`` are all of them. The same again: ``crowds`` of machines that the same cycle or hold wants, and the
    ``single`` machines that are in no crowd (see :mod:`rebootd.core.roll`).
    """

    def __init__(self) -> None:
        self.wishes: dict[str, list[Wish]] = {}
        self.crowds: dict[str, list[tuple[Crowd, Cycle | None, Hold | None]]] = {}
        self.single: dict[str, list[Wish]] = {}

    def samples(self, rack: str) -> list[Wish]:
        """Wishes of the rack that tell since when somebody there waits, whichever machine is not asked."""
        wishes = list(self.single[rack])
        for crowd, cycle, hold in self.crowds[rack]:
            # But for a standing cycle a crowd waits since one time, and of two machines one is asked.
            some = crowd.machines if cycle is not None and cycle.standing else crowd.machines[:2]
            wishes += [(m, cycle, hold) for m in some]
        return wishes


class Wishes:
    """Made once per decision."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._compiled = [_compiled(view, cycle) for cycle in view.cycles]

    def gathered(self, settled: Collection[str]) -> Wanting:
        """Every wish, except of machines that are ``settled`` by a step of this decision: nobody in a crowd is."""
        out, rack_holds = Wanting(), self._view.snapshot.rack_holds
        # Waves part a crowd: who is late for the first cycle may be wanted by the next one.
        parted = len(self._compiled) > 1 and any(plan.late for plan in self._view.pace.plans.values())
        alike: dict[tuple[Mark, str], list[Wish]] = {}
        for rack, here in self._view.roll.racks.items():
            hold = rack_holds.get(rack)
            single, crowds = self.among(here.others, settled, hold), []
            for mark, crowd in here.crowds.items():
                if parted:
                    single += self.among(crowd.machines, settled, hold)
                    continue
                key = (mark, rack if hold is not None else "")
                wish = alike.get(key)
                if wish is None:
                    wish = alike[key] = self.among((crowd.first,), settled, hold)
                crowds += [(crowd, cycle, held) for _, cycle, held in wish]
            out.single[rack], out.crowds[rack] = single, crowds
            wishes = single + [(m, cycle, held) for crowd, cycle, held in crowds for m in crowd.machines]
            if wishes:
                out.wishes[rack] = wishes
        return out

    def by_rack(self, settled: Collection[str]) -> dict[str, list[Wish]]:
        """Every wish, by rack, except of machines that are ``settled`` by a step of this decision."""
        members, rack_holds = self._view.capacity.members, self._view.snapshot.rack_holds
        out: dict[str, list[Wish]] = {}
        for rack, here in members.items():
            found = self.among(here, settled, rack_holds.get(rack))
            if found:
                out[rack] = found
        return out

    def among(self, machines: Iterable[Machine], settled: Collection[str], rack_hold: Hold | None) -> list[Wish]:
        """The wishes of machines of one rack: of the first cycle that runs and whose wave has come, or else of one."""
        view = self._view
        machine_holds, in_service = view.snapshot.machine_holds, State.IN_SERVICE
        late = {c: plan.late for c, plan in view.pace.plans.items() if plan.late}
        out: list[Wish] = []
        for m in machines:
            if m.state is not in_service or m.name in settled:
                continue
            hold = machine_holds.get(m.name) or rack_hold
            if hold is not None:
                out.append((m, None, hold))
                continue
            outcomes = m.outcomes
            later: Cycle | None = None
            paused: Cycle | None = None
            for cycle, key, matches, reached, runs in self._compiled:
                if key in outcomes or not matches(m) or (reached is not None and reached(m)):
                    continue
                if not runs:
                    paused = paused or cycle
                elif late and m.name in late.get(cycle.id, ()):
                    later = later or cycle
                else:
                    out.append((m, cycle, None))
                    break
            else:
                if later is not None or paused is not None:
                    out.append((m, later or paused, None))
        return out


def _compiled(
    view: View, cycle: Cycle
) -> tuple[Cycle, str, Callable[[Machine], bool], Callable[[Machine], bool] | None, bool]:
    """A cycle, the outcome that ends it for a machine, whom it selects, who is at its target, and whether it runs."""
    runs = view.runs(cycle)
    if cycle.standing:
        # It is never over for a machine; no id is empty, so no outcome is under that key.
        return cycle, "", wants(view.snapshot.policy, cycle, view.now), None, runs
    reached = parse_selector(cycle.target, "target").matches if cycle.target else None
    return cycle, cycle.id, parse_selector(cycle.selector).matches, reached, runs


def waiting_since(wish: Wish) -> float:
    """Since when somebody wants this machine out."""
    machine, cycle, hold = wish
    if hold is not None:
        return hold.since
    if cycle is None:
        return 0.0
    return machine.required_since if cycle.standing else cycle.created


def rack_order(view: View, racks: Iterable[str], wishes: Callable[[str], list[Wish]]) -> list[str]:
    """``racks`` in the order in which they go; ``wishes`` tells those of a rack that its place depends on.

    Racks that are open, then the listed ones, then by oldest wish and the policy's order; the leader's own last.
    """
    ranks, opened = view.pace.ranks, view.capacity.open
    own = view.snapshot.machines.get(view.snapshot.leader_node)
    own_rack = own.rack if own is not None else ""
    behind = len(view.snapshot.policy.rack_order.listed)
    alike = len(view.cycles) == 1 and not view.cycles[0].standing and not view.holds
    racks = list(racks)
    oldest = {} if alike else {rack: _oldest(view, wishes(rack)) for rack in racks}

    def key(rack: str) -> tuple[bool, bool, int, float, tuple[int, int, str]]:
        rank = ranks[rack]
        return (rack not in opened, rack == own_rack and rank[0] == behind, rank[0], oldest.get(rack, 0.0), rank)

    return sorted(racks, key=key)


def _oldest(view: View, wishes: list[Wish]) -> float:
    own = view.snapshot.leader_node
    if view.ordered:
        return waiting_since(wishes[0]) if wishes and wishes[0][0].name != own else 0.0
    return min((waiting_since(wish) for wish in wishes if wish[0].name != own), default=0.0)


def machine_order(view: View) -> Callable[[Wish], tuple[bool, float, str]]:
    """In a rack, those that wait longest first; the leader's own host last."""
    own = view.snapshot.leader_node
    return lambda wish: (wish[0].name == own, waiting_since(wish), wish[0].name)
