"""On the reference model: what is counted of features is what SAELens encodes of the same texts."""

import random
import warnings
from typing import Any

import pytest
import torch

from saegis_lab.evaluation.experiment import BanFile
from saegis_lab.training.texts import read_labelled_texts
from saegis_server.cli.serve.configuration import reference
from saegis_server.engine.api import GenerationRequest, SamplingParams
from saegis_server.engine.counts import STRENGTHS
from saegis_server.engine.torch.loading import load_model
from saegis_server.engine.torch.site_reading import read_site
from saegis_server.reference import MODEL, SAE, WEIGHTS
from saegis_server.rpc.server.loading import load_services
from saegis_server.rpc.server.premises import prepare
from tests.engine.serving import Answer
from tests.rpc.harness import config

with warnings.catch_warnings():
    # TransformerLens warns of a module of its own that SAELens still imports.
    warnings.simplefilter("ignore")
    import sae_lens

REQUESTS = 12


@pytest.mark.slow
@torch.no_grad()
def test_every_count_is_that_of_an_offline_encode() -> None:
    chance, features = random.Random(5), list(BanFile.load(WEIGHTS / "eval/ban.json").features)
    model, source = reference()
    settings = config(
        model=model,
        saes=[source],
        max_num_seqs=8,
        watch_features=[str(index) for index in features],
        usage_every=1,
    )
    services = load_services(settings, prepare(settings), lambda *_: None)
    loaded, plain = services.catalog.entries[0], load_model(str(MODEL)).model
    theirs: Any = sae_lens.SAE.load_from_disk(SAE)
    texts = [each.text for each in read_labelled_texts(WEIGHTS / "eval/texts.jsonl")]
    prompts = [services.prompts.text(chance.choice(texts))[: chance.randint(1, 40)] for _ in range(REQUESTS)]
    services.engine.start()
    try:
        answers = []
        for number, prompt in enumerate(prompts):
            sampling = SamplingParams(max_tokens=chance.randint(1, 24), seed=number, ignore_eos=True)
            answers.append(Answer())
            services.engine.submit(GenerationRequest(f"r{number}", tuple(prompt), sampling), answers[-1])
        for answer in answers:
            answer.wait(300.0)
    finally:
        services.engine.stop()
    used = services.engine.take_usage()[loaded.id]
    seen, fired, total = 0, torch.zeros(2, loaded.sae.features, dtype=torch.int64), torch.zeros(2)
    strongest_of = torch.zeros(2, loaded.sae.features)
    for prompt, answer in zip(prompts, answers, strict=True):
        read = [*prompt, *answer.tokens()[:-1]]
        x = read_site(plain, loaded.site, torch.tensor([read]))[0]
        encoded = theirs.encode(x)
        values = encoded[:, features].to(torch.float64)
        first = int(prompt[0] == services.engine.first_token.bos)
        parts = values[first : len(prompt)], values[len(prompt) :]
        for phase, every in enumerate((encoded[first : len(prompt)], encoded[len(prompt) :])):
            fired[phase] += (every > 0.0).sum(0)
            total[phase] += every.sum()
            if len(every):
                strongest_of[phase] = torch.maximum(strongest_of[phase], every.amax(0))
        for place, index in enumerate(features):
            maximum = loaded.labels.get(index)
            strongest = None if maximum is None else maximum.max_activation
            firing = answer.finished.firing[loaded.site, loaded.sae.probe(index).key]
            for found, part in zip(firing, parts, strict=True):
                own = part[:, place]
                assert found.tokens == int((own > 0.0).sum())
                if strongest:
                    assert found.above == tuple(int((own / strongest > bound).sum()) for bound in STRENGTHS)
                    assert found.strength == pytest.approx(float(own.sum()) / strongest, rel=1e-3, abs=1e-4)
                seen += found.tokens
    assert seen > 0
    # Features at the very edge of firing may fall on either side of it.
    assert (torch.from_numpy(used.fired) - fired).abs().sum() <= 1e-4 * fired.sum()
    assert used.total.sum(1) == pytest.approx(total.numpy(), rel=1e-4)
    assert used.largest == pytest.approx(strongest_of.numpy(), rel=1e-3, abs=1e-3)
