"""Prometheus and Alertmanager as real processes on loopback; a test that needs one is skipped, visibly, without it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.consul.binary import ALERTMANAGER, PROMETHEUS, Program, UnavailableError, locate
from tests.support.cluster import die_with_parent, free_ports, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHARE = "/usr/share/prometheus/alertmanager"


def ask(url: str, body: Any = None) -> Any:
    """The JSON answer, blocking."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        text = answer.read()
        return json.loads(text) if text.strip().startswith((b"{", b"[")) else None


@contextlib.contextmanager
def prometheus(folder: Path, config: str = "global: {scrape_interval: 1h}\n") -> Iterator[str]:
    """The address of a Prometheus; one that scrapes nothing unless ``config`` says so."""
    (folder / "config.yml").write_text(config)
    (port,) = free_ports(1)
    arguments = [
        f"--config.file={folder / 'config.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with _running(path_of(PROMETHEUS), arguments, folder, folder, f"http://127.0.0.1:{port}") as url:
        yield url


@contextlib.contextmanager
def alertmanager(folder: Path) -> Iterator[str]:
    """The address of an Alertmanager in which ``alertname="Outage"`` inhibits ``severity="low"``."""
    rule = "{source_matchers: ['alertname=\"Outage\"'], target_matchers: ['severity=\"low\"']}"
    (folder / "config.yml").write_text(
        f"route: {{receiver: none, group_wait: 0s}}\nreceivers: [{{name: none}}]\ninhibit_rules: [{rule}]\n"
    )
    (port,) = free_ports(1)
    arguments = [
        f"--config.file={folder / 'config.yml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    path = path_of(ALERTMANAGER)
    templates = path.parents[2] / SHARE.lstrip("/")
    if templates.is_dir() and not Path(SHARE).is_dir():
        # Debian's program wants its templates at an absolute path, which only an installed package has: a copy of it
        # looks for them in its working directory.
        copy = folder / "alertmanager"
        copy.write_bytes(path.read_bytes().replace(SHARE.encode(), b"." + b"/" * (len(SHARE) - 1)))
        copy.chmod(0o755)
        path = copy
    else:
        templates = folder
    with _running(path, arguments, folder, templates, f"http://127.0.0.1:{port}") as url:
        yield url


def path_of(program: Program) -> Path:
    """Where the program is; without it the test is skipped."""
    try:
        return locate(program=program)
    except UnavailableError as error:
        pytest.skip(f"no {program.name}: {error}")


@contextlib.contextmanager
def _running(path: Path, arguments: Sequence[str], folder: Path, home: Path, url: str) -> Iterator[str]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(path), *arguments],
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  # no threads
        )
    try:
        wait_for(lambda: process.poll() is None and ask(f"{url}/-/ready") is None, f"{path.name} to be ready")
        yield url
    finally:
        process.kill()
        process.wait(10)
