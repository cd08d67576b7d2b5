"""Where Consul is and how to talk to it: one frozen value, explicit or from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from rebootd.core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_ADDRESS = "http://127.0.0.1:8500"

_ENVIRONMENT = {
    "address": "CONSUL_HTTP_ADDR",
    "token": "CONSUL_HTTP_TOKEN",
    "token_file": "CONSUL_HTTP_TOKEN_FILE",
    "ca_file": "CONSUL_CACERT",
    "cert_file": "CONSUL_CLIENT_CERT",
    "key_file": "CONSUL_CLIENT_KEY",
    "server_name": "CONSUL_TLS_SERVER_NAME",
}
"""Consul's own names for these settings (see the page "Commands: environment variables")."""

_TRUE = frozenset({"1", "t", "true", "yes"})
_FALSE = frozenset({"0", "f", "false", "no"})


class ConsulSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach one Consul agent.

    ``address`` is a URL (``http`` or ``https``) or ``host:port``; files are paths; ``""`` means not given. A
    ``token_file`` wins over ``token``, as in Consul's own client, and is read again when it changes, so that a
    rotated token needs no restart. ``server_name`` is the name expected in the server's certificate when it is not
    the host of the address. ``verify`` off still presents the client certificate.

    Raises :class:`InvalidInput` when a value cannot be used.
    """

    address: str = DEFAULT_ADDRESS
    token: str = ""
    token_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    datacenter: str = ""
    verify: bool = True

    def __post_init__(self) -> None:
        self.endpoint()
        if self.key_file and not self.cert_file:
            raise InvalidInput("consul.key_file", self.key_file, "a cert_file beside it")

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **explicit: Any) -> ConsulSettings:
        """The settings of ``environ`` (usually ``os.environ``), each overridden by its explicit value if not None.

        A secret given explicitly, as token or as token file, hides both of the environment.
        """
        given = {name: value for name, value in explicit.items() if value is not None}
        if given.get("token") or given.get("token_file"):
            given.setdefault("token", "")
            given.setdefault("token_file", "")
        values: dict[str, Any] = {
            name: environ[variable] for name, variable in _ENVIRONMENT.items() if environ.get(variable)
        }
        if environ.get("CONSUL_HTTP_SSL_VERIFY"):
            values["verify"] = _flag("CONSUL_HTTP_SSL_VERIFY", environ["CONSUL_HTTP_SSL_VERIFY"])
        address = values.get("address", "")
        if environ.get("CONSUL_HTTP_SSL") and "://" not in address:
            secure = _flag("CONSUL_HTTP_SSL", environ["CONSUL_HTTP_SSL"])
            values["address"] = f"{'https' if secure else 'http'}://{address or '127.0.0.1:8500'}"
        return cls(**(values | given))

    def endpoint(self) -> tuple[str, str, int]:
        """The scheme, host and port of the address."""
        accepted = "http://host:port, https://host:port or host:port"
        text = self.address if "://" in self.address else f"http://{self.address}"
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidInput("consul.address", self.address, accepted) from error
        if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/") or parts.query:
            raise InvalidInput("consul.address", self.address, accepted)
        return parts.scheme, host, port or 8500

    def read_token(self) -> str:
        """The token to send, or ``""``. Raises :class:`InvalidInput` when the token file cannot be read."""
        if not self.token_file:
            return self.token
        try:
            return Path(self.token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput("consul.token_file", self.token_file, f"a readable text file ({error})") from error


def _flag(name: str, value: str) -> bool:
    lowered = value.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise InvalidInput(name, value, "true or false")
