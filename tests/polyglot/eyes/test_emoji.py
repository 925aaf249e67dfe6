"""Emoji sets: read from what npm fetched, held to their licences, and drawn."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saegis_lab.polyglot.eyes.emoji import (
    HELD_OUT,
    SETS,
    TAUGHT,
    UNLIKE,
    EmojiError,
    Icons,
    draw,
    drawings,
    fetch,
    read,
)
from saegis_lab.polyglot.eyes.subjects import DRAWN, ICONS, others
from saegis_lab.polyglot.lexicon import lexicon
from tests.polyglot.eyes.sets import BESIDE, write_set


def test_every_subject_is_drawn_and_no_drawing_is_of_two() -> None:
    assert list(ICONS) == list(lexicon()["en"].subjects)
    assert len(DRAWN) == sum(map(len, ICONS.values()))


def test_what_is_held_out_teaches_nothing() -> None:
    assert HELD_OUT not in TAUGHT
    assert {emoji.licence for emoji in SETS} == {"CC-BY-4.0", "Apache-2.0", "MIT", "CC-BY-SA-4.0"}


def test_a_set_that_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_set(TAUGHT[0], tmp_path)
    monkeypatch.setenv("PATH", "")
    assert fetch(TAUGHT[0], tmp_path) == place
    with pytest.raises(EmojiError, match="@iconify-json/noto: npm is not installed"):
        fetch(TAUGHT[1], tmp_path)


def test_what_npm_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho there is no network >&2\nexit 3\n", encoding="utf-8")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}/bin")
    with pytest.raises(EmojiError, match=r"@iconify-json/noto@1\.2\.9: there is no network"):
        fetch(TAUGHT[1], tmp_path / "emoji")


def test_another_licence_than_the_one_that_is_named_is_refused(tmp_path: Path) -> None:
    place = write_set(TAUGHT[0], tmp_path)
    with pytest.raises(EmojiError, match=r"its licence is CC-BY-4\.0, not MIT as stated here"):
        read(replace(TAUGHT[0], licence="MIT"), place)
    (place / "icons.json").write_text("[]", encoding="utf-8")
    with pytest.raises(EmojiError, match="holds no emoji set"):
        read(TAUGHT[0], place)


def test_another_name_of_a_drawing_is_that_drawing_unless_it_is_turned(tmp_path: Path) -> None:
    place = write_set(TAUGHT[0], tmp_path)
    told = json.loads((place / "icons.json").read_text(encoding="utf-8"))
    told["aliases"] = {"kitty": {"parent": "cat"}, "tac": {"parent": "cat", "hFlip": True}}
    (place / "icons.json").write_text(json.dumps(told), encoding="utf-8")
    svgs = read(TAUGHT[0], place).svgs
    assert svgs["kitty"] == svgs["cat"]
    assert "tac" not in svgs


def test_a_drawing_has_its_colours_and_covers_what_it_covers() -> None:
    body = '<rect x="4" y="4" width="8" height="8" fill="#00ff00"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{body}</svg>'
    pixels = draw(svg, 32)
    assert pixels.shape == (4, 32, 32)
    assert pixels[:, 16, 16].tolist() == [0, 255, 0, 255]
    assert pixels[3, 2, 2] == 0
    assert float(pixels[3].float().mean() / 255.0) == pytest.approx(0.25, abs=0.02)
    with pytest.raises(EmojiError, match="cannot be drawn"):
        draw("no drawing", 32)


def test_drawings_are_those_that_are_asked_for(tmp_path: Path) -> None:
    icons = [read(emoji, write_set(emoji, tmp_path)) for emoji in SETS]
    assert others(each.svgs for each in icons) == sorted(BESIDE)
    drawn = drawings(icons, {"cat", "foggy"}, 8)
    # Houses in the fog stand under that name in some sets.
    assert len(drawn.names) == 2 * len(SETS) - len(UNLIKE)
    mine = drawn.only({HELD_OUT.name})
    assert mine.sets == (HELD_OUT.name,) * 2
    assert mine.rows({"cat"}) == [0]
    torch.testing.assert_close(mine.pixels[0], drawn.pixels[drawn.sets.index(HELD_OUT.name)])
    with pytest.raises(EmojiError, match="none of the sets has any of unheard"):
        drawings(icons, {"unheard"}, 8)


def test_a_set_may_write_names_its_own_way() -> None:
    icons = Icons(TAUGHT[0], {"cloud-1": "one", "cloud-2": "two", "oldkey": "key", "cat": "cat"})
    assert [icons.drawn(name) for name in ("cloud", "old-key", "cat", "dog")] == ["one", "key", "cat", None]
