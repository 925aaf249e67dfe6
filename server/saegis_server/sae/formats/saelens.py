"""SAELens's layout: `cfg.json` and `sae_weights.safetensors`.

Reads version 6 and the flat form before it; writes files that both sae_lens and Saegis load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file
from torch import Tensor

from saegis_server.sae.autoencoder import TENSORS, Architecture, SparseAutoencoder, check_shapes
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.layout import (
    NO_RELEASE,
    SAMPLE_FILE,
    Fields,
    Layout,
    Release,
    files_digest,
    fold_centring,
    fold_decoder_norms,
    fold_scale,
    large_matrices,
    read_json,
    read_safetensors,
)
from saegis_server.sae.mapped import MappedFile
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Place, Site, SiteError

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
_OWNER = "SAELens'"
#: The version of the layout. SAELens takes a file without a version of at least 6 for the flat form.
LAYOUT_VERSION = "6.0.0"
_NORM_NAMES = {
    Norm.NONE: "none",
    Norm.CONSTANT_NORM: "constant_norm_rescale",
    Norm.LAYER_NORM: "layer_norm",
}
#: Names from before version 6, and the names since (SAELens `handle_pre_6_0_config`).
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_NORMS = {
    "none": Norm.NONE,
    "expected_average_only_in": Norm.NONE,
    "constant_norm_rescale": Norm.CONSTANT_NORM,
    "layer_norm": Norm.LAYER_NORM,
}
_TRANSCODERS = {
    f"{kind}{skip}transcoder": architecture
    for kind, architecture in (("", Architecture.STANDARD), ("jumprelu_", Architecture.JUMPRELU))
    for skip in ("", "skip_")
}
_LOADING = "model_from_pretrained_kwargs"
#: Training checkpoints, which SAELens's save_inference_model would write as jumprelu.
_CHECKPOINTS = ("batchtopk", "matryoshka_batchtopk")
_CANONICAL = {
    "topk": Architecture.STANDARD,
    **dict.fromkeys(_CHECKPOINTS, Architecture.JUMPRELU),
    **_TRANSCODERS,
}
#: Why an architecture of SAELens is refused, and what to do instead.
_REFUSED = {
    "abstopk": "has features that are negative; retrain it as topk, batchtopk or jumprelu",
    "temporal": "encodes a token from the tokens before it; load an SAE that encodes each token by itself",
    "matching_pursuit": "encodes by an iteration over all features; load a standard, gated or jumprelu SAE",
}


def _read(folder: Path, name: str, release: Release) -> SparseAutoencoder:
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    config = _read_config(config_path, release)
    # What is folded into weights is folded into float32 copies.
    folds = config.average_norm or config.rescaled or config.centred
    stays = frozenset() if folds else large_matrices(weights_path)
    mapped = MappedFile.read(weights_path, stays, config_path) if stays else None
    tensors = read_safetensors(weights_path, _OWNER, stays)
    skip = tensors.pop("W_skip", None) if config.skips else None
    if config.skips and skip is None:
        raise SAEFileError(config_path, f"a skip transcoder needs W_skip, which {WEIGHTS_FILE} does not have")
    tensors = _canonical_names(weights_path, config, tensors)
    if config.average_norm:
        given = release.norm_scaling_factor
        factor = config.norm_scaling_factor if given is None else given
        _fold_average_norm(config_path, tensors, factor)
        if config.rescaled and "threshold" in tensors and factor is not None:
            # It is compared with p·‖W_dec‖, and W_dec has just been divided by the factor.
            tensors["threshold"] = tensors["threshold"] / factor
    if config.rescaled:
        fold_decoder_norms(_matching(weights_path, config, tensors))
    if config.centred:
        fold_centring(_matching(weights_path, config, tensors), config.apply_b_dec_to_input)
    try:
        sae = SparseAutoencoder(
            architecture=config.architecture,
            **tensors,
            k=config.k,
            grouped=False,
            centred=config.centred,
            norm=config.norm,
            apply_b_dec_to_input=config.apply_b_dec_to_input,
            hook_name=config.hook_name,
            model_name=config.model_name,
            name=name,
            digest=files_digest(weights_path, config_path) if mapped is None else mapped.digest,
            stated_fvu=config.stated_fvu,
            stated_l0=config.stated_l0,
            excluded_tokens=config.excluded_tokens,
            metadata=MappingProxyType(dict(config.metadata)),
            mapped=mapped,
            hook_name_out=config.hook_name_out,
            W_skip=skip,
        )
    except ValueError as error:
        raise SAEFileError(weights_path, str(error)) from error
    _check_sizes(config_path, config, sae)
    return sae


def _matching(path: Path, config: _Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whose shapes are known to fit. Raises SAEFileError."""
    try:
        check_shapes(config.architecture, tensors)
    except ValueError as error:
        raise SAEFileError(path, str(error)) from error
    return tensors


def _canonical_names(path: Path, config: _Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the architecture, by their canonical names. Raises SAEFileError for any other set."""
    tensors = dict(tensors)
    scale = tensors.pop("scaling_factor", None)
    if scale is not None and not torch.allclose(scale, torch.ones_like(scale)):
        raise SAEFileError(
            path,
            "scaling_factor is not one everywhere: it is the scale of a finetuned SAE, which SAELens no "
            "longer applies; multiply the rows of W_dec by it and leave it out",
        )
    if config.architecture is Architecture.JUMPRELU and "log_threshold" in tensors:
        # JumpReLU checkpoints of SAELens before 6.49 train log(threshold).
        if "threshold" in tensors:
            raise SAEFileError(path, "both threshold and log_threshold are present")
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if config.checkpoint:
        theta = tensors.pop("topk_threshold", None)
        if theta is None or theta.numel() != 1 or not float(theta) > 0.0:
            raise SAEFileError(
                path,
                "it is a training checkpoint of batchtopk whose topk_threshold was never set; train on, or "
                "save it with SAELens's save_inference_model",
            )
        tensors["threshold"] = torch.full_like(tensors.get("b_enc", theta.reshape(1)), float(theta))
    required = TENSORS[config.architecture].keys()
    missing = sorted(required - tensors.keys())
    if missing:
        raise SAEFileError(
            path, f"the architecture {config.architecture} needs {', '.join(missing)}, not in the file"
        )
    superfluous = sorted(tensors.keys() - required)
    if superfluous:
        named = ", ".join(repr(name) for name in superfluous[:8])
        raise SAEFileError(
            path, f"tensors that the architecture {config.architecture} does not have: {named}"
        )
    return tensors


def _fold_average_norm(path: Path, tensors: dict[str, Tensor], factor: float | None) -> None:
    """Fold the factor s that scaled the activations into the weights: W_enc·s, W_dec/s, b_dec/s (SAELens
    `fold_activation_norm_scaling_factor`). The encoder's biases and the thresholds stay."""
    if factor is None:
        raise SAEFileError(
            path,
            "normalize_activations is expected_average_only_in, but norm_scaling_factor is not stated; write "
            "the release's factor (√d over the mean norm of the training activations) into cfg.json",
        )
    if not 1e-30 <= factor <= 1e30:
        raise SAEFileError(path, f"norm_scaling_factor is {factor}, not a positive finite number")
    fold_scale(tensors, factor, factor)


def _check_sizes(path: Path, config: _Config, sae: SparseAutoencoder) -> None:
    for field, stated, actual in (("d_in", config.d_in, sae.width), ("d_sae", config.d_sae, sae.features)):
        if stated != actual:
            raise SAEFileError(path, f"{field} is {stated}, but the tensors of {WEIGHTS_FILE} say {actual}")


@dataclass(frozen=True, slots=True)
class _Config:
    """What Saegis needs of a `cfg.json`; see SparseAutoencoder for the fields' meaning.

    checkpoint: whether it is a training checkpoint with one threshold for all features. k: of a topk SAE.
    rescaled: whether what decides is a feature's value times the norm of its decoder row. centred: as of
    SparseAutoencoder. average_norm: whether the weights expect activations scaled by norm_scaling_factor, the
    factor of the release; that is None if the file does not state it. excluded_tokens: the file's
    exclude_special_tokens, in the form of SparseAutoencoder. skips: whether it has a W_skip.
    """

    architecture: Architecture
    checkpoint: bool
    k: int | None
    rescaled: bool
    centred: bool
    d_in: int
    d_sae: int
    norm: Norm
    average_norm: bool
    norm_scaling_factor: float | None
    apply_b_dec_to_input: bool
    hook_name: str | None
    model_name: str | None
    stated_fvu: float | None
    stated_l0: float | None
    excluded_tokens: frozenset[int] | None
    metadata: Mapping[str, object]
    hook_name_out: str | None = None
    skips: bool = False


def _fields(path: Path, release: Release) -> Fields:
    """All fields of a cfg.json, those of its metadata among them; what the release says counts more."""
    config = read_json(path, _OWNER)
    metadata = config.get("metadata", {})
    if not isinstance(metadata, dict):
        raise SAEFileError(path, "metadata is not an object")
    # Before version 6 the fields of metadata stood at the top, some of them under another name.
    top = {key: value for key, value in config.items() if key != "metadata"}
    renamed = {_RENAMED.get(key, key): value for key, value in top.items()}
    return Fields(path, {"metadata": metadata, **metadata, **renamed, **top, **release.overrides})


def _read_config(path: Path, release: Release = NO_RELEASE) -> _Config:
    """Read a cfg.json. Raises SAEFileError, naming the file and the field, for what cannot be honoured."""
    fields = _fields(path, release)
    name, k = _architecture(fields)
    _refuse_unsupported(fields)
    normalisation = _normalisation(fields)
    by_rank = k is not None or name in _CHECKPOINTS
    read, written = _places(fields, name)
    return _Config(
        architecture=_CANONICAL.get(name) or Architecture(name),
        checkpoint=name in _CHECKPOINTS,
        k=k,
        rescaled=by_rank and fields.flag("rescale_acts_by_decoder_norm", name in _CHECKPOINTS),
        centred=_is_centred(fields, normalisation),
        d_in=fields.count("d_in"),
        d_sae=fields.count("d_sae"),
        norm=_NORMS[normalisation],
        average_norm=normalisation == "expected_average_only_in",
        norm_scaling_factor=fields.number("norm_scaling_factor", least=1e-30),
        apply_b_dec_to_input=fields.flag("apply_b_dec_to_input", default=written is None),
        hook_name=read,
        model_name=fields.text("model_name"),
        stated_fvu=fields.number("fvu"),
        stated_l0=fields.number("l0"),
        excluded_tokens=_excluded_tokens(fields),
        metadata=fields.part("metadata").values,
        hook_name_out=written,
        skips=written is not None and "skip" in name,
    )


def _places(fields: Fields, architecture: str) -> tuple[str | None, str | None]:
    """Where it reads, and of a transcoder where what it tells is. Raises SAEFileError."""
    read, written = fields.text("hook_name"), fields.text("hook_name_out")
    if architecture not in _TRANSCODERS:
        if written not in (None, read):
            raise fields.refuse(
                f"hook_name_out is {written!r}, another site than hook_name, but the architecture is "
                f"{architecture!r}, which writes where it reads"
            )
        return read, None
    if (norm := _normalisation(fields)) != "none":
        raise fields.refuse(f"normalize_activations is {norm}: a transcoder that normalises is not known")
    if fields.values.get(_LOADING) and fields.part(_LOADING).flag("fold_ln", False):
        raise fields.refuse("fold_ln is true: it reads what the MLP reads without the gain of its norm")
    # Transformers' names count, where both are stated: TransformerLens has one name for two places.
    read, written = fields.text("hf_hook_name") or read, fields.text("hf_hook_name_out") or written
    if not read or not written:
        raise fields.refuse("a transcoder states hook_name and hook_name_out: where it reads and writes")
    return read, written


def _architecture(fields: Fields) -> tuple[str, int | None]:
    """SAELens's name of the architecture, and the k of a topk SAE."""
    name = fields.text("architecture", "standard") or ""
    activation = fields.text("activation_fn", fields.text("activation_fn_str", "relu"))
    if activation == "topk":  # as SAELens has it, whatever the architecture is called
        k = fields.part("activation_fn_kwargs").values.get("k", fields.values.get("k"))
        return "topk", Fields(fields.path, {"k": k}).count("k")
    if activation != "relu":
        raise fields.refuse(f"activation_fn is {activation!r}; only relu and topk are known")
    if name in _REFUSED:
        raise fields.refuse(f"the architecture {name!r} {_REFUSED[name]}")
    if name == "topk":
        return name, fields.count("k")
    if name not in (*Architecture, *_CHECKPOINTS, *_TRANSCODERS):
        known = ", ".join((*Architecture, "topk", *_CHECKPOINTS, *_TRANSCODERS))
        raise fields.refuse(f"the architecture {name!r} is not known; Saegis reads {known}")
    return name, None


def _is_centred(fields: Fields, normalisation: str) -> bool:
    """Whether the stream of the model was centred (TransformerLens's `center_writing_weights`).

    Raises SAEFileError for heads' outputs that were otherwise than the model's own.
    """
    loading = fields.part("model_from_pretrained_kwargs") if fields.values.get(_LOADING) else None
    heads = reads_heads(fields.text("hook_name"))
    if loading is not None and heads and loading.flag("fold_value_biases", False):
        raise fields.refuse(
            "fold_value_biases is true: it reads attention heads' outputs without their value biases"
        )
    if loading is None or not loading.flag("center_writing_weights", False):
        return False
    if normalisation == "constant_norm_rescale":
        raise fields.refuse(
            "normalize_activations is constant_norm_rescale and center_writing_weights is true: the norm of "
            "a centred stream is not that of the model's own"
        )
    # A layer norm takes the mean away by itself; heads' outputs, and what the MLP reads, are after one.
    after_norm = heads or fields.text("architecture") in _TRANSCODERS
    return normalisation != "layer_norm" and not after_norm


def reads_heads(hook_name: str | None) -> bool:
    """Whether a place is the outputs of attention's heads, which SAELens has apart by head (`hook_z`)."""
    try:
        return hook_name is not None and Site.parse(hook_name).place is Place.ATTN_Z
    except SiteError:
        return False


def _refuse_unsupported(fields: Fields) -> None:
    dtype = fields.text("dtype", "float32") or ""
    if dtype.removeprefix("torch.") not in _DTYPES:
        raise fields.refuse(f"dtype is {dtype!r}; known are {', '.join(_DTYPES)}")
    hook_name = fields.text("hook_name", "") or ""
    reshape = fields.text("reshape_activations", "hook_z" if "hook_z" in hook_name else "none")
    if reshape == "hook_z" and hook_name and not reads_heads(hook_name):
        raise fields.refuse(
            f"reshape_activations is 'hook_z', and hook_name is {hook_name!r}, no attention heads' outputs"
        )
    if reshape not in ("none", "hook_z"):
        raise fields.refuse(f"reshape_activations is {reshape!r}; known are none and hook_z")
    if fields.values.get("hook_head_index") is not None:
        raise fields.refuse(
            "hook_head_index: the SAE reads a single attention head, which is no site of this server"
        )


def _excluded_tokens(fields: Fields) -> frozenset[int] | None:
    value = fields.values.get("exclude_special_tokens")
    if value is None or isinstance(value, bool):
        return None if value else frozenset()
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise fields.refuse(
            f"exclude_special_tokens is {value!r}, neither true or false nor a list of token ids"
        )
    return frozenset(value)


def _normalisation(fields: Fields) -> str:
    value = fields.values.get("normalize_activations")
    if value is None or isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    if value == "covariance_whitening":
        raise fields.refuse(
            "normalize_activations is covariance_whitening: the whitening is not folded into the weights; "
            "save the trained SAE with SAELens' save_inference_model, which folds it"
        )
    if not isinstance(value, str) or value not in _NORMS:
        raise fields.refuse(f"normalize_activations is {value!r}; known are {', '.join(_NORMS)}")
    return value


def save_sae(sae: SparseAutoencoder, path: Path, sample: str | None = None) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` (float32) into the directory `path`, made if absent.

    The SAE's metadata is kept. sample: a text of the kind that it was trained on, written to `sample.txt`;
    the server then checks the SAE on it and not on its built-in text. Raises OSError if the files cannot be
    written, TypeError for metadata that JSON cannot hold, and ValueError for group max, which SAELens lacks.
    """
    if sae.grouped:
        raise ValueError(
            f"the SAE {sae.name} activates its features by groupmax, which SAELens does not have"
        )
    metadata: dict[str, object] = {"sae_lens_version": LAYOUT_VERSION, **sae.metadata}
    # A factor that was folded into the weights must not be folded again.
    metadata.pop("norm_scaling_factor", None)
    stated = {
        "hook_name": sae.hook_name,
        "hook_name_out": sae.hook_name_out,
        "model_name": sae.model_name,
        "fvu": sae.stated_fvu,
        "l0": sae.stated_l0,
    }
    metadata.update({key: value for key, value in stated.items() if value is not None})
    if sae.centred:
        metadata[_LOADING] = {"center_writing_weights": True}
    config = {
        "architecture": _architecture_name(sae),
        **({} if sae.k is None else {"k": sae.k}),
        **({} if sae.hook_name_out is None else {"d_out": sae.width}),
        "d_in": sae.width,
        "d_sae": sae.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": _NORM_NAMES[sae.norm],
        "reshape_activations": "hook_z" if reads_heads(sae.hook_name) else "none",
        "metadata": metadata,
    }
    content = json.dumps(config, indent=2, allow_nan=False) + "\n"
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.float32).contiguous() for name, tensor in sae.tensors().items()}
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip.contiguous()
    save_file(tensors, path / WEIGHTS_FILE)
    (path / CONFIG_FILE).write_text(content, encoding="utf-8")
    if sample is not None:
        (path / SAMPLE_FILE).write_text(sample, encoding="utf-8", newline="")


def _architecture_name(sae: SparseAutoencoder) -> str:
    if sae.hook_name_out is None:
        return sae.activation
    if sae.k is not None:
        raise ValueError("SAELens has no layout for a transcoder that decides by rank")
    kind = "jumprelu_" if sae.architecture is Architecture.JUMPRELU else ""
    return f"{kind}{'' if sae.W_skip is None else 'skip_'}transcoder"


LAYOUT = Layout(
    name="SAELens",
    files=(CONFIG_FILE, WEIGHTS_FILE),
    check=lambda folder: _read_config(folder / CONFIG_FILE),
    read=_read,
    origin="what SAELens and saegis train sae write, of version 6 and before",
)
