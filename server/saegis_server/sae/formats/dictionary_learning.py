"""dictionary_learning's layout (saprmarks and others): `ae.pt` with the class in the `config.json` beside it.

Features are in the unit of the class's own `encode`; its `from_pretrained` scales those of AutoEncoder by the
norms of their decoder rows.
"""

from dataclasses import dataclass

from torch import Tensor

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.formats.pickled import Checkpoint, PickledLayout, all_of

#: What it calls the file of an SAE, whatever its class.
FILE = "ae.pt"


@dataclass(frozen=True, slots=True)
class _Class:
    """How one of its classes keeps its tensors: the canonical name of each, and its own.

    linear: whether the matrices are those of `nn.Linear`, and so the other way round. batch: whether its
    threshold is one for all features. by_rank: whether it decides by rank, and states k.
    """

    architecture: Architecture
    tensors: dict[str, str]
    linear: bool
    apply_b_dec_to_input: bool
    batch: bool = False
    by_rank: bool = False


_WEIGHTS = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_PLAIN = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_TOP_K = {**_WEIGHTS, "b_enc": "encoder.bias", "b_dec": "b_dec"}
_CLASSES = {
    "AutoEncoder": _Class(
        Architecture.STANDARD, {**_WEIGHTS, "b_enc": "encoder.bias", "b_dec": "bias"}, True, True
    ),
    "AutoEncoderNew": _Class(
        Architecture.STANDARD, {**_WEIGHTS, "b_enc": "encoder.bias", "b_dec": "decoder.bias"}, True, False
    ),
    "GatedAutoEncoder": _Class(
        Architecture.GATED,
        {**_WEIGHTS, "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag", "b_dec": "decoder_bias"},
        True,
        True,
    ),
    "JumpReluAutoEncoder": _Class(Architecture.JUMPRELU, {**_PLAIN, "threshold": "threshold"}, False, False),
    "AutoEncoderTopK": _Class(Architecture.STANDARD, _TOP_K, True, True, by_rank=True),
    "BatchTopKSAE": _Class(Architecture.JUMPRELU, _TOP_K, True, True, batch=True),
    "MatryoshkaBatchTopKSAE": _Class(Architecture.JUMPRELU, _PLAIN, False, True, batch=True),
}
#: What a class keeps beside its canonical tensors.
_BESIDE = {"k", "threshold", "group_sizes"}


def _claims(checkpoint: Checkpoint) -> bool:
    """By the file's name too: its `config.json` may lie beside a file that is somebody else's."""
    return checkpoint.path.name == FILE and _class_of(checkpoint) is not None


def _class_of(checkpoint: Checkpoint) -> str | None:
    return checkpoint.config.part("trainer").text("dict_class")


def _build(checkpoint: Checkpoint) -> SparseAutoencoder:
    name = _class_of(checkpoint)
    if name not in _CLASSES:
        raise checkpoint.config.refuse(f"dict_class is {name!r}; known are {', '.join(_CLASSES)}")
    kind = _CLASSES[name]
    if beside := sorted(set(checkpoint.tensors) - set(kind.tensors.values()) - _BESIDE):
        raise checkpoint.refuse(f"tensors that {name} does not have: {', '.join(beside[:8])}")
    tensors = {
        canonical: checkpoint.tensor(own, 2 if canonical.startswith("W_") else 1)
        for canonical, own in kind.tensors.items()
    }
    if kind.linear:
        tensors |= {canonical: checkpoint.turned(own) for canonical, own in _WEIGHTS.items()}
    if kind.batch:
        tensors["threshold"] = _batch_threshold(checkpoint, tensors["b_enc"])
    trainer = checkpoint.config.part("trainer")
    return checkpoint.sae(
        kind.architecture,
        tensors,
        apply_b_dec_to_input=kind.apply_b_dec_to_input,
        k=trainer.count("k") if kind.by_rank else None,
        hook_name=_hook(checkpoint),
        model_name=trainer.text("lm_name"),
    )


def _batch_threshold(checkpoint: Checkpoint, biases: Tensor) -> Tensor:
    threshold = checkpoint.tensor("threshold", 0)
    if not float(threshold) >= 0.0:
        raise checkpoint.refuse(
            f"threshold is {float(threshold)}, which says that it was never set; train it for longer than "
            "threshold_start_step"
        )
    return all_of(threshold, len(biases))


def _hook(checkpoint: Checkpoint) -> str | None:
    """Where it reads: the output of `layer`, unless `submodule_name` names something of the layer."""
    trainer = checkpoint.config.part("trainer")
    layer, module = trainer.values.get("layer"), trainer.text("submodule_name", "") or ""
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        return None
    places = {"": "resid_post", f"resid_post_layer_{layer}": "resid_post"}
    return f"layers.{layer}.{places[module]}" if module in places else None


LAYOUT = PickledLayout(
    name="dictionary_learning",
    claims=_claims,
    build=_build,
    origin="what dictionary_learning writes: " + ", ".join(_CLASSES),
)
