"""The table of models: which are served exactly, with which places, and which are refused and why.

`tests/engine/test_models.py` tries each row; `scripts/gen_models.py` writes docs/models.md from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saegis_server.steering.site import Place
from tests.engine.small_models import SmallModel

#: Where attention and the MLP read the same stream, and where what they add is no summand of it.
_PARALLEL = frozenset((Place.RESID_MID,))
_PARTS = frozenset((Place.ATTN_OUT, Place.MLP_OUT, Place.MLP_IN_TO_OUT))
_MIXED = ["sliding_attention", "full_attention"]
_LONG: Mapping[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": 48,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "rope_theta": 1e4,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Row:
    """A row: the model, what people call it, what is special about it, and what is promised.

    lacks: the places that it does not have. refused: words of the refusal of a model that is not served.
    """

    name: str
    special: str
    small: SmallModel
    lacks: frozenset[Place] = frozenset()
    refused: str | None = None

    def __str__(self) -> str:
        return f"{self.small.kind}, {self.special}" if self.special else self.small.kind


def _row(
    name: str, kind: str, special: str = "", *, lacks: frozenset[Place] = frozenset(), **changes: Any
) -> Row:
    return Row(name, special, SmallModel(kind, changes), lacks)


def _not(name: str, kind: str, refused: str, special: str = "", **changes: Any) -> Row:
    return Row(name, special, SmallModel(kind, changes), refused=refused)


def _served(row: Row, served: int, *prompts: int) -> Row:
    small = SmallModel(row.small.kind, row.small.changes, served, prompts or row.small.prompts)
    return Row(row.name, row.special, small, row.lacks, row.refused)


def _long(special: str) -> Row:
    return _row("Phi 3, long", "phi3", special, rope_parameters=_LONG, original_max_position_embeddings=48)


TABLE: tuple[Row, ...] = (
    _row("Llama 2", "llama"),
    _row("Llama 3.1", "llama", "RoPE of the kind llama3", rope_parameters=_LLAMA3),
    _row("Llama with YaRN", "llama", "RoPE of the kind yarn", rope_parameters=_YARN),
    _row(
        "Llama with dynamic NTK",
        "llama",
        "RoPE of the kind dynamic",
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    ),
    _row("Llama, tied", "llama", "tied embeddings", tie_word_embeddings=True),
    _row("Llama 4", "llama4_text", "chunked attention", lacks=_PARTS - {Place.ATTN_OUT}),
    _row("Mistral", "mistral", "windows"),
    _row("Mistral without windows", "mistral", "no windows", sliding_window=None),
    _row("Ministral", "ministral", "windows and whole layers", layer_types=_MIXED),
    _row("Mixtral", "mixtral", "experts"),
    _row("Qwen 2", "qwen2"),
    _row(
        "Qwen 2 with windows",
        "qwen2",
        "windows and whole layers",
        use_sliding_window=True,
        max_window_layers=1,
    ),
    _row(
        "Qwen 2 MoE with windows",
        "qwen2_moe",
        "experts, windows",
        use_sliding_window=True,
        max_window_layers=0,
    ),
    _row("Qwen 3", "qwen3"),
    _row("Qwen 3 MoE", "qwen3_moe", "experts"),
    _row("Gemma", "gemma"),
    _row("Gemma 2", "gemma2", "windows, norms after, soft caps"),
    _row("Gemma 3", "gemma3_text", "windows, norms after, two RoPEs", layer_types=_MIXED),
    _row("Gemma 3, multimodal", "gemma3", "its text part", layer_types=_MIXED),
    _row("Phi 2", "phi", "parallel layers", lacks=_PARALLEL),
    _row("Phi 3", "phi3", "windows"),
    _served(_long("longrope, its original length"), 48, 30, 5, 17),
    _served(_long("longrope, past its original length"), 128, 60, 49, 77),
    _row("Phi 3.5 MoE", "phimoe", "experts, windows"),
    _row("OLMo", "olmo"),
    _row("OLMo 2", "olmo2", "norms after"),
    _row("OLMo 3", "olmo3", "windows, norms after", layer_types=_MIXED),
    _row("OLMoE", "olmoe", "experts"),
    _row("GPT-2", "gpt2"),
    _row("Pythia", "gpt_neox", "parallel layers", lacks=_PARALLEL),
    _row("GPT-NeoX, in turn", "gpt_neox", "no parallel layers", use_parallel_residual=False),
    _row("StarCoder", "gpt_bigcode", "one key head"),
    _row("StarCoder 2", "starcoder2"),
    _row("GPT-OSS", "gpt_oss", "sinks, experts, windows", layer_types=_MIXED),
    _row("StableLM", "stablelm"),
    _row("Command R", "cohere", "parallel layers", lacks=_PARALLEL),
    _row("Command R7B", "cohere2", "parallel layers, windows", lacks=_PARALLEL, layer_types=_MIXED),
    _row("Granite", "granite", "scales what layers add", lacks=_PARTS, residual_multiplier=0.3),
    _row("Granite MoE", "granitemoe", "experts", lacks=_PARTS, residual_multiplier=0.3),
    _row("GLM", "glm"),
    _row("GLM 4", "glm4", "norms after"),
    _row("GLM 4 MoE", "glm4_moe", "experts"),
    _row("DeepSeek V2", "deepseek_v2", "latent attention"),
    _row("DeepSeek V3", "deepseek_v3", "latent attention, experts"),
    _row("MiniCPM 3", "minicpm3", "latent attention", lacks=_PARTS),
    _row("EXAONE 4", "exaone4", "norms after", layer_types=_MIXED),
    _row("SmolLM 3", "smollm3", "layers without RoPE"),
    _row("Seed-OSS", "seed_oss"),
    _row("ERNIE 4.5", "ernie4_5"),
    _row("Helium", "helium"),
    _row("Apertus", "apertus"),
    _row("Arcee", "arcee"),
    _not("LFM 2", "lfm2", "keep more of a text than keys and values", "convolutions"),
    _not("RecurrentGemma", "recurrent_gemma", "keeps a state of the text"),
    _not("MiniMax", "minimax", "keep more of a text than keys and values", "linear attention"),
    _not("DiffLlama", "diffllama", "calls attention 2 times"),
    _not("Doge", "doge", "does not get the mask"),
    _not("OPT", "opt", "a pass over a cache fails", "learned positions"),
    _not("Mamba", "mamba", "keeps a state of the text"),
    _not("Falcon", "falcon", "not attend through Transformers' attention interface"),
    _not("BLOOM", "bloom", "not attend through Transformers' attention interface"),
    _not("GPT-J", "gptj", "not attend through Transformers' attention interface"),
)
