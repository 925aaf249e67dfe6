"""Uses: what a request asks for beyond edits and ordinary generation, and the words that allow it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Use(StrEnum):
    """The words of `allow: [{uses: ...}]`. Each is denied unless a policy in force allows it."""

    LOGIT_BIAS = "logit_bias"
    """Any bias of logits: it can write text that no feature shows."""
    N = "n"
    """More than one completion: the best of many tries."""
    TEMPERATURE = "temperature"
    """A temperature above 1."""
    PICTURES = "pictures"
    """Any picture: what is in it is no text that anybody could look through."""
    TOKEN_IDS = "token_ids"  # noqa: S105 - no secret
    """A prompt of token ids, where the model has a chat template: control tokens and forged turns."""
    TEXT = "text"
    """A prompt of plain text, where the model has a chat template: it bypasses the template."""
    PREFILL = "prefill"
    """A conversation that ends in the assistant's turn: the caller writes the start of the answer."""
    SCORE = "score"
    """Score: log probabilities of a text that the caller chooses."""
    MOVES = "moves"
    """How far each token is moved, so at which of them rules act."""
    INSPECT = "inspect"
    """Inspect and ContrastFeatures: the activations that a text has without any rule."""
    UNRULED = "unruled"
    """Score's reading of the model without the operator's rules."""


#: The largest value that needs no word. Only these uses have a value, which an allowance may bound.
ORDINARY = {Use.N: 1.0, Use.TEMPERATURE: 1.0, Use.PICTURES: 0.0}


@dataclass(frozen=True, slots=True)
class UseOfRequest:
    """One use of a request. field: its path; empty for the whole request. value: of n, temperature and
    pictures."""

    use: Use
    field: str = ""
    value: float | None = None

    @property
    def shown(self) -> str:
        """In words: what is asked for."""
        return self.use.value if self.value is None else f"{self.use.value} {self.value:g}"


def beyond(use: Use, value: float | None, field: str) -> UseOfRequest | None:
    """The use; None if its value needs no word. A value of NaN is beyond every bound."""
    if use in ORDINARY and value is not None and value <= ORDINARY[use]:
        return None
    return UseOfRequest(use, field, value)
