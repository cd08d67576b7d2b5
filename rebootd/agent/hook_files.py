"""Which files the agent may run as hooks: those that nobody but root could have put there, or changed since.

A hook runs with the agent's rights. So its file, its folder and every folder above belong to root (or to the agent's
own user, when that is not root: demo and tests) and are writable by nobody else; a folder with the sticky bit (/tmp)
may be above, since nobody can replace what is another's in it. The way is walked from the root by file descriptors
that follow no links, so that what was judged is what is there. A hook is then run by its path, which keeps ``$0``:
who could still change that path is trusted already.
"""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Hook(msgspec.Struct, frozen=True):
    """One file of a hook folder. ``refused`` says why it may not run, ``""``: it may."""

    path: Path
    refused: str = ""


def trusted() -> frozenset[int]:
    """The user ids whose files may run."""
    return frozenset({0, os.geteuid()})


def hooks_in(folder: Path) -> list[Hook]:
    """The folder's executable regular files, and links, in name order. Hidden files and editors' copies (``~``) are no
    hooks, nor is what has no executable bit. None for a missing folder; one refused hook, the folder itself, when the
    folder or one above could have been changed by others.
    """
    with ExitStack() as stack:
        try:
            real = folder.resolve(strict=True)
            descriptor, wrong = _walk(real, stack)
            if wrong:
                return [Hook(folder, wrong)]
            names = sorted(os.listdir(descriptor))  # noqa: PTH208  the folder that was judged, not its path
        except FileNotFoundError:
            return []
        except OSError as error:
            return [Hook(folder, f"cannot be looked into: {error.strerror or error}")]
        return list(_judged(real, descriptor, names))


def _walk(folder: Path, stack: ExitStack) -> tuple[int, str]:
    """The open folder, and what is wrong with it or one above."""
    descriptor, above = -1, Path("/")
    for part in folder.parts:
        descriptor = os.open(part, _FOLDER) if descriptor < 0 else os.open(part, _FOLDER, dir_fd=descriptor)
        stack.callback(os.close, descriptor)
        above = above / part
        status = os.fstat(descriptor)
        wrong = _wrong(status)
        if wrong and not (above != folder and status.st_uid in trusted() and status.st_mode & stat.S_ISVTX):
            return descriptor, f"its folder {above} {wrong}" if above != folder else wrong
    return descriptor, ""


def _judged(folder: Path, descriptor: int, names: list[str]) -> Iterator[Hook]:
    for name in names:
        if name.startswith(".") or name.endswith("~"):
            continue
        path = folder / name
        try:
            status = _status(name, descriptor)
        except FileNotFoundError:
            continue  # It went while we looked.
        except OSError as error:
            yield Hook(path, f"cannot be looked at: {error.strerror or error}")
            continue
        if stat.S_ISLNK(status.st_mode):
            yield Hook(path, "is a link; the file itself must be there (a script of one line may call another)")
        elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
            yield Hook(path, _wrong(status))


def _status(name: str, folder: int) -> os.stat_result:
    descriptor = os.open(name, _FILE, dir_fd=folder)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _wrong(status: os.stat_result) -> str:
    """What makes it possible that somebody else wrote it, with its owner and mode, or ``""``."""
    mode = stat.S_IMODE(status.st_mode)
    seen = f"belongs to {_user(status.st_uid)} and has mode {mode:04o}"
    if status.st_uid not in trusted():
        return f"{seen}: it must belong to {' or '.join(sorted(_user(uid) for uid in trusted()))}"
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{seen}: nobody but its owner may write it (chmod go-w)"
    return ""


def _user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"
