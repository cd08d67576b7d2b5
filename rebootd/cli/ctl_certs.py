"""``rebootctl tls``: the authority of a fleet, its certificates, and what is revoked. Talks to nobody."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rebootd.cli.ctl_client import BAD_INPUT, FAILED, Trouble
from rebootd.cli.ctl_common import CtlGroup
from rebootd.core.caller import PEOPLE
from rebootd.core.errors import InvalidInput, RebootdError
from rebootd.tls.identity import serial_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebootd.tls.authority import Authority

T = TypeVar("T")

CA, CA_KEY, CRL = "rebootd-ca.pem", "rebootd-ca-key.pem", "rebootd-crl.pem"
CA_DAYS, CERT_DAYS = 3650, 365

_dir = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default=True,
    help="Where the files are and go.",
)


def _days(default: int) -> Callable[[Any], Any]:
    return click.option("--days", type=int, default=default, show_default=True, help="How long it is valid.")


@click.group(cls=CtlGroup, name="tls")
def tls() -> None:
    """Make certificates: who a machine, a person or a daemon is. Keep the authority's key off the fleet."""


@tls.group(cls=CtlGroup)
def ca() -> None:
    """The authority that every certificate of the fleet comes from."""


@tls.group(cls=CtlGroup)
def cert() -> None:
    """Certificates of machines, people and daemons."""


@ca.command(example="rebootctl tls ca create")
@_dir
@_days(CA_DAYS)
@click.option("--name", default="rebootd", show_default=True, help="What the authority is called.")
def create(folder: Path, days: int, name: str) -> None:
    """Make the authority: its certificate, its key (mode 0600), and an empty revocation list."""
    from rebootd.tls import authority

    made = _checked(lambda: authority.Authority.create(name, days, authority.utc_now()))
    lists = made.revocations(None, (), authority.utc_now())
    _write(
        (folder / CA, authority.pem(made.cert), 0o644),
        (folder / CA_KEY, made.key_pem(), 0o600),
        (folder / CRL, lists, 0o644),
    )


@cert.command(
    name="create",
    example="rebootctl tls cert create --server --dns rebootd.example.com\n"
    "rebootctl tls cert create --machine web-1\n"
    "rebootctl tls cert create --operator alice --role operator",
)
@_dir
@click.option("--machine", metavar="NAME", help="For an agent: the machine's name, its Consul node name.")
@click.option("--operator", metavar="NAME", help="For a person, or a program that looks (Prometheus).")
@click.option(
    "--role", type=click.Choice([str(one) for one in PEOPLE]), help="What the person may do.  [default: viewer]"
)
@click.option("--server", is_flag=True, help="For a daemon.")
@click.option("--name", metavar="NAME", help="With --server: the daemon's name in the file.  [default: a number]")
@click.option("--dns", multiple=True, metavar="HOST", help="Another DNS name, for clients that look at it; repeatable.")
@click.option("--ip", "ips", multiple=True, metavar="ADDRESS", help="Another IP address; repeatable.")
@_days(CERT_DAYS)
def create_cert(
    folder: Path,
    *,
    machine: str | None,
    operator: str | None,
    role: str | None,
    server: bool,
    name: str | None,
    dns: Sequence[str],
    ips: Sequence[str],
    days: int,
) -> None:
    """Make a certificate and its key (mode 0600) with the authority in --dir. Files that exist stay as they are."""
    from rebootd.tls import authority

    if sum((machine is not None, operator is not None, server)) != 1:
        raise Trouble("say one of --machine NAME, --operator NAME and --server", BAD_INPUT)
    if role is not None and operator is None:
        raise Trouble("--role: is for --operator", BAD_INPUT)
    if name is not None and not server:
        raise Trouble("--name: is for --server; the others have theirs behind --machine or --operator", BAD_INPUT)
    kind, who = ("machine", machine) if machine is not None else (role or "viewer", operator)
    stem = f"{'machine' if machine is not None else 'operator'}-{who}"
    if server:
        number = next(n for n in range(10**6) if not (folder / f"server-{n}.pem").exists())
        kind, who = "server", name if name is not None else str(number)
        stem = f"server-{who}"
    signer = _authority(folder)
    made = _checked(lambda: signer.issue(kind, who or "", days, authority.utc_now(), dns=dns, ips=ips))
    _write((folder / f"{stem}.pem", made[0], 0o644), (folder / f"{stem}-key.pem", made[1], 0o600))


@tls.command(example="rebootctl tls revoke machine-web-1.pem")
@_dir
@click.option("--serial", "serials", multiple=True, metavar="HEX", help="A serial number, when the file is gone.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def revoke(folder: Path, serials: Sequence[str], files: Sequence[Path]) -> None:
    """Put certificates on the revocation list in --dir. Daemons that read the list refuse them within seconds."""
    from cryptography import x509

    from rebootd.tls import authority

    if not serials and not files:
        raise Trouble("name the certificate's file, or its --serial", BAD_INPUT)
    signer = _authority(folder)
    numbers = [_serial(text) for text in serials]
    for file in files:
        try:
            read = x509.load_pem_x509_certificate(_read(file, "file"))
        except ValueError:
            raise Trouble(f"{str(file)!r} is not accepted; expected a PEM certificate", BAD_INPUT) from None
        if not signer.made(read):
            raise Trouble(f"{str(file)!r} is not accepted; the authority in {folder} did not make it", BAD_INPUT)
        numbers.append(read.serial_number)
    at = folder / CRL
    old = _read(at, "crl") if at.exists() else None
    content = _checked(lambda: signer.revocations(old, numbers, authority.utc_now()))
    _replace(at, content)
    _say(
        {"revoked": [serial_text(n) for n in numbers], "list": str(at)},
        f"revoked {len(numbers)}; give {at} to every daemon and agent that has --tls-crl",
    )


@tls.command(example="rebootctl tls show *.pem")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def show(files: Sequence[Path]) -> int:
    """Say whose certificates these are and until when; of a revocation list, what is on it. Exit code 1 when one of
    them is not valid now.
    """
    from rebootd.cli.ctl_certs_show import describe

    told = [describe(file, _read(file, "file")) for file in files]
    _say([{"file": one.file, "good": one.good, **one.rows} for one in told], "\n".join(one.text() for one in told))
    return 0 if all(one.good for one in told) else FAILED


def _authority(folder: Path) -> Authority:
    from rebootd.tls.authority import Authority

    cert, key = folder / CA, folder / CA_KEY
    for path in (cert, key):
        if not path.exists():
            raise Trouble(f"there is no {path}: rebootctl tls ca create makes it, --dir says where it is", BAD_INPUT)
    if key.stat().st_mode & 0o077:
        raise Trouble(f"others can read {key}: chmod 600 it, and consider whether it still is a secret", BAD_INPUT)
    return _checked(lambda: Authority.load(_read(cert, "ca"), _read(key, "ca-key")))


def _serial(text: str) -> int:
    try:
        return int(text.replace(":", ""), 16)
    except ValueError:
        raise Trouble(f"--serial: {text!r} is not accepted; expected a hexadecimal number", BAD_INPUT) from None


def _read(path: Path, field: str) -> bytes:
    from rebootd.tls.files import check_pem

    return _checked(lambda: check_pem(path, "", field))


def _checked(work: Callable[[], T]) -> T:
    try:
        return work()
    except InvalidInput as error:
        raise Trouble(f"--{error}" if error.field in {"days", "dns", "ip", "name"} else str(error), BAD_INPUT) from None
    except RebootdError as error:
        raise Trouble(str(error), FAILED) from None


def _write(*files: tuple[Path, bytes, int]) -> None:
    """All of the files, or none; one that exists is never overwritten."""
    for path, _, _ in files:
        if path.exists():
            raise Trouble(f"{path} exists and stays as it is; move it away, or use another --dir", FAILED)
    done: list[Path] = []
    try:
        for path, content, mode in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The mode from the first moment on: a key must at no time be anybody's to read.
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            done.append(path)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
    except OSError as error:
        for path in done:
            path.unlink(missing_ok=True)
        raise Trouble(f"cannot write {error.filename or path}: {error.strerror}", FAILED) from None
    _say({"wrote": [str(path) for path, _, _ in files]}, "\n".join(f"wrote {path}" for path, _, _ in files))


def _replace(path: Path, content: bytes) -> None:
    """Puts new content at once in the place of the old: daemons may read at any moment."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        raise Trouble(f"cannot write {path}: {error.strerror}", FAILED) from None


def _say(facts: object, text: str) -> None:
    wants_json = "json" in click.get_current_context().find_root().meta
    click.echo(json.dumps(facts, indent=2) if wants_json else text)


COMMANDS = (tls,)
