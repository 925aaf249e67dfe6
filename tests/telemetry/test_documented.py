"""docs/metrics.md tells every metric of a live scrape with its labels, and none that is not there."""

import re
from pathlib import Path

import saegis
from tests.rpc.harness import eventually, running
from tests.rpc.test_governor import BAN, write
from tests.telemetry.promtool import check_metrics
from tests.telemetry.scrape import scrape

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
#: On a machine with an accelerator alone.
ELSEWHERE = {"saegis_device_memory_used_bytes", "saegis_device_memory_bytes"}
#: What the format of a scrape adds.
OF_THE_FORMAT = {"le"}


def documented() -> dict[str, set[str]]:
    """The metrics of the page's tables, each with its labels."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = line.split("|")
        if len(cells) == 5 and (names := re.findall(r"`((?:saegis|process)_\w+)`", cells[1])):
            labels = set(re.findall(r"`(\w+)`", cells[2]))
            found.update(dict.fromkeys(names, labels))
    return found


def test_every_query_of_the_page_is_of_documented_metrics() -> None:
    queried = set(re.findall(r"saegis_\w+", PAGE.read_text().partition("## Questions")[2]))
    of_histograms = {f"{name}_bucket" for name in documented()}
    assert queried
    assert queried <= set(documented()) | of_histograms


def test_the_page_and_a_scrape_tell_of_the_same_metrics(tmp_path: Path) -> None:
    policies = {"bundles": [str(write(tmp_path, BAN)), str(write(tmp_path, "mode: audit\n" + BAN, "a"))]}
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    with (
        running(policies=policies, audit=audit, watch_features=["first:5"], sample_seconds=0.001) as server,
        saegis.Client(server.target) as client,
    ):
        client.generate("the river", max_tokens=3, temperature=0.0)
        # A sample is taken while the answer is written, or soon after.
        eventually(lambda: bool(list(scrape(server).samples("saegis_sae_active_features_count"))))
        found = scrape(server)
    told = {
        family.name + ("_total" if family.type == "counter" else ""): {
            label for sample in family.samples for label in sample.labels
        }
        - OF_THE_FORMAT
        for family in found.families.values()
    }
    page = documented()
    assert set(page) - ELSEWHERE == set(told)
    # A series that counts nothing yet has no labels to compare.
    assert {name: page[name] for name, labels in told.items() if labels} == {
        name: labels for name, labels in told.items() if labels
    }
    check_metrics(found.text)
