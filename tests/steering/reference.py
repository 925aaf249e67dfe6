"""The reference for steering: one token, one row at a time, in float64 and plain Python."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Edit, Norm, Phase, Probe

Vector = NDArray[np.float64]
#: The SAEs that decide by rank which the loop knows, by their digests.
_SAES: dict[str, SparseAutoencoder] = {}


def know(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Let the loop read features of this SAE, whose rank among all decides."""
    _SAES[sae.digest] = sae
    return sae


def pre_activations(sae: SparseAutoencoder, x: Vector) -> Vector:
    """Those of all features of a standard SAE at x."""
    read = normed(sae.norm, x) - (vector(sae.b_dec) if sae.apply_b_dec_to_input else 0.0)
    assert sae.b_enc is not None
    return np.asarray(read @ vector(sae.W_enc) + vector(sae.b_enc))


def ahead(sae: SparseAutoencoder, feature: int, x: Vector) -> tuple[int, float]:
    """How many features of its group are larger than a feature at x, and how near the nearest of them is."""
    p = pre_activations(sae, x)
    size = sae.features // (sae.k or 1) if sae.grouped else sae.features
    group = p[feature // size * size :][:size]
    others = np.delete(group, feature % size)
    return int((others > p[feature]).sum()), float(np.abs(others - p[feature]).min(initial=math.inf))


def _is_kept(probe: Probe, x: Vector) -> bool:
    """Whether a feature is among as many of the largest as may be active."""
    if probe.rank is None:
        return True
    sae, feature = _SAES[probe.rank.dictionary], int(probe.key.rpartition(":")[2])
    return ahead(sae, feature, x)[0] < (1 if sae.grouped else sae.k or 0)


def normed(norm: Norm, x: Vector) -> Vector:
    """x as an SAE of a normalisation reads it."""
    if norm is Norm.CONSTANT_NORM:
        return np.asarray(x * math.sqrt(len(x)) / np.linalg.norm(x))
    if norm is Norm.LAYER_NORM:
        x = x - x.mean()
        return np.asarray(x / (x.std(ddof=1) + 1e-5))
    return x


def vector(tensor: Tensor) -> Vector:
    """A tensor as float64."""
    return tensor.detach().to(torch.float64).numpy()


def read(probe: Probe, x: Vector) -> float:
    """The value of one feature or direction at x."""
    q = float(vector(probe.read) @ normed(probe.norm, x))
    value = probe.gain * q + probe.value_bias
    if probe.linear:
        return value
    return max(value, 0.0) if q + probe.gate_bias > probe.threshold and _is_kept(probe, x) else 0.0


def write_scale(probe: Probe, x: Vector) -> float:
    """What a decoder row is multiplied by at x."""
    if probe.norm is Norm.CONSTANT_NORM:
        return float(np.linalg.norm(x)) / math.sqrt(len(x))
    if probe.norm is Norm.LAYER_NORM:
        return float(x.std(ddof=1))
    return 1.0


def change(edit: Edit, x: Vector, prompt: bool, norm: float) -> Vector:
    """What one edit adds to x; its fractions are of `norm`."""
    if not acts(edit, prompt):
        return np.zeros_like(x)
    f = read(edit.probe, x)
    if not f > edit.above:
        return np.zeros_like(x)
    unit = norm if edit.relative_to_norm else 1.0
    wanted = min(max(edit.a * f + unit * edit.b, unit * edit.lo), unit * edit.hi)
    moved = (wanted - f) * vector(edit.probe.write)
    if edit.target is not None:
        moved = moved + edit.factor * f * vector(edit.target.write)
    return write_scale(edit.probe, x) * moved


def asks(edit: Edit, x: Vector, prompt: bool, norm: float) -> bool:
    """Whether an edit asks for another value at x; a ban, whether its feature is active there."""
    f, unit = read(edit.probe, x), norm if edit.relative_to_norm else 1.0
    wanted = min(max(edit.a * f + unit * edit.b, unit * edit.lo), unit * edit.hi)
    return acts(edit, prompt) and f > edit.above and wanted != f


def acting(
    program: SiteProgram, x: Vector, prompt: bool, every: SiteProgram | None = None
) -> dict[str, list[bool]]:
    """Which rows act at x, by stage: the edits on x, the rules on what these leave, the bans on what those
    do."""
    norm = float(np.linalg.norm(x))
    edited, _ = steer(program, x, prompt, every)
    ruled = after_rules(program, x, edited, prompt)
    return {
        stage: [asks(row, at, prompt, norm) for row in rows]
        for (stage, rows), at in zip(program.stages(), (x, edited, ruled), strict=True)
    }


def steer(
    program: SiteProgram, x: Vector, prompt: bool, every: SiteProgram | None = None
) -> tuple[Vector, Vector]:
    """The activation after the edits, and after rules and the bans' pushes but before any projection.

    Rules' fractions are of ‖x‖ as it comes in. Beside an operator's redirects the edits move only what these
    neither read nor write; `every`: the program with those whose condition does not hold now.
    """
    norm = float(np.linalg.norm(x))
    move = sum((change(edit, x, prompt, norm) for edit in program.edits), np.zeros_like(x))
    if reserved := [
        vector(row)
        for _, rule, target in (every or program).redirects
        for row in (rule.probe.read, target.write)
    ]:
        along = np.stack(reserved, axis=1)
        move = move - along @ np.linalg.lstsq(along, move, rcond=1e-9)[0]
    if program.max_relative_norm is not None:
        longest, length = program.max_relative_norm * norm, np.linalg.norm(move)
        move = move * (longest / length if length > longest else 1.0)
    edited = x + move
    ruled = after_rules(program, x, edited, prompt)
    pushed = ruled + sum((change(ban, ruled, prompt, norm) for ban in program.bans), np.zeros_like(x))
    return edited, pushed


def after_rules(program: SiteProgram, clean: Vector, edited: Vector, prompt: bool) -> Vector:
    """The activation as the rules leave it."""
    norm = float(np.linalg.norm(clean))
    moves = (change(rule, edited, prompt, norm) for rule in program.rules)
    return edited + sum(moves, np.zeros_like(clean))


def acts(edit: Edit, prompt: bool) -> bool:
    """Whether an edit's phase holds at a token."""
    return edit.phase is not (Phase.COMPLETION if prompt else Phase.PROMPT)


#: Activations at which a row reads at most a number: the row, and the number.
HalfSpace = tuple[Vector, float]


def half_spaces(program: SiteProgram, clean: Vector, edited: Vector, prompt: bool) -> list[HalfSpace]:
    """What the bans and rules of a program allow at one token: by the values that they ask for.

    A rule says nothing where its probe is banned at the same tokens. Beside what is held anywhere, along the
    targets of redirects x may not fall below where the rules leave it.
    """
    bans = [ban for ban in program.bans if acts(ban, prompt)]
    found = [(vector(ban.probe.read), ban.probe.limit) for ban in bans]
    banned = {ban.probe.key for ban in bans}
    for rule in program.rules:
        probe, unit = rule.probe, float(np.linalg.norm(clean)) if rule.relative_to_norm else 1.0
        if not acts(rule, prompt) or probe.key in banned or rule.target is not None:
            continue
        high, low = rule.hi, rule.lo
        if rule.a == 0.0:
            high = low = min(max(rule.b, rule.lo), rule.hi)
        if not read(probe, edited) > rule.above:
            low = -math.inf
        if math.isfinite(high):
            found.append((vector(probe.read), _read_at(probe, high * unit)))
        if math.isfinite(low) and (probe.linear or low > 0.0):
            found.append((-vector(probe.read), -_read_at(probe, low * unit)))
    if program.bans or any(rule.holds for rule in program.rules):
        ruled = after_rules(program, clean, edited, prompt)
        for _, rule, target in program.redirects:
            if acts(rule, prompt) and rule.factor:
                along = -math.copysign(1.0, rule.factor) * vector(target.write)
                found.append((along, float(along @ ruled)))
    return found


def _read_at(probe: Probe, value: float) -> float:
    """The read at which a probe's value is `value`; at which a feature is just not active for one below 0."""
    if probe.linear:
        return value
    return max(probe.limit, (max(value, 0.0) - probe.value_bias) / probe.gain)


def banned(bans: tuple[Edit, ...]) -> list[HalfSpace]:
    """What bans of all tokens allow."""
    return [(vector(ban.probe.read), ban.probe.limit) for ban in bans]


def excess(allowed: list[HalfSpace], x: Vector) -> Vector:
    """How far x lies beyond each half-space, in units of its row's own read."""
    return np.array([row @ x - limit for row, limit in allowed])


def nearest_allowed(allowed: list[HalfSpace], x: Vector) -> Vector:
    """The projection of x onto half-spaces, by Lawson and Hanson's reduction to NNLS (ch. 23)."""
    rows = np.stack([row for row, _ in allowed])
    lengths = np.linalg.norm(rows, axis=1)
    over = excess(allowed, x) / lengths
    if (over <= 0.0).all():
        return x
    # In units of the greatest excess: what is solved has a 1 in it.
    unit = float(over.max())
    system = np.vstack([-(rows / lengths[:, None]).T, over[None, :] / unit])
    target = np.zeros(len(x) + 1)
    target[-1] = 1.0
    solution, _ = nnls(system, target, maxiter=10_000)
    residual = system @ solution - target
    return np.asarray(x - unit * residual[:-1] / residual[-1])


def settled(program: SiteProgram, x: Vector, prompt: bool, every: SiteProgram | None = None) -> Vector:
    """The activation after everything: edits, rules, pushes, and the projection onto what is allowed.

    every: see `steer`.
    """
    edited, pushed = steer(program, x, prompt, every)
    allowed = half_spaces(program, x, edited, prompt)
    return nearest_allowed(allowed, pushed) if allowed else pushed
