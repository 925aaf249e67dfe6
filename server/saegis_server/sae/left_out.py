"""Left out: the tokens of a text that statistics of features do not count. Rules act on them all the same."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from saegis_server.sae.autoencoder import SparseAutoencoder

#: The special tokens that SAELens means by `exclude_special_tokens: true`; those of chats are not among them.
_STRUCTURAL = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id")


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that mark the beginning, the end and the padding of texts."""
    named = (getattr(tokenizer, name, None) for name in _STRUCTURAL)
    return frozenset(token for token in named if isinstance(token, int))


def excluded_tokens(sae: SparseAutoencoder, special: frozenset[int]) -> frozenset[int]:
    """The tokens that an SAE was not trained on; `special` are the tokenizer's special ones."""
    return special if sae.excluded_tokens is None else sae.excluded_tokens


def left_out(tokens: Sequence[int], sae: SparseAutoencoder, special: frozenset[int], first: int) -> Tensor:
    """Which tokens of a text are left out, bool [T]: the first `first` ones, and those that the SAE was not
    trained on; `special` are the tokenizer's special ones."""
    excluded = excluded_tokens(sae, special)
    flags = [place < first or token in excluded for place, token in enumerate(tokens)]
    return torch.tensor(flags, dtype=torch.bool)
