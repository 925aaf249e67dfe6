"""What is reserved: what an operator's redirects read and write, along which no edit of a request moves x.

A redirect reads x as the request's edits leave it. If they could move what it reads they could hide a feature
from it, and if they could move along its target they could take back what it writes. So at its site they
write only what is orthogonal to both: the redirects read what they would have read without the request, and
along their targets x moves by what the operator's rules write, and by nothing else.
"""

from functools import lru_cache

import torch
from torch import Tensor

from saegis_server.steering.program import SiteProgram, SteeringError
from saegis_server.steering.projection import RANK_TOLERANCE
from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site

#: An edit of which less than this share is left is refused. It is the rounding of bfloat16: what is left
#: would be lost in how the activation itself is written, so the edit would be told as done and do nothing.
LEAST_LEFT = 2.0**-9


class _Rows:
    """Probes as the key of a cache: equal where the same is read and written."""

    def __init__(self, read: tuple[Probe, ...], written: tuple[Probe, ...]) -> None:
        self.read, self.written = read, written
        self.key = tuple(tuple(probe.digest for probe in probes) for probes in (read, written))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rows) and self.key == other.key


def unreserved_moves(program: SiteProgram, site: Site | None = None) -> Tensor | None:
    """What a request's edits write beside an operator's redirects, those with a condition among them.

    Their write vectors, made orthogonal in float64 to all that the redirects read and write: float32 [E, d].
    None where there are no redirects among the rules, or no edits. Raises SteeringError for an edit that is
    left with nothing. What is reserved is kept: an operator's rules come with every request.
    """
    redirects = program.redirects
    if not redirects or not program.edits:
        return None
    read = tuple(rule.probe for _, rule, _ in redirects)
    reserved = _span(_Rows(read, tuple(target for _, _, target in redirects)))
    writes = torch.stack([edit.write for edit in program.edits]).double()
    # Twice: what the first time leaves along the reserved by rounding, the second time takes.
    moves = writes
    for _ in range(2):
        moves = moves - (moves @ reserved.T) @ reserved
    for place, (left, whole) in enumerate(zip(moves.norm(dim=1), writes.norm(dim=1), strict=True)):
        if left < LEAST_LEFT * whole:
            name = program.edits[place].probe.name
            raise SteeringError(
                f"{name} moves only along what a rule redirects, which no request moves",
                site,
                (("edits", place),),
            )
    return moves.float()


@lru_cache(maxsize=256)
def _span(rows: _Rows) -> Tensor:
    """An orthonormal basis of what probes read and others write, float64 [rank, d]."""
    vectors = torch.stack([*(probe.read for probe in rows.read), *(probe.write for probe in rows.written)])
    lengths = vectors.double().norm(dim=1, keepdim=True)
    unit = vectors.double() / torch.where(lengths > 0.0, lengths, 1.0)
    _, singular, right = torch.linalg.svd(unit, full_matrices=False)
    basis: Tensor = right[singular > RANK_TOLERANCE * singular[0]]
    return basis
