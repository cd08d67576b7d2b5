"""logind's delay lock (org.freedesktop.login1): a shutdown by anyone waits for us, for as long as logind allows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jeepney import Message
    from jeepney.fds import FileDescriptor
    from jeepney.io.blocking import DBusConnection

AGAIN = 30.0
"""Seconds between two attempts to get the lock."""
CALL_TIMEOUT = 5.0
DEFAULT_ALLOWED = 5.0
"""logind's own default of InhibitDelayMaxSec, for one that does not tell."""
_LOGIN = "org.freedesktop.login1"
_MANAGER = f"{_LOGIN}.Manager"
_PATH = "/org/freedesktop/login1"
_log = structlog.get_logger("rebootd.agent.inhibit")


class Shutdowns(Protocol):
    """Where the news of shutdowns comes from. ``allowed`` is the delay in seconds while the lock is held, else 0."""

    allowed: float

    async def run(
        self, announced: Callable[[str, float], Awaitable[None]], called_off: Callable[[], Awaitable[None]]
    ) -> None:
        """Works until cancelled. A shutdown waits until ``announced(kind, seconds)`` has returned."""
        ...


class _LostError(Exception):
    """The connection, logind, or the lock is gone."""


class Logind:
    """The :class:`Shutdowns` of a host with systemd-logind. ``address`` is the bus; ``""``: the system's."""

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._complained = False
        self._owner = ""
        self.allowed = 0.0

    async def run(
        self, announced: Callable[[str, float], Awaitable[None]], called_off: Callable[[], Awaitable[None]]
    ) -> None:
        """Keeps the lock, for ever; without a bus or logind it tries again from time to time."""
        while True:
            try:
                await self._hold(announced, called_off)
            except (_LostError, OSError, TimeoutError, ValueError, KeyError, RuntimeError) as error:
                if not self._complained:
                    _log.info("no delay lock, shutdowns by others will not wait for a drain", why=str(error))
                self._complained = True
            finally:
                self.allowed = 0.0
            await asyncio.sleep(AGAIN)

    async def _hold(
        self, announced: Callable[[str, float], Awaitable[None]], called_off: Callable[[], Awaitable[None]]
    ) -> None:
        # A thread, since connecting may wait for a bus that is only being started.
        connection = await asyncio.to_thread(self._connect)
        lock: FileDescriptor | None = None
        news = _News(connection)
        leaving: asyncio.Task[None] | None = None
        try:
            lock = await asyncio.to_thread(self._take, connection)
            _log.info("delay lock taken: shutdowns by others wait for a drain", seconds=self.allowed)
            self._complained = False
            while True:
                message = await news.next()
                going, kind = self._shutdown(message)
                if going is None:
                    continue
                if not going:
                    if leaving is not None:
                        leaving.cancel()
                        await asyncio.wait({leaving})
                        leaving = None
                    await called_off()
                    raise _LostError("the shutdown was called off")
                if leaving is None and lock is not None:
                    leaving = asyncio.create_task(_then_close(announced(kind, self.allowed), lock))
                    lock = None
        finally:
            if leaving is not None:
                leaving.cancel()
            news.close()
            if lock is not None:
                lock.close()
            connection.close()

    def _connect(self) -> DBusConnection:
        # Imported here: hosts without logind need not carry it.
        from jeepney import DBusErrorResponse  # noqa: PLC0415
        from jeepney.io.blocking import open_dbus_connection  # noqa: PLC0415

        try:
            return open_dbus_connection(self._address or "SYSTEM", enable_fds=True, auth_timeout=CALL_TIMEOUT)
        except DBusErrorResponse as error:
            raise _LostError(f"the bus refuses us: {error.name}") from error

    def _take(self, connection: DBusConnection) -> FileDescriptor:
        from jeepney import DBusAddress, MatchRule, Properties, message_bus, new_method_call  # noqa: PLC0415

        login = DBusAddress(_PATH, _LOGIN, _MANAGER)
        rule = MatchRule(type="signal", sender=_LOGIN, interface=_MANAGER, path=_PATH)
        _call(connection, message_bus.AddMatch(rule))
        gone = MatchRule(type="signal", sender="org.freedesktop.DBus", member="NameOwnerChanged")
        gone.add_arg_condition(0, _LOGIN)
        _call(connection, message_bus.AddMatch(gone))
        try:
            answer = _call(connection, Properties(login).get("InhibitDelayMaxUSec"))
            allowed = float(answer[0][1]) / 1e6
        except _LostError:
            allowed = DEFAULT_ALLOWED
        # Anyone may send us a signal: only its sender tells that it is logind's.
        self._owner = _call(connection, message_bus.GetNameOwner(_LOGIN))[0]
        what = ("shutdown", "rebootd", "take this machine out of service first", "delay")
        # The last call of all: signals that come before the answer to one are lost.
        lock: FileDescriptor = _call(connection, new_method_call(login, "Inhibit", "ssss", what))[0]
        self.allowed = allowed
        return lock

    def _shutdown(self, message: Message) -> tuple[bool | None, str]:
        """Whether a shutdown comes (None: the message is about something else), and its kind."""
        from jeepney import HeaderFields  # noqa: PLC0415

        fields: dict[Any, Any] = message.header.fields
        sender, member = fields.get(HeaderFields.sender), fields.get(HeaderFields.member)
        if sender == "org.freedesktop.DBus" and member == "NameOwnerChanged":
            raise _LostError("logind was started anew")
        if sender != self._owner or fields.get(HeaderFields.interface) != _MANAGER:
            return None, ""
        if member == "PrepareForShutdownWithMetadata":
            start, metadata = message.body
            return bool(start), str(metadata.get("type", ("s", "shutdown"))[1])
        if member == "PrepareForShutdown":
            # Sent by every logind; newer ones send the other one first.
            return bool(message.body[0]), "shutdown"
        return None, ""


class _News:
    """Messages of a connection as they come, without a thread."""

    def __init__(self, connection: DBusConnection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._reading = False

    async def next(self) -> Message:
        """The next message. Raises ``OSError`` when the connection is gone."""
        if not self._reading:
            self._loop.add_reader(self._connection.sock, self._ready.set)
            self._reading = True
        while True:
            # Asked first: calls before may have read more than their answers.
            self._ready.clear()
            try:
                return self._connection.receive(timeout=0)
            except TimeoutError:
                await self._ready.wait()

    def close(self) -> None:
        """Stops looking."""
        if self._reading:
            self._loop.remove_reader(self._connection.sock)


async def _then_close(work: Awaitable[None], lock: FileDescriptor) -> None:
    try:
        await work
    finally:
        lock.close()


def _call(connection: DBusConnection, message: Message) -> tuple[Any, ...]:
    from jeepney import DBusErrorResponse  # noqa: PLC0415
    from jeepney.wrappers import unwrap_msg  # noqa: PLC0415

    try:
        body: tuple[Any, ...] = unwrap_msg(connection.send_and_get_reply(message, timeout=CALL_TIMEOUT))
    except DBusErrorResponse as error:
        raise _LostError(f"{error.name}: {' '.join(str(d) for d in error.data)}") from error
    return body
