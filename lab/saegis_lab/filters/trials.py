"""Trials: what rows do to the answers to harmful and benign prompts, measured on the loaded model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saegis_lab.evaluation.experiment import Prompt, languages_of
from saegis_lab.evaluation.figures import mean
from saegis_lab.evaluation.filter_bars import BarredFigures, newly_lost
from saegis_lab.evaluation.requests import Total
from saegis_lab.evaluation.scorers import BanScorers
from saegis_lab.filters.effect import Sample, divergences, likelihood
from saegis_lab.filters.subject import PLAIN, FilterSubject
from saegis_lab.records import Record
from saegis_server.steering.program import SiteProgram


@dataclass(frozen=True, slots=True)
class FilterFigures(Record):
    """What a filter does in one language.

    harm_before, harm: of the answers to harmful prompts without the filter and under it: harmful words an
    answer, or the mean score where nothing counts words. refused_before, refused, benign_refused_before,
    benign_refused: shares of the prompts of either kind that are refused; None where nothing scores refusals.
    kl: nats a token on benign conversations. perplexity: of the answers to harmful prompts, and
    benign_perplexity: to benign ones, both under the plain model and over that of its own answers to benign
    ones; None where all answers are empty.
    """

    language: str
    harm_before: float
    harm: float
    refused_before: float | None
    refused: float | None
    benign_refused_before: float | None
    benign_refused: float | None
    kl: float
    perplexity: float | None
    benign_perplexity: float | None

    @property
    def harm_left(self) -> float:
        """The share of the unfiltered harm that is left; where there was none, the harm itself."""
        return self.harm / self.harm_before if self.harm_before else self.harm

    @property
    def barred(self) -> BarredFigures:
        """What bars are about."""
        before, after = self.benign_refused_before, self.benign_refused
        return BarredFigures(
            harm_before=self.harm_before,
            harm=self.harm,
            lost=None if before is None or after is None else newly_lost(before, after),
            kl=self.kl,
            perplexity=self.perplexity,
            benign_perplexity=self.benign_perplexity,
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with its token ids and those of an answer. stopped: whether a condition ended it.

    asked: up to where the model began to write. Its last `prefilled` tokens are the answer's beginning.
    """

    prompt: Prompt
    asked: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    prefilled: int = 0
    stopped: bool = False

    @property
    def begins(self) -> int:
        """Where the answer begins, what was prefilled of it included."""
        return len(self.asked) - self.prefilled

    @property
    def conversation(self) -> tuple[int, ...]:
        """The prompt and the answer."""
        return self.asked + self.answer

    def sample(self, sign: float = 1.0) -> Sample:
        """The answer as a sample. Raises ValueError for an empty answer."""
        return Sample(self.conversation, len(self.asked), sign)


class Trials:
    """Answers prompts under rows, and measures what the rows do, language by language.

    The plain model answers once. A language has prompts of both kinds.
    """

    def __init__(
        self,
        subject: FilterSubject,
        prompts: Sequence[Prompt],
        scorers: BanScorers,
        max_tokens: int,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """progress: called before each measurement. Raises ValueError for a language without prompts of one
        kind."""
        self._subject, self._scorers, self._max_tokens = subject, scorers, max_tokens
        self._progress = progress
        self.prompts = tuple(prompts)
        self.languages = languages_of(prompts)
        for code in self.languages:
            for harmful in (True, False):
                if not any(prompt.language == code and prompt.harmful is harmful for prompt in prompts):
                    kind = "harmful" if harmful else "benign"
                    raise ValueError(f"language {code!r} has no {kind} prompt")
        self._asked = [tuple(subject.asked(prompt.prompt)) for prompt in prompts]
        self._opening = len(subject.asked(""))
        self.plain = self.answers(PLAIN)
        self._ordinary = {
            code: self._perplexity([each.text for each in self._of(self.plain, code, False)])
            for code in self.languages
        }

    def answers(self, program: SiteProgram) -> tuple[Answered, ...]:
        """The greedy answers to all prompts under these rows."""
        return self._answered(self.prompts, self._asked, program, 0)

    def prefilled(self, program: SiteProgram, tokens: int) -> tuple[Answered, ...]:
        """The same for those harmful prompts whose plain answer is harmful, with its first tokens given."""
        harmful = [each for each in self.harmful_answers() if len(each.answer) > tokens]
        asked = [each.asked + each.answer[:tokens] for each in harmful]
        return self._answered([each.prompt for each in harmful], asked, program, tokens)

    def harmful_answers(self) -> list[Answered]:
        """The plain model's answers to harmful prompts that hold any harm."""
        return [each for each in self.plain if each.prompt.harmful and self.harm(each) > 0.0]

    def _answered(
        self,
        prompts: Sequence[Prompt],
        asked: Sequence[tuple[int, ...]],
        program: SiteProgram,
        prefilled: int,
    ) -> tuple[Answered, ...]:
        self._progress()
        written = self._subject.answers(asked, program, self._max_tokens)
        return tuple(
            Answered(prompt, tokens, tuple(answer), self._subject.text(answer), prefilled)
            for prompt, tokens, answer in zip(prompts, asked, written, strict=True)
        )

    def harm(self, answered: Answered) -> float:
        """How many harmful words an answer has; where nothing counts them, how harmful it is, from 0 to 1.

        A share of words would count the few words of a stopped answer as much as those of a whole one.
        """
        score = self._scorers.words or self._scorers.harm
        return float(score(answered.text, answered.prompt.language))

    def refused(self, answered: Answered) -> bool:
        """Whether an answer refuses; never where nothing scores refusals."""
        scorer = self._scorers.refusal
        return scorer is not None and scorer(answered.text, answered.prompt.language) > 0.0

    def refused_share(self, answered: Sequence[Answered], language: str, harmful: bool) -> float | None:
        """The share of refused prompts of a kind; None where nothing scores refusals."""
        if self._scorers.refusal is None:
            return None
        return mean(float(self.refused(each)) for each in self._of(answered, language, harmful))

    def figures(self, program: SiteProgram, answered: Sequence[Answered]) -> tuple[FilterFigures, ...]:
        """What the rows do, in every language; answered: the answers under them."""
        return tuple(self._in_language(program, answered, code) for code in self.languages)

    def _in_language(self, program: SiteProgram, answered: Sequence[Answered], code: str) -> FilterFigures:
        before = self._of(self.plain, code, True)
        harmful, benign = (self._of(answered, code, kind) for kind in (True, False))
        texts = [each.conversation for each in self._of(self.plain, code, False)]
        divergence = Total.pooled(divergences(self._subject, texts, program))
        return FilterFigures(
            language=code,
            harm_before=mean(map(self.harm, before)),
            harm=mean(map(self.harm, harmful)),
            refused_before=self.refused_share(self.plain, code, True),
            refused=self.refused_share(answered, code, True),
            benign_refused_before=self.refused_share(self.plain, code, False),
            benign_refused=self.refused_share(answered, code, False),
            kl=divergence.mean or 0.0,
            perplexity=self._over_ordinary(harmful, code),
            benign_perplexity=self._over_ordinary(benign, code),
        )

    def _over_ordinary(self, answered: Sequence[Answered], code: str) -> float | None:
        own, ordinary = self._perplexity([each.text for each in answered]), self._ordinary[code]
        return None if own is None or ordinary is None else own / ordinary

    def _perplexity(self, texts: Sequence[str]) -> float | None:
        """Of texts under the plain model as answers to an empty message, as `Requests.likelihoods` has it."""
        samples = [
            Sample(tuple(self._subject.chat([("user", ""), ("assistant", text)], False)), self._opening)
            for text in texts
            if text
        ]
        tokens = sum(len(sample.tokens) - sample.start for sample in samples)
        return Total(-likelihood(self._subject, samples), tokens).perplexity

    @staticmethod
    def _of(answered: Sequence[Answered], language: str, harmful: bool) -> list[Answered]:
        return [
            each for each in answered if each.prompt.language == language and each.prompt.harmful is harmful
        ]
