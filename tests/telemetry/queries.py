"""What the shipped rules and dashboards ask Prometheus, and which names a query uses."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
#: Series that Prometheus makes itself, and labels that it adds to each.
OF_PROMETHEUS = {"up"}
LABELS_OF_PROMETHEUS = {"job", "instance", "le"}

_STRING = re.compile(r'"[^"]*"')
_METRIC = re.compile(r"(?<![\w:$])(?:up\b|(?:saegis|process)_\w+|\w+(?::\w+)+)")
_GROUPED = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=(?!=))")


def rules() -> list[dict[str, Any]]:
    """All rules, recorded and alerts."""
    groups = [
        group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


def dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards by the names of their files."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))}


def queries() -> Iterator[tuple[str, str]]:
    """All queries, each with where it stands."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{name}, {panel['title']}", target["expr"]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{name}, ${variable['name']}", variable["query"]


def metrics_of(query: str) -> set[str]:
    """The names of the series that it reads."""
    return set(_METRIC.findall(_STRING.sub("", _GROUPED.sub("", query))))


def labels_of(query: str) -> set[str]:
    """The labels that it selects or groups by."""
    plain = _STRING.sub("", query)
    grouped = {label.strip() for labels in _GROUPED.findall(plain) for label in labels.split(",")}
    braces = " ".join(re.findall(r"\{([^}]*)\}", plain))
    return (grouped | set(_MATCHER.findall(braces))) - {""}
