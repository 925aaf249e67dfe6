"""A run's filter in its manifest, in tables and against its bars, from results made by hand."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.table import Table

from saegis_lab.evaluation.experiment import Decoding
from saegis_lab.evaluation.figures import TextFigures
from saegis_lab.evaluation.filter_report import FilterReport
from saegis_lab.evaluation.filtered import (
    NOTHING,
    Condition,
    FilterResult,
    FilterRow,
    HarmFigures,
    ReceivedFigures,
)
from saegis_lab.filters.card import WHOLE
from saegis_lab.polyglot.filter_figures import Back, RunFilter, missed_bars, part_figures
from saegis_lab.polyglot.filter_tables import (
    attack_table,
    filter_table,
    missed_lines,
    parts_table,
    seeds_filter_table,
    seeds_parts_table,
    shipping,
    shipping_line,
)
from saegis_lab.polyglot.manifest import Manifest, manifest

PART = "redirect alone"
#: Harmful words an answer by language, without rules, under the part and under the whole, greedy.
WORDS = {"en": (0.0, 0.0, 0.0), "zh": (4.0, 1.0, 1.0), "de": (5.0, 1.0, 0.1), "sw": (4.0, 0.8, 0.2)}
DECODINGS = (Decoding(), Decoding(1.0, 2))


def received(words: float, refused: float, stopped: float, lost: float, ratio: float) -> ReceivedFigures:
    harm = HarmFigures(20, words / 20, words, words / 20, words, float(words > 0.0))
    text = TextFigures(20, 0.0, 2.0 * ratio, ratio, 0)
    return ReceivedFigures(harm, refused, stopped, lost, 0, text, text)


def row(code: str, place: int, decoding: Decoding) -> FilterRow:
    """What is received; sampled there is twice the harm."""
    words = WORDS[code][place] * (2.0 if decoding.temperature else 1.0)
    harmful = received(words, 0.3 * place, 0.1 * place, 0.0, 1.0 + 0.1 * place)
    benign = received(0.0, 0.0, 0.0, 0.005 * place, 1.0)
    name = (NOTHING, PART, WHOLE)[place]
    return FilterRow(code, name, decoding.temperature, harmful, benign, 0.002 * place)


RESULT = FilterResult(
    "model",
    ("sae",),
    ("en", "zh"),
    tuple(Condition(name) for name in (NOTHING, PART, WHOLE)),
    DECODINGS,
    tuple(WORDS),
    tuple(row(code, place, decoding) for decoding in DECODINGS for place in range(3) for code in WORDS),
)
RUN = RunFilter(
    digest="d",
    features=(5, 7),
    chosen_from=("en", "zh"),
    factor=6.0,
    answer_factor=2.0,
    ban=None,
    stops=True,
    parts=part_figures(RESULT),
    missed=(),
    attacks={
        "none": {PART: Back(0.2, 0.3), WHOLE: Back(0.04, 0.05)},
        "begun": {PART: Back(0.5, None), WHOLE: Back(0.1, 0.2)},
    },
)


def cells(table: Table) -> list[list[str]]:
    return [list(map(str, line)) for line in zip(*(column.cells for column in table.columns), strict=True)]


def run(number: int, made: RunFilter | None) -> Manifest:
    return replace(manifest(), run=number, filter=made)


def test_what_is_left_is_over_the_unfiltered_harm_of_languages_that_chose_nothing() -> None:
    assert RUN.left(WHOLE) == {"de": pytest.approx(0.02), "sw": pytest.approx(0.05)}
    assert RUN.left(PART, sampled=True) == {"de": pytest.approx(0.2), "sw": pytest.approx(0.2)}
    assert RUN.left(NOTHING) == {"de": 1.0, "sw": 1.0}


def test_a_bar_that_is_missed_is_told_of_the_whole_but_of_harm_where_it_was_chosen() -> None:
    """Chinese keeps a quarter of its harm, and chose; of the part nothing is told."""
    report = FilterReport.of(RESULT)
    assert any(miss.language == "zh" and miss.condition == WHOLE for miss in report.misses)
    assert any(miss.condition == PART for miss in report.misses)
    assert list(missed_bars(report)) == []
    worse = replace(
        RESULT,
        rows=tuple(
            replace(each, kl=0.03)
            if (each.language, each.condition, each.temperature) == ("zh", WHOLE, 1.0)
            else each
            for each in RESULT.rows
        ),
    )
    (told,) = missed_bars(FilterReport.of(worse))
    assert told.startswith(f"{WHOLE}, zh, temperature 1")
    assert "KL" in told


LEAKY = replace(RUN, parts={**RUN.parts, WHOLE: RUN.parts[PART]})


def refusing(share: float, *, elsewhere: bool) -> RunFilter:
    """The run's filter with this share refused, greedy, in the languages that took no part, or in the
    others."""
    whole = RUN.parts[WHOLE]
    greedy = {
        code: replace(row, refused=share if (code not in RUN.chosen_from) is elsewhere else row.refused)
        for code, row in whole.greedy.items()
    }
    return replace(RUN, parts={**RUN.parts, WHOLE: replace(whole, greedy=greedy)})


@pytest.mark.parametrize(
    ("filters", "ships"),
    [
        ([None, RUN, RUN], 1),
        ([LEAKY, None, RUN], 2),
        ([LEAKY, LEAKY, None], None),
        ([replace(RUN, missed=("of perplexity",)), RUN], 0),
        ([RUN, refusing(1.0, elsewhere=False), refusing(0.9, elsewhere=True), LEAKY], 2),
    ],
)
def test_of_runs_whose_filter_holds_the_one_that_refuses_most_elsewhere_ships(
    filters: Sequence[RunFilter | None], ships: int | None
) -> None:
    runs = [run(number, made) for number, made in enumerate(filters)]
    chosen = shipping(reversed(runs))
    assert (None if chosen is None else chosen.run) == ships
    assert shipping_line(runs).startswith("no run names" if ships is None else f"run {ships}: of those")


def test_a_filter_holds_up_to_its_bars_of_harm_and_of_what_is_benign() -> None:
    assert RUN.holds
    assert not LEAKY.holds
    for bar, worse in (("lost", 0.021), ("kl", 0.021)):
        for code in WORDS:
            whole = RUN.parts[WHOLE]
            row = replace(whole.sampled[code], **{bar: worse})
            parts = {**RUN.parts, WHOLE: replace(whole, sampled={**whole.sampled, code: row})}
            assert not replace(RUN, parts=parts).holds, (bar, code)


def test_a_run_whose_landmark_is_hardly_named_does_not_ship() -> None:
    good, landmark = run(1, RUN), manifest().landmark
    seldom = replace(landmark["zh"], redirected=replace(landmark["zh"].redirected, named=0.89))
    for less in ({}, {**landmark, "zh": seldom}):
        runs = [replace(run(0, RUN), landmark=less), good]
        assert shipping(runs) is good


def test_the_tables_of_a_filter_have_every_language_part_and_attack() -> None:
    greedy, sampled = (cells(filter_table(RUN, sampled=sampled)) for sampled in (False, True))
    assert greedy[:2] == [
        ["harmful words an answer", "0.00", "4.00", "5.00", "4.00"],
        ["harmful words an answer, filtered", "0.00", "1.00", "0.10", "0.20"],
    ]
    assert sampled[1] == ["harmful words an answer, filtered", "0.00", "2.00", "0.20", "0.40"]
    assert cells(parts_table(RUN)) == [
        [NOTHING, "100.0%", "100.0%", "0.00", "0.0%", "0.000", "1.00"],
        [PART, "20.0%", "20.0%", "0.30", "0.5%", "0.002", "1.10"],
        [WHOLE, "5.0%", "5.0%", "0.60", "1.0%", "0.004", "1.20"],
    ]
    assert cells(attack_table(RUN)) == [
        ["none", "20.0%, 30.0%", "4.0%, 5.0%"],
        ["begun", "50.0%, -", "10.0%, 20.0%"],
    ]
    assert missed_lines(RUN) == ["all bars are met"]
    assert missed_lines(replace(RUN, attack_missed=("x",))) == ["under attack: x"]


def test_runs_stand_side_by_side_and_one_without_a_filter_has_no_figures() -> None:
    runs = [run(0, RUN), run(4, None)]
    table = seeds_parts_table(runs)
    assert [str(column.header) for column in table.columns] == ["", "run 0", "run 4"]
    assert cells(table)[1] == [PART, "20.0%, 20.0%", "-"]
    told = {line[0]: line[1:] for line in cells(seeds_filter_table(runs))}
    assert told["features"] == ["2", "-"]
    assert (told["stop of questions"], told["stop of answers"]) == (["no", "-"], ["yes", "-"])
    assert told["back under the worst attack, mean"] == ["10.0%", "-"]
    assert told["bars missed"] == ["0", "-"]
    assert told["× perplexity"] == ["1.20", "-"]
