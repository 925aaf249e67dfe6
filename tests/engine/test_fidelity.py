"""The comparison at a start: what would be served otherwise than Transformers runs it is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from saegis_server.engine.api import FidelityError
from saegis_server.engine.torch import attention, masks, reference
from saegis_server.engine.torch.build import build_step, make_ready
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.rope import FrozenRope, freeze_rope
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.torch.step import Step
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.small_models import SmallModel

_LONG = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [2.0, 4.0, 6.0, 8.0],
    },
    "original_max_position_embeddings": 48,
}


def decoder_of(model: PreTrainedModel) -> Any:
    """The part of a model that its layers and its RoPE are in."""
    find: Any = model.get_decoder
    return find()


def built(model: PreTrainedModel, *sites: str, length: int = 64) -> Step:
    """A step as a start builds it."""
    loaded = LoadedModel("small", model, tiny.tokenizer(), "", (tiny.EOS,), 256)
    norms = dict.fromkeys(map(Site.parse, sites), frozenset((Norm.NONE,)))
    return build_step(loaded, norms, Wishes(count=2, length=length), Capacity(), False, lambda *_: None)


def start(model: PreTrainedModel, *sites: str) -> None:
    """A start up to where it would serve."""
    make_ready(built(model, *sites), lambda *_: None, False)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Any], None]:
    """Lets another function take the place of one that is registered with Transformers."""

    def replace(interface: Any, function: Any) -> None:
        monkeypatch.setitem(interface._global_mapping, attention.NAME, function)

    return replace


def without_window(*given: Any, mask_function: Any, **named: Any) -> Tensor:
    """Which places a token sees if nothing but their order counts."""

    def causal(_row: Tensor, _head: Tensor, query: Tensor, place: Tensor) -> Tensor:
        return place <= query

    return masks.visible(*given, mask_function=causal, **named)


def test_a_window_that_is_not_kept_is_refused_with_both_numbers(registered: Any) -> None:
    start(SmallModel("mistral").build())
    registered(AttentionMaskInterface, without_window)
    with pytest.raises(FidelityError, match=r"read in chunks: the logit of token \d+ is -?[\d.]+, and with"):
        start(SmallModel("mistral").build())


def test_a_window_that_is_too_long_to_be_run_past_is_compared_by_its_mask(
    registered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_AFFORDABLE", {"cpu": 0})
    wide = SmallModel("gemma2", {"sliding_window": 30})
    known = built(wide.build()).reference
    assert known is not None
    assert len(known.tokens) == reference.SHORT
    assert [(seen.length, [int(each.sum()) for each in seen.layers]) for seen in known.seen] == [
        (36, [30, 36])
    ]
    start(wide.build())
    registered(AttentionMaskInterface, without_window)
    with pytest.raises(FidelityError, match=r"token 36 of a text sees 36 tokens in layer 0, and with .* 30"):
        start(wide.build())


def test_what_a_neighbour_changes_is_refused(registered: Any) -> None:
    """The rows of a batch see each other's last key."""

    def mixing(module: Any, query: Tensor, key: Tensor, *others: Any, **named: Any) -> Any:
        if query.shape[2] == 1 and float(module.saegis_context.positions[1]) > 0:
            key = key.roll(1, 0)
        return attention.attend(module, query, key, *others, **named)

    registered(AttentionInterface, mixing)
    with pytest.raises(FidelityError, match="a text that goes on beside another"):
        start(SmallModel("llama").build())


def test_a_site_at_which_the_streams_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def recorded(model: PreTrainedModel, sites: Any, served: int) -> Any:
        found = reference.record(model, sites, served)
        assert found is not None
        return found._replace(steered=found.steered + 1)

    monkeypatch.setattr("saegis_server.engine.torch.build.record", recorded)
    with pytest.raises(FidelityError, match="a steered text"):
        start(SmallModel("llama").build(), "layers.0.resid_post")


@pytest.mark.parametrize(
    ("length", "told"), [(48, None), (128, "up to 48 tokens, whose frequencies would else be others")]
)
def test_a_frozen_rope_is_that_of_a_text_as_long_as_the_context(length: int, told: str | None) -> None:
    model = SmallModel("phi3", _LONG).build()
    rope, x, positions = decoder_of(model).rotary_emb, torch.zeros(1, 1, 1), torch.arange(length)[None]
    wanted = rope(x, positions)
    said = freeze_rope(model, length)
    frozen = decoder_of(model).rotary_emb
    assert isinstance(frozen, FrozenRope)
    assert said is not None
    assert (told or "RoPE (longrope) is frozen for a context of 48 tokens") in said
    assert (told is None) is (";" not in said)
    for place in (0, 7, length - 1):
        for mine, theirs in zip(frozen(x, positions[:, place : place + 1]), wanted, strict=True):
            assert torch.equal(mine[0, 0], theirs[0, place])
    assert freeze_rope(model, length) is None


def test_a_rope_that_does_not_vary_is_left_as_it_is() -> None:
    model = SmallModel("llama").build()
    rope = decoder_of(model).rotary_emb
    assert freeze_rope(model, 64) is None
    assert decoder_of(model).rotary_emb is rope
