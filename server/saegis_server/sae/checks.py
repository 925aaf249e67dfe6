"""Checks whether an SAE fits its site: how well it reconstructs the real activations there."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.errors import SAEMismatch

#: An SAE whose FVU is above this reconstructs worse than the activations' mean does.
WORST_FVU = 1.0
#: How far the measured FVU may lie above the stated one: by this factor or this distance, whichever is more.
FVU_FACTOR = 2.0
FVU_DISTANCE = 0.15
#: The largest FVU on unfamiliar text, of another kind than the SAE was trained on; above it, it hardly fits.
UNFAMILIAR_FVU = 0.75
#: An FVU is clearly lower than another one, beyond rounding, if it is below that one times this factor.
_CLEARLY = 0.99
#: At most so many tokens are encoded at once, and so many numbers of features.
_CHUNK, _MOST_NUMBERS = 1024, 2**26


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How well an SAE reconstructs some activations.

    fvu: the fraction of variance unexplained, Σ‖x − x̂‖² / Σ‖x − mean x‖²; 0 is perfect, 1 is as good as the
    mean. l0: how many features are active at a token, on average.
    """

    fvu: float
    l0: float


def measure(sae: SparseAutoencoder, activations: Tensor, wanted: Tensor | None = None) -> Reconstruction:
    """FVU and L0 of `sae` on activations [..., d]; the sums are float64.

    wanted: what it is to decode, [..., d], of a transcoder; None for the activations.

    Raises ValueError for fewer than two tokens, another width, numbers that are not finite, and
    activations that do not vary.
    """
    x = activations.detach().reshape(-1, activations.shape[-1]).to(torch.float32)
    if x.shape[0] < 2:
        raise ValueError("a reconstruction is measured on at least two tokens")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the activations hold numbers that are not finite")
    given = x if wanted is None else wanted.detach().reshape(x.shape).to(torch.float32)
    mean = given.double().mean(0)
    unexplained = variance = active = 0.0
    size = max(1, min(_CHUNK, _MOST_NUMBERS // sae.features))
    for chunk, goal in zip(torch.split(x, size), torch.split(given, size), strict=True):
        f = sae.encode(chunk)
        unexplained += float((goal.double() - sae.decode(f, chunk).double()).square().sum())
        variance += float((goal.double() - mean).square().sum())
        active += float((f > 0.0).sum())
    if variance == 0.0:
        raise ValueError("the activations do not vary: all tokens have the same")
    return Reconstruction(fvu=unexplained / variance, l0=active / x.shape[0])


def largest_fvu(stated: float | None) -> float:
    """The largest FVU at which an SAE still counts as fitting its site."""
    if stated is None:
        return WORST_FVU
    return max(FVU_FACTOR * stated, stated + FVU_DISTANCE)


def check_reconstruction(
    sae: SparseAutoencoder,
    activations: Tensor,
    site: str,
    text: str = "ordinary text",
    elsewhere: Callable[[], Mapping[str, float]] | None = None,
    wanted: Tensor | None = None,
) -> Reconstruction:
    """Measure `sae` on activations [..., d] of `site`, and refuse it if it does not fit.

    It does not fit if its FVU is above `largest_fvu` of the one that its file states. Activations should come
    from ordinary text, named by `text`, without the first token, whose norm is an outlier in most models.

    elsewhere: returns the FVU on the same text at each of the model's other sites. It is given if the text is
    not of the kind that the SAE was trained on, so that the stated FVU does not hold there. An FVU of up to
    UNFAMILIAR_FVU is then accepted too, unless another site or a transposed matrix gives a lower one.
    wanted: see `measure`.
    Raises SAEMismatch with the measured and the stated numbers, and ValueError as `measure` does.
    """
    fit = measure(sae, activations, wanted)
    limit = largest_fvu(sae.stated_fvu)
    if math.isfinite(fit.fvu) and fit.fvu <= limit:
        return fit
    if elsewhere is not None:
        limit = max(limit, UNFAMILIAR_FVU)
    better = min(limit, _CLEARLY * fit.fvu) if math.isfinite(fit.fvu) else limit
    cause = _transposed(sae, activations, better, wanted)
    if elsewhere is not None:
        cause = cause or _better_site(elsewhere(), better)
        if fit.fvu <= limit and not cause:
            return fit
    raise SAEMismatch(
        f"the SAE {sae.name} does not fit the site {site}: measured there on {text}, its FVU is "
        f"{fit.fvu:.3g} (at most {limit:.3g} is accepted) and its L0 {fit.l0:.3g}; {stated_fit(sae)}. "
        f"{cause or 'The site is wrong, or a matrix of the file is transposed'}",
        fit.fvu,
        fit.l0,
        sae.stated_fvu,
        sae.stated_l0,
    )


def stated_fit(sae: SparseAutoencoder) -> str:
    """In words: the FVU and L0 that the SAE's file states, and the site that it names."""
    stated = "states neither" if sae.stated_fvu is None else f"states an FVU of {sae.stated_fvu:.3g}"
    if sae.stated_l0 is not None:
        stated = stated.replace("states neither", "states no FVU") + f" and an L0 of {sae.stated_l0:.3g}"
    return f"its file {stated}" + (f"; it was trained at {sae.hook_name}" if sae.hook_name else "")


def _better_site(elsewhere: Mapping[str, float], below: float) -> str:
    """In words: the site with the least FVU, if that is at most `below`; else empty."""
    best = min(elsewhere, key=elsewhere.__getitem__, default="")
    if best and elsewhere[best] <= below:
        return f"At {best} it would be {elsewhere[best]:.3g}: the site is wrong"
    return ""


def _transposed(sae: SparseAutoencoder, activations: Tensor, below: float, wanted: Tensor | None) -> str:
    """In words: the matrix that transposed gives the least FVU, if that is at most `below`; else empty.

    Only for a square SAE do the shapes not show a transposed matrix.
    """
    if sae.width != sae.features:
        return ""
    turned = {"W_enc": sae.W_enc.T.contiguous(), "W_dec": sae.W_dec.T.contiguous()}
    fvus = {}
    for names in (("W_enc",), ("W_dec",), ("W_enc", "W_dec")):
        weights = sae.tensors() | {name: turned[name] for name in names}
        other = replace(sae, W_enc=weights["W_enc"], W_dec=weights["W_dec"])
        fvus[" and ".join(names)] = measure(other, activations, wanted).fvu
    best = min(fvus, key=fvus.__getitem__)
    if fvus[best] > below:
        return ""
    return f"With {best} turned round it would be {fvus[best]:.3g}: a transposed matrix"
