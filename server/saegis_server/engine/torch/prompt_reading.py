"""Reading texts: prompts a chunk at a time, then what a request gives of its answer, then its own tokens."""

from typing import NamedTuple

from saegis_server.engine.api import FirstToken
from saegis_server.engine.torch.guarding import Ending, Guarding
from saegis_server.engine.torch.seeing import Seen
from saegis_server.engine.torch.sequence import Sequence, extent_of
from saegis_server.engine.torch.step import SMALLEST, Step, StepOutput
from saegis_server.engine.torch.usage import UsageCounting


class Progress(NamedTuple):
    """How far the reading came: `output` where the sequence is at its first own token or can have none,
    `ending` where a condition ends it, `cost` in tokens of a chunk."""

    output: StepOutput | None
    ending: Ending | None
    cost: int


class PromptReading:
    """Reads the prompts of sequences that have a slot."""

    def __init__(
        self,
        step: Step,
        guarding: Guarding,
        chunk: int,
        first_token: FirstToken,
        usage: UsageCounting | None = None,
    ) -> None:
        """`chunk`: how many tokens are read at once; `first_token`: what is left out of statistics; `usage`:
        counts how features are used."""
        self._step, self._guarding, self._chunk = step, guarding, chunk
        self._first_token, self._usage = first_token, usage

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
            running.admitted.compiled,
            running.request.groups,
        )

    def advance(self, sequence: Sequence) -> Progress:
        """Read the next tokens of a prompt.

        A condition that comes to hold may leave the prompt to be read again, with further rows.
        """
        start, end = sequence.read, len(sequence.prompt)
        if start < sequence.answer_start and sequence.running.guard is not None:
            end = sequence.answer_start  # its conditions may have it read again before the answer is
        chunk = list(sequence.prompt[start : min(start + self._chunk, end)])
        whole = start + len(chunk) == len(sequence.prompt)
        output, ending = self._run(sequence, chunk, whole), None
        if sequence.running.reads_prompt:
            sequence.prompt_readings.add(self._step.sites, output.watched[:, 0], output.moved[:, 0])
        if self._usage is not None and sequence.index == 0:
            of_prompt = max(0, min(sequence.answer_start - start, len(chunk)))
            self._usage.count(self._step, output, len(chunk), of_prompt)
        sequence.read += len(chunk)
        if bool(output.finite[0]):
            ending = self._guarding.after_chunk(sequence, output)
            if sequence.read == 0:
                sequence.prompt_readings.clear()
            whole = whole and sequence.read > 0
        ended = whole or ending is not None or not bool(output.finite[0])
        return Progress(output if ended else None, ending, len(chunk))

    def write_on(self, sequence: Sequence) -> StepOutput:
        """Write the next token of a sequence whose prompt has been read, in a step of its own: it is read as
        one more token of a text is."""
        return self._step_of(sequence, [sequence.last_token], sequence.length, sequence.samples)

    def _run(self, sequence: Sequence, tokens: list[int], last: bool) -> StepOutput:
        left_out = self._first_token.left_out(sequence.prompt)
        seen = sequence.running.sight.within(sequence.read, sequence.read + len(tokens))
        return self._step_of(sequence, tokens, sequence.read, last and sequence.samples, left_out, seen)

    def _step_of(
        self,
        sequence: Sequence,
        tokens: list[int],
        start: int,
        sampled: bool,
        left_out: int = 0,
        seen: Seen | None = None,
    ) -> StepOutput:
        observed, guard = self._step.slots.observing.used, sequence.running.guard
        extent = extent_of(1, max(start + len(tokens), SMALLEST), [sequence], observed)
        return self._step.prefill(
            sequence.slot,
            tokens,
            start,
            extent,
            sampled,
            sequence.answer_start,
            sequence.running.unmoved,
            0 if guard is None else guard.unread,
            left_out,
            seen,
        )
