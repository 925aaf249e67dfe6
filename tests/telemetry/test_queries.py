"""Rules and dashboards ask only for series that a server has; each alert is tried and explained."""

import re
from pathlib import Path

import pytest
import yaml

from tests.telemetry.promtool import promtool
from tests.telemetry.queries import (
    DEPLOY,
    LABELS_OF_PROMETHEUS,
    OF_PROMETHEUS,
    RULES,
    labels_of,
    metrics_of,
    queries,
    rules,
)
from tests.telemetry.scrape import Scrape
from tests.telemetry.test_documented import ELSEWHERE, documented

CASES = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


@pytest.mark.parametrize(
    ("query", "metrics", "labels"),
    [
        (
            'sum by (job, le) (rate(saegis_x_bucket{code="saegis_y", a!~"z"}[5m]))',
            {"saegis_x_bucket"},
            {"job", "le", "code", "a"},
        ),
        ("job:saegis_x:p95_5m > 5", {"job:saegis_x:p95_5m"}, set()),
        ('up{job="saegis"} == 0 and on (job) process_z', {"up", "process_z"}, {"job"}),
        ("a_b / on (saegis_l) group_left () saegis_m offset 7d", {"saegis_m"}, {"saegis_l"}),
    ],
)
def test_names_are_found_in_queries(query: str, metrics: set[str], labels: set[str]) -> None:
    assert (metrics_of(query), labels_of(query)) == (metrics, labels)


def test_every_query_reads_series_of_a_scrape(full_scrape: Scrape) -> None:
    scraped = {
        family.name + ending for family in full_scrape.families.values() for ending in ENDINGS[family.type]
    }
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    labels = set().union(*documented().values()) | LABELS_OF_PROMETHEUS
    for where, query in queries():
        assert metrics_of(query), where
        assert metrics_of(query) <= scraped | recorded | ELSEWHERE | OF_PROMETHEUS, where
        assert labels_of(query) <= labels, where


def test_every_alert_is_tried_and_explained() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    tried = [
        (case["alertname"], bool(case["exp_alerts"]))
        for file in CASES
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    assert set(tried) == {(alert, fires) for alert in alerts for fires in (False, True)}
    explained = re.findall(r"^\| `(Saegis\w+)` \|", OPERATING.read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(alerts)


def test_promtool_finds_no_fault_in_the_rules() -> None:
    promtool("check", "rules", *map(str, RULES.glob("*.yml")))
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


@pytest.mark.parametrize("file", CASES, ids=lambda file: str(file.stem))
def test_alerts_fire_when_they_should(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(file))
