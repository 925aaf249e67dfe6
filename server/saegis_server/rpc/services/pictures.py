"""Pictures of requests: counted and bounded, decoded apart, and made into what the model is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from saegis.v1 import feature_pb2, prompt_pb2
from saegis_server.audit.records import Fields
from saegis_server.engine.api import FieldError
from saegis_server.engine.pictures import Eyes, Placed, Shown
from saegis_server.pictures.decoder import WORKERS, Decoded, Decoder, PictureError
from saegis_server.pictures.limits import PictureLimits
from saegis_server.policy.decide.uses import Use, UseOfRequest
from saegis_server.rpc.auth.identity import ANONYMOUS, identity
from saegis_server.rpc.server.threads import WorkPool, stop_if_unwanted
from saegis_server.rpc.wire.problems import PreconditionError


@dataclass(frozen=True, slots=True)
class SeenPicture:
    """A picture of a request: what the model is shown of it, and what is told of its file.

    size: the bytes of the file. start: where its tokens begin in the prompt.
    """

    shown: Shown
    digest: str
    kind: str
    width: int
    height: int
    size: int
    start: int = 0

    @property
    def recorded(self) -> Fields:
        """What the audit log holds of it."""
        return {
            "digest": self.digest,
            "kind": self.kind,
            "width": self.width,
            "height": self.height,
            "bytes": self.size,
            "tokens": len(self.shown.tokens),
        }

    @property
    def told(self) -> feature_pb2.PictureTokens:
        """How its tokens lie on it, as Inspect tells it."""
        message = feature_pb2.PictureTokens(
            digest=self.digest,
            width=self.width,
            height=self.height,
            first_token=self.start,
            token_count=len(self.shown.tokens),
        )
        for grid in self.shown.grids:
            message.grids.add(
                first_token=self.start + grid.first,
                rows=grid.rows,
                columns=grid.columns,
                left=grid.left,
                top=grid.top,
                right=grid.right,
                bottom=grid.bottom,
            )
        return message


@dataclass(frozen=True, slots=True)
class PictureDesk:
    """Where the pictures of requests are decoded and prepared, by few threads, fairly among tenants.

    eyes: None for a model that sees no pictures.
    """

    eyes: Eyes | None = None
    decoder: Decoder = field(default_factory=lambda: Decoder(PictureLimits()))
    work: WorkPool = field(default_factory=lambda: WorkPool("pictures", WORKERS, most_waiting=64))

    @property
    def limits(self) -> PictureLimits:
        """What a request's pictures may be."""
        return self.decoder.limits

    @property
    def most(self) -> int:
        """How many pictures a request may have; 0 for a model that sees none."""
        return 0 if self.eyes is None else self.limits.count

    @property
    def waiting(self) -> int:
        """How many requests wait until their pictures are decoded."""
        return self.work.waiting

    async def look(self, chat: prompt_pb2.Chat, path: str) -> tuple[SeenPicture, ...]:
        """The pictures of a conversation at `path`, in their order.

        Raises FieldError for what is no picture that may be read, PreconditionError where the model sees
        none, and BusyError.
        """
        return await self._look(list(_files(chat, path)), f"{path}.messages")

    async def look_at(self, images: Sequence[prompt_pb2.Image], path: str) -> tuple[SeenPicture, ...]:
        """Pictures that stand in a list at `path`; raises as `look` does."""
        return await self._look([(f"{path}[{at}].data", each.data) for at, each in enumerate(images)], path)

    async def _look(self, files: list[tuple[str, bytes]], path: str) -> tuple[SeenPicture, ...]:
        if not files:
            return ()
        if self.eyes is None:
            raise PreconditionError("NO_PICTURES", "model", "the model sees no pictures; send text alone")
        if len(files) > self.limits.count:
            raise FieldError(path, f"has {len(files)} pictures; a request may have {self.limits.count}")
        for where, data in files:
            if len(data) > self.limits.size:
                raise FieldError(where, f"has {len(data)} bytes; at most {self.limits.size} are read")
        return await self.work.run(identity.get(ANONYMOUS).tenant, self._prepared, files, self.eyes)

    def _prepared(self, files: Sequence[tuple[str, bytes]], eyes: Eyes) -> tuple[SeenPicture, ...]:
        seen = []
        for where, data in files:
            stop_if_unwanted()
            try:
                decoded = self.decoder.decode(data)
                seen.append(_seen(decoded, len(data), eyes))
            except PictureError as error:
                raise FieldError(where, str(error)) from error
        return tuple(seen)


def _seen(decoded: Decoded, size: int, eyes: Eyes) -> SeenPicture:
    try:
        shown = eyes.show(decoded.image)
    except Exception as error:  # Whatever a model's processor makes of a shape that it does not expect.
        raise PictureError(f"cannot be shown to the model ({type(error).__name__}: {error})") from error
    return SeenPicture(shown, decoded.digest, decoded.kind, decoded.width, decoded.height, size)


def _files(chat: prompt_pb2.Chat, path: str) -> Iterator[tuple[str, bytes]]:
    """The files of a conversation's pictures, each with its path."""
    for at, message in enumerate(chat.messages):
        for place, part in enumerate(message.parts):
            if part.WhichOneof("part") == "image":
                yield f"{path}.messages[{at}].parts[{place}].image.data", part.image.data


def at_places(seen: Sequence[SeenPicture], pictures: Sequence[Placed]) -> tuple[SeenPicture, ...]:
    """The pictures of a prompt with where they stand in it."""
    return tuple(replace(each, start=place.start) for each, place in zip(seen, pictures, strict=True))


def placed(pictures: Sequence[SeenPicture]) -> tuple[Placed, ...]:
    """The pictures of a prompt as an engine takes them."""
    return tuple(Placed(each.start, each.shown) for each in pictures)


def uses_of(pictures: Sequence[SeenPicture], path: str = "chat.messages") -> Iterator[UseOfRequest]:
    """What a request with these pictures, which stand at `path`, uses beyond the ordinary."""
    if pictures:
        yield UseOfRequest(Use.PICTURES, path, float(len(pictures)))
