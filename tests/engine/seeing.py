"""Small random models that see, of every family that is served with pictures, and pictures to show them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from saegis_server.engine.pictures import Placed
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.seeing import TowerEyes
from tests.engine import tiny

FAMILIES = ("llava", "llava_qwen2", "idefics3", "idefics3_tiles")
_TILE, _PATCH = 16, 4
_TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<image>' }}{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)


class Seeing(NamedTuple):
    """A model that sees, as it was made and not served yet, with its processor."""

    model: PreTrainedModel
    processor: Any

    @property
    def eyes(self) -> TowerEyes:
        """What shows it pictures."""
        return TowerEyes(self.model, self.processor)

    @property
    def loaded(self) -> LoadedModel:
        """The model as loading gives it."""
        tokenizer: PreTrainedTokenizerFast = self.processor.tokenizer
        return LoadedModel("tiny", self.model, tokenizer, "", (tiny.EOS,), 256, self.eyes)


def tokenizer() -> PreTrainedTokenizerFast:
    """The bytes' tokenizer, which also has the tokens that the processors write."""
    made = tiny.tokenizer()
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2, 3, 4) for column in (1, 2, 3, 4)]
    names = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles]
    made.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    made.chat_template = _TEMPLATE
    return made


def make(family: str, seed: int = 0) -> Seeing:
    """A random model of a family, whose logits differ enough for greedy decoding to be stable."""
    torch.manual_seed(seed)
    words = tokenizer()
    image: Any = words.convert_tokens_to_ids("<image>")
    text: dict[str, Any] = {
        "vocab_size": len(words) + 3,
        "hidden_size": tiny.WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "bos_token_id": 256,
        "eos_token_id": tiny.EOS,
        "pad_token_id": 258,
    }
    vision: dict[str, Any] = {
        "image_size": _TILE,
        "patch_size": _PATCH,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
    }
    seeing = (
        _llava(family, words, image, text, vision)
        if "llava" in family
        else _idefics3(family, words, image, text, vision)
    )
    seeing.model.train(False).requires_grad_(False)
    for parameter in seeing.model.parameters():
        if parameter.ndim > 1 and float(parameter.std()) < 0.1:
            torch.nn.init.normal_(parameter, std=0.15)
    assert seeing.model.generation_config is not None
    seeing.model.generation_config.eos_token_id = None
    return seeing


def _llava(
    family: str, words: PreTrainedTokenizerFast, image: int, text: dict[str, Any], vision: dict[str, Any]
) -> Seeing:
    kind: Any = Qwen2Config if family == "llava_qwen2" else LlamaConfig
    strategy = "full" if family == "llava_qwen2" else "default"
    configure: Any = LlavaConfig
    config = configure(
        vision_config=CLIPVisionConfig(projection_dim=16, **vision),
        text_config=kind(**text),
        image_token_id=image,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-2 if strategy == "full" else -1,
    )
    side = {"height": _TILE, "width": _TILE}
    pixels = CLIPImageProcessorPil(size={"shortest_edge": _TILE}, crop_size=side)
    make_processor: Any = LlavaProcessor
    processor = make_processor(
        pixels,
        words,
        patch_size=_PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    return Seeing(LlavaForConditionalGeneration(config), processor)


def _idefics3(
    family: str, words: PreTrainedTokenizerFast, image: int, text: dict[str, Any], vision: dict[str, Any]
) -> Seeing:
    config = Idefics3Config(
        vision_config=vision, text_config=LlamaConfig(**text), image_token_id=image, scale_factor=2
    )
    make_pixels: Any = Idefics3ImageProcessorPil
    pixels = make_pixels(
        do_image_splitting=family.endswith("tiles"),
        size={"longest_edge": 2 * _TILE},
        max_image_size={"longest_edge": _TILE},
    )
    make_processor: Any = Idefics3Processor
    tokens = (_TILE // _PATCH) ** 2 // 4
    processor = make_processor(pixels, words, image_seq_len=tokens, chat_template=_TEMPLATE)
    make_model: Any = Idefics3ForConditionalGeneration
    return Seeing(make_model(config), processor)


def picture(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    """A random picture in RGB."""
    noise = torch.randint(
        256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return Image.frombytes("RGB", (width, height), noise.numpy().tobytes())


class Prompted(NamedTuple):
    """A prompt with its pictures: as the engine is given it, and as Transformers' model is."""

    tokens: list[int]
    pictures: tuple[Placed, ...]
    given: dict[str, Tensor]


def prompted(seeing: Seeing, seed: int, pictures: Sequence[Image.Image], length: int = 9) -> Prompted:
    """A prompt in which random texts and pictures take turns; by the eyes, and by the processor itself."""
    eyes, tokens, placed = seeing.eyes, list[int](), list[Placed]()
    for number, each in enumerate(pictures):
        tokens += tiny.prompt_of(100 * seed + number, length)
        shown = eyes.show(each)
        placed.append(Placed(len(tokens), shown))
        tokens += shown.tokens
    tokens += tiny.prompt_of(100 * seed + 99, length)
    given: dict[str, Tensor] = {}
    if pictures:
        text = "".join([seeing.processor.image_token] * len(pictures))
        whole = seeing.processor(text=[text], images=[list(pictures)], return_tensors="pt")
        given = {name: value for name, value in whole.items() if name.startswith("pixel_")}
    return Prompted(tokens, tuple(placed), given)
