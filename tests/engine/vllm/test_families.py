"""Families in vLLM's own code: proven at every site, and their texts those of Transformers' `generate`."""

import pytest

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.vllm.engine import VllmEngine
from saegis_server.engine.vllm.served import serve_in_vllm
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.hooked import differs, generate
from tests.engine.in_vllm import HAS_VLLM
from tests.engine.serving import Asked
from tests.tiers import few

pytestmark = pytest.mark.skipif(not HAS_VLLM, reason="there is no vLLM")
#: With heads of 32, which vLLM takes as they are; and the places that its code of each has.
WIDE = {"hidden_size": 128}
CHANGES = {"gemma2": {**WIDE, "head_dim": 32, "query_pre_attn_scalar": 32}}
STREAM = ("layers.0.resid_pre", "layers.1.resid_post", "layers.2.mlp_out", "layers.1.attn_out")
PLACES = {
    "llama": (*STREAM, "layers.1.resid_mid", "layers.1.mlp_in", "layers.1.attn_z"),
    "gemma2": (*STREAM, "layers.1.resid_mid"),
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@pytest.mark.parametrize("family", few(tiny.FAMILIES, 2))
def test_a_family_is_proven_at_its_places_and_writes_what_generate_writes(family: str) -> None:
    model = tiny.model(family, **CHANGES.get(family, WIDE))
    prompts = [tiny.prompt_of(seed, length) for seed, length in enumerate((1, 2, 17, 40, 64))]
    wanted = [generate(model, prompt, 24) for prompt in prompts]
    sites = {Site.parse(name): frozenset((Norm.NONE,)) for name in PLACES.get(family, STREAM)}
    loaded = LoadedModel(family, model, tiny.tokenizer(), "", (tiny.EOS,), 256)
    served = serve_in_vllm(
        loaded, sites, Wishes(count=4, length=128), Capacity(2, 2, 2, 2, 2), lambda *_: None
    )
    served.prove(lambda *_: None)
    with Asked(VllmEngine(served, tiny.tokenizer(), (tiny.EOS,), 4)) as engine:
        answers = [engine.ask(prompt, GREEDY) for prompt in prompts]
        for answer, (tokens, gaps) in zip(answers, wanted, strict=True):
            assert not differs(answer.wait().tokens(), tokens, gaps)
