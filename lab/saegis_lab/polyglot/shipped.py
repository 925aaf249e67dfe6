"""The weights that ship with the package: the manifest that says what they are and do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from saegis_lab.evaluation.bars import Bars, Figure, Measured
from saegis_lab.evaluation.records import Record, read_record
from saegis_server.reference import MANIFEST

MANIFEST_NAME = "manifest.json"
#: The folders that ship, beside the manifest.
PARTS = ("model", "sae", "eval")
_CHUNK = 1 << 20


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
        return {figure: told for figure, _, _, told in bars.missed(plain, banned)}


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
    SAE at `site`, on held-out text.
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

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest. Raises EvaluationFileError, naming the file and the key, when it does not fit."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the manifest."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of `PARTS` under `folder`, by its path relative to `folder`."""
    found = {}
    for path in sorted(path for part in PARTS for path in (folder / part).rglob("*")):
        if path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
            found[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return found


def manifest() -> Manifest:
    """The shipped weights' manifest."""
    return Manifest.load(MANIFEST)
