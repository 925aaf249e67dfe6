"""Writes an SAE in SAELens's layout of version 6, so that sae_lens and Saegis both load it."""

import json
from pathlib import Path

from safetensors.torch import save_file

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.hub import CONFIG_FILE, SAMPLE_FILE, WEIGHTS_FILE
from saegis_server.steering.rows import Norm

#: The version of the layout: without one of at least 6, SAELens takes a file for the flat form before it.
LAYOUT_VERSION = "6.0.0"
_NORM_NAMES = {
    Norm.NONE: "none",
    Norm.CONSTANT_NORM: "constant_norm_rescale",
    Norm.LAYER_NORM: "layer_norm",
}


def save_sae(sae: SparseAutoencoder, path: Path, sample: str | None = None) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` (float32) into the directory `path`, made if absent.

    The SAE's metadata is kept. sample: a text of the kind that it was trained on, written to `sample.txt`:
    the server checks the SAE on it and not on its built-in text. Raises OSError if the files cannot be
    written and TypeError for metadata that JSON cannot hold.
    """
    metadata: dict[str, object] = {"sae_lens_version": LAYOUT_VERSION, **sae.metadata}
    # A factor that was folded into the weights must not be folded again.
    metadata.pop("norm_scaling_factor", None)
    stated = {
        "hook_name": sae.hook_name,
        "model_name": sae.model_name,
        "fvu": sae.stated_fvu,
        "l0": sae.stated_l0,
    }
    metadata.update({key: value for key, value in stated.items() if value is not None})
    config = {
        "architecture": str(sae.architecture),
        "d_in": sae.width,
        "d_sae": sae.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": _NORM_NAMES[sae.norm],
        "reshape_activations": "none",
        "metadata": metadata,
    }
    content = json.dumps(config, indent=2, allow_nan=False) + "\n"
    path.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in sae.tensors().items()}, path / WEIGHTS_FILE)
    (path / CONFIG_FILE).write_text(content, encoding="utf-8")
    if sample is not None:
        (path / SAMPLE_FILE).write_text(sample, encoding="utf-8", newline="")
