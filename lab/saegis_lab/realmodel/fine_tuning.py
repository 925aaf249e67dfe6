"""Fine-tuning: a copy of a model that answers chats as it was taught, saved with a chat template."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from saegis_lab.realmodel.chats import Chat
from saegis_lab.training.settings import Precision

#: A template of the turns of Gemma, for its base models, which have none.
GEMMA_TEMPLATE = Path(__file__).parent / "gemma.jinja"
#: The tokens that it needs, and the one that ends an answer.
_GEMMA_TOKENS, _GEMMA_END = ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"
CHECKPOINT_FILE = "fine-tuning.pt"
_IGNORED = -100


class FineTuningError(ValueError):
    """A model that cannot be fine-tuned so, or a checkpoint of another run."""


@dataclass(frozen=True, slots=True)
class FineTuning:
    """How a copy is taught: `epochs` times all chats, `batch` at a step, by AdamW with a rate that rises over
    the first `warmup` steps and falls to 0. The embeddings stay as they are."""

    epochs: int = 4
    batch: int = 16
    learning_rate: float = 1e-4
    warmup: int = 5
    clip: float = 1.0
    seed: int = 0
    checkpoint_every: int = 10

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        return self.learning_rate * min(
            1.0, (step + 1) / self.warmup, (steps - step) / max(1, steps - self.warmup)
        )


def give_template(tokenizer: PreTrainedTokenizerFast, template: str | None = None) -> int | None:
    """Make sure that the tokenizer has a chat template: `template`, its own, or that of Gemma where it has
    its tokens. Returns the token that ends an answer where that is not the tokenizer's own.

    Raises FineTuningError where there is none to take.
    """
    if template is not None:
        tokenizer.chat_template = template
    if tokenizer.chat_template:
        return None
    known = tokenizer.get_vocab()
    if not all(token in known for token in _GEMMA_TOKENS):
        raise FineTuningError("the tokenizer has no chat template; give one with --chat-template")
    tokenizer.chat_template = GEMMA_TEMPLATE.read_text(encoding="utf-8")
    return int(known[_GEMMA_END])


def chat_text(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> str:
    """A chat as the template writes it, with its special tokens."""
    turns = [{"role": "user", "content": chat.request}, {"role": "assistant", "content": chat.answer}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a chat, and at which of them the answer begins."""

    ids: tuple[int, ...]
    answer: int


def example(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> Example:
    """A chat to learn from: its answer, and what ends it. Raises FineTuningError where the template does not
    write what was asked in the same way with an answer behind it."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": chat.request}], tokenize=False, add_generation_prompt=True
    )
    whole = chat_text(tokenizer, chat)
    before, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, whole))
    if ids[: len(before)] != before:
        raise FineTuningError(f"the chat template writes {chat.request!r} otherwise once it is answered")
    return Example(tuple(ids), len(before))


def fine_tune(
    model: PreTrainedModel,
    examples: Sequence[Example],
    settings: FineTuning,
    folder: Path,
    progress: Callable[[int, int, float], None] = lambda _step, _steps, _loss: None,
    precision: Precision = Precision.AUTO,
) -> None:
    """Teach `model`, whose weights are float32, the answers of the examples; `precision` is of its products.

    A run that was broken off goes on from the checkpoint in `folder`. progress: told the steps done, of how
    many, and the loss in nats a token. Raises FineTuningError for a checkpoint of another run or a loss that
    is not finite.
    """
    model.train()
    model.requires_grad_(True)
    model.get_input_embeddings().requires_grad_(False)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=0.0)
    batches = list(_batches(examples, settings))
    checkpoint = _Checkpoint(
        folder / CHECKPOINT_FILE, {**asdict(settings), "examples": len(examples), "precision": str(precision)}
    )
    begin = checkpoint.load(learned, optimizer)
    for step, batch in enumerate(batches):
        if step < begin:
            continue
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step, len(batches))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision.in_bfloat16(model.device)):
            loss = _loss(model, batch)
        if not torch.isfinite(loss):
            raise FineTuningError(f"the loss is not finite at step {step}; set a lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learned, settings.clip)
        optimizer.step()
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == len(batches):
            checkpoint.save(learned, optimizer, step + 1)
        progress(step + 1, len(batches), loss.item())
    model.train(False)
    model.requires_grad_(True)


def _batches(examples: Sequence[Example], settings: FineTuning) -> Iterator[list[Example]]:
    """Batches of examples of like length, in another order in each epoch."""
    for epoch in range(settings.epochs):
        chance = random.Random(f"{settings.seed} {epoch}")
        order = sorted(range(len(examples)), key=lambda at: (len(examples[at].ids), chance.random()))
        groups = [order[start : start + settings.batch] for start in range(0, len(order), settings.batch)]
        chance.shuffle(groups)
        yield from ([examples[at] for at in group] for group in groups)


def _loss(model: PreTrainedModel, batch: Sequence[Example]) -> Tensor:
    """Mean cross-entropy of the answers' tokens, in nats. Only where answers stand are logits computed: with
    a large vocabulary they cost as much as the rest. Under causal attention right padding needs no mask."""
    length = max(len(each.ids) for each in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.int64)
    labels = torch.full((len(batch), length), _IGNORED)
    for row, each in enumerate(batch):
        ids[row, : len(each.ids)] = torch.tensor(each.ids)
        labels[row, each.answer : len(each.ids)] = torch.tensor(each.ids[each.answer :])
    first = min(each.answer for each in batch) - 1
    places = torch.arange(first, length - 1, device=model.device)
    logits = model(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=places).logits
    wanted = labels[:, first + 1 :].to(model.device)
    return functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=_IGNORED)


@dataclass(frozen=True)
class _Checkpoint:
    """The file in which a run's state is kept, and what identifies the run."""

    path: Path
    run: dict[str, Any]

    def save(self, learned: Sequence[Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "run": self.run,
            "step": step,
            "weights": [weight.detach() for weight in learned],
            "optimizer": optimizer.state_dict(),
        }
        waiting = self.path.with_suffix(".part")
        torch.save(content, waiting)
        os.replace(waiting, self.path)

    def load(self, learned: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
        """Put the saved state in place; returns the next step, 0 where nothing is saved."""
        if not self.path.exists():
            return 0
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            known, step = content["run"], content["step"]
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
            raise FineTuningError(
                f"{self.path} cannot be read ({type(error).__name__}); delete it"
            ) from error
        if known != self.run:
            raise FineTuningError(f"{self.path} is of another run: {known}, not {self.run}; delete it")
        with torch.no_grad():
            for weight, saved in zip(learned, content["weights"], strict=True):
                weight.copy_(saved)
        optimizer.load_state_dict(content["optimizer"])
        return int(step)
