"""`saegis features label | choose` and `saegis eval coverage` on features of a known meaning."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saegis_lab.cli.app import app
from saegis_lab.evaluation.experiment import BanFile
from saegis_server.sae.examples import Examples
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.labels import Labels
from tests.cli.offline_world import write_texts, write_world


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(shared: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(shared, tmp_path / "world"))


def run(folder: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Standard output, and standard error on one line, of a command on the world in `folder`."""
    given = {
        "--model": str(folder / "model"),
        "--sae": str(folder / "sae"),
        "--texts": str(folder / "texts.jsonl"),
    }
    added = [word for option, value in given.items() if option not in arguments for word in (option, value)]
    result = CliRunner().invoke(app, [*arguments, *added], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout, " ".join(result.stderr.split())


def run_json(folder: Path, *arguments: str) -> Any:
    return json.loads(run(folder, *arguments, "--json")[0])


def test_label_names_each_feature_for_its_meaning(world: Path) -> None:
    out, err = run(world, "features", "label")
    assert "poison" in out
    assert "features.jsonl" in err
    labels = Labels.load(world / "sae")
    assert len(labels) == 48
    english, french, both = (labels.get(feature) for feature in (0, 1, 2))
    assert english is not None
    assert french is not None
    assert both is not None
    assert (english.label, french.label, both.label) == ("poison in en", "poison in fr", "poison")
    for label, languages in ((english, ("en",)), (french, ("fr",)), (both, ("en", "fr"))):
        assert label.harmful
        assert (label.precision, label.languages) == (1.0, languages)
        assert label.recall == label.precision_by_language == dict.fromkeys(languages, 1.0)
    assert both.max_activation == 4.0
    # <s> is the first token of every text, and left out: 12 letters remain, 16 of 40 texts are of poison.
    assert both.density == pytest.approx(16 / 40)


def test_label_gathers_where_each_feature_is_strongest(world: Path) -> None:
    _, err = run(world, "features", "label")
    assert "examples.safetensors" in err
    sae = load_sae(world / "sae")
    examples = Examples.load(world / "sae", sae, 300)
    assert examples is not None
    letters = {ord(letter) for letter in "po"}
    for feature, value in ((0, 2.0), (2, 4.0)):
        pieces = examples.pieces(feature)
        assert len(pieces) == 5
        assert all(max(piece.activations) == value for piece in pieces)
    assert len({piece.tokens for piece in examples.pieces(0)}) > 1
    assert all(len(set(piece.tokens)) <= len(letters) for piece in examples.pieces(0))
    told = examples.histogram(0)
    # 8 texts of 12 letters for each of five labels; in those of poison in English it fires everywhere.
    assert (sum(told.counts), told.tokens) == (8 * 12, 5 * 8 * 12)
    assert told.counts[int(2.0 / told.width)] == 8 * 12


def test_label_does_not_replace_labels_unless_told_to(world: Path) -> None:
    (world / "sae" / "features.jsonl").write_text('{"feature": 0, "label": "mine"}\n', encoding="utf-8")
    _, err = run(world, "features", "label", code=2)
    assert "features.jsonl exists" in err
    assert "--force" in err
    assert len(Labels.load(world / "sae")) == 1
    run(world, "features", "label", "--out", str(world / "elsewhere"))
    assert len(Labels.load(world / "elsewhere")) == 48
    told = run_json(world, "features", "label", "--force")
    assert told["folder"] == str(world / "sae")
    assert told["summary"]["features"] == 48
    assert told["summary"]["by_concept"]["poison"] >= 1
    assert len(Labels.load(world / "sae")) == 48


def test_texts_with_their_own_special_tokens_give_the_same_labels_with_raw(world: Path) -> None:
    run(world, "features", "label", "--out", str(world / "plain"))
    write_texts(world / "texts.jsonl", opening="<s>")
    run(world, "features", "label", "--raw", "--out", str(world / "raw"))
    assert list(Labels.load(world / "raw")) == list(Labels.load(world / "plain"))


def test_special_tokens_that_the_sae_was_trained_without_are_left_out(world: Path) -> None:
    """A second <s> in each text would be a thirteenth token."""
    write_texts(world / "texts.jsonl", opening="<s>")
    run(world, "features", "label", "--out", str(world / "counted"))
    config = world / "sae" / "cfg.json"
    stated = json.loads(config.read_text(encoding="utf-8"))
    for number, value in enumerate((True, [256])):
        stated["metadata"]["exclude_special_tokens"] = value
        config.write_text(json.dumps(stated), encoding="utf-8")
        run(world, "features", "label", "--out", str(world / f"without{number}"))
    densities = [
        next(iter(Labels.load(world / name))).density for name in ("counted", "without0", "without1")
    ]
    assert densities == [pytest.approx(8 * 12 / (40 * 13), abs=1e-6), 0.2, 0.2]


def test_an_sae_of_another_model_is_refused_unless_only_a_warning_is_asked_for(world: Path) -> None:
    save_sae(replace(load_sae(world / "sae"), model_name="somebody/else-7b"), world / "sae")
    _, err = run(world, "features", "label", code=1)
    assert "else-7b" in err
    assert "--unmatched-saes warn" in err
    run(world, "features", "label", "--unmatched-saes", "warn")


def test_texts_longer_than_the_context_are_cut_and_that_is_told(world: Path) -> None:
    lines = [{"text": "p" * 300, "label": "poison", "language": "en"}]
    lines.append({"text": "br", "label": "bread", "language": "en"})
    (world / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    _, err = run(world, "features", "label")
    assert "1 of 2 texts are longer than the model's context; what lies beyond 256 tokens" in err
    first = Labels.load(world / "sae").get(0)
    assert first is not None
    assert first.density == pytest.approx(255 / 257, abs=1e-6)


def test_import_takes_over_explanations_and_keeps_what_was_measured(world: Path) -> None:
    run(world, "features", "label")
    before = Labels.load(world / "sae").get(2)
    assert before is not None
    export = world / "batch-0.jsonl"
    line = {"modelId": "m", "layer": "0-res", "index": "2", "description": "toxic things"}
    export.write_text(json.dumps(line), encoding="utf-8")
    arguments = ["features", "import", str(export), "--sae", str(world / "sae")]
    refused = CliRunner().invoke(app, arguments)
    assert (refused.exit_code, "features.jsonl exists" in refused.stderr) == (2, True)
    done = CliRunner().invoke(app, [*arguments, "--force", "--json"])
    assert json.loads(done.stdout) == {"source": "m/0-res", "labelled": 1, "features": 48}
    labels = Labels.load(world / "sae")
    after = labels.get(2)
    assert after is not None
    assert (after.label, after.precision, after.max_activation) == (
        "toxic things",
        None,
        before.max_activation,
    )
    assert len(labels) == 48
    export.write_text(json.dumps(line | {"index": "48"}), encoding="utf-8")
    beyond = CliRunner().invoke(app, [*arguments, "--force"])
    assert (beyond.exit_code, "has features 0 to 47" in beyond.stderr) == (2, True)


@pytest.mark.parametrize(
    ("languages", "features"), [("en", [2, 0]), ("fr", [2, 1]), ("en,fr", [2]), ("fr, en", [2])]
)
def test_choose_takes_what_holds_in_every_language(world: Path, languages: str, features: list[int]) -> None:
    path = world / "ban.json"
    told = run_json(world, "features", "choose", "--harmful", "--chosen-from", languages, "--out", str(path))
    codes = tuple(code.strip() for code in languages.split(","))
    # Letters also have coordinates of their own: those of `p` alone are poison as well, but only in English.
    chosen = [each["feature"] for each in told["features"] if each["feature"] < 3]
    assert chosen == features
    assert told["languages"] == list(codes)
    assert told["wanted"] == "harmful"
    for each in told["features"]:
        assert all(figures["precision"] == 1.0 for figures in each["by_language"].values())
    ban = BanFile.load(path)
    assert list(ban.features) == [each["feature"] for each in told["features"]]
    assert (ban.chosen_from, ban.strength) == (codes, 2.0)


def test_choose_prints_a_row_for_each_feature_by_its_label(world: Path) -> None:
    run(world, "features", "label")
    out, err = run(
        world,
        "features",
        "choose",
        "--label",
        "poison",
        "--chosen-from",
        "en,fr",
        "--out",
        str(world / "b.json"),
    )
    assert "1 features for poison texts" in out
    assert "│     2 │" in out
    assert "poison" in out.splitlines()[-2]
    assert "wrote" in err


@pytest.fixture
def ban(world: Path) -> Path:
    BanFile((0, 2), 2.0, ("en",)).save(world / "ban.json")
    return world / "ban.json"


def test_coverage_of_a_ban_file_language_by_language(world: Path, ban: Path) -> None:
    out, plot = world / "coverage.json", world / "coverage.png"
    told = run_json(world, "eval", "coverage", "--features", str(ban), "--out", str(out), "--plot", str(plot))
    assert json.loads(out.read_text(encoding="utf-8")) == told
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert (told["wanted"], told["found_in"]) == ("harmful", ["en"])
    english, both = told["features"]
    assert (english["recall"], english["worst"]) == ({"en": 1.0, "fr": 0.0}, "fr")
    assert (both["recall"], both["precision"]) == ({"en": 1.0, "fr": 1.0}, {"en": 1.0, "fr": 1.0})
    assert told["languages"]["fr"] == {
        "wanted_tokens": 96,
        "wanted_texts": 8,
        "tokens": 1.0,
        "texts": 1.0,
        "other_tokens": 0.0,
    }


def test_coverage_of_indices_as_tables(world: Path) -> None:
    out, _ = run(world, "eval", "coverage", "--features", "0,1", "--label", "poison", "--chosen-from", "fr")
    assert "2 features together, on poison texts" in out
    assert "fr (found)" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("│       0")]
    assert rows[0][3:] == ["1.000", "│", "0.000", "│", "en", "│"]
    assert rows[1][3:] == ["1.00", "│", "-", "│"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("features", "label", "--texts", "BAD"), "bad.jsonl: line 2: label is None, not a text"),
        (("features", "label", "--sae", "owner/sae"), "is no folder to write labels beside"),
        (("features", "label", "--out", "BAD"), "is a file"),
        (("features", "choose", "--chosen-from", "en,sw"), "no text is in 'sw'"),
        (("features", "choose", "--chosen-from", ","), "names no language"),
        (("features", "choose", "--chosen-from", "en", "--label", "fog"), "no text has the label 'fog'"),
        (("features", "choose", "--chosen-from", "en", "--label", "x", "--harmful"), "contradict each other"),
        (("features", "choose", "--chosen-from", "en", "--out", "/no/such/ban.json"), "there is no folder"),
        (("eval", "coverage", "--features", "0,x"), "no such file, and not indices"),
        (("eval", "coverage", "--features", "0,0"), "a feature stands there twice"),
        (("eval", "coverage", "--features", "BAD"), "bad.jsonl"),
        (("eval", "coverage", "--features", "48"), "feature 48 does not exist"),
        (("eval", "coverage", "--features", "0", "--chosen-from", "sw"), "language 'sw': no token is wanted"),
        (("eval", "coverage", "--features", "0", "--plot", "x.jpg"), "plots are PNG files"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(
    world: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    bad = world / "bad.jsonl"
    bad.write_text('{"text": "x", "label": "y", "language": "en"}\n{"text": "x"}\n', encoding="utf-8")
    _, err = run(world, *(str(bad) if word == "BAD" else word for word in arguments), code=2)
    assert complaint in err
    assert "error:" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--model", "NOTHING"), "the model cannot be loaded"),
        (("--sae", "NOTHING", "--out", "OUT"), "the SAE cannot be read"),
        (("--site", "layers.9"), "layers.9.resid_post does not exist"),
        (("--site", "layers.2.resid_post"), "--unmatched-saes warn"),
        (
            ("--site", "layers.2.resid_post", "--unmatched-saes", "warn"),
            "does not fit the site layers.2.resid_post",
        ),
    ],
)
def test_what_cannot_be_loaded_or_does_not_fit_ends_with_1(
    world: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    places = {"NOTHING": str(world / "nothing"), "OUT": str(world / "out")}
    _, err = run(world, "features", "label", *(places.get(word, word) for word in arguments), code=1)
    assert complaint in err
    assert not (world / "sae" / "features.jsonl").exists()


def test_where_no_feature_is_precise_enough_the_best_is_told(world: Path) -> None:
    """Of five tokens with a p, four are in harmful texts."""
    lines = [
        {"text": "pbpbpbpb", "label": "mixed", "language": code, "harmful": True} for code in ("en", "fr")
    ]
    lines += [{"text": "pbbbbbbb", "label": "bread", "language": code} for code in ("en", "fr")]
    (world / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    _, err = run(world, "features", "choose", "--chosen-from", "en,fr", code=1)
    assert "no feature has a precision of 0.9 on harmful texts in all of en, fr" in err
    assert "the best has 0.80 in its worst language" in err
