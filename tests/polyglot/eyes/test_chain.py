"""The chain on a tiny recipe, from emoji sets that are there already to a folder that sees and its ranks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from saegis_lab.evaluation.experiment import load_prompts
from saegis_lab.polyglot.eyes import steps
from saegis_lab.polyglot.eyes.__main__ import run_step
from saegis_lab.polyglot.eyes.emoji import HELD_OUT, TAUGHT
from saegis_lab.polyglot.eyes.measuring import EVAL, FEATURES, PROMPTS, RANKS
from saegis_lab.polyglot.eyes.ranks import TOP, Ranks
from saegis_lab.polyglot.eyes.recipe import EyesRecipe
from saegis_lab.polyglot.eyes.shipping import card, ship
from saegis_lab.polyglot.eyes.subjects import ICONS
from saegis_lab.polyglot.lexicon import LANGUAGES
from saegis_server.engine.torch.loading import LoadedModel
from tests.polyglot.eyes.sets import write_sets

RECIPE = EyesRecipe.quick()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eyes")
    write_sets(out / steps.EMOJI)
    for name in ("drawings", "tower", "words", "eyes"):
        run_step(name, out, RECIPE)
    # Any feature does where nothing is seen: what text found is measured on the shipped model.
    (out / FEATURES).write_text(json.dumps(dict.fromkeys(ICONS, 3255)), encoding="utf-8")
    for name in ("ranks", "pictures"):
        run_step(name, out, RECIPE)
    return out


def test_the_language_model_is_left_as_it_was(made: Path, loaded: LoadedModel) -> None:
    seeing = steps.load_seeing(made / steps.SEEING).model.language_model.state_dict()
    for name, kept in loaded.model.model.state_dict().items():
        assert torch.equal(seeing[name][: len(kept)], kept), name


def test_what_is_held_out_is_not_taught(made: Path) -> None:
    assert {*steps.taught(made).drawings.sets} == {emoji.name for emoji in TAUGHT}
    assert {*steps.held_out(made).sets} == {HELD_OUT.name}


def test_an_interrupted_run_goes_on_to_the_same_end(made: Path, tmp_path: Path) -> None:
    shelf = steps.taught(made)
    from saegis_lab.polyglot.eyes.tower import teach_tower

    cut = replace(RECIPE.tower, checkpoint_every=1)
    whole = teach_tower(RECIPE.shape, cut, shelf, RECIPE.scenery, 0, tmp_path / "whole")
    state = torch.load(tmp_path / "whole" / "tower.pt", weights_only=True)
    assert state["step"] == cut.steps
    again = teach_tower(RECIPE.shape, cut, shelf, RECIPE.scenery, 0, tmp_path / "whole")
    for name, kept in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], kept), name
    other = replace(cut, steps=cut.steps + 1)
    with pytest.raises(ValueError, match="of a run with other settings"):
        teach_tower(RECIPE.shape, other, shelf, RECIPE.scenery, 0, tmp_path / "whole")


def test_ranks_are_counted_among_all_features(made: Path) -> None:
    ranks = Ranks.load(made / RANKS)
    assert [row.subject for row in ranks.subjects] == list(ICONS)
    assert ranks.share == pytest.approx(sum(row.rank <= TOP for row in ranks.subjects) / len(ICONS), abs=1e-4)
    # Of the role that answers: where an answer opens it is the strongest, whatever was asked.
    assert all(row.end_rank <= TOP for row in ranks.subjects)
    assert all(len(row.above) == min(row.rank - 1, TOP) for row in ranks.subjects if row.strength > 0)


def test_prompts_ask_every_language_about_every_subject(made: Path) -> None:
    prompts = load_prompts(made / EVAL / PROMPTS, pictures=True)
    assert {prompt.language for prompt in prompts} == {*LANGUAGES}
    assert {Path(prompt.image).stem.rpartition("-")[0] for prompt in prompts} == {*ICONS}
    assert sum(prompt.harmful for prompt in prompts) == 5 * RECIPE.pictures * len(LANGUAGES)
    with Image.open(prompts[0].image) as picture:
        assert picture.size == (RECIPE.shape.side,) * 2


def test_the_card_names_sets_and_licences(made: Path) -> None:
    told = card(made / steps.SEEING)
    for emoji in (*TAUGHT, HELD_OUT):
        assert f"{emoji.name} {emoji.version}, by {emoji.author}, {emoji.licence}" in told


def test_nothing_ships_that_was_not_measured(made: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"filter\.json is not there; run all steps before `ship`"):
        ship(made, tmp_path / "weights", tmp_path / "docs")
    assert not (tmp_path / "weights").exists()


def test_steps_name_the_step_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the step `drawings` first"):
        run_step("tower", tmp_path, RECIPE)
    with pytest.raises(FileNotFoundError, match="run the step `eyes` first"):
        steps.load_seeing(tmp_path)


def test_a_folder_that_sees_generates(made: Path) -> None:
    model: LlavaForConditionalGeneration = steps.load_seeing(made / steps.SEEING)
    assert model.config.image_seq_length == RECIPE.shape.patches
