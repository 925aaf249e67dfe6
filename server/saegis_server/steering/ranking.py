"""Ranking: which features of an SAE are active where that is decided by rank, as TopK and group max do.

The features of such an SAE fall into groups, and one is active where its pre-activation p is positive and
among the `kept` largest of its group: for TopK there is one group, of which k are kept; for group max there
are k, of each of which one is. So it takes the pre-activations of all features to know; but all that a row
needs of them is one number of each token and group, the cut:

    f = relu(p)·[p > cut]      cut: halfway between the least p that is kept and the largest that is not

Halfway, because a row's own p and that of the whole dictionary are sums in a different order, which differ by
rounding. Where the two lie as close as that, either choice is as right; so it is among equal ones.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from saegis_server.steering.normalised import Normalised
from saegis_server.steering.program import SiteProgram, SteeringError
from saegis_server.steering.rows import Norm, Probe

#: How many features are encoded at once, by kind of device: on a CPU what is made of them stays in its cache.
FEATURES_AT_ONCE = {"cpu": 4096}
_OF_OTHERS = 65536
#: A cut that no finite pre-activation passes: what is infinite stays active, so that no condition misses it.
_HIGHEST = torch.finfo(torch.float32).max


class Moment(IntEnum):
    """On which x of a site rows read: as it comes in, as the edits leave it, as the rules do, or as it goes
    out."""

    CLEAN = 0
    RULES = 1
    BANS = 2
    WRITTEN = 3


@dataclass(frozen=True, slots=True, eq=False)
class RankedDictionary:
    """All features of an SAE that decides by rank: p = norm(x)·encoder + bias.

    digest: the SAE's. encoder: [d, M] of a float dtype, whose numbers are read as float32; bias: float32 [M],
    on the same device. kept, groups: see Rank. Raises ValueError for groups that do not fit the features.
    """

    digest: str
    encoder: Tensor
    bias: Tensor
    kept: int
    groups: int = 1
    norm: Norm = Norm.NONE

    def __post_init__(self) -> None:
        if self.features % self.groups or not 1 <= self.kept <= self.features // self.groups:
            raise ValueError(
                f"{self.kept} of each of {self.groups} groups cannot be kept of {self.features} features"
            )

    @property
    def features(self) -> int:
        """How many features it has."""
        return len(self.bias)

    def scratch(self, tokens: int) -> int:
        """At most how many bytes the ranking of so many tokens takes while it runs."""
        parts = list(self.parts())
        widest = max(part.stop - part.start for part in parts)
        chosen = sum(self._chosen_of(part) for part in parts)
        converted = 0 if self.encoder.dtype is torch.float32 else widest * self.encoder.shape[0]
        # Of each part its product and, of what it has chosen, the values and their places; then all of these
        # joined, and chosen from again.
        takes: int = 4 * (tokens * (self.encoder.shape[0] + widest) + converted) + 3 * 12 * tokens * chosen
        return takes

    def parts(self) -> Iterator[slice]:
        """The features that are encoded at once: parts of the only group, or whole groups."""
        most = FEATURES_AT_ONCE.get(self.encoder.device.type, _OF_OTHERS)
        size = self.features // self.groups
        length = most if self.groups == 1 else max(1, most // size) * size
        return (slice(start, min(start + length, self.features)) for start in range(0, self.features, length))

    def _chosen_of(self, part: slice) -> int:
        width: int = part.stop - part.start
        groups = 1 if self.groups == 1 else width // (self.features // self.groups)
        return groups * min(self.kept + 1, width // groups)

    def largest_of(self, x: Tensor, part: slice) -> Tensor:
        """The largest pre-activations of each group in a part, one more than are kept.

        x: float32 [T, d], normalised. Returns float32 [T, groups, n].
        """
        p = x @ self.encoder[:, part].to(torch.float32) + self.bias[part]
        groups = 1 if self.groups == 1 else p.shape[1] // (self.features // self.groups)
        grouped = p.view(len(x), groups, -1)
        return grouped.topk(min(self.kept + 1, grouped.shape[-1])).values

    def cuts_from(self, largest: Sequence[Tensor]) -> Tensor:
        """The cuts of T tokens, float32 [T, groups], from what `largest_of` gave for every part."""
        if self.groups == 1:
            joined = torch.cat(list(largest), -1)
            best = joined.topk(min(self.kept + 1, joined.shape[-1])).values
        else:
            best = torch.cat(list(largest), 1)
        if best.shape[-1] == self.kept:  # all of a group are kept
            return torch.full_like(best[..., 0], -torch.inf)
        cut = 0.5 * best[..., -2] + 0.5 * best[..., -1]
        return torch.nan_to_num(cut, nan=_HIGHEST, posinf=_HIGHEST, neginf=-torch.inf)

    def normalised(self, x: Tensor) -> Tensor:
        """Activations [T, d] as its encoder reads them, float32."""
        return Normalised.of(x.to(torch.float32), self.norm).values

    def cuts(self, x: Tensor) -> Tensor:
        """The cuts of activations x [T, d], float32 [T, groups]."""
        read = self.normalised(x)
        return self.cuts_from([self.largest_of(read, part) for part in self.parts()])


@torch.library.custom_op("saegis::cuts", mutates_args=())
def _cuts_where_wanted(
    x: Tensor,
    wanted: Tensor,
    place: int,
    moment: int,
    encoder: Tensor,
    bias: Tensor,
    kept: int,
    groups: int,
    norm: int,
) -> Tensor:
    """The cuts of activations, NaN unless they are wanted there and then.

    To the compiler it is one operation of which it knows nothing: so it is free to do nothing in a step whose
    programs need no cuts, with no other program to be compiled for that. wanted: on the host.
    """
    if not bool(wanted[place, moment]):
        return x.new_full((len(x), groups), torch.nan, dtype=torch.float32)
    return RankedDictionary("", encoder, bias, kept, groups, Norm(norm)).cuts(x)


@_cuts_where_wanted.register_fake
def _(
    x: Tensor,
    wanted: Tensor,
    place: int,
    moment: int,
    encoder: Tensor,
    bias: Tensor,
    kept: int,
    groups: int,
    norm: int,
) -> Tensor:
    return x.new_empty((x.shape[0], groups), dtype=torch.float32)


class Ranking:
    """The dictionaries of one site that decide by rank, and which cuts of theirs the next step needs.

    wanted: bool [dictionaries, moments], on the host, since it decides what the device does at all.
    """

    def __init__(self, dictionaries: Sequence[RankedDictionary] = ()) -> None:
        self.dictionaries = tuple(dictionaries)
        self._places = {each.digest: place for place, each in enumerate(self.dictionaries)}
        groups = [each.groups for each in self.dictionaries]
        # The first cut is that of all rows to which no rank matters.
        self._begins = [1 + sum(groups[:place]) for place in range(len(groups))]
        self.wanted = torch.zeros(len(self.dictionaries), len(Moment), dtype=torch.bool)

    def __bool__(self) -> bool:
        return bool(self.dictionaries)

    def column(self, probe: Probe) -> int:
        """Which of a token's cuts is a probe's. Raises SteeringError for one of an unknown dictionary."""
        return 0 if probe.rank is None else self._begins[self.place(probe)] + probe.rank.group

    def place(self, probe: Probe) -> int:
        """The number of the dictionary that a probe with a rank is of. Raises SteeringError where it is
        unknown."""
        place = None if probe.rank is None else self._places.get(probe.rank.dictionary)
        if place is None:
            raise SteeringError(
                f"{probe.name} is active by its rank among all features of its SAE, which are not known here",
                None,
            )
        return place

    @torch.inference_mode()
    def want(self, needs: Iterable[tuple[int, Moment]]) -> None:
        """Let the next step find these cuts alone, by the number of their dictionary and the moment."""
        self.wanted.zero_()
        for place, moment in needs:
            self.wanted[place, moment] = True

    def needs_of(self, program: SiteProgram) -> frozenset[tuple[int, Moment]]:
        """Which cuts the rows of a program need. Raises SteeringError for a row of an unknown dictionary."""
        read = (
            (Moment.CLEAN, [*(edit.probe for edit in program.edits), *program.watches, *program.guards]),
            (Moment.RULES, [rule.probe for rule in program.rules]),
            (Moment.BANS, [ban.probe for ban in program.bans]),
            (Moment.WRITTEN, program.watches),
        )
        return frozenset(
            (self.place(probe), moment)
            for moment, probes in read
            for probe in probes
            if probe.rank is not None
        )

    def cuts(self, x: Tensor, moment: Moment) -> Tensor:
        """The cuts of activations x [T, d] at a moment, float32 [T, 1 + groups of all dictionaries].

        Those that are not wanted are NaN.
        """
        found = [torch.full_like(x[:, :1], -torch.inf)]
        for place, each in enumerate(self.dictionaries):
            found.append(
                _cuts_where_wanted(
                    x,
                    self.wanted,
                    place,
                    int(moment),
                    each.encoder,
                    each.bias,
                    each.kept,
                    each.groups,
                    int(each.norm),
                )
            )
        return torch.cat(found, -1)
