"""Admission: what a request must be for the engine to take it, checked before anything is queued."""

from collections.abc import Collection, Mapping, Sequence

from saegis_server.engine.admission import AdmittedProgram, admit
from saegis_server.engine.api import FieldError, GenerationRequest, Guard
from saegis_server.engine.pictures import Placed, misplaced
from saegis_server.engine.torch.activity import MOST_GROUPS
from saegis_server.engine.torch.slots import Slots
from saegis_server.steering.program import SteeringProgram


class Admission:
    """Checks requests against what slots have: vocabulary, length, sites, room for rows."""

    def __init__(self, slots: Slots, placeholder: int | None = None) -> None:
        """placeholder: the token that stands for pictures; None for a model that sees none."""
        self._slots, self._placeholder = slots, placeholder

    def generation(self, request: GenerationRequest, stops: Collection[int]) -> AdmittedProgram:
        """The program of a generation beside its guard.

        stops: the tokens that end its text. Raises FieldError or SteeringError for what cannot be run.
        """
        prompt, sampling, longest = request.prompt, request.sampling, self._slots.max_length
        if not prompt:
            raise FieldError("prompt", "must not be empty")
        if len(prompt) >= longest:
            raise FieldError(
                "prompt", f"has {len(prompt)} tokens; at most {longest - 1} leave room for an answer"
            )
        _check_prefilled(request.prefilled, prompt)
        self.check_pictures(prompt, request.pictures)
        self._check_tokens(
            {
                "prompt": prompt,
                "sampling.stop_token_ids": sampling.stop_token_ids,
                "sampling.logit_bias": tuple(sampling.logit_bias),
            }
        )
        vocabulary = self._slots.vocabulary
        if sampling.min_tokens > 0 and len(set(stops).intersection(range(vocabulary))) == vocabulary:
            raise FieldError(
                "sampling.min_tokens",
                f"is {sampling.min_tokens}, but every token of the vocabulary ends the text: none is left",
            )
        if len(request.groups) > MOST_GROUPS:
            raise FieldError("groups", f"at most {MOST_GROUPS} can be counted, not {len(request.groups)}")
        return admit(request.program, request.guard, self._slots.room)

    def text(
        self, tokens: Sequence[int], prefilled: int, program: SteeringProgram, guard: Guard
    ) -> AdmittedProgram:
        """The program under which a text is scored, beside its guard; raises as `generation` does."""
        longest = self._slots.max_length
        if len(tokens) < 2:
            raise FieldError("prompt", f"must have at least 2 tokens to be scored, not {len(tokens)}")
        if len(tokens) > longest:
            raise FieldError("prompt", f"has {len(tokens)} tokens; at most {longest} can be scored at once")
        _check_prefilled(prefilled, tokens)
        self._check_tokens({"prompt": tokens})
        return admit(program, guard, self._slots.room)

    def check_pictures(self, tokens: Sequence[int], pictures: Sequence[Placed]) -> None:
        """Raise FieldError unless pictures stand where their tokens are, and the placeholder nowhere else."""
        if fault := misplaced(tokens, pictures, self._placeholder):
            raise FieldError("prompt", fault)

    def _check_tokens(self, named: Mapping[str, Sequence[int]]) -> None:
        vocabulary = self._slots.vocabulary
        for field, ids in named.items():
            for position, token in enumerate(ids):
                if not 0 <= token < vocabulary:
                    raise FieldError(f"{field}[{position}]", f"{token} is not a token id below {vocabulary}")


def _check_prefilled(prefilled: int, tokens: Sequence[int]) -> None:
    if not 0 <= prefilled < len(tokens):
        raise FieldError("prompt", f"cannot end with {prefilled} tokens of the answer")
