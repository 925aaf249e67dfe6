"""Protection: features and directions that no vector of a request, or sum of vectors, may come close to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saegis_server.policy.decide.claims import Place
from saegis_server.policy.decide.decision import Denial
from saegis_server.policy.decide.selectors import Selected, Selectors
from saegis_server.policy.schema.policy import Protection
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.operations import Op

Vectors = NDArray[np.float64]

#: Unit vectors that cancel out to less than this differ only by rounding. Requests' vectors are float32,
#: exact in float64, and their values are bounded, so that anything greater can be scaled up to a real move.
RANK_TOLERANCE = 1e-12
#: A cosine this close to the bound counts as beyond it: the arithmetic is float64, the vectors are not.
COSINE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class CompiledProtection:
    """A protection with its targets resolved."""

    id: str
    max_cosine: float
    targets: tuple[Selected, ...]


def compile_protection(protection: Protection, selectors: Selectors) -> CompiledProtection:
    """The protection in the world of `selectors`. Raises SelectionError with all that is wrong with it."""
    targets = selectors.targets(protection, f"protect.{protection.id}")
    return CompiledProtection(protection.id, protection.max_cosine, targets)


@dataclass(frozen=True, eq=False)
class Protections:
    """All protections of a policy, ready to judge edits."""

    policy: str
    protections: tuple[CompiledProtection, ...] = ()

    @cached_property
    def _owners(self) -> tuple[tuple[CompiledProtection, Selected], ...]:
        """The protection and target of each row of `_rows`: each target has an encoder and a decoder row."""
        return tuple(
            (protection, target)
            for protection in self.protections
            for target in protection.targets
            for _ in ("read", "write")
        )

    @cached_property
    def _rows(self) -> Vectors:
        """The protected unit vectors, [p, d]."""
        probes = [target.probe for protection in self.protections for target in protection.targets]
        return units([vector for probe in probes for vector in (probe.read, probe.write)])

    @cached_property
    def _bounds(self) -> Vectors:
        """The largest cosine with each row, [p]."""
        return np.array([protection.max_cosine for protection, _ in self._owners]) - COSINE_TOLERANCE

    @cached_property
    def _places(self) -> dict[Place, CompiledProtection]:
        return {target.key: protection for protection in self.protections for target in protection.targets}

    def prepare(self) -> None:
        """Work out what depends on the policy alone, so that the first decision is not slow."""
        if self.protections:
            _ = self._owners, self._rows, self._bounds, self._places

    def judge(self, edits: Sequence[RequestEdit]) -> Iterator[Denial]:
        """Denials of edits and watches that touch what is protected, or whose vectors or sums come close."""
        if not self.protections or not edits:
            return
        vectors = [(edit, vector) for edit in edits for vector in _vectors(edit)]
        denied: set[tuple[str, str]] = set()
        for denial in (*self._touched(edits), *self._close(vectors)):
            if (denial.rule, denial.field) not in denied:
                denied.add((denial.rule, denial.field))
                yield denial
        if not denied:
            yield from self._sums([vector for edit in edits for vector in _moves(edit)], "edits")
            # Who reads several vectors also reads every sum of them.
            yield from self._sums([edit.edit.probe.read for edit in edits if edit.op is Op.WATCH], "watches")

    def _touched(self, edits: Sequence[RequestEdit]) -> Iterator[Denial]:
        for edit in edits:
            for probe in edit.probes:
                protection = self._places.get((edit.site, probe.key))
                if protection is not None:
                    yield Denial(self.policy, protection.id, "this is protected", edit.path)

    def _close(self, vectors: Sequence[tuple[RequestEdit, Tensor]]) -> Iterator[Denial]:
        """Denials of single vectors, whether read or written, each with its edit."""
        cosines = np.abs(units([vector for _, vector in vectors]) @ self._rows.T)
        for place, row in np.argwhere(cosines > self._bounds):
            edit, _ = vectors[place]
            protection, target = self._owners[row]
            noun = "watch" if edit.op is Op.WATCH else "edit"
            message = _message(f"a vector of this {noun} has", cosines[place, row], protection, target)
            yield Denial(self.policy, protection.id, message, edit.path)

    def _sums(self, vectors: Sequence[Tensor], kind: str) -> Iterator[Denial]:
        """Denials of what vectors can add up to, over all sites: they all add to one residual stream."""
        if not vectors:
            return
        cosines = span_cosines(units(vectors), self._rows)
        denied: set[str] = set()
        for row in np.flatnonzero(cosines > self._bounds):
            protection, target = self._owners[row]
            if protection.id not in denied:
                denied.add(protection.id)
                message = _message(f"the {kind} together reach", cosines[row], protection, target)
                yield Denial(self.policy, protection.id, message, f"steering.{kind}")


def _vectors(edit: RequestEdit) -> Iterator[Tensor]:
    """All vectors of an edit: what it reads and writes, and of a redirect the same of its target too."""
    yield from (probe.read for probe in edit.probes)
    yield from _writes(edit)


def _moves(edit: RequestEdit) -> Iterator[Tensor]:
    """The vectors along which an edit may move an activation."""
    if edit.op is Op.WATCH:
        return
    # A ban moves it along its read vector too.
    yield from _vectors(edit) if edit.op is Op.BAN else _writes(edit)


def _writes(edit: RequestEdit) -> Iterator[Tensor]:
    yield from (probe.write for probe in edit.probes)
    if edit.op.redirects:
        # What it writes as it is rounded, beside the two that this is made of.
        yield edit.edit.write


def _message(subject: str, cosine: float, protection: CompiledProtection, target: Selected) -> str:
    # Which feature is protected stays secret; the site and the numbers are enough to act on.
    return (
        f"{subject} a cosine of {cosine:.3f} with what is protected at {target.site}; "
        f"at most {protection.max_cosine:g} is allowed"
    )


def units(vectors: Sequence[Tensor]) -> Vectors:
    """Vectors as float64 rows [n, d] of length 1; a zero vector stays zero."""
    rows: Vectors = np.stack([vector.detach().cpu().numpy().astype(np.float64) for vector in vectors])
    # Scaled by the largest entry first, so that no square overflows or underflows.
    rows = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-300)
    unit_rows: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    return unit_rows


def span_cosines(vectors: Vectors, protected: Vectors) -> Vectors:
    """The cosine of each protected unit vector [p, d] with the nearest one in the span of `vectors` [n, d].

    That is the length of its projection onto the span. It finds vectors that are far from it one by one but
    add up to it. Returns [p].
    """
    _, singular, right = np.linalg.svd(vectors, full_matrices=False)
    basis = right[singular > RANK_TOLERANCE * max(float(singular.max(initial=0.0)), 1e-300)]
    cosines: Vectors = np.linalg.norm(protected @ basis.T, axis=1)
    return cosines
