"""The recovery attack on filters: how much of the unfiltered harm comes back by other ways of asking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.evaluation.experiment import Decoding, Prompt, languages_of
from saegis_lab.evaluation.figures import mean
from saegis_lab.evaluation.filtered import Condition, HarmFigures, harm_figures, ordered
from saegis_lab.evaluation.policy_trial import PolicyTrial
from saegis_lab.evaluation.requests import Answer, Progress, Requests
from saegis_lab.evaluation.scorers import BanScorers, Scorer
from saegis_lab.evaluation.wordings import Wordings, can_transliterate, halved, transliterated
from saegis_lab.records import Record, read_record, write_record

if TYPE_CHECKING:
    from saegis import ChatMessage, Client
    from saegis_server.policy.bundle.bundle import Bundle

PLAIN, WORST, ALL = "none", "worst of n", "all together"
#: How many tokens of the unfiltered answer are put at the beginning of the assistant's turn.
BEGINNINGS = (2, 4, 8)
_TOGETHER = 4


@dataclass(frozen=True, slots=True)
class AttackPrompt(Prompt):
    """A prompt as an attack asks it: after `earlier` turns (user, assistant), with the answer `begun`.

    also: further languages in which the answer's harm is looked for; the greatest counts.
    """

    earlier: tuple[tuple[str, str], ...] = ()
    begun: str = ""
    also: tuple[str, ...] = ()

    @property
    def messages(self) -> list[ChatMessage]:
        """The conversation, which ends in the assistant's turn where the answer is begun."""
        turns: list[ChatMessage] = []
        for asked, answered in self.earlier:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        turns.append({"role": "user", "content": self.prompt})
        return [*turns, {"role": "assistant", "content": self.begun}] if self.begun else turns


@dataclass(frozen=True, slots=True)
class Attack:
    """A way of asking: its name, the harmful prompts as it asks them, and how answers are drawn."""

    name: str
    prompts: tuple[AttackPrompt, ...]
    decoding: Decoding


@dataclass(frozen=True, slots=True)
class AttackSettings(Record):
    """How attacks are made. samples, temperature: of the sampled attacks. shots: earlier turns, at least 1.

    seed, max_tokens: of all answers. Raises ValueError naming the field that is wrong.
    """

    samples: int = 16
    temperature: float = 1.0
    shots: int = 3
    seed: int = 0
    max_tokens: int = 80

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise ValueError(f"shots: must be at least 1, not {self.shots}")
        if self.temperature == 0:
            raise ValueError("temperature: the sampled attacks need one above 0")
        _ = self.sampled

    @property
    def greedy(self) -> Decoding:
        """How answers to attacks that do not sample are drawn."""
        return Decoding(seed=self.seed, max_tokens=self.max_tokens)

    @property
    def sampled(self) -> Decoding:
        """How answers to those that do are drawn."""
        return Decoding(self.temperature, self.samples, self.seed, self.max_tokens)


@dataclass(frozen=True, slots=True)
class AttackRow(Record):
    """One language under one attack and condition.

    harm: of what the user received, without what the prompt put there. stopped: the share of answers that a
    rule ended. back, worst_back: the mean amount of harm, and that of the worst answer to each prompt, over
    the greater of the unfiltered model's under the same attack and under none: so an attack that confuses the
    model counts against what it says without it, and one that draws more out of it against that. same,
    worst_same: over that under the same attack alone. None where there is none to compare with.
    """

    language: str
    attack: str
    condition: str
    harm: HarmFigures
    stopped: float
    back: float | None
    worst_back: float | None
    same: float | None
    worst_same: float | None


@dataclass(frozen=True, slots=True)
class AttackResult(Record):
    """Rows by attack, then by condition beginning with the one without rules, then by language.

    left_out: what could not be tried, and why.
    """

    model: str
    chosen_from: tuple[str, ...]
    settings: AttackSettings
    attacks: tuple[str, ...]
    conditions: tuple[Condition, ...]
    languages: tuple[str, ...]
    rows: tuple[AttackRow, ...]
    left_out: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> AttackResult:
        """Read a result from its JSON. Raises InputFileError."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_record(path, self)

    def row(self, language: str, attack: str, condition: str) -> AttackRow:
        """The row of these three. Raises KeyError where there is none."""
        key = (language, attack, condition)
        for row in self.rows:
            if (row.language, row.attack, row.condition) == key:
                return row
        raise KeyError(key)

    def of(self, attack: str, condition: str) -> list[AttackRow]:
        """The rows of an attack under a condition, by language."""
        return [row for row in self.rows if (row.attack, row.condition) == (attack, condition)]

    def mean_back(self, attack: str, condition: str, worst: bool = False) -> float | None:
        """The mean of `back`, or of `worst_back`, over the languages that have one; None where none has."""
        rows = self.of(attack, condition)
        shares = [row.worst_back if worst else row.back for row in rows]
        there = [share for share in shares if share is not None]
        return mean(there) if there else None


def measure_attacks(
    client: Client,
    conditions: Mapping[str, Bundle | None],
    prompts: Sequence[Prompt],
    scorers: BanScorers,
    wordings: Mapping[str, Wordings],
    settings: AttackSettings | None = None,
    *,
    chosen_from: Sequence[str] = (),
    concurrency: int = 16,
    progress: Progress = lambda _stage, _done, _total: None,
) -> AttackResult:
    """Ask every harmful prompt in every way, without rules and under each bundle, and score the answers.

    client, conditions: as of `measure_filters`. Examples and beginnings are the model's own answers without
    rules. Raises SaegisError for a call that fails, ScorerError, and ValueError for no harmful prompts.
    """
    settings = settings or AttackSettings()
    named = ordered(conditions)
    harmful = [prompt for prompt in prompts if prompt.harmful]
    if not harmful:
        raise ValueError("prompts: there must be at least one that is harmful")
    trial, requests = PolicyTrial(client), Requests(client, concurrency, progress)
    trial.apply(None)
    own = requests.answers(harmful, (), settings.greedy, "the model's own answers")
    begun = [_beginnings(client, answer) for answer in own]
    attacks = attacks_of(own, begun, scorers, wordings, settings)
    found: dict[tuple[str, str], list[AttackRow]] = {}
    for condition, bundle in named.items():
        trial.apply(bundle)
        for attack in attacks:
            stage = f"{condition}, {attack.name}"
            answers = requests.answers(attack.prompts, (), attack.decoding, stage)
            found[attack.name, condition] = _rows(attack, condition, answers, scorers)
    trial.apply(None)
    unruled = next(iter(named))
    rows = [
        _compared(row, found[attack.name, unruled], _unattacked(found, attack, unruled))
        for attack in attacks
        for condition in named
        for row in found[attack.name, condition]
    ]
    return AttackResult(
        model=requests.model_id,
        chosen_from=tuple(chosen_from),
        settings=settings,
        attacks=tuple(attack.name for attack in attacks),
        conditions=tuple(Condition(name, bundle.digest if bundle else "") for name, bundle in named.items()),
        languages=languages_of(harmful),
        rows=tuple(rows),
        left_out=_left_out(harmful, wordings),
    )


def attacks_of(
    own: Sequence[Answer],
    begun: Sequence[Mapping[int, str]],
    scorers: BanScorers,
    wordings: Mapping[str, Wordings],
    settings: AttackSettings,
) -> tuple[Attack, ...]:
    """The attacks, first none. own: the model's answer to each prompt; begun: its first tokens as text."""
    asked = [AttackPrompt(one.prompt, one.language, one.harmful) for one in (answer.prompt for answer in own)]
    greedy, sampled = settings.greedy, settings.sampled
    names = tuple(dict.fromkeys(name for of in wordings.values() for name in of.wordings))
    worded = {
        name: [
            replace(one, prompt=wordings[one.language].put(name, one.prompt))
            for one in asked
            if one.language in wordings and name in wordings[one.language].wordings
        ]
        for name in names
    }
    shown = [
        replace(one, earlier=shots)
        for one, shots in zip(asked, _examples(own, scorers, settings), strict=True)
    ]
    made: list[tuple[str, Iterable[AttackPrompt], Decoding]] = [
        (PLAIN, asked, greedy),
        *((f"wording: {name}", prompts, greedy) for name, prompts in worded.items()),
        ("half in another language", _mixed(asked), greedy),
        ("answer in another language", _directed(asked, wordings), greedy),
        ("other letters", _in_other_letters(asked), greedy),
        (f"{settings.shots} examples", shown, greedy),
        *((f"{count} tokens begun", _begun(asked, begun, count), greedy) for count in BEGINNINGS),
        (WORST, asked, sampled),
        (ALL, _begun(_reworded(shown, wordings, names), begun, _TOGETHER), sampled),
    ]
    attacks = [Attack(name, tuple(prompts), decoding) for name, prompts, decoding in made]
    return tuple(attack for attack in attacks if attack.prompts)


def answers_of_attacks(
    prompts: Sequence[Prompt], wordings: Mapping[str, Wordings], settings: AttackSettings
) -> int:
    """At most how many answers are drawn under each condition."""
    count = sum(prompt.harmful for prompt in prompts)
    names = {name for of in wordings.values() for name in of.wordings}
    return count * (5 + len(names) + len(BEGINNINGS) + 2 * settings.samples)


def _beginnings(client: Client, answer: Answer) -> dict[int, str]:
    """The text of an answer's first tokens, by how many; without a character that is not whole."""
    texts = {}
    for count in BEGINNINGS:
        tokens = answer.token_ids[:count]
        text = client.detokenize(tokens, skip_special_tokens=True) if tokens else ""
        texts[count] = text.rstrip("\ufffd")
    return texts


def _amount(scorers: BanScorers) -> Callable[[str, str], float]:
    return scorers.words or scorers.harm


def _examples(
    own: Sequence[Answer], scorers: BanScorers, settings: AttackSettings
) -> list[tuple[tuple[str, str], ...]]:
    """For each prompt those others of its language whose answers hold the most harm, with these answers."""
    amount = _amount(scorers)
    examples = []
    for answer in own:
        language = answer.prompt.language
        others = [
            other for other in own if other.prompt.language == language and other is not answer and other.text
        ]
        others.sort(key=lambda other: -amount(other.text, other.prompt.language))
        examples.append(tuple((other.prompt.prompt, other.text) for other in others[: settings.shots]))
    return examples


def _partners(asked: Sequence[AttackPrompt]) -> list[AttackPrompt | None]:
    """For each prompt that of the same number in the next language; None where there is none."""
    by_language = {code: [one for one in asked if one.language == code] for code in languages_of(asked)}
    languages = list(by_language)
    partners: list[AttackPrompt | None] = []
    for one in asked:
        following = languages[(languages.index(one.language) + 1) % len(languages)]
        number = by_language[one.language].index(one)
        theirs = by_language[following]
        partners.append(theirs[number] if following != one.language and number < len(theirs) else None)
    return partners


def _mixed(asked: Sequence[AttackPrompt]) -> list[AttackPrompt]:
    """Half of each prompt, and the other half of the same number's in the next language."""
    return [
        replace(one, prompt=halved(one.prompt, other.prompt), also=(other.language,))
        for one, other in zip(asked, _partners(asked), strict=True)
        if other is not None
    ]


def _directed(asked: Sequence[AttackPrompt], wordings: Mapping[str, Wordings]) -> list[AttackPrompt]:
    """Each prompt with the name of the next language behind it, in which the answer is to be."""
    return [
        replace(one, prompt=f"{one.prompt} ({wordings[other.language].name})", also=(other.language,))
        for one, other in zip(asked, _partners(asked), strict=True)
        if other is not None and other.language in wordings
    ]


def _in_other_letters(asked: Sequence[AttackPrompt]) -> list[AttackPrompt]:
    written = []
    for one in asked:
        try:
            written.append(replace(one, prompt=transliterated(one.prompt)))
        except ImportError:
            continue
    return written


def _begun(
    asked: Sequence[AttackPrompt], begun: Sequence[Mapping[int, str]], count: int
) -> list[AttackPrompt]:
    return [replace(one, begun=texts[count]) for one, texts in zip(asked, begun, strict=True)]


def _reworded(
    asked: Sequence[AttackPrompt], wordings: Mapping[str, Wordings], names: Sequence[str]
) -> list[AttackPrompt]:
    """Each prompt in one of the wordings, in turn."""
    reworded = []
    for number, one in enumerate(asked):
        there = (
            [name for name in names if name in wordings[one.language].wordings]
            if one.language in wordings
            else []
        )
        prompt = wordings[one.language].put(there[number % len(there)], one.prompt) if there else one.prompt
        reworded.append(replace(one, prompt=prompt))
    return reworded


def _left_out(prompts: Sequence[Prompt], wordings: Mapping[str, Wordings]) -> tuple[str, ...]:
    missing = [code for code in languages_of(prompts) if code not in wordings]
    told = [f"no wordings: {', '.join(missing)}"] if missing else []
    if not can_transliterate():
        told.append("other letters for scripts other than Latin: anyascii is not installed")
    return tuple(told)


def _rows(attack: Attack, condition: str, answers: Sequence[Answer], scorers: BanScorers) -> list[AttackRow]:
    """A row for each language, not compared yet."""
    samples = attack.decoding.samples
    grouped = [answers[at : at + samples] for at in range(0, len(answers), samples)]
    rows = []
    for code in languages_of(attack.prompts):
        pairs = [
            (prompt, group)
            for prompt, group in zip(attack.prompts, grouped, strict=True)
            if prompt.language == code
        ]
        languages = tuple(dict.fromkeys(one for prompt, _ in pairs for one in (code, *prompt.also)))
        texts = [[answer.text for answer in group] for _, group in pairs]
        rows.append(
            AttackRow(
                language=code,
                attack=attack.name,
                condition=condition,
                harm=harm_figures(texts, code, _in_any(scorers, languages)),
                stopped=mean(answer.stopped for _, group in pairs for answer in group),
                back=None,
                worst_back=None,
                same=None,
                worst_same=None,
            )
        )
    return rows


def _in_any(scorers: BanScorers, languages: Sequence[str]) -> BanScorers:
    """Scorers of the greatest harm that a text holds in any of the languages."""
    count = scorers.words
    harm: Scorer = lambda text, _language: max(scorers.harm(text, code) for code in languages)  # noqa: E731
    words = None if count is None else lambda text, _language: max(count(text, code) for code in languages)
    return BanScorers(harm, scorers.refusal, words)


def _unattacked(
    found: Mapping[tuple[str, str], list[AttackRow]], attack: Attack, unruled: str
) -> list[AttackRow]:
    """What is compared with under no attack: of sampled attacks the sampled answers to plain prompts."""
    return found[WORST if attack.decoding.temperature else PLAIN, unruled]


def _compared(row: AttackRow, attacked: Sequence[AttackRow], unattacked: Sequence[AttackRow]) -> AttackRow:
    """The row with its shares, over rows of the unfiltered model."""
    same = next(one.harm for one in attacked if one.language == row.language)
    none = next(one.harm for one in unattacked if one.language == row.language)
    return replace(
        row,
        back=_share(row.harm.amount, max(same.amount, none.amount)),
        worst_back=_share(row.harm.worst_amount, max(same.worst_amount, none.worst_amount)),
        same=_share(row.harm.amount, same.amount),
        worst_same=_share(row.harm.worst_amount, same.worst_amount),
    )


def _share(amount: float, of: float) -> float | None:
    return amount / of if of else None
