"""Admission: what a request must be for the engine to take it, checked before anything is queued."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from saegis_server.engine.api import FieldError, FirstToken, GenerationRequest, Guard, Reaction
from saegis_server.engine.torch.plan import Plan
from saegis_server.engine.torch.request_guard import RequestGuard
from saegis_server.engine.torch.step import Step
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.projection import held_geometry
from saegis_server.steering.site import Site

#: How many admitted programs are kept.
_REMEMBERED = 64


@dataclass(frozen=True)
class AdmittedProgram:
    """A program beside a guard that a step can run: all of its rows fit, and what they hold can be held.

    digest: of all that may act. rows: the program's, by site. plan: the guard's; None where nothing is to be
    judged.
    """

    digest: str
    rows: Mapping[Site, SiteProgram]
    plan: Plan | None


class Admission:
    """Checks requests against what a step has: vocabulary, length, sites, room for rows."""

    def __init__(self, step: Step, first_token: FirstToken) -> None:
        self._step, self._first_token = step, first_token
        # By digest and by the order of sites, in which watches are told.
        self._known: dict[tuple[str, tuple[Site, ...]], AdmittedProgram] = {}

    def generation(
        self, request: GenerationRequest, stops: Collection[int]
    ) -> tuple[AdmittedProgram, RequestGuard | None]:
        """The program of a generation and its guard; None where there is nothing to judge.

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
        return self._admit(prompt, request.program, request.guard)

    def text(
        self, tokens: Sequence[int], program: SteeringProgram, guard: Guard
    ) -> tuple[AdmittedProgram, RequestGuard | None]:
        """The program under which a text is scored, and its guard, as in `generation`; raises as it does."""
        longest = self._step.slots.max_length
        if len(tokens) < 2:
            raise FieldError("prompt", f"must have at least 2 tokens to be scored, not {len(tokens)}")
        if len(tokens) > longest:
            raise FieldError("prompt", f"has {len(tokens)} tokens; at most {longest} can be scored at once")
        self._check_tokens({"prompt": tokens})
        return self._admit(tokens, program, guard)

    def _admit(
        self, tokens: Sequence[int], program: SteeringProgram, guard: Guard
    ) -> tuple[AdmittedProgram, RequestGuard | None]:
        digest = guard.digest_beside(program)
        if (known := self._known.get(key := (digest, tuple(program.sites)))) is None:
            self._check(program)
            known = AdmittedProgram(digest, program.sites, self._plan(guard, program.sites))
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = known
        unread = self._first_token.unread(tokens, guard)
        return known, None if known.plan is None else RequestGuard(known.plan, unread, guard.hold_back)

    def _plan(self, guard: Guard, program: Mapping[Site, SiteProgram]) -> Plan | None:
        readings = sum(len(rows.guards) for rows in program.values())
        if not readings and not guard.conditions:
            return None
        for place, each in enumerate(guard.conditions):
            if beyond := [reading for reading in each.condition.readings if reading >= readings]:
                raise FieldError(
                    f"guard.conditions[{place}]",
                    f"{each.name} looks at reading {min(beyond)}; the program has {readings} guards",
                )
            if bool(each.rows) is not (each.reaction is Reaction.EDIT):
                rows = "rows" if each.rows else "no rows"
                raise FieldError(
                    f"guard.conditions[{place}]", f"{each.name} has {rows}; its reaction is {each.reaction}"
                )
        plan = Plan(guard, program, self._step.sites)
        self._check(SteeringProgram(plan.everything))
        return plan

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
