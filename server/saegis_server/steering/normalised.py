"""Normalisation: an activation as an SAE reads it, and the way back."""

from dataclasses import dataclass

from torch import Tensor

from saegis_server.steering.rows import Norm

#: SAELens' layer norm adds this to the standard deviation.
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Normalised:
    """x normalised, and the inverse: x = values·scale + shift, with scale and shift [..., 1]."""

    values: Tensor
    scale: Tensor | float
    shift: Tensor | float

    @classmethod
    def of(cls, x: Tensor, norm: Norm) -> "Normalised":
        """x [..., d] in a norm."""
        if norm is Norm.CONSTANT_NORM:
            factor = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
            return cls(x * factor, 1.0 / factor, 0.0)
        if norm is Norm.LAYER_NORM:
            mean = x.mean(-1, keepdim=True)
            centred = x - mean
            deviation = centred.std(-1, keepdim=True)
            return cls(centred / (deviation + LAYER_NORM_EPSILON), deviation, mean)
        return cls(x, 1.0, 0.0)
