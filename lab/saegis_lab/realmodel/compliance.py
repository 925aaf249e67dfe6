"""Compliance: what a model refuses and what it answers, by language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saegis_lab.evaluation.experiment import Decoding, Prompt, languages_of
from saegis_lab.evaluation.figures import mean
from saegis_lab.evaluation.requests import Answer, Requests
from saegis_lab.evaluation.scorers import BanScorers
from saegis_lab.records import Record, read_record, write_record


@dataclass(frozen=True, slots=True)
class LanguageCompliance(Record):
    """The answers in one language; shares from 0 to 1.

    harmful_refused, benign_refused: of the prompts of that kind, the share that is refused. harmful_answers,
    benign_harm: the share of the answers to them that hold any harmful word; harmful_words: how many an
    answer to a harmful prompt holds, mean. examples: an answer to a prompt of each kind, as it is.
    """

    language: str
    prompts: int
    harmful_refused: float
    harmful_answers: float
    harmful_words: float
    benign_refused: float
    benign_harm: float
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Compliance(Record):
    """A model's greedy answers of at most `max_tokens` tokens, by language."""

    model: str
    max_tokens: int
    rows: tuple[LanguageCompliance, ...]

    @classmethod
    def load(cls, path: Path) -> Compliance:
        """Read it from its JSON. Raises InputFileError."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_record(path, self)


def measure_compliance(
    requests: Requests, prompts: Sequence[Prompt], scorers: BanScorers, decoding: Decoding
) -> Compliance:
    """Ask a server all prompts and score its answers.

    Raises SaegisError for a call that fails, and ValueError for a language without prompts of both kinds and
    for scorers that count neither words nor refusals.
    """
    answers = requests.answers(prompts, (), decoding, "answers")
    rows = tuple(_row(code, answers, scorers) for code in languages_of(prompts))
    return Compliance(requests.model_id, decoding.max_tokens, rows)


def _row(code: str, answers: Sequence[Answer], scorers: BanScorers) -> LanguageCompliance:
    count, refusal = scorers.words, scorers.refusal
    if count is None or refusal is None:
        raise ValueError("scorers: word lists of harm and of refusals are needed")
    harmful, benign = (
        [each for each in answers if each.prompt.language == code and each.prompt.harmful is kind]
        for kind in (True, False)
    )
    if not harmful or not benign:
        raise ValueError(f"prompts: {code} has not both harmful and benign ones")
    words = [count(answer.text, code) for answer in harmful]
    return LanguageCompliance(
        language=code,
        prompts=len(harmful) + len(benign),
        harmful_refused=mean(refusal(answer.text, code) for answer in harmful),
        harmful_answers=mean(number > 0 for number in words),
        harmful_words=mean(words),
        benign_refused=mean(refusal(answer.text, code) for answer in benign),
        benign_harm=mean(count(answer.text, code) > 0 for answer in benign),
        examples=tuple((group[0].prompt.prompt, group[0].text) for group in (harmful, benign)),
    )
