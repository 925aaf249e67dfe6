"""SAEs as others lay them out, with random weights, and each one's own forward pass in float64.

Each writer fills a folder by the documented layout; its forward pass is written from the equations of who
made the layout, on the tensors as they lie in the file.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

#: From activations x [T, d] to features [T, m] and the reconstruction [T, d], all float64.
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Written:
    """An SAE in its folder. hook_name, model_name: what is to be found out of them."""

    folder: Path
    forward: Forward
    hook_name: str | None
    model_name: str | None


class Weights:
    """Random numbers of a configuration: d and m are random too."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.d, self.m = self.count(2, 24), self.count(2, 40)

    def count(self, least: int, most: int) -> int:
        """A whole number, both ends included."""
        return int(torch.randint(least, most + 1, (), generator=self.generator))

    def normal(self, *shape: int, spread: float = 0.5) -> Tensor:
        """float32."""
        return spread * torch.randn(*shape, generator=self.generator)

    def positive(self, *shape: int, spread: float = 0.5) -> Tensor:
        """float32, of at least a little."""
        return self.normal(*shape, spread=spread).abs() + 0.01


def jumprelu(p: Tensor, theta: Tensor | float) -> Tensor:
    """p where it exceeds θ, and is positive."""
    return p.relu() * (p > theta)


def gemma_scope(folder: Path, seed: int) -> Written:
    """Of the residual stream, the MLP, attention's heads, or the embedding as it is stored."""
    w = Weights(seed)
    kind = ("res", "mlp", "embedding", "att")[seed % 4]
    part = "res" if kind == "embedding" else kind
    inside = "embedding" if kind == "embedding" else "layer_7"
    folder = folder / f"gemma-scope-2b-pt-{part}" / inside / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    tensors = {
        "W_enc": w.normal(w.d, w.m),
        "W_dec": w.normal(w.m, w.d),
        "b_enc": w.normal(w.m),
        "b_dec": w.normal(w.d),
        "threshold": w.positive(w.m),
    }
    lower = seed % 2 == 1
    arrays: dict[str, Any] = {
        key.replace("W_", "w_") if lower else key: tensor.numpy() for key, tensor in tensors.items()
    }
    np.savez(folder / "params.npz", **arrays)
    t = {key: tensor.double() for key, tensor in tensors.items()}
    scale = math.sqrt(w.d) if kind == "embedding" else 1.0

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = jumprelu(x / scale @ t["W_enc"] + t["b_enc"], t["threshold"])
        return f, (f @ t["W_dec"] + t["b_dec"]) * scale

    hook = {
        "res": "blocks.7.hook_resid_post",
        "mlp": "blocks.7.hook_mlp_out",
        "att": "blocks.7.attn.hook_z",
    }
    return Written(folder, forward, hook.get(kind, "blocks.0.hook_resid_pre"), "google/gemma-2-2b")


def gemma_scope_2(folder: Path, seed: int) -> Written:
    """Of the residual stream, the MLP after its norm, attention's heads; or a transcoder."""
    w = Weights(seed)
    tensors = {
        "w_enc": w.normal(w.d, w.m),
        "w_dec": w.normal(w.m, w.d),
        "b_enc": w.normal(w.m),
        "b_dec": w.normal(w.d),
        "threshold": w.positive(w.m),
    }
    adds = "post_feedforward_layernorm.output"
    reads = ("output", adds, "self_attn.o_proj.input", *["pre_feedforward_layernorm.output"] * 2)[seed % 5]
    hook, kind = f"model.layers.3.{reads}", "transcoder" if seed % 5 > 2 else "sae"
    affine = seed % 5 == 4
    if affine:
        tensors["affine_skip_connection"] = w.normal(w.d, w.d)
    config = {
        "hf_hook_point_in": hook,
        "hf_hook_point_out": f"model.layers.3.{adds}" if kind == "transcoder" else hook,
        "width": w.m,
        "model_name": "gemma-v3-270m-it",
        "architecture": "jump_relu",
        "l0": 20,
        "affine_connection": affine,
        "type": kind,
    }
    save_file(tensors, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    t = {key: tensor.double() for key, tensor in tensors.items()}

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = jumprelu(x @ t["w_enc"] + t["b_enc"], t["threshold"])
        beside = x @ t["affine_skip_connection"] if affine else 0.0
        return f, f @ t["w_dec"] + t["b_dec"] + beside

    return Written(folder, forward, hook, "gemma-3-270m-it")


def _linear(w: Weights) -> dict[str, Tensor]:
    return {
        "encoder.weight": w.normal(w.m, w.d),
        "encoder.bias": w.normal(w.m),
        "decoder.weight": w.normal(w.d, w.m),
        "decoder.bias": w.normal(w.d),
    }


def llama_scope(folder: Path, seed: int) -> Written:
    """As lm-saes loads it (its `from_config` at the release): the factor is folded, the decoder rows are made
    unit, and what then exceeds θ is active. SAELens's unit of a feature is another: p before both."""
    w = Weights(seed)
    tensors = _linear(w)
    with_norm = seed % 3 != 0
    average = dict.fromkeys(("in", "out"), 5.0 + float(w.positive(1)))
    theta = float(w.positive(1))
    hyperparameters = {
        "d_model": w.d,
        "d_sae": w.m,
        "act_fn": "jumprelu",
        "jump_relu_threshold": theta,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": average,
        "apply_decoder_bias_to_pre_encoder": False,
        "use_decoder_bias": True,
        "sparsity_include_decoder_norm": with_norm,
        "hook_point_in": "blocks.4.hook_resid_post",
        "hook_point_out": "blocks.4.hook_resid_post",
        "top_k": 50,
    }
    folder = folder / "Llama3_1-8B-Base-L4R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(hyperparameters))
    t = {key: tensor.double() for key, tensor in tensors.items()}
    scale = math.sqrt(w.d) / average["in"]

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        decoder = t["decoder.weight"]
        norm = decoder.norm(dim=0) if with_norm else torch.ones(w.m, dtype=torch.float64)
        hidden = x @ (t["encoder.weight"] * norm[:, None]).T + t["encoder.bias"] / scale * norm
        f = torch.where(hidden > theta, hidden, 0.0)
        return f * scale / norm, f @ (decoder / norm).T + t["decoder.bias"] / scale

    return Written(folder, forward, "blocks.4.hook_resid_post", "meta-llama/Llama-3.1-8B")


def llama_scope_later(folder: Path, seed: int) -> Written:
    """As lm-saes encodes and decodes (`encode` with `sparsity_include_decoder_norm`)."""
    w = Weights(seed)
    hook, average = "blocks.9.hook_resid_post", 7.0 + float(w.positive(1))
    tensors = {
        **_linear(w),
        "log_jumprelu_threshold": w.normal(w.m) - 1.0,
        f"dataset_average_activation_norm.{hook}": torch.tensor(average),
    }
    config = {
        "d_model": w.d,
        "expansion_factor": 2,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "hook_point_in": hook,
        "hook_point_out": hook,
    }
    folder = folder / "Llama-Scope-R1-Distill" / "L9R"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    t = {key: tensor.double() for key, tensor in tensors.items()}
    scale = math.sqrt(w.d) / float(torch.tensor(average))

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = (x * scale) @ t["encoder.weight"].T + t["encoder.bias"]
        scores = hidden * t["decoder.weight"].norm(dim=0)
        f = hidden * (scores > t["log_jumprelu_threshold"].exp())
        return f, (f @ t["decoder.weight"].T + t["decoder.bias"]) / scale

    return Written(folder, forward, hook, "deepseek-ai/DeepSeek-R1-Distill-Llama-8B")


def largest(p: Tensor, k: int) -> Tensor:
    """p where it is among the k largest of its row, and positive."""
    places = p.argsort(dim=-1, descending=True)[..., :k]
    return torch.zeros_like(p).scatter(-1, places, p.gather(-1, places).relu())


def sparsify(folder: Path, seed: int) -> Written:
    """TopK on the output of a layer, or group max."""
    w = Weights(seed)
    k, grouped = w.count(1, w.m), seed % 2 == 1
    if grouped:
        w.m = k * (1 + w.m // k)
    tensors = {
        "encoder.weight": w.normal(w.m, w.d),
        "encoder.bias": w.normal(w.m),
        "W_dec": w.normal(w.m, w.d),
        "b_dec": w.normal(w.d),
    }
    config = {
        "activation": "groupmax" if grouped else "topk",
        "expansion_factor": 32,
        "normalize_decoder": bool(seed % 2),
        "num_latents": w.m,
        "k": k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": w.d,
    }
    folder = folder / "layers.10"
    folder.mkdir()
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    t = {key: tensor.double() for key, tensor in tensors.items()}

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        p = (x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
        f = largest(p.reshape(len(p), k, -1), 1).flatten(-2) if grouped else largest(p, k)
        return f, f @ t["W_dec"] + t["b_dec"]

    return Written(folder, forward, "layers.10", None)


WRITERS: dict[str, Callable[[Path, int], Written]] = {
    "Gemma Scope": gemma_scope,
    "Gemma Scope 2": gemma_scope_2,
    "Llama Scope": llama_scope,
    "Llama-Scope-R1-Distill": llama_scope_later,
    "sparsify": sparsify,
}


def _dictionary_config(w: Weights, dict_class: str, k: int | None) -> dict[str, object]:
    trainer = {
        "dict_class": dict_class,
        "activation_dim": w.d,
        "dict_size": w.m,
        "k": k,
        "layer": 8,
        "lm_name": "EleutherAI/pythia-160m-deduped",
        "submodule_name": "resid_post_layer_8",
    }
    return {"trainer": trainer, "buffer": {"ctx_len": 1024}}


def dictionary_learning(folder: Path, seed: int) -> Written:
    """The classes of dictionary_learning, by turns."""
    w = Weights(seed)
    k = w.count(1, w.m)
    encoder, decoder = w.normal(w.m, w.d), w.normal(w.d, w.m)
    b_enc, b_dec, theta = w.normal(w.m), w.normal(w.d), w.positive(1)[0]
    gate, r_mag, each = w.normal(w.m), w.normal(w.m), w.positive(w.m)
    matrices = {"encoder.weight": encoder, "decoder.weight": decoder}
    plain = {"W_enc": encoder.T, "W_dec": decoder.T, "b_enc": b_enc, "b_dec": b_dec}
    sizes = {"k": torch.tensor(k), "threshold": theta}
    states = {
        "AutoEncoder": {**matrices, "encoder.bias": b_enc, "bias": b_dec},
        "AutoEncoderNew": {**matrices, "encoder.bias": b_enc, "decoder.bias": b_dec},
        "GatedAutoEncoder": {
            **matrices,
            "gate_bias": gate,
            "mag_bias": b_enc,
            "r_mag": r_mag,
            "decoder_bias": b_dec,
        },
        "JumpReluAutoEncoder": {**plain, "threshold": each},
        "AutoEncoderTopK": {**matrices, "encoder.bias": b_enc, "b_dec": b_dec, **sizes},
        "BatchTopKSAE": {**matrices, "encoder.bias": b_enc, "b_dec": b_dec, **sizes},
        "MatryoshkaBatchTopKSAE": {**plain, **sizes, "group_sizes": torch.tensor([w.m])},
    }
    kind = sorted(states)[seed % len(states)]
    torch.save(states[kind], folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps(_dictionary_config(w, kind, k)))

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - b_dec.double()
        q = x @ encoder.T.double()
        p = q + b_enc.double()
        if kind == "GatedAutoEncoder":
            f = (q + gate > 0.0) * (r_mag.double().exp() * q + b_enc.double()).relu()
        elif kind == "AutoEncoderTopK":
            f = largest(p, k)
        elif kind == "JumpReluAutoEncoder":
            f = (p * (p > each.double())).relu()
        else:
            f = p.relu() if "TopK" not in kind else p.relu() * (p.relu() > theta.double())
        return f, f @ decoder.T.double() + b_dec.double()

    return Written(folder / "ae.pt", forward, "layers.8.resid_post", "EleutherAI/pythia-160m-deduped")


def _linear_pair(folder: Path, seed: int, file: str, coder: str, place: str, model: str) -> Written:
    tensors = _linear(Weights(seed))
    torch.save({key.replace("coder", coder): tensor for key, tensor in tensors.items()}, folder / file)
    t = {key: tensor.double() for key, tensor in tensors.items()}

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = (x @ t["encoder.weight"].T + t["encoder.bias"]).relu()
        return f, f @ t["decoder.weight"].T + t["decoder.bias"]

    return Written(folder / file, forward, place, model)


def goodfire(folder: Path, seed: int) -> Written:
    """Two linear layers."""
    place, model = "layers.19.resid_post", "meta-llama/Llama-3.1-8B-Instruct"
    file = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    return _linear_pair(folder, seed, file, "coder_linear", place, model)


def qresearch(folder: Path, seed: int) -> Written:
    """Two linear layers under other names."""
    place, model = "layers.19.resid_post", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    file = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
    return _linear_pair(folder, seed, file, "coder", place, model)


def qwen_scope(folder: Path, seed: int) -> Written:
    """TopK; k is in the folder's name."""
    w = Weights(seed)
    k = w.count(1, w.m)
    folder = folder / f"SAE-Res-Qwen3-8B-Base-W64K-L0_{k}"
    folder.mkdir()
    tensors = {
        "W_enc": w.normal(w.m, w.d),
        "W_dec": w.normal(w.d, w.m),
        "b_enc": w.normal(w.m),
        "b_dec": w.normal(w.d),
    }
    torch.save(tensors, folder / "layer12.sae.pt")
    t = {key: tensor.double() for key, tensor in tensors.items()}

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        f = largest(x @ t["W_enc"].T + t["b_enc"], k)
        return f, f @ t["W_dec"].T + t["b_dec"]

    return Written(folder / "layer12.sae.pt", forward, "layers.12.resid_post", "Qwen/Qwen3-8B-Base")


def openai(folder: Path, seed: int) -> Written:
    """ReLU as it is, or TopK behind a layer norm; tied or not."""
    w = Weights(seed)
    by_rank, tied, k = seed % 2 == 0, seed % 3 == 0, w.count(1, w.m)
    encoder = w.normal(w.m, w.d)
    decoder = encoder.T if tied else w.normal(w.d, w.m)
    state: dict[str, object] = {
        "pre_bias": w.normal(w.d),
        "latent_bias": w.normal(w.m),
        "encoder.weight": encoder,
        **({"decoder.linear.weight": encoder} if tied else {"decoder.weight": decoder}),
        "stats_last_nonzero": torch.zeros(w.m, dtype=torch.long),
        "activation": "TopK" if by_rank else "ReLU",
        "activation_state_dict": {"k": k, "postact_fn": "ReLU"} if by_rank else {},
    }
    torch.save(state, folder / "7.pt")
    t = {key: value.double() for key, value in state.items() if isinstance(value, Tensor)}

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(-1, keepdim=True)
        deviation = (x - mean).std(-1, keepdim=True)
        normed = (x - mean) / (deviation + 1e-5) if by_rank else x
        p = (normed - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
        f = largest(p, k) if by_rank else p.relu()
        decoded = f @ decoder.T.double() + t["pre_bias"]
        return f, decoded * deviation + mean if by_rank else decoded

    return Written(folder / "7.pt", forward, None, None)


PICKLERS: dict[str, Callable[[Path, int], Written]] = {
    "dictionary_learning": dictionary_learning,
    "Goodfire": goodfire,
    "qresearch": qresearch,
    "OpenAI": openai,
    "Qwen-Scope": qwen_scope,
}
