"""An event loop whose clock jumps, and the processes that live in it.

Everything that runs belongs to a process (or to the world itself, which is no process). A killed process never runs
another step: no ``except`` or ``finally`` of it is executed, as after SIGKILL. A stopped one (SIGSTOP) runs nothing
while time passes, and finds everything that came meanwhile when it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")
OWNER: contextvars.ContextVar[Process | None] = contextvars.ContextVar("owner", default=None)
LIVELOCK = 300_000
"""Steps at one moment of virtual time after which something runs in circles."""

KEPT = 200
"""Tasks of one process that are kept, at least, before those that are done are let go."""


class ProcessDied(BaseException):
    """Ends a synchronous stretch of a process that was killed in its midst."""


class Livelock(Exception):
    """Something runs in circles without time passing."""


class Process:
    """A process: its tasks run while it is ``alive`` and not ``stopped``. ``fuse``: steps until it is killed."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.alive = True
        self.stopped = False
        self.free = True
        """Whether it runs on: alive, not stopped, without a fuse."""
        self._fuse = -1
        self.backlog: list[Handle | tuple[Any, Any, Any, float]] = []
        self.on_death: Callable[[], None] | None = None
        self.own: list[SimTask] = []
        """Its tasks; those that are done are let go when there are more than ``room``."""
        self.room = KEPT
        loop.processes.append(self)
        self._context = contextvars.copy_context()
        self._context.run(OWNER.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> SimTask:
        """A task of this process."""
        return SimTask(work, loop=self.loop, context=self._context.copy())

    def kill(self) -> None:
        """SIGKILL."""
        if self.alive:
            self.alive = self.free = False
            # Kept until the end: a coroutine that is collected would run its finally blocks.
            self.own = [t for t in self.own if not t.done()]
            self.backlog.clear()
            if self.on_death is not None:
                self.on_death()

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped, self.free = True, False

    def go_on(self) -> None:
        """SIGCONT."""
        if self.stopped:
            self.stopped = False
            self.fuse = self._fuse
            self.loop.ready.extend(self.backlog)
            self.backlog.clear()

    @property
    def fuse(self) -> int:
        """Steps until it is killed, or -1."""
        return self._fuse

    @fuse.setter
    def fuse(self, steps: int) -> None:
        self._fuse = steps
        self.free = self.alive and not self.stopped and steps < 0

    def here(self) -> None:
        """Called by what a process does to the outside; a dead one does nothing any more."""
        if not self.alive:
            raise ProcessDied(self.name)


class Handle(list[Any]):
    """What asyncio gets back from ``call_soon`` and ``call_at``: [callback, arguments, context, time].

    A list is made faster than anything with attributes, and a million of them are made in a minute. A callback of None
    is a cancelled one.
    """

    __slots__ = ()

    def cancel(self) -> None:
        """As asyncio's."""
        self[0] = None
        self[1] = ()

    def cancelled(self) -> bool:
        """As asyncio's."""
        return self[0] is None

    def when(self) -> float:
        """As asyncio's."""
        when: float = self[3]
        return when


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, work: Any, *, loop: SimLoop, context: contextvars.Context | None) -> None:
        self.number = next(loop.numbers)
        # A name that is given costs nothing; one that is not is made up.
        super().__init__(work, loop=loop, name="t", context=context)
        owner = OWNER.get() if context is None else context.get(OWNER)
        home: SimLoop | Process = loop if owner is None else owner
        home.own.append(self)
        if len(home.own) > home.room:
            home.own = [t for t in home.own if not t.done()]
            home.room = max(KEPT, 2 * len(home.own))

    def __hash__(self) -> int:
        return self.number


class SimFuture(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address. Few are ever in one: those get a number."""

    def __hash__(self) -> int:
        number: int | None = getattr(self, "_number", None)
        if number is None:
            number = self._number = next(self.get_loop().numbers)  # type: ignore[attr-defined]
        return number


class SimLoop(asyncio.AbstractEventLoop):
    """Virtual time, seconds from 0. :meth:`run` runs until a moment; nothing here waits for the real clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ready: deque[Handle | tuple[Any, Any, Any, float]] = deque()
        self.numbers = itertools.count(1)
        self.processes: list[Process] = []
        self.own: list[SimTask] = []
        """Tasks of the world, beside those of its processes."""
        self.room = KEPT
        self.steps = 0
        self.failure: BaseException | None = None
        self._timers: list[tuple[float, int, Handle]] = []
        self._closed = False

    # --- what asyncio asks for -----------------------------------------------------------------

    def time(self) -> float:
        """The virtual time."""
        return self.now

    get_debug = bool
    """Never: ``bool()`` is False, and is no step of Python."""

    def is_running(self) -> bool:
        """While it is not closed."""
        return not self._closed

    def is_closed(self) -> bool:
        """After :meth:`close`."""
        return self._closed

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """As asyncio's, but that who gives a context (a task or a future) gets nothing to cancel: it never does."""
        if context is not None:
            self.ready.append((callback, args, context, 0.0))
            return None
        handle = Handle((callback, args, contextvars.copy_context(), 0.0))
        self.ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """As asyncio's."""
        handle = Handle((callback, args, contextvars.copy_context() if context is None else context, when))
        heapq.heappush(self._timers, (when, next(self.numbers), handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """As asyncio's."""
        when = self.now + delay
        handle = Handle((callback, args, contextvars.copy_context() if context is None else context, when))
        heapq.heappush(self._timers, (when, next(self.numbers), handle))
        return handle

    def create_future(self) -> Any:
        """As asyncio's."""
        return SimFuture(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        """As asyncio's."""
        return SimTask(coro, loop=self, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception that nobody fetched is a mistake somewhere, unless the run is over."""
        error = context.get("exception")
        if not self._closed and isinstance(error, BaseException) and self.failure is None:
            self.failure = error

    # --- what the simulation asks for ----------------------------------------------------------

    def tasks(self) -> list[SimTask]:
        """Every task that is not done, in the order of their making."""
        known = itertools.chain(self.own, *(p.own for p in self.processes))
        return sorted((t for t in known if not t.done()), key=lambda t: t.number)

    def at(self, when: float, action: Callable[..., None], *args: Any) -> Handle:
        """The world does something at ``when``, whoever asks for it."""
        handle = Handle((action, args, _WORLD, when))
        heapq.heappush(self._timers, (max(when, self.now), next(self.numbers), handle))
        return handle

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> Handle:
        """The world does something ``delay`` seconds from now, which is never before now."""
        when = self.now + delay
        handle = Handle((action, args, _WORLD, when))
        heapq.heappush(self._timers, (when, next(self.numbers), handle))
        return handle

    def world_task(self, work: Coroutine[Any, Any, Any]) -> SimTask:
        """A task that belongs to no process."""
        return SimTask(work, loop=self, context=_WORLD.copy())

    def failed(self) -> bool:
        """Whether something went wrong."""
        return self.failure is not None

    def inside(self, what: Callable[[], T]) -> T:
        """Does something of the world's between two runs, as if in the loop."""
        asyncio._set_running_loop(self)
        try:
            return _WORLD.run(what)
        finally:
            asyncio._set_running_loop(None)

    def run(self, until: float) -> None:
        """Runs until the virtual time ``until``. Raises what went wrong."""
        ready, timers, take, pop = self.ready, self._timers, self.ready.popleft, heapq.heappop
        asyncio._set_running_loop(self)
        try:
            still = 0
            while not self.failed():
                while ready:
                    handle = take()
                    callback, args, context, _ = handle
                    if callback is None:
                        continue
                    owner = context.get(OWNER)
                    if owner is not None and not (owner.free or self._may_run(owner, handle)):
                        continue
                    still += 1
                    context.run(callback, *args)
                    if self.failure is not None:
                        break
                    if still > LIVELOCK:
                        raise Livelock(f"{LIVELOCK} steps at {self.now}: {callback}")
                self.steps += still
                still = 0
                while timers and timers[0][2][0] is None:
                    pop(timers)
                if not timers or timers[0][0] > until:
                    self.now = max(self.now, until)
                    break
                self.now = max(self.now, timers[0][0])
                while timers and timers[0][0] <= self.now:
                    ready.append(pop(timers)[2])
            if self.failure is not None:
                raise self.failure
        finally:
            asyncio._set_running_loop(None)

    def _may_run(self, owner: Process, handle: Handle | tuple[Any, Any, Any, float]) -> bool:
        if not owner.alive:
            return False
        if owner.stopped:
            owner.backlog.append(handle)
            return False
        if owner.fuse >= 0:
            owner.fuse -= 1
            if owner.fuse < 0:
                owner.kill()
                return False
        return True

    def close(self) -> None:
        """Ends everything that is left, without letting it do anything."""
        self._closed = True
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        asyncio._set_running_loop(self)
        try:
            closed: set[SimTask] = set()
            for _ in range(5):  # what is closed may start tasks in its last moments
                fresh = [task for task in self.tasks() if task not in closed]
                if not fresh:
                    break
                closed.update(fresh)
                for task in fresh:
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()
            self.own.clear()
            self.processes.clear()
            self.ready.clear()
            self._timers.clear()
        finally:
            asyncio._set_running_loop(None)
            sys.unraisablehook = hook


_WORLD = contextvars.Context()
