"""Usage: how every feature of whole dictionaries is used, counted on the device at a sample of the steps."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saegis_server.engine.counts import Dictionary, Used
from saegis_server.engine.torch.step import Step, StepOutput, varying
from saegis_server.steering.apply import values_of
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Rows
from saegis_server.steering.tokens import Spread, Tokens

_LOG = logging.getLogger(__name__)
#: How many tokens are encoded at once: with a million features, some float32 tensors of 128 MB.
TOKENS_AT_ONCE = 32
#: Only rows with these are read: what has no normalisation pays for none.
_NORMS = {norm: frozenset({Norm.NONE, norm}) for norm in Norm}


class Counters(NamedTuple):
    """What is counted of M features, of prompts and of answers; see `Used`.

    tokens: int32 [2]; fired, last: int32 [2, M]; total, largest: float32 [2, M]. last: in seconds since the
    counting began, counted from 1.
    """

    tokens: Tensor
    fired: Tensor
    last: Tensor
    total: Tensor
    largest: Tensor

    @classmethod
    def zeros(cls, features: int, device: torch.device | str) -> Counters:
        """Nothing counted."""
        tokens = torch.zeros(2, dtype=torch.int32, device=device)
        whole, real = (
            [torch.zeros(2, features, dtype=kind, device=device) for _ in range(2)]
            for kind in (torch.int32, torch.float32)
        )
        return cls(tokens, *(varying(tensor, 1) for tensor in (*whole, *real)))

    def used(self, began: float) -> Used:
        """The same on the host. began: when the counting began, in seconds since the epoch."""
        tokens, fired, last, total, largest = (tensor.cpu().numpy() for tensor in self)
        when = np.where(last > 0, began + last.astype(np.float64), 0.0)
        # Copies: on a CPU these are views of what is counted in again.
        whole = np.int64
        return Used(tokens.astype(whole), fired.astype(whole), total.astype(np.float64), largest.copy(), when)


def count(
    x: Tensor, counted: Tensor, prompt: Tensor, now: Tensor, rows: Rows, norms: frozenset[Norm], own: Counters
) -> None:
    """Encode T tokens and add how every feature was used at those that are `counted`.

    x: float32 [T, d]; counted, prompt: bool [T]; now: int32 []. A token whose activation is not
    finite does not count.
    """
    values = values_of(x, rows, Tokens(prompt, Spread.ONE), norms)
    usable = counted & torch.isfinite(x).all(-1)
    phases = torch.stack((usable & prompt, usable & ~prompt))
    fires = phases[:, :, None] & (values > 0.0) & torch.isfinite(values)
    by_phase = torch.where(fires, values, 0.0)
    own.tokens.add_(phases.sum(1, dtype=torch.int32))
    own.fired.add_(fires.sum(1, dtype=torch.int32))
    own.last.copy_(torch.where(fires.any(1), now, own.last))
    own.total.add_(by_phase.sum(1))
    own.largest.copy_(torch.maximum(own.largest, by_phase.amax(1)))


class OneOf:
    """Chooses one of every `every` steps, at a random place among them, so that what comes again at the same
    step of every answer is neither always caught nor never."""

    def __init__(self, every: int, seed: int) -> None:
        self._every, self._random = every, random.Random(seed)
        self._place = self._chosen = 0

    def takes(self) -> bool:
        """Whether the next step is chosen."""
        if self._place == 0:
            self._chosen = self._random.randrange(self._every)
        taken = self._place == self._chosen
        self._place = (self._place + 1) % self._every
        return taken


class _Counted:
    """One dictionary: its rows on the device, its counters and which steps it takes, of each kind."""

    def __init__(self, dictionary: Dictionary, every: int, device: torch.device, seed: int) -> None:
        self.name, self.site, self.norms = dictionary.name, dictionary.site, _NORMS[dictionary.norm]
        self.rows = Rows(*(varying(tensor.to(device), 2) for tensor in dictionary.rows))
        self.counters, self.spare = (Counters.zeros(dictionary.features, device) for _ in range(2))
        self.steps = [OneOf(every, 2 * seed + kind) for kind in range(2)]


class UsageCounting:
    """Counts how every feature of some dictionaries is used, at one step of every `every`.

    `count` is for the engine's thread; `take` may be called by any.
    """

    def __init__(self, dictionaries: Sequence[Dictionary], every: int, device: torch.device) -> None:
        """Raises ValueError for two dictionaries of a name."""
        names = [dictionary.name for dictionary in dictionaries]
        if len(set(names)) < len(names):
            raise ValueError(f"dictionaries need names of their own, not {', '.join(names)}")
        self.every, self._device = every, device
        self._counted = [_Counted(each, every, device, seed) for seed, each in enumerate(dictionaries)]
        self._began = time.time() - 1.0
        self._clock = time.monotonic() - 1.0
        self._in_use, self._taking = threading.Lock(), threading.Lock()
        self._failed = False
        self.make(compiled=False)

    @property
    def sites(self) -> frozenset[Site]:
        """Where activations are to be kept."""
        return frozenset(each.site for each in self._counted)

    def make(self, compiled: bool) -> None:
        """Let the encode be compiled, or do without the compiler."""
        self._count: Callable[..., None] = (
            torch.compile(count, fullgraph=True, dynamic=False) if compiled else count
        )

    def warm_up(self) -> None:
        """Encode nothing with every dictionary, so that nothing is compiled once they serve."""
        nobody = torch.zeros(3, dtype=torch.bool, device=self._device)
        for each in self._counted:
            width = each.rows.vectors.shape[-1]
            self._add(each, torch.zeros(3, width, device=self._device), nobody, nobody)

    def count(self, step: Step, output: StepOutput, reads_prompt: bool) -> None:
        """Count a step that has run, if it is one that is taken. What fails here is no request's failure."""
        taken = [each for each in self._counted if each.steps[reads_prompt].takes()]
        if not taken or (kept := output.kept) is None:
            return
        at = dict(zip(step.keeps, kept.activations, strict=True))
        try:
            with self._in_use:
                for each in taken:
                    self._add(each, at[each.site], kept.counted, kept.prompt)
        except Exception:
            if not self._failed:
                _LOG.exception("the use of features is not counted at some steps")
            self._failed = True

    @torch.inference_mode()
    def _add(self, each: _Counted, x: Tensor, counted: Tensor, prompt: Tensor) -> None:
        """Encode T tokens, T at least 2, some at a time."""
        now = torch.full((), int(time.monotonic() - self._clock), dtype=torch.int32, device=self._device)
        pieces = -(-len(x) // TOKENS_AT_ONCE)
        for part in zip(
            *(tensor.tensor_split(pieces) for tensor in (x.to(torch.float32), counted, prompt)), strict=True
        ):
            own = (varying(tensor) for tensor in part)
            self._count(*own, now, each.rows, each.norms, each.counters)

    def take(self) -> dict[str, Used]:
        """What was counted since this was last called, by the dictionary's name."""
        with self._taking:
            with self._in_use:
                for each in self._counted:
                    each.counters, each.spare = each.spare, each.counters
            # From here on the engine counts in what was spare, and waits for nothing of this.
            found = {each.name: each.spare.used(self._began) for each in self._counted}
            with torch.inference_mode():
                for tensor in (tensor for each in self._counted for tensor in each.spare):
                    tensor.zero_()
            return found
