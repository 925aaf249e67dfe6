"""Alarms: a step tells by itself at which tokens conditions must be judged, and which ones change nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saegis_server.steering.judge import Quiet

#: Where each of R readings lies: the numbers of their sites, and their rows among the guards there.
Places = tuple[NDArray[np.intp], NDArray[np.intp]]


class Alarms(NamedTuple):
    """What the alarm of each slot waits for: S slots, G guards at each site.

    low, high: float32 [sites, S, G], between which a reading changes nothing; due: int64 [S], the position
    from which on it is raised whatever is read; peaks: float32 [sites, S, G], the largest readings of the
    answer so far.
    """

    low: Tensor
    high: Tensor
    due: Tensor
    peaks: Tensor

    @classmethod
    def allocate(cls, sites: int, slots: int, guards: int, device: torch.device | str) -> Alarms:
        """The alarms of `slots` slots with room for `guards` guards at each site."""
        low, high, peaks = (torch.zeros(sites, slots, guards, device=device) for _ in range(3))
        return cls(low, high, torch.zeros(slots, dtype=torch.int64, device=device), peaks)

    @torch.inference_mode()
    def begin(self, slot: int) -> None:
        """Raise the alarm of a new sequence at the first token of its answer."""
        self.low[:, slot], self.high[:, slot] = -torch.inf, torch.inf
        self.due[slot], self.peaks[:, slot] = 0, -torch.inf

    @torch.inference_mode()
    def wait(self, slots: list[int], places: Places, quiet: Quiet, due: NDArray[np.int64]) -> None:
        """Let N slots wait for a reading to leave what is quiet, or for their position `due`, int64 [N]."""
        device, looked_at = self.due.device, quiet.low.shape[1]
        rows = torch.tensor(slots, dtype=torch.int64, device=device)
        sites, columns = (torch.from_numpy(each[:looked_at, None]).to(device) for each in places)
        self.low[sites, rows, columns] = torch.from_numpy(quiet.low.T).to(self.low)
        self.high[sites, rows, columns] = torch.from_numpy(quiet.high.T).to(self.high)
        self.due[rows] = torch.from_numpy(due).to(self.due)

    def raised(self, read: Tensor, positions: Tensor, live: Tensor) -> Tensor:
        """Whose alarms the tokens at `positions` raise, bool [B]; NaN is never quiet. Keeps the peaks.

        read: float32 [sites, B, G], the readings there; live: bool [B]. Part of the compiled step.
        """
        _, batch, guards = read.shape
        low, high, peaks = (each[:, :batch, :guards] for each in (self.low, self.high, self.peaks))
        peaks.copy_(torch.where(live[:, None], torch.maximum(peaks, read), peaks))
        loud = ~((read >= low) & (read <= high))
        return loud.any(-1).any(0) | (positions >= self.due[:batch])

    def peaks_of(self, slot: int, places: Places) -> NDArray[np.float32]:
        """The largest readings [R] of a slot's answer."""
        found: NDArray[np.float32] = self.peaks[:, slot].cpu().numpy()[places]
        return found

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Let `target` wait for what `source` waits for."""
        self.due[target] = self.due[source]
        for tensor in (self.low, self.high, self.peaks):
            tensor[:, target] = tensor[:, source]
