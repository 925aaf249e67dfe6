"""Strict reading of JSON that somebody else wrote: no key twice, and no text that UTF-8 cannot hold."""

import json


def parse_json(text: str) -> object:
    """What a JSON text holds. Raises ValueError, also for a key twice in one object or a lone surrogate.

    The escape of half a character ("\\ud800") is JSON, but what it stands for can be neither sent, nor
    tokenized, nor written: better told here than after the work.
    """
    found: object = json.loads(text, object_pairs_hook=_once)
    if "\\ud" not in text.lower():
        return found
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"it holds half of a character: the escape {half} stands alone") from None
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        raise ValueError("a field stands twice in one object")
    return entry
