"""The model that sees as it ships: the language model in it, its size, its card, and what was measured."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from saegis_lab.evaluation.filter_report import FilterReport
from saegis_lab.filters.card import WHOLE
from saegis_lab.polyglot.eyes.__main__ import DOCS
from saegis_lab.polyglot.eyes.checkpoint import added_parameters
from saegis_lab.polyglot.eyes.emoji import HELD_OUT, SETS
from saegis_lab.polyglot.eyes.measuring import CLAMPED, FEATURES, FILTERED, RANKS, Clamped
from saegis_lab.polyglot.eyes.ranks import Ranks
from saegis_lab.polyglot.eyes.shipping import CARD, MOST_BYTES, card
from saegis_lab.polyglot.eyes.steps import load_seeing
from saegis_lab.polyglot.eyes.subjects import ICONS
from saegis_lab.polyglot.lexicon import LANGUAGES
from saegis_lab.polyglot.manifest import manifest
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.reference import EYES, MODEL, reference_policy


@pytest.fixture(scope="module")
def shipped() -> LlavaForConditionalGeneration:
    return load_seeing(EYES)


def test_the_language_model_is_the_shipped_one_bit_for_bit(shipped: LlavaForConditionalGeneration) -> None:
    sees = shipped.model.language_model.state_dict()
    for name, kept in load_file(MODEL / "model.safetensors").items():
        there = sees[name.removeprefix("model.")]
        assert torch.equal(there[: len(kept)], kept.float()), name


def test_it_is_small(shipped: LlavaForConditionalGeneration) -> None:
    assert 0 < added_parameters(shipped) <= 1_500_000
    assert sum(path.stat().st_size for path in EYES.iterdir()) <= MOST_BYTES


def test_licences_are_named_where_it_ships_and_where_it_is_told_of() -> None:
    assert (EYES / CARD).read_text(encoding="utf-8") == card(EYES)
    for told in (EYES / CARD, DOCS.parent / "eyes.md"):
        text = told.read_text(encoding="utf-8")
        for emoji in SETS:
            assert emoji.url in text
            assert emoji.licence.replace("-", " ") in text.replace("-", " ")


def test_what_was_measured_is_of_what_ships() -> None:
    ranks = Ranks.load(DOCS / RANKS)
    features = json.loads((DOCS / FEATURES).read_text(encoding="utf-8"))
    assert {row.subject: row.feature for row in ranks.subjects} == features
    assert [*features] == [*ICONS]
    assert ranks.emoji == HELD_OUT.name
    assert ranks.site == manifest().site
    report = FilterReport.load(DOCS / FILTERED).result
    assert report.languages == LANGUAGES
    assert [each.digest for each in report.conditions if each.name == WHOLE] == [
        Bundle.read(reference_policy()).digest
    ]
    clamped, clamp = Clamped.load(DOCS / CLAMPED), manifest().clamp
    assert (clamped.feature, clamped.value) == (clamp.feature, clamp.value)
