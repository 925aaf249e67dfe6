"""Serving from files: what is loaded and checked, what stops a start, and how a process drains."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.message import Message
from pydantic import ValidationError

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import model_pb2
from saegis_server.cli.serve.start_errors import start_failed
from saegis_server.engine.api import GenerationRequest, Progress, SamplingParams
from saegis_server.engine.torch import build, weights
from saegis_server.engine.torch.compile_cache import SETTING
from saegis_server.engine.torch.loading import ModelLoadError
from saegis_server.engine.torch.sizing import tensors_in
from saegis_server.engine.torch.step import Step
from saegis_server.engine.torch.warmup import NotCompiledError
from saegis_server.policy.decide.world import World
from saegis_server.policy.errors import Unmatched
from saegis_server.reference import MODEL, SAE
from saegis_server.rpc.server import loading, sae_sources
from saegis_server.rpc.server.config import Address, SAESource, ServerConfig
from saegis_server.rpc.server.loading import load_services
from saegis_server.rpc.server.premises import prepare
from saegis_server.rpc.server.sae_sources import SAMPLE_TEXT, read_sae
from saegis_server.rpc.server.server import EngineDiedError, serve
from saegis_server.rpc.services.feature_reading import TextReading
from saegis_server.rpc.services.shared import Services
from saegis_server.sae import layout
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.errors import SAEFileError, SAEMismatch
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.labels import Labels
from saegis_server.sae.layout import SAMPLE_FILE
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import ban
from saegis_server.steering.site import Site, SiteError, Widths
from tests.engine.serving import Answer
from tests.rpc import tiny
from tests.rpc.conftest import Stubs
from tests.rpc.harness import Failure, Running, config, embedded, eventually, failure

SERVE = """
import asyncio, json, sys
from saegis_server.rpc.server.config import ServerConfig
from saegis_server.rpc.server.server import serve
asyncio.run(serve(ServerConfig.model_validate_json(sys.argv[1]), lambda *stage: print(stage, flush=True)))
"""


def mirrored(width: int = tiny.WIDTH) -> SparseAutoencoder:
    """An SAE that reconstructs everything: x is what is above zero less what is below."""
    one = torch.eye(width)
    both = torch.cat((one, -one))
    return SparseAutoencoder(
        Architecture.STANDARD,
        W_enc=both.T.contiguous(),
        W_dec=both,
        b_dec=torch.zeros(width),
        b_enc=torch.zeros(2 * width),
        hook_name="blocks.0.hook_resid_post",
        stated_fvu=0.01,
        stated_l0=float(width),
    )


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on disk."""
    path = tmp_path_factory.mktemp("model")
    tiny.model().save_pretrained(path)
    tiny.tokenizer().save_pretrained(str(path))
    return path


@pytest.fixture
def sae_path(tmp_path: Path) -> Path:
    """A good SAE on disk, with labels."""
    path = tmp_path / "mirror"
    save_sae(mirrored(), path)
    Labels(tiny.LABELS).save(path)
    return path


def loaded_from(settings: ServerConfig, progress: Progress = lambda *_: None) -> Services:
    return load_services(settings, prepare(settings), progress)


def load(model_path: Path, *saes: Path, **settings: Any) -> Services:
    sources = tuple(SAESource(path=str(path), **settings.pop("source", {})) for path in saes)
    return loaded_from(config(model=str(model_path), saes=sources, **settings))


def test_room_for_rows_is_a_setting(model_path: Path, sae_path: Path) -> None:
    given = load(model_path, sae_path, rows={"bans": 41, "rules": 12}).engine.capacity
    assert (given.edits, given.rules, given.bans, given.watches) == (32, 12, 41, 64)
    for wrong in ({"bans": 1}, {"heads": 4}):
        with pytest.raises(ValidationError):
            config(rows=wrong)


def test_weights_for_which_there_is_no_memory_are_not_read(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = sum(weight.numel() for weight in tiny.model().parameters())
    assert weights.weights_bytes(model_path, torch.float32) == 4 * numbers
    assert weights.weights_bytes(model_path, torch.bfloat16) == 2 * numbers
    assert weights.weights_bytes(model_path, None) == 4 * numbers
    free = {"cpu": 4 * numbers - 1}
    monkeypatch.setattr(weights, "free_bytes", lambda device: free[device.type])
    with pytest.raises(ModelLoadError, match=r"weights take [0-9.]+ KiB, but [0-9.]+ KiB are free on cpu"):
        load(model_path)
    free["cpu"] += 1
    weights.require_room(str(model_path), "float32", "cpu")
    weights.require_room("owner/model", "float32", "cpu")


def test_the_memory_of_a_large_sae_is_told_before_it_is_taken(
    model_path: Path, sae_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, told = SAESource(path=str(sae_path)), list[str]()
    read_sae(source, Widths(tiny.WIDTH), told.append)
    assert told == []
    monkeypatch.setattr(sae_sources, "_LARGE", 0)
    read_sae(source, Widths(tiny.WIDTH), told.append)
    (words,) = told
    assert re.search(
        r"sae_weights.safetensors: [0-9.]+ KiB of memory, of [0-9.]+ GiB that are free; 0 B", words
    )
    monkeypatch.setattr(sae_sources, "free_host_bytes", lambda: 1000)
    with pytest.raises(SAEFileError, match=r"takes [0-9.]+ KiB of memory as float32, but 1000 B are free"):
        read_sae(source, Widths(tiny.WIDTH), told.append)


@pytest.fixture
def boundless(model_path: Path, tmp_path: Path) -> Path:
    """The same model with a context for which no machine has the memory."""
    shutil.copytree(model_path, tmp_path / "long")
    told = tmp_path / "long" / "config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"max_position_embeddings": 2**40}))
    return tmp_path / "long"


def test_a_context_that_does_not_fit_is_lessened_to_one_that_does_and_told(boundless: Path) -> None:
    stages: list[str] = []
    settings = config(model=str(boundless), kv_memory="64MiB", sites=[str(tiny.FIRST_SITE)])
    engine = embedded(loaded_from(settings, lambda name, *_: stages.append(name)))
    slots = engine.step.slots
    held = sum(tensor.nbytes for tensor in {id(each): each for each in tensors_in(slots)}.values())
    assert held <= 64 * 2**20
    assert (engine.max_running, engine.max_length) == (slots.count, slots.max_length)
    (told,) = [name for name in stages if name.startswith("memory for")]
    assert told.startswith(f"memory for {slots.count} sequences of {slots.max_length} tokens: ")
    assert told.endswith("; the model's whole context has 1099511627776 tokens, for which there is no room")
    engine.warm_up(lambda *_: None)
    engine.stop()


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (
            {"max_num_seqs": 16, "max_model_len": 2**40},
            r"max_num_seqs 16 and max_model_len 1099511627776: 16 sequences of 1099511627776 tokens take "
            r"[0-9.]+ PiB, and [0-9.]+ GiB may be taken; 16 sequences of \d+ tokens .*would fit",
        ),
        ({"kv_memory": "1PiB"}, r"kv_memory is 1.0 PiB, but after the weights [0-9.]+ GiB are free on cpu"),
        (
            {"kv_memory": "5MiB", "max_num_seqs": 64},
            r"max_num_seqs 64: even 64 sequences of 64 tokens take \d[0-9.]* MiB, and 5.0 MiB may be taken",
        ),
        ({"kv_memory": "4MiB", "fair_slots": 2}, "fair_slots: 2 slots cannot be kept of the 2 for which"),
    ],
)
def test_more_than_there_is_memory_for_is_refused_before_it_is_taken(
    boundless: Path, wishes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        load(boundless, sites=(str(tiny.FIRST_SITE),), **wishes)


def test_what_is_loaded_is_measured_and_described(model_path: Path, sae_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    sources = (SAESource(path=str(sae_path)),)
    settings = config(model=str(model_path), saes=sources, sites=("layers.1.mlp_out",), max_model_len=64)
    found = loaded_from(settings, lambda *stage: stages.append(stage))
    (loaded,) = found.catalog.entries
    assert (loaded.id, loaded.site, len(loaded.labels)) == ("mirror", tiny.FIRST_SITE, len(tiny.LABELS))
    assert loaded.measured is not None
    assert loaded.measured.fvu == pytest.approx(0.0, abs=1e-6)
    assert found.targets.sites == (tiny.FIRST_SITE, Site.parse("layers.1.mlp_out"))
    assert found.engine.max_length == 64
    found.engine.warm_up(lambda *stage: stages.append(stage))
    found.engine.stop()
    names = [name for name, _, _ in stages]
    assert names[:2] == ["loading the model", "loading SAEs"]
    assert re.fullmatch("memory for 16 sequences of 64 tokens: .* that are free after the weights", names[2])
    told = [name for name in names if "packed for this processor" not in name]
    assert told[3] == "checking SAEs"
    assert f"canary at {tiny.FIRST_SITE}" in names
    assert names[-1] == "ready"


def test_an_sae_that_decides_by_rank_is_served(model_path: Path, tmp_path: Path) -> None:
    """Its encoder is told of, its use is counted, a policy may ban its features, and Inspect encodes all."""
    stages: list[str] = []
    sae = replace(mirrored(), k=tiny.WIDTH // 3, stated_fvu=None, digest="")
    save_sae(sae, tmp_path / "topk")
    settings = config(
        model=str(model_path), saes=(SAESource(path=str(tmp_path / "topk")),), usage_every=1, max_model_len=64
    )
    found = loaded_from(settings, lambda name, *_: stages.append(name))
    (loaded,) = found.catalog.entries
    kept = "the SAE topk decides by rank which features are active, so its whole encoder is kept on cpu: "
    assert [name for name in stages if name.startswith(kept)]
    engine = embedded(found)
    engine.warm_up(lambda *_: None)
    engine.start()
    tokens = list(range(20, 50))
    x = engine.capture(tokens).result(30)[loaded.site]
    f = loaded.sae.encode(x)
    assert (f > 0.0).sum(-1).tolist() == [tiny.WIDTH // 3] * len(tokens)
    chosen = [found.catalog.by_index(loaded, index, "feature") for index in range(loaded.sae.features)]
    for top_k, values_of in ((3, chosen), (0, chosen[5:9])):
        reading = TextReading(loaded, top_k, values_of)
        reading.add(x)
        told = torch.tensor([list(each.activations) for each in reading.values]).T
        torch.testing.assert_close(told, f[:, [each.index for each in values_of]])
        assert [len(each) for each in reading.strongest] == [top_k] * len(tokens)
    probes = tuple(each.probe() for each in chosen[:8])
    program = SteeringProgram({loaded.site: SiteProgram(watches=probes)})
    answer = Answer()
    greedy = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    engine.submit(GenerationRequest("r", tuple(tokens), greedy, program), answer)
    (output,) = answer.wait().outputs()
    torch.testing.assert_close(torch.tensor([each.before for each in output.watched]), f[-1, :8])
    engine.stop()
    used = engine.take_usage()["topk"]
    assert used.fired[0].tolist() == (f > 0.0).sum(0).tolist()
    governed = World(
        "tiny", found.targets.sites, found.targets.widths, found.catalog, engine.capacity, torch.float32
    )
    assert governed.room == engine.step.slots.room
    assert set(governed.room.admit({loaded.site: SiteProgram(bans=(ban(probes[0]),))})) == {loaded.site}


def test_there_must_be_room_for_the_encoder_of_an_sae_that_decides_by_rank(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sae(replace(mirrored(), k=5, stated_fvu=None, digest=""), tmp_path / "topk")
    monkeypatch.setattr(layout, "MAPPED_FROM", 0)
    monkeypatch.setattr(loading, "free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"its whole encoder is kept on cpu: .* and 1000 B are free there"):
        load(model_path, tmp_path / "topk")


def test_graphs_compiled_after_the_warm_up_are_counted(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SETTING, str(tmp_path))
    found = load(model_path)
    # Torch counts the graphs; the tiny model runs eagerly, and another function is compiled in its stead.
    embedded(found).step.compiled = True
    found.engine.warm_up(lambda *_: None)
    found.engine.stop()

    def counted() -> float | None:
        return found.metrics.registry.get_sample_value("saegis_recompilations")

    assert counted() == 0.0
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    compiled(torch.zeros(2))
    assert counted() == 1.0
    compiled(torch.zeros(2))
    assert counted() == 1.0


def test_an_sae_may_bring_the_text_that_it_is_checked_on(model_path: Path, sae_path: Path) -> None:
    source = SAESource(path=str(sae_path))
    assert read_sae(source, Widths(tiny.WIDTH)).sample is None
    (sae_path / SAMPLE_FILE).write_text(tiny.TEXT, encoding="utf-8")
    assert read_sae(source, Widths(tiny.WIDTH)).sample == tiny.TEXT
    assert load(model_path, sae_path).catalog.entries[0].measured is not None
    (sae_path / SAMPLE_FILE).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SAEFileError, match=SAMPLE_FILE):
        load(model_path, sae_path)
    (sae_path / SAMPLE_FILE).write_text("\n")
    with pytest.raises(SAEFileError, match=f"{SAMPLE_FILE}: is empty"):
        load(model_path, sae_path)


@pytest.fixture
def without_sample(tmp_path: Path) -> Path:
    """The reference model's SAE as it is where only what SAELens knows was copied."""
    path = tmp_path / "polyglot"
    path.mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        shutil.copy(SAE / name, path / name)
    return path


def test_an_sae_that_lost_its_sample_is_judged_by_what_it_states_and_says_so(
    without_sample: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (loaded,) = load(MODEL, without_sample).catalog.entries
    assert loaded.measured is not None
    assert 0.3 < loaded.measured.fvu < 0.5
    told = caplog.text
    assert "there is no sample.txt, which `saegis train sae` wrote beside the weights" in told
    assert "there is no features.jsonl, so no feature has a label" in told
    assert f"on the built-in text, since it has no sample.txt, its FVU is {loaded.measured.fvu:.3g}" in told
    sae = load_sae(SAE)
    assert f"its file states an FVU of {sae.stated_fvu:.3g} and an L0 of {sae.stated_l0:.3g}" in told


def test_without_a_sample_the_wrong_site_is_still_refused_and_the_right_one_named(
    without_sample: Path,
) -> None:
    """Though its FVU is not far from that of the right site."""
    right = r"At layers\.3\.resid_post it would be (0\.\d+): the site is wrong"
    with pytest.raises(SAEMismatch, match=right) as caught:
        load(MODEL, without_sample, source={"site": "layers.2.resid_post"}, unmatched_saes=Unmatched.WARN)
    found = re.search(right, str(caught.value))
    assert found is not None
    assert 0.3 < float(found[1]) < caught.value.fvu < 0.5


def test_with_a_sample_of_its_own_what_is_stated_decides(without_sample: Path) -> None:
    """The built-in text as its own: the text is the same, and refused."""
    (without_sample / SAMPLE_FILE).write_text(SAMPLE_TEXT, encoding="utf-8")
    told = r"measured there on its sample\.txt, its FVU is 0\.3\d* \(at most 0\.2\d* "
    with pytest.raises(SAEMismatch, match=told):
        load(MODEL, without_sample)


def corrupt(path: Path) -> None:
    weights = path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def transpose(path: Path) -> None:
    sae = mirrored()
    turned = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(0))
    save_sae(replace(sae, W_dec=turned, digest=""), path)


def narrow(path: Path) -> None:
    save_sae(mirrored(16), path)


def forget_site(path: Path) -> None:
    save_sae(replace(mirrored(), hook_name=None), path)


def odd_site(path: Path) -> None:
    save_sae(replace(mirrored(), hook_name="blocks.0.hook_z2"), path)


def missing_layer(path: Path) -> None:
    save_sae(replace(mirrored(), hook_name="blocks.7.hook_resid_post"), path)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (corrupt, SAEFileError, "sae_weights.safetensors: not a whole safetensors file"),
        (narrow, SAEFileError, "width 16; the model's are 32 wide"),
        (forget_site, SAEFileError, "state no hook_name"),
        (odd_site, SAEFileError, "is not a site"),
        (missing_layer, SiteError, "layers 0 to 1"),
        (transpose, SAEMismatch, "does not fit the site layers.0.resid_post"),
    ],
)
def test_an_sae_that_does_not_fit_stops_the_start(
    model_path: Path, sae_path: Path, spoil: Callable[[Path], None], kind: type[Exception], words: str
) -> None:
    spoil(sae_path)
    with pytest.raises(kind) as caught:
        load(model_path, sae_path)
    assert words in str(caught.value)


def test_settings_that_do_not_fit_the_model(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_model_len is 4096; the model's context has 2048"):
        load(model_path, max_model_len=4096)
    with pytest.raises(SiteError, match="layers 0 to 1"):
        load(model_path, sites=("layers.2.resid_post",))
    with pytest.raises(ModelLoadError, match="nothing"):
        load(tmp_path / "nothing")


def test_without_a_compiler_it_says_so(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "missing_compiler", lambda: "no C++ compiler was found")
    stages: list[str] = []
    settings = config(model=str(model_path), compile="auto")
    assert not loaded_from(settings, lambda name, *_: stages.append(name)).engine.compiled
    assert "no C++ compiler was found: the model runs eagerly" in stages
    with pytest.raises(ValueError, match="compile is 'always', but no C\\+\\+ compiler"):
        load(model_path, compile="always")


def _unusable_cache(services: Services, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(SETTING, "/dev/null/cache")
    return "compiled programs cannot be kept in /dev/null/cache (Not a directory)"


def _dynamo_fails(services: Services, monkeypatch: pytest.MonkeyPatch) -> str:
    """What cannot be in one graph is refused before anything is compiled."""
    model = embedded(services).step.model
    layer = model.get_submodule("model.layers.0")
    layer.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    return "the step cannot be compiled ("


def _inductor_fails(services: Services, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that fails with pages of text, as one does whose C++ compiler is broken."""

    def broken(*_: object) -> object:
        raise RuntimeError("C++ compile error\n" + "\n".join(["Command:"] * 90))

    step = embedded(services).step
    monkeypatch.setattr(step, "_prefill", torch.compile(step._prefill_chunk, backend=broken))
    return "the step cannot be compiled ("


@pytest.mark.parametrize("fault", [_unusable_cache, _dynamo_fails, _inductor_fails])
def test_what_cannot_be_compiled_runs_eagerly_or_ends_the_start_with_a_sentence(
    model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: Callable[[Services, pytest.MonkeyPatch], str],
) -> None:
    monkeypatch.setenv(SETTING, str(tmp_path))
    stages: list[str] = []
    for must in (True, False):
        found = load(model_path, compile="always" if must else "auto")
        step = embedded(found).step
        assert step.compiled
        said = fault(found, monkeypatch)
        if must:
            with pytest.raises(NotCompiledError) as failed:
                found.engine.warm_up(lambda *_: None)
            message, advice = start_failed(failed.value) or ("", "")
            assert message.startswith(said)
            assert len(message) < 300
            assert "\n" not in message
            assert "--compile auto" in advice
            continue
        found.engine.warm_up(lambda name, *_: stages.append(name))
        found.engine.stop()
        assert found.engine.compiled is False
        (told,) = [name for name in stages if name.endswith(": the model runs eagerly")]
        assert told.startswith(said)
        assert "running prefill" in stages
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("saegis-")]


def start(model_path: Path, sae_path: Path, ready: Path, **settings: Any) -> subprocess.Popen[str]:
    wanted = config(
        model=str(model_path),
        saes=[{"path": str(sae_path)}],
        ready_file=str(ready),
        max_num_seqs=2,
        **settings,
    )
    command = [sys.executable, "-c", SERVE, wanted.model_dump_json()]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_process_serves_and_drains_on_sigterm(model_path: Path, sae_path: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = start(model_path, sae_path, ready)
    try:
        eventually(lambda: ready.exists() or process.poll() is not None, seconds=60)
        address = json.loads(ready.read_text(encoding="utf-8"))
        assert address["pid"] == process.pid
        with grpc.insecure_channel(address["target"]) as channel:
            stubs = Stubs.on(channel)
            assert stubs.models.GetModel(model_pb2.GetModelRequest()).saes[0].fvu == pytest.approx(
                0.0, abs=1e-6
            )
            sampling = pb.SamplingParams(temperature=0.0, max_tokens=300)
            message = pb.GenerateRequest(text="the river", sampling=sampling)
            stream = stubs.generation.StreamGenerate(pb.StreamGenerateRequest(request=message))
            received: list[Message] = [next(stream)]
            process.send_signal(signal.SIGTERM)
            received += list(stream)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert isinstance(received[-1], pb.StreamGenerateResponse)
    assert received[-1].complete.usage.completion_tokens == 300
    assert "canary at layers.0.resid_post" in output
    assert not ready.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_ends_serving_with_an_error(
    model_path: Path, sae_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    found: list[Failure] = []

    def ready(address: Address, _: Services) -> None:
        monkeypatch.setattr(Step, "decode", broken)
        callers.append(Thread(target=call, args=(address,)))
        callers[0].start()

    def call(address: Address) -> None:
        with grpc.insecure_channel(address.target) as channel:
            found.append(
                failure(lambda: Stubs.on(channel).generation.Generate(pb.GenerateRequest(text="the")))
            )

    callers: list[Thread] = []
    settings = config(
        model=str(model_path), saes=[{"path": str(sae_path)}], ready_file=str(tmp_path / "ready")
    )
    with pytest.raises(EngineDiedError, match="RuntimeError") as caught:
        asyncio.run(serve(settings, lambda *_: None, ready))
    callers[0].join()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert found[0].reason == "ENGINE_RESTARTING"
    assert not (tmp_path / "ready").exists()


def test_a_second_signal_ends_the_grace_period(model_path: Path) -> None:
    streams: list[Any] = []
    found: list[Failure] = []

    def hurry(address: Address) -> None:
        with grpc.insecure_channel(address.target) as channel:
            sampling = pb.SamplingParams(temperature=0.0, max_tokens=tiny.CONTEXT)
            message = pb.GenerateRequest(text="the river", sampling=sampling)
            stream = Stubs.on(channel).generation.StreamGenerate(pb.StreamGenerateRequest(request=message))
            next(stream)
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(20):
                next(stream)
            os.kill(os.getpid(), signal.SIGINT)
            found.append(failure(lambda: stream))

    def ready(address: Address, _: Services) -> None:
        streams.append(Thread(target=hurry, args=(address,)))
        streams[0].start()

    asyncio.run(serve(config(model=str(model_path), grace_seconds=3600.0), lambda *_: None, ready))
    streams[0].join()
    assert (found[0].code, found[0].reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


def test_an_address_that_is_taken_stops_the_start(model_path: Path, served: Running) -> None:
    with pytest.raises(OSError, match=f"port {served.address.port} .* is taken"):
        asyncio.run(serve(config(model=str(model_path), port=served.address.port), lambda *_: None))
