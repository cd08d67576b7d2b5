"""Checked on each decision (S8): every reason says what blocks, since when and who can clear it, and keeps to it."""

from __future__ import annotations

import contextlib
from itertools import compress
from operator import is_not
from typing import TYPE_CHECKING

import msgspec

from rebootd.core.model import Hold
from tests.sim.truth import PREFIX

if TYPE_CHECKING:
    from rebootd.core.decision import Decision
    from rebootd.core.model import Blocker, Machine, Snapshot
    from rebootd.core.policy import Policy
    from tests.sim.truth import Truth

    Said = dict[tuple[str, str], float]
    """Kind and words of each reason: since when."""

MOVES = 0.5
"""Seconds by which a reason's ``since`` may differ from decision to decision."""
FLEETING = frozenset({"next", "window", "window-fit", "limit", "quorum", "racks", "rack-lock"})
"""Kinds of reasons that are about this very moment, or about the present state of machines that are away."""


class ReasonChecks:
    """Beside the other checks of one world."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self._epoch = 0
        self._said: dict[str, Said] = {}
        """Machine: what it was told by the last decision; one object for all who were told the same."""
        self._records: dict[str, Machine | None] = {}
        """Machine: its record then, as that decision left it."""
        self._told: dict[tuple[tuple[str, str, float], ...], Said] = {}
        self._offset = 0.0
        self._policy: Policy | None = None

    def decided(self, snapshot: Snapshot, decision: Decision) -> None:
        """A leader decided. Who was told just the same by the last decision needs no second look."""
        world = self.truth.world
        daemon = world.daemons.get(self.truth.leader_of.get(snapshot.epoch, ""))
        offset = daemon.box.offset if daemon is not None else 0.0
        if snapshot.epoch != self._epoch or offset != self._offset:
            self._epoch, self._offset, self._said, self._records = snapshot.epoch, offset, {}, {}
        # Another policy divides the fleet into other waves, which have ended at other times.
        divided, self._policy = snapshot.policy != self._policy, snapshot.policy
        said, then = self._look(snapshot, decision), self._said
        records = dict(zip(said, map(snapshot.machines.get, said), strict=True))
        # Who moves on by this decision is told where it comes to. People may have edited a record, and its times.
        records.update((s.name, s.after) for s in decision.steps if s.after is not None and s.name in records)
        # Pairs of what is said now and was said before that have been compared for another machine.
        alike: set[tuple[int, int]] = set()
        for name in compress(said, map(is_not, said.values(), map(then.get, said))):
            before, found = then.get(name), said[name]
            if before is None or _stamp(records[name]) != _stamp(self._records[name]):
                # What its agent or its state is about began anew.
                continue
            if (id(found), id(before)) in alike:
                continue
            if not self._moved(name, found, before, divided, snapshot.machines.get(name)):
                alike.add((id(found), id(before)))
        self._said, self._records = said, records

    def _moved(self, name: str, found: Said, before: Said, divided: bool, machine: Machine | None) -> bool:
        """Whether the ``since`` of any reason that stays has moved, which few may."""
        moved_at_all = False
        for key, since in found.items():
            if divided and key[0] == "wave":
                continue
            moved_by = abs(since - before[key]) if key in before else 0.0
            moved_at_all = moved_at_all or moved_by > MOVES
            if moved_by > MOVES and not (_fleeting(*key) or self._of_another(machine, key[0], since)):
                moved = f"since {before[key]:.1f} before and {since:.1f} now"
                self.truth.fail("S8", f"{name} waits, {moved}, for {key[0]}: {key[1]}")
        return moved_at_all

    def _of_another(self, machine: Machine | None, kind: str, since: float) -> bool:
        """Whether people wrote a hold anew, with another time in it and the same words: that is the one that stands."""
        if kind == "halt":
            # Bare text has no time: a server that lags behind shows it after it was taken away, and it begins anew.
            return self.truth.world.servers.trouble.stale is not None
        if machine is None or kind != "hold":
            return False
        entries = self.truth.world.consul.entries
        for key in (f"{PREFIX}holds/machine/{machine.name}", f"{PREFIX}holds/rack/{machine.rack}"):
            if key in entries:
                with contextlib.suppress(msgspec.MsgspecError):
                    if abs(msgspec.json.decode(entries[key].value, type=Hold).since - since) < MOVES:
                        return True
        return False

    def _look(self, snapshot: Snapshot, decision: Decision) -> dict[str, Said]:
        """What each machine is told; the same object as by the last decision where it is just the same."""
        reasons = decision.reasons
        told: dict[tuple[tuple[str, str, float], ...], Said] = {}
        found: dict[int, Said] = {}
        for crowd in {id(each): each for each in reasons.values()}.values():
            self._complete(crowd, decision, snapshot.now)
            key = tuple([(r.kind, r.what, r.since) for r in crowd])
            if key not in told:
                told[key] = self._told.get(key) or {(kind, what): since for kind, what, since in key}
            found[id(crowd)] = told[key]
        self._told = told
        return dict(zip(reasons, map(found.__getitem__, map(id, reasons.values())), strict=True))

    def _complete(self, crowd: tuple[Blocker, ...], decision: Decision, now: float) -> None:
        for r in crowd:
            if r.kind and r.what and r.clears and 0.0 <= r.since <= now + MOVES:
                continue
            name = next(name for name, reasons in decision.reasons.items() if reasons is crowd)
            if not (r.kind and r.what and r.clears):
                self.truth.fail("S8", f"a reason of {name} is incomplete: {r}")
            else:
                self.truth.fail("S8", f"a reason of {name} is since {r.since - now:.0f} s from now: {r}")


def _stamp(record: Machine | None) -> tuple[int, float]:
    """What changes when the record is another one."""
    return (record.version, record.since) if record is not None else (0, 0.0)


def _fleeting(kind: str, what: str) -> bool:
    """Whether a reason is about this very moment; so are gates whose next reading is under way."""
    return kind in FLEETING or (kind == "gate" and ("it is read again" in what or "not been read yet" in what))
