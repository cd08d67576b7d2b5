"""Makes monitoring/grafana-rebootd.json: python monitoring/dashboard.py > monitoring/grafana-rebootd.json.

Needs grafana-foundation-sdk, which is for development only. A test checks every query against the metrics that the
code shows, and that the JSON is what this makes.
"""

from __future__ import annotations

import sys
from string import ascii_uppercase
from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    StackingMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard as model

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
FLEET = 'job="$job",dc=~"$dc"'
"""What every query selects: one fleet. Only its leader shows it, so queries take the maximum over the daemons."""


def query(expr: str, legend: str = "", ref: str = "A") -> prometheus.Dataquery:
    """One query; FLEET stands for the chosen fleet in it, ``ref`` names it within its panel."""
    made = prometheus.Dataquery().datasource(SOURCE).expr(expr.replace("FLEET", FLEET)).ref_id(ref)
    return made.legend_format(legend or "__auto")


def number(
    title: str, expr: str, says: str, *, good: float | None = None, bad: float | None = None, unit: str = "none"
) -> stat.Panel:
    """One number; red below ``good`` and from ``bad`` on."""
    steps = [Threshold(value=None, color="red" if good is not None else "green" if bad is not None else "blue")]
    if good is not None:
        steps.append(Threshold(value=good, color="green"))
    if bad is not None:
        steps.append(Threshold(value=bad, color="red"))
    return (
        stat.Panel()
        .title(title)
        .description(says)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .orientation(VizOrientation.AUTO)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .span(3)
        .height(4)
        .with_target(query(expr).instant())
    )


def lines(
    title: str, says: str, *queries: tuple[str, str], unit: str = "short", stacked: bool = False
) -> timeseries.Panel:
    """Lines over time, or areas that add up; ``queries`` are (expression, legend) pairs."""
    panel = timeseries.Panel().title(title).description(says).datasource(SOURCE).unit(unit).min(0).span(12).height(8)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(60)
    panel = panel.draw_style(GraphDrawStyle.LINE).line_width(1)
    for ref, (expr, legend) in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(query(expr, legend, ref))
    return panel


def _now(board: Dashboard) -> None:
    board.with_row(Row("Now"))
    for panel in (
        number("Leaders", "sum(rebootd_leader{FLEET})", "One daemon leads; none or two is an alert.", good=1, bad=2),
        number("Epoch", "max(rebootd_epoch{FLEET})", "Grows by one with each leadership."),
        number(
            "In service",
            'max(sum by (instance) (rebootd_machines{FLEET,state="in-service"}))',
            "Machines that are in service by their record.",
        ),
        number(
            "Out",
            'max(sum by (instance) (rebootd_machines{FLEET,state!~"in-service|held|quarantined"})) or vector(0)',
            "Machines on their way through a reboot.",
        ),
        number(
            "Held",
            'max(sum by (instance) (rebootd_machines{FLEET,state="held"})) or vector(0)',
            "Machines that an operator keeps out.",
        ),
        number(
            "Quarantined",
            'max(sum by (instance) (rebootd_machines{FLEET,state="quarantined"})) or vector(0)',
            "Machines that failed; they count as unavailable until they are cleared.",
            bad=1,
        ),
        number(
            "Silent",
            'max(rebootd_unheard_machines{FLEET,state="in-service"})',
            "Machines in service whose agents do not call.",
            bad=1,
        ),
        number(
            "Failing",
            "max(rebootd_machines_failing{FLEET})",
            "Machines that Consul's node checks or maintenance marks say have failed.",
            bad=1,
        ),
        number("Faults", "max(rebootd_faults{FLEET})", "While there is one, nothing goes out.", bad=1),
        number("Halted", "max(rebootd_halted{FLEET})", "1: no machine goes out until somebody ends the halt.", bad=1),
        number("Window", "max(rebootd_window_open{FLEET})", "1: machines may go out now."),
        number("Waiting agents", "max(rebootd_waiting_agents{FLEET})", "Agents whose requests are open."),
        number("Breakers", "max(rebootd_breakers_open{FLEET})", "Kinds of machines that are held back.", bad=1),
        number("Flagged", "max(rebootd_flagged_machines{FLEET})", "A reboot changed nothing for them.", bad=1),
        number("Records aside", "max(rebootd_records_aside{FLEET})", "Records that cannot be read.", bad=1),
        number("Conflicts", "max(rebootd_identity_conflicts{FLEET})", "Names that two machines report.", bad=1),
    ):
        board.with_panel(panel)


def _machines(board: Dashboard) -> None:
    board.with_row(Row("Machines"))
    for panel in (
        lines(
            "Machines that are not in service",
            "By state. In-service is left out, so that the few can be seen.",
            ('max by (state) (sum by (state, instance) (rebootd_machines{FLEET,state!="in-service"}))', "{{state}}"),
            stacked=True,
        ),
        lines(
            "What machines wait for",
            "Waiting machines by kind of blocker; one may wait for several. rebootctl explain says it for each.",
            ("max by (kind) (rebootd_blocked_machines{FLEET})", "{{kind}}"),
        ),
        lines(
            "Longest in a state",
            "Against the policy's deadline of that state.",
            ("max by (state) (rebootd_oldest_in_state_seconds{FLEET})", "{{state}}"),
            ("max by (state) (rebootd_deadline_seconds{FLEET})", "deadline of {{state}}"),
            unit="s",
        ),
        lines(
            "How long a state takes",
            "Nine of ten machines leave it within this time.",
            (
                "histogram_quantile(0.9, sum by (state, le) (rate(rebootd_state_seconds_bucket{FLEET}[1h])))",
                "{{state}}",
            ),
            unit="s",
        ),
        lines(
            "Transitions",
            "Per hour, into which state and why.",
            (
                "sum by (to_state, cause) (increase(rebootd_transitions_total{FLEET}[1h]))",
                "{{to_state}} ({{cause}})",
            ),
        ),
        lines(
            "Permits and refused reports",
            "Per hour.",
            ("sum by (granted) (increase(rebootd_permits_total{FLEET}[1h]))", "permit granted: {{granted}}"),
            ("sum by (why) (increase(rebootd_reports_refused_total{FLEET}[1h]))", "report refused: {{why}}"),
        ),
    ):
        board.with_panel(panel)


def _work(board: Dashboard) -> None:
    board.with_row(Row("Cycles, racks, gates"))
    for panel in (
        lines(
            "Machines out by cycle",
            "A machine without a cycle is out for another reason (a crash, a hold).",
            (
                'max by (cycle, state) (sum by (cycle, state, instance) (rebootd_machines{FLEET,state!="in-service"}))',
                "{{cycle}} {{state}}",
            ),
            stacked=True,
        ),
        lines(
            "Cycles",
            "1 for the state that each cycle is in.",
            ('max by (cycle, state) (rebootd_cycle{FLEET,state!~"done|cancelled"})', "{{cycle}} {{state}}"),
        ),
        lines(
            "Time left by the first forecast",
            "At 0 the cycle should have ended.",
            (
                "clamp_min(max by (cycle) (rebootd_cycle_estimated_end_timestamp_seconds{FLEET}) - time(), 0)",
                "{{cycle}}",
            ),
            ("time() - max by (cycle) (rebootd_cycle_started_timestamp_seconds{FLEET})", "{{cycle}} has run for"),
            unit="s",
        ),
        lines(
            "Locked racks",
            "By who holds the lock.",
            ("max by (rack, holder) (rebootd_rack_locked{FLEET})", "{{rack}} {{holder}}"),
            stacked=True,
        ),
        lines(
            "Nothing moves in an open rack",
            "Since its last machine changed its state.",
            ("max by (rack) (rebootd_rack_quiet_seconds{FLEET})", "{{rack}}"),
            unit="s",
        ),
        lines(
            "Gates",
            "1 for what each gate says; idle: nobody waits for it.",
            ("max by (gate, verdict) (rebootd_gate{FLEET})", "{{gate}} {{verdict}}"),
            ("max by (gate) (rebootd_gate_overdue{FLEET}) > 0", "{{gate}} is overdue"),
        ),
        lines(
            "Power cycles in the last hour",
            "Out of band, and how many are allowed.",
            ("max(rebootd_power_cycles_last_hour{FLEET})", "sent"),
            ("max(rebootd_power_cycles_per_hour_max{FLEET})", "allowed"),
        ),
    ):
        board.with_panel(panel)


def _daemons(board: Dashboard) -> None:
    board.with_row(Row("Daemons and Consul"))
    for panel in (
        lines("Who leads", "1 for the daemon that leads.", ("rebootd_leader{FLEET}", "{{instance}}"), stacked=True),
        lines(
            "Elections won",
            "Per hour and daemon.",
            ("sum by (instance) (increase(rebootd_elections_won_total{FLEET}[1h]))", "{{instance}}"),
        ),
        lines(
            "Time of a transaction in Consul",
            "",
            (
                "histogram_quantile(0.5, sum by (le) (rate(rebootd_commit_seconds_bucket{FLEET}[$__rate_interval])))",
                "half of them",
            ),
            (
                "histogram_quantile(0.99, sum by (le) (rate(rebootd_commit_seconds_bucket{FLEET}[$__rate_interval])))",
                "99 of 100",
            ),
            unit="s",
        ),
        lines(
            "Transactions in Consul",
            "Per second by outcome, and operations in one.",
            ("sum by (outcome) (rate(rebootd_commit_seconds_count{FLEET}[$__rate_interval]))", "{{outcome}}"),
            (
                (
                    "sum(rate(rebootd_commit_operations_sum{FLEET}[$__rate_interval])) "
                    "/ sum(rate(rebootd_commit_operations_count{FLEET}[$__rate_interval]))"
                ),
                "operations in one",
            ),
        ),
        lines(
            "Time of a decision",
            "99 of 100 take no longer.",
            (
                "histogram_quantile(0.99, sum by (le) (rate(rebootd_decide_seconds_bucket{FLEET}[$__rate_interval])))",
                "decide",
            ),
            unit="s",
        ),
        lines(
            "Leader's clock",
            "Minus the median of its agents' clocks, and what the policy tolerates.",
            ("abs(max(rebootd_clock_skew_seconds{FLEET}))", "off by"),
            ("max(rebootd_clock_tolerance_seconds{FLEET})", "tolerated"),
            unit="s",
        ),
        lines("Memory", "Resident, by daemon.", ("process_resident_memory_bytes{FLEET}", "{{instance}}"), unit="bytes"),
        lines(
            "Processor",
            "Cores in use, by daemon.",
            ("rate(process_cpu_seconds_total{FLEET}[$__rate_interval])", "{{instance}}"),
        ),
        lines(
            "Audit",
            "Entries per hour by what became of the change; 1 while the chain is broken or the file cannot be written.",
            ("sum by (result) (increase(rebootd_audit_entries_total{FLEET}[1h]))", "{{result}}"),
            ("max(rebootd_audit_chain_broken{FLEET})", "chain broken"),
            ("max(rebootd_audit_unwritable{FLEET})", "file cannot be written"),
        ),
        lines(
            "Handshakes",
            "Waiting for their turn now, by daemon (many after a leader's death), and failed ones per hour by reason.",
            ("rebootd_tls_handshakes_waiting{FLEET}", "{{instance}} waiting"),
            ("sum by (reason) (increase(rebootd_tls_handshakes_failed_total{FLEET}[1h]))", "{{reason}}"),
        ),
        lines(
            "Notifications",
            "Per hour: what receivers (chat, mail, webhooks) took, did not take, and what was dropped for them.",
            ("sum by (result) (increase(rebootd_notifications_total{FLEET}[1h]))", "{{result}}"),
        ),
    ):
        board.with_panel(panel)


def _hosts(board: Dashboard) -> None:
    board.with_row(Row("Agents (from node_exporter's textfile collector, every fleet)"))
    for panel in (
        lines(
            "Agents by version",
            "",
            ("count by (version) (rebootd_agent_info)", "{{version}}"),
            stacked=True,
        ),
        lines(
            "Hosts",
            "By the agents' own view.",
            ("sum(rebootd_agent_in_service)", "in service"),
            ("sum(rebootd_agent_out_mark)", "with our out mark"),
            ('sum(rebootd_agent_reboot_required{is="yes"})', "a reboot is required"),
            ("sum(rebootd_agent_boot_check_failed)", "checks after the boot fail"),
            ("sum(rebootd_agent_shutdown_announced)", "a shutdown by others is coming"),
            ("sum(rebootd_agent_by_hand)", "enabled by hand"),
            ("sum(rebootd_agent_enabled_by_itself)", "enabled themselves"),
            ("sum(rebootd_agent_problem)", "with a problem"),
        ),
        lines(
            "Last contact",
            "The ten hosts whose agents were answered longest ago.",
            ("topk(10, time() - rebootd_agent_last_contact_timestamp_seconds)", "{{instance}}"),
            unit="s",
        ),
        lines(
            "How the last boot ended",
            "",
            ("sum by (is) (rebootd_agent_last_shutdown)", "{{is}}"),
            stacked=True,
        ),
    ):
        board.with_panel(panel)


def board() -> model.Dashboard:
    """The dashboard."""
    made = (
        Dashboard("rebootd")
        .uid("rebootd")
        .tags(["rebootd"])
        .description("A fleet that rebootd keeps fresh. Alerts and what to do: docs/operations.md.")
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .readonly()
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    made.with_variable(_chosen("job", "Fleet", "rebootd_leader"))
    # Also a Prometheus that knows no datacenters shows something.
    made.with_variable(_chosen("dc", "Datacenter", 'rebootd_leader{job="$job"}').include_all(True).all_value(".*"))
    for part in (_now, _machines, _work, _daemons, _hosts):
        part(made)
    built = made.build()
    for place, panel in enumerate(built.panels or (), 1):
        panel.id_val = place  # links to one panel stay
    return built


def _chosen(name: str, label: str, series: str) -> QueryVariable:
    """What a viewer chooses by: the values of a label."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({series}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


if __name__ == "__main__":
    sys.stdout.write(JSONEncoder(sort_keys=True, indent=2).encode(board()) + "\n")
