"""Encode, decode and the steered activation against SAELens itself, and files both ways."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.origin import stated_site
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.ranking import Ranking
from saegis_server.steering.rows import Norm, Probe, Redirection, clamp, clamp_if_active, redirect, scale
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity, SiteTable, TableView
from tests.steering import cases

with warnings.catch_warnings():
    # TransformerLens warns of a module of its own that SAELens still imports.
    warnings.simplefilter("ignore")
    import sae_lens
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )

WIDTH, FEATURES, TOKENS = 24, 96, 64
HOOK = "blocks.3.hook_resid_post"
FACTOR = 0.37
ARCHITECTURES = ("standard", "gated", "jumprelu")
NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
TOLERANCE = 1e-5

every_form = pytest.mark.parametrize(
    ("architecture", "normalisation", "apply_b_dec"),
    [(a, n, b) for a in ARCHITECTURES for n in NORMALISATIONS for b in (True, False)],
)


def _reference(architecture: str, normalisation: str, apply_b_dec: bool, dtype: str = "float32") -> Any:
    """An SAE of SAELens' own class with random weights."""
    config = {
        "architecture": architecture,
        "d_in": WIDTH,
        "d_sae": FEATURES,
        "dtype": dtype,
        "apply_b_dec_to_input": apply_b_dec,
        "normalize_activations": normalisation,
        "metadata": {"hook_name": HOOK, "model_name": "random"},
    }
    sae = sae_lens.SAE.from_dict(config)
    generator = torch.Generator().manual_seed(len(architecture) + 7 * len(normalisation) + apply_b_dec)
    spread = {"W_enc": 0.3, "W_dec": 0.2, "r_mag": 0.4}
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * spread.get(name, 0.5)
            parameter.copy_(values.abs() if name == "threshold" else values)
    return sae


def _activations(seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(TOKENS, WIDTH, generator=generator) + 0.3


def _save_theirs(sae: Any, path: Path) -> None:
    """Save with SAELens; the factor that its release table would give is written into cfg.json."""
    sae.save_model(path)
    if sae.cfg.normalize_activations == "expected_average_only_in":
        config = json.loads((path / "cfg.json").read_text())
        config["metadata"]["norm_scaling_factor"] = FACTOR
        (path / "cfg.json").write_text(json.dumps(config))
        # What SAELens' from_pretrained does with the factor of its table.
        sae.fold_activation_norm_scaling_factor(FACTOR)


def _pair(tmp_path: Path, *form: Any) -> tuple[Any, SparseAutoencoder]:
    theirs = _reference(*form)
    _save_theirs(theirs, tmp_path / "sae")
    return theirs, load_sae(tmp_path / "sae")


def _close(found: Tensor, wanted: Tensor) -> None:
    """Equal to TOLERANCE, relative to the largest value."""
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=TOLERANCE * float(wanted.abs().max()))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_heads_outputs_are_read_side_by_side_as_saelens_reads_them_apart(
    normalisation: str, tmp_path: Path
) -> None:
    """Six heads of four; a file of ours is one that SAELens loads and reads by head again."""
    config = _reference("jumprelu", normalisation, False).cfg.to_dict()
    config |= {"reshape_activations": "hook_z", "metadata": {"hook_name": "blocks.3.attn.hook_z"}}
    theirs = sae_lens.SAE.from_dict(config)
    theirs.load_state_dict(_reference("jumprelu", normalisation, False).state_dict())
    _save_theirs(theirs, tmp_path / "theirs")
    ours = load_sae(tmp_path / "theirs")
    save_sae(ours, tmp_path / "ours")
    x = _activations()
    f, heads = ours.encode(x), x.view(2, -1, 6, 4)
    for reader in (theirs, sae_lens.SAE.load_from_disk(tmp_path / "ours")):
        wanted = reader.encode(heads).detach()
        _close(f, wanted.flatten(0, 1))
        _close(ours.decode(f, x), reader.decode(wanted).detach().flatten(2).flatten(0, 1))


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_a_transcoder_tells_what_saelens_tells_and_is_written_as_it_was(
    architecture: str, tmp_path: Path
) -> None:
    config = _reference("jumprelu" if "jump" in architecture else "standard", "none", False).cfg.to_dict()
    out = "blocks.3.hook_mlp_out"
    config |= {"architecture": architecture, "d_out": WIDTH}
    config["metadata"] |= {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": out}
    theirs = sae_lens.SAE.from_dict(config)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            values = 0.4 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values.abs() if name == "threshold" else values)
    theirs.save_model(tmp_path / "theirs")
    ours = load_sae(tmp_path / "theirs")
    save_sae(ours, tmp_path / "ours")
    again = load_sae(tmp_path / "ours")
    assert ours.hook_name_out == again.hook_name_out == out
    assert stated_site(again) == Site.parse("layers.3.mlp_in_to_out")
    x = _activations()
    for mine, reader in ((ours, theirs), (again, sae_lens.SAE.load_from_disk(tmp_path / "ours"))):
        f = mine.encode(x)
        _close(f, reader.encode(x).detach())
        _close(mine.decode(f, x), reader(x).detach())


def _view(program: SiteProgram) -> TableView:
    table = SiteTable(1, WIDTH, Capacity(edits=4, rules=2, bans=2, watches=2))
    admitted = AdmittedRows.of(program)
    table.write(0, admitted, admitted.geometry, admitted.moves)
    return TableView(table.edits, table.rules, table.bounds, table.watches, table.guards)


@every_form
@torch.no_grad()
def test_encode_and_decode_agree(
    tmp_path: Path, architecture: str, normalisation: str, apply_b_dec: bool
) -> None:
    theirs, ours = _pair(tmp_path, architecture, normalisation, apply_b_dec)
    assert (ours.width, ours.features) == (WIDTH, FEATURES)
    assert (ours.hook_name, ours.model_name) == (HOOK, "random")
    x = _activations()
    f = theirs.encode(x)
    active = f > 0.0
    assert 0.02 < float(active.float().mean()) < 0.9, "the test must exercise both sides of the gate"
    found = ours.encode(x)
    assert bool(((found > 0.0) == active).all())
    _close(found, f)
    _close(ours.decode(found, x), theirs.decode(f))


@every_form
@pytest.mark.parametrize("op", ["clamp", "clamp_if_active", "scale"])
@torch.no_grad()
def test_steered_activation_agrees(
    tmp_path: Path, architecture: str, normalisation: str, apply_b_dec: bool, op: str
) -> None:
    """The fused edit equals SAELens: encode, change one feature, decode, add the error of the clean pass."""
    theirs, ours = _pair(tmp_path, architecture, normalisation, apply_b_dec)
    x = _activations(seed=11)
    feature = int((theirs.encode(x) > 0.0).sum(0).argmax())

    def change(acts: Tensor, hook: Any) -> Tensor:
        changed = acts.clone()
        column = acts[:, feature]
        changed[:, feature] = {
            "clamp": torch.full_like(column, 7.5),
            "clamp_if_active": torch.where(column > 0.0, 7.5, column),
            "scale": -1.5 * column,
        }[op]
        return changed

    with pytest.warns(DeprecationWarning, match="use_error_term"):
        theirs.use_error_term = True
    theirs.hook_sae_acts_post.add_hook(change)
    wanted = theirs(x)

    probe = ours.probe(feature)
    edit = {
        "clamp": clamp(probe, 7.5),
        "clamp_if_active": clamp_if_active(probe, 7.5),
        "scale": scale(probe, -1.5),
    }[op]
    prompt = torch.zeros(1, TOKENS, dtype=torch.bool)
    program = SiteProgram(edits=(edit,), watches=(probe,))
    steered, readings = cases.applied(x[None], _view(program), prompt, frozenset({Norm.NONE, ours.norm}))
    assert float((wanted - x).abs().max()) > 0.1, "the edit must be felt"
    _close(steered[0], wanted)
    theirs.reset_hooks()
    _close(readings.watched_before[0, :, 0], theirs.encode(x)[:, feature])


@every_form
@pytest.mark.parametrize("to_direction", [False, True])
@torch.no_grad()
def test_redirected_activation_agrees(
    tmp_path: Path, architecture: str, normalisation: str, apply_b_dec: bool, to_direction: bool
) -> None:
    """SAELens' own features, with one of them turned into another, decoded with the error of the clean pass;
    a direction is added to what SAELens decodes without the feature, by its value there."""
    theirs, ours = _pair(tmp_path, architecture, normalisation, apply_b_dec)
    x = _activations(seed=11)
    f = theirs.encode(x)
    source, target = (f > 0.0).sum(0).topk(2).indices.tolist()
    factor, strength, threshold = 2.5, 0.5, float(f[:, source].quantile(0.5))
    acting = torch.where(f[:, source] > threshold, f[:, source], 0.0)
    changed = f.clone()
    changed[:, source] -= (1.0 + strength) * acting
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    to = Probe.direction(direction) if to_direction else ours.probe(target)
    program = SiteProgram(edits=(redirect(ours.probe(source), factor, Redirection(to, strength, threshold)),))
    if to_direction and ours.norm is not Norm.NONE:
        with pytest.raises(SteeringError, match="cannot be redirected to"):
            SteeringProgram({cases.SITE: program})
        return
    if not to_direction:
        changed[:, target] += factor * acting
    error = x - theirs.decode(f)
    theirs.encode(x)  # it decodes once, in the norm of what it encoded last
    wanted = theirs.decode(changed) + error
    if to_direction:
        wanted = wanted + factor * acting[:, None] * direction / direction.norm()
    prompt = torch.zeros(1, TOKENS, dtype=torch.bool)
    steered, _ = cases.applied(x[None], _view(program), prompt, frozenset({Norm.NONE, ours.norm}))
    assert 10 < int((acting > 0.0).sum()) < TOKENS - 10
    assert float((wanted - x).abs().max()) > 0.1, "the edit must be felt"
    _close(steered[0], wanted)


@every_form
@torch.no_grad()
def test_sae_lens_reads_what_we_write(
    tmp_path: Path, architecture: str, normalisation: str, apply_b_dec: bool
) -> None:
    _, ours = _pair(tmp_path, architecture, normalisation, apply_b_dec)
    save_sae(ours, tmp_path / "written")
    theirs: Any = sae_lens.SAE.load_from_disk(tmp_path / "written")
    assert theirs.cfg.architecture() == architecture
    assert theirs.cfg.metadata.hook_name == HOOK
    x = _activations(seed=3)
    _close(ours.encode(x), theirs.encode(x))
    _close(ours.decode(ours.encode(x), x), theirs.decode(theirs.encode(x)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@torch.no_grad()
def test_other_dtypes_are_read_as_float32(tmp_path: Path, dtype: str) -> None:
    theirs = _reference("jumprelu", "none", True, dtype)
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    theirs.to(torch.float32)
    for name, tensor in ours.tensors().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, dict(theirs.named_parameters())[name].data, rtol=0.0, atol=0.0)
    x = _activations()
    _close(ours.encode(x), theirs.encode(x))


@torch.no_grad()
def test_batchtopk_saved_for_inference_is_a_jumprelu(tmp_path: Path) -> None:
    trained: Any = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(WIDTH, FEATURES, k=5, decoder_init_norm=1.0)
    )
    trained.topk_threshold.fill_(0.1)
    trained.save_inference_model(tmp_path)
    ours = load_sae(tmp_path)
    assert ours.architecture is Architecture.JUMPRELU
    theirs: Any = sae_lens.SAE.load_from_disk(tmp_path)
    x = _activations()
    assert bool((theirs.encode(x) > 0.0).any())
    _close(ours.encode(x), theirs.encode(x))


@pytest.mark.parametrize("kind", [BatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAE])
@pytest.mark.parametrize("rescaled", [True, False])
@torch.no_grad()
def test_a_training_checkpoint_is_what_saelens_would_save(tmp_path: Path, kind: Any, rescaled: bool) -> None:
    """save_model writes the checkpoint, save_inference_model what SAELens itself makes of it."""
    form = {"k": 5, "decoder_init_norm": 0.6, "rescale_acts_by_decoder_norm": rescaled}
    if kind is MatryoshkaBatchTopKTrainingSAE:
        config: Any = MatryoshkaBatchTopKTrainingSAEConfig(
            WIDTH, FEATURES, matryoshka_widths=[FEATURES // 2, FEATURES], **form
        )
    else:
        config = BatchTopKTrainingSAEConfig(WIDTH, FEATURES, **form)
    trained = kind(config)
    trained.b_enc.copy_(0.1 * torch.randn(FEATURES, generator=torch.Generator().manual_seed(4)))
    trained.topk_threshold.fill_(0.2)
    trained.save_model(tmp_path / "checkpoint")
    trained.save_inference_model(tmp_path / "saved")
    ours = load_sae(tmp_path / "checkpoint")
    assert ours.architecture is Architecture.JUMPRELU
    theirs: Any = sae_lens.SAE.load_from_disk(tmp_path / "saved")
    x = _activations()
    assert 0.02 < float((theirs.encode(x) > 0.0).float().mean()) < 0.9
    _close(ours.encode(x), theirs.encode(x))
    _close(ours.decode(ours.encode(x), x), theirs.decode(theirs.encode(x)))
    trained.topk_threshold.fill_(0.0)
    trained.save_model(tmp_path / "checkpoint")
    with pytest.raises(SAEFileError, match="topk_threshold was never set"):
        load_sae(tmp_path / "checkpoint")


def _topk(normalisation: str, rescaled: bool) -> Any:
    """SAELens's own TopK, with decoder rows of several lengths."""
    config = {
        "architecture": "topk",
        "d_in": WIDTH,
        "d_sae": FEATURES,
        "k": 7,
        "rescale_acts_by_decoder_norm": rescaled,
        "normalize_activations": normalisation,
        "metadata": {"hook_name": HOOK},
    }
    made: Any = sae_lens.SAE.from_dict(config)
    made.W_dec.mul_(1.0 + torch.rand(FEATURES, 1, generator=torch.Generator().manual_seed(2)))
    return made


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("rescaled", [True, False])
@torch.no_grad()
def test_topk_is_read_and_written(tmp_path: Path, normalisation: str, rescaled: bool) -> None:
    theirs = _topk(normalisation, rescaled)
    _save_theirs(theirs, tmp_path / "sae")
    ours = load_sae(tmp_path / "sae")
    assert ours.k == 7
    x = _activations()
    _close(ours.encode(x), theirs.encode(x))
    _close(ours.decode(ours.encode(x), x), theirs.decode(theirs.encode(x)))
    save_sae(ours, tmp_path / "written")
    again: Any = sae_lens.SAE.load_from_disk(tmp_path / "written")
    _close(ours.encode(x), again.encode(x))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("op", ["clamp", "clamp_if_active", "scale"])
@torch.no_grad()
def test_steered_by_topk_agrees(tmp_path: Path, normalisation: str, rescaled: bool, op: str) -> None:
    """As above, where the rank of a feature among all decides whether it is active."""
    theirs = _topk(normalisation, rescaled)
    _save_theirs(theirs, tmp_path / "sae")
    ours, x = load_sae(tmp_path / "sae"), _activations(seed=11)
    active = (theirs.encode(x) > 0.0).sum(0)
    feature = int((active - TOKENS // 2).abs().argmin())
    assert 0 < int(active[feature]) < TOKENS

    def change(acts: Tensor, hook: Any) -> Tensor:
        changed, column = acts.clone(), acts[:, feature]
        changed[:, feature] = {
            "clamp": torch.full_like(column, 7.5),
            "clamp_if_active": torch.where(column > 0.0, 7.5, column),
            "scale": -1.5 * column,
        }[op]
        return changed

    with pytest.warns(DeprecationWarning, match="use_error_term"):
        theirs.use_error_term = True
    theirs.hook_sae_acts_post.add_hook(change)
    wanted = theirs(x)
    theirs.reset_hooks()
    probe = ours.probe(feature)
    edit = {
        "clamp": clamp(probe, 7.5),
        "clamp_if_active": clamp_if_active(probe, 7.5),
        "scale": scale(probe, -1.5),
    }[op]
    dictionary = ours.ranked("cpu")
    assert dictionary is not None
    program = SiteProgram(edits=(edit,), watches=(probe,))
    table = cases.table_of([program], WIDTH, ranking=Ranking([dictionary]))
    prompt = torch.zeros(1, TOKENS, dtype=torch.bool)
    norms, cuts = frozenset({Norm.NONE, ours.norm}), cases.cuts_of(table)
    steered, readings = cases.applied(x[None], cases.view(table), prompt, norms, cuts=cuts)
    assert float((wanted - x).abs().max()) > 0.1, "the edit must be felt"
    _close(steered[0], wanted)
    _close(readings.watched_before[0, :, 0], theirs.encode(x)[:, feature])
    _close(readings.watched_after[0, :, 0], theirs.encode(wanted)[:, feature])


@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_centred_stream_is_honoured(
    tmp_path: Path, architecture: str, normalisation: str, apply_b_dec: bool
) -> None:
    """In a model of TransformerLens with `center_writing_weights`, SAELens reads x without its mean."""
    theirs = _reference(architecture, normalisation, apply_b_dec)
    theirs.save_model(tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config))
    x = _activations() + torch.randn(TOKENS, 1, generator=torch.Generator().manual_seed(6))
    mean = x.mean(-1, keepdim=True)
    ours = load_sae(tmp_path / "sae")
    f = theirs.encode(x - mean)
    wanted = theirs.decode(f) + mean
    _close(ours.encode(x), f)
    _close(ours.decode(f, x), wanted)
    save_sae(ours, tmp_path / "written")
    again = load_sae(tmp_path / "written")
    _close(again.encode(x), f)
    _close(again.decode(f, x), wanted)


@torch.no_grad()
def test_flat_configuration_of_before_version_6(tmp_path: Path) -> None:
    theirs = _reference("standard", "none", True)
    theirs.save_model(tmp_path)
    flat = {
        "d_in": WIDTH,
        "d_sae": FEATURES,
        "dtype": "torch.float32",
        "hook_point": HOOK,
        "model_name": "random",
        "activation_fn_str": "relu",
        "normalize_activations": None,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    again: Any = sae_lens.SAE.load_from_disk(tmp_path)
    ours = load_sae(tmp_path)
    assert ours.hook_name == again.cfg.metadata.hook_name == HOOK
    x = _activations()
    _close(ours.encode(x), again.encode(x))
    _close(ours.decode(ours.encode(x), x), again.decode(again.encode(x)))


@torch.no_grad()
def test_log_threshold_of_older_checkpoints(tmp_path: Path) -> None:
    theirs = _reference("jumprelu", "none", False)
    theirs.save_model(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, weights)
    again: Any = JumpReLUTrainingSAE.load_from_disk(tmp_path)
    ours = load_sae(tmp_path)
    torch.testing.assert_close(ours.threshold, again.threshold.data, rtol=1e-6, atol=0.0)
    x = _activations()
    _close(ours.encode(x), again.encode(x))
