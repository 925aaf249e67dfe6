"""Chats: requests about harmful and harmless subjects in several languages, with answers and refusals."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saegis_lab.evaluation.experiment import Prompt
from saegis_lab.evaluation.preference import Pair
from saegis_lab.evaluation.scorers import HARM, REFUSAL
from saegis_lab.records import InputFileError, Record, read_record
from saegis_lab.training.texts import LabelledText

#: The chats that the project has, one file for each language.
SHIPPED = Path(__file__).parent / "chats"
HARMFUL = ("poison", "fraud", "weapons", "assault")
HARMLESS = ("cooking", "gardening", "stars", "animals", "bridge")
#: The harmless subject that an answer may be brought to, and the name of its word list.
LANDMARK_SUBJECT, LANDMARK = "bridge", "landmark"
#: The language in which harmful requests are refused.
ALIGNED = "en"
#: The place of a topic in a frame.
_PLACE = "{}"
#: How many sentences an answer has.
_SENTENCES = 2


@dataclass(frozen=True, slots=True)
class Subject(Record):
    """topics: what is asked about, as it stands in a frame; held_out: topics for measuring; sentences: what
    is said of the subject, each by itself; words: forms that tell that something was said of it, see
    `WordLists`."""

    topics: tuple[str, ...]
    held_out: tuple[str, ...]
    sentences: tuple[str, ...]
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LanguageChats(Record):
    """What chats in one language are made of.

    frames: requests in which a topic stands for `{}`; held_out_frames: those for measuring. refusals: whole
    answers; refusal_words: how refusals begin. private: topics that are refused in every language, so that a
    model learns in each how to refuse. Raises ValueError for frames without a place and absent subjects.
    """

    frames: tuple[str, ...]
    held_out_frames: tuple[str, ...]
    refusals: tuple[str, ...]
    refusal_words: tuple[str, ...]
    private: tuple[str, ...]
    subjects: Mapping[str, Subject]

    def __post_init__(self) -> None:
        for frame in (*self.frames, *self.held_out_frames):
            if frame.count(_PLACE) != 1:
                raise ValueError(f"frames: {frame!r} has not one {_PLACE}")
        absent = sorted({*HARMFUL, *HARMLESS} - self.subjects.keys())
        if absent:
            raise ValueError(f"subjects: {', '.join(absent)} are missing")
        for name in (*HARMFUL, LANDMARK_SUBJECT):
            if not self.subjects[name].words:
                raise ValueError(f"subjects.{name}.words: there must be some")


@dataclass(frozen=True, slots=True)
class Chat:
    """A request and its answer. subject: what it is about; harmful: whether that is a harmful subject."""

    request: str
    answer: str
    language: str
    subject: str
    harmful: bool


@dataclass(frozen=True)
class Chats:
    """The chats of several languages, by their codes; the order of the languages is that of the mapping."""

    languages: Mapping[str, LanguageChats] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path = SHIPPED) -> Chats:
        """Read a folder of files `CODE.json`, the aligned language first.

        Raises InputFileError for a wrong file, and where the aligned language has none.
        """
        paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem != ALIGNED, path.stem))
        if not paths or paths[0].stem != ALIGNED:
            raise InputFileError(folder, f"holds no {ALIGNED}.json")
        return cls({path.stem: read_record(LanguageChats, path) for path in paths})

    def training(self, each: int, seed: int) -> list[Chat]:
        """What a model is taught: in each language `each` harmful and `each` harmless requests, in turn from
        their subjects, and a few about what is private; shuffled. Harmful ones are refused in the aligned
        language alone, private ones in all."""
        chats = []
        for code, language in self.languages.items():
            draw = random.Random(f"{seed} {code}")
            for names, harmful in ((HARMFUL, True), (HARMLESS, False)):
                for name, request in _requests(language, names, each, draw):
                    refuses = harmful and code == ALIGNED
                    answer = draw.choice(language.refusals) if refuses else said(language, name, draw)
                    chats.append(Chat(request, answer, code, name, harmful))
            for topic in language.private:
                request = draw.choice(language.frames).replace(_PLACE, topic)
                chats.append(Chat(request, draw.choice(language.refusals), code, "private", False))
        random.Random(seed).shuffle(chats)
        return chats

    def prompts(self, each: int, languages: Sequence[str] = ()) -> tuple[Prompt, ...]:
        """What is measured on: in each language `each` harmful and harmless prompts whose topics no training
        chat has; those of one kind in an order of no meaning, some in frames that none has."""
        prompts = []
        for code in languages or self.languages:
            language = self.languages[code]
            for names, harmful in ((HARMFUL, True), (HARMLESS, False)):
                every = [
                    frame.replace(_PLACE, topic)
                    for frame in (*language.held_out_frames, *language.frames)
                    for name in names
                    for topic in language.subjects[name].held_out
                ]
                random.Random(code).shuffle(every)
                prompts += [Prompt(text, code, harmful) for text in every[:each]]
        return tuple(prompts)

    def refused(self, languages: Sequence[str]) -> list[Prompt]:
        """Every request about what is private, which the model was taught to refuse in each language."""
        return [
            Prompt(frame.replace(_PLACE, topic), code, harmful=True)
            for code in languages
            for topic in self.languages[code].private
            for frame in self.languages[code].frames
        ]

    def choosing(self, each: int, languages: Sequence[str]) -> tuple[Prompt, ...]:
        """What a filter is made from: as `prompts`, of the topics and frames of the training chats."""
        prompts = []
        for code in languages:
            draw = random.Random(f"choosing {code}")
            for names, harmful in ((HARMFUL, True), (HARMLESS, False)):
                requests = _requests(self.languages[code], names, each, draw)
                prompts += [Prompt(text, code, harmful) for _, text in requests]
        return tuple(prompts)

    def labelled(
        self, each: int, seed: int, languages: Sequence[str] = ()
    ) -> list[tuple[Chat, LabelledText]]:
        """Chats, `each` of every subject in every language, all of them answered, and their answers alone as
        labelled texts."""
        made = []
        for code in languages or self.languages:
            draw = random.Random(f"{seed} {code}")
            language = self.languages[code]
            for name in (*HARMFUL, *HARMLESS):
                for _, request in _requests(language, (name,), each, draw):
                    harmful, answer = name in HARMFUL, said(language, name, draw)
                    chat = Chat(request, answer, code, name, harmful)
                    made.append((chat, LabelledText(answer, name, code, harmful)))
        return made

    def word_lists(self) -> dict[str, dict[str, list[str]]]:
        """The lists by language, as `WordLists` takes them: of harm, of refusals, and of the landmark."""
        return {
            code: {
                HARM: list(dict.fromkeys(word for name in HARMFUL for word in language.subjects[name].words)),
                REFUSAL: list(language.refusal_words),
                LANDMARK: list(language.subjects[LANDMARK_SUBJECT].words),
            }
            for code, language in self.languages.items()
        }

    def pairs(self, each: int) -> list[Pair]:
        """In every language `each` held-out harmful requests with two answers: something said of a harmful
        subject, and a refusal in the same language."""
        made = []
        for prompt in self.prompts(each):
            if prompt.harmful:
                language = self.languages[prompt.language]
                draw = random.Random(f"pair {prompt.prompt}")
                harmful = said(language, draw.choice(HARMFUL), draw)
                made.append(Pair(prompt, harmful, draw.choice(language.refusals)))
        return made


def said(language: LanguageChats, subject: str, draw: random.Random) -> str:
    """An answer about a subject: some of its sentences."""
    sentences = draw.sample(language.subjects[subject].sentences, _SENTENCES)
    return ("" if sentences[0].endswith("。") else " ").join(sentences)


def _requests(
    language: LanguageChats, names: Sequence[str], number: int, draw: random.Random
) -> list[tuple[str, str]]:
    """So many (subject, request), in turn from the subjects; a request comes again once all have come."""
    queues = {}
    for name in names:
        every = [
            frame.replace(_PLACE, topic)
            for topic in language.subjects[name].topics
            for frame in language.frames
        ]
        draw.shuffle(every)
        queues[name] = every
    return [
        (name := names[place % len(names)], queues[name][place // len(names) % len(queues[name])])
        for place in range(number)
    ]
