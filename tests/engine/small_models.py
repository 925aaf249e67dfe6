"""Small random models of every family that Transformers knows, and what the engine makes of each.

The oracle is Transformers' own code with its eager attention, the whole text anew for every token.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from saegis_server.engine.api import CanaryError, SamplingParams
from saegis_server.engine.torch.attention import UnsupportedModelError
from saegis_server.engine.torch.build import build_step, make_ready
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine import tiny

#: What makes a model small, by the names that configurations give it.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), tiny.VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "top_k_experts", "moe_topk"), 2),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32
    ),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "swa_head_dim", "kv_channels"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), 12),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    "initializer_range": 0.15,
    "pad_token_id": 258,
    "bos_token_id": 256,
    "eos_token_id": tiny.EOS,
}


#: A configuration of which parts are not known by these names may be as large as the real one.
_MOST_WEIGHTS = 5_000_000
#: What a kind of models needs to be small beside its sizes.
_NEEDED: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "phi3": {"pad_token_id": 0},
}


@dataclass(frozen=True)
class SmallModel:
    """A configuration: its type in Transformers, what differs from the small one, how long a context is
    served, and of what lengths the prompts are."""

    kind: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    served: int = 128
    prompts: tuple[int, ...] = (40, 5, 17)

    def build(self) -> PreTrainedModel:
        """The model, random, its weights the same every time. Raises ValueError for one that is not small."""
        make: Any = AutoModelForCausalLM.from_config
        small = configuration(self.kind, {**_NEEDED.get(self.kind, {}), **self.changes})
        with torch.device("meta"):
            weights = sum(parameter.numel() for parameter in make(small).parameters())
        if weights > _MOST_WEIGHTS:
            raise ValueError(f"{self.kind} has {weights} weights")
        torch.manual_seed(0)
        made: PreTrainedModel = make(small, attn_implementation="eager")
        made.train(False).requires_grad_(False)
        for parameter in made.parameters():
            if parameter.ndim == 1 or not bool(parameter.any()):
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        return made


def configuration(kind: str, changes: Mapping[str, Any]) -> Any:
    """A small configuration of a type of models, with these changes: to its text part, if it has one."""
    configure: Any = CONFIG_MAPPING[kind]
    parts = {name: part for name, part in configure.sub_configs.items() if hasattr(part, "attribute_map")}
    if "text_config" not in configure.sub_configs or not parts:
        return _small(configure, changes)
    made = {name: _small(part, {}).to_dict() for name, part in parts.items() if name != "text_config"}
    text = parts.get("text_config") or type(configure().text_config)  # one that is not named by a class
    return configure(**made, text_config=_small(text, changes).to_dict())


def _small(configure: Any, changes: Mapping[str, Any]) -> Any:
    known, mapped = configure().to_dict(), configure.attribute_map
    own = known.keys() | mapped.keys()
    sizes = {mapped.get(name, name): size for name, size in _SIZES.items() if name in own}
    if "kv_lora_rank" in known:  # Where the keys of every head are made of one latent vector.
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return configure(**{**sizes, **copy.deepcopy(dict(changes))})


@dataclass
class Outcome:
    """What came of serving a model: `exact`, `refused` or `different`, and why."""

    word: str
    why: str = ""


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """What Transformers writes greedily, and how far apart the two best logits were each time."""
    tokens, gaps = list(prompt), []
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
            best = logits.topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :], gaps


def serve(small: SmallModel, names: tuple[str, ...], prompts: list[list[int]], count: int) -> list[list[int]]:
    """The greedy answers of the engine to all prompts at once, then to the first one alone."""
    model = small.build()
    loaded = LoadedModel(small.kind, model, tiny.tokenizer(), "", (tiny.EOS,), max(256, small.served))
    norms = dict.fromkeys(map(Site.parse, names), frozenset((Norm.NONE,)))
    wishes = Wishes(count=4, length=small.served)
    step = build_step(loaded, norms, wishes, Capacity(), False, lambda *_: None)
    make_ready(step, lambda *_: None, False)
    sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    with tiny.RunningEngine(step, max_running=4) as engine:
        asked = [engine.ask(prompt, sampling) for prompt in prompts]
        answers = [answer.wait(120).tokens() for answer in asked]
        return [*answers, engine.ask(prompts[0], sampling).wait(120).tokens()]


def outcome(small: SmallModel, names: tuple[str, ...] = ("layers.1.resid_post",), count: int = 12) -> Outcome:
    """Serve a model, and compare what it writes with what Transformers writes."""
    prompts = [tiny.prompt_of(seed, length) for seed, length in enumerate(small.prompts)]
    try:
        found = serve(small, names, prompts, count)
    except (UnsupportedModelError, CanaryError, ValueError) as error:
        return Outcome("refused", str(error))
    oracle = small.build()
    wanted = [greedy(oracle, prompt, count) for prompt in prompts]
    for mine, (theirs, gaps) in zip(found, (*wanted, wanted[0]), strict=True):
        if (at := first_difference(mine, theirs)) is not None and gaps[at] > 1e-3:
            return Outcome("different", f"at token {at}, where the two best logits are {gaps[at]:.3g} apart")
    return Outcome("exact")


def first_difference(one: list[int], other: list[int]) -> int | None:
    """Where two texts first differ."""
    return next((at for at, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), None)
