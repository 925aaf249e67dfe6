"""The words that pictures become: one vector a subject at the language model's input, found through the
frozen model by what it answers to questions in text."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saegis_lab.polyglot.eyes.scenes import COVERED
from saegis_lab.polyglot.eyes.streams import Through, teach_through
from saegis_lab.polyglot.eyes.subjects import ICONS
from saegis_lab.polyglot.lexicon import lexicon

#: Of the words' length, what is added to each token by chance; and the share of patches whose cover is taken
#: for its opposite. A tower is never sure either.
_NOISE, _MISTAKEN = 0.25, 0.1


class Words(nn.Module):
    """`subjects` [27, d]: one for each of `ICONS`, the last for what shows none of them; `ground` [d]: for
    patches that show nothing."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        table = cast(nn.Embedding, model.get_input_embeddings()).weight.detach()
        rows = [table[_mentioned(tokenizer, key)].mean(0) for key in ICONS]
        self.subjects = nn.Parameter(torch.stack([*rows, torch.stack(rows).mean(0)]).clone())
        self.ground = nn.Parameter(torch.stack(rows).mean(0).clone())

    def tokens(self, subjects: Tensor, cover: Tensor) -> Tensor:
        """The words of pictures' patches, [b, patches, d], from subjects [b] and the share of each patch that
        shows them, [b, patches]."""
        return torch.where((cover > COVERED)[..., None], self.subjects[subjects][:, None], self.ground)


def _mentioned(tokenizer: PreTrainedTokenizerBase, key: str) -> list[int]:
    """The tokens that name a subject in all languages."""
    names = [" " + language.subjects[key].about for language in lexicon().values()]
    encoded = tokenizer(names, add_special_tokens=False)["input_ids"]
    return [token for ids in encoded for token in ids]


def find_words(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: Through,
    covers: Tensor,
    seed: int,
    folder: Path,
) -> Words:
    """The words, found with pictures that cover their patches as `covers`, float32 [n, patches], tells; see
    `teach_through`."""
    words = Words(model, tokenizer)
    size = words.subjects.detach().norm(dim=-1).mean() / words.subjects.shape[1] ** 0.5

    def draw(subjects: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        cover = covers[torch.randint(len(covers), (len(subjects),), generator=chance)]
        mistaken = torch.rand(cover.shape, generator=chance) < _MISTAKEN
        cover = torch.where(mistaken, 1.0 - cover, cover)
        tokens = words.tokens(subjects, cover)
        return tokens + _NOISE * size * torch.randn(tokens.shape, generator=chance), cover

    teach_through("words", model, tokenizer, training, words, draw, seed, folder)
    return words
