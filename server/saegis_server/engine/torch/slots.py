"""Slots: everything that a running sequence owns on the device, as rows of tensors of a fixed size."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.counts import RowGroup
from saegis_server.engine.sites import site_width
from saegis_server.engine.torch.activity import SlotActivity
from saegis_server.engine.torch.conditions import SlotConditions
from saegis_server.engine.torch.context import KVCache
from saegis_server.engine.torch.observing import SlotObserving
from saegis_server.engine.torch.sampler import sampling_table
from saegis_server.engine.torch.support import survey
from saegis_server.steering.admitted import AdmittedRows, Room
from saegis_server.steering.conditions import CompiledConditions
from saegis_server.steering.evaluator import ConditionRows, ConditionState
from saegis_server.steering.ranking import Moment, RankedDictionary, Ranking
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Capacity, SiteTable, TableView

#: What is counted for each slot at each site: tokens edited, bans fired, the sum of ‖Δx‖/‖x‖ and the largest
#: one. After the sites, for all of them together: tokens that any of them edited, 0, 0, 0.
COUNTED = 4
#: Slots beyond those asked for, and places beyond the longest text in each (see Slots).
SPARE_SLOTS, SPARE_PLACES = 1, 1


class SlotState(NamedTuple):
    """What every slot carries from step to step: its last token and its position, int64 [S], and its counts.

    counted: float32 [sites + 1, S, COUNTED].
    """

    token: Tensor
    position: Tensor
    counted: Tensor


class TextTables(NamedTuple):
    """The rows of a text that has no slot, as a step sees those of one: at every site, and its conditions.

    peaks: float32 [sites, 1, G], the largest value that each guard read so far. members: of each site, which
    rows are counted together, see `SlotActivity`. needs: which cuts its rows need at each site.
    """

    views: Mapping[Site, TableView]
    conditions: ConditionRows
    state: ConditionState
    peaks: Tensor
    members: list[Tensor]
    needs: Mapping[Site, set[tuple[int, Moment]]]


class Slots:
    """The KV cache, the steering tables, the sampling parameters, the state and the conditions of every
    slot.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: tuple[Site, ...],
        count: int,
        max_length: int,
        capacity: Capacity,
        device: torch.device | str | None = None,
        ranked: Mapping[Site, Sequence[RankedDictionary]] | None = None,
    ) -> None:
        """Allocate `count` slots of `max_length` tokens on a device, by default the model's.

        ranked: the SAEs of each site that decide by rank, on that device.
        One place is left spare beyond `max_length`, where idle rows and the padding of one-token prompts are
        written and nothing is read, and one slot beyond `count`, for idle rows; so a step never takes the
        whole of a tensor, which to the compiler would be another program. Raises UnsupportedModelError.
        """
        config, device = model.config.get_text_config(), device or model.device
        self.layers = survey(model)
        shapes = [(each.heads, each.key_width, each.value_width) for each in self.layers]
        self.count, self.max_length, self.capacity = count, max_length, capacity
        self.vocabulary: int = config.vocab_size
        self.rankings = {site: Ranking((ranked or {}).get(site, ())) for site in sites}
        known = ((site, each.digest) for site, at in self.rankings.items() for each in at.dictionaries)
        widths = Widths(config.hidden_size, tuple((site, site_width(model, site)) for site in sites))
        self.room = Room(sites, widths, capacity, model.dtype, frozenset(known))
        rows = count + SPARE_SLOTS
        self.cache = KVCache.allocate(shapes, rows, max_length + SPARE_PLACES, model.dtype, device)
        self.tables = {
            site: SiteTable(rows, widths.at(site), capacity, device, self.rankings[site]) for site in sites
        }
        self.sampling = sampling_table(rows, self.vocabulary, device)
        self.state = SlotState(
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(len(sites) + 1, rows, COUNTED, device=device),
        )
        # How much of each slot's cache may have been written since it was last empty.
        self._written = [0] * rows
        self._counted_before = torch.zeros_like(self.state.counted)
        self.conditions = SlotConditions(len(sites), rows, capacity.conditions, capacity.watches + 1, device)
        self.activity = SlotActivity(sites, rows, capacity, device)
        self.observing = SlotObserving(sites, rows, widths, device, self.rankings)

    @torch.inference_mode()
    def load(
        self,
        slot: int,
        prompt: Iterable[int],
        sampling: SamplingParams,
        seed: int,
        stops: Iterable[int],
        program: Mapping[Site, AdmittedRows],
        conditions: CompiledConditions | None = None,
        groups: Sequence[RowGroup] = (),
    ) -> None:
        """Give `slot` to a new sequence. `seed` is its own; `stops` are the tokens that end its text.

        conditions: those that its program's rows have, and those that end it. groups: of its rows, those that
        are counted together.
        """
        # First of all: should the rest fail, nothing that another sequence did is counted for this one.
        self._forget(slot)
        self.state.position[slot] = 0
        self.state.counted[:, slot] = 0.0
        table = self.sampling
        table.temperature[slot], table.top_p[slot] = sampling.temperature, sampling.top_p
        table.min_p[slot], table.top_k[slot] = sampling.min_p, sampling.top_k or self.vocabulary
        table.presence[slot], table.frequency[slot] = sampling.presence_penalty, sampling.frequency_penalty
        table.repetition[slot], table.min_tokens[slot] = sampling.repetition_penalty, sampling.min_tokens
        table.seed[slot] = seed - 2**64 if seed >= 2**63 else seed
        table.generated[slot] = 0
        # A plain greedy row beside sampled ones goes through the sampler too.
        table.bias[slot] = 0.0
        if not sampling.is_plain_greedy:
            for grid in (table.counts, table.in_prompt, table.stops):
                grid[slot] = 0
            table.in_prompt[slot, list(prompt)] = True
            table.stops[slot, list(stops)] = True
            if sampling.logit_bias:
                biases = torch.tensor(list(sampling.logit_bias.values()), dtype=table.bias.dtype)
                table.bias[slot, list(sampling.logit_bias)] = biases.to(table.bias.device)
        self.conditions.load(slot, conditions)
        self.activity.load(slot, program, groups)
        self.observing.forget(slot)
        for steering in self.tables.values():
            steering.clear(slot)
        for site, rows in program.items():
            self.tables[site].write(slot, rows, rows.geometry, rows.moves)

    @torch.inference_mode()
    def read_again(self, slot: int) -> None:
        """Let the sequence of `slot` begin again with its prompt, with what holds now in force from its
        start: nothing chosen, nothing counted.
        """
        self.sampling.counts[slot], self.sampling.generated[slot] = 0, 0
        self.state.position[slot] = 0
        self.state.counted[:, slot] = 0.0
        self.conditions.read_again(slot)
        self.activity.forget(slot)
        self.observing.forget(slot)

    @torch.inference_mode()
    def remember(self) -> None:
        """Keep what was counted until now, in case the step that comes fails."""
        self._counted_before.copy_(self.state.counted)
        self.conditions.remember()
        self.activity.remember()
        self.observing.remember()

    @torch.inference_mode()
    def rewind(self, tokens: list[int], positions: list[int]) -> None:
        """Let the first slots be where they were before a step that failed, at their tokens and positions."""
        for own, wanted in ((self.state.token, tokens), (self.state.position, positions)):
            own[: len(wanted)] = torch.tensor(wanted, dtype=own.dtype)
        self.state.counted.copy_(self._counted_before)
        self.conditions.rewind()
        self.activity.rewind()
        self.observing.rewind()

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Let `target` hold what `source` holds: `length` tokens, parameters, program and counts."""
        self._forget(target, length)
        self.cache.move(source, target, length)
        self._written[target] = length
        for table in self.tables.values():
            table.move(source, target)
        for tensor in (*self.sampling, self.state.token, self.state.position):
            tensor[target] = tensor[source]
        self.state.counted[:, target] = self.state.counted[:, source]
        self.conditions.move(source, target)
        self.activity.move(source, target)
        self.observing.move(source, target)

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        """Leave `slot` unsteered and empty."""
        for table in self.tables.values():
            table.clear(slot)
        self.conditions.clear(slot)
        self.activity.clear(slot)
        self._forget(slot)

    def rank_for(self, slots: Collection[int]) -> None:
        """Let the next step rank what the programs of these slots need, and what is observed."""
        for site, ranking in self.rankings.items():
            if ranking:
                ranking.want(self.tables[site].needs(slots) | self.observing.needs(site))

    def writes(self, slots: Iterable[int], end: int) -> None:
        """Take note that a step writes into the cache of `slots`, nowhere from the place `end` on."""
        for slot in slots:
            self._written[slot] = max(self._written[slot], end)

    def _forget(self, slot: int, kept: int = 0) -> None:
        """Forget what lies in a slot's cache beyond `kept` tokens: attention multiplies what a row does not
        see by 0, and 0 · NaN is NaN."""
        if kept < self._written[slot]:
            self.cache.clear(slot, kept, self._written[slot])
            self._written[slot] = kept

    @torch.inference_mode()
    def tables_of(
        self,
        program: Mapping[Site, AdmittedRows],
        conditions: CompiledConditions | None,
        rows: tuple[int, int, int, int, int],
        comparisons: int,
        gates: int,
        groups: Sequence[RowGroup] = (),
    ) -> TextTables:
        """The rows of a program that no slot runs, as a step sees those of one slot, of a text of which
        nothing has been read.

        rows: how many of each kind there are, in the order of TableView. What is given are copies, made by
        way of the spare slot, which is left empty.
        """
        spare, own, views = torch.tensor([self.count], device=self.state.token.device), self.conditions, {}
        try:
            own.load(self.count, conditions)
            self.activity.load(self.count, program, groups)
            for site, table in self.tables.items():
                if (rows_here := program.get(site)) is not None:
                    table.write(self.count, rows_here, rows_here.geometry, rows_here.moves)
                views[site] = table.view_of(spare, *rows)
            peaks = own.peaks[:, self.count : self.count + 1, : rows[-1]].clone()
            members = self.activity.members_of(1, spare, rows[:3], len(groups))
            needs = {site: table.needs((self.count,)) for site, table in self.tables.items()}
            return TextTables(views, *own.of(spare, comparisons, gates), peaks, members, needs)
        finally:
            own.clear(self.count)
            self.activity.clear(self.count)
            for table in self.tables.values():
                table.clear(self.count)

    def counts(self, slot: int) -> list[list[float]]:
        """What was counted for a slot at each site and at all together, [sites + 1][COUNTED]."""
        counted: list[list[float]] = self.state.counted[:, slot].tolist()
        return counted
