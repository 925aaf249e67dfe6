"""Checkpoints: heads made wider change no logit, and what cannot be made wider is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from saegis_server.engine.vllm.checkpoint import WIDTHS, UnservedModelError, checkpoint_of, head_width
from tests.engine import tiny


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_wider_heads_give_the_same_logits(family: str) -> None:
    """By Transformers' own code on both."""
    model, ids = tiny.model(family), torch.tensor([tiny.prompt_of(1, 30)])
    assert head_width(model.config) not in WIDTHS
    make: Any = AutoModelForCausalLM.from_pretrained
    with checkpoint_of(model) as folder:
        wider = make(folder, attn_implementation="eager").train(False)
    assert head_width(wider.config) == 32
    with torch.no_grad():
        found, wanted = wider(input_ids=ids).logits, model(input_ids=ids).logits
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.std())


def test_a_folder_is_read_as_it_is_where_heads_fit(tmp_path: Path) -> None:
    with checkpoint_of(tiny.model(head_dim=32), tmp_path) as folder:
        assert folder == str(tmp_path)
    with checkpoint_of(tiny.model(head_dim=32)) as folder:
        assert (Path(folder) / "model.safetensors").is_file()
    assert not Path(folder).exists()


def test_what_cannot_be_wider_is_refused_by_name() -> None:
    half = tiny.model()
    nn.Module.to(half, torch.bfloat16)
    for model, why in (
        (tiny.model("gpt2"), r"the model \(gpt2\) has heads of width 12"),
        (tiny.model("qwen2"), r"the model \(qwen2\) has heads of width 12"),
        (half, "served in bfloat16"),
        (tiny.model(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), "width 12"),
    ):
        with pytest.raises(UnservedModelError, match=why), checkpoint_of(model):
            pass
