"""How often features fire that are active by their rank, counted one by one and all of a dictionary."""

import pytest
import torch

from saegis_server.engine.counts import Dictionary, Observed
from saegis_server.engine.torch import usage as usage_counting
from saegis_server.engine.torch.usage import UsageCounting
from saegis_server.steering import ranking
from saegis_server.steering.program import UNSTEERED
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.ranked import SAES, program
from tests.engine.test_activity import ask, greedy

PROMPTS = [tiny.prompt_of(1, 20), tiny.prompt_of(2, 4), tiny.prompt_of(3, 33)]


def dictionaries() -> list[Dictionary]:
    """All features of the SAEs."""
    return [Dictionary(sae.name, site, sae.rows(), sae.norm, sae.ranked("cpu")) for site, sae in SAES.items()]


def clean(engine: tiny.RunningEngine, prompt: list[int], answer: list[int]) -> dict[Site, torch.Tensor]:
    """What all features are at every token that was read, as the SAEs themselves encode it."""
    found = engine.capture([*prompt, *answer[:-1]]).result(30)
    return {site: sae.encode(found[site]) for site, sae in SAES.items()}


def test_observed_features_fire_where_their_rank_lets_them() -> None:
    """Those of several SAEs, before and after others take their places."""
    chosen = [Observed(site, sae.probe(feature), 1.5) for site, sae in SAES.items() for feature in range(30)]
    with tiny.RunningEngine(tiny.step(tiny.model(), ranked=SAES)) as engine:
        total = 0
        for first in (0, 15):
            engine.engine.observe([each for place, each in enumerate(chosen) if place % 30 >= first])
            answers = [ask(engine, prompt, greedy(9)) for prompt in PROMPTS]
            for prompt, answer in zip(PROMPTS, answers, strict=True):
                f = clean(engine, prompt, answer.wait().tokens())
                firing = answer.finished.firing
                assert len(firing) == 3 * (30 - first)
                for (site, key), (in_prompt, in_answer) in firing.items():
                    own = f[site][:, int(key.rpartition(":")[2])]
                    assert in_prompt.tokens == int((own[: len(prompt)] > 0.0).sum())
                    assert in_answer.tokens == int((own[len(prompt) :] > 0.0).sum())
                    assert in_prompt.strength == pytest.approx(
                        float(own[: len(prompt)].sum()) / 1.5, rel=1e-4
                    )
                    total += in_prompt.tokens + in_answer.tokens
        engine.engine.observe([])
        ask(engine, PROMPTS[0], greedy(2)).wait()
        assert not any(ranking.wanted.any() for ranking in engine.step.slots.rankings.values())
    assert total > 200


def test_what_nothing_ranks_is_not_observed() -> None:
    first, second, _ = SAES
    engine = tiny.RunningEngine(tiny.step(tiny.model(), ranked=SAES))
    with engine, pytest.raises(ValueError, match="which decides by rank, is not at"):
        engine.engine.observe([Observed(first, SAES[second].probe(1))])


@pytest.mark.parametrize(("at_once", "every"), [(4096, 1), (24, 1), (24, 4)])
def test_whole_dictionaries_are_counted_as_they_encode(
    at_once: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and ranked and then counted a part after the other while further tokens come."""
    for module in (usage_counting, ranking):
        monkeypatch.setattr(module, "FEATURES_AT_ONCE", {"cpu": at_once})
    usage = UsageCounting(dictionaries(), every, torch.device("cpu"))
    parts = [each.due for each in usage._counted]
    assert parts == ([2] * 3 if at_once == 4096 else [8] * 3 if every == 1 else [2] * 3)
    step = tiny.step(tiny.model(), keeps=usage.sites, ranked=SAES)
    f: dict[Site, list[tuple[torch.Tensor, torch.Tensor]]] = {site: [] for site in SAES}
    with tiny.RunningEngine(step, usage=usage) as engine:
        answers = [(prompt, ask(engine, prompt, greedy(40))) for prompt in PROMPTS * 2]
        for prompt, answer in answers:
            for site, values in clean(engine, prompt, answer.wait().tokens()).items():
                f[site].append((values[: len(prompt)], values[len(prompt) :]))
    found = engine.engine.take_usage()
    for site, sae in SAES.items():
        used = found[sae.name]
        assert used.fired.sum() > 0
        if every > 1:  # of what was taken, as many are active as may be
            at_most = (sae.k or 0) * used.tokens
            assert (used.fired.sum(1) <= at_most).all()
            assert (used.fired.sum(1) >= 0.5 * at_most).all()
            continue
        for phase in range(2):
            whole = torch.cat([both[phase] for both in f[site]])
            assert used.tokens[phase] == len(whole)
            assert used.fired[phase].tolist() == (whole > 0.0).sum(0).tolist()
            assert used.total[phase] == pytest.approx(whole.sum(0).numpy(), rel=1e-4, abs=1e-4)
            assert used.largest[phase] == pytest.approx(whole.amax(0).numpy(), rel=1e-4, abs=1e-4)


def test_a_dictionary_whose_ranks_nothing_tells_is_refused() -> None:
    site, sae = next(iter(SAES.items()))
    with pytest.raises(ValueError, match="ranked-70 decides by rank, and nothing tells that"):
        UsageCounting([Dictionary(sae.name, site, sae.rows(), sae.norm)], 1, torch.device("cpu"))


def test_a_step_ranks_only_for_its_own_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain request, and a plain prompt beside an answer with ranks, cost what they cost without."""
    tokens: list[int] = []
    cuts = ranking.RankedDictionary.cuts

    def counted(self: ranking.RankedDictionary, x: torch.Tensor) -> torch.Tensor:
        tokens.append(len(x))
        return cuts(self, x)

    monkeypatch.setattr(ranking.RankedDictionary, "cuts", counted)
    with tiny.RunningEngine(tiny.step(tiny.model(), ranked=SAES)) as engine:
        ask(engine, PROMPTS[0], greedy(5)).wait()
        engine.score(PROMPTS[0]).result(30)
        assert not tokens
        asked = program(0, watches=0)
        ask(engine, PROMPTS[0], greedy(5), program=asked).wait()
        # An edit at each of three sites, and a rule: chunks of 16 and 4, and four tokens beside an idle row.
        assert tokens == [16] * 6 + [4] * 6 + [2] * 4 * 6
        tokens.clear()
        engine.score(PROMPTS[0], asked).result(30)
        assert tokens == [16] * 6 + [4] * 6
        tokens.clear()
        ask(engine, PROMPTS[0], greedy(5), program=UNSTEERED).wait()
        assert not tokens
