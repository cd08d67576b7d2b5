"""What a new policy says of waves, racks and the standing cycle, judged on the fleet as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.core.durations import Durations
from rebootd.core.fit import longest_stretch
from rebootd.core.fleetlock_record import CYCLE
from rebootd.core.inputs import DAY, bad_input, counted, format_duration
from rebootd.core.operations_inputs import alike
from rebootd.core.selector_hints import unmatched

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rebootd.core.model import Snapshot
    from rebootd.core.policy import Policy


def check_pace(policy: Policy, snapshot: Snapshot) -> tuple[str, ...]:
    """Warnings, each with its field. Raises InvalidInput for a standing cycle whose id is in use by another.

    Says nothing of machines and racks while none is known.
    """
    for enabled, field, cycle_id in (
        (policy.standing.enabled, "standing.id", policy.standing.id),
        (policy.fleetlock.enabled, "fleetlock.enabled", CYCLE),
    ):
        known = snapshot.cycles.get(cycle_id)
        if enabled and known is not None and not known.standing:
            raise bad_input(field, cycle_id, f"an id that no other cycle has; that one is {known.state.value}")
    return (*_unknown(policy, snapshot), *_short(policy, snapshot)) if snapshot.machines else ()


def _unknown(policy: Policy, snapshot: Snapshot) -> Iterator[str]:
    machines = snapshot.machines.values()
    racks = {m.rack for m in machines if m.rack}
    yield from _racks("racks.order", policy.rack_order.listed, racks)
    for index, wave in enumerate(policy.waves):
        yield from _racks(f"waves[{index}].racks", wave.racks, racks)
        said = unmatched(snapshot, wave.machines) if wave.machines is not None else ""
        if said:
            yield f"waves[{index}].machines: {said}, so the wave is over at once"
    said = unmatched(snapshot, policy.standing.selector) if policy.standing.enabled else ""
    if said:
        yield f"standing.selector: {said}"


def _racks(field: str, named: Iterable[str], known: set[str]) -> Iterator[str]:
    for rack in named:
        if rack not in known:
            yield f"{field}: no machine is in rack {rack!r}{alike(rack, known)}"


def _short(policy: Policy, snapshot: Snapshot) -> Iterator[str]:
    if not policy.windows:
        return
    most = longest_stretch(policy.windows, int(snapshot.now // DAY))
    durations = snapshot.durations or Durations()
    slow = [m.name for m in snapshot.machines.values() if durations.whole(m, policy) > most]
    if slow:
        longest = format_duration(round(durations.longest(policy)))
        yield (
            f"windows.calendar: {counted(len(slow), 'machine')} (such as {min(slow)}) may take up to {longest}, "
            f"and no window is longer than {format_duration(round(most))}: they would never go"
        )
