"""Jobs: one piece at a time, the oldest first, and each future hears how its job ended."""

from collections.abc import Callable

import pytest

from saegis_server.engine.torch.jobs import Job, Jobs


def at_once(work: Callable[[], object]) -> Job[object]:
    """A job of a single piece."""
    yield from ()
    return work()


def counting(name: str, pieces: int, done: list[str]) -> Job[str]:
    """A job that notes its pieces."""
    for piece in range(pieces):
        if piece > 0:
            yield
        done.append(f"{name}{piece}")
    return name


def test_the_oldest_is_finished_first_one_piece_at_a_time() -> None:
    jobs, done = Jobs(), list[str]()
    first, second = jobs.add(counting("a", 2, done)), jobs.add(counting("b", 1, done))
    steps = []
    while jobs:
        jobs.advance()
        steps.append((list(done), first.done(), second.done()))
    assert steps == [
        (["a0"], False, False),
        (["a0", "a1"], True, False),
        (["a0", "a1", "b0"], True, True),
    ]
    assert (first.result(0), second.result(0)) == ("a", "b")
    jobs.advance()


def test_a_job_that_fails_fails_alone() -> None:
    jobs, done = Jobs(), list[str]()
    broken, other = jobs.add(at_once(lambda: 1 // 0)), jobs.add(counting("b", 1, done))
    jobs.advance()
    jobs.advance()
    with pytest.raises(ZeroDivisionError):
        broken.result(0)
    assert other.result(0) == "b"


@pytest.mark.parametrize("pieces_before", [0, 1])
def test_a_cancelled_job_takes_no_piece_more(pieces_before: int) -> None:
    jobs, done = Jobs(), list[str]()
    gone, other = jobs.add(counting("a", 3, done)), jobs.add(counting("b", 1, done))
    for _ in range(pieces_before):
        jobs.advance()
    assert gone.cancel()
    jobs.advance()
    assert other.result(0) == "b"
    assert done == ["a0"] * pieces_before + ["b0"]
    assert len(jobs) == 0


def test_cancelled_during_its_last_piece() -> None:
    jobs = Jobs()
    gone = jobs.add(at_once(lambda: gone.cancel()))
    broken = jobs.add(at_once(lambda: broken.cancel() and 1 // 0))
    jobs.advance()
    jobs.advance()
    assert gone.cancelled()
    assert broken.cancelled()
    assert not jobs


def test_failing_all_ends_them_where_they_are() -> None:
    jobs, done = Jobs(), list[str]()
    closed = []

    def tidy() -> Job[None]:
        try:
            yield
        finally:
            closed.append(True)

    begun, waiting, gone = jobs.add(tidy()), jobs.add(counting("b", 1, done)), jobs.add(tidy())
    jobs.advance()
    gone.cancel()
    jobs.fail(RuntimeError("no more"))
    for future in (begun, waiting):
        with pytest.raises(RuntimeError, match="no more"):
            future.result(0)
    assert (done, closed, len(jobs)) == ([], [True], 0)
