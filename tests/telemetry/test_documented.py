"""docs/metrics.md tells every metric of a live scrape with its labels, and none that is not there."""

import re
from pathlib import Path

from tests.telemetry.promtool import check_metrics
from tests.telemetry.scrape import Scrape

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


def test_the_page_and_a_scrape_tell_of_the_same_metrics(full_scrape: Scrape) -> None:
    told = {
        family.name + ("_total" if family.type == "counter" else ""): {
            label for sample in family.samples for label in sample.labels
        }
        - OF_THE_FORMAT
        for family in full_scrape.families.values()
    }
    page = documented()
    assert set(page) - ELSEWHERE == set(told)
    # A series that counts nothing yet has no labels to compare.
    assert {name: page[name] for name, labels in told.items() if labels} == {
        name: labels for name, labels in told.items() if labels
    }
    check_metrics(full_scrape.text)
