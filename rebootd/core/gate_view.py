"""All gates and quorum groups of one snapshot, prepared so that ten thousand machines are judged quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.gates import Instances, Servers, Verdict, Word, clears, judge
from rebootd.core.model import Blocker, State
from rebootd.core.quorums import Group
from rebootd.core.roll import Roll

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rebootd.core.gates import Reading
    from rebootd.core.model import Machine, Snapshot
    from rebootd.core.policy_gates import Gate

    Key = int | str
    Apart = tuple[Key | None, ...]


class _Judged:
    """One gate in one snapshot. Machines that it treats alike share a key, and so a verdict and a blocker."""

    def __init__(self, gate: Gate, snapshot: Snapshot, away: Mapping[str, float]) -> None:
        self.gate = gate
        self.changed = snapshot.gate_changed.get(gate.name, 0.0)
        self._now = snapshot.now
        self._away = away
        self._held = snapshot.gate_since.get(gate.name)
        reading = snapshot.readings.get(gate.name)
        self.reading: Reading | None = reading if reading is not None and reading.gate == gate else None
        self._verdicts: dict[Key, Verdict] = {}
        self._blockers: dict[Key, Blocker | None] = {}
        self.worst: Verdict | None = None
        value = self.reading.value if self.reading is not None else None
        self._passing: Mapping[str, int] = value.passing if isinstance(value, Instances) else {}
        self._members: Mapping[str, str] = value.members if isinstance(value, Servers) else {}
        self.nodes = value.nodes if isinstance(value, Instances) and gate.covers is None and value.total else None
        self.named = (self.nodes or frozenset()) | self._passing.keys() | self._members.keys()
        """Machines that it may treat each in its own way."""

    def covers(self, machine: Machine) -> bool:
        """Whether the machine must pass this gate."""
        if self.gate.covers is not None:
            return self.gate.covers.matches(machine)
        return self.nodes is None or machine.name in self.nodes

    def about(self, machine: Machine) -> bool:
        """Whether what it read is of the machine, too: it may count servers or instances that it does not cover."""
        return machine.name in self.named or self.covers(machine)

    def touched(self, machines: Iterable[Machine], leading_since: float) -> None:
        """Notes the last transition among the machines it covers, or counts."""
        for m in machines:
            # A stamp from the future was written by a leader whose clock was ahead: it happened before this one led.
            at = m.since if m.since <= self._now else leading_since
            if at > self.changed and self.about(m):
                self.changed = at

    def left(self) -> None:
        """A machine that it covers or counts is taken out by this very decision: what was read is from before."""
        self.changed = self._now
        self._verdicts.clear()
        self._blockers.clear()

    def _key(self, name: str) -> Key:
        if name in self._members:
            return name
        return self._passing.get(name, 0) if name not in self._away else 0

    def apart(self, name: str) -> Key | None:
        """What tells a machine apart from others for this gate by its name; None: nothing."""
        return self._key(name) if name in self.named else None

    def verdict(self, machine: Machine) -> Verdict:
        """What it says of a machine that it covers."""
        key = self._key(machine.name)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = self._judge(machine.name)
        return verdict

    def blocker(self, machine: Machine) -> Blocker | None:
        """The blocker that it is for a machine that it covers; None when it passes."""
        key = self._key(machine.name)
        if key not in self._blockers:
            verdict = self.verdict(machine)
            self._blockers[key] = self._blocker(verdict) if verdict.word is not Word.PASS else None
            self.worst = verdict if self.worst is None else max(self.worst, verdict, key=_gravity)
        return self._blockers[key]

    def _judge(self, name: str) -> Verdict:
        return judge(self.gate, self.reading, now=self._now, changed=self.changed, away=self._away, leaving=name)

    def _blocker(self, verdict: Verdict) -> Blocker:
        return Blocker(
            kind="gate",
            what=f"gate {self.gate.name} {_SAYS[verdict.word]}: {verdict.what}",
            since=self._shut(verdict),
            clears=clears(self.gate, verdict.word),
        )

    def _shut(self, verdict: Verdict) -> float:
        """Since when it has kept machines in, whatever it said meanwhile."""
        if self._held is not None and self._held.shut:
            return self._held.shut
        return self.changed if verdict.renewing else self._now

    def since(self, verdict: Verdict) -> float:
        """Since when it has said so, as far as this leader knows."""
        held = self._held
        if held is None:
            return self._now
        return held.since if held.word == verdict.word.value else held.shut or self._now

    @property
    def open_to_all(self) -> bool:
        """Whether no machine at all can be blocked by it, told without asking for each."""
        if self._judge("").word is not Word.PASS:
            return False
        # All servers are well, then: what is said of one that leaves is said of each.
        if self._members and self._judge(next(iter(self._members))).word is not Word.PASS:
            return False
        # Who is away takes nothing along any more: only one in service can be the heaviest loss.
        here = (item for item in self._passing.items() if item[0] not in self._away)
        heaviest = max(here, key=lambda item: item[1], default=("", 0))[0]
        return not heaviest or self._judge(heaviest).word is Word.PASS

    def summary(self) -> Verdict:
        """The gravest verdict on a machine that waits, or else on any that it knows."""
        if self.worst is None:
            return self._judge("")
        return replace(self.worst, kept=self.worst.word is not Word.PASS)


def _gravity(verdict: Verdict) -> tuple[int, str]:
    """Of verdicts that are equally grave the same one is shown, in whichever order machines were asked about."""
    return _RANK[verdict.word], verdict.what


def _names(machines: Iterable[Machine]) -> frozenset[str]:
    return frozenset([m.name for m in machines])


_RANK = {Word.PASS: 0, Word.UNKNOWN: 1, Word.BLOCK: 2}
_SAYS = {Word.PASS: "passes", Word.UNKNOWN: "is unknown, which is not safe", Word.BLOCK: "blocks"}


class Safeguards:
    """Gates and quorum groups: for each machine the blockers that they are, shared between machines.

    ``any`` tells whether anybody at all is blocked; when not, nothing else need be asked.
    """

    def __init__(self, snapshot: Snapshot, away: Mapping[str, float], roll: Roll | None = None) -> None:
        self._snapshot = snapshot
        self.gates = [_Judged(g, snapshot, away) for g in snapshot.policy.gates]
        quorums = snapshot.policy.quorums
        those = (roll or Roll(snapshot)).those if quorums else None
        self.groups = [Group(q, _names(those(q.selector.matches)), snapshot, away) for q in quorums] if those else []
        oldest = min((g.reading.at for g in self.gates if g.reading is not None), default=None)
        if oldest is not None:
            recent = [m for m in snapshot.machines.values() if m.since >= oldest]
            for gate in self.gates:
                gate.touched(recent, snapshot.leading_since)
        self._sort()

    def _sort(self) -> None:
        """Keeps what is shut for somebody, and what tells those apart that it treats differently."""
        self._found: dict[object, tuple[tuple[Blocker, ...], bool]] = {}
        self._shut = [g for g in self.gates if not g.open_to_all]
        self._groups = [g for g in self.groups if g.shut]
        self._matchers = [g.gate.covers.matches for g in self._shut if g.gate.covers is not None]
        self._by_name = [g for g in self._shut if g.named]
        self._members = [g.members for g in self._groups]
        self.any = bool(self._shut or self._groups)

    def mark(self, machine: Machine) -> tuple[object, ...]:
        """What tells machines in service apart here: equal marks, equal blockers. Cheap, for the long lists."""
        name = machine.name
        return (
            *[matches(machine) for matches in self._matchers],
            *[name in members for members in self._members],
            *[gate.apart(name) for gate in self._by_name],
        )

    def apart(self) -> dict[str, Apart]:
        """What tells machines in service apart by name alone; who is missing is like all others that are."""
        named: frozenset[str] = frozenset().union(*(gate.named for gate in self._by_name))
        return {name: tuple([gate.apart(name) for gate in self._by_name]) for name in named}

    def blockers(self, machine: Machine, skip: frozenset[str] = frozenset()) -> tuple[Blocker, ...]:
        """Every gate and quorum group that keeps the machine in. ``skip`` names gates that are not asked."""
        return self._find(machine, skip)[0] if self.any else ()

    def renewing(self, machine: Machine, skip: frozenset[str] = frozenset()) -> bool:
        """Whether all that keeps it in is a reading that is being renewed this very moment."""
        return self.any and self._find(machine, skip)[1]

    def shuts(self, machine: Machine, skip: frozenset[str] = frozenset()) -> bool:
        """Whether something other than a renewal keeps it in."""
        if not self.any:
            return False
        blockers, renewing = self._find(machine, skip)
        return bool(blockers) and not renewing

    def _find(self, machine: Machine, skip: frozenset[str]) -> tuple[tuple[Blocker, ...], bool]:
        key = (machine.name if machine.state is not State.IN_SERVICE else self.mark(machine), skip)
        found = self._found.get(key)
        if found is None:
            blockers = [b for group in self._groups if (b := group.blocker(machine)) is not None]
            renewing = not blockers
            for gate in self._shut:
                blocker = gate.blocker(machine) if gate.covers(machine) and gate.gate.name not in skip else None
                if blocker is not None:
                    blockers.append(blocker)
                    renewing = renewing and gate.verdict(machine).renewing
            found = self._found[key] = tuple(blockers), renewing and bool(blockers)
        return found

    def turned(self, machine: Machine, patience: float, skip: frozenset[str] = frozenset()) -> Blocker | None:
        """Why a drained machine should come back: a gate blocks, or has been unknown for ``patience`` seconds."""
        for group in self._groups:
            blocker = group.blocker(machine)
            if blocker is not None:
                return blocker
        for gate in self._shut:
            if gate.gate.name in skip or not gate.covers(machine):
                continue
            verdict, blocker = gate.verdict(machine), gate.blocker(machine)
            lasted = self._snapshot.now - gate.since(verdict)
            if verdict.word is Word.BLOCK or (verdict.word is Word.UNKNOWN and lasted > patience):
                return blocker
        return None

    def shown(self, machine: Machine) -> None:
        """A step of this decision tells what the machine is now: perhaps a member of other groups than before."""
        changed = [group for group in self.groups if group.shown(machine)]
        if changed:
            self._sort()

    def left(self, machine: Machine) -> None:
        """The machine is taken out by this decision, or it shows that it is out."""
        changed = False
        for gate in self.gates:
            if gate.changed < self._snapshot.now and gate.about(machine):
                gate.left()
                changed = True
        for group in self.groups:
            changed = group.left(machine) or changed
        if changed:
            self._sort()

    def report(self) -> dict[str, Verdict]:
        """What each gate says, gravest first among the machines that were asked about."""
        return {g.gate.name: g.summary() for g in self.gates}
