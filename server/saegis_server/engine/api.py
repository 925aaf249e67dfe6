"""What an engine is: its requests, events, limits and errors, and the protocol that it meets.

Whoever uses an engine imports this module and those beside it, but nothing of a folder below: `readouts` for
what is told of single tokens, `receipts` for what is told of whole requests, `counts` for what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple, Protocol

from torch import Tensor

from saegis_server.engine.counts import Firing, Observed, RowGroup, RowName, Used
from saegis_server.engine.pictures import Placed
from saegis_server.engine.readouts import NO_READOUTS, PromptRead, Readouts, TokenOutput
from saegis_server.engine.receipts import Receipt, Timings, Usage
from saegis_server.steering.conditions import Condition
from saegis_server.steering.digest import digest_of
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringProgram
from saegis_server.steering.rows import Edit
from saegis_server.steering.site import Site, forward_order
from saegis_server.steering.table import Capacity

#: The most alternatives that a token's logprobs may carry.
MAX_LOGPROBS = 20


class FinishReason(StrEnum):
    """Why a sequence ended; the names are OpenAI's."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    CONTENT_FILTER = "content_filter"


class FieldError(ValueError):
    """A field of a request that cannot be accepted; `field` is its path, e.g. `sampling.top_p`."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop, with vLLM's names and meanings.

    `logprobs` is the number of top alternatives to report (0: the chosen token's alone; None: none).
    temperature 0 is greedy. top_k 0 means no limit. Raises FieldError for values out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        def check(name: str, valid: bool, description: str) -> None:
            if not valid:
                raise FieldError(f"sampling.{name}", f"{description}, not {getattr(self, name)}")

        check("temperature", 0.0 <= self.temperature <= 100.0, "must be between 0 and 100")
        check("top_p", 0.0 < self.top_p <= 1.0, "must be above 0 and at most 1")
        check("top_k", self.top_k >= 0, "must not be negative")
        check("min_p", 0.0 <= self.min_p <= 1.0, "must be between 0 and 1")
        check("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "must be between -2 and 2")
        check("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "must be between -2 and 2")
        check("repetition_penalty", 0.01 <= self.repetition_penalty <= 100.0, "must be between 0.01 and 100")
        check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "must be at least 1")
        check("min_tokens", self.min_tokens >= 0, "must not be negative")
        within = self.max_tokens is None or self.min_tokens <= self.max_tokens
        check("min_tokens", within, f"must be at most max_tokens ({self.max_tokens})")
        check("n", 1 <= self.n <= 64, "must be between 1 and 64")
        check("seed", self.seed is None or 0 <= self.seed < 2**64, "must be between 0 and 2^64 - 1")
        in_range = self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS
        check("logprobs", in_range, f"must be between 0 and {MAX_LOGPROBS}")
        if len(self.stop) > 16:
            raise FieldError("sampling.stop", f"at most 16 stop strings, not {len(self.stop)}")
        for position, text in enumerate(self.stop):
            if not 0 < len(text) <= 256:
                raise FieldError(f"sampling.stop[{position}]", "must have between 1 and 256 characters")
        for token, bias in self.logit_bias.items():
            if not (math.isfinite(bias) and abs(bias) <= 100.0):
                raise FieldError(f"sampling.logit_bias[{token}]", f"must be between -100 and 100, not {bias}")

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the next token is simply the likeliest, and nothing about it need be told."""
        return (
            self.temperature == 0.0
            and self.presence_penalty == 0.0
            and self.frequency_penalty == 0.0
            and self.repetition_penalty == 1.0
            and not self.logit_bias
            and self.min_tokens == 0
            and self.logprobs is None
        )


class Reaction(StrEnum):
    """What follows when a condition comes to hold.

    STOP ends the sequence before the token of that step is told; text that was held back, such as half a
    character, is not told either. REFUSE fails the request before its first own token; in the answer, where
    that is too late, it is STOP. EDIT puts further rows in force from that very token on: the step is taken
    again with them, so no token comes of a step without them; a prompt is read again from its start. The rows
    of a condition that is not sticky leave after the first token at which it does not hold. RECORD counts.
    """

    RECORD = "record"
    STOP = "stop"
    REFUSE = "refuse"
    EDIT = "edit"


@dataclass(frozen=True)
class Guarded:
    """One condition and what follows from it.

    name: tells it apart from others of the request in receipts, such as "policy/rule". message: of REFUSE.
    rows: of EDIT, by site; only `rules` and `bans` of them are used, in addition to the program's own.
    """

    name: str
    condition: Condition
    reaction: Reaction
    message: str = ""
    rows: Mapping[Site, SiteProgram] = field(default_factory=dict)


@dataclass(frozen=True)
class Guard:
    """All conditions of a request. Their readings are the `guards` of its program, see `Condition`.

    reads_first_token: whether they read a text's first token also where it is the model's own
    beginning-of-sequence token. hold_back: how many tokens, itself the first, have been judged, by being
    read, before a token is told; 0: it is told at once. What stops an answer at a token then keeps so many
    back. The model's own end tokens, which are no text, are told at once, with all that was held back.
    """

    conditions: tuple[Guarded, ...] = ()
    reads_first_token: bool = False
    hold_back: int = 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every condition, with its thresholds and its rows, and of what else it says."""
        return digest_of(self)

    def digest_beside(self, program: SteeringProgram) -> str:
        """What names all that may act on a request with this program: the program's own digest without a
        guard, with one that of both."""
        return program.digest if self == UNGUARDED else digest_of((program.digest, self.digest))


#: The guard of a request that nobody watches over.
UNGUARDED = Guard()


def rows_of(program: SteeringProgram, guard: Guard) -> Iterator[tuple[RowName, Edit]]:
    """Every row that may act under a program beside a guard, with its name."""
    conditional = ((number, each.rows) for number, each in enumerate(guard.conditions, start=1))
    for when, by_site in ((0, program.sites), *conditional):
        for site, rows in by_site.items():
            for stage, edits in rows.stages():
                for edit in edits:
                    yield RowName(site, stage, edit.probe.key, when), edit


def moving_sites(program: SteeringProgram, guard: Guard) -> tuple[Site, ...]:
    """The sites at which any row may act under a program beside a guard, in the order of the forward pass."""
    return tuple(sorted({name.site for name, _ in rows_of(program, guard)}, key=forward_order))


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request: prompt token ids, how to sample and to steer, and until when (time.monotonic seconds).

    request_id: unique among all that run, whoever asks. guard: the conditions under which its operator
    steers it otherwise, stops it or refuses it. tenant, principal: on whose account it runs, with whose
    others it takes turns. prefilled: how many of the prompt's last tokens are the beginning of the answer,
    which the request gives: rows and conditions take them for what they are. pictures: those of the prompt,
    in their order. groups: of the rows, those that
    are counted together, in `Receipt.acted`; at most `Engine.most_groups`.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    program: SteeringProgram = UNSTEERED
    deadline: float | None = None
    guard: Guard = UNGUARDED
    tenant: str = ""
    principal: str = ""
    prefilled: int = 0
    groups: tuple[RowGroup, ...] = ()
    readouts: Readouts = NO_READOUTS
    pictures: tuple[Placed, ...] = ()

    @property
    def answer_start(self) -> int:
        """Where the answer begins: what the request gives of it belongs to the prompt's tokens."""
        return len(self.prompt) - self.prefilled


@dataclass(frozen=True, slots=True)
class Delta:
    """New text and tokens of sequence `index` (0 .. n−1); text may lag behind its tokens."""

    index: int
    text: str
    tokens: tuple[TokenOutput, ...]


@dataclass(frozen=True, slots=True)
class SequenceFinished:
    """Sequence `index` ended, and why; `stop_token` or `stop_string` is what it stopped on."""

    index: int
    reason: FinishReason
    stop_token: int | None = None
    stop_string: str | None = None


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """The last event of a request that ran to its end (also when all its sequences were aborted).

    reasons: how each sequence ended; None for one that an error cut off. tokens: how many each one was told.
    prompt_read: how many tokens of its prompt were read, in the sequence that came furthest. firing: what the
    features did that were observed when it ended, by site and key; the tokens that FirstToken.left_out counts
    are left out, those of the prompt count once, however many completions there are.
    """

    usage: Usage
    receipt: Receipt
    timings: Timings
    reasons: tuple[FinishReason | None, ...] = ()
    tokens: tuple[int, ...] = ()
    prompt_read: int = 0
    firing: Mapping[tuple[Site, str], Firing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The last event of a request that could not be completed; `done` is what was done until then."""

    error: EngineError
    done: RequestFinished


#: How a request ended: its last event.
Closing = RequestFinished | RequestFailed
Event = PromptRead | Delta | SequenceFinished | Closing
#: Takes a request's events, in order; runs on the engine's thread and must not block.
Sink = Callable[[list[Event]], None]
#: Told how far a stage of a start has come: its name, what is done, out of how much (0: not known).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Score:
    """How likely the tokens of a text of T tokens are; natural logarithms, T − 1 numbers in each tuple.

    Entry i is of token i + 1, given tokens 0 to i: its log probability as steered and plainly, which is under
    the baseline, and KL(plain ‖ steered) of the two distributions in nats. The receipt is of the steered
    reading of all T.
    """

    logprobs: tuple[float, ...]
    plain_logprobs: tuple[float, ...]
    divergences: tuple[float, ...]
    receipt: Receipt
    timings: Timings


class Baseline(NamedTuple):
    """What the plain reading of a text is under: a program, and a guard beside it. By default, nothing."""

    program: SteeringProgram = UNSTEERED
    guard: Guard = UNGUARDED


#: The model as it is.
AS_IT_IS = Baseline()


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Where a text begins with `bos`, that one token is left out, unless the server or a request asks for it.

    It sees nothing before it, so it is the same in every text and says nothing of any; and an SAE has hardly
    learnt it, so that a large share of its features fires there.

    bos: the model's own; None for one that has none, all of whose tokens are alike. moved: rows move it, for
    everybody; read: conditions, contrasts and statistics read it.
    """

    bos: int | None = None
    moved: bool = False
    read: bool = False

    def unmoved(self, tokens: Sequence[int], program: SteeringProgram) -> int:
        """How many of the tokens that a text begins with no row moves: 0 or 1."""
        return 0 if self.moved or program.moves_first_token else self.begins(tokens)

    def unread(self, tokens: Sequence[int], guard: Guard) -> int:
        """How many of the tokens that a text begins with no condition reads: 0 or 1."""
        return 0 if guard.reads_first_token else self.left_out(tokens)

    def left_out(self, tokens: Sequence[int]) -> int:
        """How many of the tokens that a text begins with are left out of statistics: 0 or 1."""
        return 0 if self.read else self.begins(tokens)

    def begins(self, tokens: Sequence[int]) -> int:
        """How many tokens of a text are the model's own beginning of a sequence: 0 or 1."""
        return int(len(tokens) > 0 and tokens[0] == self.bos)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the engine takes on: sequences that may wait, prompt tokens a chunk and between two steps.

    fair_share: the share of the queue that a caller may fill while the queue is full. fair_slots: slots kept
    for tenants that had one within `fair_seconds` and have none now; by default an eighth of all.
    """

    queue: int = 256
    fair_share: float = 0.25
    fair_slots: int | None = None
    fair_seconds: float = 60.0
    prefill_chunk: int = 256
    prefill_between_steps: int = 512


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine is doing now. Token counts are of the KV cache; the rate is of the last seconds.

    recompilations: what was compiled since the warm-up, which should be nothing. device_bytes: the memory of
    the accelerator that is taken, and device_bytes_max what it has; None where the CPU runs the model.
    """

    running: int
    waiting: int
    used_tokens: int
    max_total_tokens: int
    tokens_per_second: float
    max_running: int
    queue_limit: int
    steps: int
    recompilations: int = 0
    device_bytes: int | None = None
    device_bytes_max: int | None = None


class EngineError(Exception):
    """Why the engine could not serve a request."""


class QueueFullError(EngineError):
    """The queue holds as many sequences as it may; `retry_after` is in seconds."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} sequences are waiting already")
        self.retry_after = retry_after


class DuplicateRequestError(EngineError):
    """A request of this id is in flight."""


class DeadlineExceededError(EngineError):
    """The deadline passed before the request was done."""


class EngineStoppedError(EngineError):
    """The engine is stopping or has failed; nothing more is accepted."""


class OutOfMemoryError(EngineError):
    """There was no memory for a request's own work; the others go on."""


class SteeringDivergedError(EngineError):
    """A request's own edits drove its activations to values that are not finite."""


class NonFiniteLogitsError(EngineError):
    """The model gave logits that are not finite, and the request did not steer it."""


class RefusedByPolicyError(EngineError):
    """A condition of the guard, of this name, refuses the request; `message` is what the operator says."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


class CanaryError(RuntimeError):
    """Steering does not do what it must at a site; the server must not serve."""


class FidelityError(CanaryError):
    """The served path gives other numbers than Transformers' own code."""


class Engine(Protocol):
    """Writes answers, scores texts and reads activations, each request steered by a program of its own.

    Threads: every method may be called from any thread. `submit`, `score` and `capture` check what they are
    given, queue it and return, without waiting for the model. Sinks and `on_end` are called on a thread of
    the engine, where nothing may block.

    Errors: what cannot be accepted is raised by the call, and then no event comes of it. FieldError and
    SteeringError are the request's fault, QueueFullError and DuplicateRequestError pass, EngineStoppedError
    does not. What goes wrong later is the error of the RequestFailed that ends the request, or the future's:
    DeadlineExceededError, OutOfMemoryError, SteeringDivergedError, NonFiniteLogitsError, RefusedByPolicyError
    or EngineStoppedError, and another EngineError for what fits none of them. It is that request's alone.

    Events: a sink gets lists that are not empty. Of each sequence Deltas come in the order of its tokens, and
    then one SequenceFinished, unless an error cut it off; those of several sequences are mixed. Right before
    the first Delta, in one list with it, comes a PromptRead where it is asked for. Last comes one
    RequestFinished or RequestFailed, whatever happens, with the receipt of all that was done, and nothing
    after it; from then on the request's id is free again. The first events may come before `submit` returns.
    A sink that raises has its request cancelled.

    Company: what others ask changes neither a request's tokens nor its receipt, beyond the rounding of sums
    of another shape; a seed gives the same tokens alone and in company.

    A life is `warm_up`, `start`, requests, `stop`; what is submitted before the start waits for it. Every
    engine is held to this by tests/engine/conformance.
    """

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where programs may act and read."""

    @property
    def capacity(self) -> Capacity:
        """How many rows of each kind a program may have at a site."""

    @property
    def max_length(self) -> int:
        """How many tokens a prompt and its answer may have together."""

    @property
    def limits(self) -> Limits:
        """How much it takes on."""

    @property
    def most_groups(self) -> int:
        """How many groups of rows a request may have counted."""

    def observe(self, features: Sequence[Observed]) -> None:
        """Observe these features from the next step on, in place of those before.

        What was counted of a feature that stays goes on being counted. Raises ValueError for a site that the
        engine does not have, and for more features at one than it has room for, which is 256 or more.
        """

    def take_usage(self) -> Mapping[str, Used]:
        """How the features of each of its dictionaries were used since this was last called, by name.

        Which tokens are counted: those of a sample of the steps that read prompts and write answers, as each
        step had them, but for what FirstToken.left_out leaves out. Of several answers to one prompt the
        first one's reading of it counts. Some tokens may be counted a little later, all of them once nothing
        runs. No step waits for this; it may take some milliseconds.
        """

    @property
    def first_token(self) -> FirstToken:
        """What it does at a text's first token."""

    @property
    def compiled(self) -> bool:
        """Whether what it runs is compiled; settled by the warm-up."""

    @property
    def error(self) -> BaseException | None:
        """What the engine died of by itself; None while it has not."""

    def warm_up(self, progress: Progress) -> None:
        """Do once, before the start, what the first requests would wait for; prove that steering is exact.

        Raises CanaryError where it is not, and whatever else keeps the engine from being ready.
        """

    def start(self) -> None:
        """Begin to serve."""

    def stop(self) -> None:
        """Serve no more; return once what is in flight has failed with EngineStoppedError."""

    def submit(self, request: GenerationRequest, on_events: Sink) -> None:
        """Queue a request, whose events `on_events` gets.

        Raises FieldError or SteeringError for what cannot be run, DuplicateRequestError, QueueFullError,
        EngineStoppedError. Bans that were not admitted before are worked out here, which takes milliseconds.
        """

    def cancel(self, request_id: str) -> None:
        """Abort a request; its sequences end with FinishReason.ABORT. Unknown ids are ignored."""

    def score(
        self,
        tokens: Sequence[int],
        program: SteeringProgram = UNSTEERED,
        guard: Guard = UNGUARDED,
        plain: Baseline = AS_IT_IS,
        on_end: Callable[[Closing], None] | None = None,
        tenant: str = "",
        groups: tuple[RowGroup, ...] = (),
        prefilled: int = 0,
        pictures: Sequence[Placed] = (),
    ) -> Future[Score]:
        """How likely a text of at least two tokens is, steered by a program and under a baseline.

        The text is steered and judged as a prompt, and its last `prefilled` tokens as the beginning of an
        answer; what would stop an answer refuses the text. `groups` are counted as those of a request,
        `pictures` are those of the text.
        `on_end` hears how it ended before the future does, and must not raise. Cancelling the future ends the
        reading. Raises as `submit` does; the future, SteeringDivergedError, NonFiniteLogitsError,
        OutOfMemoryError, RefusedByPolicyError or EngineStoppedError.
        """

    def capture(
        self, tokens: Sequence[int], tenant: str = "", pictures: Sequence[Placed] = ()
    ) -> Future[dict[Site, Tensor]]:
        """The clean activations [T, d] of a text with its pictures at every site, float of the model's dtype.

        While requests run it is read in one of many steps, so that hardly a token of theirs waits for it.
        Raises FieldError for pictures that do not stand where their tokens are, QueueFullError,
        EngineStoppedError.
        """

    def stats(self) -> EngineStats:
        """What it is doing now."""
