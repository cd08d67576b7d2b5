"""What an agent touches outside of itself, in one place: the simulation puts a simulated world here."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rebootd import __version__
from rebootd.agent import statefile, textfile
from rebootd.agent.client import Coordinators
from rebootd.agent.detect import Detector, Finding
from rebootd.agent.discovery import Discovery
from rebootd.agent.hooks import HookOutcome, run_hooks
from rebootd.agent.host import Host
from rebootd.agent.identity import consul_client, machine_name, mark_for
from rebootd.agent.journal import Journal, JournalCorrupt, decode
from rebootd.agent.runner import new_nonce

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.agent.outmark import Mark
    from rebootd.agent.settings import AgentSettings


class Outside(Protocol):
    """The host, its disk, the coordinators, Consul, programs, and chance."""

    host: Host
    journal: Journal
    coordinators: Coordinators
    rng: random.Random

    async def name(self) -> str:
        """The machine's name; waits for whoever knows it."""
        ...

    def mark(self, name: str) -> Mark:
        """Where the out mark goes."""
        ...

    async def hooks(self, folder: Path, timeout: float, environ: Mapping[str, str]) -> HookOutcome:
        """Runs a hook folder, as :func:`rebootd.agent.hooks.run_hooks`."""
        ...

    async def detect(self, environ: Mapping[str, str]) -> Finding:
        """Whether the host needs a reboot."""
        ...

    def nonce(self) -> str:
        """A new nonce."""
        ...

    def show(self, state: statefile.AgentState) -> None:
        """Writes the files that people and node_exporter read. Raises ``OSError``."""
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...


class Reality:
    """The :class:`Outside` of a real host. Raises ``InvalidInput`` for settings that cannot be used."""

    def __init__(self, settings: AgentSettings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._consul = consul_client(settings, environ)
        self.rng = random.Random()
        self.host = Host(settings)
        self.journal = Journal(settings.journal)
        self._detector = Detector(settings)
        self._marked: str | None = None
        self.coordinators = Coordinators(settings, Discovery(settings, self._consul, self.rng).batches)

    async def name(self) -> str:
        """As set, as the local Consul agent says, or as remembered."""
        remembered = remembered_name(self._settings.journal)
        return await machine_name(self._settings, self.host, self._consul, remembered)

    def mark(self, name: str) -> Mark:
        """On the local Consul agent, in the catalog, or nowhere."""
        return mark_for(self._settings, self._consul, name)

    async def hooks(self, folder: Path, timeout: float, environ: Mapping[str, str]) -> HookOutcome:
        """Runs the programs."""
        return await run_hooks(folder, timeout, environ)

    async def detect(self, environ: Mapping[str, str]) -> Finding:
        """Asks the configured sources."""
        return await self._detector.find(self.host.kernel(), environ)

    def nonce(self) -> str:
        """A random one."""
        return new_nonce()

    def show(self, state: statefile.AgentState) -> None:
        """Writes the state file and, if configured, the textfile collector's."""
        statefile.write(self._settings.state_file, state)
        self._mark_service(state.in_service)
        if self._settings.textfile:
            textfile.write(Path(self._settings.textfile), state, __version__)

    def _mark_service(self, in_service: bool) -> None:
        # For systemd/out-mark, which asks no Python whether a Consul that starts belongs to a machine in service.
        path = Path(self._settings.run_dir) / "in-service"
        wanted = self.host.service_mark() if in_service else ""
        if wanted == self._marked:
            return
        if wanted:
            statefile.write_atomically(path, wanted.encode())
        else:
            path.unlink(missing_ok=True)
        self._marked = wanted

    async def close(self) -> None:
        """Ends the connections to coordinators and Consul."""
        await self.coordinators.close()
        if self._consul is not None:
            await self._consul.close()


def remembered_name(path: Path) -> str:
    """The name that the journal holds, or ``""``."""
    try:
        return decode(path.read_bytes()).name
    except (OSError, JournalCorrupt):
        return ""
