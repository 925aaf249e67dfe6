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
from saegis_server.steering.apply import values_from
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Column
from saegis_server.steering.tokens import Spread, Tokens

_LOG = logging.getLogger(__name__)
#: How many tokens are encoded at once: fewer would hardly take less time, since all of the encoder is read
#: for them.
TOKENS_AT_ONCE = 64
#: How many features are encoded at once, by kind of device. On a CPU what is made of them stays in its cache,
#: and no step waits for more than a part of the encoder; an accelerator would wait for its host.
FEATURES_AT_ONCE = {"cpu": 4096}
_OF_OTHERS = 65536
#: Only rows with these are read: what has no normalisation pays for none.
_NORMS = {norm: frozenset({Norm.NONE, norm}) for norm in Norm}


class Found(NamedTuple):
    """How M features were used at some tokens of one phase: int32 [M], at how many of them each was active,
    and float32 [M], the sum and the largest of its values there."""

    fired: Tensor
    total: Tensor
    largest: Tensor

    @classmethod
    def room(cls, features: int, device: torch.device | str) -> Found:
        """Room for so many features."""
        kinds = (torch.int32, torch.float32, torch.float32)
        return cls(*(torch.zeros(features, dtype=kind, device=device) for kind in kinds))


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
        return cls(tokens, *whole, *real)

    def add(self, phase: int, tokens: Tensor, found: Found, now: int) -> None:
        """Add what was found at `tokens` tokens, int32 [], of a phase: 0 for prompts and 1 for answers."""
        self.tokens[phase] += tokens
        self.fired[phase] += found.fired
        self.total[phase] += found.total
        self.last[phase].masked_fill_(found.fired > 0, now)
        largest = self.largest[phase]
        torch.maximum(largest, found.largest, out=largest)

    def used(self, began: float) -> Used:
        """The same on the host. began: when the counting began, in seconds since the epoch."""
        tokens, fired, last, total, largest = (tensor.cpu().numpy() for tensor in self)
        when = np.where(last > 0, began + last.astype(np.float64), 0.0)
        # Copies: on a CPU these are views of what is counted in again.
        whole = np.int64
        return Used(tokens.astype(whole), fired.astype(whole), total.astype(np.float64), largest.copy(), when)


def find(
    q: Tensor,
    x: Tensor,
    counted: Tensor,
    numbers: Tensor,
    norms: frozenset[Norm],
    found: Found,
    cut: Tensor | None = None,
) -> None:
    """Write into `found` how M features are used at those of T tokens that are `counted`.

    q: float32 [T, M], the products of the tokens with what the features read, of any numbers where a token
    is not counted; x: float32 [T, d]; counted: bool [T]; numbers: float32 [1, C, M], the features' own; cut:
    the cuts of x [T, n], where rank decides which features are active. A token whose activation is not finite
    does not count.
    """
    # The tokens' phase makes no difference to what is only read.
    values = values_from(q, x, numbers, Tokens(counted, Spread.ONE), norms, cut)
    fires = _usable(x, counted)[:, None] & (values > 0.0) & (values < torch.inf)
    active = torch.where(fires, values, 0.0)
    found.fired.copy_(fires.sum(0, dtype=torch.int32))
    found.total.copy_(active.sum(0))
    found.largest.copy_(active.amax(0))


def _usable(x: Tensor, counted: Tensor) -> Tensor:
    """Which tokens count, bool [T]."""
    return counted & torch.isfinite(x).all(-1)


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


class _Batch:
    """Tokens of one phase that are encoded together: their activations and which of them count.

    filled: how many of them there are. done: how many pieces of a dictionary have been read at them. largest:
    of a dictionary that decides by rank, the largest pre-activations of the parts that have been ranked.
    """

    def __init__(self, phase: int, width: int, device: torch.device) -> None:
        self.phase, self.filled, self.done = phase, 0, 0
        self.largest: list[Tensor] = []
        self.x = torch.zeros(TOKENS_AT_ONCE, width, device=device)
        self.counted = torch.zeros(TOKENS_AT_ONCE, dtype=torch.bool, device=device)

    def take(self, x: Tensor, counted: Tensor) -> int:
        """Take as many tokens as there is room for; how many that are."""
        end = min(TOKENS_AT_ONCE, self.filled + len(x))
        count = end - self.filled
        self.x[self.filled : end] = x[:count]
        self.counted[self.filled : end] = counted[:count]
        self.filled = end
        return count


class _Piece(NamedTuple):
    """Some features of a dictionary, which are encoded at once.

    read: float32 [d, M]; numbers: float32 [1, C, M]; q: float32 [T, M], room for their products with tokens;
    found: where it is written how they are used.
    """

    read: Tensor
    numbers: Tensor
    q: Tensor
    found: Found


def _pieces(dictionary: Dictionary, found: Found, device: torch.device) -> list[_Piece]:
    """All features of a dictionary in pieces, none of which is a single feature if the dictionary is none: to
    the compiler a dimension of size 1 is a constant."""
    features, most = dictionary.features, FEATURES_AT_ONCE.get(device.type, _OF_OTHERS)
    starts = [0, *range(most, features - 1, most)]
    parts = [slice(start, end) for start, end in zip(starts, [*starts[1:], features], strict=True)]
    room = torch.zeros(TOKENS_AT_ONCE * max(part.stop - part.start for part in parts), device=device)
    vectors, numbers = (tensor.to(device) for tensor in dictionary.rows)
    pieces = []
    for part in parts:
        own = numbers[:, :, part].contiguous()
        q = room[: TOKENS_AT_ONCE * own.shape[2]].view(TOKENS_AT_ONCE, -1)
        outputs = (varying(tensor[part]) for tensor in found)
        pieces.append(_Piece(vectors[0, 0, part].T, varying(own, 2), varying(q, 1), Found(*outputs)))
    return pieces


class _Counted:
    """One dictionary: its features on the device, its counters, which steps it takes of each kind, the tokens
    of each phase that wait, and those that are being encoded."""

    def __init__(self, dictionary: Dictionary, every: int, device: torch.device, seed: int) -> None:
        self.name, self.site, self.norms = dictionary.name, dictionary.site, _NORMS[dictionary.norm]
        self.found = Found.room(dictionary.features, device)
        self.pieces = _pieces(dictionary, self.found, device)
        #: Where rank decides, all of it is ranked first, part by part, and then counted.
        self.ranked = dictionary.ranked
        self.parts = [] if self.ranked is None else list(self.ranked.parts())
        #: The cuts of the tokens that are being encoded, and before them that of rows without a rank.
        self.cut = (
            None
            if self.ranked is None
            else torch.zeros(TOKENS_AT_ONCE, 1 + self.ranked.groups, device=device)
        )
        #: How many are due at a step, so that all are done by the time that tokens are taken again.
        self.due = -(-(len(self.parts) + len(self.pieces)) // every)
        self.counters, self.spare = (Counters.zeros(dictionary.features, device) for _ in range(2))
        self.steps = [OneOf(every, 2 * seed + kind) for kind in range(2)]
        self._width, self._device = dictionary.rows.vectors.shape[-1], device
        self.gathered = [self.batch(phase) for phase in range(2)]
        self.encoding: _Batch | None = None

    def rank(self, batch: _Batch, most: int) -> int:
        """Rank the next parts of the dictionary, at most so many; how many that were."""
        begin = len(batch.largest)
        parts = self.parts[begin : begin + most]
        if self.ranked is None or self.cut is None or not parts:
            return 0
        x = self.ranked.normalised(batch.x)
        batch.largest += [self.ranked.largest_of(x, part) for part in parts]
        if len(batch.largest) == len(self.parts):
            self.cut[:, 1:] = self.ranked.cuts_from(batch.largest)
        return len(parts)

    @torch.inference_mode()  # for all of them: to the compiler other tensors would be another program
    def batch(self, phase: int) -> _Batch:
        """Room for tokens of a phase."""
        return _Batch(phase, self._width, self._device)


class UsageCounting:
    """Counts how every feature of some dictionaries is used, at one step of every `every`.

    The tokens of the steps that are taken are encoded once there are enough of them, a piece of a dictionary
    after the other with `advance`, or at `flush`. All but `take`, which any thread may call, is for the
    engine's.
    """

    def __init__(self, dictionaries: Sequence[Dictionary], every: int, device: torch.device) -> None:
        """Raises ValueError for two dictionaries of a name, and for one that decides by rank and has no
        `ranked`."""
        names = [dictionary.name for dictionary in dictionaries]
        if len(set(names)) < len(names):
            raise ValueError(f"dictionaries need names of their own, not {', '.join(names)}")
        for each in dictionaries:
            if each.ranked is None and bool(each.rows.numbers[:, Column.RANK].any()):
                raise ValueError(f"the dictionary {each.name} decides by rank, and nothing tells that")
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
        self._find: Callable[..., None] = (
            torch.compile(find, fullgraph=True, dynamic=False) if compiled else find
        )

    def warm_up(self) -> None:
        """Encode nothing with every dictionary, so that nothing is compiled once they serve."""
        for each in self._counted:
            self._encode(each, each.batch(0))

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
                    self._gather(each, phase, at[each.site][part], kept.counted[part])

    def advance(self) -> None:
        """Encode as much of what is being encoded as is due at a step."""
        for each in self._counted:
            if each.encoding is not None:
                with self._told_once():
                    self._go_on(each, each.due)

    def flush(self) -> None:
        """Encode what waits."""
        with self._told_once():
            for each in self._counted:
                self._go_on(each)
                for phase, gathered in enumerate(each.gathered):
                    if gathered.filled:
                        each.gathered[phase] = each.batch(phase)
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
    def _gather(self, each: _Counted, phase: int, x: Tensor, counted: Tensor) -> None:
        """Take any number of tokens of a phase, and begin to encode them where they are enough."""
        begin = 0
        while begin < len(x):
            gathered = each.gathered[phase]
            begin += gathered.take(x[begin:], counted[begin:])
            if gathered.filled == TOKENS_AT_ONCE:
                each.gathered[phase] = each.batch(phase)
                self._go_on(each)
                each.encoding = gathered

    def _encode(self, each: _Counted, batch: _Batch) -> None:
        """Encode tokens at once."""
        each.encoding = batch
        self._go_on(each)

    @torch.inference_mode()
    def _go_on(self, each: _Counted, most: int | None = None) -> None:
        """Read the next pieces of a dictionary, at most so many, and count what all of them found."""
        batch, each.encoding = each.encoding, None  # so that what fails is not tried again
        if batch is None:
            return
        whole = len(each.parts) + len(each.pieces)
        left = (whole if most is None else most) - each.rank(batch, whole if most is None else most)
        end = min(batch.done + left, len(each.pieces))
        for piece in each.pieces[batch.done : end]:
            torch.mm(batch.x[: batch.filled], piece.read, out=piece.q[: batch.filled])
            self._find(piece.q, batch.x, batch.counted, piece.numbers, each.norms, piece.found, each.cut)
        batch.done = end
        if end < len(each.pieces):
            each.encoding = batch
            return
        tokens = _usable(batch.x, batch.counted).sum(dtype=torch.int32)
        with self._in_use:
            each.counters.add(batch.phase, tokens, each.found, int(time.monotonic() - self._clock))

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
