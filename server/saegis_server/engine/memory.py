"""Memory: an allocation that failed, told apart from every other failure, is its request's own."""

import torch

from saegis_server.engine.requests import EngineError, OutOfMemoryError

#: How torch's CPU allocator says it, in an error of no kind of its own.
_REFUSED = ("can't allocate memory", "not enough memory")


def own_failure(error: Exception) -> EngineError:
    """What a request fails with whose work raised `error`; raises that again if it is no want of memory."""
    refused = isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSED)
    if refused or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return OutOfMemoryError("there is no memory left for this request")
    raise error
