"""What the demo knows of the fleet: its event stream, followed over the failover, and the tally of it."""

from __future__ import annotations

import threading
from collections import deque
from typing import IO, TYPE_CHECKING

import msgspec

from rebootd.cli.ctl_client import Client, Trouble
from rebootd.core.model import Event, State
from rebootd.core.states import WORKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

HISTORY = 10_000
"""Events that are asked for after each break, so that what the last leader committed is not missed."""
_AGAIN = 0.1
_OUT = frozenset(state.value for state in State if state is not State.IN_SERVICE)
_WORKING = frozenset(state.value for state in WORKING)


class Tally:
    """The fleet as its events tell it. ``file`` gets each transition as one line of JSON.

    ``most_racks`` and ``most_out`` are the highest numbers of racks open and machines out at once since
    :meth:`begin`; ``rebooted`` are the machines that came back into service from a reboot since then.
    """

    def __init__(self, machines: Iterable[tuple[str, str]], file: IO[str] | None = None) -> None:
        self.racks: dict[str, list[str]] = {}
        for name, rack in machines:
            self.racks.setdefault(rack, []).append(name)
        self.states = {name: "" for names in self.racks.values() for name in names}
        self.recent: deque[Event] = deque(maxlen=8)
        self.epoch = 0
        self.first: dict[int, Event] = {}
        self.most_racks = 0
        self.most_out = 0
        self.rebooted: set[str] = set()
        self.failed: set[str] = set()
        self._rebooting: set[str] = set()
        self._seen: set[tuple[int, int]] = set()
        self._file = file
        self._begun = False

    def begin(self) -> None:
        """From here on it counts."""
        self._begun = True

    def take(self, event: Event) -> bool:
        """Takes an event; False for one that it had already."""
        # A seq alone does not name an event: refusals are not stored, so a new leader may use theirs again.
        if (event.epoch, event.seq) in self._seen:
            return False
        self._seen.add((event.epoch, event.seq))
        self.recent.append(event)
        self.epoch = max(self.epoch, event.epoch)
        if event.kind == "transition" and event.machine in self.states:
            self.first.setdefault(event.epoch, event)
            self._transition(event)
        return True

    def count(self, state: State) -> int:
        """How many machines are in a state."""
        return sum(1 for is_in in self.states.values() if is_in == state.value)

    def _transition(self, event: Event) -> None:
        if self._file is not None:
            self._file.write(line(event) + "\n")
            self._file.flush()
        name, to = event.machine, event.to
        self.states[name] = to
        if not self._begun:
            return
        if to == State.REBOOTING:
            self._rebooting.add(name)
        elif to == State.QUARANTINED:
            self.failed.add(name)
        elif to == State.IN_SERVICE and name in self._rebooting:
            self.rebooted.add(name)
        self.most_out = max(self.most_out, sum(1 for state in self.states.values() if state in _OUT))
        open_racks = sum(1 for names in self.racks.values() if any(self.states[n] in _WORKING for n in names))
        self.most_racks = max(self.most_racks, open_racks)


def line(event: Event) -> str:
    """One transition as JSON: time, machine, rack, from, to, cause, cycle, epoch, and seq, boot_id, detail."""
    names = ("time", "machine", "rack", "frm", "to", "cause", "cycle", "epoch", "seq", "boot_id", "detail")
    return msgspec.json.encode({("from" if n == "frm" else n): getattr(event, n) for n in names}).decode()


class Follower:
    """Reads the event stream in a thread of its own, from whoever leads; ``take`` is called in ``loop``."""

    def __init__(self, servers: list[str], loop: asyncio.AbstractEventLoop, take: Callable[[Event], object]) -> None:
        self._client = Client(servers, timeout=3.0)
        self._loop = loop
        self._take = take
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo events", daemon=True)

    def start(self) -> None:
        """Begins to follow."""
        self._thread.start()

    def stop(self) -> None:
        """No event is handed over any more; the thread ends with its connection."""
        self._stopped.set()

    def history(self) -> list[Event]:
        """What the leader has at hand now. Raises Trouble."""
        text = self._client.ask("GET", "/v1/events", limit=HISTORY)
        return [msgspec.json.decode(row, type=Event) for row in text.splitlines()]

    def _run(self) -> None:
        while not self._stopped.wait(_AGAIN):
            try:
                for row in self._client.lines("/v1/events", limit=HISTORY, follow=1):
                    self._hand_over(msgspec.json.decode(row, type=Event))
                    if self._stopped.is_set():
                        return
            except (Trouble, msgspec.MsgspecError):
                # Nobody leads for a moment, or a killed leader's last line came in half.
                continue

    def _hand_over(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._take, event)
        except RuntimeError:  # the loop is closed: the demo has ended
            self._stopped.set()
