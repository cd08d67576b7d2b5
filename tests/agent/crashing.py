"""``rebootd agent`` as it is, but able to kill itself: CRASH_AT=<n> names the n-th point at which SIGKILL comes.

Points are right before and right after each journal write, each hook folder, each start of the reboot command, and
each request; they are counted in the order in which they are passed.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
from typing import TYPE_CHECKING, Any
from unittest import mock

from rebootd.agent import client, host, journal_file, outside
from rebootd.cli.agent import agent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_passed = itertools.count()
_fatal = int(os.environ.get("CRASH_AT") or -1)


def point(name: str) -> None:
    if next(_passed) == _fatal:
        print(f"CRASH at point {_fatal}: {name}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def around(function: Callable[..., Awaitable[Any]], name: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapped(*arguments: Any, **named: Any) -> Any:
        point(f"before {name}")
        result = await function(*arguments, **named)
        point(f"after {name}")
        return result

    return wrapped


def main() -> None:
    write = journal_file.JournalFile.replace

    def wrapped(self: journal_file.JournalFile, data: bytes) -> None:
        point("before a journal write")
        write(self, data)
        point("after a journal write")

    for where, name, instead in (
        (journal_file.JournalFile, "replace", wrapped),
        (host.Host, "reboot", around(host.Host.reboot, "the reboot command")),
        (client.Coordinators, "permit", around(client.Coordinators.permit, "the permit")),
        (outside.Reality, "hooks", around(outside.Reality.hooks, "hooks")),
    ):
        mock.patch.object(where, name, instead).start()
    agent()


if __name__ == "__main__":
    main()
