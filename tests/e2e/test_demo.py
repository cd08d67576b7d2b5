"""``rebootd demo`` as people run it: a process that shows a whole cycle, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rebootd.core.states import WORKING
from tests.support.cluster import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Agent


class Demo:
    """One run in a process of its own. Everything it starts inherits a variable by which it is found again."""

    def __init__(self, folder: Path, *options: str, **environ: str) -> None:
        self.mark = f"MARK_OF_DEMO_TEST={uuid.uuid4().hex}"
        self.folder = folder / "tmp"
        self.folder.mkdir()
        self.output = folder / "output"
        name, _, value = self.mark.partition("=")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("CONSUL_HTTP")}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rebootd.cli.main", "demo", "--boot-time", "0.5", *options],
                stdout=output,
                stderr=output,
                env={**inherited, name: value, "TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1", **environ},
            )

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self, timeout: float = 90.0) -> int:
        return self.process.wait(timeout)

    def until_it_says(self, text: str) -> None:
        def said() -> bool:
            assert self.process.poll() is None, self.said()
            return text in self.said()

        wait_for(said, f"the demo to say {text!r}", 60)

    def left_behind(self) -> list[str]:
        """Processes that it started and that still live."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


@contextmanager
def demo(folder: Path, *options: str, **environ: str) -> Iterator[Demo]:
    run = Demo(folder, *options, **environ)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def in_consul(consul: Agent) -> dict[str, list[Any]]:
    """Everything that a demo could leave there."""
    return {
        "keys": consul.ask("/v1/kv/?keys") or [],
        "nodes": [node["Node"] for node in consul.ask("/v1/catalog/nodes")],
        "services": sorted(consul.ask("/v1/agent/services")),
        "queries": [query["Name"] for query in consul.ask("/v1/query")],
        "sessions": sorted(session["ID"] for session in consul.ask("/v1/session/list")),
        "checks": [check["Node"] for check in consul.ask("/v1/health/state/critical")],
    }


def test_whole_demo(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    with demo(tmp_path, "--racks", "2", "--machines", "2", "--events", str(events)) as run:
        assert run.wait() == 0, run.said()
    said = run.said()
    assert "was killed with SIGKILL" in said
    assert "4 of 4" in said
    assert "every machine rebooted exactly once" in said
    assert run.left_behind() == []
    assert list(run.folder.iterdir()) == []
    told = [json.loads(row) for row in events.read_text().splitlines()]
    for event in told:
        assert {"time", "machine", "rack", "from", "to", "cause", "cycle", "epoch"} <= set(event)
    rebooted = [(event["machine"], event["boot_id"]) for event in told if event["to"] == "rebooting"]
    assert len(rebooted) == len(set(rebooted)) == len({machine for machine, _ in rebooted}) == 4
    state: dict[str, str] = {}
    for event in told:
        assert event["from"] == state.get(event["machine"], ""), f"a gap before {event}"
        state[event["machine"]] = event["to"]
        if event["cycle"]:
            out = [m for m, s in state.items() if s in WORKING]
            assert len({machine.split("-")[0] for machine in out}) <= 1, told
    assert set(state.values()) == {"in-service"}
    assert {event["epoch"] for event in told} == {1, 2}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_of_a_shared_consul(dev_consul: Agent, tmp_path: Path, how: signal.Signals) -> None:
    dev_consul.ask("/v1/kv/rebootd-demo-of-another/key", "PUT", b"keep")
    before = in_consul(dev_consul)
    with demo(tmp_path, "--racks", "1", "--machines", "2", CONSUL_HTTP_ADDR=dev_consul.url) as run:
        run.until_it_says("drained -> rebooting")
        assert in_consul(dev_consul) != before
        run.process.send_signal(how)
        assert run.wait(20) == 128 + how, run.said()
    assert "Traceback" not in run.said()
    assert run.left_behind() == []
    assert list(run.folder.iterdir()) == []
    assert in_consul(dev_consul) == before


def test_killed_itself_it_leaves_no_process(tmp_path: Path) -> None:
    with demo(tmp_path, "--racks", "1", "--machines", "1") as run:
        run.until_it_says("in service after")
        assert len(run.left_behind()) >= 6
        run.process.kill()
        run.wait()
        wait_for(lambda: not run.left_behind(), "its children to end", 5)


def test_without_a_consul(tmp_path: Path) -> None:
    with demo(tmp_path, "--racks", "1", "--machines", "1", CONSUL_BIN=str(tmp_path / "none")) as run:
        assert run.wait() == 0, run.said()
    assert "No Consul can be had: CONSUL_BIN names" in run.said()
    assert "nobody was killed" in run.said()
    assert run.left_behind() == []


def test_consul_that_cannot_be_reached(tmp_path: Path) -> None:
    with demo(tmp_path, CONSUL_HTTP_ADDR="http://127.0.0.1:1") as run:
        assert run.wait() == 1
    assert "Consul at http://127.0.0.1:1 is of no use" in run.said()
    assert run.left_behind() == []
