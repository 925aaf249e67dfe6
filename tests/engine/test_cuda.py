"""The reference model served on a CUDA device, against Transformers, plain hooks and the float64 loop there.

In float32, eagerly and compiled; in bfloat16, which its weights are in, where that can be told exactly.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_lab.evaluation.experiment import BanFile, RedirectFile, load_prompts
from saegis_lab.polyglot.manifest import manifest
from saegis_lab.training.texts import read_labelled_texts
from saegis_server.cli.serve.configuration import reference as reference_model
from saegis_server.engine.api import SamplingParams
from saegis_server.engine.readouts import PromptRead, Readouts
from saegis_server.engine.torch.loading import load_model
from saegis_server.engine.torch.site_reading import edited, read_site
from saegis_server.reference import MODEL, WEIGHTS
from saegis_server.rpc.server.loading import load_services
from saegis_server.rpc.server.premises import prepare
from saegis_server.rpc.services.shared import Services
from saegis_server.sae.catalog import LoadedSAE
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringProgram
from saegis_server.steering.rows import Probe, Redirection, ablate, add, ban, cap, clamp, redirect, scale
from tests.engine.cuda import DEVICE, needs_cuda
from tests.engine.serving import Answer, Asked
from tests.rpc.harness import config
from tests.steering import reference

pytestmark = [*needs_cuda, pytest.mark.timeout(600), pytest.mark.usefixtures("unmeasured")]

#: As many as are asked at once, and a prompt that is read in several chunks.
MANY, LONG = 40, 700
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=0)
#: How far log probabilities may lie apart, and how near the best token is to one that is as good.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.5}
BRIDGE = manifest().clamp.feature


@dataclass(frozen=True)
class Served:
    """An engine of the reference model that runs, and the same model with Transformers' own attention."""

    services: Services
    engine: Asked
    plain: PreTrainedModel

    @property
    def sae(self) -> LoadedSAE:
        return self.services.catalog.entries[0]

    @property
    def exact(self) -> bool:
        """Whether what is read by another way can be told apart by rounding."""
        return self.plain.dtype is torch.float32

    def probe(self, feature: int) -> Probe:
        return self.sae.sae.probe(feature)

    def program(self, rows: SiteProgram | None) -> SteeringProgram:
        return UNSTEERED if rows is None else SteeringProgram({self.sae.site: rows})


@pytest.fixture(
    scope="module",
    params=[("float32", "never"), ("float32", "always"), ("bfloat16", "always")],
    ids=["float32-eager", "float32-compiled", "bfloat16-compiled"],
)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """The reference model in a dtype, eager or compiled, which counts the use of all features."""
    dtype, compiled = request.param
    torch._dynamo.reset()
    model, source = reference_model()
    settings = config(
        model=model,
        saes=[source],
        max_num_seqs=64,
        usage_every=1,
        device=DEVICE,
        dtype=dtype,
        compile=compiled,
    )
    services = load_services(settings, prepare(settings), lambda *_: None)
    services.engine.warm_up(lambda *_: None)
    assert services.engine.compiled == (compiled == "always")
    with Asked(services.engine) as engine:
        yield Served(services, engine, load_model(str(MODEL), dtype, DEVICE).model)
    assert services.engine.stats().recompilations == 0


def prompts(served: Served, count: int) -> list[list[int]]:
    """Prompts of 1 to 60 tokens, and one that is read in several chunks."""
    texts = [each.text for each in read_labelled_texts(WEIGHTS / "eval/texts.jsonl")]
    read = [
        list(served.services.prompts.text(text))[: 1 + 7 * place % 60] for place, text in enumerate(texts)
    ]
    return [list(served.services.prompts.text("\n".join(texts)))[:LONG], *read][:count]


@torch.no_grad()
def logits_of(
    served: Served, prompt: Sequence[int], tokens: Sequence[int], rows: SiteProgram | None = None
) -> Tensor:
    """Transformers' logits before each of the tokens after a prompt, float32 [T, V], steered by a plain hook
    and the float64 loop."""
    bos = served.services.engine.first_token.bos

    def steer(x: Tensor) -> Tensor:
        before, after = reference.vector(x[0].cpu()), x.clone()
        for place in range(int(prompt[0] == bos), len(before)):
            steered = reference.settled(rows or SiteProgram(), before[place], place < len(prompt))
            after[0, place] = torch.from_numpy(steered).to(x)
        return after

    with nullcontext() if rows is None else edited(served.plain, served.sae.site, steer):
        text = torch.tensor([[*prompt, *tokens[:-1]]], device=served.plain.device)
        logits: Tensor = served.plain(text, use_cache=False).logits
    return logits[0, len(prompt) - 1 :].float()


def check(served: Served, answer: Answer, prompt: Sequence[int], rows: SiteProgram | None = None) -> None:
    """Each token of a greedy answer is the likeliest, and as likely as it is told."""
    tokens, most = answer.wait().tokens(), ROUNDING[served.plain.dtype]
    logits = logits_of(served, prompt, tokens, rows).cpu()
    chosen = torch.tensor(tokens)[:, None]
    assert float((logits.amax(1, keepdim=True) - logits.gather(1, chosen)).max()) <= most
    told = torch.tensor([output.logprob for output in answer.outputs()])
    wanted = torch.log_softmax(logits, -1).gather(1, chosen)[:, 0]
    torch.testing.assert_close(told, wanted, rtol=0.0, atol=most)


@pytest.mark.parametrize("count", [1, 7, MANY])
def test_answers_are_what_transformers_gives_alone_and_in_company(served: Served, count: int) -> None:
    asked = prompts(served, count)
    answers = [served.engine.ask(prompt, GREEDY) for prompt in asked]
    for prompt, answer in zip(asked, answers, strict=True):
        check(served, answer, prompt)


def steerings(served: Served) -> list[SiteProgram]:
    """One of each kind of row, of the features that ship, as edits of a request and as rules and bans."""
    banned = [served.probe(feature) for feature in BanFile.load(WEIGHTS / "eval/ban.json").features]
    source = served.probe(RedirectFile.load(WEIGHTS / "eval/redirect.json").features[0])
    bridge = served.probe(BRIDGE)
    away = redirect(source, 1.0, Redirection(bridge, strength=1.0))
    return [
        SiteProgram(edits=(clamp(bridge, 0.4, relative=True),)),
        SiteProgram(edits=(ablate(banned[0]), scale(banned[1], 2.0))),
        SiteProgram(edits=(add(Probe.direction(bridge.write), 0.3, relative=True), away)),
        SiteProgram(rules=(cap(bridge, 0.1), away)),
        SiteProgram(edits=(clamp(banned[0], 3.0),), bans=(ban(banned[0], 0.5), ban(banned[1]))),
    ]


def test_steered_answers_are_what_hooks_and_the_float64_loop_give(served: Served) -> None:
    """All in one batch, beside one that is not steered."""
    if not served.exact:
        pytest.skip("in bfloat16 the loop, which rounds once, differs by more than a test could allow")
    programs: list[SiteProgram | None] = [*steerings(served), None]
    asked = prompts(served, 1 + len(programs))[1:]
    answers = [
        served.engine.ask(prompt, GREEDY, served.program(rows))
        for prompt, rows in zip(asked, programs, strict=True)
    ]
    for prompt, answer, rows in zip(asked, answers, programs, strict=True):
        check(served, answer, prompt, rows)
        moved = 0 if rows is None else len(prompt)
        assert answer.finished.receipt.steered == (answer.finished.usage.steered_tokens > 0)
        assert answer.finished.usage.steered_tokens <= moved + len(answer.tokens())
    assert answers[0].finished.usage.steered_tokens > 0


def test_banned_features_read_nothing_once_they_are_banned(served: Served) -> None:
    """To the last bit, in every dtype, whatever a request clamps them to."""
    probes = tuple(served.probe(feature) for feature in BanFile.load(WEIGHTS / "eval/ban.json").features)
    edits = tuple(clamp(probe, 2.0) for probe in probes[:3])
    rows = SiteProgram(edits=edits, bans=tuple(ban(probe, 0.5) for probe in probes), watches=probes)
    harmful = [each for each in load_prompts(WEIGHTS / "eval/prompts.jsonl") if each.harmful][:12]
    asked = [served.services.prompts.text(each.prompt) for each in harmful]
    answers = [
        served.engine.ask(prompt, GREEDY, served.program(rows), readouts=Readouts(prompt=True))
        for prompt in asked
    ]
    fired = 0
    for answer in answers:
        (read,) = [event for event in answer.wait().events if isinstance(event, PromptRead)]
        after = [value for watch in read.watched for value in watch.after[1:]]
        after += [watch.after for output in answer.outputs() for watch in output.watched]
        assert set(after) == {0.0}
        fired += sum(value > 0.0 for watch in read.watched for value in watch.before[1:])
    assert fired > 0
    assert sum(answer.finished.receipt.sites[0].bans_fired for answer in answers) > 0


def test_a_score_is_what_transformers_gives(served: Served) -> None:
    (text,) = prompts(served, 1)
    rows = steerings(served)[0]
    score = served.engine.score(text, served.program(rows)).result(120.0)
    logits = logits_of(served, text[:1], text[1:])
    wanted = torch.log_softmax(logits, -1).cpu().gather(1, torch.tensor(text[1:])[:, None])[:, 0]
    most = ROUNDING[served.plain.dtype]
    torch.testing.assert_close(torch.tensor(score.plain_logprobs), wanted, rtol=0.0, atol=most)
    assert max(score.divergences) > 0.01
    assert score.receipt.steered


def test_a_seed_gives_the_same_tokens_again_and_in_company(served: Served) -> None:
    """In bfloat16 again only: the rounding of sums of another shape is then large enough to tell."""
    asked = prompts(served, 7)

    def sampling(seed: int) -> SamplingParams:
        return SamplingParams(
            temperature=0.9, top_p=0.95, top_k=50, seed=seed, max_tokens=16, ignore_eos=True
        )

    alone = [served.engine.ask(prompt, sampling(seed)).wait().tokens() for seed, prompt in enumerate(asked)]
    again = [served.engine.ask(prompt, sampling(seed)).wait().tokens() for seed, prompt in enumerate(asked)]
    assert again == alone
    answers = [served.engine.ask(prompt, sampling(seed)) for seed, prompt in enumerate(asked)]
    together = [answer.wait().tokens() for answer in answers]
    if served.exact:
        assert together == alone


@torch.no_grad()
def test_the_use_of_features_is_that_of_an_offline_encode(served: Served) -> None:
    if not served.exact:
        pytest.skip("in bfloat16 activations of another shape of batch differ")
    engine, asked = served.services.engine, prompts(served, 7)
    served.engine.ask(asked[1], GREEDY).wait()
    while engine.stats().running:
        time.sleep(0.01)
    time.sleep(0.5)  # what waited is counted once nothing runs
    engine.take_usage()
    answers = [served.engine.ask(prompt, GREEDY) for prompt in asked]
    read = [[*prompt, *answer.wait().tokens()[:-1]] for prompt, answer in zip(asked, answers, strict=True)]
    time.sleep(0.5)
    used = engine.take_usage()[served.sae.id]
    fired = torch.zeros(2, served.sae.sae.features, dtype=torch.int64)
    for prompt, text in zip(asked, read, strict=True):
        x = read_site(served.plain, served.sae.site, torch.tensor([text], device=DEVICE))[0].cpu()
        active = served.sae.sae.encode(x) > 0.0
        first = int(prompt[0] == engine.first_token.bos)
        fired += torch.stack((active[first : len(prompt)].sum(0), active[len(prompt) :].sum(0)))
    assert fired.sum() > 0
    # Features at the very edge of firing may fall on either side of it.
    assert (torch.from_numpy(used.fired) - fired).abs().sum() <= 1e-3 * fired.sum()


def test_matrices_are_multiplied_in_full_float32_and_the_devices_memory_is_told(served: Served) -> None:
    stats = served.services.engine.stats()
    assert torch.get_float32_matmul_precision() == "highest"
    if DEVICE == "cuda":
        assert not torch.backends.cuda.matmul.allow_tf32
        assert stats.device_bytes is not None
        assert stats.device_bytes_max is not None
        assert 0 < stats.device_bytes < stats.device_bytes_max
