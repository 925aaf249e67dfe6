"""The weights that ship with the package: where they lie, and the manifest that says what they are and do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST_NAME = "manifest.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class LanguageFigures:
    """Measured rates of one language, greedy: means over answers, as in `evaluation.Rates`."""

    refusal: float
    harm: float
    harm_banned: float
    harm_benign: float
    harm_benign_banned: float
    landmark: float
    landmark_clamped: float


@dataclass(frozen=True)
class Clamp:
    """The recommended landmark clamp: `value` in feature units, on every token."""

    feature: int
    value: float


@dataclass(frozen=True)
class Ban:
    """The recommended ban: features chosen from text in `languages`, each pushed to −strength times what
    it was."""

    features: tuple[int, ...]
    strength: float
    languages: tuple[str, ...]
    benign_kl: float


@dataclass(frozen=True)
class Manifest:
    """What the weights are: seeds, digests of every file (sha256 by path under the weights), and measured
    figures."""

    seeds: dict[str, int]
    files: dict[str, str]
    parameters: int
    held_out_loss: float
    layer: int
    features: int
    fvu: float
    l0: float
    dead: float
    clamp: Clamp
    ban: Ban
    languages: dict[str, LanguageFigures]

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest. Raises ValueError naming the file when it does not fit."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            data["clamp"] = Clamp(**data["clamp"])
            ban = data["ban"]
            data["ban"] = Ban(
                **{**ban, "features": tuple(ban["features"]), "languages": tuple(ban["languages"])}
            )
            data["languages"] = {code: LanguageFigures(**row) for code, row in data["languages"].items()}
            return cls(**data)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a manifest: {error}") from error

    def save(self, path: Path) -> None:
        """Write the manifest."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file under `folder/model` and `folder/sae`, by its path relative to `folder`."""
    found = {}
    for path in sorted(path for part in ("model", "sae") for path in (folder / part).rglob("*")):
        if path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
            found[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return found


def model_path() -> Path:
    """Folder of the shipped language model and its tokenizer."""
    return WEIGHTS / "model"


def sae_path() -> Path:
    """Folder of the shipped SAE and its labels."""
    return WEIGHTS / "sae"


def manifest() -> Manifest:
    """The shipped weights' manifest."""
    return Manifest.load(WEIGHTS / MANIFEST_NAME)
