"""Chance: its choices fall as often as their surprise says."""

import math
from collections import Counter
from collections.abc import Callable, Hashable

import pytest

from saegis_lab.polyglot.corpus import Chance

DRAWS: dict[str, Callable[[Chance], Hashable]] = {
    "pick": lambda chance: chance.pick("abc"),
    "number": lambda chance: chance.number(2, 5),
    "weighted": lambda chance: chance.weighted("ab", (3.0, 1.0)),
    "happens": lambda chance: chance.happens(0.2),
    "sample": lambda chance: tuple(chance.sample("abcd", 2)),
    "two": lambda chance: (chance.happens(0.5), chance.pick("xyz")),
}


@pytest.mark.parametrize("name", DRAWS)
def test_surprise_is_the_logarithm_of_the_frequency(name: str) -> None:
    count = 20_000
    seen: Counter[Hashable] = Counter()
    surprises: dict[Hashable, float] = {}
    for index in range(count):
        chance = Chance(f"{name}:{index}")
        result = DRAWS[name](chance)
        seen[result] += 1
        surprises[result] = chance.surprise
    assert sum(math.exp(-surprise) for surprise in surprises.values()) == pytest.approx(1.0)
    for result, surprise in surprises.items():
        expected = count * math.exp(-surprise)
        assert abs(seen[result] - expected) < 5 * math.sqrt(expected)


def test_the_same_seed_chooses_the_same_and_certainty_surprises_nobody() -> None:
    one, two = Chance("seed"), Chance("seed")
    assert [one.number(0, 99) for _ in range(9)] == [two.number(0, 99) for _ in range(9)]
    sure = Chance("sure")
    assert sure.happens(1.0)
    assert not sure.happens(0.0)
    assert sure.surprise == 0.0
