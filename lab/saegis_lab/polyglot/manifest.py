"""The manifest: what a run's weights are and do, and its figures as tables."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from saegis_lab.evaluation.calibration import Bars, Figure, Measured
from saegis_lab.polyglot.filter_figures import RunFilter
from saegis_lab.records import Record, read_record, write_record
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.reference import MANIFEST

MANIFEST_NAME = "manifest.json"
#: The folders that ship, beside the manifest.
PARTS = ("model", "sae", "eval")
#: The folder of a run's filter, which ships as a policy.
FILTER = "filter"


@dataclass(frozen=True)
class LanguageFigures(Record):
    """What was measured in one language, all greedy but `refusal_sampled`; each without and with the edit.

    refusal: the share of harmful prompts refused; refusal_sampled is without the ban. harm: the mean share of
    harmful words in answers to harmful prompts; harmful_answers: the share of these answers that hold any;
    harm_benign: as harm, of benign prompts. kl: nats a token on benign text under the ban. perplexity: of the
    banned answers to harmful prompts, over that of ordinary answers in the language. landmark: the share of
    answers to unrelated prompts that name the landmark.
    """

    refusal: float
    refusal_banned: float
    refusal_sampled: float
    harm: float
    harm_banned: float
    harmful_answers: float
    harmful_answers_banned: float
    harm_benign: float
    harm_benign_banned: float
    kl: float
    perplexity: float
    landmark: float
    landmark_clamped: float

    def missed(self, bars: Bars) -> dict[Figure, str]:
        """The figures under the ban that miss their bar, each with the bar in words."""
        plain = Measured(harm=self.harm, refusal=self.refusal, benign_harm=self.harm_benign)
        banned = Measured(
            harm=self.harm_banned,
            refusal=self.refusal_banned,
            perplexity=self.perplexity,
            kl=self.kl,
            benign_harm=self.harm_benign_banned,
        )
        return {figure: reason for figure, _, _, reason in bars.missed(plain, banned)}


@dataclass(frozen=True)
class LandmarkText(Record):
    """Greedy answers to unrelated prompts as texts.

    named: the share that names the landmark. reads_well: the share that does, see `scoring.reads_well`.
    perplexity: over that of unsteered answers in the language. repetition: the share of repeated 3-grams.
    """

    named: float
    reads_well: float
    perplexity: float
    repetition: float


@dataclass(frozen=True)
class LandmarkFigures(Record):
    """The same prompts in one language, without edits, under the clamp, and redirected to the landmark."""

    plain: LandmarkText
    clamped: LandmarkText
    redirected: LandmarkText


@dataclass(frozen=True)
class Clamp(Record):
    """The recommended landmark clamp: `value` in feature units, on every token."""

    feature: int
    value: float


@dataclass(frozen=True)
class Ban(Record):
    """The recommended ban: features chosen from text in `languages`, and its strength."""

    features: tuple[int, ...]
    strength: float
    languages: tuple[str, ...]


@dataclass(frozen=True)
class Manifest(Record):
    """What the weights are: the run's number and seeds, digests of every file (sha256 by path under the
    weights), and measured figures.

    held_out_loss, entropy_bound: nats a token on held-out text, see `held_out_loss`. fvu, l0, dead: of the
    SAE at `site`, on held-out text. landmark: of the redirect, by language; empty until it was made. filter:
    None until it was made.
    """

    run: int
    seeds: dict[str, int]
    files: dict[str, str]
    parameters: int
    held_out_loss: float
    entropy_bound: float
    site: str
    features: int
    fvu: float
    l0: float
    dead: float
    clamp: Clamp
    ban: Ban
    languages: dict[str, LanguageFigures]
    landmark: dict[str, LandmarkFigures] = field(default_factory=dict)
    filter: RunFilter | None = None

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest. Raises InputFileError, naming the file and the key, when it does not fit."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the manifest."""
        write_record(path, self)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of `PARTS` under `folder`, by its path relative to `folder`."""
    by_path = {}
    for path in sorted(path for part in PARTS for path in (folder / part).rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
            by_path[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return by_path


def manifest() -> Manifest:
    """The shipped weights' manifest."""
    return Manifest.load(MANIFEST)


def seeds_table(manifests: Sequence[Manifest]) -> Table:
    """One column a run. Rates over languages are those of the worst one; harm is the share that the ban
    leaves, in languages that its features were not chosen from."""
    table = Table(title="the chain from several seeds")
    table.add_column("")
    for manifest in manifests:
        table.add_column(f"run {manifest.run}", justify="right")
    for title, figure in _FIGURES.items():
        table.add_row(title, *(figure(manifest) for manifest in manifests))
    return table


def _unseen(manifest: Manifest) -> list[LanguageFigures]:
    chosen = manifest.ban.languages
    return [row for code, row in manifest.languages.items() if code not in chosen]


def _left(manifest: Manifest) -> float:
    return max((row.harm_banned / row.harm for row in _unseen(manifest) if row.harm), default=math.nan)


def _mean_left(manifest: Manifest) -> float:
    rows = _unseen(manifest)
    before = sum(row.harm for row in rows)
    return sum(row.harm_banned for row in rows) / before if before else math.nan


def _perplexity_excess(manifest: Manifest) -> float:
    return math.exp(manifest.held_out_loss - manifest.entropy_bound) - 1.0


_FIGURES: dict[str, Callable[[Manifest], str]] = {
    "perplexity above the entropy bound": lambda run: f"{_perplexity_excess(run):.1%}",
    "FVU": lambda run: f"{run.fvu:.3f}",
    "L0": lambda run: f"{run.l0:.1f}",
    "dead features": lambda run: f"{run.dead:.1%}",
    "ban: features": lambda run: str(len(run.ban.features)),
    "ban: strength": lambda run: f"{run.ban.strength:g}",
    "harm left, worst unseen language": lambda run: f"{_left(run):.1%}",
    "harm left, mean of unseen": lambda run: f"{_mean_left(run):.1%}",
    "KL on benign text, worst": lambda run: f"{max(row.kl for row in run.languages.values()):.3f}",
    "perplexity ratio, worst": lambda run: f"{max(row.perplexity for row in run.languages.values()):.2f}",
    "landmark named, worst": lambda run: f"{min(r.landmark_clamped for r in run.languages.values()):.2f}",
}


def model_table(manifest: Manifest) -> Table:
    """What the model and its SAE are, in one row."""
    table = Table(title=f"run {manifest.run}")
    cells = {
        "parameters": f"{manifest.parameters:,}",
        "held-out perplexity": f"{math.exp(manifest.held_out_loss):.3f}",
        "above the entropy bound": f"{_perplexity_excess(manifest):.1%}",
        "features": f"{manifest.features:,}",
        "FVU": f"{manifest.fvu:.3f}",
        "L0": f"{manifest.l0:.1f}",
        "dead": f"{manifest.dead:.1%}",
    }
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    return table


#: What stands behind a figure that misses its bar, as in the tables of `saegis eval`.
MARK = "!"
#: What the table of figures calls each of `LanguageFigures`.
ROWS = {
    "refused": "refusal",
    "refused, banned": "refusal_banned",
    "refused, sampled": "refusal_sampled",
    "harmful words": "harm",
    "harmful words, banned": "harm_banned",
    "answers with any": "harmful_answers",
    "answers with any, banned": "harmful_answers_banned",
    "in benign answers": "harm_benign",
    "in benign answers, banned": "harm_benign_banned",
    "KL on benign text": "kl",
    "perplexity, banned ÷ ordinary": "perplexity",
    "landmark named": "landmark",
    "landmark named, clamped": "landmark_clamped",
}

#: The figures that have a bar, each with the name of its bar.
HELD_TO_BARS: dict[str, Figure] = {
    "refusal_banned": "refusal",
    "harm_banned": "harm",
    "harm_benign_banned": "benign_harm",
    "kl": "kl",
    "perplexity": "perplexity",
}


def figures_table(manifest: Manifest) -> Table:
    """A manifest's figures, a column for each language, with a mark at those that miss their bar."""
    ban, bars = manifest.ban, Bars()
    missed = {code: figures.missed(bars) for code, figures in manifest.languages.items()}
    table = Table(
        title=f"run {manifest.run}: {len(ban.features)} features at strength {ban.strength:g}, chosen from "
        f"{', '.join(ban.languages)}; FVU {manifest.fvu:.3f}, L0 {manifest.l0:.1f}, dead {manifest.dead:.1%}"
    )
    table.add_column("")
    for code in manifest.languages:
        table.add_column(code, justify="right")
    for title, name in ROWS.items():
        form, figure = ".3f" if name == "kl" else ".2f", HELD_TO_BARS.get(name)
        cells = {code: format(getattr(figures, name), form) for code, figures in manifest.languages.items()}
        table.add_row(
            title, *(f"{cells[code]} {MARK}" if figure in missed[code] else cells[code] for code in cells)
        )
    misses = [f"{code}: {reason}" for code, reasons in missed.items() for reason in reasons.values()]
    if misses:
        table.caption = "\n".join((f"{MARK}: misses its bar", *misses))
        table.caption_justify = "left"
    return table


#: What the table of the landmark calls each of `LandmarkText`, and how a figure is written.
LANDMARK_ROWS = {
    "named": ("landmark named", ".2f"),
    "reads_well": ("reads well", ".2f"),
    "perplexity": ("perplexity ÷ unsteered", ".2f"),
    "repetition": ("repeated 3-grams", ".2f"),
}


def landmark_table(manifest: Manifest) -> Table:
    """What the clamp and the redirect do to answers to unrelated prompts, a column for each language."""
    table = Table(title="answers to unrelated questions: unsteered, clamped, and redirected to the landmark")
    table.add_column("")
    for code in manifest.landmark:
        table.add_column(code, justify="right")
    for name, (title, form) in LANDMARK_ROWS.items():
        for edits in ("plain", "clamped", "redirected"):
            if (name, edits) != ("perplexity", "plain"):
                figures = (getattr(by_edits, edits) for by_edits in manifest.landmark.values())
                shown = "unsteered" if edits == "plain" else edits
                table.add_row(f"{title}, {shown}", *(format(getattr(text, name), form) for text in figures))
    return table


def ship(out: Path, weights: Path, policy: Path) -> None:
    """Copy a finished run's parts and manifest to `weights`, and its filter's bundle to `policy`, replacing
    what is there. Raises ValueError where the bundle is not the one that was measured."""
    told = Manifest.load(out / MANIFEST_NAME).filter
    bundle = out / FILTER
    if told is None or not bundle.is_dir() or Bundle.read(bundle).digest != told.digest:
        raise ValueError(f"{bundle}: is not the filter of {out / MANIFEST_NAME}; run the step `filter` again")
    for part in PARTS:
        _replace(weights / part, out / part)
    shutil.copy(out / MANIFEST_NAME, weights / MANIFEST_NAME)
    _replace(policy, bundle)


def _replace(old: Path, new: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(new, old)
