"""The configured sources, asked from time to time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from rebootd.agent.detect.files import from_file, from_kernel
from rebootd.agent.detect.finding import Finding, combine
from rebootd.agent.detect.system import OSTREE_BOOTED, os_release, sources
from rebootd.agent.detect.tools import TOOLS, from_command, from_tool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.agent.settings import AgentSettings


class Detector:
    """Asks what the settings name. Files and the site's own command are asked each time, since they cost nothing.

    Package managers cost seconds of CPU: their answer is kept for ``detect_tools_every`` seconds.
    """

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        found: list[str] = []
        for source in settings.detect:
            found += sources(os_release(), image=OSTREE_BOOTED.exists()) if source == "auto" else [source]
        self.sources = tuple(dict.fromkeys(found))
        self._kept: dict[str, tuple[float, Finding]] = {}

    async def find(self, running: str, environ: Mapping[str, str]) -> Finding:
        """What the sources say together; ``running`` is the running kernel's release."""
        return combine([await self._ask(source, running, environ) for source in self.sources])

    async def _ask(self, source: str, running: str, environ: Mapping[str, str]) -> Finding:
        settings = self._settings
        if source == "file":
            return from_file(Path(settings.reboot_required_file))
        if source == "kernel":
            return from_kernel(running, [Path(folder) for folder in settings.kernel_dirs])
        if source not in TOOLS:
            return await from_command(settings.detect_command, settings.detect_timeout, environ)
        now = asyncio.get_running_loop().time()
        kept = self._kept.get(source)
        if kept is None or now - kept[0] >= settings.detect_tools_every:
            kept = self._kept[source] = now, await from_tool(source, settings.detect_timeout, environ)
        return kept[1]
