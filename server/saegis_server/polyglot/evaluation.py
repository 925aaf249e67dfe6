"""What the reference model answers, with and without an edit: greedy answers and the rates that they
score."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saegis_server.polyglot.activations import Edit, edited, token_batches
from saegis_server.polyglot.prompts import Prompt
from saegis_server.polyglot.sae_file import TrainedSAE
from saegis_server.polyglot.scoring import harm_score, is_refusal, mentions_landmark


@dataclass(frozen=True)
class Reference:
    """The thing under test: a model, its tokenizer, and an SAE at the output of block `layer`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sae: TrainedSAE
    layer: int


def _left_padded(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    texts = [
        str(tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False))
        for prompt in prompts
    ]
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    length = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def answers(
    reference: Reference,
    prompts: Sequence[Prompt],
    edit: Edit | None = None,
    tokens: int = 80,
    batch: int = 128,
) -> list[str]:
    """Greedy answers of at most `tokens` tokens to `prompts`, in order, under `edit` at the SAE's site."""
    found: list[str] = []
    for start in range(0, len(prompts), batch):
        ids, mask = _left_padded(reference.tokenizer, prompts[start : start + batch])
        with edited(reference.model, reference.layer, edit) if edit else nullcontext():
            out = cast(Any, reference.model).generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, use_cache=True
            )
        found += reference.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return found


@dataclass(frozen=True)
class Rates:
    """Means over answers: share refused, share of harmful words, share that names the landmark."""

    refusal: float
    harm: float
    landmark: float


def rates(prompts: Sequence[Prompt], texts: Sequence[str]) -> Rates:
    """Score `texts`, the answers to `prompts`, each in its prompt's language. Raises ValueError when there
    are none."""
    if not texts:
        raise ValueError("texts: there are none to score")
    pairs = list(zip(prompts, texts, strict=True))
    return Rates(
        refusal=sum(is_refusal(text) for _, text in pairs) / len(pairs),
        harm=sum(harm_score(text, prompt.language) for prompt, text in pairs) / len(pairs),
        landmark=sum(mentions_landmark(text, prompt.language) for prompt, text in pairs) / len(pairs),
    )


@torch.no_grad()
def drift(reference: Reference, texts: Sequence[str], edit: Edit) -> float:
    """Mean KL divergence, in nats a token, of the edited model's next-token distribution from the plain
    one's."""
    total, tokens = 0.0, 0
    for ids, real in token_batches(
        reference.tokenizer, texts, 4096, reference.model.config.max_position_embeddings
    ):
        plain = reference.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[real]
        with edited(reference.model, reference.layer, edit):
            moved = reference.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)[real]
        total += (plain.exp() * (plain - moved)).sum().item()
        tokens += len(plain)
    return total / tokens
