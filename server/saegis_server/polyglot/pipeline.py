"""The pipeline that makes the reference model: six steps, each reading what the ones before it wrote under
one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from saegis_server.polyglot import calibration, sae_file
from saegis_server.polyglot.activations import activation_batches
from saegis_server.polyglot.corpus import Corpus
from saegis_server.polyglot.evaluation import Reference
from saegis_server.polyglot.labels import make_labels, save_labels
from saegis_server.polyglot.language_model import (
    ModelShape,
    Training,
    held_out_loss,
    save_model,
    train_language_model,
)
from saegis_server.polyglot.lexicon import LANGUAGES
from saegis_server.polyglot.sae_training import SAETraining, train_sae
from saegis_server.polyglot.shipped import MANIFEST_NAME, Manifest, digests
from saegis_server.polyglot.tokenizer import save_tokenizer, train_tokenizer
from saegis_server.polyglot.truth import labelled_features

MODEL_NAME = "saegis-polyglot"
TRAIN_SEED, HELD_OUT_SEED, SAE_SEED, LABEL_SEED = 0, 1, 4, 5

console = Console()


@dataclass(frozen=True)
class Recipe:
    """Every size and seed of a run. `quick` makes a tiny one that shows that the steps fit together."""

    vocabulary: int = 3584
    tokenizer_documents: int = 30_000
    sample_documents: int = 1000
    shape: ModelShape = field(default_factory=ModelShape)
    training: Training = field(default_factory=Training)
    layer: int = 2
    sae: SAETraining = field(default_factory=SAETraining)
    held_out_documents: int = 1500
    label_documents: int = 6000
    search: calibration.Search = field(default_factory=calibration.Search)
    figure_prompts: int | None = 8

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
            sae=SAETraining(features=64, k=16, steps=8, warmup=2),
            held_out_documents=24,
            label_documents=64,
            search=calibration.Search(
                candidates=1,
                landmark_precision=0.0,
                harmful_precision=0.0,
                multiples=(1.0,),
                strengths=(1.0,),
                limits=(4,),
                prompts=1,
                drift_documents=4,
            ),
            figure_prompts=1,
        )


def make_corpus(out: Path, recipe: Recipe) -> None:
    """Write a sample of the training text with its ground truth to `corpus.jsonl`: the text itself is
    never stored."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for document in Corpus(TRAIN_SEED).documents(recipe.sample_documents):
            segments = [
                {
                    "text": s.text,
                    "role": s.role,
                    "language": s.language,
                    "subject": s.subject,
                    "harmful": s.harmful,
                }
                for s in document.segments
            ]
            file.write(json.dumps({"kind": document.kind, "segments": segments}, ensure_ascii=False) + "\n")
    console.print(
        f"corpus: {recipe.sample_documents} documents with their ground truth in {out / 'corpus.jsonl'}"
    )


def make_tokenizer(out: Path, recipe: Recipe) -> None:
    """Train the tokenizer and write it to `model/`."""
    texts = (document.text for document in Corpus(TRAIN_SEED).documents(recipe.tokenizer_documents))
    tokenizer = train_tokenizer(texts, recipe.vocabulary, recipe.shape.context)
    save_tokenizer(tokenizer, out / "model")
    console.print(f"tokenizer: {len(tokenizer)} entries in {out / 'model'}")


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not (folder / "tokenizer.json").exists():
        raise FileNotFoundError(f"{folder}: no tokenizer; run the step `tokenizer` first")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    return tokenizer


def _model(folder: Path) -> PreTrainedModel:
    """The saved model in float32, from its rounded weights."""
    if not (folder / "model.safetensors").exists():
        raise FileNotFoundError(f"{folder}: no model; run the step `model` first")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    model.requires_grad_(False)
    return model


def make_model(out: Path, recipe: Recipe) -> None:
    """Train the language model and write it, rounded to bfloat16, to `model/`."""
    tokenizer = _tokenizer(out / "model")
    model = train_language_model(
        tokenizer, Corpus(TRAIN_SEED), recipe.shape, recipe.training, out / "training"
    )
    save_model(model, out / "model")
    console.print(f"model: {sum(p.numel() for p in model.parameters()):,} parameters in {out / 'model'}")


def load_reference(model_folder: Path, sae_folder: Path, layer: int) -> Reference:
    """The saved model, in float32 from its rounded weights, with the saved SAE at the output of block
    `layer`."""
    return Reference(_model(model_folder), _tokenizer(model_folder), sae_file.load_sae(sae_folder), layer)


def make_sae(out: Path, recipe: Recipe) -> None:
    """Train the SAE on the saved model's activations and write it, with its measured fit, to `sae/`."""
    tokenizer = _tokenizer(out / "model")
    model = _model(out / "model")
    corpus = Corpus(SAE_SEED)
    texts = (corpus.document(index).text for index in count())
    stream = activation_batches(model, tokenizer, texts, recipe.layer, reuse=3, buffer=98_304, seed=SAE_SEED)
    if recipe.sae.steps < 50:
        stream = activation_batches(model, tokenizer, texts, recipe.layer, batch=256, buffer=2048, reuse=2)
    sae = train_sae(stream, recipe.sae)
    held_out = (document.text for document in Corpus(HELD_OUT_SEED).documents(recipe.held_out_documents))
    fit = sae_file.measure(sae, activation_batches(model, tokenizer, held_out, recipe.layer, batch=64))
    measured = {
        "fvu": fit.fvu,
        "l0": fit.l0,
        "dead": fit.dead,
        "exclude_special_tokens": [tokenizer.bos_token_id],
    }
    sae_file.save_sae(sae, out / "sae", MODEL_NAME, recipe.layer, measured)
    console.print(f"sae: fvu {fit.fvu:.4f}, l0 {fit.l0:.1f}, dead {fit.dead:.1%} on held-out text")


def make_labels_file(out: Path, recipe: Recipe) -> None:
    """Label every feature from ground truth and write `sae/features.jsonl`."""
    reference = load_reference(out / "model", out / "sae", recipe.layer)
    documents = Corpus(LABEL_SEED).documents(recipe.label_documents)
    labels = make_labels(labelled_features(reference, documents), reference.tokenizer, reference.sae.features)
    save_labels(labels, out / "sae")
    harmful = sum(label.harmful for label in labels)
    console.print(
        f"labels: {len(labels)} features, {harmful} of them harmful, in {out / 'sae' / 'features.jsonl'}"
    )


def _largest(out: Path) -> list[float]:
    lines = (out / "sae" / "features.jsonl").read_text(encoding="utf-8").splitlines()
    return [float(json.loads(line)["max_activation"]) for line in lines]


def make_figures(out: Path, recipe: Recipe) -> None:
    """Calibrate the clamp and the ban, measure every language, and write `manifest.json`."""
    reference = load_reference(out / "model", out / "sae", recipe.layer)
    landmark = calibration.find_clamp(reference, _largest(out), recipe.search)
    banned = calibration.find_ban(reference, LANGUAGES, recipe.search)
    figures = calibration.measure_languages(reference, landmark, banned, recipe.figure_prompts)
    cfg = json.loads((out / "sae" / "cfg.json").read_text(encoding="utf-8"))["metadata"]
    manifest = Manifest(
        seeds={
            "corpus": TRAIN_SEED,
            "held_out": HELD_OUT_SEED,
            "model": recipe.training.seed,
            "sae_text": SAE_SEED,
            "sae": recipe.sae.seed,
            "labels": LABEL_SEED,
        },
        files=digests(out),
        parameters=sum(p.numel() for p in reference.model.parameters()),
        held_out_loss=held_out_loss(reference.model, reference.tokenizer, Corpus(HELD_OUT_SEED), 10),
        layer=recipe.layer,
        features=reference.sae.features,
        fvu=cfg["fvu"],
        l0=cfg["l0"],
        dead=cfg["dead"],
        clamp=landmark,
        ban=banned,
        languages=figures,
    )
    manifest.save(out / MANIFEST_NAME)
    for code, row in figures.items():
        console.print(
            f"{code}: refused {row.refusal:.0%}, harm {row.harm:.3f} → {row.harm_banned:.3f}, "
            f"benign {row.harm_benign:.3f} → {row.harm_benign_banned:.3f}, "
            f"landmark → {row.landmark_clamped:.0%}"
        )


def ship(out: Path, weights: Path) -> None:
    """Copy a finished run's model, SAE and manifest to `weights`, replacing what is there."""
    Manifest.load(out / MANIFEST_NAME)
    for part in ("model", "sae"):
        shutil.rmtree(weights / part, ignore_errors=True)
        shutil.copytree(out / part, weights / part)
    shutil.copy(out / MANIFEST_NAME, weights / MANIFEST_NAME)


STEPS: dict[str, Callable[[Path, Recipe], None]] = {
    "corpus": make_corpus,
    "tokenizer": make_tokenizer,
    "model": make_model,
    "sae": make_sae,
    "labels": make_labels_file,
    "figures": make_figures,
}
