"""What a new policy changes at once: the decision that is due now, made by it and by the policy in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from rebootd.core.decide import decide

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rebootd.core.decision import Decision, MachineStep
    from rebootd.core.model import Blocker, Snapshot
    from rebootd.core.policy import Policy

    Rows = dict[str, list[str]]

PREFIX = "at once: "
"""What the sentences begin with."""
FREE = "next"
"""The kind of the reason that says that nothing keeps a machine in."""
WORDS = {"never": "windows that are too short", "racks": "the number of open racks", "settle": "a leader that settles"}
"""Kinds of reasons that do not say by themselves what they are."""


def at_once(old: Policy, new: Policy, snapshot: Snapshot) -> Iterator[tuple[str, Iterable[str]]]:
    """Sentences with the machines for which they hold: steps that are taken now, and reasons to wait that come or go.

    Gates that are new or differ have not been read yet, and what Nomad says of other clients is not known: both are
    left out here.
    """
    drains = new.drains if new.drains == old.drains else old.drains
    known = replace(new, gates=tuple(gate for gate in new.gates if gate in old.gates), drains=drains)
    if known == old:
        return
    before, after = decide(replace(snapshot, policy=old)), decide(replace(snapshot, policy=known))
    yield from _steps(before, after)
    yield from _reasons(before.reasons, after.reasons)


def _steps(before: Decision, after: Decision) -> Iterator[tuple[str, Iterable[str]]]:
    was = {step.name: _sentence(step) for step in before.steps}
    rows: Rows = {}
    for step in after.steps:
        said = _sentence(step)
        if was.get(step.name) != said:
            rows.setdefault(said, []).append(step.name)
    yield from sorted(rows.items())


def _sentence(step: MachineStep) -> str:
    if step.after is None:
        return f"{PREFIX}forgotten"
    came = f"{step.before.state.value} -> " if step.before is not None else ""
    return f"{PREFIX}{came}{step.after.state.value} ({step.after.cause})"


def _reasons(
    before: Mapping[str, tuple[Blocker, ...]], after: Mapping[str, tuple[Blocker, ...]]
) -> Iterator[tuple[str, Iterable[str]]]:
    come: Rows = {}
    gone: Rows = {}
    example: dict[str, str] = {}
    # Most machines share their reasons, and are asked about together.
    groups: dict[tuple[int, int], list[str]] = {}
    for name in before.keys() | after.keys():
        groups.setdefault((id(before.get(name)), id(after.get(name))), []).append(name)
    for names in groups.values():
        was, will = _about(before.get(names[0], ())), _about(after.get(names[0], ()))
        for about in will.keys() - was.keys():
            come.setdefault(about, []).extend(names)
            example[about] = will[about] if example.get(about, will[about]) == will[about] else ""
        for about in was.keys() - will.keys():
            gone.setdefault(about, []).extend(names)
    for about in sorted(come):
        yield f"{PREFIX}kept in by {about}{f': {example[about]}' if example[about] else ''}", come[about]
    for about in sorted(gone):
        yield f"{PREFIX}no longer kept in by {about}", gone[about]


def _about(blockers: tuple[Blocker, ...]) -> dict[str, str]:
    """What each blocker is about, and its sentence. Of limits there are several; those of racks are taken as one."""
    found = {}
    for b in blockers:
        if b.kind == "limit":
            about, _, sentence = b.what.partition(": ")
            found["the limit of its rack" if about.startswith("rack ") else about] = sentence
        elif b.kind != FREE:
            found[WORDS.get(b.kind, b.kind)] = b.what
    return found
