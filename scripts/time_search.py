"""Time the search over the labels of a large SAE: made-up labels, words as frequent as a language's are.

python scripts/time_search.py [LABELS]     by default a million; needs some 2 GB
"""

import random
import sys
import time
from collections.abc import Iterator
from itertools import accumulate

from saegis_server.sae.labels import FeatureLabel, Labels

VOCABULARY, LETTERS = 100_000, "abcdefghijklmnopqrstuvwxyz"


def made_up(count: int, chance: random.Random, words: list[str]) -> Iterator[FeatureLabel]:
    """Labels of two to nine words; the n-th word of the vocabulary stands there 1/n as often as the first."""
    frequencies = list(accumulate(1.0 / (place + 1) for place in range(len(words))))

    def some(least: int, most: int) -> str:
        return " ".join(chance.choices(words, cum_weights=frequencies, k=chance.randint(least, most)))

    for feature in range(count):
        figures = chance.random(), {"en": chance.random()}
        yield FeatureLabel(feature, some(2, 9), (some(1, 1),), ("en", "de"), *figures, density=0.01)


def main() -> None:
    """Make the labels, and print the processor's time for the index and for each of several queries."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    chance = random.Random(0)
    words = ["".join(chance.choices(LETTERS, k=chance.randint(3, 10))) for _ in range(VOCABULARY)]
    labels = Labels(made_up(count, chance, words))
    began = time.process_time()
    labels.ready()
    print(f"{count:,} labels: the index, made once, takes {time.process_time() - began:.1f} s")
    queries = {
        "a label": labels.at(count // 2).label,
        "a rare word": words[50_000],
        "a word of a hundredth": words[8],
        "two words": f"{words[5]} {words[9]}",
        "two letters": "xq",
        "the most frequent word": words[0],
        "a letter of nearly all": "e",
    }
    for name, query in queries.items():
        began = time.process_time()
        found = labels.find(query)
        print(f"{name}: {len(found):,} found in {1000.0 * (time.process_time() - began):.0f} ms")


if __name__ == "__main__":
    main()
