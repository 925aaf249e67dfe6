"""The benchmark of vLLM: every comparison is made, on a small model, with all engines in this process.

Without vLLM the plain core is in its place, and another engine in that of vLLM alone.
"""

from collections.abc import Callable, Mapping

import pytest

from saegis_lab.bench import loads, plain_vllm, run, sides, vllm
from saegis_lab.bench.sides import FirstTokens, Load, Measured, SteeredVllm
from saegis_lab.bench.subjects import Subject, _subject
from saegis_server.engine.api import Progress, SamplingParams
from saegis_server.engine.sites import widths_of
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.torch.step import Step
from saegis_server.engine.vllm.readings import APART
from saegis_server.engine.vllm.served import Served
from saegis_server.engine.vllm.steered import Steered
from saegis_server.steering.admitted import Room
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.in_vllm import HAS_VLLM
from tests.engine.plain_core import PlainCore


def small() -> Subject:
    """A model whose heads vLLM takes."""
    return _subject("small", tiny.model(head_dim=32))


class Here:
    """A side in this process."""

    def __init__(self, make: Callable[[], Measured]) -> None:
        self._made = make()

    def tokens_per_second(self, load: Load) -> float:
        return self._made.tokens_per_second(load)

    def first_tokens(self, different: int) -> FirstTokens:
        assert isinstance(self._made, SteeredVllm)
        return self._made.first_tokens(different)

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        """It stays until the process ends."""


class Bare:
    """Another engine in plain vLLM's place, where there is none."""

    def __init__(self, compiled: bool = False) -> None:
        self._engine = sides.Embedded()

    def tokens_per_second(self, load: Load) -> float:
        assert not load.different
        return self._engine.tokens_per_second(load)


def on_plain_core(
    loaded: LoadedModel,
    norms: Mapping[Site, frozenset[Norm]],
    wishes: Wishes,
    capacity: Capacity,
    progress: Progress,
    compiled: bool,
) -> Served:
    """The model served with the plain core in vLLM's place."""
    assert wishes.count is not None
    assert wishes.length is not None
    model, widths = loaded.model, widths_of(loaded.model)
    steered = Steered(norms, widths, wishes.count + APART, capacity)
    room = Room(tuple(norms), widths, capacity, model.dtype, frozenset())
    core = PlainCore(model, steered, 512)
    return Served(core, wishes.length, tiny.VOCABULARY, room, model.dtype, None, None, wishes.count)


@pytest.fixture
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few requests, which write few tokens."""
    for module in (sides, plain_vllm):
        monkeypatch.setattr(module, "random_llama", small)
    for module in (loads, sides, plain_vllm):
        monkeypatch.setattr(module, "NEW_TOKENS", 3)
    greedy = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    monkeypatch.setattr(loads, "_GREEDY", greedy)
    for module in (run, sides, plain_vllm, vllm):
        monkeypatch.setattr(module, "MANY", 4)
    for module in (sides, vllm):
        monkeypatch.setattr(module, "CONCURRENT", 2)
        monkeypatch.setattr(module, "SHARED_TOKENS", 100)
    monkeypatch.setattr(sides, "LENGTH", 120)
    monkeypatch.setattr(vllm, "AT_ONCE", (1, 4))
    monkeypatch.setattr(vllm, "DIFFERENT", (1, 4))
    monkeypatch.setattr(vllm, "VLLM_WIDTHS", (2048, 4096))
    monkeypatch.setattr(vllm, "Side", Here)
    if HAS_VLLM:
        # What is compiled is for other tests.
        monkeypatch.setattr(vllm, "Plain", lambda compiled=False: sides.Plain())
        monkeypatch.setattr(vllm, "SteeredVllm", lambda compiled=False: sides.SteeredVllm())
    else:
        monkeypatch.setattr(vllm, "Plain", Bare)
        monkeypatch.setattr(sides, "serve_in_vllm", on_plain_core)
    warm = loads.warm_step

    def eager(subject: Subject, sites: tuple[Site, ...], concurrency: int, progress: Progress) -> Step:
        return warm(subject, sites, concurrency, progress, compiled=False, packed=False)

    monkeypatch.setattr(sides, "warm_step", eager)
    sides._asked.cache_clear()


def test_every_comparison_is_made(smaller: None) -> None:
    stages: list[str] = []
    made = vllm.beside_vllm("small", 1, lambda what, done, of: stages.append(what))
    assert len(made) == 6 + 2 + 2 + 2 * 3 + 1
    assert all(each.ours > 0.0 and each.theirs > 0.0 for each in made)
    assert {each.bar for each in made} == {"≥ 0.97", "≥ 0.95", "flat", ""}
    *_, first = made
    assert first.what == "first token of 2 of one program, 100 tokens shared: 96 cached"
    assert first.against == "2 programs: 0 of 216 cached"
    assert "the embedded engine beside vLLM" in stages


@pytest.mark.skipif(not HAS_VLLM, reason="there is no vLLM")
def test_plain_vllm_steers_nothing(smaller: None) -> None:
    plain = sides.Plain()
    assert plain.tokens_per_second(Load(2)) > 0.0
    with pytest.raises(ValueError, match="steers nothing"):
        plain.tokens_per_second(Load(2, 1))


@pytest.mark.slow
def test_a_side_is_measured_in_its_own_process() -> None:
    with sides.Side(_Counted) as side:
        assert [side.tokens_per_second(Load(count)) for count in (3, 4)] == [3.0, 7.0]
        with pytest.raises(TypeError, match="first tokens"):
            side.first_tokens(1)
        with pytest.raises(ValueError, match="so few"):
            side.tokens_per_second(Load(0))


class _Counted:
    """Counts what it was asked for."""

    def __init__(self) -> None:
        self.requests = 0

    def tokens_per_second(self, load: Load) -> float:
        if load.requests == 0:
            raise ValueError("so few")
        self.requests += load.requests
        return float(self.requests)
