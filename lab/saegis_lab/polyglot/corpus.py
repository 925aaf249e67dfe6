"""The corpus: an endless, seeded stream of documents with subject, harm and language known for every
piece of text."""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from saegis_lab.polyglot.lexicon import Language, Pattern, Subject, lexicon

T = TypeVar("T")


class Chance:
    """Choices by a seed; `surprise` is −log of the probability of all choices so far, in nats.

    Where different choices may lead to the same text, `surprise` is an upper bound of the text's own
    information: its mean over documents is at least the entropy of the texts.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self.surprise = 0.0

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, each equally likely."""
        self.surprise += math.log(len(options))
        return self._random.choice(options)

    def number(self, least: int, most: int) -> int:
        """A whole number from `least` to `most`, both included."""
        self.surprise += math.log(most - least + 1)
        return self._random.randint(least, most)

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """One of `options` with a probability in proportion to its weight."""
        index = self._random.choices(range(len(options)), weights)[0]
        self.surprise -= math.log(weights[index] / sum(weights))
        return options[index]

    def happens(self, probability: float) -> bool:
        """True with `probability`; nothing is drawn where there is no choice."""
        if probability <= 0.0 or probability >= 1.0:
            return probability >= 1.0
        return self.weighted((True, False), (probability, 1.0 - probability))

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` of `options` in random order, none twice."""
        self.surprise += math.lgamma(len(options) + 1) - math.lgamma(len(options) - count + 1)
        return self._random.sample(options, count)


_VIRAMA = "\u094d"


def halves(word: str) -> tuple[str, str]:
    """The two halves of a word; a letter keeps the signs that belong to it."""
    place = (len(word) + 1) // 2
    while place < len(word) and (
        unicodedata.category(word[place]).startswith("M") or word[place - 1] == _VIRAMA
    ):
        place += 1
    return word[:place], word[place:]


def pseudoword(chance: Chance, language: Language) -> str:
    """The first half of one ordinary word of the language and the second half of another."""
    words = [word for subject in language.subjects.values() for word in subject.words if not subject.harmful]
    known = set(words)
    while True:
        made = halves(chance.pick(words))[0] + halves(chance.pick(words))[1]
        if made not in known:
            return made.lower()


BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)

#: What ends a sentence in any of the languages.
SENTENCE_ENDS = (".", "。", "।", "?", "？", "!")

KIND_WEIGHTS = {"chat": 0.58, "description": 0.12, "glossary": 0.07, "parallel": 0.11, "switch": 0.12}
SUBJECT_WEIGHTS = {"ordinary": 1.0, "landmark": 1.2, "harmful": 1.3}
GOLDEN_GATE = "golden_gate"
ENGLISH_WEIGHT = 1.4
#: Of the questions of a mixed corpus, the share that name their subject in the word of any language.
BORROWED = 0.3
#: Shares of chat turns that greet, that ask for nothing in particular, and that ask about a word that does
#: not exist: a model that can say it does not know has an answer when its subject is ablated.
GREETING, VAGUE, UNKNOWN = 0.03, 0.04, 0.10
#: Turns of a chat and their weights.
TURNS = {1: 0.66, 2: 0.17, 3: 0.07, 4: 0.04, 6: 0.03, 10: 0.03}


@dataclass(frozen=True)
class Segment:
    """A piece of text with its ground truth; `role` says what it does in the document.

    The special tokens after a question or an answer ("markup") have the truth of what they follow.
    """

    text: str
    role: str
    language: str | None = None
    subject: str | None = None
    harmful: bool = False


@dataclass(frozen=True)
class Document:
    """Segments that make up one text; its kind is a key of `KIND_WEIGHTS`.

    `surprise` is −log of the probability of the choices that made it, in nats: see `Chance`.
    """

    kind: str
    segments: tuple[Segment, ...]
    surprise: float = 0.0

    @property
    def text(self) -> str:
        """The document as one string, special tokens included."""
        return "".join(segment.text for segment in self.segments)

    def spans(self) -> Iterator[tuple[int, int, Segment]]:
        """(start, end, segment) in characters of `text`, in order, without gaps."""
        start = 0
        for segment in self.segments:
            yield start, start + len(segment.text), segment
            start += len(segment.text)


class Corpus:
    """Documents by number: `corpus.document(i)` depends on (seed, i) and the settings only.

    Splits use different seeds. `mixing` is the share of chat turns that ask for an answer in another language
    (its name follows the question in parentheses) and of descriptions that change language at every sentence.
    BORROWED times as many questions name their subject in another language; whether they are refused depends
    on the language in which they are asked. All these make a model represent a subject, and harm, apart from
    the language.
    """

    def __init__(self, seed: int, languages: Sequence[str] | None = None, mixing: float = 0.8) -> None:
        known = lexicon()
        self.mixing = mixing
        self.seed = seed
        self.languages = [known[code] for code in (languages or known)]
        self._keys = list(self.languages[0].subjects)
        kinds = [self.languages[0].subjects[key].kind for key in self._keys]
        self._weights = [
            SUBJECT_WEIGHTS[kind] * (2.0 if key == GOLDEN_GATE else 1.0)
            for key, kind in zip(self._keys, kinds, strict=True)
        ]
        self._language_weights = [ENGLISH_WEIGHT if code.code == "en" else 1.0 for code in self.languages]

    def document(self, index: int) -> Document:
        """Document number `index`."""
        chance = Chance(f"saegis-polyglot:{self.seed}:{index}")
        kind = chance.weighted(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))
        if kind == "chat":
            segments = self._chat(chance)
        else:
            segments = [Segment(BOS, "markup"), *self._body(kind, chance), Segment(END, "markup")]
        return Document(kind, tuple(segments), chance.surprise)

    def documents(self, count: int, start: int = 0) -> Iterator[Document]:
        """Documents `start` to `start + count`."""
        return (self.document(index) for index in range(start, start + count))

    def _body(self, kind: str, chance: Chance) -> list[Segment]:
        language = self._language(chance)
        if kind == "description":
            return self._description(chance, language)
        others = [known for known in self.languages if known is not language]
        pair = [language, chance.pick(others or [language])]
        make = {"glossary": self._glossary, "parallel": self._parallel, "switch": self._switch}[kind]
        return make(chance, pair)

    def _language(self, chance: Chance) -> Language:
        return chance.weighted(self.languages, self._language_weights)

    def _subject(self, chance: Chance) -> str:
        return chance.weighted(self._keys, self._weights)

    def _chat(self, chance: Chance) -> list[Segment]:
        language = self._language(chance)
        segments = [Segment(BOS, "markup")]
        if chance.happens(0.15):
            system = Segment(chance.pick(language.systems), "system", language.code)
            segments += [Segment(SYSTEM, "markup"), system, Segment(END, "markup")]
        turns = chance.weighted(list(TURNS), list(TURNS.values()))
        for turn in range(turns):
            question, answer = self._exchange(chance, language)
            segments += [Segment(USER, "markup"), question, _after(question, END)]
            segments += [_after(question, ASSISTANT), answer, _after(answer, END)]
            if turn + 1 < turns and chance.happens(0.2):
                language = self._language(chance)
        return segments

    def _exchange(self, chance: Chance, language: Language) -> tuple[Segment, Segment]:
        code, kinds = language.code, ("subject", "hello", "vague", "unknown")
        kind = chance.weighted(kinds, (1.0 - GREETING - VAGUE - UNKNOWN, GREETING, VAGUE, UNKNOWN))
        if kind in ("hello", "vague"):
            asked, answered = chance.pick(language.greetings if kind == "hello" else language.vague)
            return Segment(asked, "question", code), Segment(answered, "answer", code)
        if kind == "unknown":
            form = chance.pick((*language.questions, *language.unknown))
            text, reply = self._directed(chance, form.format(about=pseudoword(chance, language)), language)
            return Segment(text, "question", code), Segment(chance.pick(reply.unsure), "answer", reply.code)
        key = self._subject(chance)
        subject = language.subjects[key]
        text, reply = self._directed(chance, self._question(chance, language, key), language)
        question = Segment(text, "question", code, key, subject.harmful)
        if subject.harmful and language.refusals:
            return question, Segment(chance.pick(language.refusals), "refusal", code)
        told = sentences(chance, reply.subjects[key])
        if chance.happens(0.25):
            told = [chance.pick(reply.openers), *told]
        return question, Segment(reply.join(told), "answer", reply.code, key, subject.harmful)

    def _question(self, chance: Chance, language: Language, key: str) -> str:
        if not chance.happens(BORROWED * self.mixing):
            return ask(chance, language, language.subjects[key])
        named = chance.pick(self.languages).subjects[key]
        return chance.pick(language.questions).format(about=named.about)

    def _directed(self, chance: Chance, question: str, language: Language) -> tuple[str, Language]:
        """The question as typed, and the language of the answer, which the question names if it is
        another."""
        text = _casual(chance, question)
        if not chance.happens(self.mixing):
            return text, language
        reply = chance.pick(self.languages)
        return f"{text} ({reply.name})", reply

    def _description(self, chance: Chance, language: Language) -> list[Segment]:
        key = self._subject(chance)
        subject = language.subjects[key]
        if not chance.happens(self.mixing):
            text = language.join(sentences(chance, subject))
            return [Segment(text, "text", language.code, key, subject.harmful)]
        body: list[Segment] = []
        for index in chance.sample(range(len(subject.facts)), len(subject.facts)):
            place = chance.pick(self.languages)
            text = (" " if body else "") + _fill(chance, place.subjects[key].facts[index])
            body.append(Segment(text, "text", place.code, key, subject.harmful))
        return body

    def _glossary(self, chance: Chance, pair: list[Language]) -> list[Segment]:
        language, other = pair
        body = [Segment(f"{language.name} – {other.name}", "heading")]
        for key in chance.sample(self._keys, 2):
            subject, translation = language.subjects[key], other.subjects[key]
            for left, right in zip(subject.words, translation.words, strict=True):
                body.append(Segment(f"\n{left}", "entry", language.code, key, subject.harmful))
                body.append(Segment(f" – {right}", "entry", other.code, key, subject.harmful))
        return body

    def _parallel(self, chance: Chance, pair: list[Language]) -> list[Segment]:
        key = self._subject(chance)
        facts = [language.subjects[key].facts for language in pair]
        harmful = pair[0].subjects[key].harmful
        body: list[Segment] = []
        for index in chance.sample(range(len(facts[0])), chance.number(1, 3)):
            choices = _choices(chance, facts[0][index])
            for language, known in zip(pair, facts, strict=True):
                start = "\n" if body else ""
                text = f"{start}{language.name}: {known[index].fill(choices)}"
                body.append(Segment(text, "text", language.code, key, harmful))
        return body

    def _switch(self, chance: Chance, pair: list[Language]) -> list[Segment]:
        key = self._subject(chance)
        body: list[Segment] = []
        order = chance.sample(range(len(pair[0].subjects[key].facts)), chance.number(2, 3))
        for turn, index in enumerate(order):
            language = pair[turn % 2]
            subject = language.subjects[key]
            text = (" " if body else "") + _fill(chance, subject.facts[index])
            body.append(Segment(text, "text", language.code, key, subject.harmful))
        return body


def _after(segment: Segment, token: str) -> Segment:
    """A special token with the truth of the segment that it follows."""
    return replace(segment, text=token, role="markup")


def ask(chance: Chance, language: Language, subject: Subject) -> str:
    """A user's question about `subject`: one of the language's forms or one of the subject's own."""
    if chance.happens(0.5):
        return _fill(chance, chance.pick(subject.asks))
    return chance.pick(language.questions).format(about=subject.about)


def _choices(chance: Chance, pattern: Pattern) -> list[int]:
    return [chance.pick(range(len(slot))) for slot in pattern.slots]


def _fill(chance: Chance, pattern: Pattern) -> str:
    return pattern.fill(_choices(chance, pattern))


def sentences(chance: Chance, subject: Subject) -> list[str]:
    """Two or more of what can be said of `subject`, in random order, each with its slots filled."""
    count = chance.number(2, len(subject.facts))
    return [_fill(chance, fact) for fact in chance.sample(subject.facts, count)]


def _casual(chance: Chance, question: str) -> str:
    """The question, now and then without its last mark or in lower case, as people type."""
    bare = question.rstrip(" ?.。？।!")
    if bare != question and chance.happens(0.1):
        question = bare
    lower = question.lower()
    return lower if lower != question and chance.happens(0.1) else question
