"""Who asks: one value that goes with a request, from the door to the events and the audit log."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from rebootd.core.errors import InvalidInput

OPEN = ""
"""The least role of a route that is open to everybody."""


class Role(StrEnum):
    """What somebody may do. Of people, each may what the one before may; a machine may only speak for itself."""

    MACHINE = "machine"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


PEOPLE = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)
"""The roles of people, from the least to the most."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sent a request.

    ``kind`` tells what proved it: ``machine`` (a machine's certificate), ``person`` (a person's certificate or Consul
    token), ``token`` (the shared token, which names nobody), ``loopback`` (nothing: only this host can reach the
    daemon, or it was told to ask for nothing), ``anonymous`` (nothing, on a route that is open to everybody).
    ``identity`` is the name that was proved: a machine's or person's, ``consul:<accessor id>`` for a Consul token, else
    the kind. ``role`` is a :class:`Role`'s word, ``""`` for nobody's. ``address`` is the peer's IP address, ``""`` when
    the connection has gone.
    """

    identity: str
    kind: str
    role: str
    address: str = ""

    @property
    def proved(self) -> bool:
        """Whether ``identity`` names somebody, so that it and not the request's own text says who did it."""
        return self.kind in {"machine", "person"}

    def may(self, least: str) -> bool:
        """Whether the role is enough for a route whose least role is ``least``.

        The shared token and loopback prove nobody in particular and may everything, what machines may too.
        """
        if least == OPEN:
            return True
        if least == Role.MACHINE:
            return self.kind in {"machine", "token", "loopback"}
        if least not in PEOPLE or self.role not in PEOPLE:
            return False
        return PEOPLE.index(Role(self.role)) >= PEOPLE.index(Role(least))

    def may_speak_for(self, machine: str) -> bool:
        """Whether it may report and ask as ``machine``: a machine's certificate only as the machine it names."""
        return self.may(Role.MACHINE) and (self.kind != "machine" or self.identity == machine)


def parse_role(text: str, field: str) -> Role:
    """A role of people. Raises InvalidInput."""
    if text not in PEOPLE:
        raise InvalidInput(field, text, f"one of the roles {', '.join(PEOPLE)}")
    return Role(text)
