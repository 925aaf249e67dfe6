"""Text: from token ids to text as they come, and the search for stop strings in it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

#: What bytes that are no character, or not yet, decode to.
_UNREADABLE = "\ufffd"
#: A character has at most so many bytes, so only so many signs at the end of a text may yet become another.
_LONGEST_CHARACTER = 4
#: So many tokens without a readable character are no beginning of one, and are not waited for any longer.
_MOST_UNREADABLE = 32


class TextStream:
    """The text of one sequence: all pieces together are what its tokens decode to at once.

    Text that may yet become part of a stop string is held back, and so are bytes that may yet become a
    character, until there is more or the sequence ends.
    """

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
        self._text = self._known = self._decode(self._ids)
        self._read = len(self._ids)
        self._stops, self._keep_stop = tuple(stops), keep_stop
        self._pending = ""
        self.matched: str | None = None

    def push(self, token: int, may_stop: bool = True) -> str:
        """Add a token; returns the text that is certain now. `matched` is set when a stop string is complete.

        Without `may_stop` stop strings are not looked for, and nothing is held back for them.
        """
        self._pending += self._text_of(token)
        if not self._stops or not may_stop:
            return self._release(len(self._pending))
        if (text := self._up_to_stop()) is not None:
            return text
        return self._release(len(self._pending) - self._held_back())

    def finish(self, may_stop: bool = True) -> str:
        """The text that was held back, once nothing more can come; empty after a stop string.

        A character that the sequence's end cuts in two is told as U+FFFD, as the tokens decode at once.
        """
        if self.matched is not None:
            return ""
        self._pending, self._known = self._pending + self._new(self._text), self._text
        text = self._up_to_stop() if may_stop else None
        return self._release(len(self._pending)) if text is None else text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=self._skip_special_tokens)
        return text

    def _new(self, text: str) -> str:
        """What `text` has beyond what is known, from the first character on that reads differently now.

        A prompt may end amid a character, and a run of byte tokens may become invalid as a whole.
        """
        pairs = zip(self._known, text, strict=False)
        changed = (place for place, (old, new) in enumerate(pairs) if old != new)
        return text[next(changed, len(self._known)) :]

    def _text_of(self, token: int) -> str:
        """What `token` adds to the text that can be read, decoded after the last tokens that gave text."""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        waiting = len(self._text) - len(self._text.rstrip(_UNREADABLE))
        hopeless = len(self._ids) - self._read > _MOST_UNREADABLE
        if hopeless:
            waiting = min(waiting, _LONGEST_CHARACTER)
        certain = self._text[: len(self._text) - waiting]
        new = self._new(certain)
        if new:
            self._known = certain
        if not waiting:
            self._forget(self._ids[self._read :], 0)
        elif hopeless:
            self._forget(self._ids[-(_LONGEST_CHARACTER**2) :], waiting)
        return new

    def _forget(self, kept: list[int], waiting: int) -> None:
        """Go on from the tokens `kept` alone, whose last `waiting` characters were not given yet."""
        text = self._decode(kept)
        if text.endswith(_UNREADABLE * waiting):
            self._ids, self._text, self._known = kept, text, text[: len(text) - waiting]
            self._read = len(kept)

    def _release(self, length: int) -> str:
        text, self._pending = self._pending[:length], self._pending[length:]
        return text

    def _up_to_stop(self) -> str | None:
        """The text up to the first stop string, if there is one."""
        stops = [(self._pending.find(stop), stop) for stop in self._stops if stop in self._pending]
        if not stops:
            return None
        start, self.matched = min(stops)
        return self._release(start + len(self.matched) if self._keep_stop else start)

    def _held_back(self) -> int:
        """The length of the longest end of the pending text with which a stop string begins."""
        longest = min(len(self._pending), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._pending[-length:]) for stop in self._stops):
                return length
        return 0
