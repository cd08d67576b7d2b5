"""Whether a machine in service has nothing new to say: the commonest case, and the one to be quick in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from rebootd.core.model import Machine
    from rebootd.core.wire import Report


def quiet(machine: Machine, report: Report) -> bool:
    """True when the report changes nothing that the record holds."""
    return (
        machine.boot_id == report.boot_id
        and machine.labels == report.labels
        and machine.kernel == report.kernel
        and (machine.rack == report.rack or not report.rack)
        and (report.in_service or not out_by_itself(machine, report))
        and machine.reboot_required is report.reboot_required
        and machine.reboot_reasons == report.reboot_reasons
        and machine.chassis == report.chassis
        and machine.announced == bool(report.announced)
    )


def out_by_itself(machine: Machine, report: Report) -> bool:
    """Whether the host of a machine in service says, in full knowledge of its record, that it is out of service."""
    return not report.in_service and report.index == machine.version


def repeated(before: Report, report: Report) -> bool:
    """True when a machine that is out of service says once more what it said last.

    Only what no decision about such a machine looks at may differ: its clock, which step it has heard of, how far it is
    with that, and, unless somebody enabled it by hand, whether its host is in service.
    """
    now = replace(report, clock=before.clock, index=before.index, wait=before.wait, doing=before.doing)
    return now == before or (not now.by_hand and replace(now, in_service=before.in_service) == before)
