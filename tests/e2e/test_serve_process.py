"""`saegis serve` as an operator sees it: ready, drained, refused."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import saegis
from saegis_lab.cli.app import app
from saegis_lab.cli.demo_scenes import metrics
from saegis_server.engine.torch.compile_cache import SETTING
from tests.e2e.serving import SITE, Serving, TinyFiles, command, environment, serving

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"


def test_it_drains_on_sigterm_while_a_stream_finishes(tiny_files: TinyFiles, tmp_path: Path) -> None:
    """Health flips, new calls are refused, the running stream ends whole, and the exit status is 0.

    Its settings come from a file, the environment and flags; its log is JSON from the first to the last line.
    """
    ready_file, settings = tmp_path / "ready.json", tmp_path / "server.yaml"
    settings.write_text(f"ready-file: {ready_file}\ngrace: 600\nlog-format: json\nlog-level: error\n")
    options = (*tiny_files.options, "--config", str(settings))
    with (
        serving(tmp_path / "stderr", *options, env=environment(SAEGIS_LOG_LEVEL="info")) as server,
        saegis.Client(server.target, max_attempts=1) as client,
    ):
        told = json.loads(ready_file.read_text(encoding="utf-8"))
        assert told == {key: server.ready[key] for key in ("target", "metrics_port", "pid")}
        assert told["pid"] == server.process.pid
        assert server.stages[0] == "loading the libraries"
        assert any(stage.startswith("canary") for stage in server.stages)
        assert client.healthy()
        stream = client.stream("The bridge", max_tokens=1000, ignore_eos=True, temperature=0.0)
        first = next(stream)
        server.terminate()
        give_up = time.monotonic() + 20.0
        while client.healthy() and time.monotonic() < give_up:
            time.sleep(0.01)
        with pytest.raises(saegis.Unavailable) as refused:
            client.generate("The bridge", max_tokens=1)
        assert refused.value.reason == "DRAINING"
        answer = stream.collect()
        assert answer.finish_reason == "length"
        assert len(answer.token_ids) == 1000
        assert answer.token_ids[: len(first.token_ids)] == first.token_ids
        assert server.wait() == 0
        assert server.events[-1] == {"event": "stopped"}
        assert not ready_file.exists()
    logged = [json.loads(line) for line in server.stderr_path.read_text(encoding="utf-8").splitlines()]
    assert [line["target"] for line in logged if line.get("event") == "ready"] == [server.target]
    (streamed,) = (line for line in logged if line.get("method", "").endswith("/StreamGenerate"))
    assert (streamed["code"], streamed["request_id"]) == ("OK", answer.request_id)
    (told,) = (line for line in logged if line.get("reason") == "DRAINING")
    assert (told["code"], told["method"]) == ("UNAVAILABLE", "/saegis.v1.GenerationService/Generate")
    assert logged[-1]["message"] == "stopped"


@pytest.mark.slow
def test_without_a_compiler_it_says_so_and_serves_eagerly(tiny_files: TinyFiles, tmp_path: Path) -> None:
    nothing = tmp_path / "empty"
    nothing.mkdir()
    env = {key: value for key, value in environment(PATH=str(nothing)).items() if key not in ("CC", "CXX")}
    with (
        serving(tmp_path / "stderr", *tiny_files.options, "--compile", "auto", env=env) as server,
        saegis.Client(server.target) as client,
    ):
        (said,) = [stage for stage in server.stages if "compiler" in stage]
        assert "no C++ compiler was found" in said
        assert "eagerly" in said
        assert not client.server_info().compiled
        assert client.generate("The bridge", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
        server.terminate()
        assert server.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("when", ["never", "auto"])
def test_where_nothing_can_be_kept_it_serves_eagerly(
    tiny_files: TinyFiles, tmp_path: Path, when: str
) -> None:
    """Importing torch would make its folder, and end the process where that cannot be."""
    (tmp_path / "home").mkdir()
    places = {"TORCHINDUCTOR_CACHE_DIR": "/dev/null/cache", "XDG_CACHE_HOME": str(tmp_path / "home")}
    env = {key: value for key, value in environment(**places).items() if key != SETTING}
    options = (*tiny_files.options, "--compile", when)
    with serving(tmp_path / "stderr", *options, env=env) as server:
        said = [stage for stage in server.stages if "cannot be kept in /dev/null/cache" in stage]
        assert len(said) == (1 if when == "auto" else 0)
        server.terminate()
        assert server.wait() == 0
    assert not list((tmp_path / "home").iterdir())


def start(*options: str) -> Result:
    """A start in this process that fails in order."""
    done = CliRunner().invoke(app, command(*options)[3:], env={"COLUMNS": "200", "HF_HUB_OFFLINE": "1"})
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.stderr
    return done


def _truncate(sae: Path) -> None:
    path = sae / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _break_config(sae: Path) -> None:
    (sae / CONFIG).write_text("{", encoding="utf-8")


def _narrow(sae: Path) -> None:
    tensors = load_file(sae / WEIGHTS)
    narrowed = {
        "W_enc": tensors["W_enc"][:-1],
        "W_dec": tensors["W_dec"][:, :-1],
        "b_dec": tensors["b_dec"][:-1],
    }
    save_file({**tensors, **{name: each.contiguous() for name, each in narrowed.items()}}, sae / WEIGHTS)
    config = json.loads((sae / CONFIG).read_text(encoding="utf-8"))
    (sae / CONFIG).write_text(json.dumps({**config, "d_in": config["d_in"] - 1}), encoding="utf-8")


def _mismatch(sae: Path) -> None:
    tensors = load_file(sae / WEIGHTS)
    save_file({**tensors, "W_dec": tensors["W_dec"].roll(1, 0)}, sae / WEIGHTS)


def _unknown_site(sae: Path) -> None:
    config = json.loads((sae / CONFIG).read_text(encoding="utf-8"))
    config["metadata"] = {**config.get("metadata", {}), "hook_name": "layers.9.resid_post"}
    (sae / CONFIG).write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "names", "reason"),
    [
        (_truncate, WEIGHTS, "safetensors"),
        (_break_config, CONFIG, "JSON"),
        (_narrow, "tiny-sae", "width"),
        (_mismatch, "tiny-sae", "does not fit"),
        (_unknown_site, "", "layers.9.resid_post does not exist"),
    ],
    ids=["truncated", "config", "narrow", "mismatched", "site"],
)
def test_a_bad_sae_stops_the_start(
    tiny_files: TinyFiles, tmp_path: Path, spoil: Callable[[Path], None], names: str, reason: str
) -> None:
    """Exit 1 with one message that names the file and the reason, and no traceback."""
    sae = tmp_path / "tiny-sae"
    shutil.copytree(tiny_files.sae, sae)
    spoil(sae)
    done = start("--model", str(tiny_files.model), "--sae", str(sae))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert names in errors[0]
    assert reason.lower() in errors[0].lower()
    assert "\nnext:  " in done.stderr


def test_a_taken_port_stops_the_start(tiny_files: TinyFiles, server: Serving, tmp_path: Path) -> None:
    port = server.target.rpartition(":")[2]
    done = start(*tiny_files.options, "--port", port)
    assert port in done.stderr
    assert "--port" in done.stderr


def test_the_metrics_count_what_was_served(client: saegis.Client, server: Serving) -> None:
    port = server.ready["metrics_port"]

    def tokens() -> float:
        return sum(s.value for s in metrics(port) if s.name == "saegis_generation_tokens_total")

    before = tokens()
    client.generate("The bridge", max_tokens=5, ignore_eos=True, steering=[saegis.clamp(3, 2.0, site=SITE)])
    assert tokens() == before + 5
    edited = [s for s in metrics(port) if s.name == "saegis_steering_tokens_edited_total"]
    assert [sample.labels["site"] for sample in edited] == [SITE]
    assert edited[0].value > 0
