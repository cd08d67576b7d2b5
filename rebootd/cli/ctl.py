"""``rebootctl``: what operators type."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from rebootd import __version__
from rebootd.cli.ctl_client import BAD_INPUT, Client, Trouble, is_local, read_servers
from rebootd.cli.ctl_common import Ctl, CtlGroup, whoami

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebootd.cli.ctl_tls import Wire

INTERRUPTED = 130


@click.group(
    cls=CtlGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Exit codes: 0 done; 1 refused, failed or not found; 2 bad input;
            3 no daemon or no leader can be reached; 130 stopped with Ctrl-C.

\b
Example:
  rebootctl cycle start kernel-6.12.9 --selector role=web --target kernel=6.12.9
  rebootctl cycle watch kernel-6.12.9

\b
Emergency stop without rebootctl:
  consul kv put rebootd/control/halt "reason"
""",
)
@click.option(
    "--server",
    envvar="REBOOTD_ADDR",
    default="127.0.0.1:8473",
    show_default=True,
    metavar="URL",
    help="A daemon, or several separated by commas; the leader is found from any of them. "
    "srv:NAME[@DNS-SERVER:PORT] looks them up in DNS. Environment: REBOOTD_ADDR.",
)
@click.option(
    "--token-file",
    envvar="REBOOTD_TOKEN_FILE",
    type=click.Path(path_type=Path),
    help="The file with the shared token, if daemons ask for one. Environment: REBOOTD_TOKEN_FILE.",
)
@click.option(
    "--tls-ca", envvar="REBOOTD_TLS_CA", default="", metavar="FILE", help="The authority of this fleet: speak TLS."
)
@click.option("--tls-cert", envvar="REBOOTD_TLS_CERT", default="", metavar="FILE", help="Your certificate.")
@click.option("--tls-key", envvar="REBOOTD_TLS_KEY", default="", metavar="FILE", help="Its key.")
@click.option(
    "--tls-crl", envvar="REBOOTD_TLS_CRL", default="", metavar="FILE", help="The authority's revocation list."
)
@click.option(
    "--consul-token-file",
    envvar="REBOOTD_CONSUL_TOKEN_FILE",
    type=click.Path(path_type=Path),
    help="The file with your Consul ACL token, where daemons take those instead of certificates.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.5, 600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an answer, elections included.",
)
@click.option("--by", envvar="REBOOTD_BY", metavar="WHO", help="Who asks, for the events. Default: user@host.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; errors too, on standard error.")
@click.version_option(__version__, prog_name="rebootctl")
@click.pass_context
def cli(
    ctx: click.Context,
    /,
    server: str,
    token_file: Path | None,
    consul_token_file: Path | None,
    timeout: float,
    by: str | None,
    as_json: bool,
    **tls: str,
) -> None:
    """Look at and steer rebootd, which reboots a fleet safely, one rack at a time."""
    if as_json:
        ctx.meta["json"] = True

    def make() -> Ctl:
        # Made when a command runs, not for its --help.
        wire = _wire(tls)
        servers = read_servers(server, tls=wire is not None)
        consul_token = _token(consul_token_file, "--consul-token-file")
        if consul_token and wire is None and not all(_private(s) for s in servers):
            raise Trouble("--consul-token-file: needs --tls-ca: a token does not cross a plain wire", BAD_INPUT)
        client = Client(servers, _token(token_file, "--token-file"), timeout, consul_token=consul_token, wire=wire)
        return Ctl(client, by if by is not None else whoami(), "json" in ctx.meta)

    ctx.obj = make


def _private(server: str) -> bool:
    return server.startswith("https:") or is_local(urlsplit(server).hostname or "")


def _wire(given: Mapping[str, str]) -> Wire | None:
    if not any(given.values()):
        return None
    from rebootd.cli.ctl_tls import Wire
    from rebootd.tls.files import TlsFiles

    return Wire(TlsFiles(**{flag.removeprefix("tls_"): path for flag, path in given.items()}))


def _token(path: Path | None, flag: str) -> str:
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII"
        raise Trouble(
            f"{flag}: {str(path)!r} is not accepted; expected a readable file ({reason})", BAD_INPUT
        ) from None
    if not token or any(c <= " " or c > "~" for c in token):
        raise Trouble(f"{flag}: {str(path)!r} is not accepted; expected one token in it", BAD_INPUT)
    return token


def _register() -> None:
    from rebootd.cli import ctl_audit, ctl_certs, ctl_change, ctl_cycle, ctl_gate, ctl_look, ctl_plan, ctl_policy

    for module in (ctl_look, ctl_cycle, ctl_plan, ctl_change, ctl_policy, ctl_gate, ctl_certs, ctl_audit):
        for command in module.COMMANDS:
            cli.add_command(command)


_register()


def main(arguments: list[str] | None = None) -> None:
    """Runs rebootctl and exits. No error ends in a traceback."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Runs rebootctl; returns its exit code."""
    try:
        code = cli.main(arguments, prog_name="rebootctl", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except Trouble as trouble:
        click.echo(json.dumps(trouble.problem) if _wants_json(arguments) else f"rebootctl: {trouble}", err=True)
        return trouble.code
    except click.ClickException as error:
        error.show()
        return BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us (head, less) has seen enough; without this Python complains when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _wants_json(arguments: list[str]) -> bool:
    return "--json" in arguments


if __name__ == "__main__":
    main()
