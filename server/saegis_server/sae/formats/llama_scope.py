"""Llama Scope's layouts (fnlp): `hyperparams.json` with `checkpoints/final.safetensors`, and the later one of
Llama-Scope-R1-Distill, `config.json` with `sae_weights.safetensors`.

Activations are multiplied by s = √d over their mean norm before encoding, and divided by it after decoding;
what decides whether a feature is active is its value times the norm of its decoder row (lm-saes, whose
checkpoints these are: `transform_to_unit_decoder_norm`, `sparsity_include_decoder_norm`):

    p = (s_in·x)·W_enc + b_enc;  f = p·[p·‖W_dec‖ > θ];  x̂ = (f·W_dec + b_dec)/s_out

The earlier layout's θ is compared with p/s_in, since it was found after the factor had been folded.
SAELens reads the same units of f, but leaves ‖W_dec‖ out of the comparison.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.layout import (
    Fields,
    Layout,
    Release,
    files_digest,
    fold_scale,
    only_these,
    read_json,
    read_safetensors,
    turned,
)

_HYPERPARAMETERS, _FINAL = "hyperparams.json", "checkpoints/final.safetensors"
_CONFIG, _WEIGHTS = "config.json", "sae_weights.safetensors"
_OWNER, _LATER_OWNER = "Llama Scope's", "Llama-Scope-R1-Distill's"
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_THRESHOLD, _NORM = "log_jumprelu_threshold", "dataset_average_activation_norm."


def _read_config(path: Path, layout: str) -> Fields:
    """The description of an SAE that can be served. Raises SAEFileError."""
    fields = Fields(path, read_json(path, layout))
    kind = fields.text("act_fn", "jumprelu") or ""
    if kind.lower() != "jumprelu":
        raise fields.refuse(
            f"act_fn is {kind!r}; known is jumprelu, which lm-saes's post-processing makes of topk"
        )
    for key in ("use_glu_encoder", "apply_decoder_bias_to_pre_encoder"):
        if fields.flag(key, False):
            raise fields.refuse(f"{key} is true; no SAE of Llama Scope has that")
    if not fields.flag("use_decoder_bias", True):
        raise fields.refuse("use_decoder_bias is false; no SAE of Llama Scope has that")
    norm = fields.text("norm_activation", "dataset-wise")
    if norm not in ("dataset-wise", "inference"):
        raise fields.refuse(f"norm_activation is {norm!r}; known are dataset-wise and inference")
    read, written = fields.text("hook_point_in"), fields.text("hook_point_out")
    if written not in (None, read):
        raise fields.refuse(
            f"hook_point_out is {written!r}, another site than hook_point_in, {read!r}: a transcoder reads "
            "at one site and writes at another, which this server cannot do"
        )
    return fields


def _scale(fields: Fields, stated: Mapping[str, object], side: str) -> float:
    """√d over the mean norm of the training's activations. Raises SAEFileError if that is not stated."""
    if fields.text("norm_activation", "dataset-wise") == "inference":
        return 1.0
    norm = Fields(fields.path, stated).number(side, least=1e-30)
    if norm is None:
        raise fields.refuse(f"dataset_average_activation_norm does not state the mean norm of {side!r}")
    return math.sqrt(fields.count("d_model")) / norm


def _assemble(
    fields: Fields,
    path: Path,
    weights: Mapping[str, Tensor],
    theta: Tensor,
    s_in: float,
    s_out: float,
    name: str,
) -> SparseAutoencoder:
    """The SAE, from the tensors as they lie and the thresholds [m] of p·‖W_dec‖. Raises SAEFileError."""
    tensors = {
        "W_enc": turned(path, weights, "encoder.weight"),
        "b_enc": weights["encoder.bias"],
        "W_dec": turned(path, weights, "decoder.weight"),
        "b_dec": weights["decoder.bias"],
    }
    norms = torch.ones(len(tensors["W_dec"]))
    if fields.flag("sparsity_include_decoder_norm", True):
        norms = tensors["W_dec"].double().norm(dim=1)
    if theta.ndim != 1 or theta.shape != norms.shape:
        raise SAEFileError(path, f"{list(theta.shape)} thresholds of {len(norms)} features")
    # A feature without a decoder row never exceeds its threshold.
    largest = torch.finfo(torch.float32).max
    tensors["threshold"] = (theta.double() / norms).clamp(max=largest).float()
    fold_scale(tensors, s_in, s_out)
    try:
        sae = SparseAutoencoder(
            Architecture.JUMPRELU,
            **tensors,  # type: ignore[arg-type]
            apply_b_dec_to_input=False,
            hook_name=fields.text("hook_point_in"),
            model_name=_model(path),
            name=name,
            digest=files_digest(path, fields.path),
            excluded_tokens=None,
        )
    except ValueError as error:
        raise SAEFileError(path, str(error)) from error
    if fields.count("d_model") != sae.width:
        raise fields.refuse(
            f"d_model is {fields.count('d_model')}, but the tensors of {path.name} say {sae.width}"
        )
    return sae


def _model(path: Path) -> str | None:
    names = "/".join(path.resolve().parts[-8:])
    if "R1-Distill" in names:
        return "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    return "meta-llama/Llama-3.1-8B" if "Llama3_1-8B-Base" in names else None


def _read(folder: Path, name: str, release: Release) -> SparseAutoencoder:
    fields, path = _read_config(folder / _HYPERPARAMETERS, _OWNER), folder / _FINAL
    weights = only_these(path, read_safetensors(path, _OWNER), _LINEAR, _OWNER)
    norms = fields.part("dataset_average_activation_norm").values
    s_in, s_out = _scale(fields, norms, "in"), _scale(fields, norms, "out")
    theta = fields.number("jump_relu_threshold")
    if theta is None:
        raise fields.refuse("jump_relu_threshold is not stated")
    # lm-saes folds s_in/s_out into the decoder's rows before it takes their norm.
    factor = s_out if fields.flag("sparsity_include_decoder_norm", True) else s_in
    each = torch.full((len(weights["encoder.bias"]),), theta * factor, dtype=torch.float64)
    return _assemble(fields, path, weights, each, s_in, s_out, name)


def _read_later(folder: Path, name: str, release: Release) -> SparseAutoencoder:
    fields, path = _read_config(folder / _CONFIG, _LATER_OWNER), folder / _WEIGHTS
    tensors = read_safetensors(path, _LATER_OWNER)
    stated: dict[str, object] = {}
    for key in [key for key in tensors if key.startswith(_NORM)]:
        tensor = tensors.pop(key)
        stated[key.removeprefix(_NORM)] = float(tensor) if tensor.numel() == 1 else None
    weights = only_these(path, tensors, (*_LINEAR, _THRESHOLD), _LATER_OWNER)
    place = fields.text("hook_point_in", "in") or "in"
    if not stated and release.norm_scaling_factor is not None:
        scale = release.norm_scaling_factor
    else:
        scale = _scale(fields, stated, place)
    return _assemble(fields, path, weights, weights[_THRESHOLD].exp(), scale, scale, name)


LAYOUT = Layout(
    name="Llama Scope",
    files=(_HYPERPARAMETERS, _FINAL),
    check=lambda folder: _read_config(folder / _HYPERPARAMETERS, _OWNER),
    read=_read,
    origin="fnlp/Llama3_1-8B-Base-LX[RAM]: residual stream, attention, MLP",
)
LATER_LAYOUT = Layout(
    name="Llama-Scope-R1-Distill",
    files=(_CONFIG, _WEIGHTS),
    check=lambda folder: _read_config(folder / _CONFIG, _LATER_OWNER),
    read=_read_later,
    origin="fnlp/Llama-Scope-R1-Distill: residual stream",
)
