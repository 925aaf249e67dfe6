"""SAEs of two linear layers without a bias at the input, in a pickle: Goodfire's and qresearch's.

f = relu(x·W_enc + b_enc);  x̂ = f·W_dec + b_dec
"""

import re
from functools import partial

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.formats.pickled import Checkpoint, PickledLayout

_LAYER = re.compile(r"[-_]l(?P<layer>\d{1,3})\.pth?")
_MODELS = {
    "Llama-3.3-70B-Instruct": "meta-llama/Llama-3.3-70B-Instruct",
    "Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "DeepSeek-R1-Distill-Llama-8B": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
_GOODFIRE, _QRESEARCH = ("encoder_linear", "decoder_linear"), ("encoder", "decoder")


def _claims(layers: tuple[str, str], checkpoint: Checkpoint) -> bool:
    return set(checkpoint.tensors) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def _build(layers: tuple[str, str], checkpoint: Checkpoint) -> SparseAutoencoder:
    encoder, decoder = layers
    tensors = {
        "W_enc": checkpoint.turned(f"{encoder}.weight"),
        "b_enc": checkpoint.tensor(f"{encoder}.bias", 1),
        "W_dec": checkpoint.turned(f"{decoder}.weight"),
        "b_dec": checkpoint.tensor(f"{decoder}.bias", 1),
    }
    layer = _LAYER.search(checkpoint.path.name)
    named = (model for key, model in _MODELS.items() if checkpoint.path.name.startswith(key))
    return checkpoint.sae(
        Architecture.STANDARD,
        tensors,
        apply_b_dec_to_input=False,
        hook_name=f"layers.{layer['layer']}.resid_post" if layer else None,
        model_name=next(named, None),
    )


GOODFIRE = PickledLayout(
    name="Goodfire",
    claims=partial(_claims, _GOODFIRE),
    build=partial(_build, _GOODFIRE),
    origin="Goodfire/Llama-3.1-8B-Instruct-SAE-l19 and Llama-3.3-70B-Instruct-SAE-l50",
)
QRESEARCH = PickledLayout(
    name="qresearch",
    claims=partial(_claims, _QRESEARCH),
    build=partial(_build, _QRESEARCH),
    origin="qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
)
