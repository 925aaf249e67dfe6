"""Qwen-Scope's layout (Qwen/SAE-Res-*): one pickle a layer, `layerN.sae.pt`; k is in the repository's name.

f = the k largest of relu(x·W_encᵀ + b_enc);  x̂ = f·W_decᵀ + b_dec
"""

import re

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.formats.pickled import Checkpoint, PickledLayout

_FILE = re.compile(r"layer(?P<layer>\d{1,3})\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-(?P<model>[A-Za-z0-9.-]+?)-W\d{1,4}K-L0_(?P<k>\d{1,5})")


def _build(checkpoint: Checkpoint) -> SparseAutoencoder:
    file, repository = _FILE.fullmatch(checkpoint.path.name), _REPOSITORY.search(checkpoint.repository)
    if repository is None:
        raise checkpoint.refuse(
            "k is in the repository's name alone: let the file lie in a folder of that name, such as "
            "SAE-Res-Qwen3-8B-Base-W64K-L0_50"
        )
    tensors = {
        "W_enc": checkpoint.turned("W_enc"),
        "b_enc": checkpoint.tensor("b_enc", 1),
        "W_dec": checkpoint.turned("W_dec"),
        "b_dec": checkpoint.tensor("b_dec", 1),
    }
    return checkpoint.sae(
        Architecture.STANDARD,
        tensors,
        apply_b_dec_to_input=False,
        k=int(repository["k"]),
        hook_name=f"layers.{file['layer']}.resid_post" if file else None,
        model_name=f"Qwen/{repository['model']}",
    )


def _claims(checkpoint: Checkpoint) -> bool:
    return _FILE.fullmatch(checkpoint.path.name) is not None and set(checkpoint.tensors) == {
        *("W_enc", "b_enc", "W_dec", "b_dec")
    }


LAYOUT = PickledLayout(
    name="Qwen-Scope", claims=_claims, build=_build, origin="Qwen/SAE-Res-*: residual stream (TopK)"
)
