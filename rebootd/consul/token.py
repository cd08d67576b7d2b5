"""The Consul ACL token of one client: given, or kept in a file that may be changed at any time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from rebootd.core.errors import InvalidInput

if TYPE_CHECKING:
    from rebootd.consul.settings import ConsulSettings

log = structlog.get_logger(__name__)

_Form = tuple[int, int, int]


class Token:
    """The token to show. A token file is looked at before each request (one ``stat``) and read again when it changed,
    so that a rotation needs no restart and no refused request. A file that is gone, empty or unreadable for the moment
    leaves the last token in use. The token itself is never logged.

    Raises :class:`InvalidInput` when the file cannot be read at the start.
    """

    def __init__(self, settings: ConsulSettings) -> None:
        self._settings = settings
        self._form = self._look()
        self._token = settings.read_token()

    def current(self) -> str:
        """The token as it is now, ``""`` for none."""
        if self._settings.token_file and self._look() != self._form:
            self.read_again()
        return self._token

    def read_again(self) -> None:
        """Reads the file whether it looks changed or not: the store has just refused what we had."""
        form = self._look()
        try:
            token = self._settings.read_token()
        except InvalidInput as error:
            if form != self._form:
                log.warning("token-unreadable", file=self._settings.token_file, error=str(error))
            self._form = form
            return
        if not token and self._token:
            # Being written this moment: the next look finds the rest.
            return
        if token != self._token:
            log.info("token-changed", file=self._settings.token_file)
        self._form, self._token = form, token

    def _look(self) -> _Form | None:
        if not self._settings.token_file:
            return None
        try:
            seen = Path(self._settings.token_file).stat()
        except OSError:
            return None
        return seen.st_ino, seen.st_mtime_ns, seen.st_size
