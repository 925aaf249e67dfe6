"""mwhanna's layout of transcoders (mwhanna/qwen3-*-transcoders): a file a layer, `layer_N.safetensors`,
beside a `config.yaml` for all of them. `saegis sae convert` reads one.

f = relu(x·W_encᵀ + b_enc);  y = f·W_dec + b_dec

x is what the layer's MLP reads, y what it adds.
"""

import re
from pathlib import Path

import yaml

from saegis_server.sae.autoencoder import TENSORS, Architecture, SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.layout import Fields, files_digest, only_these, read_safetensors, turned
from saegis_server.steering.site import Place, Site

#: The description that all files of a repository share; some have none.
CONFIG = "config.yaml"
NAME, FILES, ORIGIN = "mwhanna", ("layer_N.safetensors", CONFIG), "mwhanna/qwen3-*-transcoders: transcoders"
_OWNER = "mwhanna's"
_FILE = re.compile(r"layer_(?P<layer>\d{1,3})\.safetensors")
_SIZE = re.compile(r"qwen3-(?P<size>\d+(?:\.\d+)?b)-transcoders", re.IGNORECASE)
#: The largest description that is read.
_MOST_BYTES = 1 << 16
_STATED = ("model_name", "feature_input_hook", "feature_output_hook")
_READS, _WRITES = "mlp.hook_in", "hook_mlp_out"


def read_transcoder(path: Path) -> SparseAutoencoder:
    """The transcoder in a file. Raises SAEFileError for what is none, cannot be read or is not honoured."""
    named = _FILE.fullmatch(path.name)
    if named is None:
        raise SAEFileError(path, "its layout is not known: transcoders of mwhanna's are layer_N.safetensors")
    fields = _described(path.parent / CONFIG)
    for key, known in (("feature_input_hook", _READS), ("feature_output_hook", _WRITES)):
        if (stated := fields.text(key, known)) != known:
            raise fields.refuse(f"{key} is {stated!r}; known is {known!r}")
    tensors = only_these(path, read_safetensors(path, _OWNER), TENSORS[Architecture.STANDARD], _OWNER)
    layer = int(named["layer"])
    try:
        return SparseAutoencoder(
            Architecture.STANDARD,
            W_enc=turned(path, tensors, "W_enc"),
            b_enc=tensors["b_enc"],
            W_dec=tensors["W_dec"],
            b_dec=tensors["b_dec"],
            apply_b_dec_to_input=False,
            hook_name=Site(layer, Place.MLP_IN).transformer_lens,
            hook_name_out=Site(layer, Place.MLP_OUT).transformer_lens,
            model_name=fields.text("model_name") or _model(path),
            digest=files_digest(path),
        )
    except ValueError as error:
        raise SAEFileError(path, str(error)) from error


def _described(path: Path) -> Fields:
    try:
        with path.open("rb") as file:
            content = yaml.safe_load(file.read(_MOST_BYTES))
    except FileNotFoundError:
        return Fields(path, {})
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SAEFileError(path, f"cannot be read: {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise SAEFileError(path, "not a mapping of YAML")
    # Nothing else is looked at, nor told: what aliases repeat may be endless.
    stated = {key: content[key] for key in _STATED if content.get(key) is not None}
    if other := [key for key, value in stated.items() if not isinstance(value, str)]:
        raise SAEFileError(path, f"{other[0]} is not a string")
    return Fields(path, stated)


def _model(path: Path) -> str | None:
    """The model that the names of the folders state."""
    size = _SIZE.search("/".join(path.resolve().parts[-8:]))
    return f"Qwen/Qwen3-{size['size'].upper()}" if size else None
