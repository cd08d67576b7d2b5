"""What is shipped: the wheel, the one file, the Nomad job and the systemd unit, and what starting costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import click
import hcl2
import msgspec
import pytest
import yaml

from rebootd import __version__
from rebootd.agent.settings import AgentSettings
from rebootd.cli.main import SUBCOMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "nomad" / "rebootd.nomad.hcl"
VARS = sorted((ROOT / "nomad" / "vars").glob("*.vars.hcl"))
UNIT = ROOT / "systemd" / "rebootd.service"


def run(
    *command: str | Path, env: dict[str, str] | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def imported(statement: str) -> set[str]:
    """The modules that are loaded after ``statement`` in a fresh interpreter."""
    done = run(sys.executable, "-c", f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


# ---------------------------------------------------------------------------------------------------- command line


def test_the_help_lists_every_subcommand_without_importing_any() -> None:
    loaded = imported(
        "from click.testing import CliRunner; from rebootd.cli.main import main\n"
        "answer = CliRunner().invoke(main, ['--help']); assert answer.exit_code == 0, answer.output\n"
        f"assert all(name in answer.output for name in {list(SUBCOMMANDS)!r}), answer.output"
    )
    assert not {name for name in loaded if name.startswith("rebootd.") and not name.startswith("rebootd.cli")}
    assert not loaded & {"aiohttp", "rich", "consul", "structlog", "msgspec"}


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_each_subcommand_loads_and_has_help(name: str) -> None:
    done = run(sys.executable, "-m", "rebootd.cli.main", name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"rebootd.cli.main {name}" in done.stdout


def test_an_unknown_subcommand_is_bad_input() -> None:
    done = run(sys.executable, "-m", "rebootd.cli.main", "serve")
    assert done.returncode == 2
    assert "serve" in done.stderr


def test_the_agent_starts_without_the_coordinator_and_the_api() -> None:
    loaded = imported("import rebootd.cli.agent")
    rooms = {".".join(name.split(".")[:2]) for name in loaded if name.startswith("rebootd.")}
    assert not rooms & {"rebootd.coordinator", "rebootd.store", "rebootd.api"}


# ------------------------------------------------------------------------------------------------------------ wheel


def test_every_dependency_is_pinned_and_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[<>=!~\[]", line)[0].lower().replace("_", "-") for line in wanted}
    lines = [line for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+!]+", line) for line in lines), lines
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    decided = (ROOT / "docs" / "decisions.md").read_text().lower()
    assert names <= pinned
    assert {name for name in names if name not in decided} == set()


@pytest.mark.slow
def test_the_wheel_holds_everything_under_the_package(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ".", timeout=110)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("rebootd-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "rebootd").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours <= held
    assert not {name for name in held if name.startswith("tests/")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_one_file_runs_from_an_empty_home(tmp_path: Path) -> None:
    """Built for this Python and machine only, as `make dist` does it for all; under both its names."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stamp = tmp_path / "stamp"  # newer than all that would make the environment anew, which we are running in
    stamp.touch()
    done = run(
        "make", "dist", f"DIST={tmp_path / 'dist'}", f"BUILD={tmp_path / 'build'}", f"DIST_PYTHONS={python}",
        f"DIST_ARCHS={os.uname().machine}", f"VENV={sys.prefix}", f"STAMP={stamp}", timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path / "home"
    home.mkdir()
    bare = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    for name, expected in (("rebootd", f"rebootd, version {__version__}"), ("rebootctl", "rebootctl")):
        answer = run(tmp_path / "dist" / name, "--version", env=bare)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.startswith(expected), answer.stdout
    elsewhere = bare | {"PEX_ROOT": str(tmp_path / "cache")}
    answer = run(tmp_path / "dist" / "rebootd", "server", "--help", env=elsewhere)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "cache").is_dir()


# ------------------------------------------------------------------------------------------------ Nomad and systemd


def plain(value: Any) -> Any:
    """What python-hcl2 parsed, without its quotes and marks."""
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, str) and len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def parsed(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        result = plain(hcl2.load(file))
    assert isinstance(result, dict)
    return result


def server_options() -> set[str]:
    command = main.get_command(click.Context(main), "server")
    assert command is not None
    return {name for option in command.params for name in option.opts}


def test_the_job_is_three_daemons_in_three_racks_that_are_never_given_up() -> None:
    job = parsed(JOB)["job"][0]["rebootd"]
    assert job["type"] == "service"
    assert {"operator": "distinct_property", "attribute": "${meta.rack}", "value": "${var.per_rack}"} in job[
        "constraint"
    ]
    assert job["reschedule"][0]["unlimited"] is True
    update = job["update"][0]
    assert (update["max_parallel"], update["health_check"], update["auto_revert"]) == (1, "checks", True)
    group = job["group"][0]["rebootd"]
    assert group["service"][0]["check"][0]["path"] == '${local.tls ? "/health" : "/healthz"}'
    assert group["task"][0]["rebootd"]["kill_signal"] == "SIGTERM"
    variables = {name: body for block in parsed(JOB)["variable"] for name, body in block.items()}
    assert variables["daemons"]["default"] == 3


def test_the_job_registers_another_service_than_the_daemons_do_themselves() -> None:
    service = parsed(JOB)["job"][0]["rebootd"]["group"][0]["rebootd"]["service"][0]
    assert service["name"] == "${var.service}-http"


@pytest.mark.parametrize("path", VARS, ids=lambda path: path.name)
def test_a_var_file_sets_only_variables_of_the_job_and_all_that_have_no_default(path: Path) -> None:
    variables = {name: body for block in parsed(JOB)["variable"] for name, body in block.items()}
    given = set(parsed(path))
    assert given <= set(variables)
    assert {name for name, body in variables.items() if "default" not in body} <= given
    assert given & {"tls_ca", "tls_templates"}


def test_the_jobs_locals_and_variables_are_declared_and_used() -> None:
    text = JOB.read_text()
    document = parsed(JOB)
    variables = {name for block in document["variable"] for name in block}
    assert set(re.findall(r"\bvar\.(\w+)", text)) == variables
    assert set(re.findall(r"\blocal\.(\w+)", text)) == {name for block in document["locals"] for name in block}


@pytest.mark.parametrize("path", [JOB, UNIT], ids=lambda path: path.name)
def test_every_flag_that_is_passed_exists(path: Path) -> None:
    lines = path.read_text().splitlines()
    text = "\n".join(
        line for line in lines if not line.startswith("#") and (path == JOB or line.startswith("ExecStart="))
    )
    flags = set(re.findall(r'(?<=["\s])--[a-z][a-z-]*', text))
    # The job makes the names of these from a map.
    flags -= {"--tls-"}
    assert flags
    assert flags <= server_options()


@pytest.mark.parametrize("vars_file", VARS, ids=lambda path: path.name)
def test_nomad_accepts_the_job(vars_file: Path) -> None:
    nomad = os.environ.get("NOMAD_BIN") or shutil.which("nomad")
    if not nomad:
        pytest.skip("no nomad on PATH or in $NOMAD_BIN; its own parser did not see the job")
    answer = run(nomad, "job", "run", "-output", f"-var-file={vars_file}", JOB)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert json.loads(answer.stdout)["Job"]["ID"] == "rebootd"


EVERYTHING: dict[str, Any] = {
    "datacenters": ["dc1", "dc2"], "region": "global", "namespace": "default", "daemons": 5, "per_rack": 2,
    "artifact": "https://artifacts.example.com/rebootd", "artifact_checksum": f"sha256:{'0' * 64}",
    "command": "/opt/rebootd", "driver": "exec", "user": "rebootd", "uid": 990, "port": 9473, "service": "lab",
    "prefix": "lab/", "consul_address": "https://127.0.0.1:8501", "consul_token_template": "{{ key `c` }}",
    "consul_token_file": "/etc/rebootd/consul-token", "tls_ca": "/etc/rebootd/ca.pem",
    "tls_crl": "/etc/rebootd/crl.pem", "tls_cert": "/etc/rebootd/server.pem", "tls_key": "/etc/rebootd/server-key.pem",
    "tls_templates": {"cert": "{{ key `cert` }}", "key": "{{ key `key` }}"}, "token_template": "{{ key `t` }}",
    "token_file": "/etc/rebootd/token", "nomad_address": "https://127.0.0.1:4646",
    "nomad_token_template": "{{ key `n` }}", "power_template": "{{ key `p` }}", "audit_log": "/audit/audit.log",
    "audit_volume": "rebootd-audit", "log_level": "debug", "cpu": 700, "memory": 500,
}  # fmt: skip


def test_nomad_accepts_the_job_with_every_variable_set(tmp_path: Path) -> None:
    variables = {name for block in parsed(JOB)["variable"] for name in block}
    assert set(EVERYTHING) == variables
    nomad = os.environ.get("NOMAD_BIN") or shutil.which("nomad")
    if not nomad:
        pytest.skip("no nomad on PATH or in $NOMAD_BIN; its own parser did not see the job")
    given = tmp_path / "all.vars.json"
    given.write_text(json.dumps(EVERYTHING))
    valid = run(nomad, "job", "validate", f"-var-file={given}", JOB)
    assert valid.returncode == 0, valid.stdout + valid.stderr
    group = json.loads(run(nomad, "job", "run", "-output", f"-var-file={given}", JOB).stdout)["Job"]["TaskGroups"][0]
    (service,), (task,) = group["Services"], group["Tasks"]
    # Nomad has no certificate to show: it asks the listener on loopback.
    found = (service["PortLabel"], service["Address"], service["Checks"][0]["Path"])
    assert found == (
        "health",
        "127.0.0.1",
        "/health",
    )
    words = task["Config"]["args"]
    flags = {word: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}
    assert {name: flags[f"--tls-{name}"] for name in ("ca", "crl", "cert", "key")} == {
        "ca": "/etc/rebootd/ca.pem",
        "crl": "/etc/rebootd/crl.pem",
        "cert": "${NOMAD_SECRETS_DIR}/tls-cert.pem",
        "key": "${NOMAD_SECRETS_DIR}/tls-key.pem",
    }
    assert flags["--health"] == "127.0.0.1:${NOMAD_PORT_health}"
    assert group["Volumes"]["audit"]["Source"] == "rebootd-audit"
    assert [(m["Volume"], m["Destination"]) for m in task["VolumeMounts"]] == [("audit", "/audit")]
    secrets = ("tls-cert.pem", "tls-key.pem", "token", "consul-token", "nomad-token", "power")
    assert {t["DestPath"]: t["Perms"] for t in task["Templates"]} == dict.fromkeys(
        [f"secrets/{name}" for name in secrets],
        "600",
    )


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("no systemd-analyze here; the unit was not verified")
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text().replace("/usr/local/bin/rebootd", sys.executable))
    answer = run(analyze, "verify", here)
    complaints = [line for line in answer.stderr.splitlines() if UNIT.name in line]
    assert complaints == []


def test_each_unit_unpacks_into_a_folder_of_its_own() -> None:
    """The agent is root: it must not run what a less privileged unit could have written."""
    folders = {}
    for unit in sorted((ROOT / "systemd").glob("*.service")):
        text = unit.read_text()
        (folder,) = re.findall(r"^CacheDirectory=(\S+)$", text, re.MULTILINE)
        assert f"PEX_ROOT=/var/cache/{folder}/" in text, unit.name
        folders[folder] = unit.name
    assert len(folders) == len(list((ROOT / "systemd").glob("*.service")))


def test_ci_and_scripts_are_executable_and_parse() -> None:
    for script in (".ci/run", "requirements/make-venv"):
        assert os.access(ROOT / script, os.X_OK)
        assert run("bash", "-n", script).returncode == 0


def test_the_shipped_settings_of_the_agent_are_its_settings() -> None:
    """Certificates first; each line that is commented out is a setting too."""
    text = (ROOT / "systemd" / "agent.yaml.example").read_text()
    shown = yaml.safe_load(text)
    assert set(shown) == {"tls_ca", "tls_crl", "tls_cert", "tls_key"}
    names = {field.name for field in msgspec.structs.fields(AgentSettings)}
    hidden = set(re.findall(r"^# (\w+): ", text, re.MULTILINE))
    assert {*shown, *hidden} <= names
    assert "token_file" in hidden


def test_the_token_instead_of_certificates_is_a_drop_in(tmp_path: Path) -> None:
    drop_in = UNIT.with_name("rebootd.service.d") / "10-token.conf.example"
    (line,) = re.findall(r"^ExecStart=(.+)$", drop_in.read_text(), re.MULTILINE)
    (shipped,) = re.findall(r"^ExecStart=(.+)$", UNIT.read_text(), re.MULTILINE)
    by_certificate = set(re.findall(r"--[a-z-]+", shipped))
    by_token = set(re.findall(r"--[a-z-]+", line))
    assert by_token ^ by_certificate == {"--token-file", "--tls-ca", "--tls-crl", "--tls-cert", "--tls-key"}
    assert by_token <= server_options()
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("no systemd-analyze here; the drop-in was not verified")
    folder = tmp_path / f"{UNIT.name}.d"
    folder.mkdir()
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace("/usr/local/bin/rebootd", sys.executable))
    (folder / "10-token.conf").write_text(drop_in.read_text().replace("/usr/local/bin/rebootd", sys.executable))
    answer = run(analyze, "verify", "--man=no", tmp_path / UNIT.name)
    assert [said for said in answer.stderr.splitlines() if UNIT.name in said] == []
