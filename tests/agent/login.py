"""A bus of its own with a logind that is not one: it hands out delay locks and waits for them, as the real one does."""

from __future__ import annotations

import os
import select
import subprocess
import threading
from typing import TYPE_CHECKING, Any

from jeepney import DBusAddress, HeaderFields, MessageType, message_bus, new_error, new_method_return, new_signal
from jeepney.io.blocking import open_dbus_connection

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>
"""
LOGIN = "org.freedesktop.login1"
MANAGER = DBusAddress("/org/freedesktop/login1", LOGIN, f"{LOGIN}.Manager")


class Login:
    """``locks`` are the read ends of the locks that were handed out; ``asked`` is what each was asked with."""

    def __init__(self, folder: Path, delay: float) -> None:
        self.path = folder / "bus"
        self.address = f"unix:path={self.path}"
        self._delay = delay
        config = folder / "bus.conf"
        config.write_text(CONFIG.format(path=self.path))
        self._bus = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"], stdout=subprocess.PIPE
        )
        assert self._bus.stdout is not None
        self._bus.stdout.readline()
        self.locks: list[int] = []
        self.asked: list[tuple[str, ...]] = []
        self.refuse = False
        self._stop, self._stopped = os.pipe()
        self._connection = open_dbus_connection(self.address, enable_fds=True)
        self._connection.send_and_get_reply(message_bus.RequestName(LOGIN))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        sock = self._connection.sock
        while True:
            ready, _, _ = select.select([sock, self._stop], [], [])
            if self._stop in ready:
                return
            try:
                message = self._connection.receive(timeout=0)
            except TimeoutError:
                continue
            if message.header.message_type is MessageType.method_call:
                self._connection.send(self._answer(message))

    def _answer(self, message: Any) -> Any:
        member = message.header.fields[HeaderFields.member]
        if member == "Inhibit":
            self.asked.append(message.body)
            if self.refuse:
                return new_error(message, f"{LOGIN}.OperationInProgress", "s", ("no",))
            reader, writer = os.pipe()
            self.locks.append(reader)
            self._writer = os.fdopen(writer, "wb")
            return new_method_return(message, "h", (self._writer,))
        if member == "Get":
            return new_method_return(message, "v", (("t", int(self._delay * 1e6)),))
        return new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "s", (member,))

    def held(self) -> bool:
        """Whether somebody still holds the newest lock."""
        if not self.locks:
            return False
        self._writer.close()
        ready, _, _ = select.select([self.locks[-1]], [], [], 0)
        return not ready

    def shutdown(self, coming: bool, kind: str = "reboot", *, old: bool = False) -> None:
        """Tells everybody, as a logind does; ``old``: as one before systemd 255."""
        if not old:
            body = (coming, {"type": ("s", kind)})
            self._connection.send(new_signal(MANAGER, "PrepareForShutdownWithMetadata", "ba{sv}", body))
        self._connection.send(new_signal(MANAGER, "PrepareForShutdown", "b", (coming,)))

    def liar(self) -> None:
        """Somebody else on the bus says that a shutdown comes."""
        with open_dbus_connection(self.address) as other:
            other.send(new_signal(MANAGER, "PrepareForShutdown", "b", (True,)))
            other.send_and_get_reply(message_bus.ListNames())

    def close(self) -> None:
        """Ends it all."""
        os.write(self._stopped, b"x")
        self._thread.join(5)
        self._connection.close()
        for number in (*self.locks, self._stop, self._stopped):
            os.close(number)
        self._bus.terminate()
        self._bus.wait(10)
        if self._bus.stdout is not None:
            self._bus.stdout.close()
