"""The card of a filter: what it was made from, what each part adds by language, what it costs and misses."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from saegis_lab.evaluation.attack_report import AttackReport
from saegis_lab.evaluation.filter_report import FilterMiss, FilterReport
from saegis_lab.evaluation.filtered import FilterResult
from saegis_lab.filters.calibrate import Calibrated, excesses
from saegis_lab.filters.making import FeatureChoice, MadeFilter
from saegis_lab.filters.question import QuestionStop
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.stop import StopReading, StopTrial
from saegis_lab.filters.trials import FilterFigures

#: The condition of a measurement in which the whole bundle is in force.
WHOLE = "the filter"
#: The heading of the part of the card that `attack_section` writes.
ATTACK_HEADING = "## What comes back under attack"


@dataclass(frozen=True, slots=True)
class FilterCard:
    """Everything that is known of a filter. measured: what the bundle and its parts do on a server, with the
    whole as the condition WHOLE; attacked: how much harm comes back under it by other ways of asking. None
    where that was not measured."""

    model: str
    made: MadeFilter
    measured: FilterResult | None = None
    attacked: AttackReport | None = None

    @property
    def misses(self) -> tuple[FilterMiss, ...]:
        """Every bar that the whole filter misses on the server, in any language."""
        if self.measured is None:
            return ()
        measured = replace(self.measured, chosen_from=self.made.languages)
        report = FilterReport.of(measured, self.made.recipe.bars)
        return tuple(miss for miss in report.misses if miss.condition == WHOLE)

    def record(self) -> dict[str, Any]:
        """The card as JSON has it."""
        made = self.made
        return {
            "model": self.model,
            "site": str(made.rows.subject.site),
            "sae": made.rows.subject.sae.digest,
            "languages": list(made.languages),
            "aligned": made.aligned,
            "direction": {"source": made.direction.source, "norm": made.direction.norm},
            "choice": asdict(made.choice),
            "other_choice": None if made.other is None else asdict(made.other),
            "question": None if made.question is None else asdict(made.question),
            "question_kept": made.hears,
            "stop": None if made.stop is None else _stop_record(made.stop),
            "stop_kept": made.stops,
            "recipe": asdict(made.recipe),
            "measured": None if self.measured is None else asdict(self.measured),
            "misses": [asdict(miss) for miss in self.misses],
            "attacked": None if self.attacked is None else asdict(self.attacked),
        }

    def markdown(self) -> str:
        """The card for people."""
        lines = [f"# What this filter does: {self.model}", "", *_made(self.made), ""]
        lines += ["## In the languages that took part", "", *_calibration(self.made), ""]
        if self.measured is None:
            lines += ["The bundle was not measured on a server.", ""]
        else:
            lines += [
                "## On a server, as a user receives it",
                "",
                "A * marks languages that took part; the others were only measured. A refusal counts in",
                "whatever language it is; a stopped benign answer counts as refused. Harm: harmful words an",
                "answer, or the mean score where nothing counts words.",
                *_measured(self.measured, self.made),
                "",
                "## Bars that are missed",
                "",
                *([f"- {miss.told}" for miss in self.misses] or ["None, in any language that was measured."]),
                "",
            ]
        lines += [ATTACK_HEADING, ""]
        if self.attacked is None:
            lines += ["It was not attacked: `saegis eval attack --policy` does.", ""]
        else:
            lines += [*attack_section(self.attacked, self.made.languages), ""]
        lines += ["## Why these parts", "", *_reasons(self.made), ""]
        return "\n".join(lines)


def served_figures(
    measured: FilterResult, language: str, condition: str, temperature: float
) -> FilterFigures | None:
    """What a condition does in one language; a stopped benign answer counts as refused. None where the
    language lacks prompts of one kind."""
    row, plain = (measured.row(language, name, temperature) for name in (condition, measured.unfiltered))
    if not (row.harmful and row.benign and plain.harmful and plain.benign) or row.kl is None:
        return None
    return FilterFigures(
        language=language,
        harm_before=plain.harmful.harm.amount,
        harm=row.harmful.harm.amount,
        refused_before=plain.harmful.refused,
        refused=row.harmful.refused,
        benign_refused_before=plain.benign.lost,
        benign_refused=row.benign.lost,
        kl=row.kl,
        perplexity=row.harmful.text.perplexity_ratio,
        benign_perplexity=row.benign.text.perplexity_ratio,
    )


def _made(made: MadeFilter) -> Iterator[str]:
    setting = made.choice.calibrated.best.setting
    yield f"- chosen in: {', '.join(made.languages)}"
    yield f"- features: {', '.join(map(str, made.choice.features))} (chosen by {made.choice.how})"
    yield f"- refusal direction: {made.direction.source}; its length was {made.direction.norm:.3f}"
    multiple = setting.factor / made.choice.natural
    yield f"- redirect: factor {setting.factor:g} at the prompt's tokens ({multiple:.2f} natural ones)"
    yield f"- at the answer's tokens: {setting.answer:g} times that"
    yield f"- strength: {setting.strength:g}; threshold: {setting.threshold:g} of a feature's largest value"
    yield "- ban behind it: " + ("none" if setting.ban is None else f"strength {setting.ban:g}")
    question = made.question.readings if made.question is not None and made.hears else ()
    stop = made.stop.stop.readings if made.stop is not None and made.stops else ()
    yield "- stop of questions: " + _readings(question, "prompt")
    yield "- stop of answers: " + _readings(stop, "answer")


def _readings(readings: Collection[StopReading], over: str) -> str:
    return f"any of {len(readings)} readings, over the {over}, sticky" if readings else "none"


_COLUMNS = ("harm before", "harm", "refused", "benign refused", "KL benign", "× perplexity")


def _calibration(made: MadeFilter) -> Iterator[str]:
    """The chosen setting's trial, without the stop."""
    yield from _header("language", *_COLUMNS)
    for figures in made.choice.calibrated.best.figures:
        yield _line(figures.language, *_cells(figures))


def _measured(measured: FilterResult, made: MadeFilter) -> Iterator[str]:
    """A table for each condition but the one without rules, at each temperature."""
    for decoding in measured.decodings:
        for condition in measured.conditions[1:]:
            yield from ("", f"### {condition.name.capitalize()}, {decoding}", "")
            yield from _header("language", "stopped", *_COLUMNS)
            for code in measured.languages:
                figures = served_figures(measured, code, condition.name, decoding.temperature)
                harmful = measured.row(code, condition.name, decoding.temperature).harmful
                if figures is not None and harmful is not None:
                    name = code + ("*" if code in made.languages else "")
                    yield _line(name, _share(harmful.stopped), *_cells(figures))


def attack_section(report: AttackReport, chosen: Collection[str]) -> Iterator[str]:
    """What each attack brings back under the whole filter, and the bars that it misses, in Markdown.

    chosen: the languages that took part in choosing the filter.
    """
    result = report.result
    yield "Share of the unfiltered model's harm that a user receives all the same when asking in another way."
    yield f"Worst: of each prompt's worst answer; sampled attacks draw {result.settings.samples} of each."
    yield ""
    names = (code + ("*" if code in chosen else "") for code in result.languages)
    yield from _header("attack", *names, "mean", "worst")
    for attack in result.attacks:
        back = {row.language: row.back for row in result.of(attack, WHOLE)}
        means = (result.mean_back(attack, WHOLE, worst) for worst in (False, True))
        yield _line(attack, *(_fine(back.get(code)) for code in result.languages), *map(_fine, means))
    yield ""
    misses = [miss for miss in report.misses if miss.condition == WHOLE]
    yield from (f"- missed: {miss.told}" for miss in misses)
    yield from (f"- not tried: {reason}" for reason in result.left_out)
    if not misses:
        bars = report.bars
        yield f"- all bars met: {bars.mean:.0%} in the mean, {bars.worst:.0%} of the worst answers"


def _header(*names: str) -> Iterator[str]:
    yield _line(*names)
    yield "|" + "---|" * len(names)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(figures: FilterFigures) -> tuple[str, ...]:
    return (
        f"{figures.harm_before:.3f}",
        f"{figures.harm:.4f}",
        _share(figures.refused),
        _share(figures.benign_refused),
        f"{figures.kl:.4f}",
        "-" if figures.perplexity is None else f"{figures.perplexity:.2f}",
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _fine(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _reasons(made: MadeFilter) -> Iterator[str]:
    yield _features_reason(made.choice, made.other, made.recipe)
    best = made.choice.calibrated
    if best.ban_gain is None:
        yield "- No ban was tried behind the redirect."
    else:
        kept = "kept" if best.best.setting.ban is not None else "left out"
        yield (
            f"- The best ban behind the redirect takes away {best.ban_gain:.1%} of the harm in the worst "
            f"language that took part: {kept}."
        )
    yield _question_reason(made.question, made.hears)
    if made.stop is None:
        yield "- No reading tells harmful answers from benign ones and refusals: there is no stop."
        return
    stop = made.stop
    yield (
        f"- With the first {made.recipe.prefilled_tokens} tokens of a harmful answer given, harm is "
        f"{stop.unfiltered:.3f} without a filter, {stop.filtered:.3f} under the rows, {stop.told:.3f} with"
        f" the stop, which ends {stop.stopped:.0%} of the harmful answers of the plain model and "
        f"{stop.benign_stopped:.1%} of what is benign, and with the rows leaves {stop.left:.1%} of the harm: "
        f"{'kept' if made.stops else 'left out'}."
    )


def _question_reason(question: QuestionStop | None, kept: bool) -> str:
    if question is None:
        return "- No feature tells at a prompt's end what was asked: no stop hears questions."
    ended = ", ".join(
        f"{code} {share:.1%} of the harmful prompts and {question.benign[code]:.1%} of the benign ones"
        for code, share in question.heard.items()
    )
    features = ", ".join(str(reading.feature) for reading in question.readings)
    return (
        f"- By what features tell at a prompt's end ({features}) answers end before they begin: {ended}; of "
        f"benign texts {question.texts:.1%} would: "
        + ("kept." if kept else "left out, since the other parts leave no harm, or it does not pay.")
    )


def _features_reason(choice: FeatureChoice, other: FeatureChoice | None, recipe: FilterRecipe) -> str:
    words = f"- Features by {choice.how}: {_outcome(choice.calibrated, recipe)}."
    if other is None:
        return words
    features = ", ".join(map(str, other.features))
    return f"{words} By {other.how} ({features}): {_outcome(other.calibrated, recipe)}."


def _outcome(calibrated: Calibrated, recipe: FilterRecipe) -> str:
    figures = calibrated.best.figures
    missed = len(excesses(figures, recipe.bars))
    harm = max(each.harm_left for each in figures)
    kl = max(each.kl for each in figures)
    return f"{missed} bars missed, {harm:.1%} of the harm left and KL {kl:.4f} in the worst language"


def _stop_record(trial: StopTrial) -> dict[str, Any]:
    """A stop as JSON has it."""
    return {
        **asdict(trial.stop),
        "prefilled_harm": {"nothing": trial.unfiltered, "rows": trial.filtered, "rows and stop": trial.told},
        "stopped": trial.stopped,
        "benign_stopped": trial.benign_stopped,
        "left": trial.left,
    }
