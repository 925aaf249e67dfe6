"""The first five steps of a run, from the corpus to the labels: each reads what those before it wrote."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoTokenizer

from saegis_server.engine.torch.loading import LoadedModel, load_model
from saegis_server.evaluation.ban_file import BanFile
from saegis_server.evaluation.clamp_file import ClampFile
from saegis_server.polyglot import files
from saegis_server.polyglot.corpus import GOLDEN_GATE, Corpus
from saegis_server.polyglot.labels import reference_labels, truth_of
from saegis_server.polyglot.language_model import held_out_loss, save_model, train_language_model
from saegis_server.polyglot.lexicon import LANGUAGES
from saegis_server.polyglot.prompts import benign_prompts, harmful_prompts, neutral_prompts
from saegis_server.polyglot.recipe import CHOSEN_FROM, Recipe, Seeds
from saegis_server.polyglot.tokenizer import save_tokenizer, train_tokenizer
from saegis_server.polyglot.truth import labelled_features
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.files import load_sae
from saegis_server.steering.site import Site
from saegis_server.training.feature_statistics import FeatureStatistics
from saegis_server.training.run import Source, run
from saegis_server.training.selection import choose_features, contrast
from saegis_server.training.texts import Encoder, TextSplit

console = Console()


def make_corpus(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Write a sample of the training text with its ground truth, the SAE's texts, and what `saegis eval`
    reads: prompts and word lists. The language model's own text is never stored."""
    sample = Corpus(seeds.train).documents(recipe.sample_documents)
    files.write_truth(out / files.SAMPLE, sample)
    files.write_texts(out / files.TEXT, Corpus(seeds.sae_text).documents(recipe.sae_documents))
    files.write_texts(out / files.HELD_OUT, Corpus(seeds.held_out).documents(recipe.held_out_documents))
    prompts = [
        prompt
        for code in LANGUAGES
        for draw in (harmful_prompts, benign_prompts)
        for prompt in draw(code, recipe.prompts)
    ]
    files.write_prompts(out / files.EVAL / files.PROMPTS, prompts)
    unrelated = [prompt for code in LANGUAGES for prompt in neutral_prompts(code, recipe.clamp_prompts)]
    files.write_prompts(out / files.EVAL / files.CLAMP_PROMPTS, unrelated)
    files.write_words(out / files.EVAL / files.WORDS)
    plain = Corpus(seeds.choice, mixing=0.0).documents(recipe.labelled_documents)
    files.write_labelled(out / files.EVAL / files.LABELLED, plain)
    console.print(f"corpus: {recipe.sae_documents} texts for the SAE and {len(prompts)} prompts under {out}")


def make_tokenizer(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Train the tokenizer and write it to `model/`."""
    texts = (document.text for document in Corpus(seeds.train).documents(recipe.tokenizer_documents))
    tokenizer = train_tokenizer(texts, recipe.vocabulary, recipe.shape.context)
    save_tokenizer(tokenizer, out / files.MODEL)
    console.print(f"tokenizer: {len(tokenizer)} tokens in {out / files.MODEL}")


def make_model(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Train the language model and write it to `model/`. Raises FileNotFoundError without a tokenizer."""
    folder = out / files.MODEL
    if not (folder / "tokenizer.json").exists():
        raise FileNotFoundError(f"{folder}: there is no tokenizer; run the step `tokenizer` first")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = train_language_model(
        tokenizer, Corpus(seeds.train), recipe.shape, recipe.training, seeds.model, out / "training"
    )
    save_model(model, folder)
    loss, bound = held_out_figures(load(out), recipe, seeds)
    console.print(
        f"model: held-out perplexity {math.exp(loss):.3f}, {math.exp(loss - bound) - 1:+.1%} above what the "
        f"generator's entropy allows ({math.exp(bound):.3f})"
    )


def held_out_figures(loaded: LoadedModel, recipe: Recipe, seeds: Seeds) -> tuple[float, float]:
    """(loss, entropy bound) on held-out text, both in nats a token: see `held_out_loss`."""
    documents = list(Corpus(seeds.held_out).documents(recipe.held_out_documents))
    return held_out_loss(loaded.model, loaded.tokenizer, documents)


def load(out: Path) -> LoadedModel:
    """The run's language model. Raises FileNotFoundError where it is not there yet."""
    if not (out / files.MODEL / "model.safetensors").exists():
        raise FileNotFoundError(f"{out / files.MODEL}: there is no model; run the step `model` first")
    return load_model(str(out / files.MODEL))


def make_sae(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Train the SAE as `saegis train sae --raw` does, and write it to `sae/`."""
    loaded = load(out)
    source = Source(
        loaded,
        Site.parse(recipe.site),
        TextSplit([out / files.TEXT], out / files.HELD_OUT, seed=seeds.sae_text),
        Encoder(loaded.tokenizer, recipe.shape.context, raw=True),
        recipe.sae_reuse,
    )
    result = run(source, replace(recipe.sae, seed=seeds.sae), out / files.SAE)
    fit = result.measured
    console.print(
        f"sae: FVU {fit.fvu:.4f}, L0 {fit.l0:.1f}, dead {fit.dead:.1%} on {fit.tokens} held-out tokens"
    )


def make_labels(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Label every feature from ground truth, and choose those of the ban and of the landmark's clamp from
    text in CHOSEN_FROM alone."""
    loaded, sae, site = load(out), load_sae(out / files.SAE), Site.parse(recipe.site)
    documents = Corpus(seeds.labels).documents(recipe.label_documents)
    batches = labelled_features(loaded.model, loaded.tokenizer, sae, site, documents)
    labels = reference_labels(batches, loaded.tokenizer, sae.features)
    labels.save(out / files.SAE)
    statistics = choice_statistics(loaded, sae, recipe, seeds)
    harmful = choose_features(
        contrast(statistics, lambda truth: truth.harmful, CHOSEN_FROM),
        recipe.choice.precision,
        recipe.choice.limit,
    )
    landmark = choose_features(
        contrast(statistics, lambda truth: truth.subject == GOLDEN_GATE, CHOSEN_FROM),
        recipe.choice.landmark_precision,
        recipe.choice.landmark_candidates,
    )
    if not harmful or not landmark:
        raise ValueError("no feature of the SAE stands for harmful subjects, or none for the landmark")
    BanFile(tuple(each.feature for each in harmful), 0.0, CHOSEN_FROM).save(out / files.EVAL / files.BAN)
    ClampFile(landmark[0].feature, recipe.choice.multiples).save(out / files.EVAL / files.CLAMP)
    files.write_lines(out / files.LANDMARK, [each.feature for each in landmark])
    console.print(
        f"labels: {len(labels)} features; for the ban {[each.feature for each in harmful]}, "
        f"for the landmark one of {[each.feature for each in landmark]}"
    )


@torch.no_grad()
def choice_statistics(
    loaded: LoadedModel, sae: SparseAutoencoder, recipe: Recipe, seeds: Seeds
) -> FeatureStatistics:
    """What each feature does on text in the languages of the choice alone."""
    statistics = FeatureStatistics(sae.features)
    documents = Corpus(seeds.choice, CHOSEN_FROM).documents(recipe.choice_documents)
    for batch in labelled_features(loaded.model, loaded.tokenizer, sae, Site.parse(recipe.site), documents):
        statistics.add(batch.activations, [truth_of(token.segment) for token in batch.tokens])
    return statistics
