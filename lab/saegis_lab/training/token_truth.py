"""Token truth: what is known of a token of labelled text, whatever the text and the model are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenTruth:
    """What is known of a token.

    concepts: what holds of it, in words, each a candidate for a feature's label; the general before the
    special. subject: what it is about. language: the code of its language. "" is not known.
    """

    concepts: tuple[str, ...] = ()
    subject: str = ""
    language: str = ""
    harmful: bool = False
