"""The election with real daemons on a real Consul, ended, frozen, hung and robbed of their sessions."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cluster import cluster, dev_agent, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.cluster import Agent

ROUNDS = int(os.environ.get("REBOOTD_ELECTION_ROUNDS", "3"))
"""How often a figure is taken; raise it to record a decision."""


class Daemons:
    """Candidates as processes; ends what it started."""

    def __init__(self, consul: Agent, prefix: str, folder: Path, *options: str) -> None:
        self.consul = consul
        self.prefix = prefix
        self.path = folder / "journal"
        self.path.touch()
        self._options = options
        self._numbers = itertools.count()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._log = folder / "log"

    def start(self) -> str:
        name = f"{self.prefix.rstrip('/')}-{next(self._numbers)}"
        command = [sys.executable, "-m", "tests.support.candidate", "--consul", self.consul.url, "--id", name]
        command += ["--prefix", self.prefix, "--service", self.prefix.rstrip("/"), "--journal", str(self.path)]
        with self._log.open("ab") as output:
            self._processes[name] = subprocess.Popen([*command, *self._options], stdout=output, stderr=output)
        return name

    def signal(self, name: str, number: int) -> float:
        """Sends it, and tells when (CLOCK_MONOTONIC)."""
        self._processes[name].send_signal(number)
        return time.monotonic()

    def wait(self, name: str) -> int:
        return self._processes[name].wait(20)

    def lines(self, name: str = "", event: str = "", since: float = 0.0) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
        return [
            line for line in found if line["at"] > since and name in ("", line["id"]) and event in ("", line["event"])
        ]

    def first(self, what: Callable[[dict[str, Any]], bool], since: float, timeout: float = 30.0) -> dict[str, Any]:
        """The first line since ``since`` that fits."""
        found = wait_for(lambda: [line for line in self.lines(since=since) if what(line)], "a line", timeout, 0.02)
        return found[0]

    def leader(self, timeout: float = 30.0) -> str:
        """Who commits now."""
        now = time.monotonic()
        return str(self.first(lambda line: line["event"] == "commit", now, timeout)["id"])

    def sessions(self) -> list[dict[str, Any]]:
        return [one for one in self.consul.ask("/v1/session/list") if one["Name"].startswith(self.prefix)]

    def wait_sessions(self, count: int) -> None:
        wait_for(lambda: len(self.sessions()) >= count, f"{count} sessions", 20)

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait(10)


@pytest.fixture
def daemons(dev_consul: Agent, prefix: str, tmp_path: Path) -> Iterator[Callable[..., Daemons]]:
    with contextlib.ExitStack() as stack:

        def make(count: int = 3, *options: str, consul: Agent = dev_consul) -> Daemons:
            made = Daemons(consul, prefix, tmp_path, *options)
            stack.callback(made.end)
            for _ in range(count):
                made.start()
            made.wait_sessions(count)
            return made

        yield make


def another(name: str, event: str = "commit") -> Callable[[dict[str, Any]], bool]:
    return lambda line: bool(line["event"] == event and line["id"] != name)


def steady(journal: Daemons) -> None:
    """Every value of the counter was committed once: the fence held throughout."""
    values = [line["value"] for line in journal.lines(event="commit")]
    assert len(values) == len(set(values)) > 0


def kill_rounds(made: Daemons, rounds: int) -> list[float]:
    rng = random.Random(7)
    took = []
    for _ in range(rounds):
        leader = made.leader()
        made.wait_sessions(3)
        # Consul asks each second: a kill at any moment between two of its questions.
        time.sleep(rng.uniform(0.0, 1.0))
        killed = made.signal(leader, signal.SIGKILL)
        made.wait(leader)
        took.append(made.first(another(leader), killed)["t"] - killed)
        made.start()
    return took


def show(what: str, took: list[float]) -> None:
    print(f"\n{what}: n={len(took)} median {sorted(took)[len(took) // 2]:.2f} s, worst {max(took):.2f} s")


def test_from_sigkill_to_the_next_leaders_first_fenced_commit(daemons: Callable[..., Daemons]) -> None:
    made = daemons()
    took = kill_rounds(made, ROUNDS)
    show("SIGKILL of the leader to the next one's first fenced commit", took)
    assert max(took) < 2.0 + 2.0, "the goal is 2 s; the rest is for a loaded machine"
    steady(made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failures", "timeout", "lock_delay"), [(1, 3, 0), (1, 1, 0), (2, 1, 0), (1, 1, 1), (1, 3, 0.5), (2, 1, 1)]
)
def test_figures_of_the_choices(
    daemons: Callable[..., Daemons], failures: int, timeout: float, lock_delay: float
) -> None:
    """Printed for docs/decisions.md: what each choice costs."""
    options = ("--failures", str(failures), "--timeout", str(timeout), "--lock-delay", str(lock_delay))
    made = daemons(3, *options)
    took = kill_rounds(made, ROUNDS)
    show(f"failures {failures}, timeout {timeout:g} s, lock-delay {lock_delay:g} s", took)
    steady(made)


def test_from_sigterm_to_the_next_leaders_first_fenced_commit(daemons: Callable[..., Daemons]) -> None:
    made = daemons()
    took = []
    for _ in range(ROUNDS):
        leader = made.leader()
        made.wait_sessions(3)
        told = made.signal(leader, signal.SIGTERM)
        took.append(made.first(another(leader), told)["t"] - told)
        assert made.wait(leader) == 0
        made.start()
    show("SIGTERM of the leader to the next one's first fenced commit", took)
    assert max(took) < 0.3 + 1.0, "the goal is 0.3 s; the rest is for a loaded machine"
    steady(made)
    assert not made.lines(event="refused"), "a hand-over ends the scope before the lock is given up"


def test_a_leader_thawed_after_its_session_fails_at_the_fence_and_says_nothing(daemons: Callable[..., Daemons]) -> None:
    made = daemons(2)
    old = ""
    won: dict[str, Any] = {}
    refused: list[dict[str, Any]] = []
    # On waking, the old leader may hear that it lost before it writes; then it is the next one's turn to be frozen.
    for _ in range(5):
        old = made.leader()
        frozen = made.signal(old, signal.SIGSTOP)
        won = made.first(another(old), frozen)
        print(f"\nSIGSTOP of the leader to the next one's first fenced commit: {won['t'] - frozen:.2f} s")
        thawed = made.signal(old, signal.SIGCONT)
        made.first(lambda line: line["id"] == old and line["event"] == "ended", thawed)  # noqa: B023  called at once
        after = made.lines(old, since=thawed)
        assert not [line for line in after if line["event"] == "commit"]
        assert not any(line["speak"] for line in after if "speak" in line)
        refused = [line for line in after if line["event"] == "refused"]
        if refused:
            break
        steady(made)
        made.wait_sessions(2)
    assert refused
    # The fence is refused; so is the write itself if the next leader wrote between the old one's read and its write.
    assert all(line["reasons"][0] == "session" for line in refused)
    assert made.leader() == won["id"]
    steady(made)
    # It competes again: when the other goes, it wins.
    made.wait_sessions(2)
    killed = made.signal(won["id"], signal.SIGKILL)
    assert made.first(another(won["id"]), killed)["id"] == old


def test_a_leader_whose_session_is_destroyed_loses_at_once(daemons: Callable[..., Daemons]) -> None:
    made = daemons(2)
    old = made.leader()
    session = made.lines(old, "won")[-1]["session"]
    destroyed = time.monotonic()
    made.consul.ask(f"/v1/session/destroy/{session}", "PUT")
    ended = made.first(lambda line: line["id"] == old and line["event"] == "ended", destroyed)
    print(f"\nsession destroyed to the end of the scope: {ended['t'] - destroyed:.3f} s")
    assert ended["t"] - destroyed < 1.0
    made.first(lambda line: line["event"] == "commit", ended["t"])
    again = made.lines(event="won", since=destroyed)
    assert session not in [line["session"] for line in again]
    steady(made)


def test_a_leader_whose_key_is_deleted_loses_at_once(daemons: Callable[..., Daemons]) -> None:
    made = daemons(2)
    old = made.leader()
    deleted = time.monotonic()
    made.consul.ask(f"/v1/kv/{made.prefix}leader", "DELETE")
    ended = made.first(lambda line: line["id"] == old and line["event"] == "ended", deleted)
    assert ended["t"] - deleted < 1.0
    made.first(lambda line: line["event"] == "commit", ended["t"])
    steady(made)


def test_a_leader_whose_loop_hangs_is_deposed(daemons: Callable[..., Daemons]) -> None:
    made = daemons(2, "--hung-after", "1", "--hang", "4")
    old = made.leader()
    hung = made.signal(old, signal.SIGUSR1)
    won = made.first(another(old), hung)
    print(f"\nloop hung (limit 1 s) to the next one's first fenced commit: {won['t'] - hung:.2f} s")
    assert won["t"] - hung < 4.0, "while it still hangs"
    made.first(lambda line: line["id"] == old and line["event"] == "ended", hung)
    # What it was about to write when it hung, and all after it, fails.
    late = [line for line in made.lines(old, since=hung) if line["t"] > won["t"] and line["event"] == "commit"]
    assert not [line for line in late if line["at"] > won["at"]]
    steady(made)


def test_a_leader_whose_loop_is_only_busy_stays(daemons: Callable[..., Daemons]) -> None:
    made = daemons(2, "--hang", "3")
    old = made.leader()
    session = made.lines(old, "won")[-1]["session"]
    busy = made.signal(old, signal.SIGUSR1)
    after = made.first(lambda line: line["event"] == "commit", busy + 2.0)
    assert after["id"] == old
    assert [line["session"] for line in made.lines(event="won")] == [session]


def test_a_restart_of_consul_is_survived(daemons: Callable[..., Daemons]) -> None:
    with cluster(1) as servers:
        made = daemons(2, consul=servers.servers[0])
        made.leader()
        servers.kill(0)
        servers.restart(0)
        back = time.monotonic()
        first = made.first(lambda line: line["event"] == "commit", back)
        print(f"\nConsul ready again to the next fenced commit: {first['t'] - back:.2f} s")
        made.wait_sessions(2)
        steady(made)


def test_a_consul_that_lost_its_state_is_survived(daemons: Callable[..., Daemons]) -> None:
    with dev_agent() as agent:
        made = daemons(2, consul=agent)
        made.leader()
        agent.restart()
        made.leader()
        made.wait_sessions(2)
        # And again an ordinary election afterwards.
        leader = made.leader()
        killed = made.signal(leader, signal.SIGKILL)
        made.first(another(leader), killed)


def test_the_loss_of_consuls_own_leader_does_not_depose_ours(daemons: Callable[..., Daemons]) -> None:
    with cluster(3) as servers:
        first = servers.leader()
        made = daemons(2, consul=servers.servers[(first + 1) % 3])
        old = made.leader()
        session = made.lines(old, "won")[-1]["session"]
        killed = time.monotonic()
        servers.kill(first)
        servers.leader([index for index in range(3) if index != first])
        elected = time.monotonic()
        again = made.first(lambda line: line["event"] == "commit", elected)
        print(f"\nConsul's leader killed to our next fenced commit: {again['t'] - killed:.2f} s")
        assert again["id"] == old
        assert [line["session"] for line in made.lines(event="won")] == [session]
        steady(made)
