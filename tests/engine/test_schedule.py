"""The schedule: thousands of random moves against a simulation of what every slot holds."""

import random
from collections import deque

import pytest

from saegis_server.engine.admission import AdmittedProgram
from saegis_server.engine.api import UNGUARDED, GenerationRequest
from saegis_server.engine.torch.schedule import Schedule
from saegis_server.engine.torch.sequence import Running, Sequence
from saegis_server.engine.torch.text import TextStream
from saegis_server.steering.program import UNSTEERED
from tests.engine import tiny

SLOTS = 5
NOTHING = AdmittedProgram(UNSTEERED, UNGUARDED, {}, "")
TEXT = TextStream(tiny.tokenizer(), ())


class Simulation:
    """A schedule and, for each slot, the (sequence, position) pairs that a cache would hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.held: list[list[tuple[int, int]]] = [[] for _ in range(SLOTS)]
        self.schedule = Schedule(SLOTS, self._move)
        self.waiting: deque[Sequence] = deque()
        self.sequences: list[Sequence] = []

    def _move(self, source: int, target: int, length: int) -> None:
        assert target < source
        self.held[target] = self.held[source][:length]

    def submit(self) -> None:
        prompt = tuple(range(self.random.randint(1, 6)))
        running = Running(GenerationRequest(str(len(self.sequences)), prompt), NOTHING, 0, lambda _: None)
        sequence = Sequence(running, len(self.sequences), frozenset(), frozenset(), 99, TEXT)
        self.sequences.append(sequence)
        self.waiting.append(sequence)
        self.schedule.waiting.append(sequence)

    def read(self) -> None:
        """Read a chunk of the first prompt, as the engine does."""
        begun, full = self.schedule.reading, len(self.schedule.running) == SLOTS
        sequence = self.schedule.admit()
        if begun is not None:
            assert sequence is begun
        elif full or not self.waiting:
            assert sequence is None
        else:
            assert sequence is self.waiting.popleft(), "first come, first served"
            self.held[sequence.slot] = []
        if sequence is not None:
            self._hold(sequence, min(2, len(sequence.prompt) - sequence.read))
            sequence.read = len(self.held[sequence.slot])
            if sequence.read == len(sequence.prompt):
                self.schedule.start_running()
                sequence.generated = 1

    def decode(self) -> None:
        for sequence in self.schedule.running:
            self._hold(sequence, 1)
            sequence.generated += 1

    def remove(self) -> None:
        if everyone := list(self.schedule.every()):
            sequence = self.random.choice(everyone)
            waited = sequence.slot < 0
            if waited:
                self.waiting.remove(sequence)
            empty = self.schedule.remove(sequence)
            assert sequence.slot == -1
            assert empty == (None if waited else len(list(self.schedule.in_slots())))

    def _hold(self, sequence: Sequence, count: int) -> None:
        held = self.held[sequence.slot]
        held += [(sequence.index, len(held) + more) for more in range(count)]

    def check(self) -> None:
        self.schedule.check()
        assert list(self.schedule.waiting) == list(self.waiting)
        for sequence in self.schedule.in_slots():
            expected = [(sequence.index, position) for position in range(sequence.length)]
            assert self.held[sequence.slot] == expected
        assert self.schedule.used_tokens == sum(one.length for one in self.schedule.in_slots())
        assert self.schedule.idle == (not list(self.schedule.every()))


@pytest.mark.parametrize("seed", range(20))
def test_the_books_are_kept_and_every_slot_holds_its_sequence(seed: int) -> None:
    simulation = Simulation(seed)
    actions = (simulation.submit, simulation.read, simulation.read, simulation.decode, simulation.remove)
    full = 0
    for _ in range(400):
        simulation.random.choices(actions, weights=(4, 5, 4, 3, 1 + seed % 4))[0]()
        simulation.check()
        full += len(simulation.schedule.running) == SLOTS
    assert full or seed % 4 == 3
    while not simulation.schedule.idle:
        simulation.remove()
        simulation.check()


def test_check_tells_of_a_gap_and_of_a_waiting_sequence_with_a_slot() -> None:
    simulation = Simulation(0)
    for _ in range(2):
        simulation.submit()
        while simulation.waiting or simulation.schedule.reading:
            simulation.read()
    simulation.schedule.running[1].slot = 3
    with pytest.raises(RuntimeError, match=r"slots \[0, 3\]"):
        simulation.schedule.check()
    simulation.schedule.running[1].slot = 1
    simulation.submit()
    next(iter(simulation.schedule.waiting)).slot = 2
    with pytest.raises(RuntimeError, match="waiting"):
        simulation.schedule.check()


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def submit(schedule: Schedule, tenant: str, count: int, principal: str = "") -> list[Sequence]:
    request = GenerationRequest(tenant, (1,), tenant=tenant, principal=principal)
    running = Running(request, NOTHING, 0, lambda _: None)
    made = [Sequence(running, index, frozenset(), frozenset(), 99, TEXT) for index in range(count)]
    schedule.waiting.extend(made)
    return made


def admitted(schedule: Schedule) -> list[str]:
    """Whose sequences get slots now, in their order."""
    found = []
    while (sequence := schedule.admit()) is not None:
        found.append(sequence.tenant)
        schedule.start_running()
    return found


def remove_one(schedule: Schedule, tenant: str) -> None:
    schedule.remove(next(sequence for sequence in schedule.running if sequence.tenant == tenant))


def test_who_has_the_fewest_slots_comes_first_and_no_slot_stays_empty() -> None:
    schedule = Schedule(16, lambda source, target, length: None)
    submit(schedule, "flood", 5 * 64)
    assert admitted(schedule) == ["flood"] * 16, "alone it has everything"
    quiet = submit(schedule, "quiet", 2)
    remove_one(schedule, "flood")
    assert admitted(schedule) == ["quiet"], "the next slot, not the one after 300 others"
    remove_one(schedule, "flood")
    assert admitted(schedule) == ["quiet"]
    remove_one(schedule, "flood")
    assert admitted(schedule) == ["flood"]
    assert all(sequence.slot >= 0 for sequence in quiet)
    schedule.check()


def test_shares_are_equal_where_all_want_more() -> None:
    schedule = Schedule(12, lambda source, target, length: None)
    for tenant in "abc":
        submit(schedule, tenant, 50)
    assert sorted(admitted(schedule)) == sorted("abc" * 4)
    rng = random.Random(0)
    for _ in range(30):
        schedule.remove(rng.choice(schedule.running))
        admitted(schedule)
    held = [sequence.tenant for sequence in schedule.running]
    assert {tenant: held.count(tenant) for tenant in "abc"} == dict.fromkeys("abc", 4)


def test_principals_of_a_tenant_take_turns() -> None:
    schedule = Schedule(4, lambda source, target, length: None)
    submit(schedule, "acme", 5 * 64, "flood")
    assert len(admitted(schedule)) == 4
    submit(schedule, "acme", 2, "quiet")
    got = []
    for _ in range(5):
        schedule.remove(schedule.running[0])
        admitted(schedule)
        got.append(schedule.running[-1].principal)
    assert got[:4] in (["quiet", "flood", "quiet", "flood"], ["flood", "quiet", "flood", "quiet"])
    assert got[4] == "flood"


def test_a_slot_is_kept_for_who_was_here_lately() -> None:
    clock = Clock()
    schedule = Schedule(16, lambda source, target, length: None, clock)
    (visit,) = submit(schedule, "quiet", 1)
    admitted(schedule)
    schedule.remove(visit)
    submit(schedule, "flood", 100)
    assert len(admitted(schedule)) == 15
    submit(schedule, "quiet", 1)
    assert admitted(schedule) == ["quiet"], "it waits for nobody"
    schedule.remove(schedule.running[-1])
    assert admitted(schedule) == []
    clock.now = 61.0
    assert admitted(schedule) == ["flood"], "nothing is kept for long"


@pytest.mark.parametrize(
    ("kept", "seconds", "taken"), [(None, 60.0, 14), (0, 60.0, 16), (5, 60.0, 13), (5, 0.5, 16)]
)
def test_how_much_is_kept_and_for_how_long_are_settings(kept: int | None, seconds: float, taken: int) -> None:
    """Of 16 slots for three who were here a second ago, whatever is kept."""
    clock = Clock()
    schedule = Schedule(16, lambda source, target, length: None, clock, kept, seconds)
    for tenant in "abc":
        (visit,) = submit(schedule, tenant, 1)
        admitted(schedule)
        schedule.remove(visit)
    clock.now = 1.0
    submit(schedule, "flood", 100)
    assert len(admitted(schedule)) == taken
