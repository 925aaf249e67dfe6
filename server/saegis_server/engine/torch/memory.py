"""Memory: an allocation that failed, told apart from every other failure."""

import torch

from saegis_server.engine.api import EngineError, OutOfMemoryError

#: How torch's CPU allocator says it, in an error of no kind of its own.
_REFUSED = ("can't allocate memory", "not enough memory")


def is_want_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on whatever device."""
    refused = isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSED)
    return refused or isinstance(error, torch.OutOfMemoryError | MemoryError)


def own_failure(error: Exception) -> EngineError:
    """What a request fails with whose work raised `error`; raises that again if it is no want of memory."""
    if is_want_of_memory(error):
        return OutOfMemoryError("there is no memory left for this request")
    raise error
