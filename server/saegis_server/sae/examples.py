"""Examples: how strongly an SAE's features fire, and where most strongly, in a file beside its labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saegis_server.sae.errors import SAEFileError

if TYPE_CHECKING:
    from saegis_server.sae.autoencoder import SparseAutoencoder

EXAMPLES_FILE = "examples.safetensors"
#: The most pieces of text for a feature, tokens of a piece, and bins of a histogram that a file may have.
MOST_PIECES, MOST_TOKENS, MOST_BINS = 32, 256, 256
_TENSORS = {
    "tokens": torch.int32,
    "activations": torch.float32,
    "counts": torch.int64,
    "bin_width": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a text: its tokens' ids, a feature's activation at each, and where that is greatest."""

    tokens: tuple[int, ...]
    activations: tuple[float, ...]

    @property
    def strongest(self) -> int:
        """The place of the greatest activation, the first of equal ones."""
        return self.activations.index(max(self.activations))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often a feature fires how strongly. Bin i counts the tokens with activations from i·width up to but
    not including (i + 1)·width, those of 0 in no bin. tokens: how many tokens were read."""

    width: float
    counts: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, eq=False)
class Examples:
    """What was gathered of each of m features from some texts.

    tokens: int32 [m, k, w], the token ids of at most k pieces of text, the one with the strongest activation
    first, each of another text; −1 where there is none. activations: float32 [m, k, w], the feature's
    activation at each of them, in feature units. counts: int64 [m, b], and bin_width: float32 [m], the
    histogram of its activations; a width of 0 where it never fires. read: how many tokens were read. sae: the
    digest of the SAE that read them. Raises ValueError for tensors that do not fit together.
    """

    tokens: Tensor
    activations: Tensor
    counts: Tensor
    bin_width: Tensor
    read: int
    sae: str

    def __post_init__(self) -> None:
        for name, dtype in _TENSORS.items():
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"{name} is {getattr(self, name).dtype}, not {dtype}")
        m = len(self.bin_width)
        if self.tokens.ndim != 3 or self.tokens.shape != self.activations.shape or len(self.tokens) != m:
            raise ValueError(
                f"tokens and activations have the shapes {list(self.tokens.shape)} and "
                f"{list(self.activations.shape)}, not both [{m}, pieces, tokens]"
            )
        if self.counts.ndim != 2 or len(self.counts) != m or self.bin_width.ndim != 1:
            raise ValueError(f"counts has the shape {list(self.counts.shape)}, not [{m}, bins]")
        sizes = (*self.tokens.shape[1:], self.counts.shape[1])
        if any(size > most for size, most in zip(sizes, (MOST_PIECES, MOST_TOKENS, MOST_BINS), strict=True)):
            raise ValueError(
                f"{sizes[0]} pieces of {sizes[1]} tokens and {sizes[2]} bins are more than "
                f"{MOST_PIECES}, {MOST_TOKENS} and {MOST_BINS}"
            )
        for name in ("activations", "bin_width"):
            values = getattr(self, name)
            if values.numel() and not bool((torch.isfinite(values) & (values >= 0.0)).all()):
                raise ValueError(f"{name} holds numbers that are negative or not finite")
        if self.counts.numel() and int(self.counts.min()) < 0:
            raise ValueError("counts holds negative numbers")

    @property
    def features(self) -> int:
        """m: how many features it is of."""
        return len(self.bin_width)

    def pieces(self, feature: int) -> tuple[Piece, ...]:
        """Where a feature fires most strongly, strongest first."""
        found = []
        for tokens, activations in zip(self.tokens[feature], self.activations[feature], strict=True):
            there = tokens >= 0
            if bool(there.any()):
                found.append(Piece(tuple(tokens[there].tolist()), tuple(activations[there].tolist())))
        return tuple(found)

    def histogram(self, feature: int) -> Histogram:
        """How strongly a feature fires."""
        counts = tuple(self.counts[feature].tolist())
        return Histogram(float(self.bin_width[feature]), counts, self.read)

    def save(self, directory: Path) -> None:
        """Write `examples.safetensors` into `directory`, which is made if absent."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _TENSORS}
        save_file(tensors, directory / EXAMPLES_FILE, {"sae": self.sae, "read": str(self.read)})

    @classmethod
    def load(cls, directory: Path, sae: SparseAutoencoder, vocabulary: int) -> Examples | None:
        """Read `examples.safetensors` in `directory`; None without that file.

        vocabulary: how many tokens the model knows. Raises SAEFileError for a file that is not whole, that is
        of another SAE, or that names a token which the model does not know.
        """
        path = directory / EXAMPLES_FILE
        if not os.path.lexists(path):
            return None
        tensors, stated = _read(path)
        if stated.get("sae") != sae.digest:
            raise SAEFileError(
                path,
                "was gathered from another SAE; gather it anew with saegis features label, or delete it",
            )
        try:
            made = cls(**tensors, read=int(stated.get("read", "")), sae=sae.digest)
            if made.features != sae.features:
                raise ValueError(f"it is of {made.features} features, the SAE has {sae.features}")
            if made.tokens.numel() and int(made.tokens.max()) >= vocabulary:
                raise ValueError(f"it names token {int(made.tokens.max())}, the model has {vocabulary}")
        except ValueError as error:
            raise SAEFileError(path, str(error)) from error
        return made


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors of a file as copies, since a mapped file may change, and what else it states."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            if missing := sorted(_TENSORS.keys() - set(file.keys())):
                raise SAEFileError(path, f"has no tensor {missing[0]}")
            return {name: file.get_tensor(name).clone() for name in _TENSORS}, file.metadata() or {}
    except SafetensorError as error:
        raise SAEFileError(path, f"not a whole safetensors file: {error}") from error
    except (OSError, RuntimeError) as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error
