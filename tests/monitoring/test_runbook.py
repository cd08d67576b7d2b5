"""The runbook: a section for each alert, and what it tells to type is there to be typed."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from rebootd.cli.ctl import cli as rebootctl
from tests.monitoring import files

TEXT = (files.DOCS / "operations.md").read_text()
ALERTS = TEXT.partition("\n## Alerts\n")[2]
SECTIONS: dict[str, str] = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |^## |\Z)", ALERTS, re.MULTILINE | re.DOTALL))
TYPED = sorted(set(re.findall(r"`rebootctl ([^`]+)`", ALERTS)))


def test_every_alert_has_its_section() -> None:
    alerts = {rule["alert"]: rule for rule in files.rules()}
    assert SECTIONS.keys() == alerts.keys()
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        said = SECTIONS[name]
        assert said.lstrip().startswith(f"*{rule['labels']['severity']}.*"), name
        assert "\nLook at: " in said, name
        assert "\nType: " in said, name


def test_links_within_the_runbook_lead_somewhere() -> None:
    there = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", ALERTS)) <= there


@pytest.mark.parametrize("line", TYPED)
def test_what_it_tells_to_type_exists(line: str) -> None:
    command: click.Command = rebootctl
    words = shlex.split(line)
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
