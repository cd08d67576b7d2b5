"""Machines that are gone for good: what Consul's catalog has not had for a set time is deleted.

Only a machine in service is, that nobody hears of and nobody holds. Held and quarantined ones wait for a person
whatever the catalog says, and one on its way is quarantined by its deadline first, which frees its rack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.decision import MachineStep
from rebootd.core.limits import unheard
from rebootd.core.model import Event, State

if TYPE_CHECKING:
    from collections.abc import Collection

    from rebootd.core.view import View


def forgotten(view: View, busy: Collection[str]) -> list[MachineStep]:
    """The steps that delete such records; machines in ``busy`` have a step already."""
    snapshot = view.snapshot
    out = []
    for name, since in snapshot.gone.items():
        m = snapshot.machines.get(name)
        if (
            m is None
            or m.state is not State.IN_SERVICE
            or view.now - since < snapshot.policy.forget_after
            or not unheard(snapshot, name)
            or view.hold_of(m) is not None
            or name in busy
        ):
            continue
        event = Event(
            time=view.now,
            machine=name,
            rack=m.rack,
            frm=m.state.value,
            cause="forgotten",
            epoch=view.epoch,
            boot_id=m.boot_id,
            kind="forgotten",
            detail=f"Consul's catalog has not had it for {view.now - since:.0f} s, and nothing was heard of it",
        )
        out.append(MachineStep(name=name, before=m, after=None, events=(event,)))
    return out
