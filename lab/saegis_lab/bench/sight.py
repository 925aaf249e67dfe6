"""Sight: what a vision tower costs those who send text alone, beside the same text model without one."""

from dataclasses import replace
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from saegis_lab.bench.loads import prompts, tokens_per_second, warm_step
from saegis_lab.bench.report import Ratio
from saegis_lab.bench.run import CONCURRENT, OPERATING_ROUNDS, in_own_thread, take_turns
from saegis_lab.bench.subjects import Subject
from saegis_server.engine.api import Progress


def with_tower(text: PreTrainedModel) -> PreTrainedModel:
    """A LLaVA whose text model is a copy of `text`, of Llama's kind, with a small random tower beside it."""
    vision = CLIPVisionConfig(
        image_size=48,
        patch_size=8,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    configure: Any = LlavaConfig
    config = configure(vision_config=vision, text_config=text.config, image_token_id=0)
    made: Any = LlavaForConditionalGeneration(config)
    own: Any = text
    made.model.language_model.load_state_dict(own.model.state_dict())
    made.lm_head.load_state_dict(own.lm_head.state_dict())
    seeing: PreTrainedModel = made.to(text.device, text.dtype)
    seeing.train(False).requires_grad_(False)
    return seeing


def sight(subject: Subject, rounds: int, progress: Progress) -> list[Ratio]:
    """Tokens a second of requests without pictures, with a tower in the model and without. Compiles twice."""
    torch.manual_seed(0)
    seeing = replace(subject, make=lambda: with_tower(subject.make()))
    asked = in_own_thread(lambda: prompts(subject, CONCURRENT))
    plain = in_own_thread(lambda: warm_step(subject, (subject.site,), CONCURRENT, progress))
    beside = in_own_thread(lambda: warm_step(seeing, (subject.site,), CONCURRENT, progress))
    progress("text alone on a model that sees", 0, 1)
    ours, theirs = take_turns(
        [lambda: tokens_per_second(beside, asked), lambda: tokens_per_second(plain, asked)],
        OPERATING_ROUNDS * rounds,
    )
    what = f"{CONCURRENT} texts on a model with a vision tower"
    return [Ratio.of(subject.title, what, "the same without one", ours, theirs, "≥ 0.98")]
