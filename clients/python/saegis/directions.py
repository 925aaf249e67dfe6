"""DirectionService: directions that the server keeps, so that requests refer to them by name or digest."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from saegis.base import BaseClient
from saegis.messages import put, result
from saegis.rpc import rpc
from saegis.steering import Direction, KeptDirection, direction
from saegis.v1 import direction_pb2 as pb


def _uploaded(message: pb.UploadDirectionResponse) -> KeptDirection:
    return result(KeptDirection, message.direction)


def _listed(message: pb.ListDirectionsResponse) -> tuple[KeptDirection, ...]:
    return tuple(result(KeptDirection, each) for each in message.directions)


def _deleted(message: pb.DeleteDirectionResponse) -> KeptDirection:
    return result(KeptDirection, message.direction)


class DirectionMethods(BaseClient):
    """The methods of both clients that call DirectionService."""

    @rpc(lambda stubs: stubs.direction.UploadDirection, _uploaded)
    def upload_direction(
        self,
        source: str | PathLike[str] | bytes | Iterable[float],
        *,
        name: str = "",
        site: str = "",
        timeout: float | None = None,
    ) -> pb.UploadDirectionRequest:
        """Keep a direction for this tenant, to be named in edits as `direction(name)` or by its digest.

        source: numbers (a list, an array or a tensor), the path of a safetensors or npz file with one vector,
        or the bytes of such a file. name: a letter or digit, then letters, digits and . _ -, at most 63.
        site: where an edit is that names none; by default what the file states. The same direction again is
        no error; a name that means another raises AlreadyExists. Raises OSError where it cannot read a file.
        """
        request = pb.UploadDirectionRequest()
        if isinstance(source, bytes):
            request.file = source
        elif isinstance(source, str | PathLike):
            request.file = Path(source).read_bytes()
        else:
            put(request, "values", direction(source).values)
        put(request, "name", name)
        put(request, "site", site)
        return request

    @rpc(lambda stubs: stubs.direction.ListDirections, _listed)
    def list_directions(self, *, timeout: float | None = None) -> pb.ListDirectionsRequest:
        """Return the directions that this tenant may name, its own and the operator's."""
        return pb.ListDirectionsRequest()

    @rpc(lambda stubs: stubs.direction.DeleteDirection, _deleted)
    def delete_direction(
        self, reference: str | Direction | KeptDirection, *, timeout: float | None = None
    ) -> pb.DeleteDirectionRequest:
        """Delete one of the tenant's own directions, given by name or digest; returns what it was."""
        target = direction(reference) if isinstance(reference, str) else reference
        if not (target.digest or target.name):
            raise ValueError("a direction is deleted by name or by digest")
        request = pb.DeleteDirectionRequest()
        put(request, *(("digest", target.digest) if target.digest else ("name", target.name)))
        return request
