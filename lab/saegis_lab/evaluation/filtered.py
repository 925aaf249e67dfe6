"""What filters do to a served model: what a user receives under each bundle, by language and temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.evaluation.bundle_copies import without_stops
from saegis_lab.evaluation.experiment import Decoding, Prompt, languages_of
from saegis_lab.evaluation.figures import TextFigures, mean, text_figures
from saegis_lab.evaluation.filter_bars import newly_lost
from saegis_lab.evaluation.policy_trial import PolicyTrial
from saegis_lab.evaluation.requests import Answer, Progress, Requests, Total
from saegis_lab.evaluation.scorers import BanScorers
from saegis_lab.records import Record, read_record, write_record

if TYPE_CHECKING:
    from saegis import Client
    from saegis_server.policy.bundle.bundle import Bundle

#: The condition without rules, where those that are given have none.
NOTHING = "nothing"
#: How many samples of a benign prompt are drawn at most, and of how many a prompt's perplexity is measured.
TEXT_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class HarmFigures(Record):
    """How much harm answers hold, of what the user received; shares are from 0 to 1.

    answers: how many there are. harm: mean of the scorer's result, for word lists the share of harmful words.
    words: mean number of harmful words an answer; None where nothing counts them. worst_harm, worst_words:
    the same of the worst answer to each prompt, mean over prompts. harmful_answers: the share with any harm.
    """

    answers: int
    harm: float
    words: float | None
    worst_harm: float
    worst_words: float | None
    harmful_answers: float

    @property
    def amount(self) -> float:
        """What bars are about: the number of harmful words, or where they are not counted, the harm. A share
        of words would count a stopped answer's few words as much as those of a whole one."""
        return self.harm if self.words is None else self.words

    @property
    def worst_amount(self) -> float:
        """The amount of the worst answer to each prompt."""
        return self.worst_harm if self.worst_words is None else self.worst_words


@dataclass(frozen=True, slots=True)
class ReceivedFigures(Record):
    """The answers to one kind of prompts in one language, as the user received them; shares from 0 to 1.

    refused: the share refused by the model; None where nothing scores refusals. stopped: the share that a
    rule ended. lost: the share refused or stopped. empty: how many have no text, such as those stopped before
    the first word. text: figures of the texts of at most TEXT_SAMPLES answers to each prompt, stopped ones
    among them without an end. whole: of those among them that were not stopped; None where all were. Both
    perplexity ratios are over the unfiltered benign answers.
    """

    harm: HarmFigures
    refused: float | None
    stopped: float
    lost: float
    empty: int
    text: TextFigures
    whole: TextFigures | None


@dataclass(frozen=True, slots=True)
class FilterRow(Record):
    """One language under one condition at one temperature.

    harmful, benign: the answers to prompts of that kind; None where the language has none. kl: mean
    KL(unfiltered ‖ filtered) in nats a token, over each benign prompt with the first answer that the model
    gives without a filter; None without benign prompts. It is that of the rules that do not stop: what they
    do to the next token; what is stopped, `stopped` counts. false_alarms: of the benign prompts whose answers
    without rules hold no harm, the share lost beyond those that are lost there; None without such prompts.
    """

    language: str
    condition: str
    temperature: float
    harmful: ReceivedFigures | None
    benign: ReceivedFigures | None
    kl: float | None
    false_alarms: float | None = None


@dataclass(frozen=True, slots=True)
class Condition(Record):
    """What was in force: digest is that of the bundle as it was given, empty for no rules."""

    name: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class FilterResult(Record):
    """Rows by temperature, then by condition beginning with the one without rules, then by language.

    chosen_from: the languages that took part in choosing the filters, empty where unknown.
    """

    model: str
    saes: tuple[str, ...]
    chosen_from: tuple[str, ...]
    conditions: tuple[Condition, ...]
    decodings: tuple[Decoding, ...]
    languages: tuple[str, ...]
    rows: tuple[FilterRow, ...]

    @classmethod
    def load(cls, path: Path) -> FilterResult:
        """Read a result from its JSON. Raises InputFileError."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_record(path, self)

    @property
    def unfiltered(self) -> str:
        """The name of the condition without rules."""
        return self.conditions[0].name

    def row(self, language: str, condition: str, temperature: float) -> FilterRow:
        """The row of these three. Raises KeyError where there is none."""
        key = (language, condition, temperature)
        for row in self.rows:
            if (row.language, row.condition, row.temperature) == key:
                return row
        raise KeyError(key)


def measure_filters(
    client: Client,
    conditions: Mapping[str, Bundle | None],
    prompts: Sequence[Prompt],
    scorers: BanScorers,
    decodings: Sequence[Decoding] = (Decoding(),),
    *,
    chosen_from: Sequence[str] = (),
    concurrency: int = 16,
    progress: Progress = lambda _stage, _done, _total: None,
) -> FilterResult:
    """Answer all prompts without rules and under each bundle, and score what the user receives.

    client: of a server that takes policies and has none but those measured in force, as
    `policy_trial.serving` starts one. conditions: bundles by name; None is no rules, and is added where no
    condition has it. Benign prompts are answered at most TEXT_SAMPLES times.

    Raises SaegisError for a call that fails, ScorerError, and ValueError for no prompts, no decodings, the
    same temperature twice, several conditions without rules, or a bundle that cannot be measured.
    """
    named = ordered(conditions)
    _check(prompts, decodings)
    trial, requests = PolicyTrial(client), Requests(client, concurrency, progress)
    plain: dict[float, _Received] = {}
    rows: dict[tuple[float, str], list[FilterRow]] = {}
    for name, bundle in named.items():
        received = _received(trial, requests, bundle, prompts, decodings, name)
        trial.apply(None if bundle is None else without_stops(bundle))
        for under, decoding in zip(received, decodings, strict=True):
            before = plain.setdefault(decoding.temperature, under)
            divergences = before.divergences(requests, f"{name}, {decoding}: divergence")
            rows[decoding.temperature, name] = [
                _row(code, name, decoding, under, before, divergences[code], scorers)
                for code in languages_of(prompts)
            ]
    trial.apply(None)
    return FilterResult(
        model=requests.model_id,
        saes=tuple(sae.id for sae in client.model().saes),
        chosen_from=tuple(chosen_from),
        conditions=tuple(Condition(name, bundle.digest if bundle else "") for name, bundle in named.items()),
        decodings=tuple(decodings),
        languages=languages_of(prompts),
        rows=tuple(
            row for decoding in decodings for name in named for row in rows[decoding.temperature, name]
        ),
    )


def _received(
    trial: PolicyTrial,
    requests: Requests,
    bundle: Bundle | None,
    prompts: Sequence[Prompt],
    decodings: Sequence[Decoding],
    name: str,
) -> list[_Received]:
    """What is received under a bundle with each decoding; leaves no rules in force."""
    trial.apply(bundle)
    answered = [
        _answered(requests, prompts, decoding, f"{name}, {decoding}: answers") for decoding in decodings
    ]
    trial.apply(None)
    return [
        _Received.of(requests, answers, f"{name}, {decoding}: perplexity")
        for answers, decoding in zip(answered, decodings, strict=True)
    ]


def _row(
    code: str,
    condition: str,
    decoding: Decoding,
    under: _Received,
    before: _Received,
    divergence: Total,
    scorers: BanScorers,
) -> FilterRow:
    """A language under a condition; before: what is received without rules."""
    ordinary = before.perplexity(code)
    plain, told = ([asked.answers for asked in part.of_kind(code, False)] for part in (before, under))
    return FilterRow(
        language=code,
        condition=condition,
        temperature=decoding.temperature,
        harmful=_figures(under.of_kind(code, True), code, scorers, ordinary),
        benign=_figures(under.of_kind(code, False), code, scorers, ordinary),
        kl=divergence.mean,
        false_alarms=false_alarms(plain, told, code, scorers),
    )


def false_alarms(
    before: Sequence[Sequence[Answer]],
    under: Sequence[Sequence[Answer]],
    language: str,
    scorers: BanScorers,
) -> float | None:
    """See `FilterRow`; before, under: for each benign prompt its answers without rules and under them."""
    harmless = [
        pair
        for pair in zip(before, under, strict=True)
        if not any(scorers.harm(answer.text, language) for answer in pair[0])
    ]
    if not harmless:
        return None
    plain, told = (
        mean(lost for answers in part for lost in _lost(answers, language, scorers))
        for part in zip(*harmless, strict=True)
    )
    return newly_lost(plain, told)


def _refused(answers: Sequence[Answer], language: str, scorers: BanScorers) -> list[bool]:
    """Which answers refuse; none where nothing scores refusals."""
    refusal = scorers.refusal
    return [refusal is not None and bool(refusal(answer.text, language)) for answer in answers]


def _lost(answers: Sequence[Answer], language: str, scorers: BanScorers) -> list[bool]:
    """Which answers are refused or stopped."""
    refused = _refused(answers, language, scorers)
    return [answer.stopped or said for answer, said in zip(answers, refused, strict=True)]


def ordered(conditions: Mapping[str, Bundle | None]) -> dict[str, Bundle | None]:
    """The conditions with the one without rules first, which is added where there is none.

    Raises ValueError where there are several, or where a bundle has the name of the one that is added.
    """
    unruled = [name for name, bundle in conditions.items() if bundle is None] or [NOTHING]
    if len(unruled) > 1:
        raise ValueError(f"conditions: {' and '.join(unruled)} are both without rules")
    if conditions.get(unruled[0]) is not None:
        raise ValueError(f"conditions: {NOTHING!r} is the name of no rules; call the bundle something else")
    return {unruled[0]: None, **{name: bundle for name, bundle in conditions.items() if bundle is not None}}


def answers_asked(prompts: Sequence[Prompt], decodings: Sequence[Decoding]) -> int:
    """How many answers are drawn under each condition."""
    return sum(
        len(group) * part.samples for decoding in decodings for part, group in _by_samples(prompts, decoding)
    )


def harm_figures(by_prompt: Sequence[Sequence[str]], language: str, scorers: BanScorers) -> HarmFigures:
    """The harm of texts: for each prompt, in a language, its answers; at least one each.

    Raises ScorerError, and ValueError for a language that a scorer does not know.
    """
    harm = [[scorers.harm(text, language) for text in texts] for texts in by_prompt]
    count = scorers.words
    words = [[count(text, language) for text in texts] for texts in by_prompt] if count else None
    flat = [score for scores in harm for score in scores]
    return HarmFigures(
        answers=len(flat),
        harm=mean(flat),
        words=None if words is None else mean(number for numbers in words for number in numbers),
        worst_harm=mean(map(max, harm)),
        worst_words=None if words is None else mean(map(max, words)),
        harmful_answers=mean(score > 0 for score in flat),
    )


def _by_samples(prompts: Sequence[Prompt], decoding: Decoding) -> list[tuple[Decoding, list[Prompt]]]:
    """The harmful and the benign prompts, each with the decoding that has the samples drawn of them."""
    fewer = replace(decoding, samples=min(decoding.samples, TEXT_SAMPLES))
    return [
        (part, [prompt for prompt in prompts if prompt.harmful == harmful])
        for part, harmful in ((decoding, True), (fewer, False))
    ]


def _answered(
    requests: Requests, prompts: Sequence[Prompt], decoding: Decoding, stage: str
) -> list[list[Answer]]:
    """The answers to each prompt under what is in force."""
    answered = []
    for part, group in _by_samples(prompts, decoding):
        answers = requests.answers(group, (), part, stage)
        answered += [answers[at : at + part.samples] for at in range(0, len(answers), part.samples)]
    return answered


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt, its answers, and how likely the first few of them are as texts."""

    prompt: Prompt
    answers: Sequence[Answer]
    likelihoods: Sequence[Total | None]


@dataclass(frozen=True, slots=True)
class _Received:
    """All that was received under one condition at one temperature, prompt by prompt."""

    asked: tuple[_Asked, ...]

    @classmethod
    def of(cls, requests: Requests, answered: Sequence[Sequence[Answer]], stage: str) -> _Received:
        """The answers, with the likelihoods of the first few to each prompt."""
        few = [answers[:TEXT_SAMPLES] for answers in answered]
        weighed = [answer for answers in few for answer in answers]
        texts, cut = [answer.text for answer in weighed], [answer.stopped for answer in weighed]
        totals = iter(requests.likelihoods(texts, stage, cut))
        likelihoods = [[next(totals) for _ in answers] for answers in few]
        pairs = zip(answered, likelihoods, strict=True)
        return cls(tuple(_Asked(answers[0].prompt, answers, weights) for answers, weights in pairs))

    def of_kind(self, language: str, harmful: bool) -> list[_Asked]:
        """The prompts of a kind in a language."""
        kind = (language, harmful)
        return [asked for asked in self.asked if (asked.prompt.language, asked.prompt.harmful) == kind]

    def perplexity(self, language: str) -> float | None:
        """The perplexity of the benign answers in a language."""
        totals = [total for asked in self.of_kind(language, False) for total in asked.likelihoods]
        return Total.pooled(totals).perplexity

    def divergences(self, requests: Requests, stage: str) -> dict[str, Total]:
        """The divergence of what is in force, by language, on the first answer to each benign prompt."""
        benign = [asked.answers[0] for asked in self.asked if not asked.prompt.harmful]
        by_language: dict[str, list[Total]] = {asked.prompt.language: [] for asked in self.asked}
        for answer, total in zip(benign, requests.divergences(benign, (), stage), strict=True):
            by_language[answer.prompt.language].append(total)
        return {code: Total.pooled(totals) for code, totals in by_language.items()}


def _figures(
    asked: Sequence[_Asked], language: str, scorers: BanScorers, ordinary: float | None
) -> ReceivedFigures | None:
    """The figures of the answers to one kind of prompts in a language; None where there are none."""
    if not asked:
        return None
    answers = [answer for prompt in asked for answer in prompt.answers]
    weighed = [pair for prompt in asked for pair in zip(prompt.answers, prompt.likelihoods, strict=False)]
    whole = [(answer, total) for answer, total in weighed if not answer.stopped]
    return ReceivedFigures(
        harm=harm_figures(
            [[answer.text for answer in prompt.answers] for prompt in asked], language, scorers
        ),
        refused=mean(_refused(answers, language, scorers)) if scorers.refusal else None,
        stopped=mean(answer.stopped for answer in answers),
        lost=mean(_lost(answers, language, scorers)),
        empty=sum(not answer.text for answer in answers),
        text=_texts(weighed, ordinary),
        whole=_texts(whole, ordinary) if whole else None,
    )


def _texts(weighed: Sequence[tuple[Answer, Total | None]], ordinary: float | None) -> TextFigures:
    return text_figures([answer.text for answer, _ in weighed], [total for _, total in weighed], ordinary)


def _check(prompts: Sequence[Prompt], decodings: Sequence[Decoding]) -> None:
    for name, values in (("prompts", prompts), ("decodings", decodings)):
        if not values:
            raise ValueError(f"{name}: there must be at least one")
    if len({decoding.temperature for decoding in decodings}) < len(decodings):
        raise ValueError("temperatures: one stands there twice")
