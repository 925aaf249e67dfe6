"""A harvest: activations of a model at a site, kept on disk, so that the model reads the texts only once."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from saegis_lab.training.activations import Buffer, activations_of
from saegis_server.steering.site import Site

#: What a harvest was made from, beside its shards.
ORIGIN_FILE = "harvest.json"
#: How many rows of token ids a shard holds the activations of: what a harvest that is broken off may lose.
ROWS_A_SHARD = 128
_TENSOR = "x"


class HarvestError(ValueError):
    """A harvest that cannot be used, or does not belong to what it is used for."""


@dataclass(frozen=True, slots=True)
class Harvest:
    """A folder of shards, each with the activations of the next ROWS_A_SHARD texts, float32 [tokens, d]."""

    folder: Path

    def check(self, origin: Mapping[str, str | int | bool]) -> None:
        """Raise HarvestError unless it was made from `origin`, naming what differs."""
        path = self.folder / ORIGIN_FILE
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HarvestError(f"{path} cannot be read: {error}") from error
        for name in sorted(known.keys() | origin.keys()):
            if known.get(name) != origin.get(name):
                raise HarvestError(
                    f"{self.folder}: was made with {name} {known.get(name)!r}, not {origin.get(name)!r}"
                )

    @property
    def shards(self) -> tuple[Path, ...]:
        """The shards in order."""
        return tuple(sorted(self.folder.glob("[0-9]*.safetensors")))

    @property
    def tokens(self) -> int:
        """How many activations it holds. Raises HarvestError for a shard that cannot be read."""
        return sum(map(_length, self.shards))

    def grow(
        self,
        model: PreTrainedModel,
        site: Site,
        rows: Iterable[Sequence[int]],
        origin: Mapping[str, str | int | bool],
        tokens: int,
        excluded: frozenset[int] = frozenset(),
        pad: int = 0,
        progress: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Add shards until it holds `tokens` activations or `rows` ends; returns how many it holds.

        rows: token ids of all texts from the first; those whose activations are held are passed over. origin:
        what `check` asks for. The first token of each text and the tokens `excluded` are left out. pad: any
        token id. progress: told how many activations there are, after each shard. Raises HarvestError for
        another origin, and OSError.
        """
        if (self.folder / ORIGIN_FILE).exists():
            self.check(origin)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / ORIGIN_FILE, json.dumps(dict(origin), ensure_ascii=False, indent=1).encode())
        held, number = self.tokens, len(self.shards)
        stream = islice(iter(rows), number * ROWS_A_SHARD, None)
        progress(held)
        while held < tokens and (batch := list(islice(stream, ROWS_A_SHARD))):
            x = torch.cat(list(activations_of(model, site, batch, Buffer(pad=pad), excluded, skip=1)))
            path = self.folder / f"{number:06d}.safetensors"
            save_file({_TENSOR: x.cpu().contiguous()}, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
            held, number = held + len(x), number + 1
            progress(held)
        return held

    def chunks(self, seed: int) -> Iterator[Tensor]:
        """The activations shard by shard, float32 [tokens, d], again and again, each time in another order.

        Raises HarvestError where there are none, and for a shard that cannot be read.
        """
        shards = self.shards
        if not self.tokens:
            raise HarvestError(f"{self.folder}: holds no activations")
        order = random.Random(seed)
        while True:
            for path in order.sample(shards, len(shards)):
                try:
                    yield load_file(path)[_TENSOR]
                except (OSError, SafetensorError, KeyError) as error:
                    raise HarvestError(f"{path} cannot be read: {error}") from error


def _length(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.get_slice(_TENSOR).get_shape()[0])
    except (OSError, SafetensorError) as error:
        raise HarvestError(f"{path} cannot be read: {error}; delete it and harvest again") from error


def _write(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    waiting = path.with_suffix(".part")
    waiting.write_bytes(data)
    os.replace(waiting, path)
