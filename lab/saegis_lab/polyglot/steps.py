"""The first five steps of a run, from the corpus to the labels, and the files that they write and read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoTokenizer

from saegis_lab.evaluation.experiment import BanFile, ClampFile
from saegis_lab.polyglot.corpus import GOLDEN_GATE, Corpus, Document
from saegis_lab.polyglot.labels import labelled_features, reference_labels, truth_of
from saegis_lab.polyglot.language_model import held_out_loss, save_model, train_language_model
from saegis_lab.polyglot.lexicon import LANGUAGES
from saegis_lab.polyglot.prompts import Prompt, benign_prompts, harmful_prompts, neutral_prompts
from saegis_lab.polyglot.recipe import CHOSEN_FROM, Recipe, Seeds
from saegis_lab.polyglot.scoring import word_lists
from saegis_lab.polyglot.tokenizer import save_tokenizer, train_tokenizer
from saegis_lab.training.run import Source, run
from saegis_lab.training.selection import choose_features, contrast
from saegis_lab.training.statistics import FeatureStatistics
from saegis_lab.training.texts import Encoder, TextSplit
from saegis_server.engine.torch.loading import LoadedModel, load_model
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.files import load_sae
from saegis_server.steering.site import Site

#: Parts of a run that ship with the package.
MODEL, SAE, EVAL = "model", "sae", "eval"
PROMPTS, CLAMP_PROMPTS, WORDS = "prompts.jsonl", "clamp_prompts.jsonl", "words.json"
LABELLED = "texts.jsonl"
BAN, CLAMP = "ban.json", "clamp.json"
#: What was measured: the ban over its strengths, the ban as recommended, and the clamp over its values.
BAN_CURVE, BAN_RESULT, CLAMP_RESULT = "ban_curve.json", "ban_result.json", "clamp_result.json"
#: Texts for `saegis train sae`, with their special tokens (--raw).
TEXT, HELD_OUT = "text.jsonl", "held_out.jsonl"
SAMPLE = "corpus.jsonl"
#: Features that stand for the landmark, best first: one of them is clamped.
LANDMARK = "landmark.json"
#: How many requests a measurement has under way at once, and how a server is started to take so many.
CONCURRENCY = 64
SERVED = ("--compile", "never", "--max-num-seqs", str(CONCURRENCY))


def write_lines(path: Path, entries: Iterable[object]) -> None:
    """Write JSON lines; the folder is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def write_texts(path: Path, documents: Iterable[Document]) -> None:
    """Write the documents' texts as `saegis train sae --raw` reads them."""
    write_lines(path, ({"text": document.text} for document in documents))


def write_truth(path: Path, documents: Iterable[Document]) -> None:
    """Write documents with the ground truth of each of their segments."""
    write_lines(path, ({"kind": document.kind, "segments": _segments(document)} for document in documents))


def _segments(document: Document) -> list[dict[str, object]]:
    names = ("text", "role", "language", "subject", "harmful")
    return [{name: getattr(segment, name) for name in names} for segment in document.segments]


def write_labelled(path: Path, documents: Iterable[Document]) -> None:
    """Write those documents that are about one subject in one language, with both, as `saegis features` and
    `saegis eval coverage` read them with --raw."""
    write_lines(path, (entry for entry in map(_labelled, documents) if entry is not None))


def _labelled(document: Document) -> dict[str, object] | None:
    subjects = {segment.subject for segment in document.segments if segment.subject}
    languages = {segment.language for segment in document.segments if segment.language}
    if len(subjects) != 1 or len(languages) != 1:
        return None
    harmful = any(segment.harmful for segment in document.segments)
    return {
        "text": document.text,
        "label": subjects.pop(),
        "language": languages.pop(),
        "harmful": harmful,
    }


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as `saegis eval` reads them."""
    write_lines(
        path,
        (
            {"prompt": prompt.text, "language": prompt.language, "harmful": prompt.kind == "harmful"}
            for prompt in prompts
        ),
    )


def write_words(path: Path) -> None:
    """Write the word lists as `saegis eval` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(word_lists(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


console = Console()


def make_corpus(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Write a sample of the training text with its ground truth, the SAE's texts, and what `saegis eval`
    reads: prompts and word lists. The language model's own text is never stored."""
    sample = Corpus(seeds.train).documents(recipe.sample_documents)
    write_truth(out / SAMPLE, sample)
    write_texts(out / TEXT, Corpus(seeds.sae_text).documents(recipe.sae_documents))
    write_texts(out / HELD_OUT, Corpus(seeds.held_out).documents(recipe.held_out_documents))
    prompts = [
        prompt
        for code in LANGUAGES
        for draw in (harmful_prompts, benign_prompts)
        for prompt in draw(code, recipe.prompts)
    ]
    write_prompts(out / EVAL / PROMPTS, prompts)
    unrelated = [prompt for code in LANGUAGES for prompt in neutral_prompts(code, recipe.clamp_prompts)]
    write_prompts(out / EVAL / CLAMP_PROMPTS, unrelated)
    write_words(out / EVAL / WORDS)
    plain = Corpus(seeds.choice, mixing=0.0).documents(recipe.labelled_documents)
    write_labelled(out / EVAL / LABELLED, plain)
    console.print(f"corpus: {recipe.sae_documents} texts for the SAE and {len(prompts)} prompts under {out}")


def make_tokenizer(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Train the tokenizer and write it to `model/`."""
    texts = (document.text for document in Corpus(seeds.train).documents(recipe.tokenizer_documents))
    tokenizer = train_tokenizer(texts, recipe.vocabulary, recipe.shape.context)
    save_tokenizer(tokenizer, out / MODEL)
    console.print(f"tokenizer: {len(tokenizer)} tokens in {out / MODEL}")


def make_model(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Train the language model and write it to `model/`. Raises FileNotFoundError without a tokenizer."""
    folder = out / MODEL
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
    if not (out / MODEL / "model.safetensors").exists():
        raise FileNotFoundError(f"{out / MODEL}: there is no model; run the step `model` first")
    return load_model(str(out / MODEL))


def make_sae(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Train the SAE as `saegis train sae --raw` does, and write it to `sae/`."""
    loaded = load(out)
    source = Source(
        loaded,
        Site.parse(recipe.site),
        TextSplit([out / TEXT], out / HELD_OUT, seed=seeds.sae_text),
        Encoder(loaded.tokenizer, recipe.shape.context, raw=True),
        recipe.sae_reuse,
    )
    result = run(source, replace(recipe.sae, seed=seeds.sae), out / SAE)
    fit = result.measured
    console.print(
        f"sae: FVU {fit.fvu:.4f}, L0 {fit.l0:.1f}, dead {fit.dead:.1%} on {fit.tokens} held-out tokens"
    )


def make_labels(out: Path, recipe: Recipe, seeds: Seeds) -> None:
    """Label every feature from ground truth, and choose those of the ban and of the landmark's clamp from
    text in CHOSEN_FROM alone."""
    loaded, sae, site = load(out), load_sae(out / SAE), Site.parse(recipe.site)
    documents = Corpus(seeds.labels).documents(recipe.label_documents)
    batches = labelled_features(loaded.model, loaded.tokenizer, sae, site, documents)
    labels = reference_labels(batches, loaded.tokenizer, sae.features)
    labels.save(out / SAE)
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
    BanFile(tuple(ranked.feature for ranked in harmful), 0.0, CHOSEN_FROM).save(out / EVAL / BAN)
    ClampFile(landmark[0].feature, recipe.choice.multiples).save(out / EVAL / CLAMP)
    write_lines(out / LANDMARK, [ranked.feature for ranked in landmark])
    console.print(
        f"labels: {len(labels)} features; for the ban {[ranked.feature for ranked in harmful]}, "
        f"for the landmark one of {[ranked.feature for ranked in landmark]}"
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
