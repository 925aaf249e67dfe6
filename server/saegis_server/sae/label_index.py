"""The index of labels: those that hold every word of a query, best first, among a million in milliseconds."""

from __future__ import annotations

import re
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from saegis_server.sae.labels import FeatureLabel

#: What a query's word is worth, in hundredths: by the field where it is found, times how well it fits there.
#: Whole numbers, by which a million matches are put in order in a tenth of the time that fractions take.
_IN_LABEL, _IN_SUBJECTS, _IN_LANGUAGES = 10, 8, 6
_WHOLE_WORD, _PREFIX, _INSIDE = 10, 6, 3
_MOST = _IN_LABEL * _WHOLE_WORD
#: How a label as a whole stands to a query, the best first: spelled like it, of the same words, begun by it.
_SPELLED, _SAME_WORDS, _BEGUN, _OTHER = range(4)
#: Above every character of a word, so that texts with a prefix stand before the prefix with this behind it.
_LAST = "\U0010ffff"
_ASCII_BREAKS = {code: " " for code in range(128) if not chr(code).isalnum()}

Numbers = NDArray[np.int64]
Reals = NDArray[np.float64]
Small = NDArray[np.uint8]


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, case-folded, without accents, punctuation and symbols."""
    if text.isascii():
        return tuple(text.lower().translate(_ASCII_BREAKS).split())
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    # Vowel signs have combining class 0 and are letters in many scripts, so they stay; accents do not.
    kept = (character for character in plain if not unicodedata.combining(character))
    return tuple("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in kept).split())


@dataclass(frozen=True, slots=True)
class Matches:
    """The k labels of a set that match a query, best first.

    places: int64 [k], where each stands in the set. scores: float64 [k], above 0 and at most 1: the mean over
    the query's words of what each is worth. tiers: uint8 [k], how each as a whole stands to the query, the
    best first.
    """

    places: Numbers
    scores: Reals
    tiers: Small
    _index: LabelIndex

    def __len__(self) -> int:
        return len(self.places)

    @property
    def standing(self) -> Reals:
        """By what matches of several sets are put in order, less before greater, its rows from the first that
        counts to the last; float64 [4, k]."""
        return np.stack((self.tiers, -self.scores, *self._index.unfit_and_length(self.places)))


class _Field:
    """The words of one field of all labels: for each word, the labels that have it there."""

    def __init__(self, words: Numbers, owners: Numbers, vocabulary: int) -> None:
        """words, owners: int64 [n], a word and the label that has it, which may stand there twice."""
        order = np.argsort(words, kind="stable")
        self._owners = owners[order]
        self._starts = np.searchsorted(words[order], np.arange(vocabulary + 1))

    def between(self, first: int, last: int) -> Numbers:
        """The labels of the words first to last, which is not among them."""
        return self._owners[self._starts[first] : self._starts[last]]

    def of(self, words: Numbers) -> Numbers:
        """The labels of some words."""
        starts, ends = self._starts[words], self._starts[words + 1]
        lengths = ends - starts
        before = np.cumsum(lengths) - lengths
        labels: Numbers = self._owners[np.arange(lengths.sum()) + np.repeat(starts - before, lengths)]
        return labels


class LabelIndex:
    """An index of labels, made once. Safe to use from several threads."""

    def __init__(self, labels: Iterable[FeatureLabel]) -> None:
        self._labels = tuple(labels)
        label_words = [words_of(label.label) for label in self._labels]
        several = cache(lambda texts: words_of(" ".join(texts)))
        fields = (
            (_IN_LABEL, label_words),
            (_IN_SUBJECTS, [several(label.subjects) for label in self._labels]),
            (_IN_LANGUAGES, [several(label.languages) for label in self._labels]),
        )
        self._words = sorted({word for _, rows in fields for row in rows for word in row})
        self._numbers = {word: number for number, word in enumerate(self._words)}
        self._fields = [(worth, self._field(rows)) for worth, rows in fields]
        lengths = np.fromiter(map(len, self._words), np.int64, len(self._words)) + 1
        self._joined, self._starts = "\n".join(self._words), np.cumsum(lengths) - lengths
        texts = [" ".join(words) for words in label_words]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        self._texts, self._order = [texts[place] for place in order], np.array(order, np.int64)
        self._unfit = -np.fromiter((label.fit for label in self._labels), np.float64, len(texts))
        self._lengths = np.fromiter(map(len, texts), np.float64, len(texts))
        #: All labels in the order of those that match a query equally well.
        self._equals = np.lexsort((self._lengths, self._unfit))

    def _field(self, rows: Sequence[tuple[str, ...]]) -> _Field:
        words, counts = array("q"), array("q")
        for row in rows:
            words.extend([self._numbers[word] for word in row])
            counts.append(len(row))
        owners = np.repeat(np.arange(len(rows)), np.array(counts, np.int64))
        return _Field(np.array(words, np.int64), owners, len(self._words))

    def find(self, query: str) -> Matches:
        """The labels that hold every word of `query`, whatever its case and accents, best first.

        A word matches as a whole, as a beginning or inside, in the label, the subjects and the languages.
        Labels that are the query come first, then those that begin with it, then by score; of equal ones
        those that fit their features best, then the shorter ones, then the earlier. None for a query without
        a word.
        """
        words, total = words_of(query), np.zeros(len(self._labels), np.uint32)
        asked, holds = tuple(dict.fromkeys(words)), np.full(len(self._labels), bool(words))
        for word in asked:
            worth = self._worth(word)
            total += worth
            holds &= worth > 0
        places, most = self._equals[holds[self._equals]], max(1, _MOST * len(asked))
        tiers, total = self._tiers(query, words)[places], total[places]
        keys = tiers * np.uint32(most) + (most - total)
        # Of 16 bits, where they suffice: those numpy sorts by their digits.
        narrow = (_OTHER + 1) * most < 2**16
        best = np.argsort(keys.astype(np.uint16) if narrow else keys, kind="stable")
        return Matches(places[best], (total[best] / most).round(9), tiers[best], self)

    def unfit_and_length(self, places: Numbers) -> tuple[Reals, Reals]:
        """How well some labels fit their features, negated, and how long they are; float64 [k] each."""
        return self._unfit[places], self._lengths[places]

    def _worth(self, word: str) -> Small:
        """What a word is worth in each label, in hundredths, 0 where it is not found."""
        begun = self._begun_by(self._words, word)
        whole = begun[0], begun[0] + (word in self._numbers)
        # Found as text, words being parted by a line break; one that is found twice counts once.
        found = np.array([match.start() for match in re.finditer(re.escape(word), self._joined)], np.int64)
        inside = np.unique(np.searchsorted(self._starts, found, side="right") - 1)
        hits = [
            (worth * fit, labels)
            for worth, field in self._fields
            for fit, labels in (
                (_WHOLE_WORD, field.between(*whole)),
                (_PREFIX, field.between(*begun)),
                (_INSIDE, field.of(inside)),
            )
        ]
        best = np.zeros(len(self._labels), np.uint8)
        for worth, labels in sorted(hits, key=lambda hit: hit[0]):
            best[labels] = worth
        return best

    def _tiers(self, query: str, words: Sequence[str]) -> Small:
        """How each label as a whole stands to the query."""
        tiers = np.full(len(self._labels), _OTHER, np.uint8)
        text = " ".join(words)
        first, last = self._begun_by(self._texts, text)
        tiers[self._order[first:last]] = _BEGUN
        same = self._order[first : bisect_left(self._texts, text + "\0", first, last)]
        tiers[same] = _SAME_WORDS
        spelled = query.strip().casefold()
        alike = [place for place in same.tolist() if self._labels[place].label.casefold() == spelled]
        tiers[alike] = _SPELLED
        return tiers

    @staticmethod
    def _begun_by(texts: Sequence[str], prefix: str) -> tuple[int, int]:
        """Where the texts that begin with a prefix stand among sorted ones: from the first to the last,
        which is not among them."""
        return bisect_left(texts, prefix), bisect_left(texts, prefix + _LAST)
