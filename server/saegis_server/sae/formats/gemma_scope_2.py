"""Gemma Scope 2's layout (google/gemma-scope-2-*): `config.json` and `params.safetensors`.

The SAEs are JumpReLU without a bias at the input, and name what they read by Transformers' modules.
"""

import re
from pathlib import Path

from saegis_server.sae.autoencoder import TENSORS, Architecture, SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.layout import (
    Fields,
    Layout,
    Release,
    files_digest,
    only_these,
    read_json,
    read_safetensors,
    turned,
)

_CONFIG, _WEIGHTS = "config.json", "params.safetensors"
_OWNER = "Gemma Scope 2's"
_SKIP = "affine_skip_connection"
_FOLDERS = re.compile(
    r"gemma-scope-2-(?P<model>[a-z0-9]+-(?:pt|it))/.*?(?P<part>[a-z_]+?)(?:_all)?/layer_(?P<layer>\d{1,3})_"
)
_MODULES = {
    "resid_post": "output",
    "mlp_out": "post_feedforward_layernorm.output",
    "attn_out": "self_attn.o_proj.input",
    "transcoder": "pre_feedforward_layernorm.output",
}


def _inferred(folder: Path) -> dict[str, object] | None:
    """What the names of the folders say of an SAE without a description, as some repositories have it."""
    named = _FOLDERS.search("/".join(folder.resolve().parts[-8:]))
    if named is None or (folder / _CONFIG).exists():
        return None
    part = named["part"]
    kind = part if part not in _MODULES or part == "transcoder" else "sae"
    layer = f"model.layers.{named['layer']}"
    return {
        "architecture": "jump_relu",
        "model_name": f"google/gemma-3-{named['model']}",
        "hf_hook_point_in": f"{layer}.{_MODULES.get(part, part)}",
        **({"hf_hook_point_out": f"{layer}.{_MODULES['mlp_out']}"} if kind == "transcoder" else {}),
        "type": kind,
        "affine_connection": folder.name.endswith("_affine"),
    }


def _read_config(folder: Path) -> Fields:
    """The description of an SAE that can be served. Raises SAEFileError."""
    fields = Fields(folder / _CONFIG, _inferred(folder) or read_json(folder / _CONFIG, _OWNER))
    architecture = fields.text("architecture")
    if architecture != "jump_relu":
        raise fields.refuse(f"architecture is {architecture!r}; known is 'jump_relu'")
    read, written = fields.text("hf_hook_point_in"), fields.text("hf_hook_point_out")
    kind = fields.text("type", "sae")
    if kind not in ("sae", "transcoder"):
        raise fields.refuse(f"type is {kind!r}: known are SAEs and transcoders of a layer")
    if (kind == "transcoder") != (written not in (None, read)):
        raise fields.refuse(f"type is {kind!r}, but it is read at {read} and written at {written}")
    if kind == "sae" and fields.flag("affine_connection", False):
        raise fields.refuse("affine_connection: an SAE with a linear map beside it is not known")
    return fields


def _read(folder: Path, name: str, release: Release) -> SparseAutoencoder:
    fields = _read_config(folder)
    path = folder / _WEIGHTS
    renamed = {
        f"W_{key[2:]}" if key.startswith("w_") else key: tensor
        for key, tensor in read_safetensors(path, _OWNER).items()
    }
    names = [*TENSORS[Architecture.JUMPRELU], *([_SKIP] if fields.flag("affine_connection", False) else [])]
    tensors = only_these(path, renamed, names, _OWNER)
    skip = turned(path, tensors, _SKIP) if _SKIP in tensors else None
    tensors.pop(_SKIP, None)
    model = fields.text("model_name")
    try:
        sae = SparseAutoencoder(
            Architecture.JUMPRELU,
            **tensors,  # type: ignore[arg-type]
            apply_b_dec_to_input=False,
            hook_name=fields.text("hf_hook_point_in"),
            model_name=model and model.replace("gemma-v3", "gemma-3"),
            name=name,
            digest=files_digest(path, *([fields.path] if fields.path.is_file() else [])),
            stated_l0=fields.number("l0"),
            excluded_tokens=None,
            hook_name_out=fields.text("hf_hook_point_out") if fields.text("type") == "transcoder" else None,
            W_skip=skip,
        )
    except ValueError as error:
        raise SAEFileError(path, str(error)) from error
    if "width" in fields.values and fields.count("width") != sae.features:
        raise fields.refuse(
            f"width is {fields.count('width')}, but the tensors of {_WEIGHTS} say {sae.features}"
        )
    return sae


LAYOUT = Layout(
    name="Gemma Scope 2",
    files=(_CONFIG, _WEIGHTS),
    check=_read_config,
    read=_read,
    origin="google/gemma-scope-2: residual stream, MLP after its norm, attention heads' outputs, transcoders",
)
