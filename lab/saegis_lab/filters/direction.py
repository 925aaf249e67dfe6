"""The refusal direction: what a model adds to its activation when it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from saegis_lab.filters.subject import FilterSubject, SiteSubject
from saegis_lab.records import Record, parse_record, read_lines
from saegis_server.engine.torch.site_reading import read_site

#: The most tokens that run through the model at once.
_BATCH_TOKENS = 8192


class DirectionError(ValueError):
    """A refusal direction that cannot be made, and why."""


@dataclass(frozen=True, slots=True)
class RefusalDirection:
    """vector: float32 [d], a unit vector; norm: the length that it had; source: in words, what it was made
    from."""

    vector: Tensor
    norm: float
    source: str

    @classmethod
    def of(cls, difference: Tensor, source: str) -> RefusalDirection:
        """The direction of a difference [d]. Raises DirectionError where it is zero or not finite."""
        values = difference.detach().double().cpu()
        norm = float(values.norm())
        if not 0.0 < norm < float("inf"):
            raise DirectionError(f"the direction from {source} is zero or not finite")
        return cls((values / norm).float(), norm, source)


@dataclass(frozen=True, slots=True)
class RefusalExample(Record):
    """A user's message, and an answer that refuses it.

    Raises ValueError where one of them is blank.
    """

    prompt: str
    refusal: str

    def __post_init__(self) -> None:
        for name in ("prompt", "refusal"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is blank")


def load_examples(path: Path) -> tuple[RefusalExample, ...]:
    """The examples of a JSONL file. Raises InputFileError."""
    return read_lines(path, partial(parse_record, RefusalExample), "holds no examples; write one a line")


def aligned_language(refused: Mapping[str, float], least: float) -> str | None:
    """The language in which the greatest share of harmful prompts is refused; None where no share is at
    least `least`. Of equal ones the first."""
    best = max(refused, key=lambda code: refused[code], default=None)
    return best if best is not None and refused[best] >= least else None


def refusal_difference(
    harmful: Mapping[str, Tensor], benign: Mapping[str, Tensor], aligned: str
) -> tuple[Tensor, str]:
    """float64 [d]: [mean of harmful − mean of benign] in the aligned language, less the mean of the same over
    the other languages; and in words what that is.

    harmful, benign: float [prompts, d] for each language, the activations at the last token of prompts.
    """
    differences = {code: harmful[code].double().mean(0) - benign[code].double().mean(0) for code in harmful}
    others = [difference for code, difference in differences.items() if code != aligned]
    words = f"harmful − benign prompts in {aligned}"
    if not others:
        return differences[aligned], words
    words += f", less the same in {', '.join(code for code in differences if code != aligned)}"
    return differences[aligned] - torch.stack(others).mean(0), words


def last_activations(subject: SiteSubject, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The activation at the last token of each prompt of token ids, float32 [prompts, d], on the CPU."""
    return torch.stack([x[-1] for x in activations(subject, prompts)])


def activations(subject: SiteSubject, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The clean activations of each text at the site, float32 [tokens, d], on the CPU."""
    read: list[Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    while order:
        count = max(1, _BATCH_TOKENS // len(rows[order[0]]))
        group, order = order[:count], order[count:]
        texts = subject.padded([rows[number] for number in group])
        x = read_site(subject.loaded.model, subject.site, texts.ids).cpu()
        for place, number in enumerate(group):
            read[number] = x[place, : len(rows[number])]
    return read


def from_texts(
    subject: SiteSubject,
    towards: Sequence[Sequence[int]],
    away: Sequence[Sequence[int]],
    every_token: bool = False,
) -> RefusalDirection:
    """The mean activation of some texts of token ids, less that of others: at the last token of each text or,
    with `every_token`, at all but the model's own first token. Raises DirectionError for no text or token.
    """
    means = []
    for name, rows in (("towards", towards), ("away", away)):
        read = [
            x[int(row[0] == subject.loaded.bos_token_id) :] if every_token else x[-1:]
            for row, x in zip(rows, activations(subject, rows), strict=True)
        ]
        if not sum(map(len, read)):
            raise DirectionError(f"the texts {name} have no tokens")
        means.append(torch.cat(read).double().mean(0))
    return RefusalDirection.of(means[0] - means[1], f"{len(towards)} texts less {len(away)} others")


def from_prompts(
    subject: FilterSubject,
    harmful: Mapping[str, Sequence[str]],
    benign: Mapping[str, Sequence[str]],
    aligned: str,
) -> RefusalDirection:
    """The direction from the prompts of each language. Raises DirectionError for a language without some of
    both kinds, and an aligned language that is none of them."""
    if aligned not in harmful:
        raise DirectionError(f"the aligned language {aligned!r} is none of {', '.join(harmful)}")
    for code in harmful:
        if not harmful[code] or not benign.get(code):
            raise DirectionError(f"language {code!r} needs harmful and benign prompts for a direction")
    read = {
        kind: {
            code: last_activations(subject, [subject.asked(prompt) for prompt in prompts[code]])
            for code in prompts
        }
        for kind, prompts in (("harmful", harmful), ("benign", benign))
    }
    difference, words = refusal_difference(read["harmful"], read["benign"], aligned)
    return RefusalDirection.of(difference, words)


def _answer(conversation: Sequence[int], prompt: Sequence[int]) -> list[int]:
    """What a conversation of token ids has behind the prompt that it begins with."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(conversation, prompt, strict=False))
    return list(conversation[sum(1 for _ in same) :])


def from_feature(subject: FilterSubject, feature: int, largest: float) -> RefusalDirection:
    """A refusal feature's decoder row; its length is that at the feature's largest activation.

    Raises DirectionError where there is no such feature.
    """
    if not 0 <= feature < subject.sae.features:
        raise DirectionError(f"feature {feature} does not exist: 0 to {subject.sae.features - 1} do")
    row = subject.sae.W_dec[feature].float()
    return RefusalDirection.of(row * (largest or 1.0), f"the decoder row of feature {feature}")


def from_examples(
    subject: FilterSubject, examples: Sequence[RefusalExample], tokens: int
) -> RefusalDirection:
    """The mean activation over the first `tokens` tokens of the refusals, less that of the model's own
    answers to the same prompts. Raises DirectionError where the model answers none of them."""
    prompts = [subject.asked(example.prompt) for example in examples]
    own = subject.answers(prompts, max_tokens=tokens)
    refusals = [
        _answer(subject.chat([("user", each.prompt), ("assistant", each.refusal)], opens_turn=False), prompt)
        for each, prompt in zip(examples, prompts, strict=True)
    ]
    means = []
    for answers in (refusals, own):
        pairs = [(prompt, answer[:tokens]) for prompt, answer in zip(prompts, answers, strict=True) if answer]
        if not pairs:
            raise DirectionError("the model answers no prompt of the examples with a token")
        read = activations(subject, [[*prompt, *answer] for prompt, answer in pairs])
        begun = [x[len(prompt) :] for x, (prompt, _) in zip(read, pairs, strict=True)]
        means.append(torch.cat(begun).double().mean(0))
    return RefusalDirection.of(means[0] - means[1], f"{len(examples)} examples of refusals")
