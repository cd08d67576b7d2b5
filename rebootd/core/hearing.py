"""What a machine says of itself, taken over into its record: facts, and new boots with what follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from rebootd.core.advance import with_boot
from rebootd.core.failures import flagged, flapping, with_unplanned
from rebootd.core.methods import FULL
from rebootd.core.model import State
from rebootd.core.policy_reboot import same_kernel
from rebootd.core.power import served
from rebootd.core.standing import required_since
from rebootd.core.states import Happening
from rebootd.core.wire import Tri

if TYPE_CHECKING:
    from rebootd.core.model import Machine
    from rebootd.core.walk import Walk
    from rebootd.core.wire import Report


def speaks_for(report: Report, machine: Machine) -> bool:
    """Whether the report is of this machine and not of one of its earlier boots.

    The reception refuses such reports, but one can be accepted while the step that makes it stale is still landing.
    Taken for a new boot it would put the old boot_id back, and the living machine would be refused from then on.
    """
    stale = report.boot_id != machine.boot_id and report.boot_id in machine.boots
    return not stale and (report.machine_id == machine.machine_id or not machine.machine_id)


def facts_of(report: Report) -> dict[str, Any]:
    """What a report says of its machine that the record takes over."""
    return {
        "kernel": report.kernel,
        "chassis": report.chassis,
        "labels": report.labels,
        "reboot_required": report.reboot_required,
        "reboot_reasons": report.reboot_reasons,
        "announced": bool(report.announced),
    }


def _known(m: Machine, report: Report) -> bool:
    """Whether the record has all these facts: nearly always, for a machine that is out."""
    return (
        m.kernel == report.kernel
        and m.labels == report.labels
        and m.reboot_required is report.reboot_required
        and m.reboot_reasons == report.reboot_reasons
        and m.chassis == report.chassis
        and m.announced == bool(report.announced)
    )


def hear(walk: Walk, report: Report) -> None:
    """Takes over the facts of the report, and a new boot_id if there is one."""
    m = walk.machine
    facts = {} if _known(m, report) else {k: v for k, v in facts_of(report).items() if getattr(m, k) != v}
    if "reboot_required" in facts:
        facts["required_since"] = required_since(m, report.reboot_required, walk.now)
    # The rack is frozen from drain until the machine is back: its lock and its limits depend on it.
    if report.rack and report.rack != m.rack and m.state is State.IN_SERVICE:
        facts["rack"] = report.rack
    if facts:
        walk.machine = m = replace(m, **facts)
    if report.boot_id == m.boot_id:
        walk.machine = flagged(m)
        return
    planned = m.state is State.REBOOTING and m.permit is not None and m.permit.boot_id == m.boot_id
    powered = not planned and served(walk.view.snapshot, m)
    # The agent's own word, or the record's where the agent's journal is gone with its host.
    orderly = "announced" if walk.first.announced else report.last_shutdown
    caused = planned or powered or orderly in {"announced", "orderly"}
    counts: dict[str, Any] = {}
    if not caused:
        counts = {"unplanned": m.unplanned + 1, "unplanned_at": with_unplanned(m, walk.now)}
    required = walk.first.reboot_reasons if walk.first.reboot_required is Tri.YES else ()
    detail = f"boot_id {m.boot_id} -> {report.boot_id}"
    if report.last_shutdown:
        detail += f", the boot before it ended: {report.last_shutdown}"
    cause = "planned boot" if planned else "boot after a power cycle" if powered else "unplanned boot"
    walk.go(
        Happening.BOOT,
        f"{orderly} boot" if caused and not (planned or powered) else cause,
        detail,
        planned=planned,
        required_before=required,
        flag="",
        retry=None,
        **with_boot(m, report.boot_id),
        **counts,
    )
    walk.machine = flagged(walk.machine)
    if planned and m.method in FULL and same_kernel(m.boot_id, report.boot_id):
        still = f"{m.method} was asked for, and the same kernel runs on with a userspace started anew"
        walk.fail(Happening.VERIFY_FAILED, "rebooted another way", still)
        return
    too_often = "" if caused or walk.machine.state is not State.VERIFYING else flapping(walk.view, walk.machine)
    if too_often:
        walk.fail(Happening.VERIFY_FAILED, "flapping", too_often)
