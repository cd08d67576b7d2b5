"""The table of every route and every role for docs/security.md, made from the route table.

``python -m rebootd.api.roles`` prints it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.api.table import ROUTES
from rebootd.core.caller import OPEN, PEOPLE, Caller, Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebootd.api.route import Route

COLUMNS = ("nobody", Role.MACHINE.value, *(role.value for role in PEOPLE))


def cells(route: Route, field: str = "") -> tuple[bool, ...]:
    """Whether each of ``COLUMNS`` may use the route, with ``field`` of its body given.

    ``nobody`` is who shows nothing to a daemon with certificates; a machine speaks in its own name.
    """
    least = route.stricter[field] if field else route.role
    people = [Caller(identity=role, kind="person", role=role) for role in PEOPLE]
    callers = [Caller(identity="machine", kind="machine", role=Role.MACHINE), *people]
    return (least == OPEN, *(who.may(least) for who in callers))


def rows() -> Iterator[tuple[str, tuple[bool, ...]]]:
    """Each line of the table: what is asked, and its cells."""
    for route in sorted(ROUTES, key=lambda r: (r.plain_path, r.method)):
        asked = f"{route.method} {route.plain_path}"
        yield asked, cells(route)
        for field in sorted(route.stricter):
            yield f"{asked} with `{field}`", cells(route, field)


def table() -> str:
    """The table in Markdown."""
    lines = [f"| route | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for asked, may in rows():
        route, _, rest = asked.partition(" with ")
        shown = f"`{route}`" + (f" with {rest}" if rest else "")
        lines.append(f"| {shown} | {' | '.join('yes' if cell else '-' for cell in may)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201  this is what it is for
