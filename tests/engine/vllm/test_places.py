"""Places in layers whose stream is in two parts, as vLLM's are, against the same layers with one."""

import pytest
import torch
from torch import Tensor, nn

from saegis_server.engine.torch.sequence import RowCounts
from saegis_server.engine.vllm.orders import Order
from saegis_server.engine.vllm.places import check_places, layers_of, sites_of, steer_model
from saegis_server.engine.vllm.steered import Steered
from saegis_server.steering import rows
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Norm, Probe
from saegis_server.steering.site import Site, SiteError, Widths
from saegis_server.steering.table import Capacity

WIDTH = 8


class Normed(nn.Module):
    """A norm that takes what was added and the stream."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return x
        stream = x + residual
        return stream / stream.norm(dim=-1, keepdim=True), stream


class Layer(nn.Module):
    """A layer as those of vLLM's Llama."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.self_attn, self.mlp = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.input_layernorm, self.post_attention_layernorm = Normed(), Normed()

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual = hidden_states
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states, residual = self.post_attention_layernorm(self.self_attn(hidden_states), residual)
        return self.mlp(hidden_states), residual


class Model(nn.Module):
    """Three of them; gives the stream after each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(seed) for seed in range(3))

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []
        residual: Tensor | None = None
        for layer in self.layers:
            x, residual = layer(torch.arange(len(x)), x, residual)
            found.append((x, residual))
        return found


def joined(parts: tuple[Tensor, Tensor]) -> Tensor:
    """The stream."""
    return parts[0] + parts[1]


def steered_at(site: Site, steers: bool) -> tuple[Model, Steered]:
    """The model with a text in slot 0 that adds along a direction, or is only read, and one that nothing
    moves in slot 1."""
    model, capacity = Model().requires_grad_(False), Capacity(2, 2, 2, 2, 2)
    steered = Steered({site: frozenset((Norm.NONE,))}, Widths(WIDTH), 2, capacity)
    steer_model(model, 3, sites_of(steered))
    probe = Probe.direction(torch.arange(1.0, WIDTH + 1))
    program = SiteProgram(edits=(rows.add(probe, 2.0),) if steers else (), watches=(probe,))
    counts = RowCounts(int(steers), 0, 0, 1, 0)
    steered.admit("moved", Order(0, {site: AdmittedRows.of(program, site)}, counts, 9))
    steered.admit("other", Order(1, {}, RowCounts(0, 0, 0, 0, 0), 9))
    return model, steered


@pytest.mark.parametrize("place", ["resid_pre", "resid_mid", "resid_post", "mlp_out", "mlp_in", "attn_out"])
def test_a_text_is_moved_by_what_it_asks_for_and_its_neighbour_keeps_its_bits(place: str) -> None:
    site = Site.parse(f"layers.1.{place}")
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
    model, steered = steered_at(site, steers=True)
    plain = Model()(x)
    steered.begin(["moved", "other"], [0, 0], [3, 2])
    found = model(x)
    (told, other) = steered.finish(torch.zeros(2, 4), torch.zeros(5, 4), lambda given: given)
    assert told.watched is not None
    before, after = told.watched[0, -1, 0].tolist()
    assert after - before == pytest.approx(2.0, abs=1e-4)
    for (hidden, stream), (own, own_stream) in zip(found, plain, strict=True):
        assert torch.equal(hidden[3:], own[3:])
        assert torch.equal(stream[3:], own_stream[3:])
    assert not torch.equal(joined(found[2])[:3], joined(plain[2])[:3])
    assert other.finite
    if place == "resid_post":
        hidden, stream = found[1]
        assert not hidden[:3].any(), "what was added is in the stream"
        wanted = joined(plain[1])[:3] + 2.0 * Probe.direction(torch.arange(1.0, WIDTH + 1)).write
        assert torch.allclose(stream[:3], wanted, atol=1e-5)


def test_outside_of_a_step_and_where_nothing_may_move_all_stays_as_it_is() -> None:
    site = Site.parse("layers.1.resid_post")
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
    model, steered = steered_at(site, steers=False)
    plain = Model()(x)
    for begun in (False, True):
        if begun:
            steered.begin(["moved", "other"], [0, 0], [2, 2])  # and padding
        found = model(x)
        assert all(
            torch.equal(one, other)
            for pair in zip(found, plain, strict=True)
            for one, other in zip(*pair, strict=True)
        )
    steered.abandon()
    assert steered.writes is None


def test_places_that_are_not_served_are_refused_by_name() -> None:
    with pytest.raises(SiteError, match="read at one place and written at another"):
        check_places([Site.parse("layers.0.mlp_in_to_out")])
    check_places([Site.parse("layers.0.attn_z")])
    with pytest.raises(SiteError, match="with tensor_parallel_size 2 no rank has all heads' outputs"):
        check_places([Site.parse("layers.0.attn_z")], ranks=2)
    with pytest.raises(SiteError, match="Model has 0 lists of 4 decoder layers"):
        layers_of(Model(), 4)
    model = Model()
    model.layers[1].post_attention_layernorm = nn.LayerNorm(WIDTH)
    steered = Steered(
        {Site.parse("layers.1.resid_mid"): frozenset((Norm.NONE,))}, Widths(WIDTH), 2, Capacity()
    )
    with pytest.raises(SiteError, match="no norm takes the stream apart"):
        steer_model(model, 3, sites_of(steered))
