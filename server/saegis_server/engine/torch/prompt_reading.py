"""Reading prompts: a chunk at a time; what a request gives of its answer is judged token by token."""

from typing import NamedTuple

from saegis_server.engine.torch.guarding import Ending, Guarding
from saegis_server.engine.torch.sequence import Sequence, extent_of
from saegis_server.engine.torch.step import SMALLEST, Step, StepOutput

#: A token that is read by itself takes about as long as this share of a chunk.
_SINGLE_SHARE = 4


class Progress(NamedTuple):
    """How far the reading came: `output` where the sequence is at its first own token or can have none,
    `ending` where a condition ends it, `cost` in tokens of a chunk."""

    output: StepOutput | None
    ending: Ending | None
    cost: int


class PromptReading:
    """Reads the prompts of sequences that have a slot."""

    def __init__(self, step: Step, guarding: Guarding, chunk: int) -> None:
        """`chunk`: how many tokens are read at once."""
        self._step, self._guarding, self._chunk = step, guarding, chunk

    def load(self, sequence: Sequence) -> None:
        """Make its slot a sequence's own."""
        running = sequence.running
        self._step.slots.load(
            sequence.slot,
            sequence.prompt,
            running.request.sampling,
            sequence.seed,
            sequence.stops,
            running.program,
        )
        self._guarding.enter(sequence)

    def advance(self, sequence: Sequence) -> Progress:
        """Read the next tokens of a prompt.

        A condition that comes to hold may leave the prompt to be read again, with further rows.
        """
        start, end = sequence.read, len(sequence.prompt)
        if sequence.judges_given:
            if start >= sequence.answer_start:
                return self._advance_by_one(sequence)
            end = sequence.answer_start
        chunk = list(sequence.prompt[start : min(start + self._chunk, end)])
        last = start + len(chunk) == end
        whole = last and end == len(sequence.prompt)
        output = self._run(sequence, chunk, whole)
        sequence.read += len(chunk)
        ending = None
        if bool(output.finite[0]) and sequence.seat is not None:
            ending = self._guarding.after_chunk(sequence, output, len(chunk), last)
            whole = whole and sequence.read > 0
        return self._progress(output, ending, whole, len(chunk))

    def _advance_by_one(self, sequence: Sequence) -> Progress:
        """Read the next token of what is given of the answer."""
        sequence.last_token = sequence.prompt[sequence.read]
        last = sequence.read + 1 == len(sequence.prompt)
        output = self._run(sequence, [sequence.last_token], last)
        ending = None
        if bool(output.finite[0]):
            ending = self._guarding.after_given(sequence, output, last and sequence.samples)
        sequence.read += 1
        return self._progress(output, ending, last, max(1, self._chunk // _SINGLE_SHARE))

    def _run(self, sequence: Sequence, tokens: list[int], last: bool) -> StepOutput:
        start = sequence.read
        extent = extent_of(1, max(start + len(tokens), SMALLEST), [sequence])
        return self._step.prefill(
            sequence.slot,
            tokens,
            start,
            extent,
            last and sequence.samples,
            sequence.answer_start,
            sequence.running.unmoved,
        )

    @staticmethod
    def _progress(output: StepOutput, ending: Ending | None, whole: bool, cost: int) -> Progress:
        ended = whole or ending is not None or not bool(output.finite[0])
        return Progress(output if ended else None, ending, cost)
