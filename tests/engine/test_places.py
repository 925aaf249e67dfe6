"""Places that no single module is: what is served, against plain hooks that reach the same in another way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.sites import decoder_layers, site_module, site_width, widths_of
from saegis_server.engine.torch.build import build_step, make_ready
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.places import check_places
from saegis_server.engine.torch.site_reading import edited
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.torch.step import Extent, Step
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import (
    Edit,
    Norm,
    Probe,
    Redirection,
    ablate,
    add,
    ban,
    clamp,
    redirect,
    scale,
)
from saegis_server.steering.site import Site, SiteError
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.hooked import differs, generate
from tests.engine.small_models import SmallModel
from tests.steering import cases, reference
from tests.tiers import few

_LAYERS = ["sliding_attention", "full_attention"]
FAMILIES = {
    "llama": SmallModel("llama"),
    "gemma2": SmallModel("gemma2", {"head_dim": 12}),
    "gemma3_text": SmallModel("gemma3_text", {"layer_types": _LAYERS, "head_dim": 16}),
    "gpt2": SmallModel("gpt2"),
    "gpt_neox": SmallModel("gpt_neox", {"use_parallel_residual": False}),
    "qwen3": SmallModel("qwen3", {"head_dim": 4}),
    "olmo2": SmallModel("olmo2"),
    "granite": SmallModel("granite", {"residual_multiplier": 0.3}),
}
#: Those in which what the MLP puts out is what is added to the stream: Granite multiplies it.
UNSCALED = tuple(family for family in FAMILIES if family != "granite")
HEADS = Site.parse("layers.1.attn_z")
#: The module whose input is the heads' outputs.
PROJECTIONS = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}
#: The module that puts out what is added to the stream before the MLP, and by what it is multiplied.
ATTENTION = {
    "gemma2": ("post_attention_layernorm", 1.0),
    "gemma3_text": ("post_attention_layernorm", 1.0),
    "gpt2": ("attn", 1.0),
    "gpt_neox": ("attention", 1.0),
    "olmo2": ("post_attention_layernorm", 1.0),
    "granite": ("self_attn", 0.3),
}
MID = Site.parse("layers.1.resid_mid")


@contextmanager
def heads_replaced(model: PreTrainedModel, family: str, edit: Any) -> Iterator[None]:
    """The outputs of attention's heads are `edit` of themselves: by what their projection then gives."""
    projection: Any = decoder_layers(model)[1].get_submodule(PROJECTIONS.get(family, "self_attn.o_proj"))

    def after(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        weight = projection.weight if hasattr(projection, "nx") else projection.weight.T
        changed: Tensor = output + (edit(args[0]) - args[0]) @ weight
        return changed

    handle = projection.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def stream_replaced(model: PreTrainedModel, family: str, edit: Any) -> Iterator[None]:
    """The stream between attention and the MLP is `edit` of itself, by what attention adds to the layer's
    input: in every block the model itself then adds up both of the streams that have to move."""
    layer = decoder_layers(model)[1]
    name, scale = ATTENTION.get(family, ("self_attn", 1.0))
    inputs: list[Tensor] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        added = output[0] if isinstance(output, tuple) else output
        stream = inputs.pop()
        replaced = (edit(stream + scale * added) - stream) / scale
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    handles = [
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.get_submodule(name).register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


REPLACED = {MID: stream_replaced, HEADS: heads_replaced}


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_between_attention_and_the_mlp_is_a_pass_with_that_stream_replaced(family: str) -> None:
    model, ids = FAMILIES[family].build(), torch.tensor([tiny.prompt_of(1, 12)])
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    plain = model(ids).logits
    with edited(model, MID, lambda x: x + vector):
        found = model(ids).logits
    with stream_replaced(model, family, lambda x: x + vector):
        wanted = model(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)
    with edited(model, MID, torch.clone):
        assert torch.equal(model(ids).logits, plain)


def program(rng: torch.Generator, width: int) -> SiteProgram:
    """A clamp, and two bans that fire often."""
    probe = cases.random_probe(rng, width, "relu", Norm.NONE, "clamped")
    return SiteProgram(edits=(clamp(probe, 12.0),), bans=cases.correlated_bans(rng, 2, width, 0.5, 1.5))


def settles(rows: SiteProgram) -> Any:
    """What the float64 loop makes of an activation [1, T, d]: none of the rows asks for a phase."""

    def edit(x: Tensor) -> Tensor:
        every = [reference.settled(rows, reference.vector(token), True) for token in x[0]]
        return torch.stack([torch.from_numpy(token) for token in every])[None].to(x.dtype)

    return edit


@pytest.mark.parametrize("site", REPLACED, ids=str)
@pytest.mark.parametrize("family", few(tuple(FAMILIES), 4))
def test_a_clamp_and_a_ban_write_what_hooks_write(family: str, site: Site) -> None:
    oracle, prompt = FAMILIES[family].build(), tiny.prompt_of(3, 20)
    rows = program(torch.Generator().manual_seed(7), site_width(oracle, site))
    assert oracle.generation_config is not None
    oracle.generation_config.eos_token_id = None
    plain, _ = generate(oracle, prompt, 16)
    with REPLACED[site](oracle, family, settles(rows)):
        wanted, gaps = generate(oracle, prompt, 16)
    step = served_at(family, site, Site.parse("layers.1.resid_post"))
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    with tiny.RunningEngine(step, max_running=2) as engine:
        answer = engine.ask(prompt, sampling, SteeringProgram({site: rows})).wait(60)
    assert not differs(answer.tokens(), wanted, gaps)
    assert wanted != plain


def test_a_stream_that_attention_does_not_make_is_refused_by_the_models_own_numbers() -> None:
    model = SmallModel("llama").build()
    layer: Any = decoder_layers(model)[1]
    check_places(model, [MID])
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
    with pytest.raises(SiteError, match="where attn_out is nothing, it is not the stream before the layer"):
        check_places(model, [MID])


def test_heads_outputs_are_as_wide_as_the_heads_are() -> None:
    wide = {family: small.build() for family, small in FAMILIES.items()}
    found = {family: site_width(model, HEADS) for family, model in wide.items()}
    assert found == {**dict.fromkeys(FAMILIES, 32), "gemma2": 48, "gemma3_text": 64, "qwen3": 16}
    for family, model in wide.items():
        widths = widths_of(model)
        assert (widths.at(HEADS), widths.at(MID), widths.stream) == (found[family], 32, 32)


def test_heads_outputs_that_attention_does_not_only_project_are_refused() -> None:
    model = SmallModel("llama").build()
    layer: Any = decoder_layers(model)[1]
    check_places(model, [HEADS])
    layer.self_attn.register_forward_hook(lambda _, __, output: (output[0] * 1.5, *output[1:]))
    with pytest.raises(SiteError, match="what its projection gives is not what attention gives"):
        check_places(model, [HEADS])
    layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj)
    with pytest.raises(SiteError, match="no projection of the heads' outputs is found"):
        check_places(model, [HEADS])


def test_a_row_of_another_width_is_refused_where_it_would_act() -> None:
    """At the heads' outputs, and a row of their width at the stream."""
    model = FAMILIES["gemma3_text"].build()
    loaded = LoadedModel("gemma3", model, tiny.tokenizer(), "", (tiny.EOS,), 256)
    sites = dict.fromkeys((HEADS, MID), tiny.PLAIN)
    step = build_step(loaded, sites, Wishes(count=2, length=64), Capacity(), False, lambda *_: None)
    rng = torch.Generator().manual_seed(0)
    for site, width, wrong in ((HEADS, 64, 32), (MID, 32, 64)):
        step.slots.room.admit({site: program(rng, width)})
        with pytest.raises(SteeringError, match=f"a row at {site} does not have the width {width}"):
            step.slots.room.admit({site: program(rng, wrong)})


THROUGH = Site.parse("layers.1.mlp_in_to_out")
#: The module that puts out what the MLP adds.
ADDED = {
    "gemma2": "post_feedforward_layernorm",
    "gemma3_text": "post_feedforward_layernorm",
    "olmo2": "post_feedforward_layernorm",
}


@contextmanager
def transcoded(
    model: PreTrainedModel, family: str, edits: tuple[Edit, ...], read: list[Tensor]
) -> Iterator[None]:
    """What the MLP adds is moved by Σ (f' − f)·w of features of what the MLP reads, in float64."""
    layer = decoder_layers(model)[1]

    def before(_: nn.Module, args: Any) -> None:
        read.append(args[0][0])

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        added = output[0] if isinstance(output, tuple) else output
        moves = [
            sum(reference.change(edit, reference.vector(token), False, 1.0) for edit in edits)
            for token in read[-1]
        ]
        moved = added + torch.tensor(np.array(moves), dtype=added.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handles = [
        layer.get_submodule("mlp").register_forward_pre_hook(before),
        layer.get_submodule(ADDED.get(family, "mlp")).register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def transcoder_edits(seed: int) -> tuple[Edit, ...]:
    """Of features that are read and written by different vectors."""
    rng = torch.Generator().manual_seed(seed)
    probes = [cases.random_probe(rng, 32, kind, Norm.NONE, kind) for kind in ("relu", "jumprelu", "gated")]
    to = cases.random_probe(rng, 32, "relu", Norm.NONE, "to")
    return (
        clamp(probes[0], 8.0),
        scale(probes[1], -3.0),
        redirect(probes[2], 4.0, Redirection(to)),
        ablate(to),
    )


def served_at(family: str, *sites: Site) -> Step:
    """A step that a start has found to be exact, with sites of a small model."""
    loaded = LoadedModel(family, FAMILIES[family].build(), tiny.tokenizer(), "", (tiny.EOS,), 256)
    norms = dict.fromkeys(sites, tiny.PLAIN)
    step = build_step(loaded, norms, Wishes(count=2, length=64), Capacity(), False, lambda *_: None)
    make_ready(step, lambda *_: None, False)
    return step


@pytest.mark.parametrize("family", few(UNSCALED, 3))
def test_edits_of_a_transcoder_write_what_hooks_write(family: str) -> None:
    """f is read where the MLP reads, and its change is written to what the MLP adds, in prompt and answer."""
    edits, prompt = transcoder_edits(5), tiny.prompt_of(3, 20)
    oracle, read = FAMILIES[family].build(), list[Tensor]()
    assert oracle.generation_config is not None
    oracle.generation_config.eos_token_id = None
    plain, _ = generate(oracle, prompt, 16)
    with transcoded(oracle, family, edits, read):
        wanted, gaps = generate(oracle, prompt, 16)
    sites = (THROUGH.written_at, THROUGH, Site.parse("layers.1.resid_post"))
    rows = SiteProgram(edits=edits, watches=(edits[0].probe, edits[1].probe))
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    with tiny.RunningEngine(served_at(family, *sites), max_running=2) as engine:
        answer = engine.ask(prompt, sampling, SteeringProgram({THROUGH: rows})).wait(60)
    assert not differs(answer.tokens(), wanted, gaps)
    assert wanted != plain


def test_a_transcoder_reads_what_edits_leave_the_mlp_and_its_bound_is_of_what_the_mlp_adds() -> None:
    """What is edited at the MLP's input comes first; a ban of what the MLP adds comes after."""
    step, tokens = served_at("gemma2", THROUGH, THROUGH.read_at, THROUGH.written_at), tiny.prompt_of(4, 12)
    clean = step.capture(tokens)
    rng = torch.Generator().manual_seed(2)
    probe = cases.random_probe(rng, 32, "relu", Norm.NONE, "read")
    direction = Probe.direction(torch.randn(32, generator=rng))
    moved = clean[THROUGH.read_at] + 5.0 * direction.write
    wanted = [reference.read(probe, reference.vector(token)) for token in moved]
    banned = Probe.direction(torch.randn(32, generator=rng))
    program = {
        THROUGH: SiteProgram(edits=(clamp(probe, 90.0),), watches=(probe,), max_relative_norm=0.25),
        THROUGH.read_at: SiteProgram(edits=(add(direction, 5.0),)),
        THROUGH.written_at: SiteProgram(watches=(banned,), bans=(ban(banned),)),
    }
    step.slots.load(0, tokens, SamplingParams(), 0, (), step.slots.room.admit(program))
    output = step.prefill(0, tokens, 0, Extent(2, len(tokens)), False)
    watched = output.watched[step.sites.index(THROUGH), 0, :, 0]
    torch.testing.assert_close(
        watched[:, 0].double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-4, rtol=1e-4
    )
    assert torch.equal(watched[:, 0], watched[:, 1])
    shares = output.moved[step.sites.index(THROUGH), 0]
    assert float(shares.max()) <= 0.25 + 1e-6
    assert float(shares.min()) > 0.2
    assert float(output.watched[step.sites.index(THROUGH.written_at), 0, :, 0, 1].max()) <= 1e-5


def test_what_cannot_be_exact_of_a_transcoder_is_refused() -> None:
    step = served_at("llama", THROUGH)
    (edit, *_) = transcoder_edits(1)
    for rows in (SiteProgram(rules=(edit,)), SiteProgram(bans=(ban(edit.probe),))):
        with pytest.raises(
            SteeringError, match=r"nothing can be ruled or banned at layers\.1\.mlp_in_to_out"
        ):
            step.slots.room.admit({THROUGH: rows})
    with pytest.raises(SiteError, match=r"is read at layers\.1\.mlp_in and written at layers\.1\.mlp_out"):
        site_module(step.model, THROUGH)
    with pytest.raises(SiteError, match=r"layers\.1\.mlp_out cannot be steered"):
        check_places(FAMILIES["granite"].build(), [THROUGH])
