"""The compiled step: it does what the eager one does, and nothing is compiled again after the warm-up."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.counts import Dictionary, Used
from saegis_server.engine.readouts import TokenOutput
from saegis_server.engine.torch.packing import Packing
from saegis_server.engine.torch.usage import UsageCounting
from saegis_server.engine.torch.warmup import missing_compiler, warm_up
from saegis_server.steering.program import SteeringProgram
from tests.engine import ranked, seeing, tiny
from tests.engine.cuda import DEVICE, needs_cuda
from tests.engine.guarded import agrees, answered, flickering
from tests.engine.hooked import differs, generate, random_program
from tests.engine.test_activity import FIRST, ask, greedy, groups_of
from tests.engine.test_activity import program as at_two_sites
from tests.engine.test_observing import FEATURES
from tests.engine.test_pictures import ask as pictured
from tests.engine.test_readouts import EVERYTHING, numbers_of, watched
from tests.sae.sae_cases import random_sae

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("unmeasured"),
    pytest.mark.skipif(missing_compiler() is not None, reason=missing_compiler() or ""),
]

#: Of two sizes, both counted by one program.
SAES = [random_sae(seed=size, width=tiny.WIDTH, features=size, name=f"{size}") for size in (40, 50)]


def dictionaries(device: torch.device) -> list[Dictionary]:
    """What is counted: two that one program counts, and one that decides by rank."""
    plain = [Dictionary(sae.name, FIRST, sae.rows(), sae.norm) for sae in SAES]
    by_rank = ranked.SAES[FIRST]
    return [*plain, Dictionary(by_rank.name, FIRST, by_rank.rows(), by_rank.norm, by_rank.ranked(device))]


def packed(device: torch.device | str = "cpu") -> PreTrainedModel:
    """The model as a start hands it to a step: on a device, with its weights packed where that pays."""
    model = tiny.model()
    nn.Module.to(model, device)
    Packing(model).pack()
    return model


@pytest.fixture(scope="module", params=["cpu", pytest.param(DEVICE, id="cuda", marks=needs_cuda)])
def compiled(unmeasured: None, request: pytest.FixtureRequest) -> Iterator[tiny.RunningEngine]:
    """An engine whose step is compiled and warm."""
    torch._dynamo.reset()
    counters.clear()
    model = packed(request.param)
    usage = UsageCounting(dictionaries(model.device), 1, model.device)
    step = tiny.step(model, slots=32, compiled=True, keeps=usage.sites, ranked=ranked.SAES)
    warm_up(step, lambda *_: None, usage=usage)
    with tiny.RunningEngine(step, max_running=32, usage=usage) as engine:
        yield engine


def programs_of_any_size(count: int) -> list[SteeringProgram]:
    """Different programs of 0 to 32 rows."""
    return [random_program(seed, seed % 33) for seed in range(count)]


def test_a_thousand_programs_cause_no_recompilation(compiled: tiny.RunningEngine) -> None:
    before = counters["stats"]["unique_graphs"]
    assert before == 5, "the warm-up compiles prefill, decode, the sampler and two counts of features"
    answers = []
    for index, program in enumerate(programs_of_any_size(1000)):
        sampling = SamplingParams(
            temperature=float(index % 3), seed=index, max_tokens=1 + index % 5, ignore_eos=True
        )
        answers.append(compiled.ask(tiny.prompt_of(index, 1 + index % 40), sampling, program))
        if len(answers) % 100 == 0:
            for answer in answers[-100:]:
                answer.wait(300)
    digests = {answer.finished.receipt.program_digest for answer in answers}
    assert len(digests) > 900
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["recompiles"]
    assert not counters["graph_break"]


def test_scores_between_steps_cause_no_recompilation_and_change_no_bit(compiled: tiny.RunningEngine) -> None:
    prompt, sampling = (
        tiny.prompt_of(1, 30),
        SamplingParams(seed=5, max_tokens=60, ignore_eos=True, logprobs=1),
    )
    alone = compiled.ask(prompt, sampling, random_program(4, 9)).wait().outputs()
    before = counters["stats"]["unique_graphs"]
    beside = compiled.ask(prompt, sampling, random_program(4, 9))
    texts = [(tiny.prompt_of(index, 2 + 5 * index), random_program(index, index)) for index in range(30)]
    scores = [compiled.score(text, program) for text, program in texts]
    assert beside.wait().outputs() == alone
    found = [score.result(60) for score in scores]
    assert compiled.ask(prompt, sampling, random_program(4, 9)).wait().outputs() == alone
    with tiny.RunningEngine(tiny.step(packed())) as eager:
        for (text, program), score in zip(texts, found, strict=True):
            assert score.logprobs == eager.score(text, program).result(60).logprobs
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["recompiles"]
    assert not counters["graph_break"]


def test_steps_of_each_sequence_alone_change_no_bit_beside_others_and_recompile_nothing(
    compiled: tiny.RunningEngine,
) -> None:
    before = counters["stats"]["unique_graphs"]
    sampling = SamplingParams(seed=5, max_tokens=30, ignore_eos=True, logprobs=3)
    with tiny.RunningEngine(compiled.step, max_running=32, batch_invariant=True) as engine:
        alone = [
            engine.ask(tiny.prompt_of(seed, 3 + 20 * seed), sampling, random_program(seed, 3 * seed)).wait()
            for seed in range(6)
        ]
        beside = [
            engine.ask(tiny.prompt_of(seed, 3 + 20 * seed), sampling, random_program(seed, 3 * seed))
            for seed in range(6)
        ]
        for one, other in zip(alone, beside, strict=True):
            assert other.wait().outputs() == one.outputs()
            assert other.finished.receipt == one.finished.receipt
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["recompiles"]


def test_guards_cause_no_recompilation_and_are_what_the_loop_says(compiled: tiny.RunningEngine) -> None:
    """Random ones beside many whose rows come and go; prompts and tokens are taken again all the time."""
    before = counters["stats"]["unique_graphs"]
    program, guard = flickering()
    seeds = (4, 15, 16, 27)
    cases = [answered(seed) for seed in seeds]
    asked = [compiled.ask(case.prompt, case.sampling, case.program, guard=case.guard) for case, _ in cases]
    beside = []
    for index in range(200):
        sampling = SamplingParams(temperature=float(index % 3), seed=index, max_tokens=9, ignore_eos=True)
        beside.append(
            compiled.ask(tiny.prompt_of(index, 1 + index % 40), sampling, program, guard=guard)
            if index % 2
            else compiled.ask(tiny.prompt_of(index, 9), sampling, random_program(index, index % 33))
        )
    for answer, (case, wanted) in zip(asked, cases, strict=True):
        agrees(answer.wait(300), case, wanted)
    held = [answer.wait(300).finished.receipt.conditions[0].held_tokens for answer in beside[1::2]]
    assert 3 < sum(held) / len(held) < 9
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["recompiles"]
    assert not counters["graph_break"]


def test_compiled_and_steered_is_what_the_eager_step_writes(compiled: tiny.RunningEngine) -> None:
    programs = programs_of_any_size(32)
    prompts = [tiny.prompt_of(500 + seed, 4 + seed) for seed in range(32)]
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    asked = [
        compiled.ask(prompt, sampling, program) for prompt, program in zip(prompts, programs, strict=True)
    ]
    got = [answer.wait().outputs() for answer in asked]
    with tiny.RunningEngine(tiny.step(packed(), slots=32), max_running=32) as eager:
        told = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=2)
        asked = [eager.ask(prompt, told, program) for prompt, program in zip(prompts, programs, strict=True)]
        wanted = [answer.wait().outputs() for answer in asked]
    for mine, other in zip(got, wanted, strict=True):
        gaps = torch.tensor([one.alternatives[0][1] - one.alternatives[1][1] for one in other])
        assert not differs([one.token_id for one in mine], [one.token_id for one in other], gaps)


def test_ranks_cause_no_recompilation_and_are_those_of_the_eager_step(
    compiled: tiny.RunningEngine,
) -> None:
    """Programs that need them come and go, beside others that need none."""
    before = counters["stats"]["unique_graphs"]
    programs = [ranked.program(seed, watches=seed % 5) for seed in range(30)]
    prompts = [tiny.prompt_of(700 + seed, 1 + 3 * (seed % 9)) for seed in range(30)]

    def asked(engine: tiny.RunningEngine) -> list[list[TokenOutput]]:
        sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2)
        answers = []
        for place, (prompt, program) in enumerate(zip(prompts, programs, strict=True)):
            answers.append(engine.ask(prompt, sampling, program))
            engine.ask(prompt, sampling, random_program(place, place))
        return [answer.wait(300).outputs() for answer in answers]

    found = asked(compiled)
    assert compiled.ask(tiny.prompt_of(1, 9)).wait().tokens()
    assert not any(ranking.wanted.any() for ranking in compiled.step.slots.rankings.values())
    with tiny.RunningEngine(tiny.step(packed(), slots=32, ranked=ranked.SAES), max_running=32) as eager:
        wanted = asked(eager)
    active = 0
    for mine, other in zip(found, wanted, strict=True):
        gaps = torch.tensor([one.alternatives[0][1] - one.alternatives[1][1] for one in other])
        assert not differs([one.token_id for one in mine], [one.token_id for one in other], gaps)
        for one, same in zip(mine, other, strict=True):
            if one.token_id != same.token_id:
                break
            told = [number for each in one.watched for number in (each.before, each.after)]
            expected = [number for each in same.watched for number in (each.before, each.after)]
            assert told == pytest.approx(expected, rel=1e-2, abs=1e-3)
            active += sum(number > 0.0 for number in told)
    assert active > 100
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["recompiles"]
    assert not counters["graph_break"]


def test_what_is_counted_compiled_is_what_is_counted_eagerly(compiled: tiny.RunningEngine) -> None:
    before = counters["stats"]["unique_graphs"]

    def counted(engine: tiny.RunningEngine) -> list[object]:
        engine.engine.observe(FEATURES)
        answers = []
        for seed in range(8):
            asked, prompt = at_two_sites(seed), tiny.prompt_of(seed, 3 + 7 * seed)
            groups = groups_of(asked)
            answers.append(ask(engine, prompt, greedy(4 + seed), program=asked, groups=groups))
        done = [answer.wait(300).finished for answer in answers]
        engine.engine.observe(())
        return [
            (each.receipt.acted, {key: [part[:2] for part in both] for key, both in each.firing.items()})
            for each in done
        ]

    found = counted(compiled)
    assert counters["stats"]["unique_graphs"] == before
    with tiny.RunningEngine(tiny.step(packed(), slots=32), max_running=32) as eager:
        assert found == counted(eager)


def test_what_is_read_of_single_tokens_compiled_is_what_is_read_eagerly(compiled: tiny.RunningEngine) -> None:
    before = counters["stats"]["unique_graphs"]

    def read(engine: tiny.RunningEngine) -> list[torch.Tensor]:
        asked = [
            engine.ask(
                tiny.prompt_of(seed, 3 + 13 * seed), greedy(4 + seed), watched(seed), readouts=EVERYTHING
            )
            for seed in range(4)
        ]
        return [torch.tensor(numbers_of(answer.wait(300))) for answer in asked]

    found = read(compiled)
    assert counters["stats"]["unique_graphs"] == before
    with tiny.RunningEngine(tiny.step(packed(), slots=32), max_running=32) as eager:
        for mine, other in zip(found, read(eager), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_the_use_of_features_compiled_is_that_counted_eagerly(compiled: tiny.RunningEngine) -> None:
    before, prompts = counters["stats"]["unique_graphs"], [tiny.prompt_of(seed, 40) for seed in range(9)]

    def used(engine: tiny.RunningEngine) -> list[Used]:
        engine.engine.take_usage()
        for prompt in prompts:
            ask(engine, prompt, greedy(9)).wait(300)
        found = engine.engine.take_usage()
        while any(used.tokens.sum() < 9 * (40 + 8) for used in found.values()):
            found = {name: more + found[name] for name, more in engine.engine.take_usage().items()}
        return list(found.values())

    found = used(compiled)
    assert counters["stats"]["unique_graphs"] == before
    usage = UsageCounting(dictionaries(torch.device("cpu")), 1, torch.device("cpu"))
    step = tiny.step(packed(), keeps=usage.sites, ranked=ranked.SAES)
    with tiny.RunningEngine(step, usage=usage) as eager:
        every = used(eager)
    for one, other in zip(found, every, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist() == [9 * 40, 9 * 8]
        assert (one.fired == other.fired).all()
        assert one.total == pytest.approx(other.total, rel=1e-4)


def test_compiled_and_unsteered_is_what_generate_writes(compiled: tiny.RunningEngine) -> None:
    prompt = tiny.prompt_of(7, 50)
    wanted, gaps = generate(tiny.model(), prompt, 24)
    assert not differs(compiled.ask(prompt).wait().tokens(), wanted, gaps)


def test_a_seed_gives_the_same_text_compiled_and_eager(compiled: tiny.RunningEngine) -> None:
    sampling = SamplingParams(temperature=0.9, top_p=0.95, top_k=50, seed=11, max_tokens=20, ignore_eos=True)
    alone = compiled.ask(tiny.prompt_of(3, 9), sampling).wait().tokens()
    asked = [compiled.ask(tiny.prompt_of(3 + seed, 9), sampling) for seed in range(8)]
    assert asked[0].wait().tokens() == alone
    with tiny.RunningEngine(tiny.step(packed())) as eager:
        assert eager.ask(tiny.prompt_of(3, 9), sampling).wait().tokens() == alone


@torch.inference_mode()
def test_chunks_with_pictures_are_one_program_more_and_the_eager_ones() -> None:
    torch._dynamo.reset()
    counters.clear()
    made = seeing.make("llava")
    answers = []
    for is_compiled in (False, True):
        step = tiny.step(seeing.make("llava").model, slots=4, compiled=is_compiled, eyes=made.eyes)
        warm_up(step, lambda *_: None)
        before = counters["stats"]["unique_graphs"]
        assert before == (4 if is_compiled else 0), "prefill, that with pictures, decode and the sampler"
        with tiny.RunningEngine(step, max_running=4) as engine:
            prompts = [seeing.prompted(made, seed, [seeing.picture(seed)] * (seed % 4)) for seed in range(6)]
            asked = [pictured(engine, f"{number}", prompt) for number, prompt in enumerate(prompts)]
            answers.append([answer.wait(300).tokens() for answer in asked])
        assert counters["stats"]["unique_graphs"] == before
    assert not counters["recompiles"]
    assert answers[0] == answers[1]
