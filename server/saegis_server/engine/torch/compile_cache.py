"""The compile cache: where what was compiled is kept for later starts, safely, and made only when needed.

What is loaded from it is run, so that it must lie where no other user of the machine can write.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

#: Names the folder; without it TORCHINDUCTOR_CACHE_DIR does, and else it is one of the user's own.
SETTING = "SAEGIS_COMPILE_CACHE"
_OF_TORCH = "TORCHINDUCTOR_CACHE_DIR"


class CompileCacheError(OSError):
    """Nothing can be kept where compiled programs are to be kept."""


def keep_out() -> None:
    """Keep torch, which makes its folder as soon as it is imported, from making any.

    To be called before torch is imported; `settle` then says where the folder is, if one is needed.
    """
    wished = os.environ.get(_OF_TORCH)
    if wished and wished != os.sep:
        os.environ.setdefault(SETTING, wished)
    os.environ[_OF_TORCH] = os.sep  # which is there everywhere


def settle() -> Path:
    """Make the folder, let torch keep there what it compiles, and return it. Raises CompileCacheError."""
    setting = os.environ.get(SETTING)
    try:
        folder = Path(setting).absolute() if setting else _own_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if not setting and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
            raise CompileCacheError(f"others than this user may write to {folder}, and what it holds is run")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except CompileCacheError:
        raise
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        place = setting or "the user's cache folder"
        raise CompileCacheError(f"compiled programs cannot be kept in {place} ({reason})") from error
    os.environ[_OF_TORCH] = str(folder)
    return folder


def _own_folder() -> Path:
    """A folder of the user's own for this version of torch and of this package."""
    from importlib.metadata import version

    from saegis.version import __version__

    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = cache if cache.is_absolute() else Path.home() / ".cache"
    return base / "saegis" / f"compiled-{__version__}-torch-{version('torch')}"


class Kept:
    """Whether programs of one kind have been compiled before, by a file beside them."""

    def __init__(self, folder: Path, kind: Iterable[object]) -> None:
        """`kind`: all that tells the programs from others."""
        self.folder = folder
        digest = hashlib.sha256("\n".join(map(str, kind)).encode()).hexdigest()
        self._mark = folder / f"saegis-{digest[:16]}"

    def __bool__(self) -> bool:
        return self._mark.exists()

    def note(self) -> None:
        """They have been compiled now."""
        self._mark.touch()
