"""Settings: how a sparse autoencoder is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: The default mean number of active features a token.
DEFAULT_K = 32.0
#: The weight of the L1 penalty in Scaling Monosemanticity (Anthropic, 2024).
DEFAULT_L1 = 5.0


class TrainedArchitecture(StrEnum):
    """The architectures that can be trained, each with its objective."""

    BATCHTOPK = "batchtopk"
    JUMPRELU = "jumprelu"
    STANDARD = "standard"


class Precision(StrEnum):
    """The numbers of the matrix products; weights, sums and the optimizer are float32 in any case."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    def in_bfloat16(self, device: torch.device) -> bool:
        """Whether products on `device` are of bfloat16."""
        return device.type == "cuda" if self is Precision.AUTO else self is Precision.BFLOAT16


@dataclass(frozen=True)
class SAETraining:
    """How to train one SAE.

    architecture: `batchtopk` keeps the k·n strongest activations of a batch of n tokens; `jumprelu` learns a
    threshold for each feature; `standard` is a ReLU with an L1 penalty. features: m, how many there are. k:
    the target mean number of active features a token, 32 by default; a JumpReLU is steered towards it.
    groups: BatchTopK only, the sizes of Matryoshka groups, which sum to `features`. steps, batch: how many
    batches of how many tokens. learning_rate: of Adam, by default 2e-3·√(1024/m): it falls with m as Gao et
    al. (2024, arXiv 2406.04093) found best. warmup, decay: shares of the steps in which the rate rises from 0
    at the start and falls to 0 at the end. clip: the gradient's largest norm. l1_coefficient: `standard`
    only, 5 by default. l0_coefficient: `jumprelu` only: the weight of a plain penalty on L0, in place of the
    steering towards k. sparsity_warmup: the share of the steps in which either penalty rises from 0.
    bandwidth: `jumprelu` only, the width of the kernel that estimates the thresholds' gradient, as a share of
    an activation's norm. auxiliary: the weight of the loss that revives dead features (AuxK), which have not
    fired for `dead_after` tokens; not used by `standard`. seed: of the first weights. precision: `auto` is
    bfloat16 on CUDA. checkpoint_every: steps between checkpoints.

    Raises ValueError, naming the field, for values that make no sense, alone or together.
    """

    architecture: TrainedArchitecture = TrainedArchitecture.BATCHTOPK
    features: int = 1024
    k: float | None = None
    groups: tuple[int, ...] = ()
    steps: int = 4000
    batch: int = 2048
    learning_rate: float | None = None
    warmup: float = 0.03
    decay: float = 0.3
    clip: float = 1.0
    l1_coefficient: float | None = None
    l0_coefficient: float | None = None
    sparsity_warmup: float = 0.05
    bandwidth: float = 0.02
    auxiliary: float = 1 / 32
    dead_after: int = 131_072
    seed: int = 0
    precision: Precision = Precision.AUTO
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for field, kind in (("architecture", TrainedArchitecture), ("precision", Precision)):
            known = tuple(str(choice) for choice in kind)
            if getattr(self, field) not in known:
                raise ValueError(f"{field} is {getattr(self, field)!r}, not one of {', '.join(known)}")
            object.__setattr__(self, field, kind(getattr(self, field)))
        self._check_ranges()
        self._check_sparsity()
        self._check_groups()
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", 2e-3 * math.sqrt(1024 / self.features))

    def _check_ranges(self) -> None:
        for field in ("features", "steps", "batch", "checkpoint_every", "dead_after"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1")
        for field in ("warmup", "decay", "sparsity_warmup"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ValueError(f"{field} is {getattr(self, field)}; it is a share of the steps, 0 to 1")
        if self.warmup + self.decay > 1.0:
            raise ValueError(f"warmup and decay are {self.warmup} and {self.decay}, together above 1")
        for field in ("learning_rate", "clip", "bandwidth"):
            value = getattr(self, field)
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{field} is {value}; it must be above 0 and finite")
        for field in ("auxiliary", "l1_coefficient", "l0_coefficient"):
            value = getattr(self, field)
            if value is not None and not 0.0 <= value < math.inf:
                raise ValueError(f"{field} is {value}; it must be at least 0 and finite")

    def _check_sparsity(self) -> None:
        kind = self.architecture
        if self.l1_coefficient is not None and kind is not TrainedArchitecture.STANDARD:
            raise ValueError(f"l1_coefficient is for the architecture standard, not {kind}; leave it out")
        if self.l0_coefficient is not None and kind is not TrainedArchitecture.JUMPRELU:
            raise ValueError(f"l0_coefficient is for the architecture jumprelu, not {kind}; leave it out")
        if kind is TrainedArchitecture.STANDARD:
            if self.k is not None:
                raise ValueError("k cannot be asked of the architecture standard; set l1_coefficient instead")
            if self.l1_coefficient is None:
                object.__setattr__(self, "l1_coefficient", DEFAULT_L1)
            return
        if self.l0_coefficient is not None:
            if self.k is not None:
                raise ValueError("k and l0_coefficient contradict: with a plain penalty no L0 is aimed at")
            return
        if self.k is None:
            object.__setattr__(self, "k", min(DEFAULT_K, float(self.features)))
        if self.k is None or not 0.0 < self.k <= self.features:
            raise ValueError(f"k is {self.k}; it must be above 0 and at most features, {self.features}")

    def _check_groups(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups:
            return
        if self.architecture is not TrainedArchitecture.BATCHTOPK:
            raise ValueError(f"groups are for the architecture batchtopk, not {self.architecture}")
        if min(self.groups) < 1:
            raise ValueError(f"groups are {list(self.groups)}; each must have at least one feature")
        if sum(self.groups) != self.features:
            raise ValueError(
                f"groups sum to {sum(self.groups)}, but features is {self.features}; they must be equal"
            )

    @property
    def tokens(self) -> int:
        """How many activations are trained on."""
        return self.steps * self.batch

    def rate(self, step: int) -> float:
        """Adam's learning rate at `step`: up linearly, level, and down linearly to 0 after the last step."""
        if self.learning_rate is None:
            raise ValueError("learning_rate is not set")
        up = (step + 1) / max(1.0, self.warmup * self.steps)
        down = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * min(1.0, up, down)

    def sparsity(self, step: int) -> float:
        """The share of the sparsity penalty that counts at `step`: up linearly to 1."""
        return min(1.0, (step + 1) / max(1.0, self.sparsity_warmup * self.steps))
