"""OpenAI's layout (openai/sparse_autoencoder): the state of its `Autoencoder` in a pickle.

    f = activation((norm(x) − pre_bias)·encoder.weightᵀ + latent_bias)
    x̂ = norm⁻¹(f·decoder.weightᵀ + pre_bias)

The activation is ReLU, without a norm, or TopK, with a layer norm (as its `from_state_dict` has it).
"""

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.formats.pickled import Checkpoint, PickledLayout
from saegis_server.sae.layout import Fields
from saegis_server.steering.rows import Norm

#: The decoder of a tied one is the encoder's own matrix, under a name of its own.
_TIED = "decoder.linear.weight"
_OWN = {"pre_bias", "latent_bias", "encoder.weight", "decoder.weight", _TIED}
#: Statistics of the training, of which no forward pass makes use.
_STATISTICS = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}


def _build(checkpoint: Checkpoint) -> SparseAutoencoder:
    if beside := sorted(set(checkpoint.tensors) - _OWN - _STATISTICS):
        raise checkpoint.refuse(f"tensors that its Autoencoder does not have: {', '.join(beside[:8])}")
    stated = Fields(checkpoint.path, checkpoint.stated)
    activation = stated.text("activation", "ReLU")
    if activation not in ("ReLU", "TopK"):
        raise checkpoint.refuse(f"activation is {activation!r}; known are ReLU and TopK")
    after = stated.text("activation_state_dict.postact_fn", "ReLU")
    if after != "ReLU":
        raise checkpoint.refuse(f"postact_fn is {after!r}: its features may be negative")
    tied = _TIED in checkpoint.tensors
    tensors = {
        "W_enc": checkpoint.turned("encoder.weight"),
        "b_enc": checkpoint.tensor("latent_bias", 1),
        "W_dec": checkpoint.tensor("encoder.weight", 2) if tied else checkpoint.turned("decoder.weight"),
        "b_dec": checkpoint.tensor("pre_bias", 1),
    }
    by_rank = activation == "TopK"
    return checkpoint.sae(
        Architecture.STANDARD,
        tensors,
        apply_b_dec_to_input=True,
        k=stated.count("activation_state_dict.k") if by_rank else None,
        norm=Norm.LAYER_NORM if by_rank else Norm.NONE,
    )


LAYOUT = PickledLayout(
    name="OpenAI",
    claims=lambda checkpoint: {"pre_bias", "latent_bias", "encoder.weight"} <= set(checkpoint.tensors),
    build=_build,
    origin="openai/sparse_autoencoder (ReLU and TopK)",
)
