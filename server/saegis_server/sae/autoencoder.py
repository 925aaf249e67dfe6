"""The sparse autoencoder in canonical form, in which the server holds it whatever file it came from.

The forward equations are those of SAELens (`sae_lens/saes/{standard,gated,jumprelu}_sae.py`), row vectors:

    x_in      = norm(x) − b_dec·apply_b_dec_to_input
    standard  f = relu(x_in·W_enc + b_enc)
    jumprelu  p = x_in·W_enc + b_enc;  f = relu(p)·[p > threshold]
    gated     f = relu(x_in·(W_enc ∘ exp(r_mag)) + b_mag)·[x_in·W_enc + b_gate > 0]
    topk      as standard, but only the k largest of a token's features stay
    groupmax  as standard, but of each of k groups of features only the largest of a token's stays
    decode    x̂ = norm⁻¹(f·W_dec + b_dec)

A transcoder reads x at one place and tells what is at another: y = f·W_dec + b_dec + x·W_skipᵀ.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from saegis_server.sae.mapped import MappedFile
from saegis_server.steering.normalised import Normalised
from saegis_server.steering.ranking import RankedDictionary
from saegis_server.steering.rows import Norm, Probe, Rank
from saegis_server.steering.table import Rows, rows_of_dictionary


class Architecture(StrEnum):
    """How features are activated; the values are SAELens' names."""

    STANDARD = "standard"
    GATED = "gated"
    JUMPRELU = "jumprelu"


#: The tensors of each architecture and their axes: d is the width, m the number of features.
_SHAPES = {"W_enc": "dm", "W_dec": "md", "b_dec": "d"}
TENSORS: Mapping[Architecture, Mapping[str, str]] = {
    Architecture.STANDARD: {**_SHAPES, "b_enc": "m"},
    Architecture.GATED: {**_SHAPES, "b_gate": "m", "b_mag": "m", "r_mag": "m"},
    Architecture.JUMPRELU: {**_SHAPES, "b_enc": "m", "threshold": "m"},
}
#: What a mapped file may hold its matrices in.
_MATRICES, _STORED = ("W_enc", "W_dec"), (torch.float32, torch.float16, torch.bfloat16)
#: Rows or columns of a matrix of 16 bits that are converted at once.
_AT_ONCE = 16384
_OPTIONAL = ("b_enc", "b_gate", "b_mag", "r_mag", "threshold")


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """One SAE. d is the width of its site, m the number of features. All tensors are float32, but those of a
    mapped file are as they are there; what is read of them is float32.

    W_enc [d, m], W_dec [m, d], b_dec [d]; b_enc [m] (standard, jumprelu); threshold [m] (jumprelu);
    b_gate, b_mag, r_mag [m] (gated). What the architecture does not have is None.

    k: of an SAE that decides by rank, how many features a token may have; None for every other. grouped:
    whether these are the largest of k groups, in each of which m/k features follow each other.
    centred: whether it was trained on x − mean(x), as TransformerLens's `center_writing_weights` makes the
    stream of models with layer norms; W_enc then sums to zero over d, and the mean stays in what it decodes.
    hook_name, model_name: as the file states them, if it does. name: the id by which the server knows it.
    digest: SHA-256 of the files it was read from (by parts, see MappedFile, where they are mapped); if there
    are none, of the tensors. stated_fvu, stated_l0: the reconstruction that the file claims. excluded_tokens:
    the tokens that it was not trained on, which readings and statistics leave out; None means the model's
    special ones. metadata: all else that it states.
    mapped: the file in which W_enc and W_dec lie, if they are no copies.
    hook_name_out: where what a transcoder decodes is, as the file states it; None for an SAE. W_skip [d, d]:
    of a transcoder that has one.
    Raises ValueError, naming the tensor, for a missing or superfluous tensor, a shape that does not fit,
    a dtype other than float32 and numbers that are not finite.
    """

    architecture: Architecture
    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_enc: Tensor | None = None
    b_gate: Tensor | None = None
    b_mag: Tensor | None = None
    r_mag: Tensor | None = None
    threshold: Tensor | None = None
    norm: Norm = Norm.NONE
    apply_b_dec_to_input: bool = True
    k: int | None = None
    grouped: bool = False
    centred: bool = False
    hook_name: str | None = None
    model_name: str | None = None
    name: str = "sae"
    digest: str = ""
    stated_fvu: float | None = None
    stated_l0: float | None = None
    excluded_tokens: frozenset[int] | None = frozenset()
    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    mapped: MappedFile | None = None
    hook_name_out: str | None = None
    W_skip: Tensor | None = None

    def __post_init__(self) -> None:
        required = TENSORS[self.architecture]
        for name in _OPTIONAL:
            if (getattr(self, name) is None) == (name in required):
                verb = "needs" if name in required else "has no"
                raise ValueError(f"the architecture {self.architecture} {verb} {name}")
        check_shapes(self.architecture, self.tensors())
        for name, tensor in self.tensors().items():
            if self.mapped is not None and name in _MATRICES and tensor.dtype in _STORED:
                continue  # whose numbers are known to be finite
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype}, not float32")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} holds numbers that are not finite")
        if self.r_mag is not None and not bool(_usable_gain(self.r_mag)):
            raise ValueError("r_mag holds numbers whose exponential is zero or infinite in float32")
        self._check_folding()
        self._check_rank()
        self._check_transcoder()
        if not self.digest:
            object.__setattr__(self, "digest", self._content_digest())

    def _check_rank(self) -> None:
        if self.k is None:
            if self.grouped:
                raise ValueError("grouped is true, but there is no k, the number of groups")
            return
        if self.architecture is not Architecture.STANDARD or not 1 <= self.k <= self.features:
            raise ValueError(f"k is {self.k}: of {self.features} features of a {self.architecture} SAE")
        if self.grouped and self.features % self.k:
            raise ValueError(
                f"k is {self.k}: {self.features} features make no {self.k} groups of equal length"
            )

    def _check_folding(self) -> None:
        """Check that the biases of every probe are finite in float32."""
        if self.mapped is not None:
            # Without a look at every row: no sum is larger than this.
            most = self.mapped.largest * float(self._read_bias.double().abs().sum())
            if self.r_mag is not None:
                most *= max(1.0, float(self.r_mag.double().exp().max()))
            if most <= torch.finfo(torch.float32).max:
                return
        shift = times(self._read_bias, self.W_enc)
        if self.r_mag is not None:
            shift = shift * self.r_mag.exp().clamp(min=1.0)
        if not bool(torch.isfinite(shift).all()):
            raise ValueError("b_dec·W_enc is not finite in float32")

    def _check_transcoder(self) -> None:
        if self.hook_name_out is not None and (self.norm is not Norm.NONE or self.apply_b_dec_to_input):
            raise ValueError("a transcoder that normalises what it reads or subtracts b_dec is not known")
        if self.W_skip is None:
            return
        if self.hook_name_out is None:
            raise ValueError("W_skip is of transcoders alone")
        shape, wanted = list(self.W_skip.shape), [self.width, self.width]
        if shape != wanted or self.W_skip.dtype != torch.float32:
            raise ValueError(f"W_skip has the shape {shape} ({self.W_skip.dtype}), not {wanted} of float32")
        if not bool(torch.isfinite(self.W_skip).all()):
            raise ValueError("W_skip holds numbers that are not finite")

    @property
    def width(self) -> int:
        """d: the width of the activations that it reads."""
        return self.W_enc.shape[0]

    @property
    def features(self) -> int:
        """m: how many features it has."""
        return self.W_enc.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of its architecture, by SAELens' names."""
        return {name: getattr(self, name) for name in TENSORS[self.architecture]}

    @property
    def activation(self) -> str:
        """How it activates its features, as people call it: its architecture, or topk or groupmax."""
        return str(self.architecture) if self.k is None else "groupmax" if self.grouped else "topk"

    @property
    def _groups(self) -> tuple[int, int]:
        """How many groups there are in which rank decides, and of how many features of each at most."""
        return (self.k or 1, 1) if self.grouped else (1, self.k or 1)

    def _content_digest(self) -> str:
        form = f"{self.architecture} {self.norm.name} {self.apply_b_dec_to_input}"
        if self.k is not None or self.centred:
            form += f" {self.k} {self.centred}"
        if self.grouped:
            form += " grouped"
        state = hashlib.sha256(form.encode())
        if self.hook_name_out is not None:
            state.update(f"\0to {self.hook_name_out}\0".encode())
        skip = {} if self.W_skip is None else {"W_skip": self.W_skip}
        for name, tensor in sorted({**self.tensors(), **skip}.items()):
            state.update(f"\0{name} {list(tensor.shape)}\0".encode())
            state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return state.hexdigest()

    @cached_property
    def _read_bias(self) -> Tensor:
        """The vector [d] that is subtracted from norm(x) before encoding."""
        return self.b_dec if self.apply_b_dec_to_input else torch.zeros_like(self.b_dec)

    def _require(self, name: str) -> Tensor:
        tensor = getattr(self, name)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"the architecture {self.architecture} has no {name}")
        return tensor

    def encode(self, x: Tensor) -> Tensor:
        """The activations of all features, float32 [..., m], from x [..., d] of any float dtype."""
        x_in = Normalised.of(self._checked(x), self.norm).values - self._read_bias
        if self.architecture is Architecture.GATED:
            read = times(x_in, self.W_enc)
            gate = read + self._require("b_gate") > 0.0
            magnitude = read * self._require("r_mag").exp() + self._require("b_mag")
            return gate * magnitude.relu()
        p = times(x_in, self.W_enc) + self._require("b_enc")
        if self.architecture is Architecture.JUMPRELU:
            return p.relu() * (p > self._require("threshold"))
        if self.k is None:
            return p.relu()
        groups, kept = self._groups
        grouped = p.reshape(*p.shape[:-1], groups, -1)
        largest = grouped.topk(kept, dim=-1)
        return torch.zeros_like(grouped).scatter(-1, largest.indices, largest.values.relu()).flatten(-2)

    def only(self, features: Sequence[int]) -> "SparseAutoencoder":
        """An SAE of some of its features, in this order, which encodes each as this one does: the cost of
        reading a few does not grow with all. Raises IndexError for a feature that does not exist, and
        ValueError for an SAE that decides by rank."""
        if self.k is not None:
            raise ValueError(
                f"the SAE {self.name} decides by rank among all features which {self.k} are active"
            )
        for feature in features:
            self.check_feature(feature)
        if self.mapped is not None:
            self.mapped.require_unchanged()
        chosen = torch.tensor(list(features), dtype=torch.int64, device=self.W_enc.device)
        axes = TENSORS[self.architecture]
        tensors = {
            name: tensor if name == "b_dec" else tensor.index_select(axes[name].index("m"), chosen).float()
            for name, tensor in self.tensors().items()
        }
        return replace(self, **tensors, digest="", mapped=None)  # type: ignore[arg-type]

    def decode(self, f: Tensor, x: Tensor) -> Tensor:
        """The reconstruction x̂, or what a transcoder tells, float32 [..., d], of the features f [..., m].

        x [..., d] is the activation that f came from: its norm, or its mean and deviation, scale the result.
        """
        if f.shape[-1] != self.features:
            raise ValueError(f"f has {f.shape[-1]} features; this SAE has {self.features}")
        normalised = Normalised.of(self._checked(x), self.norm)
        decoded = (times(f, self.W_dec) + self.b_dec) * normalised.scale + normalised.shift
        if self.W_skip is not None:
            decoded = decoded + x.to(torch.float32) @ self.W_skip.T
        return decoded + x.to(torch.float32).mean(-1, keepdim=True) if self.centred else decoded

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim == 0 or x.shape[-1] != self.width:
            raise ValueError(
                f"x has the shape {list(x.shape)}; this SAE reads activations of width {self.width}"
            )
        return x.to(torch.float32)

    def check_feature(self, feature: int) -> None:
        """Raise IndexError if there is no such feature."""
        if not 0 <= feature < self.features:
            raise IndexError(
                f"feature {feature} does not exist: the SAE {self.name} has features 0 to {self.features - 1}"
            )

    def probe(self, feature: int) -> Probe:
        """How to read and write one feature. b_dec is folded into its biases, in float64 and then rounded.

        Raises IndexError for a feature that does not exist, and SAEFileError where a mapped file has changed.
        """
        self.check_feature(feature)
        if self.mapped is not None:
            self.mapped.require_unchanged()
        read = self.W_enc[:, feature].to(torch.float32, copy=True)
        shift = float(self._read_bias.double() @ read.double())
        gain, threshold = 1.0, 0.0
        if self.architecture is Architecture.GATED:
            gain = math.exp(float(self._require("r_mag")[feature]))
            gate_bias = float(self._require("b_gate")[feature]) - shift
            value_bias = float(self._require("b_mag")[feature]) - gain * shift
        else:
            gate_bias = value_bias = float(self._require("b_enc")[feature]) - shift
        if self.architecture is Architecture.JUMPRELU:
            threshold = float(self._require("threshold")[feature])
        return Probe(
            key=f"sae:{self.digest}:{feature}",
            read=read,
            write=self.W_dec[feature].to(torch.float32, copy=True),
            gate_bias=_round(gate_bias),
            threshold=threshold,
            gain=_round(gain),
            value_bias=_round(value_bias),
            norm=self.norm,
            rank=self._rank(feature),
        )

    def _rank(self, feature: int) -> Rank | None:
        """What must be true of the rank of a feature for it to be active; None if nothing."""
        if self.k is None:
            return None
        groups, kept = self._groups
        return Rank(self.digest, kept, groups, feature // (self.features // groups))

    def ranked(self, device: torch.device | str) -> RankedDictionary | None:
        """What tells which of its features are active where that is decided by rank, on a device; else None.

        The encoder is its own where it lies there already, and is no part of a mapped file, which may change.
        Raises SAEFileError where that has changed.
        """
        if self.k is None:
            return None
        if self.mapped is not None:
            self.mapped.require_unchanged()
        encoder, (groups, kept) = self.W_enc.to(device, copy=self.mapped is not None), self._groups
        bias = (self._require("b_enc").double() - self._shift()).to(device, torch.float32)
        return RankedDictionary(self.digest, encoder, bias, kept, groups, self.norm)

    def _shift(self) -> Tensor:
        """What the biases of all features are less by, since b_dec is folded into them: float64 [m]."""
        parts = torch.split(self.W_enc, 4096, 1)  # in float64 all of it is large
        return torch.cat([self._read_bias.double() @ part.double() for part in parts])

    def rows(self) -> Rows:
        """How all features are read, in their order, each as `probe` says; where rank decides, the cuts are
        those of this SAE alone."""
        shift = self._shift()
        gain, threshold = torch.ones_like(shift), torch.zeros_like(shift)
        if self.architecture is Architecture.GATED:
            gain = self._require("r_mag").double().exp()
            gate_bias = self._require("b_gate").double() - shift
            value_bias = self._require("b_mag").double() - gain * shift
        else:
            gate_bias = value_bias = self._require("b_enc").double() - shift
        if self.architecture is Architecture.JUMPRELU:
            threshold = self._require("threshold").double()
        rounded = gate_bias.float().double()
        return rows_of_dictionary(
            self.W_enc.to(torch.float32),
            rounded,
            threshold,
            gain,
            value_bias,
            self.norm,
            0 if self.k is None else self._groups[0],
        )


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """x·matrix in float32, for x [..., a] and a matrix [a, b]; one of 16 bits is converted part by part."""
    if matrix.dtype == torch.float32:
        return x @ matrix
    if matrix.shape[0] > matrix.shape[1]:
        total = x.new_zeros(*x.shape[:-1], matrix.shape[1])
        for part, rows in zip(torch.split(x, _AT_ONCE, -1), torch.split(matrix, _AT_ONCE), strict=True):
            total += part @ rows.to(torch.float32)
        return total
    return torch.cat([x @ part.to(torch.float32) for part in torch.split(matrix, _AT_ONCE, 1)], -1)


def check_shapes(architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the tensor, unless all shapes fit together.

    d and m are taken from the biases, so that a transposed matrix is recognised as one.
    """
    shapes = TENSORS[architecture]
    sizes: dict[str, int] = {}
    for name, axes in shapes.items():
        shape = list(tensors[name].shape)
        if len(shape) != len(axes):
            raise ValueError(
                f"{name} has the shape {shape}, not {len(axes)} dimension{'s' * (len(axes) > 1)}"
            )
        if len(axes) == 1:
            sizes.setdefault(axes, shape[0])
    for name, axes in shapes.items():
        shape = list(tensors[name].shape)
        expected = [sizes[axis] for axis in axes]
        if shape == expected and min(shape) > 0:
            continue
        turned = "; it is transposed" if len(axes) == 2 and shape == expected[::-1] else ""
        meaning = ", ".join({"d": "width", "m": "features"}[axis] for axis in axes)
        raise ValueError(
            f"{name} has the shape {shape}; {expected} ({meaning}) fits the other tensors{turned}"
        )


def _usable_gain(r_mag: Tensor) -> Tensor:
    gain = r_mag.exp()
    return (torch.isfinite(gain) & (gain > 0.0)).all()


def _round(number: float) -> float:
    """The nearest float32."""
    return float(torch.tensor(number, dtype=torch.float32))
