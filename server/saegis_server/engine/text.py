"""Text: from token ids to text as they come, and the search for stop strings in it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

#: What bytes that are no character, or not yet, decode to.
_UNREADABLE = "\ufffd"


class TextStream:
    """The text of one sequence. Text that may yet become part of a stop string is held back."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        *,
        keep_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        """`prompt` gives the decoder its context: some vocabularies write a word's space before it."""
        self._backend = tokenizer.backend_tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids = list(prompt[-8:])
        self._known, self._read = self._decode(), len(self._ids)
        self._stops, self._keep_stop = tuple(stops), keep_stop
        self._pending = ""
        self.matched: str | None = None

    def push(self, token: int, may_stop: bool = True) -> str:
        """Add a token; returns the text that is certain now. `matched` is set when a stop string is complete.

        Without `may_stop` stop strings are not looked for, and nothing is held back.
        """
        self._pending += self._text_of(token)
        if not self._stops or not may_stop:
            return self._release(len(self._pending))
        found = [(self._pending.find(stop), stop) for stop in self._stops if stop in self._pending]
        if found:
            start, self.matched = min(found)
            return self._release(start + len(self.matched) if self._keep_stop else start)
        return self._release(len(self._pending) - self._held_back())

    def finish(self) -> str:
        """The text that was held back, once nothing more can come; empty after a stop string."""
        return "" if self.matched is not None else self._release(len(self._pending))

    def _decode(self) -> str:
        text: str = self._backend.decode(self._ids, skip_special_tokens=self._skip_special_tokens)
        return text

    def _text_of(self, token: int) -> str:
        """What `token` adds to the text; nothing while it ends amid a character.

        Decoded after the last tokens that gave text. What those now read as may differ from before: a prompt
        may end amid a character, and a run of byte tokens may become invalid as a whole.
        """
        self._ids.append(token)
        text, known = self._decode(), self._known
        if text == known or text.endswith(_UNREADABLE):
            return ""
        del self._ids[: self._read]
        self._known, self._read = self._decode(), len(self._ids)
        pairs = zip(known, text, strict=False)
        changed = (place for place, (old, new) in enumerate(pairs) if old != new)
        return text[next(changed, len(known)) :]

    def _release(self, length: int) -> str:
        text, self._pending = self._pending[:length], self._pending[length:]
        return text

    def _held_back(self) -> int:
        """The length of the longest end of the pending text with which a stop string begins."""
        longest = min(len(self._pending), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._pending[-length:]) for stop in self._stops):
                return length
        return 0
