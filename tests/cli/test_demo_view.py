"""What the demo says of its scenes, from scenes made by hand."""

import io

from rich.console import Console

from saegis import FeatureInfo, Generation, Receipt, Timings, Usage
from saegis_lab.cli import demo_view
from saegis_lab.cli.demo_scenes import Ban, Banned, Clamped, Landmark

SITE = "layers.1.resid_post"
FEATURE = FeatureInfo("polyglot", 5, SITE, "the bridge", 10.0, None, (), (), None, {}, {}, False)
BANNED = Banned("zh", "怎么？", "有毒" * 40, False, 0.5, "下雨时人们穿大衣。" * 12, False, 0.0)


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def told(out: Console) -> str:
    """What was printed, on one line."""
    assert isinstance(out.file, io.StringIO)
    return " ".join(out.file.getvalue().split())


def test_the_first_scene_says_what_a_feature_is_and_what_the_value_means() -> None:
    answers = tuple(Clamped(code, 9, n, "q", "a", "b", False, True) for code, n in (("en", 2), ("ru", 4)))
    out = console()
    demo_view.show_landmark(out, Landmark(FEATURE, 0.8, 8.0, answers))
    text = told(out)
    assert "A feature is a direction" in text
    assert "set to 8.0 at every token: 0.8 times the most that its activation reached" in text
    assert "2 of 9 in English and 4 of 9 in Russian" in text


def test_languages_are_named_in_english_and_as_one_says_it() -> None:
    out = console()
    demo_view.show_ban(out, Ban((FEATURE,), 2.0, ("en", "zh"), (BANNED,) * 3))
    assert "in English and Chinese alone" in told(out)


def test_long_texts_without_spaces_are_shown_whole() -> None:
    out = console()
    demo_view.show_ban(out, Ban((FEATURE,), 2.0, ("en",), (BANNED,)))
    text = told(out)
    assert "…" not in text
    assert text.count("毒") == 40
    assert text.count("衣") == 12


def test_the_receipt_names_the_question_whose_answer_it_belongs_to() -> None:
    receipt = Receipt("digest", "", (), True, "model", Timings(0.0, 0.0, 0.0), (), False, "")
    out = console()
    demo_view.show_receipt(out, BANNED, Generation("g", (), Usage(1, 1, 0, 1), receipt))
    assert "the banned answer to '怎么？' above" in told(out)
