"""The recipe: every size and seed of a run that makes the reference model."""

from __future__ import annotations

from dataclasses import dataclass, field

from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.polyglot.language_model import ModelShape, Training
from saegis_lab.training.settings import SAETraining

#: The languages from whose text the features of the ban and of the landmark are chosen.
CHOSEN_FROM = ("en", "zh")


@dataclass(frozen=True)
class Seeds:
    """Seeds of the run's texts and weights; each text is drawn from a corpus of its own."""

    train: int
    held_out: int
    choice: int
    labels: int
    sae_text: int
    sae: int
    model: int

    @classmethod
    def of(cls, run: int) -> Seeds:
        """The seeds of run number `run`, which share none with those of another."""
        return cls(*(8 * run + place for place in (0, 1, 2, 3, 4, 6, 7)))


@dataclass(frozen=True)
class Choice:
    """How features are chosen, and how the ban's strength is calibrated.

    precision, landmark_precision: of the activation that a feature spends in each language, the least share
    on harmful tokens, and on those about the landmark. landmark_candidates: how many features are tried for
    the landmark. limit: at most so many are banned. strengths: those tried, ascending. target: the share of
    its unbanned value that harm may keep in the languages of the choice; max_kl: nats a token on benign text
    there. multiples: values of the landmark's clamp, in multiples of the feature's recorded maximum.

    Of the redirect of subjects to the landmark: elsewhere_weight, least_end_score: see `end_features`.
    factors, redirect_strengths: those tried. mentions: the share of answers that must name the landmark.
    """

    precision: float = 0.6
    landmark_precision: float = 0.5
    landmark_candidates: int = 3
    limit: int = 12
    strengths: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    target: float = 0.02
    max_kl: float = 0.03
    multiples: tuple[float, ...] = (0.0, 0.5, 0.75, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0)
    elsewhere_weight: float = 3.0
    least_end_score: float = 0.3
    factors: tuple[float, ...] = (1.0, 1.3, 1.6, 2.0)
    redirect_strengths: tuple[float, ...] = (0.0, 1.0)
    mentions: float = 0.9


@dataclass(frozen=True)
class Filtering:
    """How the filter is made, measured and attacked.

    making: how it is made from texts and prompts in CHOSEN_FROM. prompts: of each kind in each of these
    languages, from how many it is made, None for all that there are. aligned: the language in which the model
    refuses, None: found there. samples: answers to each prompt at the recipe's temperature, benign ones at
    most `evaluation.filtered.TEXT_SAMPLES` times. max_tokens: of an answer. benign: on how many benign
    prompts of each language it is measured, so many that one that is lost still meets the bar. attacked: how
    many harmful prompts of each language are attacked, so many that each has the others as examples;
    attack_samples: answers to each of them in sampled attacks.
    """

    making: FilterRecipe = field(default_factory=FilterRecipe)
    prompts: int | None = None
    aligned: str | None = None
    samples: int = 1
    max_tokens: int = 80
    benign: int = 50
    attacked: int = 4
    attack_samples: int = 16

    @classmethod
    def quick(cls) -> Filtering:
        """For a model that neither refuses nor harms: every feature is a candidate, one setting is tried."""
        making = FilterRecipe(
            choice_prompts=1,
            choice_tokens=4,
            false_weight=0.0,
            least_score=0.0,
            features_each=1,
            max_benign_peak=1e6,
            choose_by="precision",
            factors=(1.0,),
            answer_shares=(1.0,),
            strengths=(0.0,),
            thresholds=(0.0,),
            ban_strengths=(0.0,),
        )
        return cls(
            making, prompts=1, aligned="en", samples=1, max_tokens=4, benign=1, attacked=1, attack_samples=1
        )


@dataclass(frozen=True)
class Recipe:
    """Every size of a run. `quick` makes a tiny one that shows that the steps fit together.

    Numbers of documents are of the corpus; prompts are of each kind in each language.
    """

    vocabulary: int = 3584
    tokenizer_documents: int = 30_000
    sample_documents: int = 1000
    shape: ModelShape = field(default_factory=ModelShape)
    training: Training = field(default_factory=Training)
    layer: int = 3
    sae: SAETraining = field(default_factory=lambda: SAETraining(features=4096, k=9, steps=3500))
    sae_reuse: int = 4
    sae_documents: int = 28_000
    held_out_documents: int = 1500
    label_documents: int = 5000
    choice_documents: int = 3000
    labelled_documents: int = 2500
    end_documents: int = 1000
    choice: Choice = field(default_factory=Choice)
    prompts: int = 20
    clamp_prompts: int = 12
    temperature: float = 1.0
    filter: Filtering = field(default_factory=Filtering)

    @property
    def site(self) -> str:
        """Where the SAE reads the model."""
        return f"layers.{self.layer}.resid_post"

    @classmethod
    def quick(cls) -> Recipe:
        """A run of some seconds; its model is good for nothing but showing that the steps fit together."""
        return cls(
            vocabulary=640,
            tokenizer_documents=400,
            sample_documents=20,
            shape=ModelShape(width=32, layers=2, heads=2, kv_heads=1, feed_forward=64, context=1024),
            training=Training(steps=6, batch_tokens=1024, pool=64, warmup=2, checkpoint_every=3),
            layer=0,
            sae=SAETraining(features=64, k=16, steps=30, batch=256),
            sae_reuse=2,
            sae_documents=100,
            held_out_documents=24,
            label_documents=64,
            choice_documents=200,
            labelled_documents=400,
            end_documents=600,
            choice=Choice(
                precision=0.0,
                landmark_precision=0.0,
                limit=4,
                strengths=(0.0, 1.0),
                multiples=(0.0, 1.0),
                elsewhere_weight=1.0,
                least_end_score=-1.0,
                factors=(1.0,),
            ),
            prompts=1,
            clamp_prompts=1,
            filter=Filtering.quick(),
        )
