"""The files of a run: where each step writes under the run's folder, and those made from the corpus alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from saegis_lab.polyglot.corpus import Document
from saegis_lab.polyglot.prompts import Prompt
from saegis_lab.polyglot.scoring import word_lists

#: Parts of a run that ship with the package.
MODEL, SAE, EVAL = "model", "sae", "eval"
PROMPTS, CLAMP_PROMPTS, WORDS = "prompts.jsonl", "clamp_prompts.jsonl", "words.json"
LABELLED = "texts.jsonl"
BAN, CLAMP = "ban.json", "clamp.json"
#: What was measured: the ban over its strengths, the ban as recommended, and the clamp over its values.
BAN_CURVE, BAN_RESULT, CLAMP_RESULT = "ban_curve.json", "ban_result.json", "clamp_result.json"
#: Texts for `saegis train sae`, with their special tokens (--raw).
TEXT, HELD_OUT = "text.jsonl", "held_out.jsonl"
SAMPLE = "corpus.jsonl"
#: Features that stand for the landmark, best first: one of them is clamped.
LANDMARK = "landmark.json"


def write_lines(path: Path, entries: Iterable[object]) -> None:
    """Write JSON lines; the folder is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def write_texts(path: Path, documents: Iterable[Document]) -> None:
    """Write the documents' texts as `saegis train sae --raw` reads them."""
    write_lines(path, ({"text": document.text} for document in documents))


def write_truth(path: Path, documents: Iterable[Document]) -> None:
    """Write documents with the ground truth of each of their segments."""
    write_lines(path, ({"kind": each.kind, "segments": _segments(each)} for each in documents))


def _segments(document: Document) -> list[dict[str, object]]:
    names = ("text", "role", "language", "subject", "harmful")
    return [{name: getattr(segment, name) for name in names} for segment in document.segments]


def write_labelled(path: Path, documents: Iterable[Document]) -> None:
    """Write those documents that are about one subject in one language, with both, as `saegis features` and
    `saegis eval coverage` read them with --raw."""
    write_lines(path, (entry for entry in map(_labelled, documents) if entry is not None))


def _labelled(document: Document) -> dict[str, object] | None:
    subjects = {segment.subject for segment in document.segments if segment.subject}
    languages = {segment.language for segment in document.segments if segment.language}
    if len(subjects) != 1 or len(languages) != 1:
        return None
    harmful = any(segment.harmful for segment in document.segments)
    return {
        "text": document.text,
        "label": subjects.pop(),
        "language": languages.pop(),
        "harmful": harmful,
    }


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as `saegis eval` reads them."""
    write_lines(
        path,
        (
            {"prompt": each.text, "language": each.language, "harmful": each.kind == "harmful"}
            for each in prompts
        ),
    )


def write_words(path: Path) -> None:
    """Write the word lists as `saegis eval` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(word_lists(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
