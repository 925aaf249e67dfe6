"""The dashboards are what their script writes, and Prometheus can read each query."""

import json
import re
from pathlib import Path

import yaml

from scripts.gen_dashboards import DASHBOARDS, dashboard
from tests.telemetry.promtool import promtool
from tests.telemetry.queries import DEPLOY, dashboards, labels_of, queries

PROVISIONING = DEPLOY / "grafana" / "provisioning"


def test_the_dashboards_are_those_of_the_script() -> None:
    assert dashboards() == {name: json.loads(dashboard(name)) for name in DASHBOARDS}


def test_legends_tell_labels_that_the_query_keeps() -> None:
    for name, shown in dashboards().items():
        for panel in shown["panels"]:
            for target in panel["targets"]:
                told = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert told <= labels_of(target["expr"]) | {"job", "instance"}, f"{name}, {panel['title']}"


def test_the_data_source_is_provisioned() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "saegis.yml").read_text())["providers"]
    assert (source["type"], provider["type"]) == ("prometheus", "file")
    for shown in dashboards().values():
        kinds = {variable["name"]: variable["query"] for variable in shown["templating"]["list"]}
        assert kinds["source"] == source["type"]
        assert {panel["datasource"]["uid"] for panel in shown["panels"]} == {"${source}"}


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    """Each is written as a rule, which promtool parses."""
    plain = [
        query.replace("$__rate_interval", "5m").replace("$__range", "6h").replace("$job", ".*")
        for where, query in queries()
        if "$job" in query
    ]
    assert len(plain) > 40
    rules = [{"record": f"test:{place}:query", "expr": query} for place, query in enumerate(plain)]
    (tmp_path / "rules.yml").write_text(yaml.dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "rules.yml"))
