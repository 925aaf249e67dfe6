"""Uses: what a request asks for beside edits and beyond the ordinary, and the words that allow it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Use(StrEnum):
    """The words of `allow: [{uses: ...}]`. None of them is allowed where no policy in force says so."""

    LOGIT_BIAS = "logit_bias"
    """Any bias of logits: it can spell what no feature says."""
    N = "n"
    """More than one completion: the best of many tries."""
    TEMPERATURE = "temperature"
    """A temperature above 1."""
    TOKEN_IDS = "token_ids"  # noqa: S105 - no secret
    """A prompt of token ids, where the model has a chat template: control tokens and forged turns."""
    TEXT = "text"
    """A prompt of plain text, where the model has a chat template: it goes round the template."""
    PREFILL = "prefill"
    """A conversation that ends in the assistant's turn: words put into the model's mouth."""
    SCORE = "score"
    """Score: log probabilities of a text that the caller chose."""
    INSPECT = "inspect"
    """Inspect and ContrastFeatures: the activations that a text has without any rule."""
    UNRULED = "unruled"
    """Score's reading of the model without the operator's rules."""


#: Up to which value a use needs no word; only these have a value, which an allowance may bound.
ORDINARY = {Use.N: 1.0, Use.TEMPERATURE: 1.0}


@dataclass(frozen=True, slots=True)
class UseOfRequest:
    """One use of a request. field: where; empty for the request as a whole. value: of n and temperature."""

    use: Use
    field: str = ""
    value: float | None = None

    @property
    def shown(self) -> str:
        """What is asked for, in words."""
        return self.use.value if self.value is None else f"{self.use.value} {self.value:g}"


def beyond(use: Use, value: float | None, field: str) -> UseOfRequest | None:
    """The use; None for a value that needs no word. A value that is no number is beyond every bound."""
    if use in ORDINARY and value is not None and value <= ORDINARY[use]:
        return None
    return UseOfRequest(use, field, value)
