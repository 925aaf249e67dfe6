"""Tiny random models of several families, a byte-level tokenizer, and engines on them."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from saegis_server.engine.api import (
    FirstToken,
    Limits,
)
from saegis_server.engine.torch.engine import TorchEngine
from saegis_server.engine.torch.seeing import TowerEyes
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import Step
from saegis_server.engine.torch.usage import UsageCounting
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine.serving import Asked

VOCABULARY = 260
WIDTH = 48
EOS = 257
PLAIN = frozenset({Norm.NONE})
SITES = {
    Site.parse(name): PLAIN for name in ("layers.0.mlp_out", "layers.1.resid_post", "layers.2.resid_pre")
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


def model(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of three layers whose logits differ enough for greedy decoding to be stable.

    changes: to its configuration.
    """
    torch.manual_seed(seed)
    configure: Any = CONFIG_MAPPING[family]
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "bos_token_id": 256,
        "eos_token_id": EOS,
        "pad_token_id": 258,
    }
    config = configure(**copy.deepcopy({**settings, **_FAMILIES[family], **changes}))
    make: Any = AutoModelForCausalLM.from_config
    made: PreTrainedModel = make(config, attn_implementation="eager")
    made.train(False)
    assert made.generation_config is not None
    made.generation_config.eos_token_id = None  # `generate` shall write as many tokens as it is asked for
    return made


def step(
    on: PreTrainedModel,
    slots: int = 8,
    length: int = 160,
    compiled: bool = False,
    keeps: Iterable[Site] = (),
    ranked: Mapping[Site, SparseAutoencoder] | None = None,
    eyes: TowerEyes | None = None,
) -> Step:
    """A step on `on` with the tests' sites, and SAEs that decide by rank at some of them."""
    at_sites = {site: [sae.ranked(on.device)] for site, sae in (ranked or {}).items()}
    known = {site: [each for each in at_site if each is not None] for site, at_site in at_sites.items()}
    sites = {
        site: norms | {known_at.norm for known_at in known.get(site, ())} for site, norms in SITES.items()
    }
    held = Slots(on, tuple(SITES), slots, length, Capacity(), ranked=known)
    return Step(on, sites, held, compiled, keeps, eyes=eyes)


class RunningEngine(Asked):
    """The embedded engine with helpers for tests, and what it is made of."""

    engine: TorchEngine

    def __init__(
        self,
        on: Step,
        max_running: int = 8,
        limits: Limits | None = None,
        first_token: FirstToken | None = None,
        eos: int = EOS,
        usage: UsageCounting | None = None,
        batch_invariant: bool = False,
    ) -> None:
        chosen = limits or Limits(prefill_chunk=16)
        engine = TorchEngine(
            on,
            tokenizer(),
            (eos,),
            max_running,
            chosen,
            first_token,
            usage=usage,
            batch_invariant=batch_invariant,
        )
        super().__init__(engine)
        self.step = on

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.engine._schedule.check()
        assert not self.engine.step.slots.conditions._used
        assert self.engine._schedule.idle


def prompt_of(seed: int, length: int) -> list[int]:
    """A random prompt."""
    rng = torch.Generator().manual_seed(seed)
    return [int(token) for token in torch.randint(0, 256, (length,), generator=rng)]
