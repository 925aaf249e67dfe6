"""Questions run through the frozen language model, in words and with pictures, and how far apart what it then
holds and says is. No SAE takes part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saegis_lab.polyglot.eyes.asking import IMAGE, NOTHING, Asked, Asking, prompt
from saegis_lab.polyglot.eyes.keeping import Keeper, share
from saegis_lab.polyglot.eyes.scenes import COVERED
from saegis_lab.polyglot.eyes.subjects import ICONS
from saegis_lab.polyglot.lexicon import Language, lexicon


@dataclass(frozen=True)
class Through:
    """How something is taught through the language model. layer: after which block the residual streams are
    matched. answers, patches: weights of that match at the answer's tokens, and at the picture's."""

    steps: int
    batch: int
    rate: float
    warmup: int = 10
    layer: int = 3
    answers: float = 1.0
    patches: float = 0.5
    checkpoint_every: int = 50


@dataclass(frozen=True)
class Rows:
    """Questions as tokens: ids int64 [b, length], padded on the right; `ends`: where the prompts end, [b];
    `answers`: the tokens of each answer; `pictured`: the picture's tokens, bool [b, length]."""

    ids: Tensor
    ends: list[int]
    answers: list[list[int]]
    pictured: Tensor

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked], patches: int, words: bool
    ) -> Rows:
        """The questions in words alone, or with a picture of `patches` tokens."""
        prompts, answers = [], []
        for each in asked:
            before, image, behind = (each.words if words else each.picture).partition(IMAGE)
            ids = _encode(tokenizer, before)
            # Any token holds a picture's place: what is there is replaced before the model sees it.
            ids += [-1] * (patches if image else 0) + _encode(tokenizer, behind)
            prompts.append(ids)
            answers.append(_encode(tokenizer, each.answer))
        length = max(len(ids) + len(answer) for ids, answer in zip(prompts, answers, strict=True))
        padded = torch.zeros(len(asked), length, dtype=torch.int64)
        for row, (ids, answer) in enumerate(zip(prompts, answers, strict=True)):
            padded[row, : len(ids) + len(answer)] = torch.tensor(ids + answer)
        return cls(padded.clamp_min(0), [len(ids) for ids in prompts], answers, padded < 0)

    def told(self, before: int) -> tuple[Tensor, Tensor]:
        """(rows, places) of the tokens that answers are told from, and of the `before` ones ahead of them."""
        pairs = [
            (row, place)
            for row, (end, answer) in enumerate(zip(self.ends, self.answers, strict=True))
            for place in range(end - 1 - before, end + len(answer) - 1)
        ]
        rows, places = torch.tensor(pairs).unbind(1)
        return rows, places


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


@dataclass(frozen=True)
class Streams:
    """What the model holds for some rows: the residual streams after a block at the told places, [n, d], and
    over the whole rows, [b, length, d]; the log-probabilities of what follows, [n, vocabulary]."""

    told: Tensor
    all: Tensor
    following: Tensor


def streams(model: PreTrainedModel, rows: Rows, layer: int, pictures: Tensor | None = None) -> Streams:
    """Run the model on rows whose pictures' tokens are `pictures`, [b, patches, d]."""
    inputs = cast(nn.Embedding, model.get_input_embeddings())(rows.ids)
    if pictures is not None:
        inputs = inputs.masked_scatter(rows.pictured[..., None], pictures)
    body = cast(Any, model).model
    told = body(inputs_embeds=inputs, output_hidden_states=True, use_cache=False)
    at, places = rows.told(0)
    logits = cast(Any, model).lm_head(told.last_hidden_state[at, places])
    stream = told.hidden_states[layer + 1]
    at, places = rows.told(1)
    return Streams(stream[at, places], stream, logits.log_softmax(-1))


@torch.no_grad()
def spoken_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layer: int) -> Tensor:
    """What the model holds where an answer opens, [27, d]: the mean over the questions of all languages about
    each subject; the last, that of what it is asked without a subject."""
    means = []
    for key in [*ICONS, None]:
        texts = [text for language in lexicon().values() for text in _questions(language, key)]
        rows = [_encode(tokenizer, prompt(text)) for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        told = cast(Any, model).model(input_ids=ids, output_hidden_states=True, use_cache=False)
        ends = torch.tensor([len(row) - 1 for row in rows])
        means.append(told.hidden_states[layer + 1][torch.arange(len(rows)), ends].mean(0))
    return torch.stack(means)


def _questions(language: Language, key: str | None) -> list[str]:
    """What is asked in a language about a subject, or without one."""
    if key is None:
        return [said for said, _ in (*language.vague, *language.greetings)]
    return [form.format(about=language.subjects[key].about) for form in language.questions]


def apart(held: Tensor, wanted: Tensor) -> Tensor:
    """The squared distance of vectors [n, d] from those wanted, by the mean square of the latter."""
    return functional.mse_loss(held, wanted) / wanted.square().mean()


def losses(
    model: PreTrainedModel, rows: Rows, pictures: Tensor, teacher: Streams, held: Tensor, layer: int
) -> dict[str, Tensor]:
    """How far the answers about pictures are from those of the same model to the same questions in words: the
    divergence of what follows, and of the residual streams at the answer and at the picture, where `held`
    [b, patches, d] is wanted."""
    seen = streams(model, rows, layer, pictures)
    following = functional.kl_div(seen.following, teacher.following, reduction="batchmean", log_target=True)
    return {
        "answers": following,
        "stream": apart(seen.told, teacher.told),
        "picture": apart(seen.all[rows.pictured], held.flatten(0, 1)),
    }


#: Draws, for subjects [b] and from a chance, what pictures of them become at the model's input, [b, patches,
#: d], and the share of each patch that shows the subject, [b, patches].
Draw = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


def teach_through(
    what: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: Through,
    taught: nn.Module,
    draw: Draw,
    seed: int,
    folder: Path,
) -> None:
    """Teach `taught`, by which `draw` draws, to be told of as the same questions in words are: the frozen
    model is its own teacher.

    An interrupted run goes on from the checkpoint in `folder`, named by `what`. Raises ValueError if that
    belongs to a run with other settings.
    """
    optimizer = torch.optim.Adam([p for p in taught.parameters() if p.requires_grad], lr=training.rate)
    keeper = Keeper(what, folder, {**asdict(training), "seed": seed}, {what: taught}, [optimizer])
    first = keeper.resume()
    held, asking = spoken_of(model, tokenizer, training.layer), Asking(seed)
    beside = held[:NOTHING].mean(0)
    weights = {"answers": 1.0, "stream": training.answers, "picture": training.patches}
    with keeper.progress(first, training.steps) as told:
        for step in range(first, training.steps):
            chance = torch.Generator().manual_seed((seed << 32) + step)
            asked = [asking.question(step * training.batch + place) for place in range(training.batch)]
            subjects = torch.tensor([each.subject for each in asked])
            pictures, cover = draw(subjects, chance)
            wanted = torch.where((cover > COVERED)[..., None], held[subjects][:, None], beside)
            with torch.no_grad():
                teacher = streams(model, Rows.of(tokenizer, asked, 0, words=True), training.layer)
            rows = Rows.of(tokenizer, asked, cover.shape[1], words=False)
            parts = losses(model, rows, pictures, teacher, wanted, training.layer)
            optimizer.zero_grad(set_to_none=True)
            torch.stack([weights[name] * part for name, part in parts.items()]).sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(taught.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = training.rate * share(step, training.steps, training.warmup)
            optimizer.step()
            told(**{name: part.item() for name, part in parts.items()})
            if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
                keeper.keep(step + 1)
