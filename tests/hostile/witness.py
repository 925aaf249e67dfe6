"""A witness of what lies behind every held site: it encodes each token again, in float64, and compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.sites import site_module
from saegis_server.engine.torch.step import Step
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.catalog import Catalog
from saegis_server.steering.bounds import NO_LIMIT
from saegis_server.steering.site import Site
from tests.hostile.edits import Held

#: How far a clamped feature, or one held from both sides, may lie beyond its bound by rounding alone, in
#: float32 at small widths: so many times ‖x‖ and the length of its encoder row. Bans, and caps and floors
#: that stand alone, are held exactly.
CLAMP_ROUNDING = 2.0**-17
#: Of a value, for what float64 rounds when it encodes again.
_WITNESS_ROUNDING = 1e-9


class Witness:
    """Sees the activations behind every held site, after all edits.

    A sequence's first token is left out where it is the model's own BOS, which no row moves; nothing else is.
    """

    def __init__(
        self, model: PreTrainedModel, step: Step, catalog: Catalog, held: tuple[Held, ...], bos: int
    ) -> None:
        """Hook `model`, on whose sites `step` has its own hooks already, so that these come after."""
        self.tokens = self.left_out = 0
        self.awake: list[str] = []
        self.beyond: list[str] = []
        self._step, self._bos = step, bos
        self._ids: Tensor | None = None
        model.get_input_embeddings().register_forward_pre_hook(self._see_tokens)
        for each in held:
            module, _ = site_module(model, each.site)
            sae = catalog.sae(each.sae, "sae").sae
            module.register_forward_hook(self._hook(each, sae))

    def _see_tokens(self, module: object, args: tuple[Tensor, ...]) -> None:
        self._ids = args[0]

    def _hook(self, held: Held, sae: SparseAutoencoder) -> Callable[[object, object, Any], None]:
        features = list(held.features)
        banned = torch.tensor([feature in held.banned for feature in features])
        low = torch.tensor([0.0] * len(held.banned) + [bound.low for bound in held.bounds]).double()
        high = torch.tensor([0.0] * len(held.banned) + [bound.high for bound in held.bounds]).double()
        assert sae.b_enc is not None
        assert sae.threshold is not None
        w_enc, b_enc = sae.W_enc[:, features].double(), sae.b_enc[features].double()
        b_dec, threshold = sae.b_dec.double(), sae.threshold[features].double()
        both = torch.isfinite(low) & torch.isfinite(high) & ~banned
        lengths = torch.where(both, w_enc.norm(dim=0), 0.0)

        def look(module: object, args: object, output: Any) -> None:
            if self._step.context.tokens is None:
                return
            x = self._held_tokens(held.site, output[0] if isinstance(output, tuple) else output)
            pre = (x - b_dec) @ w_enc + b_enc
            f = torch.where(pre > threshold, pre.clamp(min=0.0), 0.0)
            slack = _WITNESS_ROUNDING * (1.0 + high.nan_to_num(posinf=0.0).abs())
            slack = slack + CLAMP_ROUNDING * x.norm(dim=-1, keepdim=True) * lengths
            wrong = torch.where(banned, f > 0.0, (f > high + slack) | (f < low - slack))
            for token, place in wrong.nonzero().tolist():
                told = f"feature {features[place]} at {held.site} is {float(f[token, place]):.9g}"
                (self.awake if banned[place] else self.beyond).append(told)

        return look

    def _held_tokens(self, site: Site, x: Tensor) -> Tensor:
        """The finite activations [T, d] of slots under a ban that no exception leaves alone, in float64."""
        context = self._step.context
        assert self._ids is not None
        assert context.positions is not None
        slots = torch.arange(x.shape[0]) if context.slot is None else context.slot
        ranges = self._step.slots.tables[site].bounds.ranges[slots]
        held = (ranges[:, 0, :, 1] < NO_LIMIT).flatten(1).any(-1)
        begins = (context.positions == 0) & (self._ids == self._bos)
        self.left_out += int((begins & held[:, None]).sum())
        x = x[held[:, None] & ~begins].double()
        x = x[torch.isfinite(x).all(-1)]
        self.tokens += len(x)
        return x
