from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebootd.agent.settings import AgentSettings, fragments, inputs, load, validate
from rebootd.core.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

BAD = {
    "name": "a/b",
    "rack": ["x"],
    "labels": ["x"],
    "mark": "both",
    "detect": ["file", "oracle"],
    "hook_timeout": 0,
    "wait_out": "soon",
    "dns": ["dns.example:53"],
    "coordinators": ["10.0.0.1:8473"],
    "reboot_command": [],
    "state_dir": "",
    "fresh_boot": -1,
    "hook_timeoot": 3,
    "reboot_timeout": True,
    "kernel": None,
    "scheme": "gopher",
}


@pytest.mark.parametrize(("field", "value"), BAD.items())
def test_bad_values_name_field_value_and_accepted(field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        validate({field: value})
    assert caught.value.field == field
    assert caught.value.value == value or caught.value.value in value  # type: ignore[operator]
    assert caught.value.accepted


def test_three_stages(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("rack: 7\nlabels: {role: web, cores: 8}\nhook_timeout: 10\nwait_out: 3\n")
    (tmp_path / "agent.d").mkdir()
    (tmp_path / "agent.d" / "20.yaml").write_text("hook_timeout: 30\n")
    (tmp_path / "agent.d" / "10.yaml").write_text("hook_timeout: 20\nchassis: c1\n")
    (tmp_path / "agent.d" / "00.yaml").write_text("")
    environ = {"REBOOTD_AGENT_WAIT_OUT": "4", "REBOOTD_AGENT_REBOOT_COMMAND": "[a, b]", "OTHER": "x"}
    settings = load(config, environ, {"name": "m1", "rack": None}, ["detect_timeout=2", "detect_command=check -q"])
    assert settings == AgentSettings(
        name="m1",
        rack="7",
        chassis="c1",
        labels={"role": "web", "cores": "8"},
        hook_timeout=30,
        wait_out=4,
        reboot_command=("a", "b"),
        detect_timeout=2,
        detect_command=("check", "-q"),
    )


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00", "just text"])
def test_bad_fragments(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.yaml").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        fragments(tmp_path / "agent.yaml")
    assert caught.value.field == str(tmp_path / "agent.yaml")


def test_bad_inputs(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="field=value"):
        inputs({}, {}, ["name"])
    with pytest.raises(InvalidInput, match="existing file"):
        load(tmp_path / "none.yaml", {}, {})
    with pytest.raises(InvalidInput, match="hook_timeoot"):
        load("/etc/rebootd/agent.yaml", {"REBOOTD_AGENT_HOOK_TIMEOOT": "3"}, {})
    with pytest.raises(InvalidInput, match="detect_command"):
        validate({"detect": ["command"]})
