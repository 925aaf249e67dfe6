"""Tiny random models of several families, a byte-level tokenizer, and engines on them."""

import copy
import threading
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from saegis_server.engine.api import (
    UNGUARDED,
    Delta,
    Event,
    FirstToken,
    GenerationRequest,
    Guard,
    Limits,
    RequestFailed,
    RequestFinished,
    SamplingParams,
    SequenceFinished,
    TokenOutput,
)
from saegis_server.engine.sites import Site
from saegis_server.engine.torch.engine import TorchEngine
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import Step
from saegis_server.steering.program import UNSTEERED, SteeringProgram
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import Capacity

VOCABULARY = 260
WIDTH = 48
EOS = 257
PLAIN = frozenset({Norm.NONE})
SITES = {
    Site.parse(name): PLAIN for name in ("layers.1.resid_post", "layers.0.mlp_out", "layers.2.resid_pre")
}

_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 12},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 12, "sliding_window": 12, "query_pre_attn_scalar": 12},
    "olmo2": {"num_key_value_heads": 2},
    "gpt2": {},
    "gpt_neox": {},
}
FAMILIES = tuple(_FAMILIES)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, then three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    make: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = make(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return made


def model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model of three layers whose logits differ enough for greedy decoding to be stable."""
    torch.manual_seed(seed)
    configure: Any = CONFIG_MAPPING[family]
    config = configure(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=256,
        eos_token_id=EOS,
        pad_token_id=258,
        **copy.deepcopy(_FAMILIES[family]),
    )
    make: Any = AutoModelForCausalLM.from_config
    made: PreTrainedModel = make(config, attn_implementation="eager")
    made.train(False)
    assert made.generation_config is not None
    made.generation_config.eos_token_id = None  # `generate` shall write as many tokens as it is asked for
    return made


def step(on: PreTrainedModel, slots: int = 8, length: int = 160, compiled: bool = False) -> Step:
    """A step on `on` with the tests' sites."""
    return Step(on, SITES, Slots(on, tuple(SITES), slots, length, Capacity()), compiled)


class Answer:
    """The events of one request, gathered."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._done = threading.Event()

    def __call__(self, events: list[Event]) -> None:
        self.events.extend(events)
        if isinstance(self.events[-1], RequestFinished | RequestFailed):
            self._done.set()

    def wait(self, seconds: float = 60.0) -> "Answer":
        """Wait for the last event."""
        assert self._done.wait(seconds), "the request did not end"
        return self

    def outputs(self, index: int = 0) -> list[TokenOutput]:
        """The tokens of one sequence."""
        deltas = [event for event in self.events if isinstance(event, Delta) and event.index == index]
        return [output for delta in deltas for output in delta.tokens]

    def tokens(self, index: int = 0) -> list[int]:
        """The token ids of one sequence."""
        return [output.token_id for output in self.outputs(index)]

    def text(self, index: int = 0) -> str:
        """The text of one sequence."""
        return "".join(
            event.text for event in self.events if isinstance(event, Delta) and event.index == index
        )

    def ending(self, index: int = 0) -> SequenceFinished:
        """How one sequence ended."""
        (ending,) = [
            event for event in self.events if isinstance(event, SequenceFinished) and event.index == index
        ]
        return ending

    @property
    def finished(self) -> RequestFinished:
        """The last event of a request that was served."""
        last = self.events[-1]
        assert isinstance(last, RequestFinished), last
        return last

    @property
    def failed(self) -> RequestFailed:
        """The last event of a request that was not."""
        last = self.events[-1]
        assert isinstance(last, RequestFailed), last
        return last


class RunningEngine(TorchEngine):
    """An engine with helpers for tests; use as a context manager."""

    def __init__(
        self,
        on: Step,
        max_running: int = 8,
        limits: Limits | None = None,
        first_token: FirstToken | None = None,
    ) -> None:
        chosen = limits or Limits(prefill_chunk=16)
        super().__init__(on, tokenizer(), (EOS,), max_running, chosen, first_token)
        self._made = 0

    def __enter__(self) -> "RunningEngine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._schedule.check()
        assert self._guarding.idle
        assert self._schedule.idle
        assert self.stats().waiting == 0

    def ask(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        program: SteeringProgram = UNSTEERED,
        request_id: str | None = None,
        deadline: float | None = None,
        guard: Guard = UNGUARDED,
        prefilled: int = 0,
    ) -> Answer:
        """Submit a request, greedy with 24 tokens if not told otherwise."""
        self._made += 1
        chosen = sampling or SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        answer = Answer()
        name = request_id or f"request-{self._made}"
        request = GenerationRequest(
            name, tuple(prompt), chosen, program, deadline, guard, prefilled=prefilled
        )
        self.submit(request, answer)
        return answer


def prompt_of(seed: int, length: int) -> list[int]:
    """A random prompt."""
    rng = torch.Generator().manual_seed(seed)
    return [int(token) for token in torch.randint(0, 256, (length,), generator=rng)]
