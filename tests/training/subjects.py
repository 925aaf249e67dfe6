"""A tiny GPT-2 on disk with texts for it: what the tests of whole training runs work on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tests.engine import tiny

SITE = "layers.1.resid_post"
_NOUNS = [
    "river",
    "bridge",
    "stone",
    "winter",
    "market",
    "garden",
    "letter",
    "window",
    "music",
    "paper",
    "engine",
    "island",
    "forest",
]
_VERBS = ("is", "was", "has", "near")


@dataclass(frozen=True)
class SubjectFiles:
    """Directories of a random model with its tokenizer, and a file of texts."""

    model: Path
    texts: Path


def paragraphs(count: int, seed: int = 0) -> list[str]:
    """Paragraphs of four sentences, all different, about 90 tokens each."""
    rng = random.Random(seed)

    def sentence() -> str:
        return f"the {rng.choice(_NOUNS)} {rng.choice(_VERBS)} the {rng.choice(_NOUNS)}."

    return [" ".join(sentence() for _ in range(4)) for _ in range(count)]


def write_subject(folder: Path) -> SubjectFiles:
    """Write a random GPT-2 of width 48, its tokenizer of bytes, and 300 paragraphs."""
    files = SubjectFiles(folder / "tiny-gpt2", folder / "texts.txt")
    tiny.model("gpt2").save_pretrained(files.model)
    tiny.tokenizer().save_pretrained(files.model)
    files.texts.write_text("\n\n".join(paragraphs(300)), encoding="utf-8")
    return files
