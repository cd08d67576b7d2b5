"""What a selector that matches nothing may have meant: known keys and values near its terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.operations_inputs import alike
from rebootd.core.selectors import OWN_KEYS, terms_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rebootd.core.model import Snapshot
    from rebootd.core.selectors import Selector, Term

SHOWN = 3
"""Values of one term that are told of."""


def hints(snapshot: Snapshot, selector: Selector) -> str:
    """Each term that no machine meets, with what is near it; or that no machine meets all of them."""
    values = _values(snapshot)
    terms = terms_of(selector)
    found = [said for term in terms if not term.negated for said in _unmet(term, values)]
    if found:
        return "; ".join(found)
    met = ", each of its terms by others" if len(terms) > 1 else ""
    return f"{len(snapshot.machines)} machines are known{met}"


def unknown(snapshot: Snapshot, key: str) -> str:
    """``no machine has 'modell'; nearest: model``, or ``""`` when one has it or none is known."""
    values = _values(snapshot)
    if not snapshot.machines or values.get(key):
        return ""
    near = alike(key, (k for k, met in values.items() if met))
    return f"no machine has {key!r}{near or f'; known: {_some(k for k, met in values.items() if met)}'}"


def _values(snapshot: Snapshot) -> dict[str, set[str]]:
    """What machines have, by key; the own keys also where none has any."""
    values: dict[str, set[str]] = {key: set() for key in OWN_KEYS}
    for machine in snapshot.machines.values():
        for key in OWN_KEYS:
            values[key].add(str(getattr(machine, key)))
        for key, value in machine.labels.items():
            values.setdefault(key, set()).add(value)
    return {key: known for key, met in values.items() if (known := met - {""}) or key in OWN_KEYS}


def _unmet(term: Term, values: dict[str, set[str]]) -> Iterator[str]:
    known = values.get(term.key, set())
    if term.key not in values:
        near = alike(term.key, values) or f"; known: {_some(key for key, met in values.items() if met)}"
        yield f"no machine has {term.key!r}{near}"
    elif not known:
        yield f"no machine has a {term.key}"
    elif term.values and not any(map(term.fits, known)):
        for value in term.values[:SHOWN]:
            yield f"no {term.key} is {value!r}{alike(value, known) or f'; known: {_some(known)}'}"


def unmatched(snapshot: Snapshot, selector: Selector) -> str:
    """``'role=web' matches no machine (...)``, or ``""`` when it matches one or none is known."""
    if not snapshot.machines or any(map(selector.matches, snapshot.machines.values())):
        return ""
    return f"{selector.text!r} matches no machine ({hints(snapshot, selector)})"


def _some(known: Iterable[str]) -> str:
    names = sorted(known)
    return ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
