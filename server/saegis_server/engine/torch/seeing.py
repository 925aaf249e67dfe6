"""Seeing: what a model's vision tower makes of the pictures of a prompt, and at which of its tokens.

Served are models that put a tower's vectors in the place of placeholder tokens and then read them as they
read any others, each token seeing those before it. The tower runs once for each picture, outside the compiled
step; a chunk of the prompt gets those of its vectors that lie within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoProcessor, PretrainedConfig, PreTrainedModel

from saegis_server.engine.pictures import Grid, Placed, Shown
from saegis_server.engine.torch.attention import unsupported

#: The families that see here, by the type of their configurations: the ones whose rules are met exactly.
SEEING = frozenset({"llava", "idefics3"})
#: What the others of which this is known would need.
_NOT_YET = {
    "smolvlm": "its processor needs the package num2words, which is no requirement here",
    "gemma3": "its tokens of a picture see each other both ways",
    "paligemma": "its whole prompt sees itself both ways",
    "qwen2_vl": "its positions within a picture are of three dimensions",
    "qwen2_5_vl": "its positions within a picture are of three dimensions",
    "qwen3_vl": "its positions within a picture are of three dimensions, and its tower writes to layers",
    "llava_next": "how many tokens a picture takes depends on its shape, which is not compared yet",
}


def sees(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration is served with pictures."""
    return config.model_type in SEEING


def why_blind(config: PretrainedConfig) -> str:
    """Why a model of this configuration is not served with pictures, in words."""
    return _NOT_YET.get(config.model_type, "it is not of a family that is served with pictures")


class Seen(NamedTuple):
    """What a chunk of Q tokens shows of pictures: vectors [P, d] in the model's dtype, and which of them each
    token takes, int64 [Q], -1 for none."""

    vectors: Tensor
    taken: Tensor

    def beside(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """For a step of tokens int64 [1, Q'], Q' not below Q: those and under them which vectors they take,
        [2, Q'], and at least two vectors, since to the compiler a dimension of size 1 is a constant."""
        more = tokens.shape[1] - len(self.taken)
        taken = functional.pad(self.taken, (0, more), value=-1)
        vectors = functional.pad(self.vectors, (0, 0, 0, max(0, 2 - len(self.vectors))))
        return torch.cat((tokens, taken[None])), vectors.clone()


class TowerEyes:
    """The eyes of a Transformers model: its own processor prepares pictures, its own tower looks at them."""

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        """Raises UnsupportedModelError for a processor that does not fit the model."""
        self.model, self._processor = model, processor
        # Image processors are not said to be safe to use from several threads.
        self._lock = Lock()
        placeholder = getattr(processor, "image_token", None)
        self.placeholder = str(getattr(placeholder, "content", placeholder))
        self.placeholder_id: int = model.config.image_token_id
        if processor.tokenizer.convert_tokens_to_ids(self.placeholder) != self.placeholder_id:
            raise unsupported(
                model,
                f"its processor writes {self.placeholder!r} for a picture, "
                f"which is not token {self.placeholder_id}, as its configuration says",
            )
        if not self.placeholder_id < model.config.get_text_config().vocab_size:
            raise unsupported(model, "the token that stands for a picture is not in its vocabulary")

    @classmethod
    def of(cls, model: PreTrainedModel, spec: str, revision: str | None) -> TowerEyes:
        """Those of a checkpoint; no code of it is run. Raises whatever reading its processor raises."""
        read: Any = AutoProcessor.from_pretrained
        return cls(model, read(spec, revision=revision, trust_remote_code=False))

    def show(self, image: Image.Image) -> Shown:
        """What the model is shown of a picture in RGB. Raises ValueError for one that cannot be shown."""
        with self._lock:
            given = dict(
                self._processor(
                    text=[self.placeholder],
                    images=[image],
                    text_kwargs={"add_special_tokens": False},
                    return_tensors="pt",
                )
            )
        tokens = tuple(given.pop("input_ids")[0].tolist())
        places = tuple(place for place, token in enumerate(tokens) if token == self.placeholder_id)
        inputs = {name: value for name, value in given.items() if name.startswith("pixel_")}
        return Shown(tokens, places, inputs, self._grids(image, inputs["pixel_values"], places))

    def _grids(self, image: Image.Image, pixels: Tensor, places: Sequence[int]) -> tuple[Grid, ...]:
        """How the places of a picture lie on it; none where that is not known."""
        tiles = pixels.shape[-4] if pixels.ndim == 5 else 1
        side = round((len(places) / tiles) ** 0.5)
        if side * side * tiles != len(places):
            return ()
        starts = places[:: side * side]
        if tiles == 1:
            return (Grid(starts[0], side, side, *self._covered(image)),)
        count: Any = getattr(self._processor.image_processor, "get_number_of_image_patches", None)
        _, rows, columns = (0, 0, 0) if count is None else count(image.height, image.width, {})
        if rows * columns + 1 != tiles:
            return ()
        boxes = [
            (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
            for row in range(rows)
            for column in range(columns)
        ]
        whole = (0.0, 0.0, 1.0, 1.0)
        return tuple(
            Grid(start, side, side, *box) for start, box in zip(starts, [*boxes, whole], strict=True)
        )

    def _covered(self, image: Image.Image) -> tuple[float, float, float, float]:
        """Which part of a picture its grid covers: all, or what a crop around its middle leaves."""
        processor = self._processor.image_processor
        crop, size = getattr(processor, "crop_size", None), getattr(processor, "size", None)
        if not getattr(processor, "do_center_crop", False) or crop is None or size is None:
            return 0.0, 0.0, 1.0, 1.0
        shortest = getattr(size, "shortest_edge", None) or size.get("shortest_edge")
        if not shortest:
            return 0.0, 0.0, 1.0, 1.0
        scale = shortest / min(image.size)
        spans = [
            min(1.0, crop[name] / (length * scale))
            for name, length in zip(("width", "height"), image.size, strict=True)
        ]
        (left, right), (top, bottom) = (((1 - span) / 2, (1 + span) / 2) for span in spans)
        return left, top, right, bottom

    def inputs_of(self, shown: Shown) -> dict[str, Tensor]:
        """What the tower is given of a picture, on the model's device."""
        model = self.model
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in shown.inputs.items()
        }

    @torch.inference_mode()
    def look(self, shown: Shown) -> Tensor:
        """What the tower makes of a picture: vectors [places, d] in the model's dtype, on its device.

        Raises ValueError where they are not as many as the picture has places.
        """
        model: Any = self.model
        given = model.get_image_features(**self.inputs_of(shown), return_dict=True).pooler_output
        vectors: Tensor = torch.cat(list(given)).flatten(0, -2).to(model.device, model.dtype)
        if len(vectors) != len(shown.places):
            raise ValueError(
                f"the tower gives {len(vectors)} vectors for the {len(shown.places)} places of a picture"
            )
        return vectors


class Sight:
    """The pictures of one prompt: looked at once, when the first chunk comes that shows something of them."""

    def __init__(self, eyes: TowerEyes | None, pictures: Sequence[Placed]) -> None:
        """`eyes` may be None where there are no pictures."""
        self._eyes, self._pictures = eyes, pictures
        self._looked: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.inference_mode()
    def within(self, start: int, end: int) -> Seen | None:
        """What the tokens `start` to `end` of the prompt show of pictures; None where it is nothing."""
        shown, at = [], []
        for number, each in enumerate(self._pictures):
            if each.start < end and start < each.end:
                places, vectors = self._look(number)
                inside = (places >= start) & (places < end)
                shown.append(vectors[inside])
                at.append(places[inside] - start)
        if not shown:
            return None
        vectors, places = torch.cat(shown), torch.cat(at)
        taken = places.new_full((end - start,), -1)
        taken[places] = torch.arange(len(places), device=places.device)
        return Seen(vectors, taken)

    def _look(self, number: int) -> tuple[Tensor, Tensor]:
        """Where in the prompt the places of a picture are, int64 [n], and its vectors [n, d]."""
        if number not in self._looked:
            if self._eyes is None:
                raise RuntimeError("a model without eyes was shown a picture")
            placed = self._pictures[number]
            vectors = self._eyes.look(placed.shown)
            places = torch.tensor(placed.shown.places, device=vectors.device) + placed.start
            self._looked[number] = places, vectors
        return self._looked[number]

    def forget(self) -> None:
        """Forget what was seen: the prompt has been read."""
        self._looked.clear()


#: The sight of a prompt without pictures.
BLIND = Sight(None, ())
