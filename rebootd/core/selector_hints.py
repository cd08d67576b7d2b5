"""What a selector that matches nothing may have meant: known keys and values near its terms."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rebootd.core.operations_inputs import alike
from rebootd.core.selectors import OWN_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebootd.core.model import Snapshot
    from rebootd.core.selectors import Selector

_TERM = re.compile(r"([A-Za-z0-9][A-Za-z0-9._/-]*)\s*(?:=|in\s*\(|$|,)\s*([^,()\s]*)")


def hints(snapshot: Snapshot, selector: str) -> str:
    """Each term that no machine meets, with what is near it; or how many machines are known."""
    values: dict[str, set[str]] = {key: set() for key in OWN_KEYS}
    for machine in snapshot.machines.values():
        for key in OWN_KEYS:
            values[key].add(str(getattr(machine, key)))
        for key, value in machine.labels.items():
            values.setdefault(key, set()).add(value)
    found = []
    for key, value in _TERM.findall(selector):
        bare = key.removeprefix("label.")
        if bare not in values:
            found.append(f"no machine has {bare!r}{alike(bare, values) or f'; known: {_some(values)}'}")
        elif value and not any(c in value for c in "*?[") and value not in values[bare]:
            found.append(f"no {bare} is {value!r}{alike(value, values[bare]) or f'; known: {_some(values[bare])}'}")
    return "; ".join(found) or f"{len(snapshot.machines)} machines are known"


def unmatched(snapshot: Snapshot, selector: Selector) -> str:
    """``'role=web' matches no machine (...)``, or ``""`` when it matches one or none is known."""
    if not snapshot.machines or any(map(selector.matches, snapshot.machines.values())):
        return ""
    return f"{selector.text!r} matches no machine ({hints(snapshot, selector.text)})"


def _some(known: Iterable[str]) -> str:
    names = sorted(k for k in known if k)
    return ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
