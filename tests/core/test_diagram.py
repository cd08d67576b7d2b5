from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rebootd.core.model import State
from rebootd.core.states import TABLE, diagram

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
COMMAND = "python -m rebootd.core.states"


def test_the_picture_in_the_docs_is_the_table() -> None:
    blocks = [rest.partition("```")[0] for rest in PAGE.read_text(encoding="utf-8").split("```mermaid\n")[1:]]
    assert diagram() in blocks, f"docs/architecture.md differs from the table; put the output of `{COMMAND}` there"


def test_the_command_that_the_message_names_prints_the_picture() -> None:
    command = [sys.executable, *COMMAND.split()[1:]]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == diagram()


def test_the_picture_shows_every_state_and_every_rule() -> None:
    lines = diagram().splitlines()
    assert all(any(f'"{s.value}"' in line for line in lines) for s in State)
    for rule in TABLE:
        (arrow,) = (line for line in lines if line.startswith(f"    {rule.frm.name} --> {rule.to.name}: "))
        assert f"{rule.happening.value} ({rule.who.value})" in arrow
