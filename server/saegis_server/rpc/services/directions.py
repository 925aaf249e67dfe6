"""DirectionService: keeps the directions that requests refer to by name or digest."""

import asyncio
import logging
from collections.abc import Callable

from torch import Tensor

from saegis.v1 import direction_pb2 as pb
from saegis.v1 import direction_pb2_grpc
from saegis_server.audit.records import DirectionRecord
from saegis_server.directions.files import DirectionFileError, check_width, read_direction
from saegis_server.directions.store import NAME_PATTERN, KeptDirection, is_name
from saegis_server.engine.api import FieldError
from saegis_server.rpc.auth.identity import current_identity
from saegis_server.rpc.auth.roles import Role, needs, serves
from saegis_server.rpc.server.logs import request_id
from saegis_server.rpc.server.threads import in_own_thread
from saegis_server.rpc.services.shared import Context, Servicer, Services
from saegis_server.rpc.wire import convert
from saegis_server.rpc.wire.problems import DirectionStateError

log = logging.getLogger("saegis.rpc")


@serves(pb.DESCRIPTOR.services_by_name["DirectionService"])
class DirectionServicer(Servicer, direction_pb2_grpc.DirectionServiceServicer):
    """Keeps, lists and deletes directions. Changes come one by one, each recorded before it is made."""

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._changing = asyncio.Lock()

    @needs(Role.STEER, large=True)
    async def UploadDirection(
        self, request: pb.UploadDirectionRequest, context: Context
    ) -> pb.UploadDirectionResponse:
        """Keep a direction, unless it is kept already."""
        if request.name and not is_name(request.name):
            raise FieldError("name", f"is no direction's name: {NAME_PATTERN}")
        vector, new = await self.services.in_thread(self._read, request)
        # Once begun it is done whole, also if the client has gone.
        kept = await asyncio.shield(self._keep(new, vector))
        return pb.UploadDirectionResponse(direction=convert.direction(kept))

    @needs(Role.STEER)
    async def ListDirections(
        self, request: pb.ListDirectionsRequest, context: Context
    ) -> pb.ListDirectionsResponse:
        """The directions that the caller may name."""
        shelf = self.services.directions.shelf(current_identity().tenant)
        return pb.ListDirectionsResponse(directions=map(convert.direction, shelf))

    @needs(Role.STEER)
    async def DeleteDirection(
        self, request: pb.DeleteDirectionRequest, context: Context
    ) -> pb.DeleteDirectionResponse:
        """Delete one of the tenant's own directions."""
        if request.WhichOneof("reference") is None:
            raise FieldError("name", "one of name and digest must be given")
        kept = await asyncio.shield(self._drop(request))
        return pb.DeleteDirectionResponse(direction=convert.direction(kept))

    def _read(self, request: pb.UploadDirectionRequest) -> tuple[Tensor, KeptDirection]:
        """The vector of a request, float32 [d], and the direction that it is. Raises FieldError and
        UnknownSiteError."""
        targets, site = self.services.targets, request.site
        if bool(request.values) == bool(request.file):
            raise FieldError("values", "either values or a file must be given")
        if request.file:
            try:
                vector, stated = read_direction(request.file, targets.widths.widest)
                at = targets.site(site or stated, "site") if site or stated else None
                check_width(vector, at, targets.widths)
            except DirectionFileError as error:
                raise FieldError("file", str(error)) from error
        else:
            at = targets.site(site, "site") if site else None
            vector = targets.vector(request.values, at, "values")
        try:
            return vector, KeptDirection.of(vector, request.name, at)
        except ValueError as error:
            raise FieldError("values", str(error)) from error

    async def _keep(self, new: KeptDirection, vector: Tensor) -> KeptDirection:
        """Keep a direction; as it is kept."""
        services, tenant = self.services, current_identity().tenant
        async with self._changing:
            if (kept := services.directions.admit(tenant, new)) is not None:
                return kept
            await self._record("upload", new)
            if (folder := services.uploads) is not None:
                await self._write(lambda: folder.write(tenant, new, vector))
            services.directions.keep(tenant, new)
        return new

    async def _drop(self, reference: pb.DeleteDirectionRequest) -> KeptDirection:
        """Delete one of the tenant's own directions; the one that it was."""
        services, tenant = self.services, current_identity().tenant
        async with self._changing:
            kept = services.own_targets().kept(reference)
            if kept.shipped:
                field = str(reference.WhichOneof("reference"))
                raise FieldError(field, "the direction is the operator's, which nobody can delete")
            await self._record("delete", kept)
            if (folder := services.uploads) is not None:
                await self._write(lambda: folder.remove(tenant, kept))
            services.directions.drop(tenant, kept)
        return kept

    async def _write(self, work: Callable[[], None]) -> None:
        """Change the folder of uploads. Raises DirectionStateError."""
        try:
            await in_own_thread(work)
        except OSError as error:
            log.exception("the folder of directions cannot be written")
            raise DirectionStateError from error

    async def _record(self, action: str, direction: KeptDirection) -> None:
        if (audit := self.services.governor.audit) is None:
            return
        caller = current_identity()
        await audit.require(
            DirectionRecord(
                action=action,
                digest=direction.digest,
                name=direction.name,
                site="" if direction.site is None else str(direction.site),
                tenant=caller.tenant,
                by=caller.name,
                request_id=request_id.get(),
            )
        )
