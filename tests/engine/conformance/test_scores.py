"""Scores: what Transformers says with plain hooks, and what a request that is steered alike is told."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from saegis_server.engine.api import (
    FieldError,
    FinishReason,
    NonFiniteLogitsError,
    RefusedByPolicyError,
    SamplingParams,
    Score,
    SteeringDivergedError,
)
from saegis_server.engine.receipts import SiteReceipt
from saegis_server.steering import rows
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import Edit, Norm, Phase
from saegis_server.steering.site import Site
from tests.engine import guarded, tiny
from tests.engine.hooked import destructive, hook_program, random_program
from tests.engine.in_vllm import HAS_VLLM
from tests.engine.serving import Serving
from tests.steering import cases

CLAMPED, BANNED = Site.parse("layers.1.resid_post"), Site.parse("layers.0.mlp_out")


def clamp_and_ban(phase: Phase = Phase.ALL) -> SteeringProgram:
    """A clamp at one site and a ban at another; one ban alone, whose projection is exact."""
    rng = torch.Generator().manual_seed(5)
    clamped = cases.random_probe(rng, tiny.WIDTH, "jumprelu", Norm.NONE, "clamped")
    banned = cases.random_probe(rng, tiny.WIDTH, "relu", Norm.NONE, "banned")
    return SteeringProgram(
        {
            CLAMPED: SiteProgram(edits=(rows.clamp(clamped, 4.0, phase=phase),)),
            BANNED: SiteProgram(bans=(rows.ban(banned, 1.5, phase=phase),)),
        }
    )


def by_transformers(
    model: PreTrainedModel, tokens: list[int], program: SteeringProgram, asked: int | None = None
) -> Tensor:
    """Log probabilities [T − 1, V] in float64, by the model's own code with plain hooks. asked: how many
    of the tokens are of the prompt, None for all."""
    handles = hook_program(model, program)
    cache, logits = DynamicCache(config=model.config), []
    try:
        with torch.no_grad():
            for part in (tokens[:asked], [] if asked is None else tokens[asked:]):
                if part:
                    read = model(torch.tensor([part]), past_key_values=cache, use_cache=True)
                    logits.append(read.logits[0])
    finally:
        for handle in handles:
            handle.remove()
    return torch.log_softmax(torch.cat(logits)[:-1].double(), -1)


def agrees(score: Score, tokens: list[int], steered: Tensor, plain: Tensor) -> None:
    following = torch.tensor(tokens[1:])[:, None]
    divergences = torch.nn.functional.kl_div(steered, plain, reduction="none", log_target=True).sum(-1)
    assert score.logprobs == pytest.approx(steered.gather(-1, following)[:, 0].tolist(), abs=1e-4)
    assert score.plain_logprobs == pytest.approx(plain.gather(-1, following)[:, 0].tolist(), abs=1e-4)
    assert score.divergences == pytest.approx(divergences.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_scores_what_transformers_scores(serving: Serving, family: str) -> None:
    """In chunks of 16: within one, exactly one, one and the last token alone, and several."""
    program, model = clamp_and_ban(), tiny.model(family)
    with serving(tiny.model(family)) as engine:
        for length in (2, 16, 17, 40):
            tokens = tiny.prompt_of(length, length)
            plain, steered = (by_transformers(model, tokens, each) for each in (UNSTEERED, program))
            found = engine.score(tokens, program).result(30)
            agrees(found, tokens, steered, plain)
            assert max(found.divergences) > 0.01, "the program hardly changed anything"
            agrees(engine.score(tokens).result(30), tokens, plain, plain)


def test_random_edits_score_what_hooks_score(serving: Serving) -> None:
    model = tiny.model()
    with serving(tiny.model()) as engine:
        for seed in range(1, 8):
            program = random_program(seed, 3 * seed)
            # Only one ban alone is projected exactly; the others come near the least move.
            edits = {name: replace(site, bans=site.bans[:1]) for name, site in program.sites.items()}
            program, tokens = SteeringProgram(edits), tiny.prompt_of(seed, 20)
            plain, steered = (by_transformers(model, tokens, each) for each in (UNSTEERED, program))
            agrees(engine.score(tokens, program).result(30), tokens, steered, plain)


def _without_norms(site: SiteReceipt) -> SiteReceipt:
    return replace(site, largest_relative_norm=0.0, mean_relative_norm=0.0)


def test_a_score_is_what_a_request_of_the_same_program_is_told(serving: Serving) -> None:
    """Of one token more than the prompt: its logprob, and the receipt of those before it."""
    told = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=0)
    with serving(tiny.model()) as engine:
        for seed in range(1, 10):
            program, prompt = random_program(seed, 4 * seed + 4), tiny.prompt_of(seed, 7 + 5 * seed)
            answer = engine.ask(prompt, told, program).wait()
            (output,) = answer.outputs()
            found = engine.score([*prompt, output.token_id], program).result(30)
            assert found.logprobs[-1] == pytest.approx(output.logprob, abs=1e-5)
            receipt, wanted = engine.score(prompt, program).result(30).receipt, answer.finished.receipt
            for name in ("largest_relative_norm", "mean_relative_norm"):
                norms = [getattr(site, name) for site in wanted.sites]
                assert [getattr(site, name) for site in receipt.sites] == pytest.approx(norms, rel=1e-4)
            assert [_without_norms(site) for site in receipt.sites] == [
                _without_norms(site) for site in wanted.sites
            ]
            assert (receipt.program_digest, receipt.steered) == (program.digest, True)
            assert max(site.tokens_edited for site in receipt.sites) == len(prompt)


def test_every_token_is_one_of_the_prompt(serving: Serving) -> None:
    tokens = tiny.prompt_of(3, 40)
    with serving(tiny.model()) as engine:
        by_phase = {phase: engine.score(tokens, clamp_and_ban(phase)).result(30) for phase in Phase}
        plain = engine.score(tokens).result(30)
    assert by_phase[Phase.PROMPT].logprobs == by_phase[Phase.ALL].logprobs != plain.logprobs
    idle = by_phase[Phase.COMPLETION]
    assert idle.logprobs == idle.plain_logprobs == plain.logprobs == plain.plain_logprobs
    assert set(idle.divergences) == {0.0}
    assert [(site.edits, site.bans, site.tokens_edited) for site in idle.receipt.sites] == [
        (1, 0, 0),
        (0, 1, 0),
    ]
    assert (plain.receipt.steered, plain.receipt.sites) == (False, ())


@pytest.mark.parametrize("asked", [1, 15, 16, 17, 39])
def test_the_end_of_a_text_may_be_an_answer(serving: Serving, asked: int) -> None:
    """Its tokens are moved by edits of the completion, and the others by those of the prompt."""
    tokens, model = tiny.prompt_of(3, 40), tiny.model()
    with serving(tiny.model()) as engine:
        for phase in Phase:
            program = clamp_and_ban(phase)
            plain = by_transformers(model, tokens, UNSTEERED)
            steered = by_transformers(model, tokens, program, asked)
            found = engine.score(tokens, program, prefilled=40 - asked).result(30)
            agrees(found, tokens, steered, plain)
            edited = {Phase.PROMPT: asked, Phase.COMPLETION: 40 - asked, Phase.ALL: 40}[phase]
            assert max(site.tokens_edited for site in found.receipt.sites) == edited


def test_a_text_that_is_all_answer_is_refused(serving: Serving) -> None:
    with serving(tiny.model()) as engine:
        for prefilled in (-1, 2, 3):
            with pytest.raises(FieldError, match=f"cannot end with {prefilled} tokens of the answer"):
                engine.score([1, 2], prefilled=prefilled)


@pytest.mark.parametrize("seed", range(24))
def test_an_answer_is_judged_as_one_that_was_begun(serving: Serving, seed: int) -> None:
    """What its conditions come to is what they come to there; what ends the answer refuses the score."""
    case = guarded.random_case(seed)
    greedy = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, logprobs=0)
    with serving(tiny.model()) as engine:
        begun = engine.ask(case.prompt, replace(greedy, max_tokens=9)).wait().tokens()
        whole = [*case.prompt, *begun]
        told = engine.ask(whole, greedy, case.program, guard=case.guard, prefilled=9).wait()
        scoring = engine.score(whole, case.program, case.guard, prefilled=9)
        if told.ending().reason is FinishReason.CONTENT_FILTER:
            with pytest.raises(RefusedByPolicyError):
                scoring.result(30)
            return
        scored, wanted = scoring.result(30).receipt, told.finished.receipt
        assert scored.conditions == wanted.conditions
        (output,) = told.outputs()
        with suppress(RefusedByPolicyError):  # that token may be what ends the answer
            longer = engine.score([*whole, output.token_id], case.program, case.guard, prefilled=10).result(
                30
            )
            assert longer.logprobs[-1] == pytest.approx(output.logprob, abs=1e-4)
        assert scored.guard_peaks == pytest.approx(wanted.guard_peaks, abs=1e-4)
        assert [site.tokens_edited for site in scored.sites] == [site.tokens_edited for site in wanted.sites]


def test_timings_add_up(serving: Serving) -> None:
    engine = serving(tiny.model())
    first, second = engine.score(tiny.prompt_of(0, 150)), engine.score([1, 2])
    with engine:
        one, other = first.result(30).timings, second.result(30).timings
    assert one.prefill > 0.0
    assert other.queue >= one.queue + one.prefill - 1e-3, "the second waited for the whole of the first"
    assert one.decode == other.decode == 0.0


def test_a_score_that_diverges_blames_the_edits_and_fails_alone(serving: Serving) -> None:
    tokens = tiny.prompt_of(1, 40)
    with serving(tiny.model()) as engine:
        wanted = engine.score(tokens).result(30)
        # Sixteen tokens a step; on vLLM those of the two texts of a score together.
        with pytest.raises(SteeringDivergedError, match=rf"in tokens 0 to {7 if HAS_VLLM else 15}$"):
            engine.score(tokens, destructive(Phase.ALL)).result(30)
        again = engine.score(tokens).result(30)
    assert (again.logprobs, again.receipt) == (wanted.logprobs, wanted.receipt)


@pytest.mark.parametrize("program", [UNSTEERED, clamp_and_ban()])
def test_a_model_that_is_broken_is_blamed_itself(serving: Serving, program: SteeringProgram) -> None:
    broken = tiny.model()
    with torch.no_grad():
        broken.get_parameter("model.embed_tokens.weight")[3] = torch.nan
    with serving(broken) as engine:
        with pytest.raises(NonFiniteLogitsError, match="in tokens 16 to 27"):
            engine.score([5] * 18 + [3] + [5] * 9, program).result(30)
        assert len(engine.score([5] * 20, program).result(30).logprobs) == 19


def test_refusals_name_the_field(serving: Serving) -> None:
    probe = rows.Probe.direction(torch.ones(tiny.WIDTH))

    def adds(site: Site, *more: Edit) -> SteeringProgram:
        return SteeringProgram({site: SiteProgram(edits=(rows.add(probe, 1.0),), bans=more)})

    with serving(tiny.model()) as engine:
        for tokens, field, message in (
            ([], "prompt", "at least 2 tokens to be scored, not 0"),
            ([1], "prompt", "at least 2 tokens to be scored, not 1"),
            ([1] * 161, "prompt", "has 161 tokens; at most 160"),
            ([1, 9999], "prompt[1]", "9999 is not a token id below 260"),
        ):
            with pytest.raises(FieldError, match=message) as error:
                engine.score(tokens)
            assert error.value.field == field
        with pytest.raises(SteeringError, match="not a site of this server"):
            engine.score([1, 2], adds(Site.parse("layers.0.resid_post")))
        nothing = rows.ban(rows.Probe("nothing", torch.zeros(tiny.WIDTH), torch.zeros(tiny.WIDTH)))
        with pytest.raises(SteeringError, match="reads nothing"):
            engine.score([1, 2], adds(CLAMPED, nothing))
        assert len(engine.score([1] * 160, adds(CLAMPED)).result(30).logprobs) == 159
