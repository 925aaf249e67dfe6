"""What is served is proven against Transformers and at each site; where it is wrong it is not served."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.api import CanaryError, FidelityError
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.reference import record
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.vllm.checkpoint import UnservedModelError
from saegis_server.engine.vllm.served import Served, serve_in_vllm
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.on_plain_core import LENGTH, plain_served
from tests.engine.plain_core import PlainCore
from tests.engine.ranked import SAES


def served() -> Served:
    """On the plain core, with the model as its own oracle."""
    model = tiny.model()
    made = plain_served(model, 2, 8)
    made.reference = record(model, tiny.SITES, LENGTH)
    made.oracle = model
    return made


def core_of(made: Served) -> PlainCore:
    """The plain core."""
    assert isinstance(made.core, PlainCore)
    return made.core


def test_what_is_right_is_proven_and_the_oracle_let_go() -> None:
    made, told = served(), list[str]()
    oracle = made.oracle
    made.prove(lambda stage, done, of: told.append(stage))
    assert told == ["comparing with Transformers", *(f"canary at {site}" for site in tiny.SITES), "ready"]
    assert made.oracle is None
    assert oracle is not None
    assert oracle.device.type == "meta"


def test_what_was_not_tried_is_refused_before_vllm_is_started() -> None:
    wishes, told = Wishes(count=2, length=LENGTH), list[str]()
    ranked = {site: [each] for site, sae in SAES.items() if (each := sae.ranked("cpu")) is not None}

    def serve(model: PreTrainedModel, **options: Any) -> None:
        loaded = LoadedModel("tiny", model, tiny.tokenizer(), "", (tiny.EOS,), 256)
        serve_in_vllm(
            loaded, tiny.SITES, wishes, Capacity(), lambda what, done, of: told.append(what), **options
        )

    half: Any = tiny.model()
    with pytest.raises(UnservedModelError, match="in float16, and the vllm engine was tried in float32 and"):
        serve(half.to(torch.float16))
    with pytest.raises(ValueError, match="tensor_parallel_size: SAEs that decide by rank are served by one"):
        serve(tiny.model(), ranked=ranked, ranks=2)
    assert not told


def test_other_logits_are_refused_with_both_numbers() -> None:
    made = served()
    head: Any = core_of(made).model.get_output_embeddings
    with torch.no_grad():
        head().weight[7] *= 1.1
    with pytest.raises(
        FidelityError, match=r"a text: in vLLM the logit of token 7 is .*Transformers' own code"
    ):
        made.prove(lambda *_: None)


def test_a_site_whose_change_goes_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read there moves as it should; the model goes on with what was there."""
    made = served()
    made.reference, steered = None, core_of(made).steered
    steer = steered.steer

    def lost(number: int, x: Tensor) -> Tensor:
        changed = steer(number, x)
        return x if number == 1 else changed

    monkeypatch.setattr(steered, "steer", lost)
    with pytest.raises(CanaryError, match=r"layers.1.resid_post: in vLLM an edit .* change the logits"):
        made.prove(lambda *_: None)
