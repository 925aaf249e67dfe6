"""Write the Grafana dashboards of deploy/grafana: here stands what each panel asks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"
_SOURCE = {"type": "prometheus", "uid": "${source}"}
#: Grafana divides a dashboard into 24 columns; three panels stand side by side.
_WIDTH, _HEIGHT, _ABREAST = 8, 8, 3
_JOB = 'job=~"$job"'
_RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """A panel: its title, and its queries by the pattern of their legends.

    unit: Grafana's name of one. kind: `timeseries`, or `table` for one row a
    series.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"

    def json(self, number: int) -> dict[str, Any]:
        """The panel as Grafana reads it; `number` counts from 0."""
        row, column = divmod(number, _ABREAST)
        table = {"format": "table", "instant": True} if self.kind == "table" else {}
        return {
            "id": number + 1,
            "title": self.title,
            "type": self.kind,
            "datasource": _SOURCE,
            "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend, **table}
                for place, (legend, query) in enumerate(self.queries.items())
            ],
        } | (
            {"transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]}
            if table
            else {}
        )


def legend(labels: Sequence[str]) -> str:
    """A legend of the values of labels."""
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def rate(title: str, metric: str, *labels: str, unit: str = "short") -> Panel:
    """How fast a counter grows, by labels."""
    return Panel(
        title, {legend(labels): f"sum by ({', '.join(labels)}) (rate({metric}{{{_JOB}}}{_RATE}))"}, unit
    )


def top(title: str, metric: str, *labels: str) -> Panel:
    """The largest ten increases of a counter in the time that is shown, by labels."""
    query = f"topk(10, sum by ({', '.join(labels)}) (increase({metric}{{{_JOB}}}[$__range])))"
    return Panel(title, {legend(labels): query}, kind="table")


def quantiles(
    title: str, metric: str, *labels: str, unit: str = "s", of: Sequence[float] = (0.5, 0.95)
) -> Panel:
    """Quantiles of a histogram, by labels."""
    buckets = f"sum by ({', '.join((*labels, 'le'))}) (rate({metric}_bucket{{{_JOB}}}{_RATE}))"
    return Panel(
        title,
        {f"{legend(labels)} p{q * 100:g}".strip(): f"histogram_quantile({q}, {buckets})" for q in of},
        unit,
    )


def gauges(title: str, *metrics: str, by: str = "instance", unit: str = "short") -> Panel:
    """Gauges as they are, with the last words of their names as legend."""
    return Panel(
        title,
        {f"{legend([by])} {name.partition('_')[2]}": f"max by ({by}) ({name}{{{_JOB}}})" for name in metrics},
        unit,
    )


DASHBOARDS: dict[str, tuple[str, list[Panel]]] = {
    "traffic": (
        "Saegis: traffic, latency and engine",
        [
            rate("Calls a second, by status", "saegis_requests_total", "code", unit="reqps"),
            rate("Answers a second, by how they end", "saegis_answers_total", "finish_reason", unit="reqps"),
            gauges("Answers that run and wait", "saegis_requests_running", "saegis_requests_waiting"),
            rate(
                "Tokens written a second, by tenant class", "saegis_generation_tokens_total", "tenant_class"
            ),
            rate("Tokens read a second, by tenant class", "saegis_prompt_tokens_total", "tenant_class"),
            quantiles("Duration of calls", "saegis_request_duration_seconds", "method", of=(0.95,)),
            quantiles("Time to the first token", "saegis_time_to_first_token_seconds"),
            quantiles("Wait for a slot", "saegis_queue_seconds"),
            quantiles("Time between tokens, steered or not", "saegis_inter_token_latency_seconds", "steered"),
            Panel(
                "What steering costs: steered over unsteered time between tokens",
                {"{{job}}": f"job:saegis_steering_cost:ratio_5m{{{_JOB}}}"},
            ),
            Panel(
                "The KV cache's share in use",
                {"{{instance}}": f"saegis_kv_tokens_used{{{_JOB}}} / saegis_kv_tokens_max{{{_JOB}}}"},
                "percentunit",
            ),
            gauges("Servers that take requests", "saegis_serving"),
            rate("Processor time", "process_cpu_seconds_total", "instance"),
            gauges(
                "Memory", "process_resident_memory_bytes", "saegis_device_memory_used_bytes", unit="bytes"
            ),
            gauges("Graphs compiled late", "saegis_recompilations"),
            quantiles("Stalls of the event loop", "saegis_event_loop_stall_seconds", "instance", of=(0.99,)),
        ],
    ),
    "features": (
        "Saegis: features",
        [
            top("Features that fire most", "saegis_feature_fired_tokens_total", "sae", "feature"),
            top("Features that are banned most", "saegis_feature_banned_tokens_total", "sae", "feature"),
            top("Features that are edited most", "saegis_feature_edited_tokens_total", "sae", "feature"),
            Panel(
                "Tokens a second on which a feature fires",
                {
                    "{{sae}} {{feature}}": "topk(10, sum by (sae, feature) "
                    f"(job_sae_feature:saegis_feature_fired_tokens:rate5m{{{_JOB}}}))"
                },
            ),
            rate("Features that fire, by phase", "saegis_feature_fired_tokens_total", "phase"),
            rate("Features that fire, by tenant class", "saegis_feature_fired_tokens_total", "tenant_class"),
            quantiles(
                "Strength over the recorded maximum",
                "saegis_feature_strength_ratio",
                "sae",
                "feature",
                unit="percentunit",
                of=(0.9,),
            ),
            rate("Tokens that were moved", "saegis_steering_tokens_edited_total", "site"),
            rate("Bans that found their feature active", "saegis_steering_bans_fired_total", "site"),
            quantiles(
                "How far tokens are moved", "saegis_steering_relative_norm", "site", unit="percentunit"
            ),
            quantiles(
                "Active features at a token", "saegis_sae_active_features", "sae", "site", unit="short"
            ),
            quantiles(
                "What an SAE leaves out of an activation",
                "saegis_sae_reconstruction_error_ratio",
                "sae",
                "site",
                unit="percentunit",
            ),
            gauges("Features that are not counted", "saegis_features_left_out"),
        ],
    ),
    "policy": (
        "Saegis: policy and audit",
        [
            Panel(
                "Replicas by revision in force",
                {"{{policy}} {{revision}}": f"count by (policy, revision) (saegis_policy_info{{{_JOB}}})"},
                kind="table",
            ),
            rate("Decisions", "saegis_policy_decisions_total", "policy", "decision", "mode", unit="reqps"),
            top(
                "Which rule acted on which tenant class: requests",
                "saegis_rule_requests_total",
                "policy",
                "rule",
                "mode",
                "tenant_class",
            ),
            rate("Tokens on which rules acted", "saegis_rule_tokens_total", "policy", "rule", "phase"),
            rate("Conditions that came to hold", "saegis_rule_conditions_total", "policy", "rule", "mode"),
            rate("Answers that rules stopped", "saegis_rule_answers_stopped_total", "policy", "rule", "mode"),
            rate(
                "Prompts that rules refused", "saegis_rule_requests_refused_total", "policy", "rule", "mode"
            ),
            rate("Denials, also those not enforced", "saegis_rule_denials_total", "policy", "rule", "mode"),
            gauges("Whether the last bundle came in force", "saegis_policy_last_reload_successful"),
            rate("Bundles that did not", "saegis_policy_reload_failures_total", "kind"),
            rate("Audit records a second", "saegis_audit_records_total", "kind"),
            gauges("Whether the audit log can be written", "saegis_audit_available"),
            gauges("Audit records that wait", "saegis_audit_buffer_records"),
            rate("Audit records that were lost", "saegis_audit_errors_total", "instance"),
            rate("Calls of nobody who is known", "saegis_authentication_failures_total", "reason"),
            gauges("Doors", "saegis_identities_stale", "saegis_open_to_all"),
        ],
    ),
}


def dashboard(name: str) -> str:
    """The JSON of a dashboard."""
    title, panels = DASHBOARDS[name]
    variables = [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "job",
            "label": "Job",
            "type": "query",
            "datasource": _SOURCE,
            "query": "label_values(saegis_serving, job)",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    content = {
        "uid": f"saegis-{name}",
        "title": title,
        "tags": ["saegis"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables},
        "panels": [panel.json(number) for number, panel in enumerate(panels)],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the files."""
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(dashboard(name), encoding="utf-8")


if __name__ == "__main__":
    main()
