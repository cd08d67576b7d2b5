"""What the documents say to type really works as typed, in an empty folder."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/operations.md", "docs/security.md")
MAKES = "rebootctl tls ca create"


def blocks(page: str) -> list[str]:
    """The fenced blocks, without the indent of the list that they may be in."""
    found = re.findall(r"^( *)```\n(.*?)^ *```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) for indent, body in found]


def typed(commands: str, folder: Path) -> str:
    """A shell types them in ``folder``, with our rebootctl on the path; each must succeed."""
    tools = folder.parent / "bin"
    tools.mkdir(exist_ok=True)
    tool = tools / "rebootctl"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m rebootd.cli.ctl "$@"\n')
    tool.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", commands],
        cwd=folder,
        env={"PATH": f"{tools}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_certificates_are_made_as_the_page_says(page: str, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (commands,) = [block for block in blocks(page) if MAKES in block]
    typed(commands, folder)
    made = {path.name for path in folder.iterdir()}
    assert {"rebootd-ca.pem", "rebootd-ca-key.pem", "rebootd-crl.pem", "server-0.pem", "server-0-key.pem"} <= made
    assert {stat.S_IMODE((folder / n).stat().st_mode) for n in made if n.endswith("-key.pem")} == {0o600}


def test_files_go_where_the_runbook_says(tmp_path: Path) -> None:
    folder, root = tmp_path / "empty", tmp_path / "host"
    folder.mkdir()
    (commands,) = [block for block in blocks("docs/operations.md") if MAKES in block]
    typed(commands, folder)
    installs = [block for block in blocks("docs/operations.md") if "install" in block and "server-key.pem" in block]
    installs += [block for block in blocks("docs/operations.md") if "install" in block and "machine-key.pem" in block]
    assert len(installs) == 2
    for block in installs:
        # Neither a user nor a file of this machine: the rest is as typed.
        lines = [line.replace(" -o rebootd", "") for line in block.splitlines() if not line.startswith("useradd")]
        typed("\n".join(lines).replace("/etc/rebootd", f"{root}/etc/rebootd"), folder)
    here = root / "etc/rebootd"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in here.iterdir()}
    keys = {"server-key.pem": 0o600, "machine-key.pem": 0o600}
    assert modes == {
        **dict.fromkeys(("rebootd-ca.pem", "rebootd-crl.pem", "server.pem", "machine.pem"), 0o644),
        **keys,
    }
    # What is installed is what the shipped unit and the shipped settings name.
    shipped = (ROOT / "systemd/rebootd.service").read_text() + (ROOT / "systemd/agent.yaml.example").read_text()
    named = set(re.findall(r"/etc/rebootd/([a-z-]+\.pem)", shipped))
    assert named == set(modes)
    (install_lines,) = [block for block in installs if "server-key" in block]
    comment = (ROOT / "systemd/rebootd.service").read_text()
    assert all(f"#   {line}" in comment for line in install_lines.splitlines())
