"""Tests of the display of a server's start."""

import contextlib
import io
import json
import threading

import pytest
from rich.console import Console

from saegis_server.cli.stages import BarStages, JsonStages, LineStages, StageDisplay

TOLD = (("loading", 0, 0), ("compiling", 0, 3), ("compiling", 1, 3), ("canary", 2, 3), ("ready", 3, 3))


def tell(display: StageDisplay) -> None:
    with display:
        for stage, done, total in TOLD:
            display(stage, done, total)


def test_lines_tell_each_stage_and_its_time() -> None:
    out = io.StringIO()
    display = LineStages(Console(file=out, width=80))
    tell(display)
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines[0] == "loading ..."
    assert lines[1].startswith("loading: 0.")
    assert lines[2] == "compiling (1 of 3) ..."
    assert lines[4] == "canary (3 of 3) ..."
    assert len(lines) == 6
    assert list(display.seconds) == ["loading", "compiling", "canary"]


def test_bars_show_every_stage_with_a_tick() -> None:
    out = io.StringIO()
    tell(BarStages(Console(file=out, width=80, force_terminal=True, color_system=None)))
    shown = out.getvalue()
    for stage in ("loading", "compiling", "canary"):
        assert f"✓ {stage}" in shown
    assert "ready" not in shown


def test_json_lines_tell_everything(capsys: pytest.CaptureFixture[str]) -> None:
    tell(JsonStages())
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stages = [(each["stage"], each["done"], each["total"]) for each in events if each["event"] == "stage"]
    assert stages == list(TOLD[:-1])
    ended = [each["stage"] for each in events if each["event"] == "stage_ended"]
    assert ended == ["loading", "compiling", "canary"]


def test_an_error_in_a_stage_ends_the_display() -> None:
    out = io.StringIO()
    display = LineStages(Console(file=out, width=80))
    with contextlib.suppress(RuntimeError), display:
        display("loading", 0, 0)
        raise RuntimeError
    assert "loading" in display.seconds


def test_it_may_be_told_from_many_threads() -> None:
    out = io.StringIO()
    with LineStages(Console(file=out, width=80), announce=False) as display:
        threads = [threading.Thread(target=display, args=(f"stage {n}", 0, 0)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(display.seconds) == 20
    assert len(out.getvalue().splitlines()) == 20
