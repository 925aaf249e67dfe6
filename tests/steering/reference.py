"""The reference for steering: one token, one row at a time, in float64 and plain Python."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Edit, Norm, Phase, Probe

Vector = NDArray[np.float64]


def vector(tensor: Tensor) -> Vector:
    """A tensor as float64."""
    return tensor.detach().to(torch.float64).numpy()


def read(probe: Probe, x: Vector) -> float:
    """The value of one feature or direction at x."""
    if probe.norm is Norm.CONSTANT_NORM:
        x = x * math.sqrt(len(x)) / np.linalg.norm(x)
    elif probe.norm is Norm.LAYER_NORM:
        x = x - x.mean()
        x = x / (x.std(ddof=1) + 1e-5)
    q = float(vector(probe.read) @ x)
    value = probe.gain * q + probe.value_bias
    if probe.linear:
        return value
    return max(value, 0.0) if q + probe.gate_bias > probe.threshold else 0.0


def write_scale(probe: Probe, x: Vector) -> float:
    """What a decoder row is multiplied by at x."""
    if probe.norm is Norm.CONSTANT_NORM:
        return float(np.linalg.norm(x)) / math.sqrt(len(x))
    if probe.norm is Norm.LAYER_NORM:
        return float(x.std(ddof=1))
    return 1.0


def change(edit: Edit, x: Vector, prompt: bool) -> Vector:
    """What one edit adds to x."""
    if (edit.phase is Phase.PROMPT and not prompt) or (edit.phase is Phase.COMPLETION and prompt):
        return np.zeros_like(x)
    f = read(edit.probe, x)
    if edit.only_if_active and not f > 0.0:
        return np.zeros_like(x)
    unit = float(np.linalg.norm(x)) if edit.relative_to_norm else 1.0
    wanted = min(max(edit.a * f + unit * edit.b, unit * edit.lo), unit * edit.hi)
    return (wanted - f) * write_scale(edit.probe, x) * vector(edit.probe.write)


def steer(program: SiteProgram, x: Vector, prompt: bool) -> tuple[Vector, Vector]:
    """The activation after edits and rules, and after the bans' pushes but before their projection."""
    for stage in (program.edits, program.rules):
        move = sum((change(edit, x, prompt) for edit in stage), np.zeros_like(x))
        if stage is program.edits and program.max_relative_norm is not None:
            longest, length = program.max_relative_norm * np.linalg.norm(x), np.linalg.norm(move)
            move = move * (longest / length if length > longest else 1.0)
        x = x + move
    pushed = x + sum((change(edit, x, prompt) for edit in program.bans), np.zeros_like(x))
    return x, pushed


def excess(bans: tuple[Edit, ...], x: Vector) -> Vector:
    """How far each banned row lies above its limit at x, in units of its own read."""
    return np.array([float(vector(ban.probe.read) @ x) - ban.probe.limit for ban in bans])


def nearest_allowed(bans: tuple[Edit, ...], x: Vector) -> Vector:
    """The projection of x onto the allowed activations, by Lawson and Hanson's reduction to NNLS (ch. 23)."""
    rows = np.stack([vector(ban.probe.read) for ban in bans])
    lengths = np.linalg.norm(rows, axis=1)
    over = excess(bans, x) / lengths
    if (over <= 0.0).all():
        return x
    system = np.vstack([-(rows / lengths[:, None]).T, over[None, :]])
    target = np.zeros(len(x) + 1)
    target[-1] = 1.0
    solution, _ = nnls(system, target, maxiter=10_000)
    residual = system @ solution - target
    return np.asarray(x - residual[:-1] / residual[-1])
