"""Layouts whose weights are pickles of torch, which no server opens: `saegis sae convert` reads them once, in
a process of its own (`saegis_server.sae.unpickle`), and writes SAELens's layout.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.layout import NO_RELEASE, Fields, Release, files_digest
from saegis_server.steering.rows import Norm


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a pickle of torch holds: its tensors (float32) and what else it states, by dotted names.

    path: its file. config: the `config.json` beside it; empty if there is none. repository: the names of the
    folders or of the repository that it comes from, which some layouts need.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    stated: Mapping[str, object]
    config: Fields
    repository: str
    release: Release = NO_RELEASE

    def refuse(self, reason: str) -> SAEFileError:
        """The error that the checkpoint cannot be honoured."""
        return SAEFileError(self.path, reason)

    def tensor(self, name: str, ndim: int) -> Tensor:
        """One of its tensors, with so many dimensions. Raises SAEFileError."""
        if name not in self.tensors:
            raise self.refuse(f"there is no {name} in it")
        tensor = self.tensors[name]
        if tensor.ndim != ndim:
            raise self.refuse(f"{name} has the shape {list(tensor.shape)}, not {ndim} dimensions")
        return tensor

    def turned(self, name: str) -> Tensor:
        """A matrix that it holds the other way round."""
        return self.tensor(name, 2).T.contiguous()

    def sae(
        self,
        architecture: Architecture,
        tensors: Mapping[str, Tensor],
        *,
        apply_b_dec_to_input: bool,
        k: int | None = None,
        norm: Norm = Norm.NONE,
        hook_name: str | None = None,
        model_name: str | None = None,
    ) -> SparseAutoencoder:
        """The SAE of these canonical tensors. Raises SAEFileError if they do not fit together."""
        try:
            return SparseAutoencoder(
                architecture,
                **tensors,  # type: ignore[arg-type]
                k=k,
                norm=norm,
                apply_b_dec_to_input=apply_b_dec_to_input,
                hook_name=hook_name,
                model_name=model_name,
                digest=files_digest(self.path),
            )
        except ValueError as error:
            raise self.refuse(str(error)) from error


@dataclass(frozen=True, slots=True)
class PickledLayout:
    """One way to lay out an SAE in a pickle. name: whose. claims: whether a checkpoint is laid out so. build:
    the SAE of one; raises SAEFileError. origin: what it reads, in words."""

    name: str
    claims: Callable[[Checkpoint], bool]
    build: Callable[[Checkpoint], SparseAutoencoder]
    origin: str


def all_of(threshold: Tensor, features: int) -> Tensor:
    """One threshold for each feature [m], from one for all or one for each."""
    return torch.full((features,), float(threshold)) if threshold.ndim == 0 else threshold
