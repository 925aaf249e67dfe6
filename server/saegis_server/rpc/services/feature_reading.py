"""Readings of a text for Inspect: its windows, the strongest features of each token, and values of some."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis.v1 import feature_pb2 as pb
from saegis_server.rpc.server.giving_way import must_give_way, paced
from saegis_server.sae.catalog import FoundFeature, LoadedSAE

#: How many tokens are encoded at once, and how many while requests run, whose steps meet one such part at
#: most: at a million features 64 take 256 MB.
ENCODED_AT_ONCE, ENCODED_BESIDE_REQUESTS = 64, 16


@dataclass(frozen=True, slots=True)
class Window:
    """Some tokens of a text that are read together; the first `seen` of them are there only to be seen by the
    others, and were read before."""

    tokens: tuple[int, ...]
    seen: int


def windows(tokens: tuple[int, ...], length: int, begins: int) -> list[Window]:
    """The windows of at most `length` tokens in which a text is read, in each of which new tokens follow at
    least half a window of others.

    begins: how many tokens the text begins with that stand before every window, such as the model's own
    beginning of a sequence: 0 or 1.
    """
    if len(tokens) <= length:
        return [Window(tokens, 0)]
    opening, room = tokens[:begins], length - begins
    found, done = [Window(tokens[:length], 0)], length
    while done < len(tokens):
        start = min(done - (room + 1) // 2, len(tokens) - room)
        found.append(Window(opening + tokens[start : start + room], begins + done - start))
        done = start + room
    return found


def parts(x: Tensor) -> Iterator[Tensor]:
    """Activations [T, d] in parts, paced. Raises UnwantedError once nobody waits for the result."""
    return paced(_split(x.cpu()))


def _split(x: Tensor) -> Iterator[Tensor]:
    begin = 0
    while begin < len(x):
        end = begin + (ENCODED_BESIDE_REQUESTS if must_give_way() else ENCODED_AT_ONCE)
        yield x[begin:end]
        begin = end


class TextReading:
    """What an SAE reads of a text, window by window.

    top_k: how many of the strongest features of each token are told; values_of: features of the SAE that are
    told at every token.
    """

    def __init__(self, loaded: LoadedSAE, top_k: int, values_of: Sequence[FoundFeature]) -> None:
        self._loaded, self._top_k = loaded, top_k
        self._chosen = [each.index for each in values_of]
        # Where rank decides, the value of one feature takes those of all.
        alone = values_of and loaded.sae.k is None
        self._alone = loaded.sae.only(self._chosen) if alone else None
        self.strongest: list[list[pb.FeatureActivation]] = []
        self.values = [
            pb.FeatureValues(index=each.index, label=each.label.label if each.label else "")
            for each in values_of
        ]

    @torch.inference_mode()
    def add(self, x: Tensor) -> None:
        """Read the activations of the next tokens, [T, d]."""
        count = min(self._top_k, self._loaded.sae.features)
        for part in parts(x):
            needs_all = count or (self._chosen and self._alone is None)
            whole = self._loaded.sae.encode(part) if needs_all else part.new_empty(len(part), 0)
            few = whole[:, self._chosen] if self._alone is None else self._alone.encode(part)
            for told, values in zip(self.values, few.T.tolist(), strict=True):
                told.activations.extend(values)
            if not count:
                self.strongest += [[] for _ in part]
                continue
            values, indices = whole.topk(count, dim=-1)
            for strengths, features in zip(values.tolist(), indices.tolist(), strict=True):
                active = [pair for pair in zip(features, strengths, strict=True) if pair[1] > 0.0]
                self.strongest.append([self._activation(index, value) for index, value in active])

    def _activation(self, index: int, value: float) -> pb.FeatureActivation:
        label = self._loaded.labels.get(index)
        return pb.FeatureActivation(index=index, activation=value, label=label.label if label else "")
