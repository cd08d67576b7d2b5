"""What the store really took: every machine record that was committed, seen on its way from daemon to Consul."""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

from rebootd.core.model import State
from rebootd.core.states import WORKING


class Change(NamedTuple):
    """A record on its way: from which state to which; both the same when only facts change."""

    machine: str
    frm: str
    to: str


class Ledger:
    """Machine records under ``prefix`` in the order in which Consul took them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix + "machines/"
        self.records: list[tuple[int, dict[str, Any]]] = []
        self.states: dict[str, str] = {}

    def changes(self, body: bytes) -> list[Change]:
        """What a transaction would change."""
        return [Change(r["name"], self.states.get(r["name"], ""), r["state"]) for r in self._records(body).values()]

    def landed(self, body: bytes, answer: bytes) -> None:
        """A transaction was committed."""
        records = self._records(body)
        for result in json.loads(answer)["Results"] or []:
            entry = result.get("KV", {})
            record = records.pop(entry.get("Key"), None)
            if record is not None:
                self.records.append((entry["ModifyIndex"], record))
                self.states[record["name"]] = record["state"]

    def _records(self, body: bytes) -> dict[str, dict[str, Any]]:
        found = {}
        for op in json.loads(body):
            kv = op.get("KV", {})
            if kv.get("Key", "").startswith(self._prefix) and kv.get("Value"):
                found[kv["Key"]] = json.loads(base64.b64decode(kv["Value"]))
        return found

    def permits(self) -> dict[str, set[str]]:
        """The nonces that were permitted, by boot_id."""
        found: dict[str, set[str]] = {}
        for _, record in self.records:
            permit = record.get("permit")
            if permit and record["state"] == State.REBOOTING:
                found.setdefault(permit["boot_id"], set()).add(permit["nonce"])
        return found

    def reboots(self) -> dict[str, int]:
        """How often each machine went into rebooting."""
        found: dict[str, int] = {}
        last: dict[str, str] = {}
        for _, record in sorted(self.records, key=lambda pair: pair[0]):
            name = record["name"]
            if record["state"] == State.REBOOTING and last.get(name) != State.REBOOTING:
                found[name] = found.get(name, 0) + 1
            last[name] = record["state"]
        return found

    def most_racks_open(self, since: int = 0) -> int:
        """The highest number of racks with a machine out at one time, after the ``since``-th record."""
        state: dict[str, dict[str, str]] = {}
        most = 0
        for number, (_, record) in enumerate(sorted(self.records, key=lambda pair: pair[0])):
            state.setdefault(record["rack"], {})[record["name"]] = record["state"]
            if number >= since:
                most = max(most, sum(1 for machines in state.values() if _WORKING & set(machines.values())))
        return most


_WORKING = {state.value for state in WORKING}
