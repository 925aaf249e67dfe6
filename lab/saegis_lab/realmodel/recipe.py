"""The recipe: every number that the chain on a real model depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from saegis_lab.realmodel.corpus import languages
from saegis_lab.realmodel.fine_tuning import FineTuning
from saegis_lab.realmodel.packages import PACKAGES


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the chain is run.

    Corpus: texts in `languages` from `sources`, at most `characters` of each language. Fine-tuning: `chats`
    harmful and as many harmless chats in each language. Harvest: the corpus and `answered` chats of every
    subject in every language, cut at `context` tokens, at most `activations`. SAE: `features` of which `k`
    are active, trained on `sae_tokens` activations. Filter: made from `choosing` prompts of each kind in each
    of `chosen_from`, and from `labelled` texts of each subject there. Measured on `prompts` of each kind in
    every language, with answers of at most `max_tokens` tokens; attacked with `attacked` of them.
    """

    languages: tuple[str, ...] = field(default_factory=languages)
    sources: tuple[str, ...] = tuple(PACKAGES)
    characters: int = 150_000
    chats: int = 20
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    answered: int = 12
    context: int = 256
    activations: int = 1_000_000
    features: int = 4096
    k: int = 32
    sae_tokens: int = 8_000_000
    chosen_from: tuple[str, ...] = ("en", "ru")
    choosing: int = 20
    labelled: int = 12
    prompts: int = 18
    max_tokens: int = 48
    attacked: int = 4
