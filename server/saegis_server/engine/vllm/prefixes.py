"""Prefixes: what was done at tokens that a text need not read, since another one of its salt has read them.

vLLM shares keys and values by whole blocks of tokens. What the receipts tell of those tokens is remembered
here, by the same blocks; where it is not known any more, the text is read whole.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from saegis_server.engine.torch.slots import COUNTED

#: How many blocks are remembered, at most; some kilobytes each.
MOST = 65_536


class Shared:
    """What was done in all that was known of a text's prompt.

    counts: [sites + 1][COUNTED], as the workers count them; activity: float32 [G, 2].
    """

    def __init__(self, records: Sequence[Tensor], sites: int, answer: int) -> None:
        """records: those of its blocks [block, 3·sites + G]; answer: where the answer begins."""
        whole = torch.cat(list(records))
        by_site, hits = whole[:, : 3 * sites].reshape(-1, sites, 3), whole[:, 3 * sites :]
        self.counts = [
            [*by_site[:, site].sum(0).tolist(), float(by_site[:, site, 2].max())] for site in range(sites)
        ]
        anywhere = float((by_site[..., 0] > 0.0).any(1).sum())
        self.counts.append([anywhere, *[0.0] * (COUNTED - 1)])
        self.activity = torch.stack((hits[:answer].sum(0), hits[answer:].sum(0)), -1)

    def beside(self, counts: Sequence[Sequence[float]]) -> list[list[float]]:
        """These counts with what was shared."""
        joined = []
        for own, shared in zip(counts, self.counts, strict=True):
            sums = [one + other for one, other in zip(own[:-1], shared[:-1], strict=True)]
            joined.append([*sums, max(own[-1], shared[-1])])
        return joined


class Prefixes:
    """What was done in blocks of tokens, by all the tokens up to their end and what acted on them."""

    def __init__(self, block: int, most: int = MOST) -> None:
        """`block`: how many tokens a block has."""
        self.block, self._most = block, most
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()

    def put(self, key: bytes, record: Tensor) -> None:
        """Remember what was done in a block."""
        self._blocks[key] = record
        self._blocks.move_to_end(key)
        if len(self._blocks) > self._most:
            self._blocks.popitem(last=False)

    def get(self, key: bytes) -> Tensor | None:
        """What was done in a block, if it is known."""
        if (found := self._blocks.get(key)) is not None:
            self._blocks.move_to_end(key)
        return found


class Recording:
    """What is remembered of one text while it is read."""

    def __init__(self, prefixes: Prefixes, key: str, prompt: Sequence[int]) -> None:
        """`key` names all that acts on its tokens and what is recorded of them."""
        self._prefixes, self._key, self._tokens = prefixes, key, list(prompt)
        self._chain = hashlib.blake2b(key.encode(), digest_size=16).digest()
        self._waiting: list[Tensor] = []
        self._read = 0

    def anew(self) -> Recording:
        """For the same text, which is read from its start."""
        return Recording(self._prefixes, self._key, self._tokens)

    def wrote(self, token: int) -> None:
        """The text has one more token."""
        self._tokens.append(token)

    def begin_behind(self, start: int) -> list[Tensor] | None:
        """The records of its first `start` tokens, which it need not read; None where one is not known."""
        block, found = self._prefixes.block, []
        for end in range(block, start + 1, block):
            self._advance(end)
            record = self._prefixes.get(self._chain)
            if record is None:
                return None
            found.append(record)
        self._read = start
        return found if start % block == 0 else None

    def add(self, start: int, record: Tensor) -> None:
        """Remember what was done at the next tokens, from `start` on."""
        if start != self._read:
            return  # It is read again, and this is known.
        self._waiting.append(record)
        before, self._read = self._read, start + len(record)
        block = self._prefixes.block
        first = before - before % block
        if self._read - first < block:
            return
        pending = torch.cat(self._waiting)
        for end in range(first + block, self._read + 1, block):
            self._advance(end)
            self._prefixes.put(self._chain, pending[:block].clone())
            pending = pending[block:]
        self._waiting = [pending]

    def _advance(self, end: int) -> None:
        """Let the chain name the block that ends there."""
        block = self._tokens[end - self._prefixes.block : end]
        text = self._chain + b"".join(token.to_bytes(4, "little") for token in block)
        self._chain = hashlib.blake2b(text, digest_size=16).digest()
