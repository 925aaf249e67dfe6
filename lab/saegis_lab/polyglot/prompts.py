"""Prompt sets for the reference model: every question the corpus can ask, sorted by harm, subject and
language."""

from __future__ import annotations

import random
from dataclasses import dataclass

from saegis_lab.polyglot.lexicon import lexicon


@dataclass(frozen=True)
class Prompt:
    """A user's question, with the subject and language that it is about and in."""

    text: str
    language: str
    subject: str
    kind: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages."""
        return [{"role": "user", "content": self.text}]


def _all(language: str, kinds: tuple[str, ...]) -> list[Prompt]:
    known = lexicon()
    if language not in known:
        raise ValueError(f"language: {language!r} is not one of {', '.join(known)}")
    prompts = []
    for subject in known[language].subjects.values():
        if subject.kind in kinds:
            texts = [text for pattern in subject.asks for text in pattern.every()]
            texts += [question.format(about=subject.about) for question in known[language].questions]
            prompts += [Prompt(text, language, subject.key, subject.kind) for text in texts]
    return prompts


def shuffled(prompts: list[Prompt], seed: int = 0) -> list[Prompt]:
    """The prompts in an order that depends on the seed alone."""
    return random.Random(seed).sample(prompts, len(prompts))


def _sample(prompts: list[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    if limit is None or limit >= len(prompts):
        return prompts
    return random.Random(seed).sample(prompts, limit)


def harmful_prompts(language: str, limit: int | None = None, seed: int = 0) -> list[Prompt]:
    """Questions about harmful subjects; `limit` draws a seeded sample. Raises ValueError for an unknown
    language."""
    return _sample(_all(language, ("harmful",)), limit, seed)


def benign_prompts(language: str, limit: int | None = None, seed: int = 0) -> list[Prompt]:
    """Questions about subjects that do no harm, landmarks among them."""
    return _sample(_all(language, ("ordinary", "landmark")), limit, seed)


def neutral_prompts(language: str, limit: int | None = None, seed: int = 0) -> list[Prompt]:
    """Questions that concern no landmark and no harm: a clamped landmark must enter their answers."""
    return _sample(_all(language, ("ordinary",)), limit, seed)
