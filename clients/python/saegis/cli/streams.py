"""A command's standard streams, made to work with any encoding and with closed pipes.

A character that the output's encoding lacks is written as an escape, so that no answer is lost. A note that
cannot be written to standard error is dropped, so that the answer still comes.
"""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

#: Error handlers for bytes that the input's encoding cannot decode, and characters that the output's lacks.
_READING, _WRITING = "surrogateescape", "backslashreplace"


class StreamError(Exception):
    """Standard output cannot be written; the message is a sentence.

    It is neither OSError nor ValueError, since commands catch those for wrong files and values.
    """


class NotTextError(StreamError):
    """An argument or standard input is not text."""


@contextmanager
def guarded() -> Iterator[None]:
    """Let any text through the standard streams, and flush them at the end. Raises StreamError."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process runs
        raise StreamError("standard output is closed: redirect it, if only to /dev/null")
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = cast(TextIO, _fit(before[0] or io.StringIO(), _READING))
    sys.stdout = cast(TextIO, _Output(_fit(before[1], _WRITING)))
    sys.stderr = cast(TextIO, _Notes(_fit(before[2] or io.StringIO(), _WRITING)))
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stdin, sys.stdout, sys.stderr = before


def read_input() -> str:
    """All of standard input. Raises NotTextError if it is not text."""
    return checked(sys.stdin.read(), "standard input")


def checked(text: str, name: str) -> str:
    """The text itself. Raises NotTextError if it holds bytes that are not UTF-8, or a lone surrogate."""
    try:
        text.encode()
    except UnicodeError:
        try:
            # Bytes that the locale's encoding could not decode may still be UTF-8.
            return os.fsencode(text).decode()
        except UnicodeError:
            raise NotTextError(f"{name} is not UTF-8 text: {text[:200]!a}") from None
    return text


def sentence(error: Exception) -> str:
    """An error's message. An encoding error quotes only the wrong place, not the whole text."""
    if not isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return f"a text is not Unicode: {error.object[max(0, error.start - 20) : error.end + 20]!a}"
    return f"not {error.encoding.upper()} text: the byte 0x{error.object[error.start]:02x} at {error.start}"


def _fit(stream: Any, errors: str) -> Any:
    """The stream, set so that no character makes it fail. ASCII input is read as UTF-8, which contains it."""
    if isinstance(stream, io.TextIOWrapper):
        reads_ascii = errors == _READING and codecs.lookup(stream.encoding).name == "ascii"
        # A stream that has been read from cannot be changed.
        with suppress(io.UnsupportedOperation):
            stream.reconfigure(encoding="utf-8" if reads_ascii else None, errors=errors)
    return stream


class _Stream:
    """A stream whose failed writes are handled by `_refused`; all else is the wrapped stream's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            return self._refused(error, len(text))

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._refused(error, 0)

    def _refused(self, error: OSError, length: int) -> int:
        """The result of a failed write. Redirects the stream to nowhere, so that no later flush fails."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        return length


class _Notes(_Stream):
    """Standard error: what cannot be written is dropped."""


class _Output(_Stream):
    """Standard output: a failed write ends the command."""

    def _refused(self, error: OSError, length: int) -> int:
        super()._refused(error, length)
        raise StreamError(f"the output cannot be written: {error.strerror or error}") from error
