"""Planted in the agent: wrong dealings with the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import msgspec

from rebootd.agent import client, journal, loop, outmark, runner
from tests.sim.planted.kind import Planted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Patches = list["AbstractContextManager[Any]"]


def _forgetful(field: str) -> Any:
    """One field of the journal is kept in memory only."""

    def patches() -> Patches:
        real = journal.encode

        def without(record: journal.Record) -> bytes:
            return real(msgspec.structs.replace(record, **{field: getattr(journal.Record(), field)}))

        return [mock.patch.object(journal, "encode", without)]

    return patches


def _valid_for_ever() -> Patches:
    permit = client.Coordinators.permit

    async def endless(self: Any, name: str, request: Any) -> Any:
        answer = await permit(self, name, request)
        return msgspec.structs.replace(answer, valid_for=1e9)

    return [mock.patch.object(client.Coordinators, "permit", endless)]


def _refusal_ignored() -> Patches:
    def lenient(self: Any, answer: Any, directive: Any, nonce: str) -> str:
        return ""

    permit = client.Coordinators.permit

    async def endless(self: Any, name: str, request: Any) -> Any:
        answer = await permit(self, name, request)
        return msgspec.structs.replace(answer, valid_for=60.0, boot_id=request.boot_id)

    return [
        mock.patch.object(runner.Runner, "_objection", lenient),
        mock.patch.object(client.Coordinators, "permit", endless),
    ]


def _no_second_look() -> Patches:
    """The boot_id is not read again after the permit came."""
    ask = runner.Runner._try_reboot

    async def trusting(self: Any, directive: Any) -> str:
        host = self._host
        real = host.boot_id
        host.boot_id = lambda: directive.boot_id
        try:
            return await ask(self, directive)
        finally:
            host.boot_id = real

    return [mock.patch.object(runner.Runner, "_try_reboot", trusting)]


def _all_marks() -> Patches:
    apply = outmark.AgentMark.apply

    async def eager(self: Any, out: bool, why: str) -> None:
        await apply(self, out, why)
        if not out:
            await outmark._ask(self._consul, "PUT", "/v1/agent/check/deregister/_node_maintenance")

    return [mock.patch.object(outmark.AgentMark, "apply", eager)]


def _boots_into_service() -> Patches:
    from rebootd.agent import boot

    real = boot.new_boot

    def eager(*args: Any, **named: Any) -> Any:
        return {**real(*args, **named), "in_service": True}

    return [mock.patch.object(boot, "new_boot", eager)]


def _mark_stays() -> Patches:
    apply = outmark.AgentMark.apply

    async def lazy(self: Any, out: bool, why: str) -> None:
        if out:
            await apply(self, out, why)

    return [mock.patch.object(outmark.AgentMark, "apply", lazy)]


def _gives_up() -> Patches:
    def failed(self: Any, error: Any, report: Any) -> float:
        return 1e7

    return [mock.patch.object(loop.ReportLoop, "_failed", failed)]


ALL = (
    Planted("nonce-not-journaled", "the nonce is kept in memory only", _forgetful("nonce")),
    Planted("intent-not-journaled", "the intent to reboot is kept in memory only", _forgetful("intent")),
    Planted("valid-for-ignored", "the agent does not mind how long a permit is valid", _valid_for_ever, "ambushes"),
    Planted("refusal-ignored", "the agent reboots whatever the answer says", _refusal_ignored, "operators"),
    Planted(
        "boot-id-not-reread", "the agent does not look at the boot_id before it reboots", _no_second_look, "ambushes"
    ),
    Planted("marks-of-others-removed", "coming back removes the maintenance mark of people", _all_marks),
    Planted("boots-into-service", "a machine that boots is in service at once", _boots_into_service),
    Planted("mark-never-taken-away", "the out mark stays", _mark_stays),
    Planted("agent-gives-up", "an agent that gets no answer does not ask again", _gives_up, "processes"),
)
