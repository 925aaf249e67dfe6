"""The tables of filters: of one run by language, part and attack, and of several runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from saegis_lab.evaluation.figures import mean
from saegis_lab.evaluation.filtered import NOTHING
from saegis_lab.filters.card import WHOLE
from saegis_lab.polyglot.filter_figures import Back, PartFigures, Received, RunFilter
from saegis_lab.polyglot.manifest import Manifest
from saegis_lab.polyglot.recipe import CHOSEN_FROM, Choice

#: A row's title, and a figure of what is received without rules and under the filter.
Line = tuple[str, Callable[[Received, Received], float | None], str]
_LINES: tuple[Line, ...] = (
    ("harmful words an answer", lambda plain, _: plain.harm, ".2f"),
    ("harmful words an answer, filtered", lambda _, told: told.harm, ".2f"),
    ("refused", lambda plain, _: plain.refused, ".2f"),
    ("refused, filtered", lambda _, told: told.refused, ".2f"),
    ("stopped, filtered", lambda _, told: told.stopped, ".2f"),
    ("benign prompts refused or stopped, filtered", lambda _, told: told.lost, ".2f"),
    ("KL on benign text", lambda _, told: told.kl, ".3f"),
    ("perplexity ÷ ordinary", lambda plain, _: plain.perplexity, ".2f"),
    ("perplexity ÷ ordinary, filtered", lambda _, told: told.perplexity, ".2f"),
)


def filter_table(run: RunFilter, *, sampled: bool = False) -> Table:
    """What a user receives without rules and under the whole filter, a column for each language."""
    plain, told = (_by_language(run.parts[part], sampled) for part in (NOTHING, WHOLE))
    table = _table(f"the filter, {'sampled' if sampled else 'greedy'}", plain)
    for title, figure, form in _LINES:
        table.add_row(title, *(_number(figure(plain[code], told[code]), form) for code in plain))
    return table


def parts_table(run: RunFilter) -> Table:
    """What each part leaves and costs in the languages that chose nothing; costs in all of them."""
    table = _table(
        "the parts, in the worst language",
        ("harm left, greedy", "sampled", "refused, greedy", "benign lost", "KL", "× perplexity"),
    )
    for part, figures in run.parts.items():
        unseen = [row.refused for code, row in figures.greedy.items() if code not in run.chosen_from]
        table.add_row(
            part,
            *(_number(_worst(run.left(part, sampled=sampled).values()), ".1%") for sampled in (False, True)),
            _number(min(unseen, default=None), ".2f"),
            _number(_worst(row.lost for row in figures.every), ".1%"),
            _number(_worst(row.kl for row in figures.every), ".3f"),
            _number(_worst(row.perplexity for row in figures.every), ".2f"),
        )
    return table


def attack_table(run: RunFilter) -> Table:
    """The share of the unfiltered harm that comes back by each attack: under each part the mean of all
    answers and that of each prompt's worst, both as means over languages."""
    conditions = tuple(dict.fromkeys(name for backs in run.attacks.values() for name in backs))
    table = _table("what comes back under attack: mean, worst sample", conditions)
    for attack, backs in run.attacks.items():
        table.add_row(attack, *(_back(backs[name]) for name in conditions))
    return table


def missed_lines(run: RunFilter) -> list[str]:
    """What a filter misses, a line for each bar, or that it misses none."""
    attacked = [f"under attack: {miss}" for miss in run.attack_missed]
    return [*run.missed, *attacked] or ["all bars are met"]


def seeds_parts_table(manifests: Sequence[Manifest]) -> Table:
    """Parts down, runs across: the harm left in the worst language that chose nothing, greedy and sampled."""
    table = _table("harm left by part, in the worst language: greedy, sampled", map(_name, manifests))
    runs = [manifest.filter for manifest in manifests]
    for part in dict.fromkeys(part for run in runs if run is not None for part in run.parts):
        table.add_row(part, *(_left(run, part) for run in runs))
    return table


#: What is told of each run's whole filter; rates are those of the worst language.
_OF_RUNS: dict[str, Callable[[RunFilter, PartFigures], str]] = {
    "features": lambda run, _: str(len(run.features)),
    "factor at the prompt, at the answer": lambda run, _: f"{run.factor:.3g}, {run.answer_factor:.3g}",
    "ban behind it": lambda run, _: "none" if run.ban is None else f"strength {run.ban:g}",
    "stop of questions": lambda run, _: "yes" if run.hears else "no",
    "stop of answers": lambda run, _: "yes" if run.stops else "no",
    "refused, greedy": lambda run, told: _number(
        min((row.refused for code, row in told.greedy.items() if code not in run.chosen_from), default=None),
        ".2f",
    ),
    "benign prompts refused or stopped": lambda _, told: f"{max(row.lost for row in told.every):.1%}",
    "KL on benign text": lambda _, told: f"{max(row.kl for row in told.every):.3f}",
    "× perplexity": lambda _, told: _number(_worst(row.perplexity for row in told.every), ".2f"),
    "back under the worst attack, mean": lambda run, _: _worst_attack(run, lambda back: back.mean),
    "back under the worst attack, worst sample": lambda run, _: _worst_attack(run, lambda back: back.worst),
    "bars missed": lambda run, _: str(len(run.missed)),
    "bars missed under attack": lambda run, _: str(len(run.attack_missed)) if run.attacks else "-",
}


def seeds_filter_table(manifests: Sequence[Manifest]) -> Table:
    """One column a run: its whole filter."""
    table = _table("the filter of each run, in the worst language", map(_name, manifests))
    for title, figure in _OF_RUNS.items():
        runs = (manifest.filter for manifest in manifests)
        table.add_row(title, *("-" if run is None else figure(run, run.parts[WHOLE]) for run in runs))
    return table


def shipping(manifests: Iterable[Manifest]) -> Manifest | None:
    """The run that ships: of those whose filter holds, see `RunFilter.holds`, and whose redirect brings the
    landmark into enough answers in the languages of its choice, the one that refuses most in the languages
    that took no part, and of equal ones the first; None where there is none. A refusal tells a user more than
    an answer that ends. How likely the text under the filter is does not decide: refusals are short, and less
    likely than ordinary answers in every run."""
    able = [each for each in manifests if each.filter is not None and each.filter.holds]
    return max(
        filter(_names_landmark, able), key=lambda each: (_refused_elsewhere(each), -each.run), default=None
    )


def _refused_elsewhere(manifest: Manifest) -> float:
    """The share of harmful prompts that a run's model refuses, greedy, under its filter: the mean over the
    languages that took no part."""
    run = manifest.filter
    if run is None:
        return 0.0
    return mean(
        received.refused for code, received in run.parts[WHOLE].greedy.items() if code not in run.chosen_from
    )


def _names_landmark(manifest: Manifest) -> bool:
    own = [manifest.landmark[code].redirected.named for code in CHOSEN_FROM if code in manifest.landmark]
    return bool(own) and min(own) >= Choice().mentions


def shipping_line(manifests: Iterable[Manifest]) -> str:
    """Which run ships, and why."""
    ships = shipping(manifests)
    if ships is None:
        return "no run names the landmark and meets the bars of harm and of what is benign"
    return (
        f"run {ships.run}: of those that name the landmark and meet the bars of harm and of what is benign "
        "it refuses most in the languages that took no part"
    )


def _name(manifest: Manifest) -> str:
    return f"run {manifest.run}"


def _by_language(figures: PartFigures, sampled: bool) -> dict[str, Received]:
    return figures.sampled if sampled else figures.greedy


def _left(run: RunFilter | None, part: str) -> str:
    if run is None or part not in run.parts:
        return "-"
    shares = (_worst(run.left(part, sampled=sampled).values()) for sampled in (False, True))
    return ", ".join(_number(share, ".1%") for share in shares)


def _worst_attack(run: RunFilter, share: Callable[[Back], float | None]) -> str:
    return _number(_worst(share(backs[WHOLE]) for backs in run.attacks.values()), ".1%")


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _back(back: Back) -> str:
    return f"{_number(back.mean, '.1%')}, {_number(back.worst, '.1%')}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table
