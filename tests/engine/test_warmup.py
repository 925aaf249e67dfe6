"""The warm-up: the canary passes where steering works, and names the site where it does not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saegis_server.engine.api import CanaryError
from saegis_server.engine.torch import hooks
from saegis_server.engine.torch.site_reading import hook
from saegis_server.engine.torch.warmup import warm_up
from saegis_server.steering.apply import apply
from saegis_server.steering.site import Place, Site
from tests.engine import tiny

BROKEN = Site(0, Place.MLP_OUT)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_canary_passes_and_progress_is_told(family: str) -> None:
    told: list[tuple[str, int, int]] = []
    warm_up(tiny.step(tiny.model(family)), lambda *stage: told.append(stage))
    assert [done for _, done, _ in told] == list(range(7))
    assert {count for _, _, count in told} == {6}
    assert [name for name, _, _ in told][3:] == [*(f"canary at {site}" for site in tiny.SITES), "ready"]


def test_after_the_canary_the_slot_is_as_new() -> None:
    wanted, got = tiny.RunningEngine(tiny.step(tiny.model())), tiny.RunningEngine(tiny.step(tiny.model()))
    warm_up(got.step, lambda *_: None)
    prompt = tiny.prompt_of(2, 30)
    with wanted, got:
        assert got.ask(prompt).wait().tokens() == wanted.ask(prompt).wait().tokens()


def unsteered(x: Any, *others: Any) -> Any:
    """Tells of an edit that it does not make."""
    return x, apply(x, *others)[1]


def too_strong(x: Any, *others: Any) -> Any:
    """Moves one part in fifty too far."""
    steered, readings = apply(x, *others)
    return x + 1.02 * (steered - x), readings


def silent(x: Any, *others: Any) -> Any:
    """Steers, and reads what was there before."""
    steered, readings = apply(x, *others)
    return steered, readings._replace(watched_after=readings.watched_before)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (unsteered, "the steered logits differ by"),
        (too_strong, "the steered logits differ by"),
        (silent, "the reading moved by 0 instead of"),
    ],
)
def test_steering_that_goes_wrong_at_one_site_names_it(
    monkeypatch: pytest.MonkeyPatch, broken: Any, message: str
) -> None:
    of_site = hooks._SiteHook._pass

    def pass_through(hook: Any, x: Any) -> Any:
        monkeypatch.setattr(hooks, "apply", broken if hook.site == BROKEN else apply)
        return of_site(hook, x)

    monkeypatch.setattr(hooks._SiteHook, "_pass", pass_through)
    step = tiny.step(tiny.model())
    with pytest.raises(CanaryError, match=rf"layers\.0\.mlp_out: {message}"):
        warm_up(step, lambda *_: None)


def test_a_hook_in_the_wrong_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def misplaced(model: Any, site: Site, edit: Any) -> Any:
        return hook(model, Site(1, Place.MLP_OUT) if site == BROKEN else site, edit)

    monkeypatch.setattr(hooks, "hook", misplaced)
    step = tiny.step(tiny.model())
    with pytest.raises(CanaryError, match=r"layers\.0\.mlp_out: the steered logits differ by"):
        warm_up(step, lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"PATH": "/nowhere", "CXX": "g++"}, {"CXX": "no-such-compiler"}])
def test_without_a_compiler_the_reason_is_told(variables: dict[str, str]) -> None:
    ask = "from saegis_server.engine.torch.warmup import missing_compiler as why; print(why())"
    path = str(Path(hooks.__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    output = subprocess.run(
        [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert "compiler" in output
    assert output != "None"
