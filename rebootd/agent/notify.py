"""systemd's notification protocol (sd_notify(3)): one datagram per message, nothing when there is no socket."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping


class Notifier:
    """Takes systemd's variables (``NOTIFY_SOCKET``, ``WATCHDOG_*``) out of ``environ``: hooks must not inherit them."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self.supervised = bool(self._address)
        """Whether a service manager started us."""
        meant = not pid or pid == str(os.getpid())
        self.interval = int(usec) / 2_000_000 if usec.isdigit() and meant else 0.0
        """Seconds between two signs of life; 0: nobody watches."""
        self._status = ""

    def send(self, message: str) -> None:
        """Sends one message; a socket that is gone is no error, since nothing depends on it."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            try:
                notify.connect(address)
                notify.sendall(message.encode())
            except OSError:
                return

    def ready(self) -> None:
        """The agent runs."""
        self.send("READY=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; sent only when it changed."""
        line = " ".join(text.split())[:200]
        if line != self._status:
            self._status = line
            self.send(f"STATUS={line}")

    async def watchdog(self) -> None:
        """Signs of life from the event loop, for ever; a hung loop sends none and systemd starts the agent again."""
        while self.interval:
            self.send("WATCHDOG=1")
            await asyncio.sleep(self.interval)
