"""The agent's metrics as a file for node_exporter's textfile collector, instead of an open port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebootd.agent.statefile import AgentState, write_atomically

if TYPE_CHECKING:
    from pathlib import Path


LAST_SHUTDOWN = ("permitted", "announced", "orderly", "crash", "none", "unknown")


def render(state: AgentState, version: str) -> str:
    """The metrics in Prometheus' text format. Times are seconds since the Unix epoch."""
    rows: list[tuple[str, str, dict[str, str], float]] = [
        ("info", "The agent that runs, and the machine's name", {"version": version, "machine": state.machine}, 1),
        ("in_service", "1 while the machine is in service by the agent's view", {}, float(state.in_service)),
        *(
            (
                "reboot_required",
                "1 for what detection says: yes, no or unknown",
                {"is": word},
                float(word == state.reboot_required),
            )
            for word in ("yes", "no", "unknown")
        ),
        ("boot_check_failed", "1 while the hooks after this boot fail", {}, float(state.boot_check == "failed")),
        ("out_mark", "1 while our out mark stands on this machine", {}, float(state.out_mark == "set")),
        ("by_hand", "1 after a local break-glass enable in this boot", {}, float(bool(state.by_hand))),
        ("enabled_by_itself", "1 after it enabled itself because no coordinator answered", {}, float(state.by_itself)),
        ("shutdown_announced", "1 while a shutdown by others is coming", {}, float(bool(state.announced))),
        ("shutdown_delay_seconds", "How long a shutdown by others waits for a drain", {}, state.shutdown_delay),
        *(
            (
                "last_shutdown",
                "1 for how the boot before this one ended",
                {"is": word},
                float(word == (state.last_shutdown or "unknown")),
            )
            for word in LAST_SHUTDOWN
        ),
        ("problem", "1 while something is wrong on this host (see the state file)", {}, float(bool(state.problem))),
        ("last_contact_timestamp_seconds", "When a coordinator last answered", {}, state.last_contact),
        ("waiting_since_timestamp_seconds", "Since when the machine is where it is", {}, state.since),
        ("epoch", "The highest epoch seen", {}, float(state.epoch)),
        ("updated_timestamp_seconds", "When this file was written", {}, state.updated),
    ]
    lines: list[str] = []
    seen = ""
    for name, text, labels, value in rows:
        full = f"rebootd_agent_{name}"
        if name != seen:
            lines += [f"# HELP {full} {text}.", f"# TYPE {full} gauge"]
            seen = name
        shown = ",".join(f'{label}="{_escape(word)}"' for label, word in labels.items())
        lines.append(f"{full}{{{shown}}} {value!r}" if shown else f"{full} {value!r}")
    return "\n".join(lines) + "\n"


def write(path: Path, state: AgentState, version: str) -> None:
    """Replaces the file in one step, so that no half-written one is collected. Raises ``OSError``."""
    write_atomically(path, render(state, version).encode())


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
