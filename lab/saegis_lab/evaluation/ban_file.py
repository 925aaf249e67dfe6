"""Ban files: JSON that names the features of a ban, its strength, and the languages they were chosen from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from saegis_lab.evaluation.records import Record, read_record


@dataclass(frozen=True, slots=True)
class BanFile(Record):
    """A ban: its features, and the strength (see `saegis.ban`) that it is meant to have.

    chosen_from: the languages of the texts from which the features were chosen. sae: the id of their SAE;
    empty where the server has one. Raises ValueError naming the field that cannot be.
    """

    features: tuple[int, ...]
    strength: float
    chosen_from: tuple[str, ...]
    sae: str = ""

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("features: there must be at least one")
        if min(self.features) < 0:
            raise ValueError(f"features: {min(self.features)} is no index")
        if len(set(self.features)) < len(self.features):
            twice = next(each for each in self.features if self.features.count(each) > 1)
            raise ValueError(f"features: {twice} stands there twice")
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(f"strength: must be a finite number of at least 0, not {self.strength}")

    @classmethod
    def load(cls, path: Path) -> BanFile:
        """Read a ban file. Raises EvaluationFileError naming the key that is wrong."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the ban file; an empty `sae` is left out."""
        entries = {key: value for key, value in asdict(self).items() if key != "sae" or value}
        path.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
