"""Pictured texts: the token ids of labelled texts, and what a model that sees is shown of their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from saegis_lab.training.activations import Seen
from saegis_lab.training.texts import LabelledText
from saegis_server.engine.pictures import Shown
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.seeing import TowerEyes
from saegis_server.pictures.decoder import Decoder, PictureError
from saegis_server.pictures.limits import PictureLimits


class PicturedTextError(ValueError):
    """A text whose picture cannot be shown to the model, and why."""


@dataclass(frozen=True)
class Encoded:
    """rows: the token ids of each text, cut to the model's context; cut: how many were longer. seen: of the
    texts with a picture, by their numbers, what the model's vision tower is given of it."""

    rows: list[list[int]]
    cut: int
    seen: Seen


def encoded(loaded: LoadedModel, texts: Sequence[LabelledText], raw: bool) -> Encoded:
    """The texts as the model reads them. A picture stands where the text has the model's token for one, or
    else before the text, behind the token that begins every text.

    raw: whether the texts carry their special tokens. Raises PicturedTextError.
    """
    encode, most = loaded.tokenizer.encode, loaded.max_context
    rows = [list(encode(text.text, add_special_tokens=not raw, verbose=False)) for text in texts]
    seen = {}
    with closing(Decoder(PictureLimits(), workers=1)) as decoder:
        for number, text in enumerate(texts):
            if loaded.eyes is None or text.image is None:
                _check_unpictured(loaded, number, text, rows[number])
                continue
            shown = _shown(loaded.eyes, decoder, text.image)
            rows[number], end = _placed(loaded, loaded.eyes, number, rows[number], shown)
            if end > most:
                raise PicturedTextError(
                    f"{text.image}: its last token is the {end}th, the context has {most}"
                )
            seen[number] = loaded.eyes.inputs_of(shown)
    cut = sum(len(row) > most for row in rows)
    return Encoded([row[:most] for row in rows], cut, seen)


def _check_unpictured(loaded: LoadedModel, number: int, text: LabelledText, row: Sequence[int]) -> None:
    """Raise PicturedTextError for a picture before a model that sees none, and for its token alone."""
    if text.image is not None:
        raise PicturedTextError(f"{text.image}: the model {loaded.name} sees no pictures")
    if loaded.eyes is not None and loaded.eyes.placeholder_id in row:
        raise PicturedTextError(f"text {number + 1} has the token {loaded.eyes.placeholder} and no picture")


def _shown(eyes: TowerEyes, decoder: Decoder, image: Path) -> Shown:
    """What the model is shown of a picture's file."""
    try:
        return eyes.show(decoder.decode(image.read_bytes()).image)
    except (OSError, PictureError, ValueError) as error:
        raise PicturedTextError(f"{image}: {error}") from error


def _placed(
    loaded: LoadedModel, eyes: TowerEyes, number: int, row: list[int], shown: Shown
) -> tuple[list[int], int]:
    """The tokens of a text with those of its picture in their place, and behind which of them those end."""
    held = row.count(eyes.placeholder_id)
    if held > 1:
        raise PicturedTextError(f"text {number + 1} has the token {eyes.placeholder} more than once")
    at = row.index(eyes.placeholder_id) if held else int(row[:1] == [loaded.bos_token_id])
    return [*row[:at], *shown.tokens, *row[at + held :]], at + len(shown.tokens)
