"""Pictures over HTTP: data URLs of OpenAI's client, and no other address."""

import base64
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import saegis
from tests.http.conftest import url_of
from tests.rpc import seeing
from tests.rpc.harness import Running, running


@pytest.fixture(scope="module")
def sees() -> Iterator[Running]:
    """A server with an HTTP port whose model sees."""
    with running(make=seeing.seeing_services, http_port=0, max_picture_bytes=4096) as server:
        yield server


def asked(url: str, **more: Any) -> list[Any]:
    """A conversation with a picture at an address."""
    part = {"type": "image_url", "image_url": {"url": url, **more}}
    return [{"role": "user", "content": [{"type": "text", "text": "what is "}, part]}]


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def client(sees: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url_of(sees)}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_data_url_is_the_picture(client: openai.OpenAI, sees: Running) -> None:
    file = seeing.png(3)
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 5}
    told = client.chat.completions.create(
        model="tiny", messages=asked(data_url(file), detail="auto"), **options
    )
    with saegis.Client(sees.target, insecure=True) as own:
        content: list[str | saegis.Image] = ["what is ", saegis.image(file)]
        same = own.generate(messages=[{"role": "user", "content": content}], **options)
    assert told.choices[0].message.content == same.text
    assert told.usage is not None
    assert told.usage.prompt_tokens == same.usage.prompt_tokens


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/bridge.png", "must be a data URL .* nothing is fetched"),
        ("file:///etc/passwd", "must be a data URL .* nothing is fetched"),
        ("data:image/svg+xml;base64,AAAA", "must be a data URL .* nothing is fetched"),
        ("data:image/png;base64,*", "is no base64"),
        (data_url(b"no picture"), "is no PNG, JPEG or WebP file"),
        (data_url(bytes(5000)), "has 5000 bytes; at most 4096 are read"),
    ],
)
def test_any_other_address_is_refused_in_a_sentence(client: openai.OpenAI, url: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        client.chat.completions.create(model="tiny", messages=asked(url))
    assert caught.value.param == "messages[0].content[1].image_url.url"


def test_other_parts_are_refused(client: openai.OpenAI) -> None:
    audio: list[Any] = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]
    with pytest.raises(openai.BadRequestError, match="must be text or image_url") as caught:
        client.chat.completions.create(model="tiny", messages=audio)
    assert caught.value.param == "messages[0].content[0].type"
    with pytest.raises(openai.BadRequestError, match="is not served"):
        client.chat.completions.create(model="tiny", messages=asked(data_url(seeing.png()), detail="high"))
