"""Labels: features of built-in meaning get the label, precision and recall that they must."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings

from saegis_lab.training import labels as labels_module
from saegis_lab.training.labels import make_labels
from saegis_lab.training.statistics import FeatureStatistics, VocabularyCounts
from saegis_lab.training.texts import TokenTruth
from saegis_server.sae.labels import FeatureLabel, Labels
from tests.engine.tiny import VOCABULARY as BYTES
from tests.engine.tiny import tokenizer
from tests.training.statistics_cases import Tokens, random_tokens, tokens

TOKENIZER = tokenizer()
#: What is known of the tokens of this file, and how many there are of each; their ids go round from a to h.
WORLD = {
    TokenTruth(("cat", "cat in en", "English"), "cat", "en"): 300,
    TokenTruth(("cat", "cat in fr", "French"), "cat", "fr"): 200,
    TokenTruth(("poison", "poison in en", "English", "harm"), "poison", "en", harmful=True): 100,
    TokenTruth(("poison", "poison in fr", "French", "harm"), "poison", "fr", harmful=True): 150,
    TokenTruth(("arson", "arson in fr", "French", "harm"), "arson", "fr", harmful=True): 50,
    TokenTruth(): 40,
}
IDS = {letter: TOKENIZER.encode(letter)[0] for letter in "abcdefgh"}
A, B, C = (IDS[letter] for letter in "abc")
Rule = Callable[[TokenTruth, int, int], float]
#: The activation of each feature: of a token's truth, its id, and its number.
RULES: dict[str, Rule] = {
    "cat": lambda truth, token, number: 2.0 * (truth.subject == "cat"),
    "French": lambda truth, token, number: 1.0 * (truth.language == "fr"),
    "harm": lambda truth, token, number: 3.0 * truth.harmful,
    "poison in fr": lambda truth, token, number: 1.0 * (truth.subject == "poison" and truth.language == "fr"),
    "cat, half in fr": lambda truth, token, number: (
        1.0 * (truth.subject == "cat" and (truth.language == "en" or number % 2))
    ),
    "token a": lambda truth, token, number: 1.0 * (token == A),
    "tokens a and b": lambda truth, token, number: 1.0 * (token in (A, B)),
    "never": lambda truth, token, number: 0.0,
    "always": lambda truth, token, number: 1.0,
}


def labelled(given_tokens: Tokens, vocabulary: int = BYTES, size: int = 128) -> Labels:
    features = given_tokens.activations.shape[1]
    statistics, entries = FeatureStatistics(features), VocabularyCounts(features, vocabulary)
    for part in given_tokens.parts(size):
        statistics.add(part.activations, part.truths)
        entries.add(part.ids, part.activations, [truth.language for truth in part.truths])
    return make_labels(statistics, entries, TOKENIZER)


def world() -> Tokens:
    truths = [truth for truth, count in WORLD.items() for _ in range(count)]
    ids = [list(IDS.values())[number % 8] for number in range(len(truths))]
    rows = [
        [rule(truth, token, number) for rule in RULES.values()]
        for number, (truth, token) in enumerate(zip(truths, ids, strict=True))
    ]
    return Tokens(torch.tensor(ids), torch.tensor(rows), truths)


@pytest.fixture(scope="module")
def labels() -> dict[str, FeatureLabel]:
    return dict(zip(RULES, labelled(world()), strict=True))


def test_each_feature_is_named_for_what_it_fires_on(labels: dict[str, FeatureLabel]) -> None:
    named = {rule: label.label for rule, label in labels.items() if rule != "always"}
    assert named == {
        "cat": "cat",
        "French": "French",
        "harm": "harm",
        "poison in fr": "poison in fr",
        "cat, half in fr": "cat",
        "token a": "token 'a'",
        "tokens a and b": "token 'a', 'b'",
        "never": "never fires",
    }
    assert [rule for rule, label in labels.items() if label.harmful] == ["harm", "poison in fr"]


def test_figures_are_the_counted_ones(labels: dict[str, FeatureLabel]) -> None:
    cat = labels["cat"]
    assert (cat.precision, cat.max_activation) == (1.0, 2.0)
    assert cat.density == pytest.approx(500 / 840, abs=1e-6)
    assert (cat.recall, cat.precision_by_language) == ({"en": 1.0, "fr": 1.0}, {"en": 1.0, "fr": 1.0})
    assert (cat.subjects, cat.languages) == (("cat",), ("en", "fr"))
    half = labels["cat, half in fr"]
    assert half.recall == {"en": 1.0, "fr": 0.5}
    assert labels["French"].subjects == ("cat", "poison", "arson")
    assert labels["French"].languages == ("fr",)
    assert labels["never"] == FeatureLabel(7, "never fires", density=0.0)


def test_a_label_of_vocabulary_entries_has_figures_of_all_that_it_names(
    labels: dict[str, FeatureLabel],
) -> None:
    made = world()
    for rule, named in (("token a", {A}), ("tokens a and b", {A, B})):
        label = labels[rule]
        assert label.precision == 1.0
        assert label.recall == {"en": 1.0, "fr": 1.0}
        assert label.precision_by_language == {"en": 1.0, "fr": 1.0}
        assert label.density == pytest.approx(
            sum(token in named for token in made.ids.tolist()) / 840, abs=1e-6
        )


def test_precision_by_language_tells_where_a_label_is_wrong() -> None:
    """Fires on cats in English, and on everything in French."""
    made = world()
    rows = [[1.0 * (t.subject == "cat" or t.language == "fr")] for t in made.truths]
    (label,) = labelled(Tokens(made.ids, torch.tensor(rows), made.truths))
    assert label.label == "cat"
    assert label.precision_by_language == {"en": 1.0, "fr": 0.5}
    assert label.precision == pytest.approx(500 / 700, abs=1e-4)


def test_a_concept_that_holds_of_every_token_is_no_label() -> None:
    truths = [TokenTruth(("text",), language="en")] * 60
    ids = torch.tensor([A, B, C] * 20)
    (label,) = labelled(Tokens(ids, torch.ones(60, 1), truths))
    assert label.label == "token 'a', 'b', 'c'"
    assert (label.precision, label.recall) == (1.0, {"en": 1.0})


def test_shares_of_few_tokens_are_not_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "LEAST_TOKENS", 201)
    cat = next(iter(labelled(world())))
    assert (cat.recall, cat.precision_by_language) == ({"en": 1.0}, {"en": 1.0})


@settings(deadline=None, max_examples=40)
@given(tokens=tokens)
def test_no_label_fits_better_than_the_one_given(tokens: Tokens) -> None:
    """The oracle tries every concept, and every vocabulary entry, with a plain loop."""
    for feature, label in enumerate(labelled(tokens, size=17)):
        fires = [row[feature] > 0 for row in tokens.activations.tolist()]
        if not any(fires):
            assert label.label == "never fires"
            continue
        concepts = {concept for truth in tokens.truths for concept in truth.concepts}
        fits = {
            concept: _f1(fires, [concept in truth.concepts for truth in tokens.truths])
            for concept in concepts
            if not all(concept in truth.concepts for truth in tokens.truths)
        }
        entries = {
            token: _f1(fires, [token == other for other in tokens.ids.tolist()])
            for token in set(tokens.ids.tolist())
        }
        concept_fit, entry_fit = max(fits.values(), default=-1.0), max(entries.values())
        if entry_fit > concept_fit:
            best = _named_entries(entries, fires, tokens.ids.tolist())
            texts = [str(TOKENIZER.decode([token])) for token in best]
            assert label.label == "token " + ", ".join(repr(text.strip() or text) for text in texts)
            described = [token in best for token in tokens.ids.tolist()]
        else:
            assert fits[label.label] == pytest.approx(concept_fit)
            described = [label.label in truth.concepts for truth in tokens.truths]
        both = sum(f and d for f, d in zip(fires, described, strict=True))
        assert label.precision == pytest.approx(both / sum(fires), abs=1e-4)


def _f1(fires: list[bool], holds: list[bool]) -> float:
    both = sum(f and h for f, h in zip(fires, holds, strict=True))
    return 2 * both / (sum(fires) + sum(holds))


def _named_entries(fits: dict[int, float], fires: list[bool], ids: list[int]) -> list[int]:
    """The best entry, and the next two in order as long as all together fit better."""
    order = sorted((token for token in fits if fits[token] > 0), key=lambda token: (-fits[token], token))[:3]
    chosen = order[:1]
    for token in order[1:]:
        before, after = (_f1(fires, [i in some for i in ids]) for some in (chosen, [*chosen, token]))
        if after <= before:
            break
        chosen.append(token)
    return chosen


@settings(deadline=None, max_examples=40)
@given(tokens=tokens)
def test_the_order_of_the_tokens_does_not_matter_to_the_figures(tokens: Tokens) -> None:
    back = Tokens(tokens.ids.flip(0), tokens.activations.flip(0), tokens.truths[::-1])
    for one, other in zip(labelled(tokens), labelled(back), strict=True):
        assert (one.density, one.max_activation, one.harmful) == (
            other.density,
            other.max_activation,
            other.harmful,
        )


def test_a_feature_is_a_subject_or_language_where_a_tenth_of_its_tokens_is() -> None:
    made = random_tokens(3, 400, 3)
    for feature, label in enumerate(labelled(made)):
        fired = [t for t, row in zip(made.truths, made.activations.tolist(), strict=True) if row[feature] > 0]
        for attribute, stated in (("subject", label.subjects), ("language", label.languages)):
            names = [getattr(truth, attribute) for truth in fired]
            assert set(stated) == {name for name in names if name and names.count(name) >= len(fired) / 10}
            assert all(names.count(a) >= names.count(b) for a, b in combinations(stated, 2))
