"""Text: from token ids to text as they come, and the search for stop strings in it."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast


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
        self._decoder = DecodeStream(list(prompt[-8:]), skip_special_tokens)
        self._stops, self._keep_stop = tuple(stops), keep_stop
        self._pending = ""
        self.matched: str | None = None

    def push(self, token: int, may_stop: bool = True) -> str:
        """Add a token; returns the text that is certain now. `matched` is set when a stop string is complete.

        Without `may_stop` stop strings are not looked for, and nothing is held back.
        """
        self._pending += self._decoder.step(self._backend, token) or ""
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
