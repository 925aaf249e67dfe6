"""`saegis directions make`: the difference of means, as numpy has it, in a file that policies take."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saegis_lab.cli.app import app
from saegis_server.engine.torch.loading import load_model
from saegis_server.engine.torch.site_reading import read_site
from saegis_server.policy.bundle.bundle import read_directions
from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site
from tests.cli.offline_world import write_world

TOWARDS, AWAY = ["poppo", "opop", "oooop"], ["brrb", "brb"]
SITE = "layers.1.resid_post"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"))
    lines = [json.dumps({"prompt": text, "language": "en", "harmful": True}) for text in TOWARDS]
    (folder / "towards.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "away.txt").write_text("\n".join(AWAY) + "\n\n")
    return folder


def run(world: Path, *arguments: str, code: int = 0, **other: str) -> str:
    """The output of the command, standard error behind it on one line."""
    given = {
        "--model": str(world / "model"),
        "--site": SITE,
        "--towards": str(world / "towards.jsonl"),
        "--away": str(world / "away.txt"),
        "--out": str(world / "out.safetensors"),
    } | {f"--{name}": value for name, value in other.items()}
    words = [word for pair in given.items() for word in pair]
    done = CliRunner().invoke(app, ["directions", "make", *words, *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.stdout + " ".join(done.stderr.split())


@pytest.mark.parametrize("every", [False, True])
def test_it_is_the_difference_of_means(world: Path, every: bool) -> None:
    more = ["--every-token"] if every else []
    told: dict[str, Any] = json.JSONDecoder().raw_decode(run(world, "--raw", "--json", *more, name="evil"))[0]
    loaded = load_model(str(world / "model"))

    def mean(texts: list[str]) -> Any:
        read = []
        for text in texts:
            ids = torch.tensor([loaded.tokenizer.encode(text)])
            x = read_site(loaded.model, Site.parse(SITE), ids)[0].double().numpy()
            read.append(x[1:] if every else x[-1:])
        return np.concatenate(read).mean(0)

    wanted = mean(TOWARDS) - mean(AWAY)
    (vector,) = read_directions((world / "out.safetensors").read_bytes(), "out").values()
    assert np.allclose(vector.numpy(), wanted / np.linalg.norm(wanted), atol=1e-5)
    assert told["norm"] == pytest.approx(float(np.linalg.norm(wanted)), rel=1e-5)
    assert told["key"] == Probe.direction(vector).key
    assert (told["tensor"], told["site"]) == ("evil", SITE)
    assert [told[side]["texts"] for side in ("towards", "away")] == [3, 2]
    if not every:
        apart = told["towards"]["mean"] - told["away"]["mean"]
        assert apart == pytest.approx(told["norm"], rel=1e-4)


def test_it_says_what_it_made(world: Path) -> None:
    told = run(world, "--raw")
    assert "direction at layers.1.resid_post: 3 texts less 2 others; along it the last tokens are at " in told
    assert f"wrote {world / 'out.safetensors'}" in told


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"site": "layers.9.resid_post"}, 1, "layers 0 to 2"),
        ({"out": "made.npz"}, 2, "directions are safetensors files"),
        ({"out": "nowhere/made.safetensors"}, 2, "there is no folder nowhere"),
        ({"away": "EMPTY"}, 2, "holds no text; write one a line"),
        ({"away": "WRONG"}, 2, "wrong.jsonl: line 1: neither a prompt nor a text stands there"),
        ({"away": "LONG"}, 2, "a text has 301 tokens; the model's context has 256"),
        ({"away": "SAME"}, 2, "the direction from 3 texts less 3 others is zero or not finite"),
        ({"model": "/no/such/model"}, 1, "the model cannot be loaded:"),
    ],
)
def test_what_makes_no_direction_is_told(
    world: Path, tmp_path: Path, options: dict[str, str], code: int, words: str
) -> None:
    files = {"EMPTY": "\n", "WRONG": '{"a": "b"}', "LONG": "o" * 300, "SAME": "\n".join(TOWARDS)}
    for name, text in files.items():
        (tmp_path / f"{name.lower()}.jsonl").write_text(text)
    given = {
        name: str(tmp_path / f"{value.lower()}.jsonl") if value in files else value
        for name, value in options.items()
    }
    assert words in run(world, "--raw", code=code, **given)


def test_a_model_without_a_template_wants_texts_as_they_stand(world: Path) -> None:
    assert "--raw reads the texts as they stand" in run(world, code=2)
