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
#: The levels of a slot of which nothing has been judged.
_FREE = torch.tensor((-torch.inf, torch.inf, -torch.inf))


class Alarms(NamedTuple):
    """What the alarm of each slot waits for: S slots, G guards at each site.

    levels: float32 [3, sites, S, G], the lowest and the highest reading that changes nothing, and the largest
    one of the answer so far; due: int64 [S], the position from which on it is raised whatever is read.
    """

    levels: Tensor
    due: Tensor

    @classmethod
    def allocate(cls, sites: int, slots: int, guards: int, device: torch.device | str) -> Alarms:
        """The alarms of `slots` slots with room for `guards` guards at each site."""
        levels = torch.zeros(len(_FREE), sites, slots, guards, device=device)
        return cls(levels, torch.zeros(slots, dtype=torch.int64, device=device))

    @torch.inference_mode()
    def begin(self, slot: int) -> None:
        """Raise the alarm of a new sequence at the first token of its answer."""
        self.levels[:, :, slot], self.due[slot] = _FREE[:, None, None], 0

    @torch.inference_mode()
    def wait(self, slots: list[int], places: Places, quiet: Quiet, due: NDArray[np.int64]) -> None:
        """Let N slots wait for a reading to leave what is quiet, or for their position `due`, int64 [N]."""
        rows = torch.tensor(slots, dtype=torch.int64, device=self.due.device)
        sites, columns = (torch.from_numpy(each[: quiet.low.shape[1], None]) for each in places)
        levels = torch.from_numpy(np.stack((quiet.low.T, quiet.high.T)))
        self.levels[: len(levels), sites, rows, columns] = levels.to(self.levels)
        self.due[rows] = torch.from_numpy(due).to(self.due)

    def raised(self, read: Tensor, positions: Tensor, live: Tensor) -> Tensor:
        """Whose alarms the tokens at `positions` raise, bool [B]; NaN is never quiet. Keeps the peaks.

        read: float32 [sites, B, G], the readings there; live: bool [B]. Part of the compiled step.
        """
        _, batch, guards = read.shape
        low, high, peaks = self.levels[:, :, :batch, :guards].unbind()
        peaks.copy_(torch.where(live[:, None], torch.maximum(peaks, read), peaks))
        loud = ~((read >= low) & (read <= high))
        return loud.any(-1).any(0) | (positions >= self.due[:batch])

    def peaks_of(self, slot: int, places: Places) -> NDArray[np.float32]:
        """The largest readings [R] of a slot's answer."""
        found: NDArray[np.float32] = self.levels[-1, :, slot].cpu().numpy()[places]
        return found

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Let `target` wait for what `source` waits for."""
        self.levels[:, :, target], self.due[target] = self.levels[:, :, source], self.due[source]
