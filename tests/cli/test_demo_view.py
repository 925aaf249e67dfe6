"""What the demo says of its scenes, from scenes made by hand."""

import io
from dataclasses import replace

from rich.console import Console

from saegis import FeatureInfo, Generation, Receipt, Timings, Usage
from saegis_lab.cli import demo_view
from saegis_lab.cli.demo_scenes import Filter, Filtered, Landmark, Redirected
from saegis_lab.evaluation.experiment import RedirectFile

SITE = "layers.1.resid_post"
FEATURE = FeatureInfo("polyglot", 5, SITE, "the bridge", 10.0, None, (), (), None, {}, {}, False)
FILTERED = Filtered("zh", "怎么？", "有毒" * 40, False, 0.5, "下雨时人们穿大衣。" * 12, False, False, "", 0.0)
FILTER = Filter("no-harm@1", (5, 6), ("en", "zh"), (FILTERED,) * 3)


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def told(out: Console) -> str:
    """What was printed, on one line."""
    assert isinstance(out.file, io.StringIO)
    return " ".join(out.file.getvalue().split())


def test_the_first_scene_says_what_a_feature_is_and_what_is_redirected() -> None:
    answers = tuple(
        Redirected(code, f"q {code}?", f"plain {code}", f"steered {code}", False, names, True)
        for code, names in (("en", True), ("ru", False))
    )
    redirect = RedirectFile((3, 4), 5, 1.25, 1.0, ("en", "zh"))
    out = console()
    demo_view.show_landmark(out, Landmark(FEATURE, redirect, answers))
    text = told(out)
    assert "A feature is a direction" in text
    assert (
        "2 of these, found in text in English and Chinese, are redirected to 5, labelled 'the bridge'" in text
    )
    assert "1.25 times its value of the other is written instead" in text
    assert "Of these 2 answers, shown as they come, 1 then name the bridge" in text
    for answer in answers:
        for part in (answer.prompt, answer.unsteered, answer.redirected):
            assert part in text


def test_languages_are_named_in_english_and_as_one_says_it() -> None:
    out = console()
    demo_view.show_filter(out, FILTER)
    assert "one of 2 features of harmful subjects is active" in told(out)
    assert "chosen from English and Chinese alone" in told(out)


def test_long_texts_without_spaces_are_shown_whole() -> None:
    out = console()
    demo_view.show_filter(out, replace(FILTER, answers=(FILTERED,)))
    text = told(out)
    assert "…" not in text
    assert text.count("毒") == 40
    assert text.count("衣") == 12


def test_an_answer_is_shown_as_what_it_is() -> None:
    out = console()
    refused = replace(FILTERED, filtered="No.", refused_filtered=True)
    ended = replace(FILTERED, filtered="", stopped=True, reason="p/s: why")
    late = replace(ended, filtered="Die")
    unsaid = replace(ended, reason="")
    demo_view.show_filter(out, replace(FILTER, answers=(refused, ended, late, unsaid)))
    text = told(out)
    for part in ("refused: No.", "ended before a word", "p/s: why", "ended after 'Die'", "does not say"):
        assert part in text


def test_the_receipt_names_the_question_whose_answer_it_belongs_to() -> None:
    receipt = Receipt("digest", "", (), True, "model", Timings(0.0, 0.0, 0.0), (), False, "")
    out = console()
    demo_view.show_receipt(out, FILTERED, Generation("g", (), Usage(1, 1, 0, 1), receipt))
    assert "the answer under the filter to '怎么？' above" in told(out)
