"""Checked on each decision (S8): every reason says what blocks, since when and who can clear it, and keeps to it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.model import Hold
from tests.sim.truth import PREFIX

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Blocker, Machine, Snapshot
    from rebootd.core.policy import Policy
    from tests.sim.truth import Truth

MOVES = 0.5
"""Seconds by which a reason's ``since`` may differ from decision to decision."""
FLEETING = frozenset({"next", "window", "window-fit", "limit", "quorum", "racks", "rack-lock"})
"""Kinds of reasons that are about this very moment, or about the present state of machines that are away."""


class ReasonChecks:
    """Beside the other checks of one world."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self._epoch = 0
        self._said: dict[str, tuple[tuple[int, float], dict[tuple[str, str], float]]] = {}
        self._offset = 0.0
        self._policy: Policy | None = None

    def decided(self, snapshot: Snapshot, decision: Decision) -> None:
        """A leader decided."""
        world = self.truth.world
        daemon = world.daemons.get(self.truth.leader_of.get(snapshot.epoch, ""))
        offset = daemon.box.offset if daemon is not None else 0.0
        if snapshot.epoch != self._epoch or offset != self._offset:
            self._epoch, self._offset, self._said = snapshot.epoch, offset, {}
        # Another policy divides the fleet into other waves, which have ended at other times.
        divided, self._policy = snapshot.policy != self._policy, snapshot.policy
        seen: dict[int, dict[tuple[str, str], float]] = {}
        said = {}
        # Pairs of what is said now and was said before that have been compared for another machine.
        alike: set[tuple[int, int]] = set()
        # Who moves on by this decision is told where it comes to. People may have edited a record, and its times.
        moved_on = {s.name: (s.after.version, s.after.since) for s in decision.steps if s.after is not None}
        for name, reasons in decision.reasons.items():
            found = seen.get(id(reasons))
            if found is None:
                found = seen[id(reasons)] = self._look(name, reasons, snapshot.now)
            machine = snapshot.machines.get(name)
            stamp = moved_on.get(name) or ((machine.version, machine.since) if machine is not None else (0, 0.0))
            said[name] = (stamp, found)
            then, before = self._said.get(name, ((-1, 0.0), {}))
            if then != stamp:
                # What its agent or its state is about began anew.
                continue
            if (id(found), id(before)) in alike:
                continue
            moved_at_all = False
            for key, since in found.items():
                if divided and key[0] == "wave":
                    continue
                moved_by = abs(since - before[key]) if key in before else 0.0
                moved_at_all = moved_at_all or moved_by > MOVES
                if moved_by > MOVES and not (_fleeting(*key) or self._of_another_hold(machine, key[0], since)):
                    moved = f"since {before[key]:.1f} before and {since:.1f} now"
                    self.truth.fail("S8", f"{name} waits, {moved}, for {key[0]}: {key[1]}")
            if not moved_at_all:
                alike.add((id(found), id(before)))
        self._said = said

    def _of_another_hold(self, machine: Machine | None, kind: str, since: float) -> bool:
        """Whether people wrote a hold anew, with another time in it and the same words: that is the one that stands."""
        if machine is None or kind != "hold":
            return False
        entries = self.truth.world.consul.entries
        for key in (f"{PREFIX}holds/machine/{machine.name}", f"{PREFIX}holds/rack/{machine.rack}"):
            if key in entries:
                with contextlib.suppress(msgspec.MsgspecError):
                    if abs(msgspec.json.decode(entries[key].value, type=Hold).since - since) < MOVES:
                        return True
        return False

    def _look(self, name: str, reasons: tuple[Blocker, ...], now: float) -> dict[tuple[str, str], float]:
        for r in reasons:
            if not (r.kind and r.what and r.clears):
                self.truth.fail("S8", f"a reason of {name} is incomplete: {r}")
            elif not 0.0 <= r.since <= now + MOVES:
                self.truth.fail("S8", f"a reason of {name} is since {r.since - now:.0f} s from now: {r}")
        return {(r.kind, r.what): r.since for r in reasons}


def _fleeting(kind: str, what: str) -> bool:
    """Whether a reason is about this very moment; so are gates whose next reading is under way."""
    return kind in FLEETING or (kind == "gate" and ("it is read again" in what or "not been read yet" in what))
