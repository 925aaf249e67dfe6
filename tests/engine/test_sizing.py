"""Sizing: what slots take, exactly, and how many of them go into a budget."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.engine.torch.sizing import (
    FEWEST_SLOTS,
    LEAST_LENGTH,
    USUAL_SLOTS,
    Needs,
    Size,
    fit,
    needs_of,
    tensors_in,
)
from saegis_server.engine.torch.slots import Slots
from saegis_server.steering.table import Capacity
from tests.engine import tiny

GIB = 2**30
#: Llama-3.1-8B in bfloat16, with a megabyte of rows for each slot.
LLAMA = Needs(token=128 * 1024, slot=2**20, fixed=2**20)
needs_drawn = st.builds(
    Needs, token=st.integers(1, 2**21), slot=st.integers(0, 2**24), fixed=st.integers(0, 2**24)
)
wished = st.none() | st.integers(FEWEST_SLOTS, 1024)
contexts = st.integers(2, 2**20)


def test_needs_are_what_slots_really_take() -> None:
    sites = tuple(tiny.SITES)
    capacity = Capacity(edits=5, bans=3, watches=70)
    for family in ("llama", "gemma2", "gpt2"):
        model = tiny.model(family)
        needs = needs_of(model, sites, capacity)
        for count, length in ((2, 64), (7, 33)):
            slots = Slots(model, sites, count, length, capacity)
            held = sum(tensor.nbytes for tensor in {id(each): each for each in tensors_in(slots)}.values())
            apart = [slots.cache.apart(length) for _ in range(2)]
            held += sum(tensor.nbytes for tensor in tensors_in(apart))
            assert needs.of(count, length) == held


@given(needs_drawn, st.integers(0, 2**44), contexts, wished, st.data())
@settings(deadline=None)
def test_what_fits_fits_and_is_as_asked_for(
    needs: Needs, budget: int, context: int, count: int | None, data: st.DataObject
) -> None:
    length = data.draw(st.none() | st.integers(2, context))
    try:
        found = fit(needs, budget, context, count, length)
    except ValueError:
        least = Size(count or FEWEST_SLOTS, length or min(context, LEAST_LENGTH))
        assert needs.of(least.count, least.length) > budget
        return
    assert needs.of(found.count, found.length) <= budget
    assert found.count == count or (count is None and FEWEST_SLOTS <= found.count <= USUAL_SLOTS)
    assert found.length == length or (
        length is None and min(context, LEAST_LENGTH) <= found.length <= context
    )
    whole = needs.of(count or USUAL_SLOTS, length or context) <= budget
    assert whole == (found == Size(count or USUAL_SLOTS, length or context))


@given(needs_drawn, st.integers(0, 2**44), st.integers(FEWEST_SLOTS, 1024), contexts)
def test_the_longest_and_the_most_are_exact(needs: Needs, budget: int, count: int, length: int) -> None:
    longest, most = needs.longest(count, budget), needs.most(length, budget)
    if longest > 0:
        assert needs.of(count, longest) <= budget
    if most > 0:
        assert needs.of(most, length) <= budget
    assert needs.of(count, max(longest, 0) + 1) > budget
    assert needs.of(max(most, 0) + 1, length) > budget


@given(needs_drawn, st.integers(0, 2**40), st.integers(1, 2**30), contexts, wished)
def test_more_memory_never_makes_less_of_anything_wished(
    needs: Needs, budget: int, more: int, context: int, count: int | None
) -> None:
    try:
        before = fit(needs, budget, context, count)
    except ValueError:
        return
    after = fit(needs, budget + more, context, count)
    assert after.count >= before.count
    assert after.count > before.count or after.length >= before.length


def test_a_long_context_is_lessened_before_the_slots_are() -> None:
    assert fit(LLAMA, 320 * GIB, 131072) == Size(16, 131072)
    assert fit(LLAMA, 64 * GIB, 131072) == Size(16, 26624)
    assert fit(LLAMA, 2 * GIB, 131072) == Size(4, 2304)
    assert fit(LLAMA, 2 * GIB, 131072, count=16) == Size(16, 832)
    assert fit(LLAMA, GIB // 2, 131072) == Size(2, 768)
    assert fit(LLAMA, 96 * GIB, 131072, length=131072) == Size(2, 131072)
    assert fit(LLAMA, GIB, 1024) == Size(4, 1024)


@pytest.mark.parametrize(
    ("count", "length", "words"),
    [
        (
            64,
            131072,
            "max_num_seqs 64 and max_model_len 131072: 64 sequences of 131072 tokens take 1.0 TiB, and "
            "4.0 GiB may be taken; 64 sequences of 480 tokens or 12 sequences of 2048 tokens would fit",
        ),
        (
            None,
            131072,
            "max_model_len 131072: even 2 sequences of 131072 tokens take 80.0 GiB, and 4.0 GiB may be "
            "taken; 12 sequences of 2048 tokens would fit",
        ),
        (1024, None, "max_num_seqs 1024: even 1024 sequences of 64 tokens take"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers_and_what_would(
    count: int | None, length: int | None, words: str
) -> None:
    with pytest.raises(ValueError, match="may be taken") as refused:
        fit(LLAMA, 4 * GIB, 131072, count, length)
    assert words in str(refused.value)


def test_where_nothing_fits_it_says_so() -> None:
    with pytest.raises(ValueError, match=r"even 2 sequences of 64 tokens take .* nothing fits: give more"):
        fit(LLAMA, 2**20, 131072)
