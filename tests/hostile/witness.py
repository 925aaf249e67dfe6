"""A witness of what lies behind every held site: it encodes each token again, in float64, and compares.

Of a redirect it sees the activation as it comes in, too: it works out what the redirect reads there and what
it writes along its target, and whether x lies there behind the site.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.catalog import Catalog
from saegis_server.steering.bounds import NO_LIMIT
from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site
from saegis_server.steering.table import UNBOUNDED, Column, Rows
from tests.hostile.edits import Held, Redirected
from tests.hostile.watched import Look, Watched

#: How far a clamped feature, or one held from both sides, may lie beyond its bound by rounding alone, in
#: float32 at small widths: so many times ‖x‖ and the length of its encoder row. Bans, and caps and floors
#: that stand alone, are held exactly.
CLAMP_ROUNDING = 2.0**-17
#: Of a value, for what float64 rounds when it encodes again.
_WITNESS_ROUNDING = 1e-9
#: What float32 may lose of a sum at small widths: so many times what was added up.
_SUM_ROUNDING = 2.0**-18


def _value(probe: Probe, q: Tensor) -> Tensor:
    """The value of a feature from its reads r·x."""
    value = (probe.gain * q + probe.value_bias).clamp(min=0.0)
    return torch.where(q + probe.gate_bias > probe.threshold, value, 0.0)


def _farthest(edits: Rows, slots: Tensor, x: Tensor) -> Tensor:
    """How far a request's edits may move each token of x [T, d] at most, one by one and added up."""
    numbers = edits.numbers[slots].double()
    read, write = (vectors[slots] for vectors in edits.vectors.double().norm(dim=-1).unbind(1))
    size = x.double().norm(dim=-1, keepdim=True)
    f = numbers[:, Column.GAIN].abs() * read * size + numbers[:, Column.BIAS].abs()
    bounds = numbers[:, [Column.B, Column.LO, Column.HI]].abs()
    wanted = torch.where(bounds < UNBOUNDED / 2.0, bounds, 0.0).sum(1)
    unit = torch.where(numbers[:, Column.RELATIVE] > 0.0, size, 1.0)
    change = (1.0 + numbers[:, Column.A].abs()) * f + unit * wanted
    farthest: Tensor = (change * write).sum(-1)
    return farthest


class Witness:
    """Sees the activations behind every held site, after all edits.

    A sequence's first token is left out where it is the model's own BOS, which no row moves; nothing else is.
    """

    def __init__(
        self,
        watched: Watched,
        catalog: Catalog,
        held: tuple[Held, ...],
        bos: int,
        activations: torch.dtype = torch.float32,
    ) -> None:
        """Watch an engine from now on, whose activations are of this type."""
        self.tokens = self.left_out = 0
        self.awake: list[str] = []
        self.beyond: list[str] = []
        self.undone: list[str] = []
        self.redirected = 0
        self._watched, self._bos = watched, bos
        # What writing x in its type may change of it beside what float32's sums do: so many times ‖x‖.
        wide = activations is torch.float32
        self._stored = 0.0 if wide else torch.finfo(activations).eps / 2.0
        for each in held:
            sae = catalog.sae(each.sae, "sae").sae
            if each.held:
                watched.behind(each.site, self._look(each, sae))
            for redirected in each.redirected:
                before, behind = self._redirect_looks(each.site, redirected, sae)
                watched.before(each.site, before)
                watched.behind(each.site, behind)

    def _look(self, held: Held, sae: SparseAutoencoder) -> Look:
        features = list(held.held)
        banned = torch.tensor([feature in held.banned for feature in features])
        low = torch.tensor([0.0] * len(held.banned) + [bound.low for bound in held.bounds]).double()
        high = torch.tensor([0.0] * len(held.banned) + [bound.high for bound in held.bounds]).double()
        assert sae.b_enc is not None
        w_enc, b_enc = sae.W_enc[:, features].double(), sae.b_enc[features].double()
        # Where rank decides, what is held is held whatever the rank: as if it were active.
        own = torch.zeros_like(sae.b_enc) if sae.threshold is None else sae.threshold
        b_dec, threshold = sae.b_dec.double(), own[features].double()
        both = torch.isfinite(low) & torch.isfinite(high) & ~banned
        lengths = torch.where(both, w_enc.norm(dim=0), 0.0)

        def look(behind: Tensor) -> None:
            x = self._held_tokens(held.site, behind)
            pre = (x - b_dec) @ w_enc + b_enc
            f = torch.where(pre > threshold, pre.clamp(min=0.0), 0.0)
            slack = _WITNESS_ROUNDING * (1.0 + high.nan_to_num(posinf=0.0).abs())
            rounding = CLAMP_ROUNDING + self._stored
            slack = slack + rounding * x.norm(dim=-1, keepdim=True) * lengths
            wrong = torch.where(banned, f > 0.0, (f > high + slack) | (f < low - slack))
            for token, place in wrong.nonzero().tolist():
                told = f"feature {features[place]} at {held.site} is {float(f[token, place]):.9g}"
                (self.awake if banned[place] else self.beyond).append(told)

        return look

    def _redirect_looks(
        self, site: Site, redirected: Redirected, sae: SparseAutoencoder
    ) -> tuple[Look, Look]:
        """What keeps the activation as it comes in, and what compares it with what lies behind the site."""
        probes, clean = [sae.probe(index) for index in redirected.features], list[Tensor]()
        target = redirected.target(sae).write.double()
        reads = torch.stack([probe.read for probe in probes]).double()
        own = torch.stack([probe.write for probe in probes]).double() @ target
        along = redirected.factor * float(target @ target) - (1.0 + redirected.strength) * own

        def value(q: Tensor) -> Tensor:
            columns = zip(probes, q.unbind(-1), strict=True)
            f = torch.stack([_value(probe, column) for probe, column in columns], dim=-1)
            return torch.where(f > redirected.threshold, f, 0.0)

        def before(x: Tensor) -> None:
            clean[:] = [x.clone()]

        def behind(result: Tensor) -> None:
            if (seen := self._seen()) is None:
                return
            tables, (slots, begins) = self._watched.table(site), seen
            acts = tables.rules.numbers[:, [Column.IN_PROMPT, Column.IN_COMPLETION]] > 0.0
            ruled = acts.any(-1).any(-1)[slots]
            kept = ruled & ~begins & torch.isfinite(result).all(-1)
            moved = _farthest(tables.edits, slots[kept], clean[0][kept])
            limits = (tables.bounds.ranges[:, :, :, 1] < NO_LIMIT).flatten(1).any(-1)
            limited = limits[slots][kept]
            x, y = clean[0][kept].double(), result[kept].double()
            # float32 may read either side of a feature's threshold.
            lost = _SUM_ROUNDING * (x.norm(dim=-1) + y.norm(dim=-1) + moved)
            q, noise = x @ reads.T, lost[:, None] * reads.norm(dim=1)
            sides = torch.stack((value(q - noise) * along, value(q + noise) * along))
            at, found = x @ target, y @ target
            slack = lost * float(target.norm()) * (1.0 + redirected.factor)
            # What storing changes, and the margins of bans, which are a few times that.
            slack = slack + 4.0 * self._stored * y.norm(dim=-1) * float(target.norm())
            low, high = at + sides.amin(0).sum(-1) - slack, at + sides.amax(0).sum(-1) + slack
            self.redirected += int((value(q).sum(-1) > 0.0).sum())
            for token in ((found < low) | ((found > high) & ~limited)).nonzero()[:, 0].tolist():
                told = f"{found[token]:.9g}, not {low[token]:.9g} to {high[token]:.9g}"
                self.undone.append(f"along {redirected.target(sae).name} at {site}: {told}")

        return before, behind

    def _seen(self) -> tuple[Tensor, Tensor] | None:
        """Of the step's tokens the slots, and which are their sequences' first ones and the model's own BOS,
        which no row moves; None where nothing is steered."""
        if (seen := self._watched.tokens()) is None:
            return None
        return seen.slots, (seen.positions == 0) & (seen.ids == self._bos)

    def _held_tokens(self, site: Site, x: Tensor) -> Tensor:
        """The finite activations [T, d] of slots under a ban that no exception leaves alone, in float64."""
        if (seen := self._seen()) is None:
            return x.new_zeros(0, x.shape[-1]).double()
        slots, begins = seen
        ranges = self._watched.table(site).bounds.ranges
        held = (ranges[:, 0, :, 1] < NO_LIMIT).flatten(1).any(-1)[slots]
        self.left_out += int((begins & held).sum())
        x = x[held & ~begins].double()
        x = x[torch.isfinite(x).all(-1)]
        self.tokens += len(x)
        return x
