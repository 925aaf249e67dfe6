"""Admission: what a request must be for the engine to take it, checked before anything is queued."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from saegis_server.engine.api import FieldError, GenerationRequest, Guard, Guarded, Reaction
from saegis_server.engine.torch.step import Step
from saegis_server.steering.conditions import CompiledConditions, ConditionError, Scope, compile_conditions
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.projection import held_geometry
from saegis_server.steering.site import Site, forward_order

#: How many admitted programs are kept.
_REMEMBERED = 64


@dataclass(frozen=True)
class AdmittedProgram:
    """A program beside a guard that a step can run: all of its rows fit, and what they hold can be held.

    digest: of all that may act. rows: by site, those of the conditions among them. conditions: the guard's;
    compiled: as rows of a table; None where nothing is to be judged. readings: of each reading the number of
    the site and the row there. unread, hold_back: see Guard.
    """

    digest: str
    rows: Mapping[Site, SiteProgram]
    conditions: tuple[Guarded, ...] = ()
    compiled: CompiledConditions | None = None
    readings: tuple[tuple[int, int], ...] = ()

    def in_force(self, held: Collection[int]) -> dict[Site, SiteProgram]:
        """The rows whose condition is among these, as Edit.when counts them."""
        found = {}
        for site, rows in self.rows.items():
            rules, bans = (tuple(e for e in stage if e.when in held) for stage in (rows.rules, rows.bans))
            if (own := replace(rows, rules=rules, bans=bans)) != SiteProgram():
                found[site] = own
        return found


class Admission:
    """Checks requests against what a step has: vocabulary, length, sites, room for rows."""

    def __init__(self, step: Step) -> None:
        self._step = step
        # By digest and by the order of sites, in which watches are told.
        self._known: dict[tuple[str, tuple[Site, ...]], AdmittedProgram] = {}

    def generation(self, request: GenerationRequest, stops: Collection[int]) -> AdmittedProgram:
        """The program of a generation beside its guard.

        stops: the tokens that end its text.
        The program must fit, and its bans and bounds hold, with the rows of all conditions too. Those that
        were not seen before are worked out here, which takes milliseconds; a guard beside a program that were
        seen before take next to no time. Raises FieldError or SteeringError for what cannot be run.
        """
        prompt, sampling, longest = request.prompt, request.sampling, self._step.slots.max_length
        if not prompt:
            raise FieldError("prompt", "must not be empty")
        if len(prompt) >= longest:
            raise FieldError(
                "prompt", f"has {len(prompt)} tokens; at most {longest - 1} leave room for an answer"
            )
        if not 0 <= request.prefilled < len(prompt):
            raise FieldError("prompt", f"cannot end with {request.prefilled} tokens of the answer")
        self._check_tokens(
            {
                "prompt": prompt,
                "sampling.stop_token_ids": sampling.stop_token_ids,
                "sampling.logit_bias": tuple(sampling.logit_bias),
            }
        )
        vocabulary = self._step.slots.vocabulary
        if sampling.min_tokens > 0 and len(set(stops).intersection(range(vocabulary))) == vocabulary:
            raise FieldError(
                "sampling.min_tokens",
                f"is {sampling.min_tokens}, but every token of the vocabulary ends the text: none is left",
            )
        return self._admit(request.program, request.guard)

    def text(self, tokens: Sequence[int], program: SteeringProgram, guard: Guard) -> AdmittedProgram:
        """The program under which a text is scored, beside its guard; raises as `generation` does."""
        longest = self._step.slots.max_length
        if len(tokens) < 2:
            raise FieldError("prompt", f"must have at least 2 tokens to be scored, not {len(tokens)}")
        if len(tokens) > longest:
            raise FieldError("prompt", f"has {len(tokens)} tokens; at most {longest} can be scored at once")
        self._check_tokens({"prompt": tokens})
        return self._admit(program, guard)

    def _admit(self, program: SteeringProgram, guard: Guard) -> AdmittedProgram:
        digest = guard.digest_beside(program)
        if (known := self._known.get(key := (digest, tuple(program.sites)))) is None:
            self._check(program)
            for place, guarded in enumerate(guard.conditions):
                self._check_condition(f"guard.conditions[{place}]", guarded, program.sites)
            rows = _with_conditional(program.sites, guard)
            if any(guarded.rows for guarded in guard.conditions):
                self._check(SteeringProgram(rows))
            known = self._compiled(AdmittedProgram(digest, rows, guard.conditions))
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return known

    def _check_condition(self, field: str, guarded: Guarded, program: Mapping[Site, SiteProgram]) -> None:
        readings = [site for site in self._step.sites if site in program for _ in program[site].guards]
        if beyond := [reading for reading in guarded.condition.readings if reading >= len(readings)]:
            has = f"the program has {len(readings)} guards"
            raise FieldError(field, f"{guarded.name} looks at reading {min(beyond)}; {has}")
        if bool(guarded.rows) is not (guarded.reaction is Reaction.EDIT):
            rows = "rows" if guarded.rows else "no rows"
            raise FieldError(field, f"{guarded.name} has {rows}; its reaction is {guarded.reaction}")
        order, sites = self._step.sites, list(guarded.rows)
        looks = [readings[reading] for reading in guarded.condition.readings]
        if sites and looks and guarded.condition.scope is not Scope.PROMPT:
            first, last = min(sites, key=forward_order), max(looks, key=forward_order)
            if first in order and forward_order(first) < forward_order(last):
                raise FieldError(field, early_rows(guarded.name, first, last))

    def _compiled(self, admitted: AdmittedProgram) -> AdmittedProgram:
        readings = tuple(
            (number, row)
            for number, site in enumerate(self._step.sites)
            if site in admitted.rows
            for row in range(len(admitted.rows[site].guards))
        )
        if not readings and not admitted.conditions:
            return admitted
        reactions = [guarded.reaction for guarded in admitted.conditions]
        try:
            compiled = compile_conditions(
                tuple(guarded.condition for guarded in admitted.conditions),
                tuple(reaction is Reaction.EDIT for reaction in reactions),
                tuple(reaction in (Reaction.STOP, Reaction.REFUSE) for reaction in reactions),
                readings,
                self._step.slots.capacity.conditions,
            )
        except ConditionError as error:
            raise FieldError("guard.conditions", str(error)) from None
        return replace(admitted, compiled=compiled, readings=readings)

    def _check_tokens(self, named: Mapping[str, Sequence[int]]) -> None:
        vocabulary = self._step.slots.vocabulary
        for field, ids in named.items():
            for position, token in enumerate(ids):
                if not 0 <= token < vocabulary:
                    raise FieldError(f"{field}[{position}]", f"{token} is not a token id below {vocabulary}")

    def _check(self, program: SteeringProgram) -> None:
        step = self._step
        width = step.model.config.get_text_config().hidden_size
        for site, rows in program.sites.items():
            if site not in step.sites:
                offered = ", ".join(map(str, step.sites)) or "none"
                raise SteeringError(f"{site} is not a site of this server (its sites: {offered})", site)
            step.slots.capacity.check(site, rows)
            edited = (edit.probe for _, edits in rows.stages() for edit in edits)
            probes = [*edited, *rows.watches, *rows.guards]
            if any(probe.read.shape != (width,) or probe.write.shape != (width,) for probe in probes):
                raise SteeringError(f"a row at {site} does not have the model's width {width}", site)
            held_geometry(rows, site, step.model.dtype)


def early_rows(name: str, acts: Site, reads: Site) -> str:
    """Why a condition over an answer's tokens cannot put rows in force before the last site at which it
    reads.
    """
    return (
        f"{name} acts at {acts}, which comes before {reads}, where its condition reads: let it read there or "
        "earlier, act later, or be over the prompt"
    )


def _with_conditional(program: Mapping[Site, SiteProgram], guard: Guard) -> dict[Site, SiteProgram]:
    """A program with the rows of all conditions, each with its own."""
    found = dict(program)
    for number, guarded in enumerate(guard.conditions, start=1):
        for site, rows in guarded.rows.items():
            own = found.get(site, SiteProgram())
            rules, bans = (tuple(replace(e, when=number) for e in stage) for stage in (rows.rules, rows.bans))
            found[site] = replace(own, rules=own.rules + rules, bans=own.bans + bans)
    return found
