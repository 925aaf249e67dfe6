"""Rows of SAEs that decide by rank, against hooks that sort all pre-activations in float64."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saegis_server.engine.api import Guard, Guarded, Reaction, RefusedByPolicyError, SamplingParams
from saegis_server.engine.torch.site_reading import edited
from saegis_server.steering.conditions import Condition, Literal, Scope
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import ban
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.conformance.test_scores import agrees, by_transformers
from tests.engine.hooked import differs, generate, hook_program
from tests.engine.ranked import SAES, program
from tests.engine.serving import Serving
from tests.steering import reference

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def test_programs_write_alone_in_company_and_in_chunks_what_hooks_write(serving: Serving) -> None:
    """Beside plain requests; prompts of one token, of one chunk of 16, and of several."""
    programs = [program(seed) for seed in range(10)]
    prompts = [
        tiny.prompt_of(100 + seed, length) for seed, length in enumerate((1, 2, 9, 16, 17, 31, 40, 5, 8, 33))
    ]
    model, hooked = tiny.model(), []
    for each, prompt in zip(programs, prompts, strict=True):
        handles = hook_program(model, each)
        hooked.append(generate(model, prompt, 12))
        for handle in handles:
            handle.remove()
    plain = generate(tiny.model(), prompts[3], 12)
    with serving(tiny.model(), max_running=16, ranked=SAES) as engine:
        alone = [
            engine.ask(prompt, GREEDY, each).wait().tokens()
            for prompt, each in zip(prompts, programs, strict=True)
        ]
        asked = [
            engine.ask(prompt, GREEDY, each)
            for prompt, each in zip([*prompts, prompts[3]], [*programs, UNSTEERED], strict=True)
        ]
        *together, unsteered = (answer.wait().tokens() for answer in asked)
    assert not differs(unsteered, *plain)
    for index, (tokens, gaps) in enumerate(hooked):
        assert not differs(together[index], tokens, gaps), f"program {index} against hooks"
        assert not differs(alone[index], tokens, gaps), f"program {index} alone against hooks"
    assert len({tuple(tokens) for tokens in together}) > 8, "the programs hardly changed the answers"


def read_by_hooks(
    asked: SteeringProgram, tokens: Sequence[int], prompt: int
) -> dict[Site, list[list[float]]]:
    """What the watches of a program read of a whole text, before and after: [token][2 · watches]."""
    found: dict[Site, list[list[float]]] = {site: [] for site in asked.sites}
    model = tiny.model()

    def steer(site: Site, x: Tensor) -> Tensor:
        changed, own = x.clone(), asked.sites[site]
        for token in range(x.shape[1]):
            clean = reference.vector(x[0, token])
            steered = reference.settled(own, clean, token < prompt)
            found[site].append([reference.read(each, at) for each in own.watches for at in (clean, steered)])
            changed[0, token] = torch.from_numpy(steered).to(x.dtype)
        return changed

    first, second, third = asked.sites
    with (
        edited(model, first, lambda x: steer(first, x)),
        edited(model, second, lambda x: steer(second, x)),
        edited(model, third, lambda x: steer(third, x)),
        torch.no_grad(),
    ):
        model(torch.tensor([list(tokens)]))
    return found


def test_watches_read_their_features_before_and_after(serving: Serving) -> None:
    with serving(tiny.model(), ranked=SAES) as engine:
        active = total = 0
        for seed in range(6):
            asked, prompt = program(seed, watches=4), tiny.prompt_of(seed, 20)
            answer = engine.ask(prompt, replace(GREEDY, max_tokens=6), asked).wait()
            outputs = answer.outputs()
            text = [*prompt, *(output.token_id for output in outputs)]
            wanted = read_by_hooks(asked, text, len(prompt))
            for place, output in enumerate(outputs):
                # The token before it is the one whose activation was read.
                told = [number for watched in output.watched for number in (watched.before, watched.after)]
                expected = [
                    number for site in asked.sites for number in wanted[site][len(prompt) - 1 + place]
                ]
                assert told == pytest.approx(expected, rel=1e-3, abs=1e-3), (seed, place)
                active += sum(number > 0.0 for number in told)
                total += len(told)
        assert 0.05 * total < active < 0.8 * total


def refusing(feature: int, site: Site) -> tuple[SteeringProgram, Guard]:
    """A condition that refuses prompts at which a feature is active."""
    reading = SteeringProgram({site: SiteProgram(guards=(SAES[site].probe(feature),))})
    condition = Condition(Literal(0, 0.0), Scope.PROMPT)
    return reading, Guard((Guarded("policy/rank", condition, Reaction.REFUSE),))


def test_conditions_hold_where_the_feature_is_among_the_largest(serving: Serving) -> None:
    refused = served = 0
    with serving(tiny.model(), ranked=SAES) as engine:
        for seed in range(8):
            prompt = tiny.prompt_of(seed, 20)
            clean = engine.capture(prompt).result(30)
            for site, sae in SAES.items():
                f = sae.encode(clean[site].cpu())
                feature = (7 * seed + 1) % sae.features
                asked, guard = refusing(feature, site)
                answer = engine.ask(prompt, GREEDY, asked, guard=guard).wait()
                if float(f[:, feature].max()) > 0.0:
                    assert isinstance(answer.failed.error, RefusedByPolicyError)
                    refused += 1
                else:
                    assert len(answer.tokens()) == 12
                    served += 1
    assert refused > 3
    assert served > 3


def test_scores_are_what_hooks_say(serving: Serving) -> None:
    model = tiny.model()
    with serving(tiny.model(), ranked=SAES) as engine:
        for seed in range(5):
            asked, tokens = program(seed), tiny.prompt_of(seed, 20)
            plain, steered = (by_transformers(model, tokens, each) for each in (UNSTEERED, asked))
            agrees(engine.score(tokens, asked).result(30), tokens, steered, plain)
            agrees(engine.score(tokens).result(30), tokens, plain, plain)


def test_the_receipt_names_the_rank(serving: Serving) -> None:
    """And counts a ban as fired where the feature was active by its rank."""
    site = next(iter(SAES))
    sae = SAES[site]
    prompt = tiny.prompt_of(3, 20)
    with serving(tiny.model(), ranked=SAES) as engine:
        f = sae.encode(engine.capture(prompt).result(30)[site].cpu())
        feature = int((f > 0.0).sum(0).argmax())
        asked = SteeringProgram({site: SiteProgram(bans=(ban(sae.probe(feature)),))})
        receipt = engine.ask(prompt, replace(GREEDY, max_tokens=1), asked).wait().finished.receipt
        assert receipt.sites[0].bans_fired == int((f[:, feature] > 0.0).sum()) > 0
        other = replace(sae.probe(feature), rank=None)
        loose = SteeringProgram({site: SiteProgram(bans=(ban(other),))})
        told = engine.ask(prompt, replace(GREEDY, max_tokens=1), loose).wait().finished.receipt
        assert told.program_digest != receipt.program_digest


def test_what_is_not_ranked_there_is_refused(serving: Serving) -> None:
    first, second, _ = SAES
    asked = SteeringProgram({first: SiteProgram(watches=(SAES[second].probe(1),))})
    with serving(tiny.model(), ranked=SAES) as engine:
        with pytest.raises(SteeringError, match=r"which decides by rank, is not at layers\.0\.mlp_out"):
            engine.ask(tiny.prompt_of(1, 3), GREEDY, asked)
        with pytest.raises(SteeringError, match=r"which decides by rank, is not at layers\.0\.mlp_out"):
            engine.score(tiny.prompt_of(1, 3), asked)
