"""The reference: what Transformers' own code gives, recorded before the engine's attention is in a model.

It is of a text that goes past the model's windows, chunks and original RoPE length where that costs little,
and of the masks of its layers where it does not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.pictures import Placed
from saegis_server.engine.sites import decoder_layers
from saegis_server.engine.torch.attention import attend_with, unsupported
from saegis_server.engine.torch.context import StepContext
from saegis_server.engine.torch.masks import SeenPlaces
from saegis_server.engine.torch.rope import original_length
from saegis_server.engine.torch.seeing import TowerEyes
from saegis_server.engine.torch.site_reading import Edit, edited
from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site

#: A text of so many tokens at least, and how far it goes past what limits the model's view.
SHORT, _PAST = 12, 6
#: So many tokens are decoded one by one, alone and then again beside another text.
DECODED = 3
#: What a start may spend on a text: its tokens times the model's weights.
_AFFORDABLE = {"cpu": 1.5e11, "cuda": 2e13}


class Seen(NamedTuple):
    """What each layer sees from the last token of a text of `length` tokens, bool [length] by layer."""

    length: int
    layers: tuple[Tensor, ...]


class Reference(NamedTuple):
    """What Transformers gives: logits float32 [N, V] after the tokens at `places` of `tokens`.

    steered: the same of the first SHORT tokens, `writes` [d] added at the sites. seen: masks at lengths that
    the text does not reach.
    """

    tokens: list[int]
    places: list[int]
    logits: Tensor
    steered: Tensor
    programs: dict[Site, tuple[Probe, float]]
    seen: tuple[Seen, ...]
    picture: "PictureReference | None" = None


class PictureProbe(NamedTuple):
    """A picture between two texts: the tokens of all, and where the picture is."""

    tokens: list[int]
    placed: Placed

    @property
    def length(self) -> int:
        """How many tokens there are."""
        return len(self.tokens)


class PictureReference(NamedTuple):
    """What Transformers gives for a text with a picture: logits float32 [DECODED + 2, V] after its last
    tokens, plain, and steered as `programs` say."""

    probe: PictureProbe
    logits: Tensor
    steered: Tensor
    programs: dict[Site, tuple[Probe, float]]


@torch.inference_mode()
def record(model: PreTrainedModel, sites: Iterable[Site], served: int) -> Reference | None:
    """What Transformers gives with its eager attention, for a context of `served` tokens; None for one that
    is too short to compare anything. The model attends eagerly afterwards."""
    if served < SHORT:
        return None
    attend_with(model, "eager")
    weights = sum(parameter.numel() for parameter in model.parameters())
    affordable = int(_AFFORDABLE[model.device.type] / weights)
    beyond = [limit + _PAST for limit in view_limits(model) if limit + _PAST <= served]
    length = max([SHORT, *(each for each in beyond if each <= affordable)])
    tokens = text_of(model, length)
    places = [length - DECODED - 2, *range(length - DECODED - 1, length)]
    logits, programs = _measured(model, sites, lambda: _logits(model, tokens, places))
    with _at(model, _edits(programs)):
        steered = _logits(model, tokens[:SHORT], [SHORT - 2, SHORT - 1])
    seen = tuple(
        Seen(each, masks_told(model, tokens[0], _MaskedAt(StepContext(length=each))))
        for each in beyond
        if each > length
    )
    return Reference(tokens, places, logits, steered, programs, seen)


def _measured(
    model: PreTrainedModel, sites: Iterable[Site], run: Callable[[], Tensor]
) -> tuple[Tensor, dict[Site, tuple[Probe, float]]]:
    """What a pass gives, and for each site a direction to add there, of a size that its activations tell."""
    sizes: dict[Site, tuple[int, float]] = {}

    def measure(site: Site, x: Tensor) -> Tensor:
        sizes[site] = x.shape[-1], float(x.float().norm(dim=-1).mean())
        return x

    with _at(model, [(site.written_at, partial(measure, site)) for site in sites]):
        logits = run()
    programs = {}
    for number, (site, (width, norm)) in enumerate(sizes.items()):
        direction = torch.randn(width, generator=torch.Generator().manual_seed(number))
        programs[site] = (Probe.direction(direction), norm / 4)
    return logits, programs


def _edits(programs: Mapping[Site, tuple[Probe, float]]) -> list[tuple[Site, Edit]]:
    return [
        (site.written_at, partial(_shift, probe.write * size)) for site, (probe, size) in programs.items()
    ]


def probe_of(eyes: TowerEyes) -> PictureProbe:
    """A fixed picture between two texts. It is long and narrow: cut into tiles, it has few."""
    colours = torch.randint(256, (16, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shown = eyes.show(Image.frombytes("RGB", (64, 16), colours.numpy().tobytes()))
    text = text_of(eyes.model, SHORT)
    middle = SHORT - DECODED - 2
    tokens = [*text[:middle], *shown.tokens, *text[middle:]]
    return PictureProbe(tokens, Placed(middle, shown))


@torch.inference_mode()
def record_picture(
    model: PreTrainedModel, sites: Iterable[Site], eyes: TowerEyes, probe: PictureProbe
) -> PictureReference:
    """What Transformers gives with its eager attention for a text with a picture, all at once."""
    attend_with(model, "eager")
    given, last = eyes.inputs_of(probe.placed.shown), range(probe.length - DECODED - 2, probe.length)

    def run() -> Tensor:
        return _logits(model, probe.tokens, list(last), **given)

    logits, programs = _measured(model, sites, run)
    with _at(model, _edits(programs)):
        return PictureReference(probe, logits, run(), programs)


def view_limits(model: PreTrainedModel) -> list[int]:
    """After how many tokens a model's view changes: its windows, its chunks and its original RoPE length."""
    config = model.config.get_text_config()
    named = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    of_masks = [int(each) for each in named if isinstance(each, int) and each > 0]
    return sorted({*of_masks, *([original] if (original := original_length(model)) else [])})


def text_of(model: PreTrainedModel, length: int) -> list[int]:
    """A fixed text of tokens that stand for text: none that the configuration names for something else."""
    config = model.config.get_text_config()
    named = {
        value
        for each in (model.config, config)
        for key, value in vars(each).items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    usable = [token for token in range(min(config.vocab_size, 1000)) if token not in named]
    picked = torch.randint(len(usable), (length,), generator=torch.Generator().manual_seed(0))
    return [usable[index] for index in picked.tolist()]


@contextmanager
def _at(model: PreTrainedModel, edits: Iterable[tuple[Site, Edit]]) -> Iterator[None]:
    with ExitStack() as opened:
        for site, edit in edits:
            opened.enter_context(edited(model, site, edit))
        yield


def _shift(vector: Tensor, x: Tensor) -> Tensor:
    return (x.float() + vector.to(x.device)).to(x.dtype)


def _logits(model: PreTrainedModel, tokens: list[int], places: list[int], **given: Tensor) -> Tensor:
    """Float32 logits [N, V] after the tokens at `places`, on the CPU; `given`: what a tower is given."""
    ids, keep = (torch.tensor(each, device=model.device) for each in ([tokens], places))
    output = model(input_ids=ids, use_cache=False, logits_to_keep=keep, **given)
    logits: Tensor = output.logits[0]
    return logits.float().cpu()


class _MaskedAt(SeenPlaces):
    """A cache as Transformers' own mask functions know it, before whose last token all has been read."""

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The position of the last token."""
        return self.context.length - 1


class _Done(Exception):
    """Raised to leave the forward pass once the last layer has told what it sees."""


def masks_told(model: PreTrainedModel, token: int, seen: SeenPlaces) -> tuple[Tensor, ...]:
    """What each layer is told that a last token sees, bool [K] on the CPU; no layer is computed."""
    layers, found, length = decoder_layers(model), [], seen.context.length

    def tell(hidden_states: Tensor, *others: Any, **named: Any) -> Any:
        masks = [each for each in (*others, *named.values()) if _is_mask(each, length)]
        if len(masks) != 1:
            raise unsupported(model, "its layers are not told what a token sees")
        mask = masks[0][0, 0, -1]
        found.append((mask if mask.dtype == torch.bool else mask == 0).cpu())
        if len(found) == len(layers):
            raise _Done
        return hidden_states

    try:
        for layer in layers:
            layer.forward = tell
        with suppress(_Done):
            model(
                input_ids=torch.tensor([[token]], device=model.device),
                position_ids=torch.tensor([[length - 1]], device=model.device),
                past_key_values=seen,
                use_cache=False,
            )
    finally:
        for layer in layers:
            del layer.forward
    return tuple(found)


def _is_mask(given: object, length: int) -> bool:
    return isinstance(given, Tensor) and given.ndim == 4 and given.shape[2:] == (1, length)
