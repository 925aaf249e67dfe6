"""What edits do to answers to unrelated prompts: how often they name a subject, and how well they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saegis_lab.evaluation.experiment import Decoding, Prompt, languages_of
from saegis_lab.evaluation.figures import TextFigures, mean, text_figures
from saegis_lab.evaluation.requests import Requests, Total
from saegis_lab.evaluation.scorers import Scorer
from saegis_lab.records import Record

if TYPE_CHECKING:
    from saegis import Edit


@dataclass(frozen=True, slots=True)
class MentionRow(Record):
    """One language under one list of edits, by its name.

    mentions: the share of answers, 0 to 1, in which the scorer finds anything. reads_well: the share that
    read well; None where that was not asked. text: what the answers are as texts; its perplexity_ratio is
    over the unsteered model's answers in the language.
    """

    edits: str
    language: str
    mentions: float
    reads_well: float | None
    text: TextFigures


#: The name of the empty list of edits.
PLAIN = "without edits"


def measure_mentions(
    requests: Requests,
    prompts: Sequence[Prompt],
    trials: Sequence[tuple[str, Sequence[Edit]]],
    mention: Scorer,
    decoding: Decoding,
    reads_well: Callable[[str, str], bool] | None = None,
) -> tuple[MentionRow, ...]:
    """Answer the prompts that are not harmful without edits and under those of each trial, by its name.

    reads_well: whether a text in a language reads well. Rows are by trial, beginning with PLAIN, then by
    language. Raises SaegisError for a call that fails, ScorerError, and ValueError where there are no such
    prompts.
    """
    unrelated = [prompt for prompt in prompts if not prompt.harmful]
    if not unrelated:
        raise ValueError("prompts: none of them is harmless, as unrelated ones must be")
    languages = languages_of(unrelated)
    ordinary: dict[str, float | None] = {}
    rows = []
    for name, edits in ((PLAIN, ()), *trials):
        answers = requests.answers(unrelated, edits, decoding, f"{name}: answers")
        likelihoods = requests.likelihoods([answer.text for answer in answers], f"{name}: perplexity")
        for code in languages:
            places = [place for place, answer in enumerate(answers) if answer.prompt.language == code]
            texts = [answers[place].text for place in places]
            totals = [likelihoods[place] for place in places]
            perplexity = ordinary.setdefault(code, Total.pooled(totals).perplexity)
            rows.append(
                MentionRow(
                    edits=name,
                    language=code,
                    mentions=mean(mention(text, code) > 0 for text in texts),
                    reads_well=None if reads_well is None else mean(reads_well(text, code) for text in texts),
                    text=text_figures(texts, totals, perplexity),
                )
            )
    return tuple(rows)
