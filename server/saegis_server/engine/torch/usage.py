"""Usage: how every feature of whole dictionaries is used, counted on the device at a sample of the steps."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
#: How many tokens are encoded at once: fewer would hardly take less time, since all of the encoder is read
#: for them. With a million features that makes some float32 tensors of 256 MB.
TOKENS_AT_ONCE = 64
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
    x: Tensor,
    counted: Tensor,
    phase: Tensor,
    now: Tensor,
    rows: Rows,
    norms: frozenset[Norm],
    own: Counters,
) -> None:
    """Encode T tokens of one phase and add how every feature was used at those that are `counted`.

    x: float32 [T, d]; counted: bool [T]; phase: int64 [1], 0 for prompts and 1 for answers; now: int32 []. A
    token whose activation is not finite does not count.
    """
    everybody = Tokens(counted, Spread.ONE)  # whose phase makes no difference to what is only read
    values = values_of(x, rows, everybody, norms)
    usable = (counted & torch.isfinite(x).all(-1))[:, None]
    fires = usable & (values > 0.0) & torch.isfinite(values)
    active = torch.where(fires, values, 0.0)
    fired = fires.sum(0, keepdim=True, dtype=torch.int32)
    last, largest = (kept.index_select(0, phase) for kept in (own.last, own.largest))
    own.tokens.index_add_(0, phase, usable.sum(0, dtype=torch.int32))
    own.fired.index_add_(0, phase, fired)
    own.last.index_copy_(0, phase, torch.where(fired > 0, now, last))
    own.total.index_add_(0, phase, active.sum(0, keepdim=True))
    own.largest.index_copy_(0, phase, torch.maximum(largest, active.amax(0, keepdim=True)))


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


class _Gathered:
    """Tokens of one phase that wait to be encoded together: their activations, and which of them count."""

    def __init__(self, phase: int, width: int, device: torch.device) -> None:
        self.phase = torch.tensor([phase], device=device)
        self.x = torch.zeros(TOKENS_AT_ONCE, width, device=device)
        self.counted = torch.zeros(TOKENS_AT_ONCE, dtype=torch.bool, device=device)
        self.filled = 0

    def take(self, x: Tensor, counted: Tensor) -> int:
        """Take as many tokens as there is room for; how many that are."""
        end = min(TOKENS_AT_ONCE, self.filled + len(x))
        count = end - self.filled
        self.x[self.filled : end] = x[:count]
        self.counted[self.filled : end] = counted[:count]
        self.filled = end
        return count

    def leave(self) -> None:
        """Let nothing count of what was not taken, and take anew from now on."""
        self.counted[self.filled :] = False
        self.filled = 0


class _Counted:
    """One dictionary: its rows on the device, its counters, which steps it takes of each kind, and the tokens
    of each phase that wait."""

    def __init__(self, dictionary: Dictionary, every: int, device: torch.device, seed: int) -> None:
        self.name, self.site, self.norms = dictionary.name, dictionary.site, _NORMS[dictionary.norm]
        self.rows = Rows(*(varying(tensor.to(device), 2) for tensor in dictionary.rows))
        self.counters, self.spare = (Counters.zeros(dictionary.features, device) for _ in range(2))
        self.steps = [OneOf(every, 2 * seed + kind) for kind in range(2)]
        width = self.rows.vectors.shape[-1]
        self.gathered = [_Gathered(phase, width, device) for phase in range(2)]


class UsageCounting:
    """Counts how every feature of some dictionaries is used, at one step of every `every`.

    The tokens of the steps that are taken are encoded once there are enough of them, or at `flush`. All but
    `take`, which any thread may call, is for the engine's.
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
        for each in self._counted:
            self._encode(each, each.gathered[0])

    def count(self, step: Step, output: StepOutput, tokens: int, prompt: int | None = None) -> None:
        """Count the first tokens of a step that has run, if it is one that is taken.

        prompt: how many tokens of a chunk are of the prompt, the first ones; None where none is a chunk. What
        fails here is no request's failure.
        """
        taken = [each for each in self._counted if each.steps[prompt is None].takes()]
        if not taken or (kept := output.kept) is None:
            return
        at, split = dict(zip(step.keeps, kept.activations, strict=True)), prompt or 0
        with self._told_once():
            for each in taken:
                for phase, part in enumerate((slice(0, split), slice(split, tokens))):
                    self._gather(each, each.gathered[phase], at[each.site][part], kept.counted[part])

    def flush(self) -> None:
        """Encode what waits."""
        with self._told_once():
            for each in self._counted:
                for gathered in each.gathered:
                    if gathered.filled:
                        self._encode(each, gathered)

    @contextmanager
    def _told_once(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            if not self._failed:
                _LOG.exception("the use of features is not counted at some steps")
            self._failed = True

    @torch.inference_mode()
    def _gather(self, each: _Counted, gathered: _Gathered, x: Tensor, counted: Tensor) -> None:
        """Take any number of tokens, and encode them where they are enough."""
        begin = 0
        while begin < len(x):
            begin += gathered.take(x[begin:], counted[begin:])
            if gathered.filled == TOKENS_AT_ONCE:
                self._encode(each, gathered)

    @torch.inference_mode()
    def _encode(self, each: _Counted, gathered: _Gathered) -> None:
        now = torch.full((), int(time.monotonic() - self._clock), dtype=torch.int32, device=self._device)
        gathered.leave()
        with self._in_use:
            x, counted, phase = gathered.x, gathered.counted, gathered.phase
            self._count(x, counted, phase, now, each.rows, each.norms, each.counters)

    def take(self) -> dict[str, Used]:
        """What was counted since this was last called, by the dictionary's name; not what still waits."""
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
