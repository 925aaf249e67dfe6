"""Whether an SAE fits its site: how well it reconstructs the activations that the site really has."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.errors import SAEMismatch

#: An SAE whose FVU is above this reconstructs worse than the activations' mean does.
WORST_FVU = 1.0
#: How far the measured FVU may lie above the stated one: the larger of a factor and a distance.
FVU_FACTOR = 2.0
FVU_DISTANCE = 0.15
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How an SAE does on some activations.

    fvu: the fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean x‖², 0 is perfect, 1 as good as the
    mean. l0: how many features are active at a token, on average.
    """

    fvu: float
    l0: float


def measure(sae: SparseAutoencoder, activations: Tensor) -> Reconstruction:
    """FVU and L0 of `sae` on activations [..., d]; sums are kept in float64.

    Raises ValueError for fewer than two tokens, another width, numbers that are not finite, and
    activations that do not vary.
    """
    x = activations.detach().reshape(-1, activations.shape[-1]).to(torch.float32)
    if x.shape[0] < 2:
        raise ValueError("a reconstruction is measured on at least two tokens")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the activations hold numbers that are not finite")
    mean = x.double().mean(0)
    unexplained = variance = active = 0.0
    for chunk in torch.split(x, _CHUNK):
        f = sae.encode(chunk)
        unexplained += float((chunk.double() - sae.decode(f, chunk).double()).square().sum())
        variance += float((chunk.double() - mean).square().sum())
        active += float((f > 0.0).sum())
    if variance == 0.0:
        raise ValueError("the activations do not vary: all tokens have the same")
    return Reconstruction(fvu=unexplained / variance, l0=active / x.shape[0])


def largest_fvu(stated: float | None) -> float:
    """The largest FVU at which an SAE is still taken to fit its site."""
    if stated is None:
        return WORST_FVU
    return max(FVU_FACTOR * stated, stated + FVU_DISTANCE)


def check_reconstruction(sae: SparseAutoencoder, activations: Tensor, site: str) -> Reconstruction:
    """Measure `sae` on activations [..., d] of `site`, and refuse it if it does not fit.

    It does not fit if its FVU is above `largest_fvu` of what its file states. Activations should come
    from ordinary text without the first token, whose norm is a model's outlier.
    Raises SAEMismatch with the measured and the stated numbers, and ValueError as `measure` does.
    """
    found = measure(sae, activations)
    limit = largest_fvu(sae.stated_fvu)
    if math.isfinite(found.fvu) and found.fvu <= limit:
        return found
    stated = "states neither" if sae.stated_fvu is None else f"states an FVU of {sae.stated_fvu:.3g}"
    if sae.stated_l0 is not None:
        stated = stated.replace("states neither", "states no FVU") + f" and an L0 of {sae.stated_l0:.3g}"
    trained_at = f"; it was trained at {sae.hook_name}" if sae.hook_name else ""
    raise SAEMismatch(
        f"the SAE {sae.name} does not fit the site {site}: measured there, its FVU is {found.fvu:.3g} "
        f"(at most {limit:.3g} is accepted) and its L0 {found.l0:.3g}; its file {stated}{trained_at}. "
        f"{_cause(sae, activations, limit)}",
        found.fvu,
        found.l0,
        sae.stated_fvu,
        sae.stated_l0,
    )


def _cause(sae: SparseAutoencoder, activations: Tensor, limit: float) -> str:
    """What is probably wrong. A square SAE may hold a transposed matrix, which its shapes do not show."""
    if sae.width == sae.features:
        turned = {"W_enc": sae.W_enc.T.contiguous(), "W_dec": sae.W_dec.T.contiguous()}
        for names in (("W_enc",), ("W_dec",), ("W_enc", "W_dec")):
            weights = sae.tensors() | {name: turned[name] for name in names}
            other = replace(sae, W_enc=weights["W_enc"], W_dec=weights["W_dec"])
            fvu = measure(other, activations).fvu
            if fvu <= limit:
                return f"With {' and '.join(names)} turned round it would be {fvu:.3g}: a transposed matrix"
    return "The site is wrong, or a matrix of the file is transposed"
