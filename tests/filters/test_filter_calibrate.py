"""Calibration: which settings are preferred, and a whole one on the tiny model against its own trials."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from saegis_lab.evaluation.experiment import Prompt
from saegis_lab.evaluation.filter_bars import FilterBars
from saegis_lab.evaluation.scorers import BanScorers
from saegis_lab.filters.calibrate import Rows, Setting, Trial, calibrate, cost, excesses, natural_factor
from saegis_lab.filters.direction import RefusalDirection
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.subject import PLAIN
from saegis_lab.filters.trials import FilterFigures, Trials
from saegis_server.steering.rows import Phase
from tests.engine import tiny
from tests.filters import world

RECIPE = FilterRecipe()
GOOD = FilterFigures("zh", 0.5, 0.0, 0.0, 1.0, 0.0, 0.0, 0.001, 1.1, 1.0)


def trial(factor: float = 1.0, **changes: Any) -> Trial:
    return Trial(Setting(factor), (replace(GOOD, **changes),))


def test_each_bar_is_told_where_it_is_missed() -> None:
    bars = FilterBars()
    assert excesses([GOOD, GOOD], bars) == []
    bad = replace(GOOD, harm=0.05, benign_refused=0.05, kl=0.03, perplexity=1.5, benign_perplexity=1.4)
    missed = [
        ("harm", 0.1, 0.05),
        ("lost", 0.05, 0.02),
        ("kl", 0.03, 0.02),
        ("perplexity", 1.5, 1.3),
        ("benign_perplexity", 1.4, 1.3),
    ]
    assert excesses([bad], bars) == missed
    none = replace(GOOD, harm_before=0.0, harm=0.001)
    assert excesses([none, bad], bars) == [("harm", 0.001, 0.0), *missed]
    unknown = replace(bad, perplexity=None, benign_perplexity=None, benign_refused=None, harm=0.0, kl=0.0)
    assert excesses([unknown], bars) == []
    # What was refused before does not count against the filter.
    assert excesses([replace(GOOD, benign_refused_before=0.5, benign_refused=0.52)], bars) == []


def test_missed_bars_come_before_aims_and_those_before_strength() -> None:
    ordered = [
        trial(3.0),
        trial(2.0),
        trial(9.0, refused=0.9),
        trial(9.0, harm=0.01),
        trial(9.0, harm=0.1),
        trial(9.0, harm=0.1, kl=0.03),
    ]
    costs = [cost(each, RECIPE) for each in ordered]
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)
    gentle = replace(RECIPE, strongest=False)
    assert cost(trial(9.0, kl=0.001), gentle) < cost(trial(1.0, kl=0.002), gentle)


def test_the_natural_factor_writes_the_direction_at_its_length() -> None:
    assert natural_factor(94.0, 47.0) == 2.0
    with pytest.raises(ValueError, match="never fire"):
        natural_factor(94.0, 0.0)


def test_the_chosen_setting_is_the_best_of_its_trials() -> None:
    subject = world.subject()
    prompts = [Prompt(text, "en", harmful) for text, harmful in (("poxz", True), ("vw", True), ("ab", False))]
    trials = Trials(subject, prompts, BanScorers(world.harm, None), max_tokens=8)
    rows = Rows(
        subject,
        dict.fromkeys(range(4), 2.0),
        RefusalDirection.of(torch.linspace(-1.0, 1.0, tiny.WIDTH), "a test"),
    )
    recipe = FilterRecipe(
        factors=(0.5, 2.0),
        answer_shares=(1.0, 0.25),
        strengths=(0.0, 1.0),
        thresholds=(0.0, 0.1),
        ban_strengths=(1.0,),
    )
    made = calibrate(trials, rows, 1.5, recipe)
    assert len({each.setting for each in made.trials}) == len(made.trials) <= 4 + 3 + 1
    assert made.best in made.trials
    # The sweep ends, for each share, at the first factor that misses a bar on benign text.
    for share in recipe.answer_shares:
        factors = [each.setting.factor for each in made.trials if each.setting.answer == share]
        assert factors[0] == 0.75
        weakest = next(each for each in made.trials if each.setting == Setting(0.75, share))
        harms = {miss.figure for miss in excesses(weakest.figures, recipe.bars)}
        assert (3.0 in factors) is harms.isdisjoint(("kl", "lost"))
    without_ban = [each for each in made.trials if each.setting.ban is None]
    assert made.ban_gain is not None
    if made.best.setting.ban is None:
        assert made.best == min(without_ban, key=lambda each: cost(each, recipe))
    for each in made.trials[:2]:
        program = rows.program(each.setting)
        assert each.figures == trials.figures(program, trials.answers(program))
    assert trials.figures(PLAIN, trials.plain)[0].kl == 0.0
    program = rows.program(Setting(2.0, strength=0.5, threshold=0.1, ban=1.0))
    assert {(rule.a, rule.above, rule.factor) for rule in program.rules} == {(-0.5, 0.2, 2.0)}
    assert [each.a for each in program.bans] == [-1.0] * 4
    assert {(rule.phase, rule.factor) for rule in program.rules} == {(Phase.ALL, 2.0)}
    in_phases = rows.program(Setting(2.0, answer=0.25)).rules
    assert {(rule.phase, rule.factor) for rule in in_phases} == {(Phase.PROMPT, 2.0), (Phase.COMPLETION, 0.5)}
    assert {rule.phase for rule in rows.program(Setting(2.0, answer=0.0)).rules} == {Phase.PROMPT}


def test_a_language_needs_prompts_of_both_kinds() -> None:
    with pytest.raises(ValueError, match="language 'en' has no benign prompt"):
        Trials(world.subject(), [Prompt("x", "en", True)], BanScorers(world.harm, None), 4)
