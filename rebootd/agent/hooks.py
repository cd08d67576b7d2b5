"""Hook folders: every executable file in name order, each with a timeout and a process group of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

import msgspec

from rebootd.agent.hook_files import hooks_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    RunHooks = Callable[[Path, float, Mapping[str, str]], Awaitable["HookOutcome"]]
    """Folder, seconds per hook, environment: as :func:`run_hooks`."""

OUTPUT_KEPT = 4096
"""Bytes of output kept of one program: its end, where errors are."""
PIPE_GRACE = 0.3
"""Seconds that a program's forked children may keep its output open after it ended."""


class Outcome(msgspec.Struct, frozen=True):
    """How a program ended. ``code`` is its exit code, negative for a signal, None for a timeout or a failed start."""

    code: int | None
    output: str
    problem: str = ""


class HookOutcome(msgspec.Struct, frozen=True):
    """How a hook folder ended: ``detail`` is for the event (bounded), and says which hook failed and why."""

    ok: bool
    detail: str = ""


async def run_hooks(folder: Path, timeout: float, environ: Mapping[str, str]) -> HookOutcome:
    """Runs the folder's hooks until one fails; ``timeout`` is per hook (seconds). A missing folder is empty.

    A hook that others than root could have written is not run, which is a failure as any other.
    """
    told: list[str] = []
    for hook in hooks_in(folder):
        name = folder.name if hook.path == folder else f"{folder.name}/{hook.path.name}"
        if hook.refused:
            return HookOutcome(ok=False, detail=f"{name}: not run: {hook.refused}")
        outcome = await run_program([str(hook.path)], timeout, {**environ, "REBOOTD_HOOK": folder.name})
        text = f"{name}: {outcome.problem or 'ok'}" + (f": {outcome.output}" if outcome.output else "")
        if outcome.problem:
            return HookOutcome(ok=False, detail=text)
        told.append(text)
    return HookOutcome(ok=True, detail="\n".join(told)[-OUTPUT_KEPT:])


async def run_program(
    command: list[str], timeout: float, environ: Mapping[str, str], *, keep: int = OUTPUT_KEPT
) -> Outcome:
    """Runs one program to its end, with nothing to read and the last ``keep`` bytes of its output kept, text or not.

    After ``timeout`` seconds, and when the caller is cancelled, its whole process group is killed, children too.
    """
    output = _Output(keep)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output.writer,
            stderr=output.writer,
            start_new_session=True,
            env=dict(environ),
        )
    except (OSError, ValueError) as error:
        output.close()
        return Outcome(None, "", f"cannot be started: {error}")
    problem = ""
    try:
        output.start()
        async with asyncio.timeout(timeout):
            code: int | None = await process.wait()
        await output.ended(PIPE_GRACE)
    except TimeoutError:
        code, problem = None, f"killed after {timeout:g} s"
        _kill_group(process.pid)
        await process.wait()
        await output.ended(PIPE_GRACE)
    except asyncio.CancelledError:
        _kill_group(process.pid)
        raise
    finally:
        output.close()
    if code:
        problem = f"exit code {code}" if code > 0 else f"ended by signal {-code}"
    return Outcome(code, _readable(bytes(output.kept)), problem)


class _Output:
    """A pipe of our own, since asyncio's would make waiting for the program wait for its forked children too."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self.kept = bytearray()
        self._eof = asyncio.Event()

    def start(self) -> None:
        os.close(self.writer)
        self.writer = -1
        asyncio.get_running_loop().add_reader(self._reader, self._read)

    def _read(self) -> None:
        try:
            chunk = os.read(self._reader, 65536)
        except BlockingIOError:
            return
        if chunk:
            self.kept += chunk
            del self.kept[: -self._keep]
        else:
            asyncio.get_running_loop().remove_reader(self._reader)
            self._eof.set()

    async def ended(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._eof.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)
        if self.writer >= 0:
            os.close(self.writer)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _readable(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text.expandtabs()
    ).strip()
