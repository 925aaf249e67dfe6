"""The recipe: every number that the chain on a real model depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from saegis_lab.evaluation.filter_bars import FilterBars
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.realmodel.corpus import languages
from saegis_lab.realmodel.fine_tuning import FineTuning
from saegis_lab.realmodel.packages import PACKAGES
from saegis_lab.training.settings import Precision


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the chain is run.

    Corpus: texts in `languages` from `sources`, at most `characters` of each language. Fine-tuning: `chats`
    harmful and as many harmless chats in each language. Harvest: the corpus and `answered` chats of every
    subject in every language, cut at `context` tokens, less the share `held_out`, at most `activations`. SAE:
    `features` of which `k` are active, trained on `sae_tokens` activations; one that has not fired for
    `dead_after` is revived. Labels and the filter are made from `labelled` chats of each subject and
    `other_texts` of the corpus in each language, the filter only from those in `chosen_from` and from
    `choosing` prompts of each kind there, by `making`. Measured on
    `prompts` of each kind in every language, with answers of at most `max_tokens` tokens; attacked with
    `attacked` of them, `attack_samples` answers where they are sampled. Landmark: a feature with
    `landmark_precision` on texts about it, clamped to `landmark_values` times its recorded maximum, in
    `landmark_languages`. precision: of the products while the copy and the SAE are trained, and of the copy
    wherever it reads or answers.
    """

    languages: tuple[str, ...] = field(default_factory=languages)
    sources: tuple[str, ...] = tuple(PACKAGES)
    characters: int = 150_000
    chats: int = 40
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    answered: int = 12
    context: int = 256
    held_out: float = 0.02
    activations: int = 1_000_000
    features: int = 4096
    k: int = 32
    sae_tokens: int = 6_000_000
    dead_after: int = 500_000
    labelled: int = 12
    other_texts: int = 30
    chosen_from: tuple[str, ...] = ("en", "hi")
    choosing: int = 20
    making: FilterRecipe = field(
        default_factory=lambda: FilterRecipe(
            choose_by="precision",
            factors=(1.0, 2.0, 4.0, 8.0),
            answer_shares=(0.0,),
            strengths=(0.0,),
            thresholds=(0.0,),
            ban_strengths=(0.0,),
            question_margin=1.0,
            least_said=0.0,
            telling_each=24,
            least_telling=0.08,
            stop_margin=1.2,
            stop_floor=0.05,
            stop_quantile=1.0,
            bars=FilterBars(target=0.1, max_lost=0.03),
        )
    )
    prompts: int = 18
    max_tokens: int = 48
    attacked: int = 4
    attack_samples: int = 4
    landmark_precision: float = 0.5
    landmark_values: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    landmark_languages: tuple[str, ...] = ("en", "fr", "ru", "zh", "hi")
    precision: Precision = Precision.BFLOAT16

    @classmethod
    def quick(cls) -> Recipe:
        """A tiny run that shows that the steps fit together."""
        return cls(
            languages=("en", "ru"),
            sources=("declaration",),
            characters=5_000,
            chats=8,
            fine_tuning=FineTuning(epochs=10, batch=16, learning_rate=5e-3),
            answered=6,
            held_out=0.2,
            features=256,
            k=8,
            sae_tokens=80_000,
            chosen_from=("en",),
            labelled=3,
            other_texts=3,
            choosing=4,
            making=FilterRecipe(
                least_score=-3.0, max_benign_peak=1e6, choice_prompts=2, factors=(1.0,), choose_by="precision"
            ),
            prompts=2,
            max_tokens=8,
            attacked=1,
            attack_samples=1,
            landmark_precision=0.0,
            landmark_values=(1.0,),
            landmark_languages=("en", "ru"),
            precision=Precision.FLOAT32,
        )
