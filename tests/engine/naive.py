"""The oracle for guards: the whole text through the model's own code for every token, in plain Python.

Nothing is cached and nothing is compiled: each try of a token is a forward pass over the whole text with
plain hooks, each position under the rows that were in force when its token was read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.api import Guard, Reaction, SamplingParams
from saegis_server.engine.sites import site_module
from saegis_server.engine.torch.sampler import sample, sampling_table
from saegis_server.steering.conditions import Condition, Literal, Scope, parts_of
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.steering import reference
from tests.steering.test_evaluator import naive

Programs = Mapping[Site, SiteProgram]


@dataclass
class Naive:
    """What a guarded request comes to: its tokens, how it ended, and when each condition held.

    held: for each condition, the tokens at which it held, -1 being the prompt. closest: how near the two best
    logits, or a reading and a threshold, ever came; a test must not rest on less than rounding. given: what
    the request gives of its answer; told: what it is told of it, where `hold_back` tokens, itself the first,
    are judged before one is told.
    """

    model: PreTrainedModel
    prompt: list[int]
    program: SteeringProgram
    guard: Guard
    sampling: SamplingParams
    tokens: list[int] = field(default_factory=list)
    ended: str = "length"
    held: list[list[int]] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    closest: float = 1e9
    tries: int = 0
    values: list[list[float]] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    hold_back: int = 0

    @property
    def told(self) -> list[int]:
        """The tokens that are told."""
        own = self.tokens[len(self.given) :]
        return own[: max(0, len(own) - self.hold_back)] if self.ended == "stopped" else own

    def run(self) -> "Naive":
        """Answer the request."""
        self.held = [[] for _ in self.guard.conditions]
        in_prompt, answered, latched = self._read_prompt()
        if self.ended != "length":
            return self
        programs = [self._program(latched)] * len(self.prompt)
        on = latched
        latched = {place for place in latched if self._stays(place)}
        length = len(self.given) + (self.sampling.max_tokens or 0)
        for token in range(length):
            self.tokens.append(self.given[token] if token < len(self.given) else self._pick())
            if token + 1 == length and not self.hold_back:
                return self
            peaks = self.peaks
            while True:  # until the rows in force are those that the readings under them ask for
                self.peaks = peaks
                values = self._forward([*programs, self._program(on)])[-1]
                held = latched | self._holding(in_prompt, [*answered, values])
                if (wanted := self._reacting(held, Reaction.EDIT)) == on:
                    break
                on = wanted
            if self._reacting(held, Reaction.STOP, Reaction.REFUSE):
                self._note(held, token)
                refused = token < len(self.given) and self._reacting(held, Reaction.REFUSE)
                self.ended = "refused" if refused else "stopped"
                return self
            answered.append(values)
            programs.append(self._program(on))
            self._note(held, token)
            latched |= {place for place in held if self._stays(place)}
        return self

    def _read_prompt(self) -> tuple[list[list[float]], list[list[float]], set[int]]:
        held: set[int] = set()
        while True:
            on = self._reacting(held, Reaction.EDIT)
            values = self._forward([self._program(on)] * len(self.prompt))
            held |= self._holding(values, [])
            if self._reacting(held, Reaction.STOP, Reaction.REFUSE):
                self.ended = "refused" if self._reacting(held, Reaction.REFUSE) else "stopped"
                break
            if self._reacting(held, Reaction.EDIT) == on:
                break
        self._note(held, -1)
        return values, [], held

    def _holding(self, in_prompt: list[list[float]], answered: list[list[float]]) -> set[int]:
        """What holds at the last token, apart from what only goes on holding."""

        def holds(condition: Condition) -> bool:
            return naive(replace(condition, sticky=False), in_prompt, answered)[-1]

        return {place for place, each in enumerate(self.guard.conditions) if holds(each.condition)}

    def _stays(self, place: int) -> bool:
        condition = self.guard.conditions[place].condition
        return condition.sticky or condition.scope is Scope.PROMPT

    def _reacting(self, held: set[int], *reactions: Reaction) -> set[int]:
        return {place for place in held if self.guard.conditions[place].reaction in reactions}

    def _note(self, held: set[int], token: int) -> None:
        for place in held:
            self.held[place].append(token)

    def _program(self, on: set[int]) -> Programs:
        """The rows of the program and of the conditions that are on."""
        programs = dict(self.program.sites)
        for place in sorted(on):
            for site, rows in self.guard.conditions[place].rows.items():
                own = programs.get(site, SiteProgram())
                programs[site] = replace(own, rules=own.rules + rows.rules, bans=own.bans + rows.bans)
        return programs

    def _forward(self, programs: Sequence[Programs]) -> list[list[float]]:
        """Read the text so far, a program for each of its tokens; the guards' readings of each of them."""
        self.tries += 1
        by_site: dict[Site, list[list[float]]] = {site: [[] for _ in programs] for site in tiny.SITES}
        handles = [self._hook(site, programs, by_site[site]) for site in tiny.SITES]
        try:
            with torch.no_grad():
                ids = torch.tensor([[*self.prompt, *self.tokens]])
                self._logits: Tensor = self.model(ids).logits[0, -1].float()
        finally:
            for handle in handles:
                handle.remove()
        values = [[each for site in tiny.SITES for each in by_site[site][at]] for at in range(len(programs))]
        for part in (part for each in self.guard.conditions for part in parts_of(each.condition.expression)):
            if isinstance(part, Literal):
                gaps = [abs(row[part.reading] - part.threshold) for row in values]
                self.closest = min(self.closest, *gaps)
        peaks = [max(each) for each in zip(*values, strict=True)]
        self.values = values
        self.peaks = [max(pair) for pair in zip(self.peaks or peaks, peaks, strict=True)]
        return values

    def _hook(self, site: Site, programs: Sequence[Programs], values: list[list[float]]) -> Any:
        every = self._program(set(range(len(self.guard.conditions)))).get(site)

        def steer(x: Tensor) -> Tensor:
            changed = x.clone()
            for token, program in enumerate(programs):
                if (rows := program.get(site)) is None:
                    continue
                clean = reference.vector(x[0, token])
                values[token] = [reference.read(probe, clean) for probe in rows.guards]
                steered = reference.settled(rows, clean, token < len(self.prompt), every)
                changed[0, token] = torch.from_numpy(steered).to(x.dtype)
            return changed

        module, reads_input = site_module(self.model, site)
        if reads_input:
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: ((steer(args[0]), *args[1:]), kwargs), with_kwargs=True
            )
        return module.register_forward_hook(
            lambda _, __, out: (steer(out[0]), *out[1:]) if isinstance(out, tuple) else steer(out)
        )

    def _pick(self) -> int:
        """The next token by the sampler itself, which has an oracle of its own."""
        best = self._logits.topk(2).values
        if self.sampling.temperature == 0.0:
            self.closest = min(self.closest, float(best[0] - best[1]))
        table = sampling_table(1, tiny.VOCABULARY)
        table.temperature[0], table.top_p[0] = self.sampling.temperature, self.sampling.top_p
        table.frequency[0] = self.sampling.frequency_penalty
        own = self.tokens[len(self.given) :]
        table.seed[0], table.generated[0] = self.sampling.seed or 0, len(own)
        for token in own:
            table.counts[0, token] += 1
        table.in_prompt[0, [*self.prompt, *self.given]] = True
        return int(sample(self._logits[None], table)[0])
