"""Folders of directions: those that an operator ships, and the one in which uploads survive a restart."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from saegis_server.directions.files import ENDINGS, DirectionFileError, check_width, read_file
from saegis_server.directions.store import NAME_PATTERN, KeptDirection, is_name
from saegis_server.steering.site import Site, SiteError, Widths
from saegis_server.whole_file import sync_directory, write_whole

_TENSOR = "direction"


def shipped_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that paths name: themselves, or the files of directions in a folder, by name.

    Raises DirectionFileError for a path that is neither, and for a folder that has none.
    """
    for path in paths:
        if not path.is_dir():
            if path.suffix not in ENDINGS or not path.is_file():
                raise DirectionFileError(f"{path}: is no folder and no {' or '.join(ENDINGS)} file")
            yield path
            continue
        files = sorted(each for each in path.iterdir() if each.suffix in ENDINGS)
        if not files:
            raise DirectionFileError(f"{path}: holds no {' or '.join(ENDINGS)} file")
        yield from files


def read_shipped(paths: Iterable[Path], widths: Widths, sites: Iterable[Site]) -> list[KeptDirection]:
    """The directions that an operator ships, each named by its file.

    Raises DirectionFileError for files that are no directions as wide as their site, state a site that is not
    among `sites`, cannot be names, or have a name or a direction in common.
    """
    known: dict[str, Path] = {}
    served, directions = tuple(sites), []
    for path in shipped_files(paths):
        found = read_file(path, widths.widest)
        if not is_name(path.stem):
            raise DirectionFileError(f"{path}: its name is no direction's, which is {NAME_PATTERN}")
        made = KeptDirection.of(found.vector, path.stem, _site(found.site, path), shipped=True)
        if made.site is not None and made.site not in served:
            names = ", ".join(map(str, served)) or "none"
            raise DirectionFileError(f"{path}: is of {made.site}, no site of this server; its sites: {names}")
        _check_width(found.vector, made.site, widths, path)
        for key, what in ((made.name, "name"), (made.digest, "direction")):
            if (other := known.setdefault(key, path)) is not path:
                raise DirectionFileError(f"{path}: has the same {what} as {other}")
        directions.append(made)
    return directions


def check_upload_folder(path: Path) -> None:
    """Raise DirectionFileError for a path that is there and is no folder."""
    if path.exists() and not path.is_dir():
        raise DirectionFileError(f"{path}: is no folder")


class UploadFolder:
    """The folder in which uploaded directions are kept, a file for each. It is one server's own.

    A file's metadata has the tenant, and the direction's digest, name and site.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder and lock it. Raises OSError, and DirectionFileError if it is another server's."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._own = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._own)
            raise DirectionFileError(f"{folder}: another server keeps its directions here") from error

    def close(self) -> None:
        """Let go of the folder. May be called twice."""
        if self._own >= 0:
            os.close(self._own)
            self._own = -1

    def read(self, widths: Widths) -> list[tuple[str, KeptDirection]]:
        """All directions, each with its tenant.

        Raises DirectionFileError for a file that is not as it was written, or not as wide as its site.
        """
        found: dict[tuple[str, str], Path] = {}
        uploaded = []
        for path in sorted(self._folder.glob("*.safetensors")):
            tenant, direction = _read(path, widths)
            for key in filter(None, (direction.digest, direction.name)):
                if (other := found.setdefault((tenant, key), path)) is not path:
                    raise DirectionFileError(f"{path}: is {key!r} of the tenant {tenant!r}, as {other} is")
            uploaded.append((tenant, direction))
        return uploaded

    def write(self, tenant: str, direction: KeptDirection, vector: Tensor) -> None:
        """Keep a direction with its vector as it was uploaded. Raises OSError."""
        site = "" if direction.site is None else str(direction.site)
        told = {"tenant": tenant, "digest": direction.digest, "name": direction.name, "site": site}
        write_whole(self._file(tenant, direction), save({_TENSOR: vector}, told))

    def remove(self, tenant: str, direction: KeptDirection) -> None:
        """Delete a direction. Raises OSError."""
        self._file(tenant, direction).unlink(missing_ok=True)
        sync_directory(self._folder)

    def _file(self, tenant: str, direction: KeptDirection) -> Path:
        owner = hashlib.sha256(tenant.encode()).hexdigest()[:16]
        return self._folder / f"{owner}-{direction.digest}.safetensors"


def _read(path: Path, widths: Widths) -> tuple[str, KeptDirection]:
    found = read_file(path, widths.widest)
    with safe_open(path, "pt") as file:
        told: dict[str, str] = file.metadata() or {}
    if missing := {"tenant", "digest", "name", "site"} - told.keys():
        raise DirectionFileError(f"{path}: does not tell {', '.join(sorted(missing))}")
    if told["name"] and not is_name(told["name"]):
        raise DirectionFileError(f"{path}: {told['name']!r} is no name")
    made = KeptDirection.of(found.vector, told["name"])
    if made.digest != told["digest"]:
        raise DirectionFileError(f"{path}: its numbers are not those of the digest {told['digest']}")
    site = _site(told["site"], path)
    _check_width(found.vector, site, widths, path)
    return told["tenant"], replace(made, site=site)


def _check_width(vector: Tensor, site: Site | None, widths: Widths, path: Path) -> None:
    try:
        check_width(vector, site, widths)
    except DirectionFileError as error:
        raise DirectionFileError(f"{path}: {error}") from error


def _site(name: str, path: Path) -> Site | None:
    try:
        return Site.parse(name) if name else None
    except SiteError as error:
        raise DirectionFileError(f"{path}: {error}") from error
