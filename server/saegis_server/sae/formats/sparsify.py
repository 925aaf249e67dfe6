"""EleutherAI sparsify's layout: a folder named as its hookpoint, with `cfg.json` and `sae.safetensors`.

    p = relu((x − b_dec)·encoder.weightᵀ + encoder.bias);  f = the k largest of p;  x̂ = f·W_dec + b_dec

With the activation `groupmax` they are the largest of each of k groups of features that follow each other.
The place is the output of the module that the folder is named after (`layers.10`). A transcoder reads the
module's input, without b_dec, and tells its output, to which x·W_skipᵀ is added where it has one.
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
from saegis_server.steering.site import Place, Site

_CONFIG, _WEIGHTS = "cfg.json", "sae.safetensors"
_OWNER = "sparsify's"
_MLP = re.compile(r"(?:gpt_neox\.layers|transformer\.h|h)\.(?P<layer>\d{1,4})\.mlp")
_HOOKPOINT = re.compile(r"((?:model|transformer|gpt_neox)\.)?(layers|h)\.\d{1,4}(\.[a-z_.]+)?")


def _read_config(folder: Path) -> Fields:
    """The description of an SAE that can be read. Raises SAEFileError."""
    fields = Fields(folder / _CONFIG, read_json(folder / _CONFIG, _OWNER))
    activation = fields.text("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise fields.refuse(f"activation is {activation!r}; known are topk and groupmax")
    if fields.flag("skip_connection", False) and not fields.flag("transcode", False):
        raise fields.refuse("skip_connection is true of an SAE: only a transcoder with one is known")
    if fields.flag("signed", False):
        raise fields.refuse("signed is true: its features may be negative")
    return fields


def _read(folder: Path, name: str, release: Release) -> SparseAutoencoder:
    fields, path = _read_config(folder), folder / _WEIGHTS
    transcodes, skips = fields.flag("transcode", False), fields.flag("skip_connection", False)
    named = ("encoder.weight", "encoder.bias", "W_dec", "b_dec", *(("W_skip",) if skips else ()))
    weights = only_these(path, read_safetensors(path, _OWNER), named, _OWNER)
    read, written = _places(folder.resolve().name, transcodes)
    try:
        sae = SparseAutoencoder(
            Architecture.STANDARD,
            W_enc=turned(path, weights, "encoder.weight"),
            b_enc=weights["encoder.bias"],
            W_dec=weights["W_dec"],
            b_dec=weights["b_dec"],
            k=fields.count("k"),
            grouped=fields.text("activation", "topk") == "groupmax",
            apply_b_dec_to_input=not transcodes,
            hook_name=read,
            hook_name_out=written,
            W_skip=weights.get("W_skip"),
            name=name,
            digest=files_digest(path, fields.path),
        )
    except ValueError as error:
        raise SAEFileError(path, str(error)) from error
    if fields.count("d_in") != sae.width:
        raise fields.refuse(f"d_in is {fields.count('d_in')}, but the tensors of {_WEIGHTS} say {sae.width}")
    return sae


def _places(folder: str, transcodes: bool) -> tuple[str | None, str | None]:
    """Where it reads, and of a transcoder where what it tells is, by the name of the folder."""
    hookpoint = _HOOKPOINT.fullmatch(folder)
    if not transcodes:
        return hookpoint[0] if hookpoint else None, None
    mlp = _MLP.fullmatch(folder)
    # Where the MLP is followed by a norm, what it puts out is no place: then the site is not told.
    if mlp is None:
        return None, folder
    through = Site(int(mlp["layer"]), Place.MLP_IN_TO_OUT)
    return through.read_at.transformer_lens, through.written_at.transformer_lens


LAYOUT = Layout(
    name="sparsify",
    files=(_CONFIG, _WEIGHTS),
    check=_read_config,
    read=_read,
    origin="what EleutherAI's sparsify writes (TopK, group max; transcoders)",
)
