"""The reference language model: a small stock Llama, trained on the corpus, resumable, deterministic by
seed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from saegis_lab.polyglot.corpus import BOS, END, PAD, Corpus, Document
from saegis_lab.training.activations import token_batches

IGNORE = -100


@dataclass(frozen=True)
class ModelShape:
    """Size of the model; widths in units, `context` in tokens."""

    width: int = 160
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 448
    context: int = 1024


@dataclass(frozen=True)
class Training:
    """How the model is trained; `batch_tokens` counts padding."""

    steps: int = 2400
    batch_tokens: int = 3072
    learning_rate: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.1
    pool: int = 4096
    checkpoint_every: int = 100


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)  # noqa: S101
    return number


def new_model(tokenizer: PreTrainedTokenizerBase, shape: ModelShape, seed: int) -> LlamaForCausalLM:
    """An untrained model in float32 with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=_id(tokenizer, BOS),
        eos_token_id=_id(tokenizer, END),
        pad_token_id=_id(tokenizer, PAD),
        attention_dropout=0.0,
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, pool: int, context: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (input_ids, labels) of int64 [rows, length]: whole documents of like length, padded on the
    right."""
    pad = _id(tokenizer, PAD)
    turn = 0
    while True:
        texts = [document.text for document in corpus.documents(pool, turn * pool)]
        rows = [ids[:context] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        rows.sort(key=len)
        groups: list[list[list[int]]] = [[]]
        for ids in rows:
            if groups[-1] and len(ids) * (len(groups[-1]) + 1) > batch_tokens:
                groups.append([])
            groups[-1].append(ids)
        random.Random(f"{corpus.seed}:{turn}").shuffle(groups)
        for group in groups:
            length = max(map(len, group))
            inputs = torch.tensor([ids + [pad] * (length - len(ids)) for ids in group])
            labels = torch.tensor([ids + [IGNORE] * (length - len(ids)) for ids in group])
            yield inputs, labels
        turn += 1


def next_token_loss(model: PreTrainedModel, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the labelled tokens. Right padding needs no mask under causal
    attention."""
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)


def _rate(step: int, training: Training) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def _optimizer(model: LlamaForCausalLM, training: Training) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98), eps=1e-9)


def train_language_model(
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    shape: ModelShape,
    training: Training,
    seed: int,
    folder: Path,
) -> LlamaForCausalLM:
    """Train a new model, on a GPU where there is one; returns it in float32, on the CPU.

    `seed` is that of its first weights. An interrupted run goes on from the checkpoint that is kept in
    `folder`. Raises ValueError if that belongs to a run with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(tokenizer, shape, seed)
    nn.Module.to(model, device)
    optimizer = _optimizer(model, training)
    settings = {**asdict(shape), **asdict(training), "seed": seed}
    first = _resume(folder, model, optimizer, settings)
    stream = batches(corpus, tokenizer, training.batch_tokens, training.pool, shape.context)
    for _ in range(first):
        next(stream)
    model.train()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    started, average = time.monotonic(), float("nan")
    with Progress(*columns) as progress:
        bar = progress.add_task("language model", total=training.steps, completed=first)
        for step in range(first, training.steps):
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, training)
            inputs, labels = (tensor.to(device) for tensor in next(stream))
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = next_token_loss(model, inputs, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            value = loss.item()
            average = value if math.isnan(average) else 0.98 * average + 0.02 * value
            progress.update(bar, advance=1, description=f"language model  loss {average:.3f}")
            if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
                _checkpoint(folder, model, optimizer, settings, step + 1)
                progress.print(f"step {step + 1}  loss {average:.4f}  {time.monotonic() - started:.0f} s")
    nn.Module.to(model, "cpu")
    model.train(False)
    return model


def _checkpoint(
    folder: Path,
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    settings: dict[str, float],
    step: int,
) -> None:
    state = {
        "step": step,
        "run": settings,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    fresh = folder / "checkpoint.tmp"
    torch.save(state, fresh)
    fresh.replace(folder / "checkpoint.pt")


def _resume(
    folder: Path,
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    settings: dict[str, float],
) -> int:
    """Load the checkpoint in `folder` if it belongs to the same run; returns the step to go on from."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    if state["run"] != settings:
        raise ValueError(
            f"{path}: the checkpoint belongs to a run with other settings; remove it to start afresh"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save_model(model: LlamaForCausalLM, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the weights, rounded to `dtype`, and the configuration as Transformers reads them."""
    cast(Any, model).to(dtype).save_pretrained(str(folder))
    (folder / "model.safetensors").chmod(0o644)


@torch.no_grad()
def held_out_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]
) -> tuple[float, float]:
    """(loss, bound) in nats a token on documents that were not trained on, the first token of each left out.

    bound: the mean surprise of the choices that made the documents. It is at least the entropy of their text
    (see `Chance`); a model can beat it only by the choices that leave no trace in the text.
    """
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    loss, tokens = 0.0, sum(len(row) - 1 for row in encoded)
    for ids, real in token_batches(encoded, _id(tokenizer, PAD), 4096):
        labels = ids.masked_fill(~real, IGNORE)
        loss += next_token_loss(model, ids, labels).item() * int(real[:, 1:].sum())
    return loss / tokens, sum(document.surprise for document in documents) / tokens
