"""Tests of `saegis eval ban` and `saegis eval clamp`: whole runs on a tiny server, and errors of usage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from saegis_lab.cli.app import app
from saegis_lab.evaluation.calibration import BanReport
from saegis_lab.evaluation.clamp import ClampResult
from saegis_lab.evaluation.experiment import BanFile
from saegis_server import reference
from tests.rpc.harness import running

PNG = b"\x89PNG\r\n\x1a\n"
WORDS = {
    "en": {"harm": ["the*", "s*", "e*"], "refusal": ["bridge"], "landmark": ["r*"]},
    "zh": {"harm": ["的"], "landmark": ["的"]},
}
PROMPTS = (
    ("the red bridge", "en", True),
    ("birds sing", "en", False),
    ("the day", "zh", True),
    ("a warm river", "zh", False),
)


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with running(max_num_seqs=4, queue_limit=64) as server:
        yield server.target


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that would be shipped, of which the tiny model can make something; the working directory."""
    folder = tmp_path / "eval"
    folder.mkdir()
    BanFile((3, 7), 2.0, ("en",), "first").save(folder / "ban.json")
    (folder / "clamp.json").write_text(json.dumps({"feature": 3, "values": [0, 2], "sae": "first"}))
    (folder / "words.json").write_text(json.dumps(WORDS), encoding="utf-8")
    lines = [
        json.dumps({"prompt": prompt, "language": code, "harmful": harmful})
        for prompt, code, harmful in PROMPTS
    ]
    for name in ("prompts.jsonl", "clamp_prompts.jsonl"):
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(reference, "WEIGHTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    return folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", *arguments], env={"COLUMNS": "200"})


def refused(*arguments: str, code: int = 2) -> str:
    """What a command that must fail writes to standard error, on one line."""
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return " ".join(result.stderr.split())


def test_a_ban_is_measured_from_shipped_files(files: Path, target: str) -> None:
    options = ("--server", target, "--max-tokens", "8", "--strengths", "0,2")
    result = invoke("ban", *options, "--json", "--out", "ban-result.json", "--plot", "ban.png")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert json.loads(Path("ban-result.json").read_text(encoding="utf-8")) == told
    report = BanReport.load(Path("ban-result.json"))
    assert (report.result.features, report.result.strengths) == ((3, 7), (0.0, 2.0))
    assert report.calibration is not None
    assert report.calibration.languages == ("en",)
    assert Path("ban.png").read_bytes().startswith(PNG)
    assert "wrote ban-result.json" in result.stderr
    assert "strength 2, greedy: divergence" in result.stderr


def test_the_tables_tell_every_language_and_the_verdict(files: Path, target: str) -> None:
    options = ("--server", target, "--max-tokens", "8", "--out", "result.json")
    sampled = ("--temperature", "0", "--temperature", "1", "--samples", "2", "--max-kl", "0")
    result = invoke("ban", *options, *sampled)
    assert result.exit_code == 0, result.output
    report = BanReport.load(Path("result.json"))
    english = report.result.row("en", 2.0, 0.0)
    assert english.harmful is not None
    assert english.kl is not None
    assert f"→ {english.harmful.harm:.3f}" in result.stdout
    assert f"{english.kl:.4f}" in result.stdout
    assert "harmful prompts, without the ban → strength 2, greedy" in result.stdout
    assert "benign prompts, without the ban → strength 2, temperature 1, 2 samples" in result.stdout
    assert "no strength meets the target" in result.stdout
    assert "KL is" in result.stdout


def test_a_list_of_features_has_strength_0_and_is_judged_everywhere(files: Path, target: str) -> None:
    options = ("--server", target, "--max-tokens", "4", "--json")
    result = invoke("ban", *options, "--features", "the red bridge,7", "--sae-id", "first")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["result"]["features"] == ["the red bridge", 7]
    assert told["result"]["strengths"] == [0.0]
    assert told["result"]["chosen_from"] == []
    assert told["calibration"]["languages"] == ["en", "zh"]


def test_a_clamp_is_measured_from_shipped_files(files: Path, target: str) -> None:
    options = ("--server", target, "--max-tokens", "8")
    result = invoke("clamp", *options, "--json", "--out", "result.json", "--plot", "clamp.png")
    assert result.exit_code == 0, result.output
    loaded = ClampResult.load(Path("result.json"))
    assert json.loads(result.stdout) == json.loads(Path("result.json").read_text(encoding="utf-8"))
    assert (loaded.feature, loaded.values, loaded.unit) == (3, (0.0, 2.0), "max_activation")
    assert Path("clamp.png").read_bytes().startswith(PNG)
    tables = invoke("clamp", *options)
    assert tables.exit_code == 0, tables.output
    row = loaded.row("en", 2.0)
    assert row.text.perplexity_ratio is not None
    assert f"{row.text.perplexity_ratio:.2f}" in tables.stdout
    assert f"{row.mentions:.0%}" in tables.stdout
    assert "2max" in tables.stdout


@pytest.mark.parametrize(
    ("written", "values", "unit"),
    [("0,1.5max,2max", [0.0, 1.5, 2.0], "max_activation"), ("-1,0,4", [-1.0, 0.0, 4.0], "feature")],
)
def test_values_have_the_unit_that_is_written(
    files: Path, target: str, written: str, values: list[float], unit: str
) -> None:
    options = ("--server", target, "--max-tokens", "4", "--json", "--feature", "5", "--sae-id", "first")
    result = invoke("clamp", *options, "--values", written, "--words", "harm")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["values"], told["unit"], told["words"]) == (values, unit, "harm")


def write(path: Path, data: Any) -> None:
    text = data if isinstance(data, str) else json.dumps(data)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("command", ["ban", "clamp"])
def test_wrong_prompts_and_words_are_told_with_their_place(files: Path, command: str) -> None:
    lines = (files / "prompts.jsonl").read_text(encoding="utf-8").split("\n")
    write(files / "bad.jsonl", "\n".join([lines[0], '{"prompt": "x"}', *lines[1:]]))
    told = refused(command, "--prompts", str(files / "bad.jsonl"))
    assert f"{files / 'bad.jsonl'}: line 2: language: is missing; harmful: is missing" in told
    write(files / "bad.json", {"en": {"harm": [], "landmark": []}})
    assert "no language 'zh', only en" in refused(command, "--scorer", str(files / "bad.json"))
    assert "no_such_module:f" in refused(command, "--scorer", "no_such_module:f")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("ban", "--features", "none.json"), "none.json: cannot be read"),
        (("ban", "--features", "3,,7"), "names no feature"),
        (("ban", "--calibrate-on", "en,fr"), "'fr' has no harmful prompts; there are some in en, zh"),
        (("ban", "--calibrate-on", ","), "at least one language"),
        (("ban", "--samples", "3"), "give a --temperature"),
        (("ban", "--strengths", "-1"), "--strengths"),
        (("ban", "--target", "2"), "--target"),
        (("ban", "--plot", "ban.jpg"), "write --plot ban.png"),
        (("ban", "--out", "no/such/result.json"), "there is no folder no/such"),
        (("ban", "--out", "eval"), "is a folder"),
        (("ban", "--prompts", "none.jsonl"), "none.jsonl"),
        (("clamp", "--feature", ""), "names no feature"),
        (("clamp", "--values", "1max,2"), "several units"),
        (("clamp", "--values", "2,1"), "each must be greater"),
        (("clamp", "--values", "0.1norm"), "norm_fraction is no unit that is measured here"),
        (("clamp", "--values", "x"), "'x' is no value"),
        (("clamp", "--words", "harbour"), "language 'en' has no word list 'harbour'"),
        (("clamp", "--samples", "3"), "samples: greedy answers"),
    ],
)
def test_wrong_usage_names_what_is_wrong(files: Path, arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in refused(*arguments)


def test_a_plot_without_matplotlib_says_what_to_install(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saegis_lab.cli.files.find_spec", lambda _name: None)
    assert "pip install 'saegis-server[lab]'" in refused("ban", "--plot", "ban.png")


def test_a_wrong_ban_file_is_told(files: Path) -> None:
    write(files / "ban.json", {"features": [1], "strength": 2, "chosen_from": [], "extra": 1})
    assert f"{files / 'ban.json'}: extra: is not a key" in refused("ban")


@pytest.mark.parametrize(
    ("name", "command", "option"),
    [
        ("ban.json", "ban", "--features"),
        ("clamp.json", "clamp", "--feature"),
        ("prompts.jsonl", "ban", "--prompts"),
        ("clamp_prompts.jsonl", "clamp", "--prompts"),
        ("words.json", "clamp", "--scorer"),
    ],
)
def test_missing_shipped_files_are_told(files: Path, name: str, command: str, option: str) -> None:
    (files / name).unlink()
    told = refused(command, code=1)
    assert f"the reference model's {name} is not at {files / name}" in told
    assert f"with {option}" in told


@pytest.mark.parametrize("command", ["ban", "clamp"])
def test_failed_calls_are_told(files: Path, target: str, command: str) -> None:
    nobody = refused(command, "--server", "127.0.0.1:1", "--timeout", "2", code=1)
    assert "saegis serve" in nobody
    option = "--features" if command == "ban" else "--feature"
    result = invoke(command, "--server", target, option, "999", "--sae-id", "first")
    assert result.exit_code == 1
    assert "saegis features search" in result.stderr


@pytest.mark.parametrize("command", ["ban", "clamp"])
def test_the_help_teaches_by_examples(command: str) -> None:
    shown = invoke(command, "--help")
    assert shown.exit_code == 0
    options, examples = shown.stdout.split("Examples", 1)
    assert f"saegis eval {command}" in examples
    used = {word.rstrip(".,;") for word in examples.split() if word.startswith("--")}
    assert used
    assert all(word in options for word in used), used
