"""Labels for an SAE's features from ground truth: the concept that each feature fires on, with precision
and recall."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from saegis_server.polyglot.lexicon import lexicon
from saegis_server.polyglot.truth import LabelledFeatures, LabelledToken

ENGLISH_NAMES = {
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "de": "German",
    "ru": "Russian",
    "zh": "Chinese",
    "hi": "Hindi",
    "sw": "Swahili",
}
#: A concept is one of: ("subject", key), ("subject in", key, language), ("harm",), ("language", code),
#: ("role", role).
Concept = tuple[str, ...]
_LEAST_TOKENS = 20
_SHARE = 0.1


@dataclass(frozen=True)
class Label:
    """One line of `features.jsonl`. Recall is by language; densities and precisions are shares of tokens."""

    feature: int
    label: str
    subjects: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    precision: float = 0.0
    recall: dict[str, float] = field(default_factory=dict)
    max_activation: float = 0.0
    density: float = 0.0
    harmful: bool = False


def concepts_of(token: LabelledToken) -> list[Concept]:
    """The concepts that hold of a token."""
    segment = token.segment
    found: list[Concept] = [("role", segment.role)] if segment.role in ("question", "refusal") else []
    if segment.language is not None:
        found.append(("language", segment.language))
        if segment.subject is not None:
            found += [("subject", segment.subject), ("subject in", segment.subject, segment.language)]
    if segment.harmful:
        found.append(("harm",))
    return found


def describe(concept: Concept) -> str:
    """A concept in words."""
    kind, *names = concept
    if kind == "harm":
        return "harmful subjects (harmful)"
    if kind == "role":
        return names[0]
    if kind == "language":
        return ENGLISH_NAMES[names[0]]
    subject = lexicon()["en"].subjects[names[0]]
    text = subject.about.removeprefix("the ") + (" (harmful)" if subject.harmful else "")
    return text if kind == "subject" else f"{text} in {ENGLISH_NAMES[names[1]]}"


class FeatureCounts:
    """How often each feature fires on each concept, in each language and on each vocabulary entry."""

    def __init__(self, features: int, vocabulary: int) -> None:
        self.total = 0
        self.concepts: dict[tuple[Concept, str], int] = {}
        self._sizes: Counter[int] = Counter()
        self._on: list[Tensor] = []
        self.on_token = torch.zeros(features, vocabulary)
        self.token_sizes = torch.zeros(vocabulary)
        self.active = torch.zeros(features)
        self.largest = torch.zeros(features)
        self.mass = torch.zeros(features)
        self.harmful_mass = torch.zeros(features)

    def add(self, batch: LabelledFeatures) -> None:
        """Count one batch."""
        rows, columns = [], []
        for row, token in enumerate(batch.tokens):
            for concept in concepts_of(token):
                key = (concept, token.segment.language or "")
                column = self.concepts.setdefault(key, len(self.concepts))
                rows.append(row)
                columns.append(column)
                self._sizes[column] += 1
        fired = (batch.activations > 0).float()
        holds = torch.zeros(len(batch.tokens), len(self.concepts))
        holds[rows, columns] = 1.0
        self._on.append(fired.T @ holds)
        ids = torch.tensor([token.token for token in batch.tokens])
        self.on_token.index_add_(1, ids, fired.T)
        self.token_sizes += torch.bincount(ids, minlength=len(self.token_sizes))
        harmful = torch.tensor([float(token.segment.harmful) for token in batch.tokens])
        self.total += len(batch.tokens)
        self.active += fired.sum(0)
        self.largest = torch.maximum(self.largest, batch.activations.amax(0))
        self.mass += batch.activations.sum(0)
        self.harmful_mass += harmful @ batch.activations

    def on(self) -> Tensor:
        """Tokens on which a feature fires and a (concept, language) holds, [features, len(concepts)]."""
        width = len(self.concepts)
        return torch.stack(
            [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in self._on]
        ).sum(0)

    def sizes(self) -> Tensor:
        """Tokens on which each (concept, language) holds."""
        return torch.tensor([float(self._sizes[column]) for column in range(len(self.concepts))])


def make_labels(
    batches: Iterable[LabelledFeatures], tokenizer: PreTrainedTokenizerBase, features: int
) -> list[Label]:
    """A label for every feature: the concept, or else the vocabulary entry, that its firing fits best by
    F1."""
    counts = FeatureCounts(features, len(tokenizer))
    for batch in batches:
        counts.add(batch)
    keys, on, sizes = list(counts.concepts), counts.on(), counts.sizes()
    whole = sorted({concept for concept, _ in keys})
    member = torch.zeros(len(keys), len(whole))
    for row, (concept, _) in enumerate(keys):
        member[row, whole.index(concept)] = 1.0
    active = counts.active.clamp_min(1)
    f1 = 2 * (on @ member) / (active[:, None] + (sizes @ member)[None])
    token_f1 = 2 * counts.on_token / (active[:, None] + counts.token_sizes[None])
    found = []
    for feature in range(features):
        if counts.active[feature] == 0:
            found.append(Label(feature, "never fires"))
        elif token_f1[feature].max() > f1[feature].max():
            found.append(_token_label(feature, counts, on, keys, tokenizer, int(token_f1[feature].argmax())))
        else:
            found.append(_concept_label(feature, counts, on, sizes, keys, whole[int(f1[feature].argmax())]))
    return found


def _shares(
    counts: FeatureCounts, on: Tensor, keys: list[tuple[Concept, str]], feature: int, kind: str
) -> list[str]:
    """Names of `kind` that hold on at least a tenth of the feature's tokens, most frequent first."""
    share: Counter[str] = Counter()
    for column, (concept, _) in enumerate(keys):
        if concept[0] == kind:
            share[concept[1]] += int(on[feature, column])
    return [name for name, count in share.most_common() if count >= _SHARE * counts.active[feature].item()]


def _common(
    counts: FeatureCounts, on: Tensor, keys: list[tuple[Concept, str]], feature: int
) -> dict[str, object]:
    return {
        "subjects": tuple(_shares(counts, on, keys, feature, "subject")),
        "languages": tuple(_shares(counts, on, keys, feature, "language")),
        "max_activation": round(counts.largest[feature].item(), 4),
        "density": round(counts.active[feature].item() / counts.total, 6),
        "harmful": bool(counts.harmful_mass[feature] > 0.8 * counts.mass[feature]),
    }


def _concept_label(
    feature: int,
    counts: FeatureCounts,
    on: Tensor,
    sizes: Tensor,
    keys: list[tuple[Concept, str]],
    concept: Concept,
) -> Label:
    columns = [(column, language) for column, (other, language) in enumerate(keys) if other == concept]
    hits = sum(on[feature, column].item() for column, _ in columns)
    recall = {
        language: round(on[feature, column].item() / sizes[column].item(), 4)
        for column, language in sorted(columns, key=lambda pair: pair[1])
        if language and sizes[column] >= _LEAST_TOKENS
    }
    precision = round(hits / counts.active[feature].item(), 4)
    shared = _common(counts, on, keys, feature)
    return Label(feature, describe(concept), precision=precision, recall=recall, **shared)  # type: ignore[arg-type]


def _token_label(
    feature: int,
    counts: FeatureCounts,
    on: Tensor,
    keys: list[tuple[Concept, str]],
    tokenizer: PreTrainedTokenizerBase,
    token: int,
) -> Label:
    order = counts.on_token[feature].topk(3)
    strong = [
        t
        for t, c in zip(order.indices.tolist(), order.values.tolist(), strict=True)
        if c >= order.values[0] / 4
    ]
    texts = [str(tokenizer.decode([t])) for t in strong]
    names = ", ".join(repr(text.strip() or text) for text in texts)
    precision = round(counts.on_token[feature, token].item() / counts.active[feature].item(), 4)
    shared = _common(counts, on, keys, feature)
    return Label(feature, f"token {names}", precision=precision, **shared)  # type: ignore[arg-type]


def save_labels(labels: Iterable[Label], folder: Path) -> None:
    """Write `features.jsonl`."""
    lines = [json.dumps(asdict(label), ensure_ascii=False) for label in labels]
    (folder / "features.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
