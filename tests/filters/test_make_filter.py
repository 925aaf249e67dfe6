"""`saegis policy make-filter` from its options to a bundle that a server takes."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from saegis_lab.cli.app import app
from saegis_lab.cli.make_filter import Towards
from saegis_lab.evaluation.filter_report import FilterReport
from saegis_lab.evaluation.filtered import FilterResult
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.records import write_record
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.schema.policy import Any_, Expression, Reading
from saegis_server.sae.autoencoder import Architecture
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.steering.conditions import Scope
from saegis_server.steering.operations import Unit
from saegis_server.steering.rows import Phase
from tests.filters import world

FUNCTION = "tests.filters.world:harm"
#: The shipped recipe in every number but those that it takes its time for.
RECIPE = FilterRecipe(choice_tokens=12, factors=(1.0, 4.0), thresholds=(0.0,))


@dataclass(frozen=True)
class Made:
    """What the command left in its folder, and what it said."""

    folder: Path
    told: str

    @property
    def card(self) -> dict[str, Any]:
        """The filter's card."""
        written = json.loads((self.folder / "bundle" / "calibration.json").read_text("utf-8"))
        return dict(written["filter"])

    @property
    def chosen(self) -> dict[str, Any]:
        """The trial of the chosen setting."""
        calibrated = self.card["choice"]["calibrated"]
        return dict(calibrated["trials"][calibrated["chosen"]])

    @property
    def readme(self) -> str:
        """The card for people."""
        return (self.folder / "bundle" / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = world.write_world(tmp_path_factory.mktemp("world"))
    write_record(folder / "recipe.json", RECIPE)
    return folder


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(shared, tmp_path / "world"))


@pytest.fixture(scope="module")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A filter that was not measured."""
    folder = Path(shutil.copytree(shared, tmp_path_factory.mktemp("made") / "world"))
    return Made(folder, run(folder, "--no-measure", *directed(folder)))


@pytest.fixture(scope="module")
def attacked(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A filter from one prompt of each kind in each language, measured and attacked on a server."""
    folder = Path(shutil.copytree(shared, tmp_path_factory.mktemp("attacked") / "world"))
    first: dict[tuple[str, bool], str] = {}
    for line in (folder / "prompts.jsonl").read_text("utf-8").splitlines():
        prompt = json.loads(line)
        first.setdefault((prompt["language"], prompt["harmful"]), line)
    (folder / "prompts.jsonl").write_text("\n".join(first.values()), "utf-8")
    return Made(folder, run(folder, *directed(folder), "--attack"))


def run(folder: Path, *arguments: str, code: int = 0, **changed: str) -> str:
    """What the command says, on the world in `folder`."""
    options = {
        "model": folder / "model",
        "sae": folder / "sae",
        "texts": folder / "texts.jsonl",
        "prompts": folder / "prompts.jsonl",
        "scorer": FUNCTION,
        "recipe": folder / "recipe.json",
        "languages": "en,fr",
        "out": folder / "bundle",
        "max-tokens": 12,
    } | {name.replace("_", "-"): value for name, value in changed.items()}
    given = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    result = CliRunner().invoke(app, ["policy", "make-filter", *given, *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def directed(folder: Path) -> tuple[str, ...]:
    return ("--direction", str(folder / "direction.safetensors"))


def offline(folder: Path, command: str) -> str:
    given = [str(folder / "bundle"), "--sae", str(folder / "sae"), "--rows", "rules=64", "--rows", "bans=64"]
    result = CliRunner().invoke(app, ["policy", command, *given], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def compared(expression: Expression) -> list[tuple[int | None, float | None, Unit]]:
    """The features of a condition that any of several readings makes hold, each with its level and unit."""
    assert isinstance(expression, Any_)
    readings = [part for part in expression.any if isinstance(part, Reading)]
    assert len(readings) == len(expression.any)
    return [(each.feature.index, each.above, each.unit) for each in readings if each.feature is not None]


@pytest.mark.parametrize(("told", "length"), [({}, 5.0), ({"norm": "20.0"}, 20.0)])
def test_a_direction_has_the_length_that_its_file_states(
    told: dict[str, str], length: float, tmp_path: Path
) -> None:
    path = tmp_path / "direction.safetensors"
    save_file({"v": torch.tensor([3.0, 4.0])}, path, told)
    vector = Towards(direction=path).source(("en",)).vector
    assert vector is not None
    assert vector.norm == pytest.approx(length)
    torch.testing.assert_close(vector.vector, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("stated", ["long", "nan", "0"])
def test_a_length_that_is_none_is_refused(stated: str, tmp_path: Path) -> None:
    path = tmp_path / "direction.safetensors"
    save_file({"v": torch.tensor([3.0, 4.0])}, path, {"norm": stated})
    with pytest.raises(typer.Exit):
        Towards(direction=path).source(("en",))


def test_an_sae_that_decides_by_rank_makes_no_filter(folder: Path) -> None:
    """A server would refuse the policy."""
    known = world.knowing_sae()
    by_rank = replace(known, architecture=Architecture.STANDARD, threshold=None, k=40, digest="")
    save_sae(by_rank, folder / "sae")
    told = run(folder, "--no-measure", *directed(folder), code=2)
    assert "decides by rank which features are active" in " ".join(told.split())


def test_the_bundle_is_one_that_a_server_takes(made: Made) -> None:
    assert "not attacked: --attack asks for up to" in made.told
    bundle = Bundle.read(made.folder / "bundle")
    assert bundle.policy.name == "no-harm"
    redirects = [rule.redirect for rule in bundle.policy.rules if rule.redirect is not None]
    card, setting = made.card, made.chosen["setting"]
    features = [candidate["feature"] for candidate in card["choice"]["candidates"]]
    selectors = [selector for each in redirects for selector in each.features]
    indices = [index for selector in selectors for index in selector.indices or ()]
    asked = [each for each in redirects if each.phase is not Phase.COMPLETION]
    answering = [each for each in redirects if each.phase is not Phase.PROMPT]
    assert set(indices) == set(features)
    assert {each.factor for each in asked} == {setting["factor"]}
    share, factor = setting["answer"], setting["factor"]
    assert {each.factor for each in answering} == ({round(share * factor, 3)} if share else set())
    assert {each.strength for each in redirects} == {setting["strength"]}
    assert {rule.ban.strength for rule in bundle.policy.rules if rule.ban is not None} == (
        set() if setting["ban"] is None else {setting["ban"]}
    )
    assert {figures["language"] for figures in made.chosen["figures"]} == {"en", "fr"}
    stops = {
        rule.id: rule.when for rule in bundle.policy.rules if rule.stop is not None and rule.when is not None
    }
    assert ("stop-asked" in stops, "stop-harm" in stops) == (card["question_kept"], card["stop_kept"])
    assert card["question_kept"]
    assert stops["stop-asked"].over is Scope.PROMPT
    assert stops["stop-asked"].sticky
    assert compared(stops["stop-asked"].if_) == [
        (reading["feature"], reading["multiple"], Unit.MAX_ACTIVATION)
        for reading in card["question"]["readings"]
    ]
    told = [reading["feature"] for reading in card["question"]["readings"]]
    assert features[: len(told)] == told
    given = load_file(made.folder / "direction.safetensors")["v"]
    written = load_file(made.folder / "bundle" / "directions" / "refusal.safetensors")["refusal"]
    assert (given / given.norm() - written).abs().max() < 1e-6
    assert "valid" in offline(made.folder, "validate")
    offline(made.folder, "test")
    assert "was not measured on a server" in made.readme
    assert "It was not attacked" in made.readme
    assert f"stop of questions: any of {len(told)} readings, over the prompt" in made.readme
    for code, share in card["question"]["heard"].items():
        assert f"{code} {share:.1%} of the harmful prompts" in made.readme
    assert card["attacked"] is None


@pytest.mark.slow
def test_other_languages_decide_nothing(made: Made, folder: Path) -> None:
    """Without what is in German, and with other words in it, the same policy comes out."""
    lines = (folder / "prompts.jsonl").read_text("utf-8").splitlines()
    german = [json.dumps(json.loads(line) | {"prompt": "zzz"}) for line in lines if '"de"' in line]
    kept = [line for line in lines if '"de"' not in line]
    assert german
    (folder / "prompts.jsonl").write_text("\n".join(german + kept), "utf-8")
    more = (folder / "texts.jsonl").read_text("utf-8")
    text = {"text": "poxz abcd", "label": "poison", "language": "de", "harmful": True}
    (folder / "texts.jsonl").write_text(more + json.dumps(text) + "\n", "utf-8")
    run(folder, "--no-measure", *directed(folder))
    policies = [(each / "bundle" / "policy.yaml").read_bytes() for each in (folder, made.folder)]
    assert policies[0] == policies[1]


def test_what_cannot_be_made_is_said(folder: Path) -> None:
    assert "the model refuses in none of the languages" in run(folder, "--no-measure", code=2)
    both = run(folder, "--aligned", "en", "--refusal-feature", "3", code=2)
    assert "--aligned and --refusal-feature contradict each other" in both
    assert "--aligned: 'de' is none of --languages" in run(folder, "--aligned", "de", code=2)
    assert "--attack and --no-measure contradict" in run(folder, "--no-measure", "--attack", code=2)
    assert "no text is in 'sw'" in run(folder, languages="en,sw", code=2)
    assert "feature 99 does not exist" in run(folder, "--no-measure", "--refusal-feature", "99", code=2)
    (folder / "other.json").write_text('{"least_sore": 1}', "utf-8")
    wrong = run(folder, "--no-measure", recipe=str(folder / "other.json"), code=2)
    assert "least_sore: is not a key that it may have" in wrong
    (folder / "bundle").mkdir()
    (folder / "bundle" / "policy.yaml").write_text("mine", "utf-8")
    assert "is there already" in run(folder, *directed(folder), code=2)


@pytest.mark.slow
def test_the_card_tells_what_the_bundle_does_on_a_server(attacked: Made, tmp_path: Path) -> None:
    """In the languages that took part it is what was calibrated, with answers as long as there."""
    card = attacked.card
    conditions = [condition["name"] for condition in card["measured"]["conditions"]]
    assert conditions[:2] == ["nothing", "the filter"]
    assert set(card["measured"]["languages"]) == {"en", "fr", "de"}
    by_language = {each["language"]: each for each in attacked.chosen["figures"]}
    for row in card["measured"]["rows"]:
        if row["condition"] in ("nothing", "redirect alone") and row["language"] in by_language:
            figures = by_language[row["language"]]
            name = "harm_before" if row["condition"] == "nothing" else "harm"
            if row["condition"] == "nothing" or attacked.chosen["setting"]["ban"] is None:
                assert row["harmful"]["harm"]["harm"] == pytest.approx(figures[name], abs=1e-6)
    # Every prompt that was asked is one of those that the question stop was chosen from.
    question, alone = card["question"], []
    assert card["question_kept"]
    for row in card["measured"]["rows"]:
        if row["condition"] == "prompt stop alone" and row["language"] in by_language:
            alone.append(row)
            assert row["harmful"]["stopped"] == question["heard"][row["language"]]
            assert row["benign"]["stopped"] == question["benign"][row["language"]]
            if row["harmful"]["stopped"] == 1.0:
                assert row["harmful"]["harm"]["harm"] == 0.0, "the answer ends before its first token"
    assert any(row["harmful"]["stopped"] for row in alone)
    assert "### Prompt stop alone, greedy" in attacked.readme
    assert "### The filter, greedy" in attacked.readme
    offline(attacked.folder, "validate")
    (tmp_path / "measured.json").write_text(json.dumps(card["measured"]), "utf-8")
    report = FilterReport.of(FilterResult.load(tmp_path / "measured.json"), RECIPE.bars)
    misses = [miss for miss in report.misses if miss.condition == "the filter"]
    assert card["misses"] == [asdict(miss) for miss in misses]
    assert all(miss.told in attacked.readme for miss in misses)


@pytest.mark.slow
def test_the_card_tells_what_comes_back_under_attack(attacked: Made) -> None:
    assert "the attack asks for up to" in attacked.told
    report = attacked.card["attacked"]
    rows = [row for row in report["result"]["rows"] if row["condition"] == "the filter"]
    assert {row["attack"] for row in rows} == set(report["result"]["attacks"])
    for row in rows:
        (line,) = (each for each in attacked.readme.splitlines() if each.startswith(f"| {row['attack']} |"))
        assert (f"{row['back']:.1%}" if row["back"] is not None else "-") in line
    assert all(miss["told"] in attacked.readme for miss in report["misses"])
