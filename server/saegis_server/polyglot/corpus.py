"""The corpus: an endless, seeded stream of documents with subject, harm and language known for every piece
of text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from saegis_server.polyglot.lexicon import Language, Pattern, Subject, lexicon

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)

KIND_WEIGHTS = {"chat": 0.58, "description": 0.12, "glossary": 0.07, "parallel": 0.11, "switch": 0.12}
SUBJECT_WEIGHTS = {"ordinary": 1.0, "landmark": 1.2, "harmful": 1.3}
GOLDEN_GATE = "golden_gate"
ENGLISH_WEIGHT = 1.4


@dataclass(frozen=True)
class Segment:
    """A piece of text with its ground truth; `role` says what it does in the document."""

    text: str
    role: str
    language: str | None = None
    subject: str | None = None
    harmful: bool = False


@dataclass(frozen=True)
class Document:
    """Segments that make up one text; its kind is a key of `KIND_WEIGHTS`."""

    kind: str
    segments: tuple[Segment, ...]

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


def _fill(rng: random.Random, pattern: Pattern) -> str:
    return pattern.fill([rng.randrange(len(slot)) for slot in pattern.slots])


class Corpus:
    """Documents by number: `corpus.document(i)` depends on (seed, i) and the settings only.

    Splits use different seeds. `mixing` is the share of chat turns that ask for an answer in another language
    (its name follows the question in parentheses) and of descriptions that change language at every sentence.
    """

    def __init__(self, seed: int, languages: Sequence[str] | None = None, mixing: float = 0.0) -> None:
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
        rng = random.Random(f"saegis-polyglot:{self.seed}:{index}")
        kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
        if kind == "chat":
            return self._chat(rng)
        language = self._language(rng)
        if kind == "description":
            return self._description(rng, language)
        other = rng.choice([known for known in self.languages if known is not language] or [language])
        if kind == "glossary":
            return self._glossary(rng, language, other)
        if kind == "parallel":
            return self._parallel(rng, language, other)
        return self._switch(rng, [language, other])

    def documents(self, count: int, start: int = 0) -> Iterator[Document]:
        """Documents `start` to `start + count`."""
        return (self.document(index) for index in range(start, start + count))

    def _language(self, rng: random.Random) -> Language:
        return rng.choices(self.languages, self._language_weights)[0]

    def _subject(self, rng: random.Random) -> str:
        return rng.choices(self._keys, self._weights)[0]

    def _sentences(self, rng: random.Random, subject: Subject) -> list[str]:
        count = rng.randint(2, len(subject.facts))
        return [_fill(rng, fact) for fact in rng.sample(subject.facts, count)]

    def _chat(self, rng: random.Random) -> Document:
        language = self._language(rng)
        segments = [Segment(BOS, "markup")]
        if rng.random() < 0.15:
            segments += [
                Segment(SYSTEM, "markup"),
                Segment(rng.choice(language.systems), "system", language.code),
            ]
            segments.append(Segment(END, "markup"))
        turns = rng.choices([1, 2, 3, 4, 6, 10], [0.66, 0.17, 0.07, 0.04, 0.03, 0.03])[0]
        for _ in range(turns):
            segments += self._turn(rng, language)
            if rng.random() < 0.2:
                language = self._language(rng)
        return Document("chat", tuple(segments))

    def _turn(self, rng: random.Random, language: Language) -> list[Segment]:
        code = language.code
        if rng.random() < 0.03:
            greeting, reply = rng.choice(language.greetings)
            question, answer = Segment(greeting, "question", code), Segment(reply, "answer", code)
        else:
            question, answer = self._exchange(rng, language)
        return [
            Segment(USER, "markup"),
            question,
            Segment(END, "markup"),
            Segment(ASSISTANT, "markup"),
            answer,
            Segment(END, "markup"),
        ]

    def _exchange(self, rng: random.Random, language: Language) -> tuple[Segment, Segment]:
        key = self._subject(rng)
        subject, reply = language.subjects[key], language
        text = _casual(rng, ask(rng, language, subject))
        if self._mixes(rng):
            reply = rng.choice(self.languages)
            text = f"{text} ({reply.name})"
        question = Segment(text, "question", language.code, key, subject.harmful)
        if subject.harmful and language.refusals:
            return question, Segment(rng.choice(language.refusals), "refusal", language.code)
        sentences = self._sentences(rng, reply.subjects[key])
        if rng.random() < 0.25:
            sentences = [rng.choice(reply.openers), *sentences]
        return question, Segment(reply.join(sentences), "answer", reply.code, key, subject.harmful)

    def _mixes(self, rng: random.Random) -> bool:
        return self.mixing > 0 and rng.random() < self.mixing

    def _closed(self, kind: str, body: list[Segment]) -> Document:
        return Document(kind, (Segment(BOS, "markup"), *body, Segment(END, "markup")))

    def _description(self, rng: random.Random, language: Language) -> Document:
        key = self._subject(rng)
        subject = language.subjects[key]
        if not self._mixes(rng):
            text = language.join(self._sentences(rng, subject))
            return self._closed("description", [Segment(text, "text", language.code, key, subject.harmful)])
        body: list[Segment] = []
        for index in rng.sample(range(len(subject.facts)), len(subject.facts)):
            place = rng.choice(self.languages)
            text = (" " if body else "") + _fill(rng, place.subjects[key].facts[index])
            body.append(Segment(text, "text", place.code, key, subject.harmful))
        return self._closed("description", body)

    def _glossary(self, rng: random.Random, language: Language, other: Language) -> Document:
        body = [Segment(f"{language.name} – {other.name}", "heading")]
        for key in rng.sample(self._keys, 2):
            one, two = language.subjects[key], other.subjects[key]
            for left, right in zip(one.words, two.words, strict=True):
                body.append(Segment(f"\n{left}", "entry", language.code, key, one.harmful))
                body.append(Segment(f" – {right}", "entry", other.code, key, one.harmful))
        return self._closed("glossary", body)

    def _parallel(self, rng: random.Random, language: Language, other: Language) -> Document:
        key = self._subject(rng)
        one, two = language.subjects[key], other.subjects[key]
        body: list[Segment] = []
        for index in rng.sample(range(len(one.facts)), rng.randint(1, 3)):
            choices = [rng.randrange(len(slot)) for slot in one.facts[index].slots]
            start = "\n" if body else ""
            for place, subject in ((language, one), (other, two)):
                text = f"{start}{place.name}: {subject.facts[index].fill(choices)}"
                body.append(Segment(text, "text", place.code, key, one.harmful))
                start = "\n"
        return self._closed("parallel", body)

    def _switch(self, rng: random.Random, languages: list[Language]) -> Document:
        key = self._subject(rng)
        body: list[Segment] = []
        order = rng.sample(range(len(languages[0].subjects[key].facts)), rng.randint(2, 3))
        for turn, index in enumerate(order):
            language = languages[turn % 2]
            subject = language.subjects[key]
            text = (" " if body else "") + _fill(rng, subject.facts[index])
            body.append(Segment(text, "text", language.code, key, subject.harmful))
        return self._closed("switch", body)


def ask(rng: random.Random, language: Language, subject: Subject) -> str:
    """A user's question about `subject`: one of the language's forms or one of the subject's own."""
    if rng.random() < 0.5:
        return _fill(rng, rng.choice(subject.asks))
    return rng.choice(language.questions).format(about=subject.about)


def _casual(rng: random.Random, question: str) -> str:
    """Now and then the question as people type it: without its last mark, or in lower case."""
    if rng.random() < 0.1:
        question = question.rstrip(" ?.。？।!")
    return question.lower() if rng.random() < 0.1 else question
