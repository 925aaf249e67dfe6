"""Admission: what a request must be for the engine to take it, checked before anything is queued."""

from collections.abc import Collection, Mapping, Sequence

from saegis_server.engine.api import AdmittedProgram, FieldError, FirstToken, GenerationRequest, Guard, admit
from saegis_server.engine.torch.plan import Plan
from saegis_server.engine.torch.request_guard import RequestGuard
from saegis_server.engine.torch.step import Step
from saegis_server.steering.program import SteeringProgram
from saegis_server.steering.site import Site

#: How many plans are kept.
_REMEMBERED = 64


class Admission:
    """Checks requests against what a step has: vocabulary, length, sites, room for rows."""

    def __init__(self, step: Step, first_token: FirstToken) -> None:
        self._step, self._first_token = step, first_token
        # By digest and by the order of sites, in which watches are told.
        self._plans: dict[tuple[str, tuple[Site, ...]], Plan] = {}

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
        admitted = admit(program, guard, self._step.slots.room)
        plan = self._plan(admitted)
        unread = self._first_token.unread(tokens, guard)
        return admitted, None if plan is None else RequestGuard(plan, unread, guard.hold_back)

    def _plan(self, admitted: AdmittedProgram) -> Plan | None:
        guard, rows = admitted.guard, admitted.rows
        if not guard.conditions and not any(at_site.guards for at_site in rows.values()):
            return None
        if (known := self._plans.get(key := (admitted.digest, tuple(rows)))) is None:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            known = self._plans[key] = Plan(guard, rows, self._step.slots.room)
        return known

    def _check_tokens(self, named: Mapping[str, Sequence[int]]) -> None:
        vocabulary = self._step.slots.vocabulary
        for field, ids in named.items():
            for position, token in enumerate(ids):
                if not 0 <= token < vocabulary:
                    raise FieldError(f"{field}[{position}]", f"{token} is not a token id below {vocabulary}")
