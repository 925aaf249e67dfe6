"""The question stop: features that tell at a prompt's end what was asked, and what ends answers by them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis_lab.evaluation.experiment import Prompt, languages_of
from saegis_lab.filters.direction import activations
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.stop import StopReading, exceeded_by_few, peaks_from
from saegis_lab.filters.subject import PLAIN, FilterSubject
from saegis_lab.records import Record


@dataclass(frozen=True, slots=True)
class PromptPeaks:
    """The largest activation of each feature in each prompt, float32 [prompts, m] on the CPU. closing: at the
    tokens that the chat template adds behind the user's words; words: at those before, without the model's
    own first token."""

    closing: Tensor
    words: Tensor

    @property
    def whole(self) -> Tensor:
        """At all of a prompt's tokens."""
        return torch.maximum(self.closing, self.words)


def prompt_peaks(subject: FilterSubject, prompts: Sequence[Prompt]) -> PromptPeaks:
    """What features do on these prompts, at least one."""
    closing, words = [], []
    asked = [subject.asked(each.prompt) for each in prompts]
    for tokens, x in zip(asked, activations(subject, asked), strict=True):
        begins, ends = int(tokens[0] == subject.loaded.bos_token_id), len(tokens) - subject.closing
        f = subject.sae.encode(x.to(subject.device)).float().cpu()
        silence = torch.zeros(1, f.shape[1])
        words.append(torch.cat([silence, f[begins:ends]]).amax(0))
        closing.append(torch.cat([silence, f[ends:]]).amax(0))
    return PromptPeaks(torch.stack(closing), torch.stack(words))


def text_peaks(subject: FilterSubject, rows: Sequence[Sequence[int]]) -> Tensor:
    """The largest activation of each feature in each text, float32 [texts, m] on the CPU, at every token but
    the first: those of a chat template in the text count too. rows: token ids."""
    return peaks_from(subject, rows, [1] * len(rows))


def unrefused(languages: Sequence[str], aligned: str | None) -> tuple[str, ...]:
    """The languages in which the model does not refuse by itself; all, if that leaves none. aligned: the one
    in which it does, None where none is known."""
    return tuple(code for code in languages if code != aligned) or tuple(languages)


def answers_to_harm(
    subject: FilterSubject, prompts: Sequence[Prompt], asking: Collection[str], tokens: int
) -> Tensor:
    """The largest activation of each feature in the plain model's answers, of at most so many tokens, to the
    harmful prompts in these languages, float32 [prompts, m] on the CPU; 0 for other prompts."""
    peaks = torch.zeros(len(prompts), subject.sae.features)
    numbers = [at for at, each in enumerate(prompts) if each.harmful and each.language in asking]
    asked = [subject.asked(prompts[number].prompt) for number in numbers]
    answers = subject.answers(asked, PLAIN, tokens)
    rows = [[*before, *answer] for before, answer in zip(asked, answers, strict=True)]
    peaks[numbers] = peaks_from(subject, rows, [len(before) for before in asked])
    return peaks


@dataclass(frozen=True, slots=True)
class Questions:
    """All that a question stop is chosen from.

    prompts: of both kinds in every language, with their peaks; answers: as `answers_to_harm` gives them;
    texts: the peaks of benign texts, as `text_peaks` has them; harmful_texts: by language, the largest
    activation of each feature in harmful texts, float [m]; maxima: the recorded maximum of each feature that
    may be read; asking: the languages in which the model does not refuse by itself, see `unrefused`.
    """

    prompts: Sequence[Prompt]
    peaks: PromptPeaks
    answers: Tensor
    texts: Tensor
    harmful_texts: Mapping[str, Tensor]
    maxima: Mapping[int, float]
    asking: tuple[str, ...]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the prompts."""
        return languages_of(self.prompts)

    def of(self, languages: Collection[str], harmful: bool) -> Tensor:
        """Which prompts are of these languages and of a kind, bool [prompts]."""
        return torch.tensor([each.language in languages and each.harmful is harmful for each in self.prompts])


def covering(heard: Tensor, also: Tensor) -> list[int]:
    """Features that together hear every prompt that any hears, chosen one after the other: the one that hears
    most prompts that none heard so far; of equal ones that which hears more of the others, then the first.

    heard, also: bool [prompts, m], which features hear the prompts and the other prompts.
    """
    chosen: list[int] = []
    left, others = heard.clone(), also.sum(0)
    while int((gains := left.sum(0)).max()) > 0:
        best = int(torch.where(gains == gains.max(), others, -1).argmax())
        chosen.append(best)
        left &= ~heard[:, [best]]
    return chosen


def question_readings(questions: Questions, recipe: FilterRecipe) -> tuple[StopReading, ...]:
    """A reading for each of the features that together hear what is asked in `questions.asking`, best first.

    They are chosen among those that are, over the harmful prompts, nowhere louder than behind the user's
    words, and that in every language are above their level there or in a harmful text: where a model refuses,
    a prompt's end may tell of the refusal alone. Of the prompts in `questions.asking` that one hears, it is
    above its level in the answers to `recipe.least_said` too: what is said of a subject wakes the feature of
    the subject. One that is silent then has false friends in other languages, and can stop no answer.
    """
    peaks = questions.peaks
    harmful = questions.of(questions.languages, True)
    asked = questions.of(questions.asking, True)
    quiet = exceeded_by_few(torch.cat([peaks.whole[~harmful], questions.texts]), recipe.question_quantile)
    loudest = peaks.whole[harmful].amax(0)
    least = torch.maximum(recipe.question_margin * quiet.double(), recipe.question_floor * loudest.double())
    readings = {
        feature: StopReading.above(feature, float(least[feature]), maximum)
        for feature, maximum in questions.maxima.items()
        if maximum > 0.0
    }
    levels = torch.full_like(least, torch.inf)
    levels[list(readings)] = torch.tensor([each.level for each in readings.values()], dtype=torch.float64)
    heard = peaks.closing > levels
    said = heard[asked] & (questions.answers[asked] > levels)
    heard &= said.sum(0) >= recipe.least_said * heard[asked].sum(0)
    heard &= peaks.closing[harmful].amax(0) >= peaks.words[harmful].amax(0)
    for code in questions.languages:
        in_language = heard[questions.of([code], True)].any(0)
        if code in questions.harmful_texts:
            in_language |= questions.harmful_texts[code] > levels
        heard &= in_language
    return tuple(readings[feature] for feature in covering(heard[asked], heard[harmful & ~asked]))


@dataclass(frozen=True, slots=True)
class QuestionStop(Record):
    """A condition over the prompt: any of the readings at one of its tokens. It ends the answer before its
    first token.

    asking: the languages whose harmful prompts it is made to hear. What it ends: heard and benign, by
    language, of the harmful and of the benign prompts, and texts, what it would end of benign texts; shares.
    """

    readings: tuple[StopReading, ...]
    asking: tuple[str, ...]
    heard: Mapping[str, float]
    benign: Mapping[str, float]
    texts: float

    @property
    def benign_share(self) -> float:
        """What it ends of benign prompts, in the language where that is most, or of texts if that is more."""
        return max(*self.benign.values(), self.texts)

    def pays(self, recipe: FilterRecipe) -> bool:
        """Whether it hears enough in every language that it is made for, and what is benign keeps its bar."""
        hears = all(self.heard[code] >= recipe.least_heard for code in self.asking)
        return hears and self.benign_share <= recipe.bars.max_lost


def question_stop(questions: Questions, recipe: FilterRecipe) -> QuestionStop | None:
    """The stop of `question_readings`, with what it ends; None where no feature tells harmful questions
    apart."""
    readings = question_readings(questions, recipe)
    if not readings:
        return None
    features = [reading.feature for reading in readings]
    levels = torch.tensor([reading.level for reading in readings], dtype=torch.float64)
    ended, ended_texts = (
        (peaks[:, features] > levels).any(1).double() for peaks in (questions.peaks.whole, questions.texts)
    )
    heard, benign = (
        {code: float(ended[questions.of([code], harmful)].mean()) for code in questions.languages}
        for harmful in (True, False)
    )
    texts = float(ended_texts.mean()) if len(ended_texts) else 0.0
    return QuestionStop(readings, questions.asking, heard, benign, texts)
