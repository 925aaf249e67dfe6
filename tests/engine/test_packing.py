"""Packing: the same products by packed weights, and originals dropped where nothing else reads them."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from saegis_server.engine.torch import packing
from saegis_server.engine.torch.build import build_step
from saegis_server.engine.torch.loading import LoadedModel, load_model
from saegis_server.engine.torch.memory import MappedFiles
from saegis_server.engine.torch.packing import PackedLinear, Packing, pays, why_slow
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.hooked import differs, generate

needs_packing = pytest.mark.skipif(not pays(tiny.model()), reason="packing does not pay on this processor")
pytestmark = needs_packing


def logits(model: Any, seed: int = 1) -> Tensor:
    """Of every token of a text, [T, V]."""
    with torch.inference_mode():
        found: Tensor = model(input_ids=torch.tensor([tiny.prompt_of(seed, 20)]), use_cache=False).logits[0]
    return found


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that multiply by a weight, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear | Conv1D)}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_weight_of_a_family_is_packed_and_its_logits_stay(family: str) -> None:
    model = tiny.model(family)
    wanted, before = logits(model), layers(model)
    weights = {name: layer.weight.detach().clone() for name, layer in before.items()}  # type: ignore[operator]
    found = Packing(model)
    assert len(found) == len({id(layer.weight) for layer in before.values()})
    found.pack()
    assert not layers(model)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)
    for name, layer in before.items():
        packed = model.get_submodule(name)
        assert isinstance(packed, PackedLinear)
        assert torch.equal(packed.weight, weights[name].T if isinstance(layer, Conv1D) else weights[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_product_is_that_of_the_weight_for_any_rows(dtype: torch.dtype, bias: bool) -> None:
    if dtype == torch.bfloat16 and not packing._multiplies_bfloat16():
        pytest.skip("this processor does not multiply bfloat16")
    torch.manual_seed(0)
    plain = nn.Linear(70, 33, bias=bias).to(dtype).requires_grad_(False)
    packed = PackedLinear(torch.ops.mkldnn._reorder_linear_weight(plain.weight, 16), plain.bias)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    for shape in ((0, 70), (1, 70), (3, 0, 70), (2, 1, 70), (5, 7, 70), (300, 70)):
        x = torch.randn(shape).to(dtype)
        exact = functional.linear(x.double(), plain.weight.double(), plain.bias.double() if bias else None)
        torch.testing.assert_close(packed(x).double(), exact, rtol=bound, atol=bound)
    across = torch.randn(70, 9).to(dtype).T
    assert torch.equal(packed(across), packed(across.contiguous()))


def test_originals_are_dropped_but_for_those_that_a_table_reads() -> None:
    model = tiny.model(tie_word_embeddings=True)
    originals = {name: weakref.ref(layer.weight) for name, layer in layers(model).items()}
    found = Packing(model)
    assert found.on_top == 5 * 64 * tiny.WIDTH * 4  # 260 rows of float32, filled up to blocks of 64
    assert found.on_top < found.meanwhile < found.takes
    assert "60.0 KiB of it on top of what they took" in str(found)
    found.pack()
    assert {name for name, original in originals.items() if original() is not None} == {"lm_head"}
    table: Any = model.get_input_embeddings()
    assert torch.equal(model.get_submodule("lm_head").weight, table.weight)  # type: ignore[arg-type]


def test_weights_that_lie_in_their_file_give_nothing_back(tmp_path: Path) -> None:
    """The kernel counts the pages of a file as free: what is packed of them is taken anew."""
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    read = load_model(str(tmp_path), "float32").model
    mapped, files = Packing(read), MappedFiles()
    in_file = [files.holds(layer.weight) for layer in layers(read).values()]  # type: ignore[arg-type]
    assert len(set(in_file)) == 1
    assert mapped.on_top == (mapped.takes if in_file[0] else 0)
    assert not Packing(tiny.model()).on_top


def test_what_is_mapped_is_told_from_memory(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(2**16))
    mapped = torch.from_file(str(path), size=2**14, dtype=torch.float32)
    own = torch.zeros(2**14)
    files = MappedFiles()
    assert files.holds(mapped)
    assert files.holds(mapped[100:])
    assert not files.holds(own)


class Scaling(nn.Module):
    """A layer whose weight its parent also reads."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """The product, by its weight's own size."""
        weight: Tensor = self.inner.weight  # type: ignore[assignment]
        found: Tensor = self.inner(x) / weight.abs().amax()
        return found


def test_a_weight_that_is_read_otherwise_stays_as_it_is() -> None:
    model = tiny.model()
    layer: Any = model.get_submodule("model.layers.1.mlp")
    layer.up_proj = Scaling(layer.up_proj)
    wanted, count = logits(model), len(layers(model))
    found = Packing(model)
    assert len(found) == count - 1
    found.pack()
    assert list(layers(model)) == ["model.layers.1.mlp.up_proj.inner"]
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)


def test_a_weight_that_no_token_needed_stays_as_it_is() -> None:
    model = tiny.model()
    model.get_submodule("model.layers.0").idle = nn.Linear(4, 4)
    found = Packing(model)
    found.pack()
    assert list(layers(model)) == ["model.layers.0.idle"]


def test_a_start_packs_tells_and_serves_what_generate_writes() -> None:
    told: list[str] = []
    loaded = LoadedModel("small", tiny.model(), tiny.tokenizer(), "", (tiny.EOS,), 256)
    step = build_step(
        loaded,
        tiny.SITES,
        Wishes(count=4, length=128),
        Capacity(),
        False,
        lambda line, *_: told.append(line),
    )
    assert "22 weights are packed for this processor: 420.0 KiB" in told
    assert not layers(step.model)
    with tiny.RunningEngine(step, 4) as engine:
        for seed in range(4):
            prompt = tiny.prompt_of(seed, 9 + 5 * seed)
            wanted, gaps = generate(tiny.model(), prompt, 16)
            assert not differs(engine.ask(prompt).wait().tokens()[:16], wanted, gaps)


def test_packing_is_left_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    half, brain = tiny.model().to(torch.float16), tiny.model().to(torch.bfloat16)  # type: ignore[arg-type]
    assert not len(Packing(half))
    monkeypatch.setattr(packing, "_multiplies_bfloat16", lambda: False)
    assert not pays(brain)
    assert "neither avx512_bf16 nor amx_tile" in str(why_slow(brain))
    monkeypatch.setattr(packing, "_multiplies_bfloat16", lambda: True)
    assert pays(brain)
    assert why_slow(brain) is None
    assert why_slow(half) is None
    monkeypatch.setattr(packing, "_is_x86", lambda: False)
    assert not pays(model)
