"""EleutherAI sparsify's layout: a folder named as its hookpoint, with `cfg.json` and `sae.safetensors`.

    p = relu((x − b_dec)·encoder.weightᵀ + encoder.bias);  f = the k largest of p;  x̂ = f·W_dec + b_dec

With the activation `groupmax` they are the largest of each of k groups of features that follow each other.
The place is the output of the module that the folder is named after (`layers.10`).
"""

import re
from pathlib import Path

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
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

_CONFIG, _WEIGHTS = "cfg.json", "sae.safetensors"
_OWNER = "sparsify's"
_HOOKPOINT = re.compile(r"((?:model|transformer|gpt_neox)\.)?(layers|h)\.\d{1,4}(\.[a-z_.]+)?")


def _read_config(folder: Path) -> Fields:
    """The description of an SAE that can be read. Raises SAEFileError."""
    fields = Fields(folder / _CONFIG, read_json(folder / _CONFIG, _OWNER))
    activation = fields.text("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise fields.refuse(f"activation is {activation!r}; known are topk and groupmax")
    for key, what in (("transcode", "reads at one site and writes at another"), ("skip_connection", "skips")):
        if fields.flag(key, False):
            raise fields.refuse(f"{key} is true: a transcoder {what}, which this server cannot do")
    if fields.flag("signed", False):
        raise fields.refuse("signed is true: its features may be negative")
    return fields


def _read(folder: Path, name: str, release: Release) -> SparseAutoencoder:
    fields, path = _read_config(folder), folder / _WEIGHTS
    named = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    weights = only_these(path, read_safetensors(path, _OWNER), named, _OWNER)
    hookpoint = _HOOKPOINT.fullmatch(folder.resolve().name)
    try:
        sae = SparseAutoencoder(
            Architecture.STANDARD,
            W_enc=turned(path, weights, "encoder.weight"),
            b_enc=weights["encoder.bias"],
            W_dec=weights["W_dec"],
            b_dec=weights["b_dec"],
            k=fields.count("k"),
            grouped=fields.text("activation", "topk") == "groupmax",
            hook_name=hookpoint[0] if hookpoint else None,
            name=name,
            digest=files_digest(path, fields.path),
        )
    except ValueError as error:
        raise SAEFileError(path, str(error)) from error
    if fields.count("d_in") != sae.width:
        raise fields.refuse(f"d_in is {fields.count('d_in')}, but the tensors of {_WEIGHTS} say {sae.width}")
    return sae


LAYOUT = Layout(
    name="sparsify",
    files=(_CONFIG, _WEIGHTS),
    check=_read_config,
    read=_read,
    origin="what EleutherAI's sparsify writes (TopK, group max)",
)
