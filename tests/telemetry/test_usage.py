"""How use is kept over time and on disk, against sums over all that was ever added."""

import logging
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import stats

from saegis_server.engine.counts import Used
from saegis_server.telemetry.usage import FINEST_SECONDS, SHARE, Counted, History, UsageBook, change
from saegis_server.telemetry.usage_files import MOST_TOKENS, usage_file

FEATURES = 7
DIGEST = "ab" * 32
COUNTED = Counted("polyglot", DIGEST, FEATURES)


def used(seed: int, tokens: int = 40, now: float = 0.0) -> Used:
    """What may have been counted in a while."""
    chance = np.random.default_rng(seed)
    fired = chance.integers(0, tokens, (2, FEATURES))
    largest = chance.random((2, FEATURES), np.float32) * (fired > 0)
    return Used(np.full(2, tokens), fired, fired / 2.0, largest, np.where(fired > 0, now, 0.0))


def book(folder: Path | None, *given: Used, counted: Counted = COUNTED) -> UsageBook:
    """A book that takes what is given, one by one, and then nothing."""
    left = list(given)
    return UsageBook(lambda: {counted.sae: left.pop(0)} if left else {}, (counted,), 16, folder)


def test_every_window_is_the_sum_of_what_was_added_in_it() -> None:
    """A day in steps of some seconds: nothing is lost, windows begin at most a quarter early, and there are
    few stretches."""
    chance, history, now = np.random.default_rng(1), History(FEATURES, 0.0), 0.0
    added: list[tuple[float, Used]] = []
    while now < 86_400.0:
        now += float(chance.integers(1, 90))
        part = used(len(added), now=now)
        history.add(part, now)
        added.append((now, part))
    assert len(history.known.stretches) < 60
    for seconds in (30.0, 300.0, 3600.0, 43_200.0, math.inf):
        period = history.since(now - seconds)
        inside = [part for at, part in added if at > period.start]
        whole = sum(inside, Used.nothing(FEATURES))
        assert period.used.tokens.tolist() == whole.tokens.tolist()
        assert period.used.fired.tolist() == whole.fired.tolist()
        assert period.used.total == pytest.approx(whole.total, rel=1e-5)
        assert (period.used.largest == whole.largest).all()
        assert (period.used.last[whole.fired > 0] == added[-1][0]).mean() > 0.5
        if math.isfinite(seconds):
            longest = max(SHARE * seconds, FINEST_SECONDS + 90.0)
            assert now - seconds - longest <= period.start <= now - seconds
            before = history.before(period)
            assert before is not None
            assert before.end == period.start
            others = [part for at, part in added if before.start < at <= before.end]
            assert before.used.fired.tolist() == sum(others, Used.nothing(FEATURES)).fired.tolist()


def test_what_comes_after_a_cut_is_told_apart_however_soon_it_comes() -> None:
    before, after, more = (used(seed) for seed in range(3))
    kept = book(None, before, after, more)
    known, _ = kept.period("polyglot", cut=True)
    assert known.used.fired.tolist() == before.fired.tolist()
    for _ in range(2):  # what comes later joins what came after the cut
        kept.refresh()
    since, earlier = kept.period("polyglot", time.time() - known.end)
    assert since.used.fired.tolist() == (after.fired + more.fired).tolist()
    assert earlier is None or earlier.used.fired.tolist() == before.fired.tolist()
    whole, _ = kept.period("polyglot")
    assert whole.used.tokens.tolist() == [120, 120]


def test_nothing_is_known_of_the_time_before_the_first_count() -> None:
    history = History(FEATURES, 100.0)
    history.add(Used.nothing(FEATURES), 110.0)
    assert not history.known.stretches
    assert history.since(0.0).used.tokens.tolist() == [0, 0]
    history.add(used(1), 120.0)
    period = history.since(-math.inf)
    assert (period.start, period.end) == (110.0, 120.0)
    assert history.before(period) is None


def test_stretches_whose_counts_would_not_fit_are_not_joined() -> None:
    history, half = History(FEATURES, 0.0), used(1, MOST_TOKENS // 4)
    for hour in range(1, 8):
        history.add(half, 3600.0 * hour)
    assert history.since(-1.0).used.fired.tolist() == (7 * half.fired).tolist()
    assert all(stretch.tokens.sum() < MOST_TOKENS for stretch in history.known.stretches)


def test_a_change_is_its_formula_and_seldom_found_by_chance() -> None:
    fired, before = np.array([30, 0, 5, 1000]), np.array([3, 0, 5, 2000])
    found, z = change(fired, 2000, before, 4000), float(stats.norm.ppf(1 - 0.05 / 8))
    for a, b, ratio, sure in zip(fired, before, *found, strict=True):
        expected = math.log((a + 0.5) / 2001) - math.log((b + 0.5) / 4001)
        deviation = math.sqrt(1 / (a + 0.5) - 1 / 2001 + 1 / (b + 0.5) - 1 / 4001)
        assert ratio == pytest.approx(expected)
        bound = math.copysign(max(0.0, abs(expected) - z * deviation), expected)
        assert sure == pytest.approx(bound)
    assert found.sure[0] > 0.5
    assert found.sure[1:].tolist() == [0.0, 0.0, 0.0]
    chance, wrong = np.random.default_rng(2), 0
    rates = chance.random(1000) * 0.2
    for _ in range(100):
        one, other = chance.binomial(3000, rates), chance.binomial(5000, rates)
        wrong += bool(change(one, 3000, other, 5000).sure.any())
    assert wrong <= 10  # of a hundred comparisons of a thousand features that have not changed


def test_what_is_known_survives_a_restart(tmp_path: Path) -> None:
    first = book(tmp_path, used(1, now=5.0))
    first.refresh()
    first.close()
    again = book(tmp_path, used(2))
    try:
        again.refresh()
        period, _ = again.period("polyglot")
        whole = used(1) + used(2)
        assert period.used.fired.tolist() == whole.fired.tolist()
        assert period.used.total == pytest.approx(whole.total)
        assert (period.used.last[used(1).fired > 0] == 5.0).all()
    finally:
        again.close()


def test_a_folder_is_one_servers(tmp_path: Path) -> None:
    first = book(tmp_path)
    with pytest.raises(ValueError, match="another server keeps its counts in"):
        book(tmp_path)
    first.close()
    book(tmp_path).close()


def test_an_sae_with_other_weights_has_a_file_of_its_own(tmp_path: Path) -> None:
    for digest in ("ab" * 32, "cd" * 32):
        each = book(tmp_path, used(1), counted=Counted("polyglot", digest, FEATURES))
        each.refresh()
        assert each.period("polyglot")[0].used.fired.tolist() == used(1).fired.tolist()
        each.close()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("change_to", "said"),
    [
        ({"format": "x"}, "is no file of the format saegis-usage/1"),
        ({"digest": "cd" * 32}, "is of polyglot with the digest cdcdcdcdcdcdcdcd, not of polyglot with abab"),
        ({"times": "[[2.0, 1.0]]"}, "its stretches of time are not in order"),
        ({"times": "x"}, "cannot be read"),
        ({"fired": np.zeros((1, 2, 6), np.uint32)}, r"fired is uint32 \[1, 2, 6\], not uint32 \[1, 2, 7\]"),
        ({"fired": np.full((1, 2, 7), 41, np.uint32)}, "features fired at more tokens than there can"),
        ({"total": np.full((1, 2, 7), np.nan, np.float32)}, "total holds numbers that are negative or not"),
        ({}, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_set_aside(
    tmp_path: Path, change_to: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = book(tmp_path, used(1))
    first.refresh()
    first.close()
    path, metadata = usage_file(tmp_path, "polyglot", DIGEST), {"format": "saegis-usage/1", "sae": "polyglot"}
    metadata |= {"digest": DIGEST, "times": "[[1.0, 2.0]]"}
    arrays = load_file(path)
    for name, value in change_to.items():
        if isinstance(value, str):
            metadata[name] = value
        else:
            arrays[name] = np.asarray(value)
    save_file(arrays, path, metadata)
    if not change_to:
        path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        again = book(tmp_path)
    assert again.period("polyglot")[0].used.tokens.tolist() == [0, 0]
    again.close()
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == [f"{path.name}.set-aside"]
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert str(path) in record.message
    assert re.search(said, record.message)
