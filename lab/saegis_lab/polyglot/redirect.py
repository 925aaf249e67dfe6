"""The redirect of every subject to the landmark: its features, its factor and strength, and what it does."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

import saegis
from saegis import Client, Edit
from saegis_lab.evaluation.experiment import Decoding, RedirectFile, load_prompts
from saegis_lab.evaluation.mentions import PLAIN, MentionRow, measure_mentions
from saegis_lab.evaluation.requests import Progress, Requests
from saegis_lab.evaluation.scorers import mention_scorer
from saegis_lab.polyglot import steps
from saegis_lab.polyglot.corpus import ASSISTANT, GOLDEN_GATE, SENTENCE_ENDS, Corpus
from saegis_lab.polyglot.labels import LabelledToken, labelled_features
from saegis_lab.polyglot.lexicon import LANGUAGES, lexicon
from saegis_lab.polyglot.manifest import MANIFEST_NAME, LandmarkFigures, LandmarkText, Manifest, digests
from saegis_lab.polyglot.recipe import CHOSEN_FROM, Choice, Recipe, Seeds
from saegis_lab.polyglot.scoring import LANDMARK, reads_well
from saegis_lab.training.selection import contrast
from saegis_lab.training.statistics import FeatureStatistics
from saegis_lab.training.texts import TokenTruth
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.rpc.server.process import ServerProcess
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.files import load_sae
from saegis_server.steering.site import Site

REDIRECT, REDIRECT_RESULT = "redirect.json", "redirect_result.json"
_CLAMPED, _REDIRECTED = "clamped", "redirected"
#: The concept of a token where what is said next is decided.
_END = "end"


def make_redirect(out: Path, recipe: Recipe, seeds: Seeds, progress: Progress) -> Manifest:
    """Choose the redirect from text in CHOSEN_FROM and its factor and strength from answers there, measure it
    beside the clamp in all languages, and put both into the run's manifest, which it returns.

    Raises FileNotFoundError where the run has no model, InputFileError where it has no manifest, and
    ValueError where no feature stands for the landmark or for any other subject.
    """
    loaded, manifest = steps.load(out), Manifest.load(out / MANIFEST_NAME)
    statistics = end_statistics(loaded, load_sae(out / steps.SAE), recipe, seeds)
    features = end_features(statistics, recipe.choice.elsewhere_weight, recipe.choice.least_end_score)
    steps.console.print(f"where a text goes on: {features}")
    landmark = features.pop(GOLDEN_GATE, None)
    # Harmful subjects are a ban's: a policy that bans them lets no request touch their features.
    sources = {key: feature for key, feature in features.items() if not lexicon()["en"].subjects[key].harmful}
    indices = tuple(sorted({*sources.values()} - {landmark}))
    if landmark is None or not indices:
        raise ValueError("no feature of the SAE fires where texts on the landmark, or on others, go on")
    chosen = RedirectFile(indices, landmark, 1.0, 0.0, CHOSEN_FROM)
    options = ["--model", str(out / steps.MODEL), "--sae", str(out / steps.SAE), *steps.SERVED]
    with ServerProcess(options, progress) as server, Client(server.target) as client:
        measuring = _Measuring(out, Requests(client, steps.CONCURRENCY, progress))
        chosen = measuring.calibrated(chosen, recipe.choice)
        clamp = saegis.clamp(manifest.clamp.feature, manifest.clamp.value)
        rows = measuring.rows({_CLAMPED: [clamp], _REDIRECTED: chosen.edits}, LANGUAGES)
        server.stop()
    chosen.save(out / steps.EVAL / REDIRECT)
    landmark_figures = {code: _figures(rows, code) for code in LANGUAGES}
    manifest = replace(manifest, landmark=landmark_figures, files=digests(out))
    manifest.save(out / MANIFEST_NAME)
    return manifest


@torch.no_grad()
def end_statistics(
    loaded: LoadedModel, sae: SparseAutoencoder, recipe: Recipe, seeds: Seeds
) -> FeatureStatistics:
    """What each feature does on text in the languages of the choice alone, apart at the ends of sentences and
    at the token that opens an answer: there the model holds what it will write of next."""
    statistics = FeatureStatistics(sae.features)
    documents = Corpus(seeds.choice, CHOSEN_FROM).documents(recipe.end_documents)
    ends = _ends(loaded.tokenizer)
    for batch in labelled_features(loaded.model, loaded.tokenizer, sae, Site.parse(recipe.site), documents):
        statistics.add(batch.activations, [_truth(token, ends) for token in batch.tokens])
    return statistics


def _ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a sentence or open an answer."""
    texts = ((token, str(tokenizer.decode([token]))) for token in range(len(tokenizer)))
    return frozenset(token for token, text in texts if text == ASSISTANT or text.endswith(SENTENCE_ENDS))


def _truth(token: LabelledToken, ends: frozenset[int]) -> TokenTruth:
    segment = token.segment
    if segment.language is None:
        return TokenTruth()
    concepts = (_END,) if token.token in ends else ()
    return TokenTruth(concepts, segment.subject or "", segment.language)


def end_features(statistics: FeatureStatistics, weight: float, least: float) -> dict[str, int]:
    """For each subject the feature that stands for it where a text goes on.

    That is the one with the greatest score: the least, over the languages of the choice, of the rate at which
    it fires at the ends of the subject's own sentences less `weight` times that elsewhere. A subject whose
    best feature scores below `least` is left out.
    """
    features = {}
    for key in lexicon()["en"].subjects:
        contrasts = contrast(statistics, partial(_is_end, key), CHOSEN_FROM).values()
        scores = torch.stack([each.rate_on - weight * each.rate_off for each in contrasts]).amin(0)
        if scores.max() >= least:
            features[key] = int(scores.argmax())
    return features


def _is_end(subject: str, truth: TokenTruth) -> bool:
    return truth.subject == subject and _END in truth.concepts


class _Measuring:
    """Measures edits on a served run, and keeps every row in its result's file."""

    def __init__(self, out: Path, requests: Requests) -> None:
        self._requests, self._path = requests, out / REDIRECT_RESULT
        self._prompts = load_prompts(out / steps.EVAL / steps.CLAMP_PROMPTS)
        self._mention = mention_scorer(str(out / steps.EVAL / steps.WORDS), LANDMARK, LANGUAGES)
        self._kept: list[dict[str, object]] = []

    def rows(
        self, trials: Mapping[str, Sequence[Edit]], languages: Collection[str]
    ) -> tuple[MentionRow, ...]:
        """What edits, by their names, do to answers in these languages."""
        asked = [prompt for prompt in self._prompts if prompt.language in languages]
        rows = measure_mentions(
            self._requests, asked, list(trials.items()), self._mention, Decoding(), reads_well
        )
        self._kept += map(asdict, rows)
        self._path.write_text(json.dumps(self._kept, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return rows

    def calibrated(self, chosen: RedirectFile, choice: Choice) -> RedirectFile:
        """The redirect with the factor and strength that answers in the languages of its choice favour."""
        tried = {
            f"factor {factor:g}, strength {strength:g}": replace(chosen, factor=factor, strength=strength)
            for strength in choice.redirect_strengths
            for factor in choice.factors
        }
        rows = self.rows({name: redirect.edits for name, redirect in tried.items()}, chosen.chosen_from)
        return tried[best_edits(rows, list(tried), choice.mentions)]


def best_edits(rows: Sequence[MentionRow], names: Sequence[str], enough: float) -> str:
    """The name of the edits whose answers are, in their worst language, the likeliest texts, among those that
    name the landmark in at least the share `enough` of answers; if none do, of those that name it most."""

    def merit(name: str) -> tuple[float, float]:
        own = [row for row in rows if row.edits == name]
        worst = max(row.text.perplexity_ratio or float("inf") for row in own)
        return min(enough, *(row.mentions for row in own)), -worst

    return max(names, key=merit)


def _figures(rows: Sequence[MentionRow], language: str) -> LandmarkFigures:
    texts = {row.edits: _text(row) for row in rows if row.language == language}
    return LandmarkFigures(texts[PLAIN], texts[_CLAMPED], texts[_REDIRECTED])


def _text(row: MentionRow) -> LandmarkText:
    return LandmarkText(
        named=round(row.mentions, 4),
        reads_well=round(row.reads_well or 0.0, 4),
        perplexity=round(row.text.perplexity_ratio or 0.0, 3),
        repetition=round(row.text.repetition, 4),
    )
