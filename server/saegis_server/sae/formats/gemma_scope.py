"""Gemma Scope's layout (google/gemma-scope-*): one `params.npz`, which says nothing of itself.

The SAEs are JumpReLU without a bias at the input. What they read is in the names of their folders:
`gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from saegis_server.sae.autoencoder import TENSORS, Architecture, SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.layout import Layout, Release, files_digest, fold_scale, only_these, read_npz

_FILE = "params.npz"
_OWNER = "Gemma Scope's"
_REPOSITORY = re.compile(
    r"gemma-scope-(?P<size>2b|9b|27b)-(?P<kind>pt|it)-(?P<part>res|mlp|att|transcoders)(?![a-z])"
)
_LAYER = re.compile(r"layer_(?P<layer>\d{1,3})")
_L0 = re.compile(r"average_l0_(?P<l0>\d{1,6})")
_PLACES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


@dataclass(frozen=True, slots=True)
class _Origin:
    """What the names of folders say; None is what they do not say. embedding: of the model's embedding."""

    model_name: str | None
    hook_name: str | None
    l0: float | None
    embedding: bool


def _origin(folder: Path) -> _Origin:
    """Raises SAEFileError for SAEs of Gemma Scope that read what is no site."""
    parts = folder.resolve().parts[-8:]
    names = "/".join(parts)
    repository, layer, l0 = _REPOSITORY.search(names), _LAYER.search(names), _L0.search(names)
    embedding = "embedding" in parts
    model_name = hook_name = None
    if repository is not None:
        model_name = f"google/gemma-2-{repository['size']}" + ("-it" if repository["kind"] == "it" else "")
        _refuse(folder, repository["part"])
        if embedding:
            hook_name = "blocks.0.hook_resid_pre"
        elif layer is not None:
            hook_name = f"blocks.{layer['layer']}.{_PLACES[repository['part']]}"
    return _Origin(model_name, hook_name, float(l0["l0"]) if l0 else None, embedding)


def _refuse(folder: Path, part: str) -> None:
    if part == "transcoders":
        raise SAEFileError(
            folder / _FILE,
            "a transcoder reads at one site and writes at another, which this server cannot do; load an SAE "
            "of the residual stream (res) or of the MLP (mlp)",
        )


def _read(folder: Path, name: str, release: Release) -> SparseAutoencoder:
    path = folder / _FILE
    origin = _origin(folder)
    renamed = {
        f"W_{key[2:]}" if key.startswith("w_") else key: tensor
        for key, tensor in read_npz(path, _OWNER).items()
    }
    tensors = only_these(path, renamed, TENSORS[Architecture.JUMPRELU], _OWNER)
    if origin.embedding and tensors["b_dec"].ndim == 1 and len(tensors["b_dec"]):
        # It was trained on the embedding as it is stored; the model multiplies that by √d.
        scale = 1.0 / math.sqrt(len(tensors["b_dec"]))
        fold_scale(tensors, scale, scale)
    try:
        return SparseAutoencoder(
            Architecture.JUMPRELU,
            **tensors,  # type: ignore[arg-type]
            apply_b_dec_to_input=False,
            hook_name=origin.hook_name,
            model_name=origin.model_name,
            name=name,
            digest=files_digest(path),
            stated_l0=origin.l0,
            excluded_tokens=None,
        )
    except ValueError as error:
        raise SAEFileError(path, str(error)) from error


LAYOUT = Layout(
    name="Gemma Scope",
    files=(_FILE,),
    check=_origin,
    read=_read,
    origin="google/gemma-scope-2b, -9b, -27b: residual stream, MLP, attention heads' outputs, embedding",
)
