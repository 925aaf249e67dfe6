"""Strict reading of JSON that somebody else wrote: no duplicate keys, and no text that UTF-8 cannot hold."""

import json


def parse_json(text: str) -> object:
    """The value of a JSON text. Raises ValueError, also for a duplicate key or a lone surrogate.

    A lone surrogate ("\\ud800") is valid JSON, but it can be neither sent nor tokenized nor written. Here the
    error comes before any work is done.
    """
    value: object = json.loads(text, object_pairs_hook=_once)
    if "\\ud" not in text.lower():
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"it holds half of a character: the escape {half} stands alone") from None
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        raise ValueError("a field stands twice in one object")
    return entry
