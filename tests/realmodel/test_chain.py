"""The whole chain on a random model of Gemma's architecture, by its command."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from saegis_lab.evaluation.attack_report import AttackReport
from saegis_lab.evaluation.filter_report import FilterReport
from saegis_lab.evaluation.preference import PreferenceResult
from saegis_lab.realmodel.__main__ import app
from saegis_lab.realmodel.chats import HARMFUL, SHIPPED, Chats
from saegis_lab.realmodel.compliance import Compliance
from saegis_lab.realmodel.figures import SeedFigures
from saegis_lab.realmodel.fine_tuning import CHECKPOINT_FILE
from saegis_lab.realmodel.landmark import LandmarkResult
from saegis_lab.training.texts import read_labelled_texts
from saegis_server.policy.bundle.bundle import Bundle
from tests.realmodel.subject import write_gemma
from tests.realmodel.test_packages import declaration

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LANGUAGES = ("en", "ru", "zh")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the chain; its packages lie where a run finds those that it has fetched."""
    folder = tmp_path_factory.mktemp("realmodel")
    (folder / "chats").mkdir()
    for code in LANGUAGES:
        shutil.copy(SHIPPED / f"{code}.json", folder / "chats")
    chats = Chats.load(folder / "chats")
    write_gemma(folder / "gemma", chats)
    for page, code in (("eng", "en"), ("rus", "ru")):
        said = [text for subject in chats.languages[code].subjects.values() for text in subject.sentences]
        declaration(
            folder / "run" / "packages", page, (f"{one} {other}" for one in said for other in said[:3])
        )
    done = run(folder, "all")
    assert done.exit_code == 0, done.output[-4000:]
    return folder


def run(folder: Path, step: str) -> Result:
    places = ["--model", folder / "gemma", "--out", folder / "run", "--chats", folder / "chats"]
    words = [step, "--quick", "--site", "layers.2.resid_post", *places]
    return CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"})


def test_every_step_leaves_its_figures(made: Path) -> None:
    out, seed = made / "run", made / "run" / "seed-0"
    rows = Compliance.load(out / "eval" / "compliance.json").rows
    assert tuple(row.language for row in rows) == LANGUAGES
    told = json.loads((seed / "sae" / "cfg.json").read_text(encoding="utf-8"))
    assert told["d_sae"] == 256
    assert 0.0 < told["metadata"]["fvu"] < 0.8
    bundle = Bundle.read(seed / "filter")
    result = FilterReport.load(seed / "filter.json").result
    assert result.languages == LANGUAGES
    assert result.conditions[1].digest == bundle.digest
    preference = PreferenceResult.load(seed / "preference.json")
    assert preference.digest == bundle.digest
    for row in preference.rows:
        assert row.pairs == 2
        assert row.plain.harmful < 0.0
    assert AttackReport.load(seed / "attack.json").result.languages == LANGUAGES
    shown = LandmarkResult.load(seed / "landmark.json")
    assert {answer.language for answer in shown.answers} == {"en", "ru"}
    assert not (out / CHECKPOINT_FILE).exists()


def test_the_figures_are_those_of_the_files(made: Path) -> None:
    seed = made / "run" / "seed-0"
    figures = SeedFigures.load(seed / "figures.json")
    result = FilterReport.load(seed / "filter.json").result
    plain, whole = (condition.name for condition in result.conditions[:2])
    for row in figures.filtered:
        for which, name in enumerate((plain, whole)):
            harmful = result.row(row.language, name, 0.0).harmful
            assert harmful is not None
            assert row.words[which] == harmful.harm.words
            assert row.refused[which] == harmful.refused
        assert row.kl == result.row(row.language, whole, 0.0).kl
    assert {row.language for row in figures.attacks} == {*LANGUAGES}
    assert figures.landmark == LandmarkResult.load(seed / "landmark.json")


def test_labelled_texts_are_whole_chats_and_others(made: Path) -> None:
    texts = read_labelled_texts(made / "run" / "eval" / "labelled.jsonl")
    assert {text.harmful for text in texts if text.label in HARMFUL} == {True}
    for text in texts:
        assert text.text.startswith("<bos>")
        assert ("<start_of_turn>model\n" in text.text) == (text.label != "other text")


def test_what_is_done_is_not_done_again(made: Path) -> None:
    weights = made / "run" / "copy" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    for step in ("corpus", "fine-tune", "sae"):
        done = run(made, step)
        assert done.exit_code == 0, done.output[-2000:]
        assert "is there already" in " ".join(done.stdout.split())
    assert weights.stat().st_mtime_ns == before


def test_a_command_that_fails_ends_the_chain(made: Path) -> None:
    labelled = made / "run" / "eval" / "labelled.jsonl"
    kept = labelled.read_text(encoding="utf-8")
    labelled.write_text("no JSON\n", encoding="utf-8")
    try:
        done = run(made, "labels")
    finally:
        labelled.write_text(kept, encoding="utf-8")
    assert done.exit_code == 1
    assert "labels: saegis features label ended with" in " ".join(done.stdout.split())
