"""The unit of systemd that is reached while the machine is in service; services are ordered after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.agent.hooks import run_program

if TYPE_CHECKING:
    from collections.abc import Mapping

START_TIMEOUT = 30.0


class Target:
    """``unit`` is started and stopped; with ``""`` nothing is done. Each call returns what went wrong, or ``""``."""

    def __init__(self, unit: str, environ: Mapping[str, str]) -> None:
        self._unit = unit
        self._environ = environ

    async def start(self) -> str:
        """Asks for it, without waiting for the services behind it: their own checks say when they are up."""
        return await self._systemctl("start", "--no-block", timeout=START_TIMEOUT)

    async def stop(self, timeout: float) -> str:
        """Returns when it, and what is bound to it, has stopped."""
        return await self._systemctl("stop", timeout=timeout)

    async def _systemctl(self, *words: str, timeout: float) -> str:
        if not self._unit:
            return ""
        outcome = await run_program(["systemctl", *words, self._unit], timeout, self._environ)
        if not outcome.problem:
            return ""
        return f"systemctl {words[0]} {self._unit}: {outcome.problem}" + (
            f": {outcome.output}" if outcome.output else ""
        )
