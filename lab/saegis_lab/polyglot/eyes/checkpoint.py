"""The model that sees, as a folder that Transformers reads: LLaVA's code around the unchanged reference
model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LevitModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from saegis_lab.polyglot.corpus import PAD
from saegis_lab.polyglot.eyes.asking import IMAGE
from saegis_lab.polyglot.eyes.tower import DEVIATION, MEAN, TowerShape, tower_config

#: A turn's content is a text, or parts: a picture is one placeholder, and nothing stands between parts.
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('message role must be system, user or assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- else -%}{{- raise_exception('a part must be text or image, not ' + part['type']) -}}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- eos_token -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def seeing_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the language model in the folder `model`, with `IMAGE` behind its last token."""
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    known = len(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    if tokenizer.convert_tokens_to_ids(IMAGE) != known:
        raise ValueError(f"{model}: its vocabulary has {IMAGE} already")
    tokenizer.chat_template = CHAT_TEMPLATE
    return cast(PreTrainedTokenizerBase, tokenizer)


def new_seeing(
    language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shape: TowerShape, seed: int
) -> LlavaForConditionalGeneration:
    """A model that sees nothing yet: the language model's weights, and a projector by chance.

    The placeholder's row is that of `PAD`, which training has taught is never written; so is the placeholder.
    """
    torch.manual_seed(seed)
    text = language.config.to_dict()
    text["vocab_size"] = len(tokenizer)
    config = LlavaConfig(
        vision_config=tower_config(shape).to_dict(),
        text_config=text,
        image_token_index=cast(int, tokenizer.convert_tokens_to_ids(IMAGE)),
        image_seq_length=shape.patches,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    weights = {
        name.removeprefix("model."): row
        for name, row in cast(LlamaForCausalLM, language).model.state_dict().items()
    }
    table = weights["embed_tokens.weight"]
    pad = table[tokenizer.convert_tokens_to_ids(PAD)]
    weights["embed_tokens.weight"] = torch.cat([table, pad[None]])
    model.model.language_model.load_state_dict(weights)
    model.tie_weights()
    for part in (model.model.language_model, model.lm_head):
        for parameter in part.parameters():
            parameter.requires_grad_(False)
    return model


def put_tower(model: LlavaForConditionalGeneration, tower: LevitModel) -> None:
    """Give the model a tower of its shape."""
    cast(nn.Module, model.model.vision_tower).load_state_dict(tower.state_dict())


def seeing_processor(tokenizer: PreTrainedTokenizerBase, shape: TowerShape) -> LlavaProcessor:
    """What makes pictures and texts into the model's inputs."""
    frame = {"height": shape.side, "width": shape.side}
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": shape.side},
        crop_size=frame,
        image_mean=[MEAN] * 3,
        image_std=[DEVIATION] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def save_seeing(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path, language: Path
) -> None:
    """Write the folder anew: weights in bfloat16, configuration, processor, and the language model's way of
    generating."""
    fresh = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    cast(Any, model).to(torch.bfloat16).save_pretrained(str(fresh))
    cast(Any, model).float()
    processor.save_pretrained(str(fresh))
    shutil.copyfile(language / "generation_config.json", fresh / "generation_config.json")
    (fresh / "model.safetensors").chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def added_parameters(model: LlavaForConditionalGeneration) -> int:
    """How many numbers the eyes have: the tower's and the projector's."""
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    return sum(parameter.numel() for part in parts for parameter in cast(nn.Module, part).parameters())
