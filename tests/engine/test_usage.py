"""The use of whole dictionaries, against the loop: whole texts read again, every feature in float64."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from saegis_server.engine.api import FirstToken
from saegis_server.engine.counts import Dictionary, Used
from saegis_server.engine.torch import usage as usage_counting
from saegis_server.engine.torch.build import graphs_compiled
from saegis_server.engine.torch.usage import TOKENS_AT_ONCE, OneOf, UsageCounting
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.steering.program import UNSTEERED, SteeringProgram
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.serving import Answer
from tests.engine.test_activity import FIRST, SECOND, ask, greedy, program
from tests.engine.test_observing import BOS, activations_of
from tests.sae.sae_cases import random_sae
from tests.steering import reference

FEATURES = 40
SAES: dict[Site, SparseAutoencoder] = {
    FIRST: random_sae(Architecture.JUMPRELU, 3, width=tiny.WIDTH, features=FEATURES, name="first"),
    SECOND: random_sae(
        Architecture.GATED, 4, norm=Norm.LAYER_NORM, width=tiny.WIDTH, features=FEATURES + 1, name="second"
    ),
}
CPU = torch.device("cpu")


def counting(every: int = 1) -> UsageCounting:
    """What counts the SAEs' features."""
    dictionaries = [Dictionary(sae.name, site, sae.rows(), sae.norm) for site, sae in SAES.items()]
    return UsageCounting(dictionaries, every, CPU)


def running(usage: UsageCounting, **options: Any) -> tiny.RunningEngine:
    """An engine whose use of features is counted."""
    step = tiny.step(tiny.model(), keeps=usage.sites)
    return tiny.RunningEngine(step, first_token=FirstToken(BOS), usage=usage, **options)


class Loop:
    """What the loop finds in some texts: the features of each token, by phase."""

    def __init__(self) -> None:
        self.found: dict[Site, tuple[list[list[float]], list[list[float]]]] = {
            site: ([], []) for site in SAES
        }
        self.probes = {
            site: [sae.probe(place) for place in range(sae.features)] for site, sae in SAES.items()
        }

    def read(self, asked: SteeringProgram, prompt: Sequence[int], answer: Answer, times: int = 1) -> None:
        """Encode all that was read of a request, but for the model's own first token."""
        first = int(prompt[0] == BOS)
        for site, clean in activations_of(asked, prompt, answer.tokens()[:-1]).items():
            f = [[reference.read(probe, x) for probe in self.probes[site]] for x in clean]
            in_prompt, in_answer = self.found[site]
            in_prompt += f[first : len(prompt)]
            in_answer += f[len(prompt) :] * times

    def agree(self, used: dict[str, Used]) -> int:
        """Compare; returns how often anything fired."""
        total = 0
        for site, sae in SAES.items():
            got = used[sae.name]
            for phase, tokens in enumerate(self.found[site]):
                f = np.array(tokens)
                assert got.tokens[phase] == len(f)
                assert got.fired[phase].tolist() == (f > 0.0).sum(0).tolist()
                assert got.total[phase] == pytest.approx(f.sum(0), rel=1e-4, abs=1e-4)
                assert got.largest[phase] == pytest.approx(f.max(0), rel=1e-4, abs=1e-4)
                assert ((got.last[phase] > 0.0) == (f > 0.0).any(0)).all()
                total += int((f > 0.0).sum())
        return total


def test_every_feature_is_used_where_the_loop_says() -> None:
    """Prompts with and without the model's first token, of several chunks, steered and not, in one batch."""
    prompts = [[BOS, *tiny.prompt_of(1, 20)], tiny.prompt_of(2, 4), [BOS], [BOS, *tiny.prompt_of(3, 33)]]
    programs = [program(1), UNSTEERED, UNSTEERED, program(2)]
    loop, began = Loop(), time.time()
    with running(counting()) as engine:
        answers = [
            ask(engine, prompt, greedy(6 + 3 * number), program=asked)
            for number, (prompt, asked) in enumerate(zip(prompts, programs, strict=True))
        ]
        for answer, asked, prompt in zip(answers, programs, prompts, strict=True):
            loop.read(asked, prompt, answer.wait())
    used = engine.engine.take_usage()
    assert loop.agree(used) > 1000
    for sae in SAES.values():
        last = used[sae.name].last
        assert began - 1.0 <= last[last > 0.0].min() <= last.max() <= time.time()
    assert not any(each.tokens.any() or each.fired.any() for each in engine.engine.take_usage().values())


@pytest.mark.parametrize("every", [1, 4])
def test_what_is_encoded_a_piece_after_the_other_is_as_if_at_once(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five pieces of a dictionary, the last of which may be larger, while further tokens come."""
    prompts = [tiny.prompt_of(seed, 9 + seed) for seed in range(8)]
    found = []
    for features in (8, 4096):
        monkeypatch.setattr(usage_counting, "FEATURES_AT_ONCE", {"cpu": features})
        with running(counting(every)) as engine:
            for prompt in prompts:
                ask(engine, prompt, greedy(40)).wait()
        found.append(engine.engine.take_usage())
    for name, whole in found[1].items():
        assert found[0][name].tokens.tolist() == whole.tokens.tolist()
        assert whole.tokens.sum() >= TOKENS_AT_ONCE
        assert found[0][name].fired.tolist() == whole.fired.tolist()
        assert found[0][name].total == pytest.approx(whole.total, rel=1e-5, abs=1e-5)
        assert found[0][name].largest == pytest.approx(whole.largest, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("features", "sizes"), [(8, [8, 8, 8, 8, 9]), (40, [41]), (41, [41]), (20, [20, 21])]
)
def test_no_piece_is_a_single_feature(
    features: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_counting, "FEATURES_AT_ONCE", {"cpu": features})
    second = counting()._counted[1]
    assert [piece.numbers.shape[2] for piece in second.pieces] == sizes
    assert [piece.read.shape[1] for piece in second.pieces] == sizes


@pytest.mark.slow
def test_nothing_is_compiled_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes next, in pieces of several sizes; and the counts are those of the loop."""
    monkeypatch.setattr(usage_counting, "FEATURES_AT_ONCE", {"cpu": 16})
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3 * TOKENS_AT_ONCE + 5, tiny.WIDTH, generator=generator)
    usage = counting(every=2)
    usage.make(compiled=True)
    usage.warm_up()
    before = graphs_compiled()
    for each in usage._counted:
        for phase in range(2):
            for part in torch.split(x, 50):
                usage._gather(each, phase, part, torch.ones(len(part), dtype=torch.bool))
                usage.advance()
    usage.flush()
    assert graphs_compiled() == before > 0
    for sae, found in zip(SAES.values(), usage.take().values(), strict=True):
        f = sae.encode(x)
        for phase in range(2):
            assert found.tokens[phase] == len(x)
            assert found.fired[phase].tolist() == (f > 0.0).sum(0).tolist()
            assert found.total[phase] == pytest.approx(f.sum(0).numpy(), rel=1e-4, abs=1e-4)


def test_a_prompt_counts_once_and_each_of_its_answers() -> None:
    prompt, loop = tiny.prompt_of(7, 20), Loop()
    with running(counting()) as engine:
        loop.read(UNSTEERED, prompt, ask(engine, prompt, greedy(6, 3)).wait(), times=3)
    loop.agree(engine.engine.take_usage())


def test_nothing_is_lost_between_two_that_take() -> None:
    """What is taken while requests run adds up to what is taken at once after they have."""
    prompts = [tiny.prompt_of(seed, 9 + seed) for seed in range(6)]
    with running(counting()) as engine:
        for prompt in prompts:
            ask(engine, prompt, greedy(12)).wait()
    at_once, parts = engine.engine.take_usage(), []
    with running(counting()) as engine:
        answers = [ask(engine, prompt, greedy(12)) for prompt in prompts]
        while any(len(answer.tokens()) < 12 for answer in answers):
            parts.append(engine.engine.take_usage())
            time.sleep(0.02)
    parts.append(engine.engine.take_usage())
    for name, whole in at_once.items():
        added = sum((part[name] for part in parts), Used.nothing(whole.fired.shape[1]))
        assert added.tokens.tolist() == whole.tokens.tolist()
        assert added.fired.tolist() == whole.fired.tolist()
        assert added.total == pytest.approx(whole.total, rel=1e-5, abs=1e-5)
        assert added.largest == pytest.approx(whole.largest, rel=1e-5, abs=1e-5)


def test_a_sample_takes_its_share_of_the_steps_at_changing_places() -> None:
    places = OneOf(5, seed=1)
    taken = [[place for place in range(5) if places.takes()] for _ in range(200)]
    assert {len(each) for each in taken} == {1}
    assert {place for each in taken for place in each} == set(range(5))


def test_one_step_of_several_is_counted() -> None:
    """A prompt of one chunk and 10 steps of an answer, six times: every third of both kinds."""
    with running(counting(every=3)) as engine:
        for seed in range(6):
            ask(engine, tiny.prompt_of(seed, 10), greedy(11)).wait()
    for used in engine.engine.take_usage().values():
        assert used.tokens.tolist() == [2 * 10, 6 * 10 // 3]


def test_a_token_that_is_no_number_does_not_count() -> None:
    usage = counting()
    x = torch.randn(4, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    x[1, 3], x[2, 0] = torch.nan, torch.inf
    counted = torch.tensor([True, True, True, False])
    first = usage._counted[0]
    usage._gather(first, 1, x, counted)
    usage.flush()
    used = usage.take()["first"]
    assert used.tokens.tolist() == [0, 1]
    assert used.fired[1].tolist() == (SAES[FIRST].encode(x[:1]) > 0.0)[0].to(torch.int64).tolist()
    assert np.isfinite(used.total).all()


def test_dictionaries_have_names_of_their_own() -> None:
    sae = SAES[FIRST]
    with pytest.raises(ValueError, match="names of their own, not first, first"):
        UsageCounting([Dictionary("first", FIRST, sae.rows(), sae.norm)] * 2, 1, CPU)


@pytest.mark.parametrize("tokens", [1, TOKENS_AT_ONCE, 2 * TOKENS_AT_ONCE + 3])
def test_any_number_of_tokens_is_counted(tokens: int) -> None:
    usage, sae = counting(), SAES[FIRST]
    x = torch.randn(tokens, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    first = usage._counted[0]
    for part in (slice(0, 1), slice(1, tokens)):
        usage._gather(first, 0, x[part], torch.ones(len(x[part]), dtype=torch.bool))
    usage.flush()
    used = usage.take()["first"]
    assert used.tokens.tolist() == [tokens, 0]
    assert used.fired[0].tolist() == (sae.encode(x) > 0.0).sum(0).tolist()


def test_the_beginning_that_a_request_gives_is_of_the_answer() -> None:
    """In one chunk with the prompt, or in one of its own."""
    for prompt in (tiny.prompt_of(1, 10), tiny.prompt_of(1, 17)):
        with running(counting()) as engine:
            ask(engine, prompt, greedy(3), prefilled=4).wait()
        for used in engine.engine.take_usage().values():
            assert used.tokens.tolist() == [len(prompt) - 4, 4 + 2]
