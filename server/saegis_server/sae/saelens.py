"""SAELens's layout, `cfg.json` and `sae_weights.safetensors`: read exactly, or refused with the reason."""

import hashlib
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saegis_server.sae.autoencoder import TENSORS, Architecture, SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.hub import CONFIG_FILE, WEIGHTS_FILE, resolve_sae
from saegis_server.sae.saelens_config import SAELensConfig, read_config

__all__ = ["SAEFileError", "load_sae", "resolve_sae"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHUNK = 1 << 22


def load_sae(
    path: Path, *, name: str | None = None, norm_scaling_factor: float | None = None
) -> SparseAutoencoder:
    """Read the SAE in the directory `path`. Nothing is unpickled; every tensor is copied to float32.

    name: the id to know it by; by default the directory's name. norm_scaling_factor: for an SAE with
    `normalize_activations: expected_average_only_in` whose cfg.json does not state it, the factor that
    its release gives.
    Raises SAEFileError for anything that cannot be read or honoured, naming the file and the reason.
    """
    try:
        return _load(path, name or path.resolve().name, norm_scaling_factor)
    except OSError as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error


def _load(path: Path, name: str, norm_scaling_factor: float | None) -> SparseAutoencoder:
    if not path.is_dir():
        raise SAEFileError(
            path, "not a directory; an SAE is a directory with cfg.json and sae_weights.safetensors"
        )
    config_path, weights_path = path / CONFIG_FILE, path / WEIGHTS_FILE
    config = read_config(config_path)
    tensors = _canonical_names(weights_path, config, _read_tensors(weights_path))
    if config.average_norm:
        factor = config.norm_scaling_factor if norm_scaling_factor is None else norm_scaling_factor
        _fold_average_norm(config_path, tensors, factor)
    try:
        sae = SparseAutoencoder(
            architecture=config.architecture,
            **tensors,
            norm=config.norm,
            apply_b_dec_to_input=config.apply_b_dec_to_input,
            hook_name=config.hook_name,
            model_name=config.model_name,
            name=name,
            digest=_files_digest(weights_path, config_path),
            stated_fvu=config.stated_fvu,
            stated_l0=config.stated_l0,
            excluded_tokens=config.excluded_tokens,
            metadata=MappingProxyType(dict(config.metadata)),
        )
    except ValueError as error:
        raise SAEFileError(weights_path, str(error)) from error
    _check_sizes(config_path, config, sae)
    return sae


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, copied (a mapped file may change under a running server)."""
    if not path.is_file():
        raise SAEFileError(path, "the file does not exist; weights in SAELens' layout have this name")
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                tensors[name] = file.get_tensor(name)
                if tensors[name].dtype not in _FLOATS:
                    kind = str(tensors[name].dtype).removeprefix("torch.")
                    raise SAEFileError(path, f"{name} is of type {kind}, not a float of 16, 32 or 64 bits")
                tensors[name] = tensors[name].to(torch.float32, copy=True)
    except SafetensorError as error:
        raise SAEFileError(path, f"not a whole safetensors file: {error}") from error
    except (RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error
    return tensors


def _canonical_names(path: Path, config: SAELensConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the architecture, and no others."""
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
    wanted = TENSORS[config.architecture].keys()
    missing = sorted(wanted - tensors.keys())
    if missing:
        raise SAEFileError(
            path, f"the architecture {config.architecture} needs {', '.join(missing)}, not in the file"
        )
    superfluous = sorted(tensors.keys() - wanted)
    if superfluous:
        named = ", ".join(repr(name) for name in superfluous[:8])
        raise SAEFileError(
            path, f"tensors that the architecture {config.architecture} does not have: {named}"
        )
    return tensors


def _fold_average_norm(path: Path, tensors: dict[str, Tensor], factor: float | None) -> None:
    """Fold the factor s by which activations were scaled: W_enc·s, W_dec/s, b_dec/s (SAELens
    `fold_activation_norm_scaling_factor`; the encoder's biases and the thresholds stay)."""
    if factor is None:
        raise SAEFileError(
            path,
            "normalize_activations is expected_average_only_in, but norm_scaling_factor is not stated; write "
            "the release's factor (√d over the mean norm of the training activations) into cfg.json",
        )
    if not 1e-30 <= factor <= 1e30:
        raise SAEFileError(path, f"norm_scaling_factor is {factor}, not a positive finite number")
    tensors["W_enc"] = tensors["W_enc"] * factor
    tensors["W_dec"] = tensors["W_dec"] / factor
    tensors["b_dec"] = tensors["b_dec"] / factor


def _check_sizes(path: Path, config: SAELensConfig, sae: SparseAutoencoder) -> None:
    for field, stated, found in (("d_in", config.d_in, sae.width), ("d_sae", config.d_sae, sae.features)):
        if stated != found:
            raise SAEFileError(path, f"{field} is {stated}, but the tensors of {WEIGHTS_FILE} say {found}")


def _files_digest(*paths: Path) -> str:
    """SHA-256 over the files' bytes, one after the other."""
    state = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
    return state.hexdigest()
