"""Heavy work gives way while requests run, and finds the same."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import saegis
from saegis_server.rpc.server.giving_way import REST, giving_way, must_give_way, paced
from tests.rpc.harness import running


def in_thread(function: Callable[[], Any]) -> Any:
    """What a function returns in a thread of its own, as heavy work runs."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def compute() -> tuple[float, float, bool]:
    """Ten parts of some computing; how long they computed, how long they took, whether it gives way."""
    computed, began = 0.0, time.monotonic()
    for _ in paced(range(10)):
        start = time.thread_time()
        while time.thread_time() - start < 0.005:
            pass
        computed += time.thread_time() - start
    return computed, time.monotonic() - began, must_give_way()


def test_work_rests_between_its_parts_while_requests_run() -> None:
    computed, took, gives_way = in_thread(giving_way(compute, lambda: True, shares_processors=True))
    assert gives_way
    assert took >= (1.0 + REST) * computed


@pytest.mark.parametrize("requests", [True, False])
@pytest.mark.parametrize("shares", [True, False])
def test_it_has_one_processor_while_requests_run_on_them(requests: bool, shares: bool) -> None:
    usual = in_thread(torch.get_num_threads)
    torch.set_num_threads(2)
    try:
        had = in_thread(giving_way(torch.get_num_threads, lambda: requests, shares))
        assert had == (1 if requests and shares else 2)
        assert in_thread(torch.get_num_threads) == 2, "as many as before"
    finally:
        torch.set_num_threads(usual)


def test_a_text_is_read_the_same_beside_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """In other parts, one after the other, with rests."""
    text = [8 + place % 200 for place in range(300)]
    sizes: list[int] = []

    def noted() -> bool:
        sizes.append(int(must_give_way()))
        return bool(sizes[-1])

    monkeypatch.setattr("saegis_server.rpc.services.feature_reading.must_give_way", noted)
    with running() as server, saegis.Client(server.target) as client:
        quiet = client.inspect(token_ids=text, sae="first", top_k=4)
        assert not any(sizes)
        with client.stream("the river", max_tokens=1500, temperature=0.0, ignore_eos=True) as pieces:
            next(iter(pieces))
            beside = client.inspect(token_ids=text, sae="first", top_k=4)
        assert any(sizes)
    assert len(beside.tokens) == len(quiet.tokens) == len(text)
    for one, other in zip(beside.tokens, quiet.tokens, strict=True):
        found = {each.index: each.activation for each in other.features}
        assert {each.index: each.activation for each in one.features} == pytest.approx(found, rel=1e-4)
