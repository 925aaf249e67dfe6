"""`saegis train sae` in this process: its help, its result, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saegis.cli.output import own_command
from saegis_lab.cli.app import app
from saegis_server.sae.files import load_sae
from tests.training.subjects import SITE, SubjectFiles, write_subject

ENVIRONMENT = {"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}
SMALL = ("--feature-count", "64", "--k", "8", "--batch", "128", "--tokens", "4000", "--context", "96")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SubjectFiles:
    return write_subject(tmp_path_factory.mktemp("subject"))


def arguments(files: SubjectFiles, out: Path, *more: str) -> tuple[str, ...]:
    given = ("--model", str(files.model), "--texts", str(files.texts), "--site", SITE, "--out", str(out))
    return ("train", "sae", *given, *more)


def refused(code: int, *arguments: str) -> str:
    """What a command that fails writes to standard error, on one line."""
    result = CliRunner().invoke(app, arguments, env=ENVIRONMENT)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return " ".join(result.stderr.split())


def test_the_help_teaches_by_examples_that_the_parser_knows() -> None:
    result = CliRunner().invoke(app, ["train", "sae", "--help"], env=ENVIRONMENT)
    assert result.exit_code == 0
    listed, examples = result.output.split("Examples", 1)
    assert examples.count("saegis train sae") >= 4
    used = {word.rstrip(".,;") for word in examples.split() if word.startswith("--") and word[2:3].isalpha()}
    assert used
    for option in used:
        assert option in listed


def test_a_table_tells_the_result_and_what_to_do_next(files: SubjectFiles, tmp_path: Path) -> None:
    out = tmp_path / "sae"
    more = ("--groups", "16,48", "--held-out-share", "0.2", "--seed", "3", "--reuse", "2")
    result = CliRunner().invoke(app, arguments(files, out, *SMALL, *more), env=ENVIRONMENT)
    assert result.exit_code == 0, result.output
    sae = load_sae(out)
    assert f"{sae.stated_fvu:.4f}" in result.stdout
    assert f"{own_command()} serve --model {files.model} --sae {out}" in " ".join(result.stdout.split())
    assert "step 32 of 32" in result.stderr
    training = sae.metadata["training"]
    assert isinstance(training, dict)
    told = {name: training[name] for name in ("features", "k", "groups", "steps", "batch", "seed")}
    # 4000 tokens are 31.25 batches of 128, so 32 steps.
    assert told == {"features": 64, "k": 8.0, "groups": [16, 48], "steps": 32, "batch": 128, "seed": 3}
    assert sae.metadata["context_size"] == 96


@pytest.mark.parametrize("architecture", ["jumprelu", "standard"])
def test_json_tells_the_same_to_a_program(files: SubjectFiles, tmp_path: Path, architecture: str) -> None:
    out = tmp_path / "sae"
    small = [word for word in SMALL if word not in ("--k", "8")] if architecture == "standard" else SMALL
    more = ("--architecture", architecture, "--held-out", str(files.texts), "--json")
    result = CliRunner().invoke(app, arguments(files, out, *small, *more), env=ENVIRONMENT)
    assert result.exit_code == 0, result.output
    told, sae = json.loads(result.stdout), load_sae(out)
    assert (told["fvu"], told["l0"]) == (sae.stated_fvu, sae.stated_l0)
    assert told["path"] == str(out)
    assert told["tokens"] == 32 * 128
    assert told["tokens_per_second"] == pytest.approx(told["tokens"] / told["seconds"])
    assert str(sae.architecture) == architecture
    assert "already" in refused(2, *arguments(files, out, *SMALL))


def test_features_are_8_times_the_width_by_default(files: SubjectFiles, tmp_path: Path) -> None:
    small = [word for word in SMALL if word not in ("--feature-count", "64")]
    result = CliRunner().invoke(app, arguments(files, tmp_path / "sae", *small), env=ENVIRONMENT)
    assert result.exit_code == 0, result.output
    assert load_sae(tmp_path / "sae").features == 8 * 48


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--k", "0"), "k is 0.0; it must be above 0"),
        (("--groups", "16,x"), "--groups '16,x' is not a list of whole numbers"),
        (("--groups", "16,16"), "groups sum to 32, but features is 64"),
        (("--batch", "0"), "batch is 0"),
        (("--learning-rate", "-1"), "learning_rate is -1.0"),
        (("--architecture", "standard"), "k cannot be asked of the architecture standard"),
        (("--architecture", "gated"), "gated"),
        (("--site", "layers.7.resid_post"), "the model has layers 0 to 2"),
        (("--site", "somewhere"), "'somewhere' is not a site"),
        (("--context", "1000"), "--context is 1000; the model's context has 256 tokens"),
        (("--held-out-share", "1.5"), "held_out is 1.5"),
        (("--held-out", "/no/such/file.txt"), "/no/such/file.txt"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(
    files: SubjectFiles, tmp_path: Path, more: tuple[str, ...], complaint: str
) -> None:
    assert complaint in refused(2, *arguments(files, tmp_path / "sae", *SMALL, *more))
    assert not (tmp_path / "sae").exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "bad.jsonl",
            '{"text": "fine, and long enough"}\n{"txt": 1}\n',
            "bad.jsonl:2: is not an object with",
        ),
        ("a.csv", "x", "a.csv: is neither .txt"),
        ("short.txt", "a\n\nb", "fewer than two tokens"),
    ],
)
def test_wrong_texts_are_told_by_file_and_line(
    files: SubjectFiles, tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    wrong = SubjectFiles(files.model, path)
    assert complaint in refused(1, *arguments(wrong, tmp_path / "sae", *SMALL))


def test_a_model_that_is_not_there_is_told(files: SubjectFiles, tmp_path: Path) -> None:
    missing = SubjectFiles(tmp_path / "nothing", files.texts)
    assert "the model cannot be loaded" in refused(1, *arguments(missing, tmp_path / "sae", *SMALL))


def test_the_help_does_not_load_torch() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from saegis_lab.cli.app import app\n"
        "assert CliRunner().invoke(app, ['train', 'sae', '--help']).exit_code == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_harvest_is_grown_and_trained_on(files: SubjectFiles, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    texts = ("--model", str(files.model), "--texts", str(files.texts), "--site", SITE, "--context", "96")
    told = []
    for more in (("--tokens", "100"), ()):
        harvest = ("train", "harvest", *texts, "--out", str(kept), *more, "--json")
        result = CliRunner().invoke(app, harvest, env=ENVIRONMENT)
        assert result.exit_code == 0, result.output
        told.append(json.loads(result.stdout)["tokens"])
    assert 100 <= told[0] < told[1]
    train = arguments(files, tmp_path / "sae", *SMALL, "--harvest", str(kept), "--json")
    result = CliRunner().invoke(app, train, env=ENVIRONMENT)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text_tokens"] == 0
    second = arguments(files, tmp_path / "second", *SMALL, "--harvest", str(kept), "--seed", "1")
    assert "was made with text seed 0, not 1" in refused(1, *second)
    result = CliRunner().invoke(app, (*second, "--split-seed", "0"), env=ENVIRONMENT)
    assert result.exit_code == 0, result.output
    elsewhere = ["layers.0.resid_post" if each == SITE else each for each in train]
    elsewhere[elsewhere.index(str(tmp_path / "sae"))] = str(tmp_path / "other")
    assert f"was made with site '{SITE}', not 'layers.0.resid_post'" in refused(1, *elsewhere)
    nowhere = arguments(files, tmp_path / "other", *SMALL, "--harvest", str(tmp_path / "nowhere"))
    assert "harvest.json cannot be read" in refused(1, *nowhere)
