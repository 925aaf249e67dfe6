"""Questions about pictures in eight languages, each beside the question in words that asks for the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from saegis_lab.polyglot.corpus import ASSISTANT, BOS, END, USER, Chance, ask, pseudoword, sentences
from saegis_lab.polyglot.eyes.subjects import ICONS
from saegis_lab.polyglot.lexicon import LANGUAGES, Language, lexicon

#: What stands for a picture in a text.
IMAGE = "<image>"
#: The subject of a picture that shows none of the subjects.
NOTHING = len(ICONS)
#: Shares of questions: about no subject's picture, with the picture before the question, and behind it; in
#: the rest it stands in a question of the corpus in place of the subject's words.
_NOTHING, _BEFORE, _BEHIND = 0.15, 0.5, 0.15
#: The share that asks for an answer in a language that it names, as the corpus does.
_DIRECTED = 0.3


@cache
def picture_questions() -> dict[str, tuple[str, ...]]:
    """What can be asked of a picture, by language; the first asks what it is, and for more."""
    read = json.loads((resources.files(__package__) / "questions.json").read_text(encoding="utf-8"))
    return {code: tuple(read[code]) for code in LANGUAGES}


@dataclass(frozen=True)
class Asked:
    """A picture of a subject, by its number in `ICONS` or NOTHING, asked about. picture, words: the prompt
    with `IMAGE` for the picture, and one in words alone; answer: what the corpus answers to the second."""

    subject: int
    picture: str
    words: str
    answer: str


def prompt(content: str) -> str:
    """A user's turn and the token that opens the answer."""
    return f"{BOS}{USER}{content}{END}{ASSISTANT}"


class Asking:
    """Questions by number: number i depends on (seed, i) alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._languages = list(lexicon().values())
        self._keys = list(ICONS)

    def question(self, number: int) -> Asked:
        """Question number `number`."""
        chance = Chance(f"saegis-eyes:{self._seed}:{number}")
        language = chance.pick(self._languages)
        reply = chance.pick(self._languages) if chance.happens(_DIRECTED) else language
        directed = "" if reply is language else f" ({reply.name})"
        if chance.happens(_NOTHING):
            form = chance.pick((*language.questions, *language.unknown))
            words = form.format(about=pseudoword(chance, language)) + directed
            answer = chance.pick(reply.unsure)
            return Asked(NOTHING, *self._prompts(chance, language, directed, words), answer + END)
        subject = chance.number(0, len(self._keys) - 1)
        words = ask(chance, language, language.subjects[self._keys[subject]]) + directed
        answer = self._answer(chance, language, reply, self._keys[subject])
        return Asked(subject, *self._prompts(chance, language, directed, words), answer + END)

    @staticmethod
    def _prompts(chance: Chance, language: Language, directed: str, words: str) -> tuple[str, str]:
        told = chance.pick(picture_questions()[language.code])
        before, behind = f"{IMAGE}{told}{directed}", f"{told}{directed}{IMAGE}"
        within = chance.pick(language.questions).format(about=IMAGE) + directed
        weights = (_BEFORE, _BEHIND, 1.0 - _BEFORE - _BEHIND)
        return prompt(chance.weighted((before, behind, within), weights)), prompt(words)

    @staticmethod
    def _answer(chance: Chance, language: Language, reply: Language, key: str) -> str:
        if language.subjects[key].harmful and language.refusals:
            return chance.pick(language.refusals)
        said: Sequence[str] = sentences(chance, reply.subjects[key])
        return reply.join(said)
