"""The decoder: pictures are decoded by workers of their own, few, and each bounded in memory and time.

What a decoder of images does with a hostile file is then a worker's end and that picture's refusal, and
neither takes the server's memory nor delays its event loop.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from threading import Timer
from typing import IO

from PIL import Image

from saegis_server.pictures import worker as worker_module
from saegis_server.pictures.limits import PictureLimits

#: A worker's memory: what Python and Pillow take, and so many bytes for each pixel that a picture may have.
_BASE_BYTES, _BYTES_PER_PIXEL = 512 * 2**20, 24
#: How many workers there are at most, and how long one may take for a picture, in seconds.
WORKERS, SECONDS = 2, 20.0
#: How many pictures a worker decodes before another one takes its place, so that none grows.
_MOST_OF_ONE = 512


class PictureError(ValueError):
    """A picture that is not taken, and why, in words that follow its name."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture in RGB, row by row: 3 · width · height bytes. digest: SHA-256 of the file, in hexadecimal."""

    kind: str
    width: int
    height: int
    pixels: bytes
    digest: str

    @property
    def image(self) -> Image.Image:
        """The same as an image."""
        return Image.frombytes("RGB", (self.width, self.height), self.pixels)


class _Worker:
    """One process, which is started when the first picture comes."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._decoded = 0

    def ask(self, request: bytes, data: bytes, seconds: float) -> tuple[dict[str, object], bytes]:
        """What it answers. Raises PictureError where it ends or takes too long, and is then another one."""
        if self._decoded >= _MOST_OF_ONE:
            self.stop()
        process = self._process or self._start()
        late: list[bool] = []

        def end() -> None:
            late.append(True)
            process.kill()

        timer = Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            if process.stdin is None or process.stdout is None:
                raise OSError("no pipes")
            process.stdin.write(request)
            process.stdin.write(data)
            process.stdin.flush()
            (length,) = worker_module.LENGTH.unpack(_exactly(process.stdout, worker_module.LENGTH.size))
            answer: dict[str, object] = json.loads(_exactly(process.stdout, length))
            width, height = (int(str(answer.get(name, 0))) for name in ("width", "height"))
            pixels = _exactly(process.stdout, 3 * width * height)
        except (OSError, ValueError, EOFError) as error:
            self.stop()
            why = f"takes longer than {seconds:g} s to decode" if late else "makes its decoder fail"
            raise PictureError(why) from error
        finally:
            timer.cancel()
        self._decoded += 1
        return answer, pixels

    def _start(self) -> subprocess.Popen[bytes]:
        # Isolated: it sees neither the environment's Python settings nor this folder's modules.
        self._process = subprocess.Popen(  # noqa: S603 - this program's own file, by this interpreter
            [sys.executable, "-I", str(Path(worker_module.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/" if sys.platform != "win32" else None,
            close_fds=True,
        )
        self._decoded = 0
        return self._process

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        process.wait()


class Decoder:
    """Decodes pictures, as many at once as there are workers. Safe to use from several threads."""

    def __init__(self, limits: PictureLimits, workers: int = WORKERS, seconds: float = SECONDS) -> None:
        """Nothing is started before the first picture."""
        self.limits, self._seconds = limits, seconds
        self._workers = [_Worker() for _ in range(workers)]
        self._idle: LifoQueue[_Worker] = LifoQueue()
        for each in self._workers:
            self._idle.put(each)

    def decode(self, data: bytes) -> Decoded:
        """The first picture of a PNG, JPEG or WebP file, in RGB; waits for a worker. Raises PictureError."""
        limits = self.limits
        if not data:
            raise PictureError("is empty")
        if len(data) > limits.size:
            raise PictureError(f"has {len(data)} bytes; at most {limits.size} are read")
        memory = _BASE_BYTES + _BYTES_PER_PIXEL * limits.pixels
        request = worker_module.REQUEST.pack(len(data), limits.pixels, limits.side, memory)
        worker = self._idle.get()
        try:
            answer, pixels = worker.ask(request, data, self._seconds)
        finally:
            self._idle.put(worker)
        if "refused" in answer:
            raise PictureError(str(answer["refused"]))
        width, height = int(str(answer["width"])), int(str(answer["height"]))
        digest = hashlib.sha256(data).hexdigest()
        return Decoded(str(answer["kind"]), width, height, pixels, digest)

    def close(self) -> None:
        """End the workers."""
        for each in self._workers:
            each.stop()


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    """So many bytes of a pipe. Raises EOFError where it ends before."""
    data = pipe.read(count)
    if len(data) != count:
        raise EOFError
    return data
