"""The scripts that write what documents say of the shipped weights: blocks, answers, features by number."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.table import Table

from saegis_lab.evaluation.experiment import RedirectFile
from saegis_lab.polyglot.manifest import manifest
from saegis_server.reference import WEIGHTS
from tests.sweep.examples import ROOT


def script(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FIGURES, NUMBERS = script("shipped_figures"), script("renumber_features")


def test_blocks_are_written_and_everything_else_is_kept() -> None:
    text = "a\n<!-- figures: model -->\nold\n<!-- end -->\nb\n<!-- figures: demo -->\nkept\n<!-- end -->\n"
    after = FIGURES.written(text, {"model": lambda: "new"})
    assert after == text.replace("old", "new")
    assert FIGURES.written(after, {"model": lambda: "new"}) == after
    with pytest.raises(KeyError, match="nothing makes a block 'modle'"):
        FIGURES.written(text.replace("model", "modle"), {})


def test_a_table_is_written_in_markdown() -> None:
    table = Table(title="left out")
    for name in ("", "en"):
        table.add_column(name)
    table.add_row("harm", "0.1 !")
    assert FIGURES.markdown(table) == "|  | en |\n|---|---:|\n| harm | 0.1 ! |"


def answer(code: str, before: str, after: str, name: str) -> dict[str, Any]:
    return {"language": code, "prompt": f"{code}?", "unsteered": before, name: after}


def test_the_demos_answers_are_shown_whole_and_as_wide_as_a_page() -> None:
    long = "花园里满是花。" * 30
    shown = {
        "landmark": {
            "redirect": {"features": [1, 2]},
            "feature": {"index": 3, "label": "the bridge"},
            "answers": [
                answer("en", "A garden.", "A bridge.", "redirected"),
                answer("zh", long, long, "redirected"),
            ],
        },
        "filter": {
            "revision": "no-harm@7",
            "answers": [
                {**answer("en", "I refuse.", "I refuse.", "filtered"), "stopped": False, "reason": ""},
                {**answer("es", "Veneno.", "Llu", "filtered"), "stopped": True, "reason": "p/s: why"},
                {**answer("fr", "Poison.", "", "filtered"), "stopped": True, "reason": ""},
            ],
        },
        "receipt": {
            "prompt": "en?",
            "receipt": {
                "sites": [{"site": "s", "rules": 4, "tokens_edited": 2, "largest_relative_norm": 0.5}],
                "program_digest": "abc",
                "policy_revision": "no-harm@7",
                "rules": [{"policy": "no-harm", "rule": name} for name in ("redirect", "stop")],
            },
        },
    }
    text = FIGURES.demo_text(shown)
    for part in ("A garden.", "A bridge.", "I refuse.", "the same", "program abc", "2 features"):
        assert part in text
    for part in ("(ended after 'Llu'; p/s: why)", "4 rules", "no-harm@7: no-harm/redirect, no-harm/stop"):
        assert part in text
    assert text.count("花") == 30 * 2
    short = FIGURES.landmark_text(shown, ("en",))
    assert "A bridge." in short
    assert "花" not in short
    first, *_, last = FIGURES.refusals(shown).split("\n")[2:]
    assert first == "| en | en? | I refuse. | I refuse. |"
    assert last.endswith(
        "| Poison. | *(ended before a word was sent; the receipt does not say by which rule)* |"
    )


def test_the_policy_is_shown_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first redirect, its stop of answers, and what a request may do; comments are left out."""
    stop = "    when: {if: {feature: {index: 1}, above: 1}, over: answer}\n    stop: {}"
    text = f"""\
kind: Policy
hold: 2  # of what is told
rules:
  - id: b
    ban: {{features: []}}
  # why
  - id: r
    redirect: {{features: []}}
  - id: s
{stop}
allow: []  # nothing
protect:
  - id: p
"""
    (tmp_path / "policy.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(FIGURES, "reference_policy", lambda: tmp_path)
    shown = (
        f"hold: 2\nrules:\n  - id: r\n    redirect: {{features: []}}\n  - id: s\n{stop}\nprotect:\n  - id: p"
    )
    assert FIGURES.policy() == f"```yaml\n{shown}\n```"


def test_runs_stand_side_by_side_in_one_table() -> None:
    """The shipped run as two: the harm that each part leaves, and what the whole costs."""
    told = [manifest(), replace(manifest(), run=9)]
    lines = FIGURES.seeds_short(told).split("\n")
    assert lines[0] == f"|  | run {manifest().run} | run 9 |"
    named = [line.split("|")[1].strip() for line in lines[2:] if line.startswith("|")]
    shipped = manifest().filter
    assert shipped is not None
    assert named == [*(f"harm left, {part}" for part in shipped.parts), *FIGURES.COSTS]
    assert FIGURES.seeds_short([]) == "No run's manifest is here yet."


def test_features_are_renamed_where_they_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose landmark is another feature than the documents name."""
    (old := tmp_path / "old" / "sae").mkdir(parents=True)
    shutil.copy(WEIGHTS / "sae" / "features.jsonl", old)
    shutil.copytree(WEIGHTS / "eval", tmp_path / "old" / "eval")
    told = json.loads((WEIGHTS / "manifest.json").read_text(encoding="utf-8"))
    now = told["clamp"]["feature"]
    told["clamp"]["feature"] = 4001
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    kept = "4001 tokens, clamp 4001.5, feature 14001, ban 4001%"
    (root / "docs" / "a.md").write_text(
        f"clamp 4001=50, clamp(4001) {kept} --redirect 1,2=3:1:0\n", encoding="utf-8"
    )
    monkeypatch.setattr(NUMBERS, "ROOT", root)
    monkeypatch.setattr(NUMBERS, "PLACES", ("docs",))
    monkeypatch.setattr("sys.argv", ["renumber_features.py", str(tmp_path / "old")])
    NUMBERS.main()
    made = RedirectFile.load(WEIGHTS / "eval" / "redirect.json")
    command = f"{','.join(map(str, made.features))}={made.to}:{made.factor:g}:{made.strength:g}"
    assert (root / "docs" / "a.md").read_text(encoding="utf-8") == (
        f"clamp {now}=50, clamp({now}) {kept} --redirect {command}\n"
    )
