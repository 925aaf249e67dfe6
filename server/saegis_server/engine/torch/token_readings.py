"""Token readings: what was read of single tokens of a text, as its request is told it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saegis_server.engine.api import GenerationRequest, moving_sites
from saegis_server.engine.readouts import PromptRead, Watched, WatchedPrompt
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.rows import Edit, Phase
from saegis_server.steering.site import Site


class TokenReadings:
    """What a request is told of its tokens.

    watches: how many it has at each site, where it has any; moving: the sites whose moves it asks for.
    """

    def __init__(self, request: GenerationRequest, rows: Mapping[Site, AdmittedRows], unmoved: int) -> None:
        """rows: what may act and read, by site; unmoved: how many of the text's first tokens no row moves."""
        self.watches = {site: len(own.watches) for site, own in rows.items() if own.watches}
        self.moving = moving_sites(request.program, request.guard) if request.readouts.moves else ()
        # For each watch, the request's own edits of what it reads.
        self._edits = tuple(
            tuple(edit for edit in own.edits if edit.probe.key == probe.key)
            for own in rows.values()
            for probe in own.watches
        )
        self._unmoved, self._answer_start = unmoved, request.answer_start

    def watched(self, values: list[list[list[float]]], place: int) -> tuple[Watched, ...]:
        """The watches at a place of the text, of values [sites][watches][before, after]."""
        both = (tuple(pair) for site in values for pair in site)
        return tuple(
            Watched(before, after, self._set_to(before, own, place))
            for (before, after), own in zip(both, self._edits, strict=True)
        )

    def prompt_read(self, watched: Tensor, moved: Tensor) -> PromptRead:
        """All of a prompt. watched: float32 [T, watches, 2], of each before and after; moved: [T, sites]."""
        told = []
        for (before, after), edits in zip(watched.permute(1, 2, 0).tolist(), self._edits, strict=True):
            changed = (self._set_to(value, edits, place) for place, value in enumerate(before))
            set_to = tuple(value for value in changed if value is not None)
            told.append(WatchedPrompt(tuple(before), tuple(after), set_to))
        return PromptRead(tuple(told), tuple(map(tuple, moved.T.tolist())))

    def _set_to(self, value: float, edits: tuple[Edit, ...], place: int) -> float | None:
        """What edits of one probe make of its value at a place of the text; None if not known."""
        if not edits or any(edit.relative_to_norm for edit in edits):
            return None
        if place < self._unmoved:
            return value
        phase = Phase.PROMPT if place < self._answer_start else Phase.COMPLETION
        values = [edit.sets(value) for edit in edits if edit.phase in (Phase.ALL, phase)]
        # All read the same value, and what they change adds up.
        return values[0] if len(values) == 1 else value + sum(changed - value for changed in values)


class PromptReadings:
    """What was read of a prompt so far: of some tokens each, the watches and the moves."""

    def __init__(self, readings: TokenReadings) -> None:
        """`readings`: what its request is told."""
        self._readings = readings
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, sites: Sequence[Site], watched: Tensor, moved: Tensor) -> None:
        """Add what was read at the next Q tokens.

        watched: float32 [sites, Q, watches, 2]; moved: float32 [sites, Q], of all sites of the step.
        """
        watches = self._readings.watches
        own = [watched[sites.index(site), :, :count] for site, count in watches.items()]
        values = torch.cat(own, 1) if own else watched.new_zeros(moved.shape[1], 0, 2)
        moves = moved[[sites.index(site) for site in self._readings.moving]].T
        self._parts.append((values.cpu(), moves.cpu()))

    def clear(self) -> None:
        """Forget it: the prompt is read again from its start, or all of it is told."""
        self._parts.clear()

    def told(self) -> PromptRead:
        """All of it."""
        watched, moved = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        return self._readings.prompt_read(watched, moved)
