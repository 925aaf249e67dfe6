"""Whether the features that text found fire on pictures: how each subject's ranks among all on drawings in a
style that was never seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.table import Table
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from saegis_lab.polyglot.corpus import BOS, USER
from saegis_lab.polyglot.eyes.asking import IMAGE, picture_questions, prompt
from saegis_lab.polyglot.eyes.emoji import Drawings
from saegis_lab.polyglot.eyes.scenes import STILL, Scenery
from saegis_lab.polyglot.eyes.subjects import ICONS
from saegis_lab.polyglot.eyes.tower import DEVIATION, MEAN
from saegis_lab.polyglot.lexicon import LANGUAGES
from saegis_lab.records import Record, read_record, write_record
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.site import Site

#: A feature that ranks so high or higher is counted as firing; the share of subjects that should.
TOP, GOAL = 3, 0.8


@dataclass(frozen=True)
class SubjectRank(Record):
    """One subject's feature on pictures of the subject.

    rank: its place, from 1, among all features by strength over the picture's tokens, the greatest of each
    picture, mean over pictures; end_rank: its place where the answer opens, mean over all languages' first
    question. in_top: the share of pictures on which alone it is among the `TOP`. strength: over the picture,
    in feature units; elsewhere: the same on pictures of the other subjects. above: the features above it.
    """

    subject: str
    feature: int
    pictures: int
    rank: int
    end_rank: int
    in_top: float
    strength: float
    elsewhere: float
    above: tuple[int, ...]


@dataclass(frozen=True)
class Ranks(Record):
    """Every subject's rank on the pictures of a set. share, end_share: of the subjects among the `TOP`."""

    emoji: str
    site: str
    share: float
    end_share: float
    subjects: tuple[SubjectRank, ...]

    @classmethod
    def load(cls, path: Path) -> Ranks:
        """Read ranks. Raises InputFileError naming the key that is wrong."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the ranks."""
        write_record(path, self)


def pictures_of(drawings: Drawings, subject: str, scenes: int, side: int, seed: int) -> Tensor:
    """Pictures of a subject in its own colours, uint8 [n, 3, side, side]: `scenes` of each drawing of it."""
    rows = [row for row in drawings.rows(ICONS[subject]) for _ in range(scenes)]
    if not rows:
        return torch.zeros(0, 3, side, side, dtype=torch.uint8)
    scenery = Scenery(**{**vars(STILL), "side": side})
    chance = torch.Generator().manual_seed(seed)
    return (scenery.scenes(drawings.pixels[rows], chance).pictures * 255.0).round().to(torch.uint8)


class Reader:
    """Reads an SAE's features at `site` from a seeing model."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        sae: SparseAutoencoder,
        site: Site,
    ) -> None:
        self._model, self._tokenizer, self._sae = model, tokenizer, sae
        self._layer = site.layer
        self._patches = model.config.image_seq_length

    @torch.no_grad()
    def features(self, pictures: Tensor, text: str) -> tuple[Tensor, Tensor]:
        """Over the pictures, [n, patches, m], and at the text's last token, [n, m]; `text` has one IMAGE."""
        written = text.replace(IMAGE, IMAGE * self._patches)
        ids = torch.tensor(self._tokenizer(written, add_special_tokens=False)["input_ids"])
        told = cast(Any, self._model)(
            input_ids=ids.expand(len(pictures), -1),
            pixel_values=(pictures.float() / 255.0 - MEAN) / DEVIATION,
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
        stream = told.hidden_states[self._layer + 1]
        seen = stream[:, ids == self._model.config.image_token_id]
        features = self._sae.encode(seen.flatten(0, 1)).view(*seen.shape[:2], -1)
        return features, self._sae.encode(stream[:, -1])


def measure_ranks(
    reader: Reader,
    features: Mapping[str, int],
    drawings: Drawings,
    emoji: str,
    site: Site,
    scenes: int,
    side: int,
    seed: int,
) -> Ranks:
    """The ranks of each subject's feature on its drawings. Raises ValueError where a subject has none."""
    over: dict[str, Tensor] = {}
    ends: dict[str, Tensor] = {}
    for subject in features:
        pictures = pictures_of(drawings, subject, scenes, side, seed)
        if not len(pictures):
            raise ValueError(f"the set {emoji} has no drawing of {subject}")
        over[subject] = reader.features(pictures, f"{BOS}{USER}{IMAGE}")[0].amax(1)
        asked = [prompt(f"{IMAGE}{picture_questions()[code][0]}") for code in LANGUAGES]
        ends[subject] = torch.stack([reader.features(pictures, text)[1] for text in asked]).mean((0, 1))
    rows = tuple(_row(subject, feature, over, ends[subject]) for subject, feature in features.items())
    return Ranks(
        emoji=emoji,
        site=str(site),
        share=round(sum(row.rank <= TOP for row in rows) / len(rows), 4),
        end_share=round(sum(row.end_rank <= TOP for row in rows) / len(rows), 4),
        subjects=rows,
    )


def _row(subject: str, feature: int, over: Mapping[str, Tensor], end: Tensor) -> SubjectRank:
    own = over[subject]
    mean = own.mean(0)
    above = (mean > mean[feature]).nonzero()[:, 0]
    others = torch.cat([each[:, feature] for name, each in over.items() if name != subject] or [own[:0, 0]])
    in_top = (own > own[:, feature : feature + 1]).sum(1) < TOP
    fires = own[:, feature] > 0.0
    return SubjectRank(
        subject=subject,
        feature=feature,
        pictures=len(own),
        rank=_rank(mean, feature),
        end_rank=_rank(end, feature),
        in_top=round(float((in_top & fires).float().mean()), 4),
        strength=round(float(mean[feature]), 3),
        elsewhere=round(float(others.mean()) if len(others) else 0.0, 3),
        above=tuple(above[mean[above].argsort(descending=True)][:TOP].tolist()),
    )


def _rank(strengths: Tensor, feature: int) -> int:
    """The feature's place from 1; that of the last where it does not fire."""
    if strengths[feature] <= 0.0:
        return len(strengths)
    return int((strengths > strengths[feature]).sum()) + 1


def ranks_table(ranks: Ranks) -> Table:
    """A row for each subject, and the share at the foot."""
    table = Table(title=f"features that text found, on pictures of {ranks.emoji}", show_footer=True)
    columns: Sequence[tuple[str, str]] = (
        ("subject", f"among the first {TOP}"),
        ("feature", ""),
        ("rank", f"{ranks.share:.0%}"),
        ("rank at the end", f"{ranks.end_share:.0%}"),
        ("of pictures alone", ""),
        ("strength", ""),
        ("elsewhere", ""),
    )
    for name, foot in columns:
        table.add_column(name, foot, justify="left" if name == "subject" else "right")
    for row in ranks.subjects:
        mark = "" if row.rank <= TOP else " !"
        table.add_row(
            row.subject,
            str(row.feature),
            f"{row.rank}{mark}",
            str(row.end_rank),
            f"{row.in_top:.2f}",
            f"{row.strength:.1f}",
            f"{row.elsewhere:.1f}",
        )
    return table
