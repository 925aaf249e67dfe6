"""Steered: the rows of all texts that a worker runs, and what its sites do to the tokens of a step.

It knows neither vLLM nor a model: an adapter tells it which tokens of which texts a step reads, hands it the
activations of each site, and at the end the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from saegis_server.engine.counts import Observed
from saegis_server.engine.torch.activity import SlotActivity, hits_of
from saegis_server.engine.torch.conditions import SlotConditions, StepConditions, settle
from saegis_server.engine.torch.hooks import except_for
from saegis_server.engine.torch.observing import SlotObserving
from saegis_server.engine.torch.slots import COUNTED, SPARE_SLOTS
from saegis_server.engine.torch.step import SMALLEST, count_sites
from saegis_server.engine.vllm.flattened import Flattened, Part
from saegis_server.engine.vllm.orders import Books, Order, Told
from saegis_server.steering.apply import Readings, apply
from saegis_server.steering.evaluator import Verdict, Where
from saegis_server.steering.ranking import RankedDictionary, Ranking
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Capacity, SiteTable, TableView

#: Logits [T, V] of hidden states [T, d] after the last layer.
Unembed = Callable[[Tensor], Tensor]


#: What rows were gathered by: how often the tables had changed, which slots, and how many rows of each kind.
_Key = tuple[int, tuple[int, ...], tuple[int, ...]]


class _Text:
    """A text that a worker knows: its order, and how many of its tokens were read and counted."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.read = self.counted = 0


class _Step:
    """One step: its tokens, and what has been read of them so far.

    acts: of each site, whether any row or anything observed is there. How the tokens lie is worked out once
    it is asked for: where nothing acts nobody does.
    """

    def __init__(
        self, parts: Sequence[Part], acts: Sequence[bool], rows: Sequence[int], device: torch.device
    ) -> None:
        self.parts, self.acts, self.rows, self._device = tuple(parts), acts, rows, device
        self.count = sum(part.length for part in parts)
        self.readings: dict[int, Readings] = {}
        self.clean: dict[int, Tensor] = {}
        self.conditions: StepConditions | None = None
        self.keeps_clean = any(part.order.wanted.clean for part in parts)
        self.record: Tensor | None = None
        self.told: tuple[Tensor, Tensor] | None = None

    @cached_property
    def flat(self) -> Flattened:
        """Its tokens."""
        return Flattened(self.parts, self._device)

    @cached_property
    def writes(self) -> Tensor:
        """The tokens whose stream is written whole, bool [T]."""
        steers = [part.order.steers for part in self.parts for _ in range(part.length)]
        return torch.tensor(steers, device=self._device)


class Steered:
    """What `slots` texts at once have at the sites of a model, one slot each."""

    def __init__(
        self,
        norms: Mapping[Site, frozenset[Norm]],
        widths: Widths,
        slots: int,
        capacity: Capacity,
        device: torch.device | str = "cpu",
        ranked: Mapping[Site, Sequence[RankedDictionary]] | None = None,
    ) -> None:
        """norms: the normalisations that are used at each site, in the order of the forward pass. ranked: the
        SAEs at each site that decide by rank."""
        self.sites, self.norms, self.device = tuple(norms), dict(norms), torch.device(device)
        self.slots = slots
        rows = slots + SPARE_SLOTS
        self.rankings = {site: Ranking((ranked or {}).get(site, ())) for site in self.sites}
        self.tables = [
            SiteTable(rows, widths.at(site), capacity, device, self.rankings[site]) for site in self.sites
        ]
        self.conditions = SlotConditions(
            len(self.sites), rows, capacity.conditions, capacity.watches + 1, device
        )
        self.activity = SlotActivity(self.sites, rows, capacity, device)
        self.observing = SlotObserving(self.sites, rows, widths, device, self.rankings)
        self.counts = torch.zeros(len(self.sites) + 1, rows, COUNTED, device=device)
        self._texts: dict[str, _Text] = {}
        self._step: _Step | None = None
        # How often the tables have changed, and what was gathered of them last, for which slots.
        self._admitted = 0
        self._views: dict[int, tuple[_Key, TableView]] = {}

    # -- between steps --------------------------------------------------------------------------------

    @torch.inference_mode()
    def admit(self, request_id: str, order: Order) -> None:
        """Give a slot to a text of which nothing has been read. Raises as SiteTable.write does."""
        self._texts[request_id] = _Text(order)
        self._admitted += 1
        self.conditions.load(order.slot, order.compiled)
        self.activity.load(order.slot, order.rows, order.groups)
        self._forget(order.slot)
        for site, table in zip(self.sites, self.tables, strict=True):
            table.clear(order.slot)
            if (rows := order.rows.get(site)) is not None:
                table.write(order.slot, rows, rows.geometry, rows.moves)

    def _forget(self, slot: int) -> None:
        """Count a slot's text from nothing."""
        self.counts[:, slot] = 0.0
        self.activity.forget(slot)
        self.observing.forget(slot)

    @torch.inference_mode()
    def read_again(self, request_id: str, other: str) -> None:
        """Let a text be read again from its start, as another request, with what holds now in force."""
        text = self._texts.pop(request_id)
        self._texts[other] = _Text(text.order)
        if text.order.compiled is not None:
            self.conditions.read_again(text.order.slot)
        self._forget(text.order.slot)

    @torch.inference_mode()
    def leave(self, request_id: str) -> None:
        """Take a text out of its slot, which is empty then."""
        if (text := self._texts.pop(request_id, None)) is None:
            return
        slot = text.order.slot
        self._admitted += 1
        for table in self.tables:
            table.clear(slot)
        self.conditions.clear(slot)
        self.activity.clear(slot)

    def order(self, request_id: str) -> Order:
        """How a text is steered and read. Raises KeyError for one that nobody admitted."""
        return self._texts[request_id].order

    def books(self, slot: int) -> Books:
        """What was counted for the text in a slot so far."""
        return Books(
            self.counts[:, slot].tolist(),
            self.activity.result(slot),
            self.observing.result(slot),
            self.conditions.result(slot),
        )

    @torch.inference_mode()
    def observe(self, features: Sequence[Observed]) -> list[tuple[int, int]]:
        """Observe these features from the next step on; see SlotObserving.observe."""
        return self.observing.observe(features)

    # -- a step ---------------------------------------------------------------------------------------

    @torch.inference_mode()
    def begin(self, request_ids: Sequence[str], starts: Sequence[int], counts: Sequence[int]) -> None:
        """A step reads `counts` tokens of these texts, from `starts` on, behind each other in this order.

        A text that was read further than its start is read again, as it was preempted: what was counted of it
        is not counted twice, and its conditions begin anew. Raises KeyError for a text that nobody admitted.
        """
        parts = []
        for request_id, start, count in zip(request_ids, starts, counts, strict=True):
            text = self._texts[request_id]
            if start < text.read and text.order.compiled is not None:
                self._judge_again(text, start)
            text.read = start + count
            parts.append(Part(request_id, text.order, start, count, text.counted))
            text.counted = max(text.counted, text.read)
        orders = [part.order for part in parts]
        judged = any(order.compiled is not None for order in orders)
        observed = self.observing.used > 0
        acts = [judged or observed or any(site in order.rows for order in orders) for site in self.sites]
        rows = [max(kinds) for kinds in zip(*(order.counts for order in orders), strict=True)]
        step = _Step(parts, acts, rows, self.device)
        if judged:
            rows[4:] = [max(SMALLEST, count) for count in rows[4:]]
            size, flat = len(self.conditions.state.age), step.flat
            step.conditions = StepConditions(
                self.conditions.rows.view(size, *rows[-2:]),
                self.conditions.state.view(size, *rows[-2:]),
                flat.tokens,
                flat.at,
                len(self.sites),
            )
        for site, ranking in self.rankings.items():
            if ranking:
                needs = self.tables[self.sites.index(site)].needs([order.slot for order in orders])
                ranking.want(needs | self.observing.needs(site))
        self._step = step

    def _judge_again(self, text: _Text, start: int) -> None:
        """The conditions of a text that is read again from its start, with what held before in force."""
        if start:
            raise RuntimeError("a text with conditions is read again, and not from its start")
        carried = self.conditions.state.carried[text.order.slot].clone()
        self.conditions.state.begin(text.order.slot)
        self.conditions.state.carried[text.order.slot] = carried
        self.conditions.peaks[:, text.order.slot] = -torch.inf

    def steer(self, number: int, x: Tensor) -> Tensor:
        """The activations x [N, d] of a site as they go on, of which the step's tokens are the first ones."""
        step = self._step
        if step is None:
            return x
        given = x[: step.count]
        if step.keeps_clean:
            step.clean[number] = given.clone()
        if not step.acts[number]:
            return x
        steered = self._applied(step, number, given)
        return steered if step.count == len(x) else torch.cat((steered, x[step.count :]))

    def _applied(self, step: _Step, number: int, x: Tensor) -> Tensor:
        site, flat = self.sites[number], step.flat
        view = self._view(step, number)
        if self.observing.used:
            view = view._replace(observed=self.observing.view(site, self.observing.used))
        conditions = step.conditions
        gates = None if conditions is None else partial(conditions.read, number)
        cuts = self.rankings[site].cuts if self.rankings[site] else None
        steered, readings = apply(x, view, flat.by_text, self.norms[site], gates, cuts)
        if flat.unmoved is not None:
            steered, readings = except_for(flat.unmoved, x, steered, readings)
        step.readings[number] = readings
        return steered

    def _view(self, step: _Step, number: int) -> TableView:
        """The rows of the step's texts at a site; kept, since the next step mostly has the same."""
        key = (self._admitted, tuple(part.order.slot for part in step.parts), tuple(step.rows[:5]))
        known = self._views.get(number)
        if known is None or known[0] != key:
            known = self._views[number] = key, self.tables[number].view_of(step.flat.slots, *key[2])
        return known[1]

    def passes(self, number: int) -> bool:
        """Whether a site's activations pass as they are, unread."""
        step = self._step
        return step is None or not (step.acts[number] or step.keeps_clean)

    @property
    def writes(self) -> Tensor | None:
        """Which tokens of the step are of texts that may be moved, bool [T]; None outside of one."""
        return None if self._step is None else self._step.writes

    @torch.inference_mode()
    def finish(self, logits: Tensor, hidden: Tensor, unembed: Unembed) -> list[Told]:
        """End the step: count what was done, and tell what it gave for each text.

        logits: [B, V] after the last token of each; hidden: [N, d] after the last layer; unembed: makes
        logits of them.
        """
        step, self._step = self._step, None
        if step is None:
            return []
        # What is not finite is the largest, the smallest or neither a number; so nothing is made of all.
        finite = torch.isfinite(logits.amax(-1)) & torch.isfinite(logits.amin(-1))
        outcome = self._settled(step, finite)
        finites, outcomes = finite.tolist(), outcome.tolist()
        told, begin = [], 0
        for row, part in enumerate(step.parts):
            wanted, own = part.order.wanted, slice(begin, begin + part.length)
            watched, moved = self._watched(step, row, own)
            told.append(
                Told(
                    part.request_id,
                    part.start,
                    part.length,
                    finites[row],
                    outcomes[row],
                    self.conditions.holds(part.order.slot) if outcomes[row] else None,
                    watched,
                    moved,
                    torch.log_softmax(logits[row].float(), -1) if wanted.logprobs else None,
                    unembed(hidden[own]) if wanted.logits else None,
                    self._clean(step, own) if wanted.clean else None,
                    self._record(step, part, own) if wanted.record else None,
                )
            )
            begin += part.length
        return told

    def abandon(self) -> None:
        """Forget a step that failed."""
        self._step = None

    def _clean(self, step: _Step, own: slice) -> dict[Site, Tensor]:
        return {self.sites[number]: x[own] for number, x in step.clean.items()}

    def _record(self, step: _Step, part: Part, own: slice) -> Tensor:
        """What was done at a text's tokens, [length, 3·sites + G]."""
        width = 3 * len(self.sites) + len(part.order.groups)
        if step.record is None:
            return torch.zeros(part.length, width)
        return step.record[own, :width].cpu()

    def _watched(self, step: _Step, row: int, own: slice) -> tuple[Tensor | None, Tensor | None]:
        """The watches and the moves of a text's tokens: of all, or of the last one."""
        wanted, counts = step.parts[row].order.wanted, step.parts[row].order.counts
        if not step.readings or not (counts.watches or wanted.prompt or wanted.moves):
            return None, None
        if step.told is None:
            step.told = self._all_watched(step)
        watched, moved = step.told
        places = own if wanted.prompt else slice(own.stop - 1, own.stop)
        return watched[:, places], moved[:, places]

    def _all_watched(self, step: _Step) -> tuple[Tensor, Tensor]:
        """The same of all tokens of a step."""
        watched, moved = [], []
        for number in range(len(self.sites)):
            readings = step.readings.get(number)
            if readings is None:
                watched.append(torch.zeros(step.count, step.rows[3], 2, device=self.device))
                moved.append(torch.zeros(step.count, device=self.device))
                continue
            watched.append(torch.stack((readings.watched_before, readings.watched_after), -1))
            moved.append(readings.relative_norm)
        return torch.stack(watched), torch.stack(moved)

    # -- books ----------------------------------------------------------------------------------------

    def _settled(self, step: _Step, finite: Tensor) -> Tensor:
        """Remember what the conditions come to, and count what was done; the outcome of each text [B]."""
        if not step.readings:
            return torch.zeros(len(step.parts), dtype=torch.int64, device=self.device)
        flat = step.flat
        outcome, counted = self._judged(step, finite)
        counted = counted & flat.on_grid(flat.new).view_as(counted)
        readings = [self._on_grid(step, number) for number in range(len(self.sites))]
        new = count_sites(readings, counted)
        before = self.counts.index_select(1, flat.slots)
        sums, largest = before[..., :-1] + new[..., :-1], torch.maximum(before[..., -1:], new[..., -1:])
        self.counts.index_copy_(1, flat.slots, torch.cat((sums, largest), -1))
        tokens, kinds = flat.tokens_on_grid(), (step.rows[0], step.rows[1], step.rows[2])
        acted, groups = [each.acted for each in readings], max(len(part.order.groups) for part in flat.parts)
        if groups:
            self.activity.count(acted, tokens, counted, flat.slots, kinds, groups)
        if any(part.order.wanted.record for part in flat.parts):
            done = [each.float() for at in readings for each in (at.edited, at.bans_fired, at.relative_norm)]
            record = torch.stack(done, -1)
            if groups:
                members = self.activity.members_of(flat.batch, flat.slots, kinds, groups)
                record = torch.cat((record, hits_of(acted, members, tokens).float()), -1)
            step.record = flat.from_grid(record)
        if self.observing.used:
            seen = counted & flat.on_grid(flat.observed).view_as(counted)
            self.observing.count([reading.observed for reading in readings], tokens, seen, flat.slots)
        return outcome

    def _on_grid(self, step: _Step, number: int) -> Readings:
        """The readings of a site on the grid; where nothing acts there, that nothing was done."""
        flat, size = step.flat, step.flat.batch * step.flat.longest
        none = torch.zeros(size, 0, device=self.device)
        if (readings := step.readings.get(number)) is not None:
            return Readings(none, none, none, *(flat.on_grid(part) for part in readings[3:]))
        nothing = torch.zeros(size, device=self.device)
        rows = torch.zeros(size, sum(step.rows[:3]), dtype=torch.bool, device=self.device)
        return Readings(none, none, none, nothing > 0.0, nothing, nothing, rows, none)

    def _judged(self, step: _Step, finite: Tensor) -> tuple[Tensor, Tensor]:
        """The outcomes [B], and which tokens count [B, Q]."""
        flat, conditions = step.flat, step.conditions
        if conditions is None or conditions.verdict is None:
            outcome = torch.zeros(flat.batch, dtype=torch.int64, device=self.device)
            return outcome, flat.given
        on_grid = flat.on_grid
        verdict = Verdict(*(on_grid(part) for part in conditions.verdict))
        given = self._up_to_turn(flat, verdict)
        rows = type(conditions.rows)(*(each.index_select(0, flat.slots) for each in conditions.rows))
        state = type(conditions.state)(*(each.index_select(0, flat.slots) for each in conditions.state))
        at = Where(
            on_grid(flat.at.position),
            on_grid(flat.at.answer),
            given.flatten(),
            on_grid(flat.at.unread).view(given.shape),
        )
        reads = {site: on_grid(values) for site, values in conditions.reads.items()}
        own = StepConditions(rows, state, flat.tokens_on_grid(), at, len(self.sites), reads, verdict)
        guards = self.conditions.peaks[:, :, : step.rows[4]]
        settled = settle(own, guards.index_select(1, flat.slots), given, finite)
        kept = self.conditions.state.view(len(self.conditions.state.age), *step.rows[-2:])
        # What was carried over stays.
        for mine, new in list(zip(kept, settled.state, strict=True))[:-1]:
            mine.index_copy_(0, flat.slots, new)
        guards.index_copy_(1, flat.slots, settled.peaks)
        return settled.outcome, settled.counted

    def _up_to_turn(self, flat: Flattened, verdict: Verdict) -> Tensor:
        """Which tokens of the grid are to be judged, bool [B, Q]: where a prompt is to be read again, none of
        the answer that the request gives behind it."""
        turns = (verdict.turns.view(flat.given.shape) & flat.given).any(1, keepdim=True)
        return flat.given & (~turns | flat.on_grid(flat.prompt).view(flat.given.shape))
