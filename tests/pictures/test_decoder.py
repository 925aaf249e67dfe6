"""Pictures are decoded by processes of their own, whatever is in their files."""

import hashlib
import re
from collections.abc import Iterator

import pytest
from PIL import Image

from saegis_server.pictures.decoder import Decoder, PictureError
from saegis_server.pictures.limits import PictureLimits
from tests.engine.seeing import picture
from tests.pictures.hostile import ANSWERED, REFUSED, file_of

LIMITS = PictureLimits(size=2**20, pixels=2**22, side=8192)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """One with a worker of its own."""
    made = Decoder(LIMITS, workers=1)
    yield made
    made.close()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_that_may_be_is_refused_by_name(decoder: Decoder, name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(PictureError) as caught:
        decoder.decode(make())
    assert re.search(said, str(caught.value))


@pytest.mark.parametrize("name", ANSWERED)
def test_odd_pictures_are_seen(decoder: Decoder, name: str) -> None:
    make, size = ANSWERED[name]
    data = make()
    found = decoder.decode(data)
    assert (found.width, found.height) == size
    assert len(found.pixels) == 3 * found.width * found.height
    assert found.digest == hashlib.sha256(data).hexdigest()


def test_pixels_are_those_of_the_picture(decoder: Decoder) -> None:
    image = picture(5)
    assert decoder.decode(file_of(image)).pixels == image.tobytes()
    grey = decoder.decode(file_of(Image.new("I;16", (3, 2), 0x8080)))
    assert set(grey.pixels) == {0x80}
    assert set(decoder.decode(ANSWERED["transparent"][0]()).pixels) == {255}
    first = decoder.decode(ANSWERED["animated png"][0]())
    assert first.pixels == picture(0, 20, 20).tobytes()


def test_bytes_are_bounded_before_anything_is_decoded() -> None:
    made = Decoder(PictureLimits(size=100))
    with pytest.raises(PictureError, match="has 101 bytes; at most 100 are read"):
        made.decode(bytes(101))
    assert made._workers[0]._process is None
    assert made._workers[1]._process is None


def test_a_worker_that_takes_too_long_or_ends_is_replaced() -> None:
    made = Decoder(LIMITS, workers=1, seconds=0.001)
    try:
        with pytest.raises(PictureError, match="takes longer than"):
            made.decode(file_of(picture(0)))
        made._seconds = 20.0
        assert made.decode(file_of(picture(0))).width == 24
        process = made._workers[0]._process
        assert process is not None
        process.kill()
        process.wait()
        with pytest.raises(PictureError, match="makes its decoder fail"):
            made.decode(file_of(picture(0)))
        assert made.decode(file_of(picture(0))).height == 20
    finally:
        made.close()
