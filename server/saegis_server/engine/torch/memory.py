"""Memory: how much of a device is free and taken, and an allocation that failed, told apart from other
failures."""

from pathlib import Path

import torch
from torch import Tensor

from saegis_server.engine.api import EngineError, OutOfMemoryError
from saegis_server.host_memory import free_host_bytes

#: How torch's CPU allocator says it, in an error of no kind of its own.
_REFUSED = ("can't allocate memory", "not enough memory")


def is_want_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on whatever device."""
    refused = isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSED)
    return refused or isinstance(error, torch.OutOfMemoryError | MemoryError)


def device_memory(device: torch.device) -> dict[str, int]:
    """What `EngineStats` tells of an accelerator's memory, in bytes; nothing for the CPU, whose memory is the
    process's own."""
    if device.type != "cuda":
        return {}
    free, has = torch.cuda.mem_get_info(device)
    return {"device_bytes": has - free, "device_bytes_max": has}


def free_bytes(device: torch.device) -> int:
    """How many bytes of a device this process can still take. For the CPU, of the host's memory."""
    if device.type != "cuda":
        return free_host_bytes()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


class MappedFiles:
    """Where files are mapped into this process now; nowhere, where the kernel does not tell.

    What lies there is no memory of its own: the kernel counts it as free, and nothing is given back with it.
    """

    def __init__(self) -> None:
        try:
            lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        # Address, rights, offset, device, inode and the file's path, if it is one.
        mapped = (line.split(maxsplit=5) for line in lines)
        self._ranges = [
            tuple(int(end, 16) for end in parts[0].split("-"))
            for parts in mapped
            if len(parts) == 6 and parts[4] != "0"
        ]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor of the CPU begins in a mapped file."""
        return any(first <= tensor.data_ptr() < end for first, end in self._ranges)


def own_failure(error: Exception) -> EngineError:
    """What a request fails with whose work raised `error`; raises that again if it is no want of memory."""
    if is_want_of_memory(error):
        return OutOfMemoryError("there is no memory left for this request")
    raise error
