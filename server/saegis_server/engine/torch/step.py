"""The step: one pass through the model for every running slot, steering and sampling inside, compiled whole.

Three programs are compiled: decode, which chooses greedily; a chunk of prompt, likewise; and the sampler,
which chooses again for the rows that ask for more. Every size that varies (batch, used cache, rows in use)
is a symbolic dimension, so that after the warm-up nothing is compiled again.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from saegis_server.engine.torch.activity import count_groups
from saegis_server.engine.torch.attention import install_attention
from saegis_server.engine.torch.compiling import as_program
from saegis_server.engine.torch.conditions import Outcome, StepConditions, settle
from saegis_server.engine.torch.context import KVCache, Mode, StepContext
from saegis_server.engine.torch.hooks import install_hooks
from saegis_server.engine.torch.masks import SeenPlaces
from saegis_server.engine.torch.reference import Reference
from saegis_server.engine.torch.sampler import SamplingTable, sample
from saegis_server.engine.torch.seeing import Seen, TowerEyes
from saegis_server.engine.torch.slots import COUNTED, Slots, TextTables
from saegis_server.steering.apply import Readings
from saegis_server.steering.evaluator import ConditionRows, ConditionState, Where
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import TableView
from saegis_server.steering.tokens import Spread, Tokens

Result = TypeVar("Result")
#: Dimensions of size 0 or 1 would be compiled as constants; a batch of one runs beside an idle row.
SMALLEST = 2
#: A position that no text has.
_NOWHERE = 2**40


class Extent(NamedTuple):
    """How much of the tables and of the cache a step reads; every number is at least SMALLEST."""

    batch: int
    length: int
    edits: int = SMALLEST
    rules: int = SMALLEST
    held: int = SMALLEST
    watches: int = SMALLEST
    guards: int = SMALLEST
    groups: int = SMALLEST
    observed: int = SMALLEST
    comparisons: int = SMALLEST
    gates: int = SMALLEST

    @property
    def rows(self) -> tuple[int, int, int, int, int]:
        """How many of each kind of rows at a site, in the order of TableView."""
        return self.edits, self.rules, self.held, self.watches, self.guards

    @property
    def acting(self) -> tuple[int, int, int]:
        """How many rows may act at a site, in the order of Readings.acted."""
        return self.edits, self.rules, self.held


class Kept(NamedTuple):
    """The clean activations of a step's T tokens, [T, d] in the model's dtype at each of `Step.keeps`.

    counted: bool [T], which of them statistics count.
    """

    activations: tuple[Tensor, ...]
    counted: Tensor


class StepOutput(NamedTuple):
    """What a step gives for B rows (one in prefill).

    tokens int64 [B]; finite bool [B], whether all logits are; logits float32 [B, V]; logprobs float32 [B, V]
    of the model's own distribution, if the sampler ran; watched float32 [sites, B, Q, watches, 2], before and
    after steering at each of the Q tokens; moved float32 [sites, B, Q], ‖x' − x‖/‖x‖ there; outcome int64
    [B], what conditions come to, see Outcome; kept, where the step keeps activations.
    """

    tokens: Tensor
    finite: Tensor
    logits: Tensor
    logprobs: Tensor | None
    watched: Tensor
    moved: Tensor
    outcome: Tensor
    kept: Kept | None = None


class ReadOutput(NamedTuple):
    """What reading Q tokens of a text gives: logits [Q, V] after each of them, in the model's dtype.

    counts float32 [sites + 1, COUNTED], what the sites did; acted float32 [G, 2], what groups of rows did;
    outcome: what its conditions come to; tables: the text's from then on.
    """

    logits: Tensor
    counts: Tensor
    acted: Tensor
    outcome: Outcome
    tables: TextTables


def varying(tensor: Tensor, dimension: int = 0) -> Tensor:
    """The same tensor, one dimension of which the compiler must not take for a constant."""
    torch._dynamo.mark_dynamic(tensor, dimension)
    return tensor


def count_sites(readings: list[Readings], counted: Tensor) -> Tensor:
    """What the sites did at the tokens where `counted` [B, Q]: float32 [sites + 1, B, COUNTED].

    Last, how many tokens any of them edited.
    """
    by_token = [(at_site.edited, at_site.bans_fired, at_site.relative_norm) for at_site in readings]
    edited, fired, moved = (
        torch.stack(parts).reshape(-1, *counted.shape) for parts in zip(*by_token, strict=True)
    )
    edited = edited & counted
    fired, moved = (torch.where(counted, part, 0.0) for part in (fired, moved))
    tokens = edited.sum(-1, dtype=torch.float32)
    at_each = torch.stack((tokens, fired.sum(-1), moved.sum(-1), moved.amax(-1)), -1)
    anywhere = edited.any(0).sum(-1, dtype=torch.float32)
    return torch.cat((at_each, functional.pad(anywhere[None, :, None], (0, COUNTED - 1))))


class Step:
    """The model and everything that a step reads and writes, with its two entry points."""

    def __init__(
        self,
        model: PreTrainedModel,
        sites: dict[Site, frozenset[Norm]],
        slots: Slots,
        compiled: bool,
        keeps: Iterable[Site] = (),
        reference: Reference | None = None,
        eyes: TowerEyes | None = None,
    ) -> None:
        """Install attention and hooks in `model`; `sites` gives the normalisations used at each.

        keeps: those of them whose clean activations every step gives out. reference: what the model gave
        before, for the warm-up to compare with. eyes: what looks at pictures; None for one that sees none.
        """
        self.model, self.sites, self.slots, self.compiled = model, tuple(sites), slots, compiled
        self.norms, self.device = sites, model.device
        self.keeps = tuple(site for site in sites if site in set(keeps))
        self.reference, self.eyes = reference, eyes
        self.context = StepContext(keeps=frozenset(self.keeps))
        self.seen = SeenPlaces(self.context)
        install_attention(model, (layer.module for layer in slots.layers), self.context)
        install_hooks(model, sites, self.context, slots.rankings)
        self._make()

    def run_eagerly(self) -> None:
        """Do without the compiler from now on."""
        self.compiled = False
        self._make()

    def _make(self) -> None:
        self._decode = self._compile(self._decode_rows)
        self._prefill = self._compile(self._prefill_chunk)
        self._see = self._compile(self._prefill_seen)
        self._choose = self._compile(self._choose_tokens)

    def _compile(self, function: Callable[..., Result]) -> Callable[..., Result]:
        return as_program(function) if self.compiled else function

    # -- entry points ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, extent: Extent, live: int, sampled: bool) -> StepOutput:
        """One token for each of the first `live` slots; rows beyond them, up to the extent, are idle.

        An idle row has the position 0, so that it sees something whatever the window, and leaves no trace.
        Greedy for all of them, unless `sampled`: then each row's own sampling parameters hold.
        """
        rows = torch.arange(extent.batch, device=self.device)
        self.slots.writes(range(live), extent.length)
        self.slots.rank_for(range(live))
        output = self._ended(self._decode, varying(rows < live), *self._carriers(extent))
        return self._choose_for(output, rows, rows < live) if sampled else output

    @torch.inference_mode()
    def prefill(
        self,
        slot: int,
        tokens: list[int],
        start: int,
        extent: Extent,
        sampled: bool,
        answer: int = _NOWHERE,
        unmoved: int = 0,
        unread: int = 0,
        left_out: int = 0,
        seen: Seen | None = None,
    ) -> StepOutput:
        """Run the tokens start .. start + len(tokens) of a text through the model for one slot.

        The slot's next token is the likeliest one after them or, with `sampled`, chosen by its parameters.
        Tokens from the position `answer` on are steered as tokens of the answer, the others as those of the
        prompt, at the last of which its conditions are judged; the first `unmoved` tokens of the text are not
        steered, its conditions do not read the first `unread` ones, and the first `left_out` ones are not
        counted of what is observed. seen: what these tokens show of pictures; a chunk that shows something of
        one runs a program of its own.
        """
        padded = tokens if len(tokens) >= SMALLEST else [*tokens, tokens[-1]]
        chunk = torch.tensor([padded], dtype=torch.int64, device=self.device)
        numbers = torch.tensor(
            [slot, start, len(tokens), answer, unmoved, unread, left_out], device=self.device
        )
        self.slots.writes((slot,), start + len(tokens))
        self.slots.rank_for((slot,))
        carriers = self._carriers(extent)
        if seen is None:
            output = self._ended(self._prefill, varying(chunk, 1), numbers, *carriers)
        else:
            both, vectors = seen.beside(chunk)
            output = self._ended(self._see, varying(both, 1), varying(vectors), numbers, *carriers)
        given = len(tokens)
        output = output._replace(watched=output.watched[:, :, :given], moved=output.moved[:, :, :given])
        if not sampled:
            return output
        # Beside an idle row: a batch of one would be another program.
        slots = torch.tensor([slot, self.slots.count], device=self.device)
        twice = output._replace(logits=output.logits.repeat(SMALLEST, 1))
        chosen = self._choose_for(twice, slots, torch.arange(SMALLEST, device=self.device) < 1)
        return chosen._replace(tokens=chosen.tokens[:1], logits=output.logits)

    def _ended(self, run: Callable[..., Result], *arguments: Tensor) -> Result:
        """What `run` gives; where it fails, nothing of it is left behind for the next step."""
        try:
            return run(*arguments)
        except BaseException:
            self._finish()
            raise

    def _choose_for(self, output: StepOutput, slots: Tensor, live: Tensor) -> StepOutput:
        tokens, logprobs = self._choose(varying(output.logits), varying(slots), varying(live))
        return output._replace(tokens=tokens, logprobs=logprobs)

    @torch.inference_mode()
    def capture(self, tokens: list[int], seen: Seen | None = None) -> dict[Site, Tensor]:
        """The clean activations [T, d] of a text at every site, unsteered and uncached, run eagerly.

        seen: what it shows of pictures.
        """
        self.context.mode = Mode.CAPTURE
        try:
            ids = torch.tensor([tokens], device=self.device)
            self.model(**self._given(ids, seen), use_cache=False, logits_to_keep=1)
            return {site: x[0].clone() for site, x in self.context.captured.items()}
        finally:
            self.context.mode = Mode.IDLE
            self.context.captured = {}

    @torch.inference_mode()
    def read(
        self,
        tokens: list[int],
        start: int,
        cache: KVCache,
        tables: TextTables,
        answer: int = _NOWHERE,
        unmoved: int = 0,
        unread: int = 0,
        seen: Seen | None = None,
    ) -> ReadOutput:
        """Read the next tokens of a text that has a cache of its own, of one slot, eagerly.

        cache: holds the text's first `start` tokens and has room for these; tables: by what they are steered;
        the rest as in `prefill`.
        """
        positions = torch.arange(start, start + len(tokens), device=self.device)[None]
        given, context = torch.ones_like(positions, dtype=torch.bool), self.context
        context.mode, context.cache, context.length = Mode.PREFILL, cache, start + len(tokens)
        context.places, context.slot = positions, torch.zeros(1, dtype=torch.int64, device=self.device)
        begins = torch.tensor([answer, unmoved, unread], device=self.device)
        rows, state = tables.conditions, tables.state
        for site, ranking in self.slots.rankings.items():
            ranking.want(tables.needs[site])
        self._steer(positions, given, begins, dict(tables.views), rows, state)
        try:
            ids = torch.tensor([tokens], device=self.device)
            output = self.model(
                **self._given(ids, seen),
                position_ids=positions,
                past_key_values=self.seen,
                use_cache=False,
                return_dict=True,
            )
            counts, acted = torch.zeros(1, 1, COUNTED), torch.zeros(1, 0, 2)
            state, peaks, outcome, conditions = tables.state, tables.peaks, given, context.conditions
            if conditions is not None and self.sites:
                finite = torch.isfinite(output.logits[:, -1]).all(-1)
                settled = settle(conditions, peaks, given, finite)
                readings = [context.readings[site] for site in self.sites]
                counts, by_row = count_sites(readings, settled.counted), [each.acted for each in readings]
                acted = count_groups(by_row, tables.members, conditions.tokens, settled.counted)
                state, peaks, outcome = settled.state, settled.peaks, settled.outcome
            after = tables._replace(state=state, peaks=peaks)
            what = Outcome(int(outcome[0])) if self.sites else Outcome.GOES_ON
            return ReadOutput(output.logits[0], counts[:, 0], acted[0], what, after)
        finally:
            self._finish()

    def _carriers(self, extent: Extent) -> list[Tensor]:
        """Empty tensors whose first dimension carries a size into the compiled program."""
        return [varying(torch.empty(size, 0, device=self.device)) for size in extent[1:]]

    # -- compiled -------------------------------------------------------------------------------------

    def _decode_rows(self, live: Tensor, *carriers: Tensor) -> StepOutput:
        extent = Extent(live.shape[0], *(carrier.shape[0] for carrier in carriers))
        batch, context, state, own = extent.batch, self.context, self.slots.state, self.slots.conditions
        positions, places = self._placed(state.position[:batch, None], live[:, None], 0)
        context.mode, context.cache, context.length = Mode.DECODE, self.slots.cache, extent.length
        context.places = places
        views = self._observing(
            {site: table.view(batch, *extent.rows) for site, table in self.slots.tables.items()}, extent
        )
        rows, remembered = own.rows.view(batch, *extent[-2:]), own.state.view(batch, *extent[-2:])
        nowhere = torch.zeros_like(live[:1], dtype=torch.int64)
        self._steer(positions, live[:, None], nowhere, views, rows, remembered)
        logits = self._logits(state.token[:batch, None], positions, None)
        output = self._output(logits, live[:, None], None, extent)
        state.token[:batch] = torch.where(live, output.tokens, state.token[:batch])
        state.position[:batch] += live.to(torch.int64)
        self._finish()
        return output

    def _prefill_chunk(self, chunk: Tensor, numbers: Tensor, *carriers: Tensor) -> StepOutput:
        return self._read_chunk(chunk, None, numbers, *carriers)

    def _prefill_seen(self, both: Tensor, vectors: Tensor, numbers: Tensor, *carriers: Tensor) -> StepOutput:
        return self._read_chunk(both[:1], Seen(vectors, both[1]), numbers, *carriers)

    def _read_chunk(self, chunk: Tensor, seen: Seen | None, numbers: Tensor, *carriers: Tensor) -> StepOutput:
        extent = Extent(self.slots.count, *(carrier.shape[0] for carrier in carriers))
        slot, start, count = (numbers[place : place + 1] for place in range(3))
        context, state, own = self.context, self.slots.state, self.slots.conditions
        steps = torch.arange(chunk.shape[1], device=chunk.device)
        given = (steps < count)[None]
        positions, places = self._placed((start + steps)[None], given, start)
        context.mode, context.cache, context.length = Mode.PREFILL, self.slots.cache, extent.length
        context.places, context.slot = places, slot
        views = self._observing(
            {site: table.view_of(slot, *extent.rows) for site, table in self.slots.tables.items()}, extent
        )
        rows, remembered = own.of(slot, *extent[-2:])
        self._steer(positions, given, numbers[3:6], views, rows, remembered)
        logits = self._logits(chunk, positions, count - 1, seen)
        output = self._output(logits, given, slot, extent, positions >= numbers[6:])
        state.token.index_put_((slot,), output.tokens)
        state.position.index_put_((slot,), start + count)
        self._finish()
        return output

    def _observing(self, views: dict[Site, TableView], extent: Extent) -> dict[Site, TableView]:
        """The views with what is observed at each site."""
        observing = self.slots.observing
        return {
            site: view._replace(observed=observing.view(site, extent.observed))
            for site, view in views.items()
        }

    def _steer(
        self,
        positions: Tensor,
        given: Tensor,
        begins: Tensor,
        views: dict[Site, TableView],
        rows: ConditionRows,
        state: ConditionState,
    ) -> None:
        """Let the sites steer the tokens at `positions` [B, Q], those of them that are `given`.

        begins: int64 [3], where the answer begins, and how many tokens of the text are not moved and not
        read; or [1] where all are of an answer and moved and read.
        """
        context, position = self.context, positions.flatten()
        context.positions, context.views = positions, views
        answer, unread = begins[:1], begins[-1:]
        if len(begins) > 1:
            tokens = Tokens(position < answer, Spread.ONE)
            context.unmoved = position < begins[1]
        else:
            tokens = Tokens(torch.zeros_like(position, dtype=torch.bool), Spread.EACH)
        context.tokens = tokens
        where = Where(position, answer, given.flatten(), unread)
        context.conditions = StepConditions(rows, state, tokens, where, len(self.sites))

    def _choose_tokens(self, logits: Tensor, slots: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the next token of each row by its own parameters; `slots` names the slot of each row."""
        table = SamplingTable(*(tensor.index_select(0, slots) for tensor in self.slots.sampling))
        # Nothing may fail once the counts are changed: the step could not be taken again.
        tokens, logprobs = sample(logits, table), torch.log_softmax(logits, -1)
        token, sampling = self.slots.state.token, self.slots.sampling
        token.index_put_((slots,), torch.where(live, tokens, token.index_select(0, slots)))
        sampling.counts.index_put_((slots, tokens), live.to(torch.int32), accumulate=True)
        sampling.generated.index_put_((slots,), live.to(torch.int64), accumulate=True)
        return tokens, logprobs

    def _placed(self, at: Tensor, given: Tensor, otherwise: Tensor | int) -> tuple[Tensor, Tensor]:
        """Positions of tokens and their places in the cache, int64 [B, Q] both: `at`, where `given`.

        What is no token of a text has the position `otherwise`, and the place that nothing reads.
        """
        return torch.where(given, at, otherwise), torch.where(given, at, self.slots.max_length)

    def _given(self, tokens: Tensor, seen: Seen | None) -> dict[str, Tensor]:
        """What the model is given of tokens [B, Q]: ids, or vectors where some of them are of pictures."""
        if seen is None:
            return {"input_ids": tokens}
        embed: Any = self.model.get_input_embeddings()
        shown = seen.vectors.index_select(0, seen.taken.clamp(min=0))
        return {"inputs_embeds": torch.where((seen.taken >= 0)[:, None], shown, embed(tokens))}

    def _logits(
        self, tokens: Tensor, positions: Tensor, keep: Tensor | None, seen: Seen | None = None
    ) -> Tensor:
        """Logits of one position of each row, float32 [B, V]."""
        kept: Any = 1 if keep is None else keep
        output = self.model(
            **self._given(tokens, seen),
            position_ids=positions,
            past_key_values=self.seen,
            use_cache=False,
            logits_to_keep=kept,
            return_dict=True,
        )
        logits: Tensor = output.logits[:, -1].to(torch.float32)
        return logits

    def _output(
        self,
        logits: Tensor,
        given: Tensor,
        slot: Tensor | None,
        extent: Extent,
        observed: Tensor | None = None,
    ) -> StepOutput:
        """Gather the output, and count what the sites did at the tokens that are `given` [B, Q].

        slot: int64 [1], the only one of a chunk. observed: bool [B, Q], at which of them what is observed
        counts; None for all.
        """
        readings = [self.context.readings[site] for site in self.sites]
        watched, moved = logits.new_zeros(0, *given.shape, SMALLEST, 2), logits.new_zeros(0, *given.shape)
        kept: Kept | None = None
        outcome, finite = torch.zeros_like(given[:, 0], dtype=torch.int64), torch.isfinite(logits).all(-1)
        if readings:
            counted, outcome = self._settle(given, finite, slot, extent)
            self._count(count_sites(readings, counted), slot)
            observed = counted if observed is None else counted & observed
            self._count_readings(readings, counted, observed, slot, extent)
            kept = self._kept(observed)
            both = [torch.stack((reading.watched_before, reading.watched_after), -1) for reading in readings]
            watched = torch.stack(both).reshape(len(both), *given.shape, -1, 2)
            moves = torch.stack([reading.relative_norm for reading in readings])
            moved = moves.reshape(len(both), *given.shape)
        return StepOutput(logits.argmax(-1), finite, logits, None, watched, moved, outcome, kept)

    def _kept(self, counted: Tensor) -> Kept | None:
        """What the step keeps of its tokens, of which those that are `counted` [B, Q] count."""
        if not self.keeps:
            return None
        return Kept(tuple(self.context.kept[site] for site in self.keeps), counted.flatten())

    def _settle(
        self, given: Tensor, finite: Tensor, slot: Tensor | None, extent: Extent
    ) -> tuple[Tensor, Tensor]:
        """Remember what the conditions come to; which tokens count [B, Q], and the outcomes [B]."""
        own, conditions = self.slots.conditions, self.context.conditions
        if conditions is None:
            raise RuntimeError("no step is running")
        peaks = own.peaks[:, : extent.batch, : extent.guards]
        if slot is not None:
            peaks = peaks.index_select(1, slot)
        settled = settle(conditions, peaks, given, finite)
        # What was carried over stays.
        pairs = list(zip(own.state.view(extent.batch, *extent[-2:]), settled.state, strict=True))[:-1]
        if slot is None:
            for kept, new in pairs:
                kept.copy_(new)
            own.peaks[:, : extent.batch, : extent.guards] = settled.peaks
        else:
            for kept, new in pairs:
                kept.index_copy_(0, slot, new)
            own.peaks[:, : extent.batch, : extent.guards].index_copy_(1, slot, settled.peaks)
        return settled.counted, settled.outcome

    def _count(self, new: Tensor, slot: Tensor | None) -> None:
        """Add what the sites did, float32 [sites + 1, B, COUNTED]."""
        counts = self.slots.state.counted
        before = counts[:, : new.shape[1]] if slot is None else counts.index_select(1, slot)
        sums, largest = before[..., :-1] + new[..., :-1], torch.maximum(before[..., -1:], new[..., -1:])
        updated = torch.cat((sums, largest), -1)
        if slot is None:
            counts[:, : new.shape[1]] = updated
        else:
            counts.index_copy_(1, slot, updated)

    def _count_readings(
        self,
        readings: list[Readings],
        counted: Tensor,
        observed: Tensor,
        slot: Tensor | None,
        extent: Extent,
    ) -> None:
        """Add at which tokens groups of rows acted, of those that are `counted`, and how often what is
        observed fired, at those that are `observed`, both bool [B, Q]; slot: as in `_output`."""
        tokens, slots = self.context.tokens, self.slots
        if tokens is None:
            raise RuntimeError("no step is running")
        acted = [reading.acted for reading in readings]
        slots.activity.count(acted, tokens, counted, slot, extent.acting, extent.groups)
        values = [reading.observed for reading in readings]
        slots.observing.count(values, tokens, observed, slot)

    def _finish(self) -> None:
        context = self.context
        context.mode, context.cache, context.length = Mode.IDLE, None, 0
        context.positions = context.places = context.slot = context.unmoved = None
        context.tokens, context.conditions = None, None
        context.views, context.readings, context.kept = {}, {}, {}
