"""`saegis eval detectors` on features of a known meaning."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saegis_lab.cli.app import app
from saegis_lab.evaluation.experiment import BanFile
from tests.cli.offline_world import write_world
from tests.policy.bundles import write_files

POLICY = """\
apiVersion: saegis.dev/v1
kind: Policy
name: p
serial: 1
revision: r1
rules:
  - id: banned
    ban: {features: [{sae: theirs, indices: [2, 0]}], strength: 2}
  - id: redirected
    redirect: {features: [{index: 2}, {index: 1}], to: {feature: {index: 5}}, factor: 1}
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(shared: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(shared, tmp_path / "world"))


def run(folder: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Standard output, and standard error on one line."""
    given = ["--model", folder / "model", "--sae", folder / "sae", "--texts", folder / "texts.jsonl"]
    command = ["eval", "detectors", *map(str, given), *arguments]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout, " ".join(result.stderr.split())


def test_a_feature_of_both_languages_carries_over_and_one_of_english_does_not(world: Path) -> None:
    """Feature 2 fires on poison in both, feature 0 in English; in French it ties all texts."""
    out = world / "detectors.json"
    for feature, french in ((2, 1.0), (0, 0.5)):
        given = ("--features", str(feature), "--chosen-from", "en", "--out", str(out), "--json")
        told = json.loads(run(world, *given)[0])
        assert json.loads(out.read_text(encoding="utf-8")) == told
        rows = {row["language"]: row for row in told["rows"]}
        assert (rows["en"]["features"], rows["fr"]["features"]) == (1.0, french)
        assert (rows["en"]["chose"], rows["fr"]["chose"]) == (True, False)
        assert (rows["fr"]["wanted"], rows["fr"]["others"]) == (8, 16)
        assert told["features"] == [{"feature": feature, "largest": 2.0 + feature}]
        assert rows["en"]["probe"] == told["probe"]["held_out"] == 1.0


def test_the_features_of_a_bundle_and_of_a_ban_file_as_tables(world: Path) -> None:
    bundle = write_files(world / "policy", {"policy.yaml": POLICY.encode()})
    out, _ = run(world, "--policy", str(bundle), "--chosen-from", "fr")
    assert "area under the curve: 3 features, a linear probe" in out
    assert "fr (chosen)" in out
    assert "languages that took no part: features 1.0000, worst 1.0000 (en)" in out
    assert "on held-out halves" in out
    told = json.loads(run(world, "--policy", str(bundle), "--chosen-from", "fr", "--json")[0])
    assert [each["feature"] for each in told["features"]] == [2, 0, 1]
    BanFile((0, 2), 2.0, ("en",)).save(world / "ban.json")
    told = json.loads(run(world, "--features", str(world / "ban.json"), "--json")[0])
    assert (told["chosen_from"], [each["feature"] for each in told["features"]]) == (["en"], [0, 2])


def test_texts_with_refusals_are_left_out(world: Path) -> None:
    texts = world / "texts.jsonl"
    refusing = {"text": "po pardon", "label": "poison", "language": "en", "harmful": True}
    texts.write_text(texts.read_text("utf-8") + json.dumps(refusing) + "\n", "utf-8")
    (world / "words.json").write_text(json.dumps({"en": {"harm": ["po"], "refusal": ["pardon"]}}), "utf-8")
    counts = []
    for scorer in ((), ("--scorer", str(world / "words.json"))):
        told = json.loads(run(world, "--features", "2", "--chosen-from", "en", "--json", *scorer)[0])
        counts.append(next(row["wanted"] for row in told["rows"] if row["language"] == "en"))
    assert counts == [9, 8]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give either --features or --policy"),
        (("--features", "0", "--policy", "POLICY"), "give either --features or --policy"),
        (("--features", "48", "--chosen-from", "en"), "feature 48 does not exist"),
        (("--features", "0"), "--chosen-from: name the languages"),
        (("--features", "0", "--chosen-from", "sw"), "language 'sw': 0 texts are harmful"),
        (("--policy", "OTHER", "--chosen-from", "en"), "is about several SAEs: mine, theirs"),
        (("--policy", "NONE", "--chosen-from", "en"), "the policy p redirects and bans no features"),
        (("--policy", "BEYOND", "--chosen-from", "en"), "rule banned.ban.features[0].indices"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(
    world: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    policies = {
        "POLICY": POLICY,
        "OTHER": POLICY.replace("{index: 1}", "{sae: mine, index: 1}"),
        "NONE": POLICY[: POLICY.index("rules:")],
        "BEYOND": POLICY.replace("[2, 0]", "[2, 99]"),
    }
    for name, text in policies.items():
        write_files(world / name, {"policy.yaml": text.encode()})
    given = (str(world / word) if word in policies else word for word in arguments)
    _, err = run(world, *given, code=2)
    assert complaint in err
