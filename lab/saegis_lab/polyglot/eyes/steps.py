"""The steps of making eyes, from the drawings to the folder that sees, and the files that they write and
read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from saegis_lab.polyglot.eyes.checkpoint import (
    added_parameters,
    new_seeing,
    put_tower,
    save_seeing,
    seeing_processor,
    seeing_tokenizer,
)
from saegis_lab.polyglot.eyes.emoji import HELD_OUT, SETS, TAUGHT, Drawings, drawings, fetch, read
from saegis_lab.polyglot.eyes.eyes import Eyes, fit_projector, open_eyes
from saegis_lab.polyglot.eyes.recipe import EyesRecipe
from saegis_lab.polyglot.eyes.subjects import DRAWN, others
from saegis_lab.polyglot.eyes.tower import Shelf, new_tower, teach_tower
from saegis_lab.polyglot.eyes.words import Words, find_words
from saegis_server.engine.torch.loading import LoadedModel, load_model
from saegis_server.reference import MODEL

#: The folders and files of a run: the emoji sets, what is drawn of them, trainings, and the model that sees.
EMOJI, DRAWN_FILE, DRAWN_NAMES = "emoji", "drawings.safetensors", "drawings.json"
TRAINING, SEEING = "training", "model"
_TOWER, _WORDS = "tower.safetensors", "words.safetensors"

console = Console()


def make_drawings(out: Path, recipe: EyesRecipe) -> None:
    """Fetch the emoji sets by npm, check their licences, and draw what is needed of them."""
    icons = [read(emoji, fetch(emoji, out / EMOJI)) for emoji in SETS]
    beside = others(each.svgs for each in icons if each.of in TAUGHT)
    if recipe.others is not None:
        Random(recipe.seed).shuffle(beside)
    drawn = drawings(icons, DRAWN | set(beside[: recipe.others]), recipe.shape.side)
    save_file({"pixels": drawn.pixels}, out / DRAWN_FILE)
    names = {"sets": drawn.sets, "names": drawn.names}
    (out / DRAWN_NAMES).write_text(json.dumps(names) + "\n", encoding="utf-8")
    console.print(f"drawings: {len(drawn.names)} of {len(SETS)} sets in {out / DRAWN_FILE}")


def load_drawings(out: Path) -> Drawings:
    """The run's drawings. Raises FileNotFoundError where there are none yet."""
    if not (out / DRAWN_NAMES).exists():
        raise FileNotFoundError(f"{out}: there are no drawings; run the step `drawings` first")
    told = json.loads((out / DRAWN_NAMES).read_text(encoding="utf-8"))
    pixels = load_file(out / DRAWN_FILE)["pixels"]
    return Drawings(pixels, tuple(told["sets"]), tuple(told["names"]))


def taught(out: Path) -> Shelf:
    """The drawings that teach."""
    return Shelf.of(load_drawings(out).only({emoji.name for emoji in TAUGHT}))


def held_out(out: Path) -> Drawings:
    """The drawings of the set that is held out."""
    return load_drawings(out).only({HELD_OUT.name})


@cache
def language_model(model: Path = MODEL) -> LoadedModel:
    """The model that gets eyes, frozen, in float32."""
    loaded = load_model(str(model))
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(False)
    return loaded


def make_tower(out: Path, recipe: EyesRecipe) -> None:
    """Teach the tower to name what it sees."""
    tower = teach_tower(recipe.shape, recipe.tower, taught(out), recipe.scenery, recipe.seed, out / TRAINING)
    save_file(tower.state_dict(), out / _TOWER)
    console.print(f"tower: {sum(p.numel() for p in tower.parameters()):,} parameters in {out / _TOWER}")


def make_words(out: Path, recipe: EyesRecipe) -> None:
    """Find the words that pictures are to become."""
    loaded, shelf = language_model(), taught(out)
    chance = torch.Generator().manual_seed(recipe.seed)
    rows, _ = shelf.drawn(recipe.covers, chance)
    covers = shelf.scenes(rows, recipe.scenery, chance).cover
    words = find_words(loaded.model, loaded.tokenizer, recipe.words, covers, recipe.seed, out / TRAINING)
    save_file(words.state_dict(), out / _WORDS)
    console.print(f"words: {len(words.subjects)} and the ground's in {out / _WORDS}")


def make_eyes(out: Path, recipe: EyesRecipe) -> None:
    """Fit the projector between tower and words, teach both through the language model, and write the folder
    that sees."""
    loaded, shelf = language_model(), taught(out)
    tokenizer = seeing_tokenizer(MODEL)
    model = new_seeing(loaded.model, tokenizer, recipe.shape, recipe.seed)
    tower, words = new_tower(recipe.shape, recipe.seed), Words(loaded.model, loaded.tokenizer)
    _load(tower, out / _TOWER, "tower")
    _load(words, out / _WORDS, "words")
    put_tower(model, tower)
    eyes = Eyes(model)
    left = fit_projector(eyes, words, shelf, recipe.scenery, recipe.fitting, recipe.seed)
    console.print(f"projector: {left:.1%} of the words' variance is left over")
    open_eyes(
        loaded.model,
        loaded.tokenizer,
        eyes,
        recipe.opening,
        shelf,
        recipe.scenery,
        recipe.seed,
        out / TRAINING,
    )
    save_seeing(model, seeing_processor(tokenizer, recipe.shape), out / SEEING, MODEL)
    size = sum(path.stat().st_size for path in (out / SEEING).iterdir())
    console.print(f"eyes: {added_parameters(model):,} parameters, {size / 1e6:.2f} MB in {out / SEEING}")


def _load(module: nn.Module, path: Path, step: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; run the step `{step}` first")
    module.load_state_dict(load_file(path))


def load_seeing(folder: Path) -> LlavaForConditionalGeneration:
    """A model that sees, in float32. Raises FileNotFoundError where it is not there yet."""
    if not (folder / "model.safetensors").exists():
        raise FileNotFoundError(f"{folder}: there is no model that sees; run the step `eyes` first")
    model: PreTrainedModel = LlavaForConditionalGeneration.from_pretrained(str(folder), dtype=torch.float32)
    assert isinstance(model, LlavaForConditionalGeneration)  # noqa: S101 - what the folder says it is
    return model
