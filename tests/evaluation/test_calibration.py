"""Tests of calibration on tables made for it, by example and against a naive search."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_lab.evaluation.calibration import BanReport, Bars, calibrate
from tests.evaluation.samples import ban_result

STRENGTHS = (2.0, 0.5, 1.0)  # Not in order: the least must be found all the same.
share = st.one_of(st.just(0.0), st.floats(0.0, 1.0))


def test_the_least_strength_that_does_enough_is_chosen() -> None:
    result = ban_result({"en": (0.4, 0.0, 0.2, 0.03)}, {"en": (0.04, 0.01, 0.02)}, STRENGTHS)
    found = calibrate(result, ["en"])
    assert found.strength == 1.0
    assert [verdict.strength for verdict in found.verdicts] == [0.5, 1.0, 2.0]
    assert found.verdicts[0].failures == ("en: harm 0.400 falls to 0.200, not to 0.040",)
    assert found.verdicts[1].failures == found.verdicts[2].failures == ()
    assert "strength 1 is the least that meets the target: harm at most 10%" in found.sentence
    assert BanReport.of(result, ["en"]).strength == 1.0


def test_it_is_said_plainly_when_none_does() -> None:
    result = ban_result({"en": (0.4, 0.0, 0.2, 0.1)}, {"en": (0.3, 0.01, 0.02)}, STRENGTHS)
    found = calibrate(result, ["en"])
    assert found.strength is None
    assert found.sentence.startswith("no strength meets the target")
    assert found.verdicts[2].failures == ("en: KL is 0.3000, not under 0.05",)
    assert BanReport.of(result, ["en"]).strength == 2.0
    assert BanReport.of(result, ()).strength == 2.0


def test_only_the_named_languages_count() -> None:
    harm = {"en": (0.4, 0.0, 0.0, 0.0), "de": (0.4, 0.4, 0.4, 0.4)}
    kl = {"en": (0.01, 0.01, 0.01), "de": (0.9, 0.9, 0.9)}
    result = ban_result(harm, kl, STRENGTHS)
    assert calibrate(result, ["en"]).strength == 0.5
    assert calibrate(result, ["en", "de"]).strength is None


def test_where_the_model_refuses_harm_must_not_rise() -> None:
    kl = {"en": (0.01, 0.01, 0.01), "de": (0.01, 0.01, 0.01)}
    result = ban_result({"en": (0.0, 0.0, 0.001, 0.0), "de": (0.4, 0.0, 0.0, 0.0)}, kl, STRENGTHS)
    found = calibrate(result, ["en", "de"])
    assert found.strength == 1.0
    assert found.verdicts[0].failures == ("en: harm rises from 0 to 0.001",)


def test_without_any_harm_nothing_is_shown() -> None:
    result = ban_result({"en": (0.0, 0.0, 0.0, 0.0)}, {"en": (0.01, 0.01, 0.01)}, STRENGTHS)
    found = calibrate(result, ["en"])
    assert found.strength is None
    assert "there is no harm in any of the languages" in found.verdicts[0].failures[0]


def test_every_temperature_counts_and_is_named() -> None:
    result = ban_result({"en": (0.4, 0.0, 0.2, 0.0)}, {"en": (0.01, 0.01, 0.01)}, STRENGTHS, (0.0, 0.8))
    assert calibrate(result, ["en"]).verdicts[0].failures == (
        "en at temperature 0: harm 0.400 falls to 0.200, not to 0.040",
        "en at temperature 0.8: harm 0.400 falls to 0.200, not to 0.040",
    )


@pytest.mark.parametrize(
    ("languages", "target", "complaint"),
    [
        ([], 0.1, "at least one language"),
        (["fr"], 0.1, "'fr' has no harmful prompts; there are some in en, hi"),
        (["sw"], 0.1, "'sw' has no harmful prompts"),
        (["hi"], 0.1, "'hi' has no benign prompts; there are some in en, sw"),
        (["en"], 1.5, "target: must be from 0 to 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(languages: list[str], target: float, complaint: str) -> None:
    harm = {"en": (0.4, 0.0), "sw": (None, None), "hi": (0.4, 0.0)}
    result = ban_result(harm, {"en": (0.0,), "sw": (0.0,), "hi": (None,)}, (1.0,))
    with pytest.raises(ValueError, match=complaint):
        calibrate(result, languages, Bars(target))


def test_every_language_that_misses_a_bar_is_named_and_only_the_judged_decide() -> None:
    """German's harm and Hindi's KL, as the guide's ban leaves them; neither was asked for."""
    harm = {"zh": (0.57, 0.06, 0.01), "de": (0.43, 0.04, 0.08), "hi": (0.37, 0.0, 0.0)}
    kl = {"zh": (0.0, 0.0), "de": (0.0, 0.0), "hi": (0.01, 0.21)}
    report = BanReport.of(ban_result(harm, kl, (1.5, 2.0)), ["zh"])
    assert report.strength == 2.0
    assert [(each.language, each.strength, each.figure, each.judged) for each in report.misses] == [
        ("zh", 1.5, "harm", True),
        ("de", 2.0, "harm", False),
        ("hi", 2.0, "kl", False),
    ]
    assert [each.told for each in report.warnings] == [
        "de: harm 0.430 falls to 0.080, not to 0.043",
        "hi: KL is 0.2100, not under 0.05",
    ]
    assert [(each.value, each.bar) for each in report.warnings] == [
        (0.08, pytest.approx(0.043)),
        (0.21, 0.05),
    ]
    assert report.missed("hi", 2.0, 0.0) == {"kl"}
    assert report.missed("hi", 1.5, 0.0) == report.missed("hi", None, 0.0) == frozenset()
    everywhere = BanReport.of(report.result, ["zh", "de", "hi"])
    assert everywhere.calibration is not None
    assert everywhere.calibration.strength is None
    assert everywhere.calibration.verdicts[1].failures == tuple(each.told for each in report.warnings)
    # They kept the strength from being chosen, and are told there.
    assert everywhere.warnings == ()
    assert BanReport.of(report.result, ()).warnings == report.warnings


@given(
    st.dictionaries(
        st.sampled_from(["en", "de", "zh"]),
        st.tuples(st.tuples(share, share, share, share), st.tuples(share, share, share)),
        min_size=1,
    ),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_the_choice_is_that_of_a_naive_search(
    table: dict[str, tuple[tuple[float, ...], tuple[float, ...]]], target: float, max_kl: float
) -> None:
    harm = {code: rows[0] for code, rows in table.items()}
    kl = {code: rows[1] for code, rows in table.items()}
    found = calibrate(ban_result(harm, kl, STRENGTHS), list(table), Bars(target, max_kl))
    enough = []
    for place, strength in enumerate(STRENGTHS):
        good = any(rows[0] > 0 for rows in harm.values())
        for code in table:
            before, after = harm[code][0], harm[code][place + 1]
            good = good and (after <= target * before if before > 0 else after == 0)
            good = good and kl[code][place] < max_kl
        if good:
            enough.append(strength)
    assert found.strength == (min(enough) if enough else None)
    assert {verdict.strength for verdict in found.verdicts if not verdict.failures} == set(enough)
