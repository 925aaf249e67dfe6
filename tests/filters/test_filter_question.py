"""The question stop: its features against a loop, and what it ends against the server's own evaluator."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_lab.evaluation.experiment import Prompt, languages_of
from saegis_lab.filters.direction import activations
from saegis_lab.filters.question import (
    PromptPeaks,
    Questions,
    QuestionStop,
    answers_to_harm,
    prompt_peaks,
    question_readings,
    question_stop,
    text_peaks,
    unrefused,
)
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.stop import StopReading, exceeded_by_few
from saegis_lab.filters.subject import FilterSubject
from saegis_server.steering.conditions import AnyOf, Condition, Literal, Scope
from saegis_server.steering.evaluator import TextConditions
from tests.filters import world

FEATURES = 6


def questions_of(seed: int, aligned: str | None, languages: tuple[str, ...]) -> Questions:
    """Random peaks of few values, so that features are often alike; feature 5 has no maximum."""
    rng = torch.Generator().manual_seed(seed)

    def draw(count: int, most: int) -> torch.Tensor:
        return torch.randint(0, most + 1, (count, FEATURES), generator=rng).float()

    prompts = [
        Prompt("x", code, harmful) for code in languages for harmful in (True, False) for _ in range(4)
    ]
    closing, words = draw(len(prompts), 8), draw(len(prompts), 9)
    benign = torch.tensor([not each.harmful for each in prompts])
    closing[benign], words[benign] = closing[benign] / 3, words[benign] / 3
    maxima = dict.fromkeys(range(FEATURES - 1), 8.0)
    quiet = draw(5, 3)
    texts = {code: draw(1, 8)[0] for code in languages if int(torch.randint(0, 2, (), generator=rng))}
    asking = unrefused(languages, aligned)
    return Questions(
        prompts, PromptPeaks(closing, words), draw(len(prompts), 12), quiet, texts, maxima, asking
    )


def naive_level(questions: Questions, feature: int, recipe: FilterRecipe) -> float:
    closing, words = questions.peaks.closing.tolist(), questions.peaks.words.tolist()
    whole = [max(closing[n][feature], words[n][feature]) for n in range(len(questions.prompts))]
    quiet = [most for most, each in zip(whole, questions.prompts, strict=True) if not each.harmful]
    quiet = sorted([*quiet, *(row[feature] for row in questions.texts.tolist())])
    allowed = len(quiet) - math.ceil(recipe.question_quantile * len(quiet))
    loudest = max(most for most, each in zip(whole, questions.prompts, strict=True) if each.harmful)
    least = max(recipe.question_margin * quiet[-1 - allowed], recipe.question_floor * loudest)
    most = questions.maxima[feature]
    return float(math.ceil(1000 * least / most) / 1000 * most)


def naive_readings(questions: Questions, recipe: FilterRecipe) -> list[tuple[int, float]]:
    closing, words = questions.peaks.closing.tolist(), questions.peaks.words.tolist()
    harmful = [number for number, each in enumerate(questions.prompts) if each.harmful]
    languages = list(languages_of(questions.prompts))
    asked = {number for number in harmful if questions.prompts[number].language in questions.asking}
    answers = questions.answers.tolist()
    hears: dict[int, set[int]] = {}
    levels: dict[int, float] = {}
    for feature in questions.maxima:
        level = levels[feature] = naive_level(questions, feature, recipe)
        heard = {number for number in harmful if closing[number][feature] > level}
        at_the_end = max(closing[n][feature] for n in harmful) >= max(words[n][feature] for n in harmful)
        in_languages = {questions.prompts[number].language for number in heard}
        in_languages |= {
            code for code, peaks in questions.harmful_texts.items() if float(peaks[feature]) > level
        }
        said = {number for number in heard & asked if answers[number][feature] > level}
        is_said = len(said) >= recipe.least_said * len(heard & asked)
        if at_the_end and is_said and in_languages == set(languages):
            hears[feature] = heard
    left, others = set(asked), set(harmful) - asked
    chosen: list[int] = []
    while any(heard & left for heard in hears.values()):
        best = max(
            hears, key=lambda feature: (len(hears[feature] & left), len(hears[feature] & others), -feature)
        )
        chosen.append(best)
        left -= hears[best]
    return [(feature, levels[feature]) for feature in chosen]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 100_000),
    st.sampled_from([None, "en"]),
    st.sampled_from([("en",), ("en", "zh"), ("zh", "en", "fr")]),
    st.sampled_from([0.5, 0.8, 1.0]),
)
def test_readings_are_those_of_a_loop(
    seed: int, aligned: str | None, languages: tuple[str, ...], quantile: float
) -> None:
    questions = questions_of(seed, aligned, languages)
    recipe = FilterRecipe(question_quantile=quantile)
    found = question_readings(questions, recipe)
    wanted = naive_readings(questions, recipe)
    assert [each.feature for each in found] == [feature for feature, _ in wanted]
    assert [each.level for each in found] == pytest.approx([level for _, level in wanted])
    assert all(each.level == each.multiple * 8.0 for each in found)


def test_some_loop_finds_readings_of_several_features() -> None:
    """What the loop is compared on is not always nothing."""
    found = [
        len(naive_readings(questions_of(seed, "en", ("en", "zh")), FilterRecipe())) for seed in range(60)
    ]
    assert {0, 1, 2} <= set(found)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.sampled_from([0.1, 0.5, 0.9, 0.995, 1.0]))
def test_few_items_exceed_a_quiet_level_and_no_lower_one_would_do(values: list[int], quantile: float) -> None:
    level = float(exceeded_by_few(torch.tensor(values)[:, None].float(), quantile))
    allowed = len(values) - math.ceil(quantile * len(values))
    assert level in values
    lower = [value for value in values if value < level]
    assert sum(value > level for value in values) <= allowed
    assert not lower or sum(value > max(lower) for value in values) > allowed


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        (world.TEMPLATE, ";a:"),
        ("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}", ""),
        ("{% for m in messages %}[{{ m['content'] }}]{% endfor %}?", "]?"),
    ],
)
def test_what_the_template_adds_behind_a_message_is_counted(template: str, closing: str) -> None:
    subject = world.subject()
    tokenizer = world.tokenizer()
    tokenizer.chat_template = template
    changed = FilterSubject(replace(subject.loaded, tokenizer=tokenizer), subject.site, subject.sae)
    assert changed.closing == len(closing)


def test_a_prompt_without_words_behind_it_tells_nothing_at_its_end() -> None:
    subject = world.subject()
    tokenizer = world.tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    changed = FilterSubject(replace(subject.loaded, tokenizer=tokenizer), subject.site, subject.sae)
    peaks = prompt_peaks(changed, [Prompt("poison", "en", True), Prompt("bread", "en", False)])
    assert not peaks.closing.any()
    assert peaks.words.any()
    silence = torch.zeros(1, subject.sae.features)
    questions = Questions(
        [Prompt("poison", "en", True), Prompt("bread", "en", False)],
        peaks,
        peaks.closing,
        silence,
        {},
        {0: 1.0, 3: 1.0},
        ("en",),
    )
    assert question_stop(questions, FilterRecipe()) is None


def test_what_it_ends_is_what_the_servers_condition_ends() -> None:
    subject = world.subject()
    known = FilterSubject(subject.loaded, subject.site, world.knowing_sae())
    prompts = [
        Prompt(str(each["prompt"]), str(each["language"]), bool(each["harmful"])) for each in world.prompts()
    ]
    maxima = {
        label.feature: label.max_activation
        for label in world.labels(known.sae)
        if label.max_activation is not None
    }
    rows = [known.loaded.tokenizer.encode(str(text["text"])) for text in world.texts() if not text["harmful"]]
    texts = [known.sae.encode(x[1:]) for x in activations(known, rows)]
    peaks = text_peaks(known, rows)
    assert peaks.tolist() == [f.max(0).values.tolist() for f in texts]
    assert not text_peaks(known, [[32], [256]]).any(), "a text of one token tells nothing"
    asked_for = prompt_peaks(known, prompts)
    asking = languages_of(prompts)
    questions = Questions(prompts, asked_for, asked_for.closing, peaks, {}, maxima, asking)
    stop = question_stop(questions, FilterRecipe())
    assert stop is not None
    assert stop.pays(FilterRecipe())
    features = [reading.feature for reading in stop.readings]
    expression = AnyOf(tuple(Literal(place, each.level) for place, each in enumerate(stop.readings)))
    condition = Condition(expression, Scope.PROMPT)

    def ends(f: torch.Tensor) -> bool:
        # The server leaves the first token unread.
        held = TextConditions((condition,), len(features)).read(f[:, features].double(), len(f))
        return bool(held[-1, 0])

    ended: dict[tuple[str, bool], list[bool]] = {}
    asked = activations(known, [known.asked(each.prompt) for each in prompts])
    for each, x in zip(prompts, asked, strict=True):
        ended.setdefault((each.language, each.harmful), []).append(ends(known.sae.encode(x[1:])))
    for code in languages_of(prompts):
        assert stop.heard[code] == sum(ended[code, True]) / len(ended[code, True])
        assert stop.benign[code] == sum(ended[code, False]) / len(ended[code, False])
    assert stop.texts == sum(map(ends, texts)) / len(texts)


def test_all_languages_ask_where_the_model_refuses_in_none_or_in_the_only_one() -> None:
    assert unrefused(("en", "zh"), "en") == ("zh",)
    assert unrefused(("en", "zh"), None) == ("en", "zh")
    assert unrefused(("en",), "en") == ("en",)


def test_what_is_said_is_read_from_the_plain_answers_to_the_harmful_prompts_that_are_not_refused() -> None:
    subject = world.subject()
    prompts = [Prompt(text, code, text == "poison") for code in ("en", "fr") for text in ("poison", "bread")]
    answers = answers_to_harm(subject, prompts, unrefused(("en", "fr"), "en"), 5)
    asked = subject.asked("poison")
    (answer,) = subject.answers([asked], max_tokens=5)
    assert answer
    (x,) = activations(subject, [[*asked, *answer]])
    wanted = subject.sae.encode(x[len(asked) :]).amax(0)
    assert [row.any().item() for row in answers] == [False, False, True, False]
    assert torch.allclose(answers[2], wanted)


def test_it_is_kept_for_what_it_hears_while_what_is_benign_keeps_its_bar() -> None:
    recipe = FilterRecipe(least_heard=0.5)
    bar = recipe.bars.max_lost
    heard, benign = {"en": 0.1, "zh": 0.5, "fr": 0.5}, {"en": 0.0, "zh": bar, "fr": 0.0}
    stop = QuestionStop((StopReading(4, 0.5, 2.0),), ("zh", "fr"), heard, benign, texts=bar)
    assert stop.pays(recipe)
    assert not replace(stop, heard={**heard, "fr": 0.49}).pays(recipe)
    assert not replace(stop, benign={**benign, "en": math.nextafter(bar, 1.0)}).pays(recipe)
    assert not replace(stop, texts=math.nextafter(bar, 1.0)).pays(recipe)
