"""Pictures over gRPC: answered, bounded, told to policies and the audit log, and never mistaken for text."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from PIL import Image

import saegis
from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc, prompt_pb2
from tests.engine import seeing as models
from tests.rpc import seeing
from tests.rpc.harness import Running, failure, running

ALLOW = """\
apiVersion: saegis.dev/v1
kind: Policy
name: sight
serial: 1
revision: r1
match: {tenants: ["*"]}
rules:
  - {id: no-bridges, ban: {features: [{sae: seen, index: 5}], strength: 2}}
allow:
  - {id: looks, uses: [pictures], max: 1}
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    """A server that sees, with room for two pictures of a request."""
    with running(make=seeing.seeing_services, max_pictures=2, max_picture_bytes=4096) as server:
        yield server


@pytest.fixture
def client(served: Running) -> Iterator[saegis.Client]:
    with saegis.Client(served.target, insecure=True) as made:
        yield made


def said(*parts: str | saegis.Image) -> list[saegis.ChatMessage]:
    """A conversation of one message."""
    return [{"role": "user", "content": parts}]


@torch.inference_mode()
def test_an_answer_about_pictures_is_that_of_transformers_with_its_own_processor(
    client: saegis.Client,
) -> None:
    model = models.make("llava")
    shown = [models.picture(1), models.picture(2, 40, 18)]
    files = [saegis.image(seeing.file_of(each)) for each in shown]
    answer = client.generate(
        messages=said("see ", files[0], " and ", files[1], "?"), temperature=0.0, max_tokens=6
    )
    text = "<s>user\nsee <image> and <image>?</s><s>assistant\n"
    given: dict[str, Any] = dict(
        model.processor(
            text=[text], images=[shown], text_kwargs={"add_special_tokens": False}, return_tensors="pt"
        )
    )
    ids = given["input_ids"]
    assert answer.usage.prompt_tokens == ids.shape[1]
    for _ in range(6):
        logits = model.model(input_ids=ids, pixel_values=given["pixel_values"], use_cache=False).logits
        ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), -1)
    read = client.detokenize(ids[0, given["input_ids"].shape[1] :].tolist())
    assert answer.text == read


def test_texts_in_parts_are_one_text(client: saegis.Client) -> None:
    whole: list[saegis.ChatMessage] = [{"role": "user", "content": "a bridge"}]
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}
    plain = client.generate(messages=whole, **options)
    parts = client.generate(messages=[{"role": "user", "content": ["a ", "bridge"]}], **options)
    assert (plain.text, plain.usage) == (parts.text, parts.usage)


def test_a_placeholder_that_is_typed_is_text_and_no_place(client: saegis.Client) -> None:
    file = saegis.image(seeing.png())
    plain = client.generate(messages=said("<IMAGE>", file), temperature=0.0, max_tokens=1)
    typed = client.generate(messages=said("<image>", file), temperature=0.0, max_tokens=1)
    # The tokenizer's tokens are bytes, but for the placeholder.
    assert typed.usage.prompt_tokens == plain.usage.prompt_tokens
    alone = client.generate(messages=said("<image>"), temperature=0.0, max_tokens=1)
    assert alone.usage.prompt_tokens == len(b"<s>user\n<image></s><s>assistant\n") - 2 * 2 - 3
    with pytest.raises(saegis.InvalidArgument, match="text: has '<image>' at token 2, which stands"):
        client.generate("a <image>", max_tokens=1)
    placeholder = models.make("llava").eyes.placeholder_id
    with pytest.raises(saegis.InvalidArgument, match="ids: has '<image>' at token 1"):
        client.generate(token_ids=[1, placeholder], max_tokens=1)


@pytest.mark.parametrize(
    ("parts", "field", "described"),
    [
        ([b"no picture"], "chat.messages[0].parts[0].image.data", "is no PNG, JPEG or WebP file"),
        ([bytes(5000)], "chat.messages[0].parts[0].image.data", "has 5000 bytes; at most 4096 are read"),
        ([seeing.png()] * 3, "chat.messages", "has 3 pictures; a request may have 2"),
        ([seeing.png(), None], "chat.messages[0].parts[1]", "must be a text or an image"),
    ],
)
def test_what_is_no_picture_that_may_be_is_refused_by_its_field(
    served: Running, parts: list[bytes | None], field: str, described: str
) -> None:
    message = prompt_pb2.ChatMessage(role="user")
    for each in parts:
        message.parts.add(image=None if each is None else prompt_pb2.Image(data=each))
    request = pb.GenerateRequest(chat=prompt_pb2.Chat(messages=[message]))
    with grpc.insecure_channel(served.target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        found = failure(lambda: stub.Generate(request))
        message.content = "beside"
        del request.chat.messages[:]
        request.chat.messages.append(message)
        beside = failure(lambda: stub.Generate(request))
    assert (found.code, found.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert described in found.message
    assert beside.fields == ["chat.messages[0].content"]


def test_a_model_that_sees_none_refuses_pictures() -> None:
    with running() as server, saegis.Client(server.target, insecure=True) as client:
        with pytest.raises(saegis.FailedPrecondition, match="the model sees no pictures"):
            client.generate(messages=said(saegis.image(seeing.png())))
        assert client.server_info().limits.max_pictures == 0


def test_limits_are_told(client: saegis.Client) -> None:
    limits = client.server_info().limits
    assert (limits.max_pictures, limits.max_picture_bytes) == (2, 4096)
    assert (limits.max_picture_pixels, limits.max_picture_side) == (2**24, 8192)


@torch.inference_mode()
def test_inspect_reads_pictures_and_tells_where_their_tokens_lie(client: saegis.Client) -> None:
    image = models.picture(1, 32, 16)
    file = saegis.image(seeing.file_of(image))
    read = client.inspect(messages=said("ab", file), features=[5], top_k=0)
    (told,) = read.pictures
    assert told.digest == hashlib.sha256(file.data).hexdigest()
    assert (told.width, told.height, told.token_count) == (32, 16, 16)
    (grid,) = told.grids
    # "<s>user\n" is six tokens; the processor cuts the middle half out of so wide a picture.
    assert (told.first_token, grid.first_token) == (8, 8)
    assert (grid.rows, grid.columns) == (4, 4)
    assert (grid.left, grid.top, grid.right, grid.bottom) == (0.25, 0.0, 0.75, 1.0)
    model = models.make("llava")
    given = dict(
        model.processor(
            text=["<s>user\nab<image></s>"],
            images=[image],
            text_kwargs={"add_special_tokens": False},
            return_tensors="pt",
        )
    )
    output = model.model(
        input_ids=given["input_ids"],
        pixel_values=given["pixel_values"],
        use_cache=False,
        output_hidden_states=True,
    )
    wanted = seeing.sae().encode(output.hidden_states[2][0])[:, 5]
    torch.testing.assert_close(torch.tensor(read.values[0].activations), wanted, rtol=1e-3, atol=1e-3)


def test_score_reads_pictures(client: saegis.Client) -> None:
    scored = client.score(messages=said("what ", saegis.image(seeing.png())))
    assert len(scored.token_ids) == 6 + 5 + 16 + 1
    assert len(scored.logprobs) == len(scored.token_ids) - 1


def test_policies_allow_pictures_and_the_log_keeps_their_digests(tmp_path: Path) -> None:
    bundle = tmp_path / "sight"
    bundle.mkdir()
    (bundle / "policy.yaml").write_text(ALLOW, encoding="utf-8")
    log = tmp_path / "audit"
    settings: dict[str, Any] = {
        "policies": {"bundles": [str(bundle)]},
        "audit": {"directory": str(log), "prompts": True},
    }
    file = saegis.image(seeing.png(7))
    with (
        running(make=seeing.seeing_services, **settings) as server,
        saegis.Client(server.target, insecure=True) as client,
    ):
        answer = client.generate(messages=said(file, "?"), temperature=0.0, max_tokens=3)
        with pytest.raises(saegis.PermissionDenied, match="pictures 2"):
            client.generate(messages=said(file, file))
        with pytest.raises(saegis.PermissionDenied):
            client.inspect(messages=said(file))
    assert answer.receipt.ruled
    texts = [path.read_bytes() for path in log.rglob("*") if path.is_file()]
    records = [json.loads(line) for text in texts for line in text.splitlines() if line.startswith(b"{")]
    first = next(each for each in records if each.get("pictures"))
    (kept,) = first["pictures"]
    assert kept["digest"] == hashlib.sha256(file.data).hexdigest()
    assert (kept["kind"], kept["width"], kept["height"], kept["tokens"]) == ("PNG", 24, 20, 16)
    assert not any(file.data[8:40] in text for text in texts)


def test_a_transparent_picture_is_seen_on_white(client: saegis.Client) -> None:
    clear = saegis.image(seeing.file_of(Image.new("RGBA", (8, 8), (200, 0, 0, 0))))
    white = saegis.image(seeing.file_of(Image.new("RGB", (8, 8), "white")))
    answers = [client.score(messages=said(each)).logprobs for each in (clear, white)]
    assert answers[0] == answers[1]


def test_a_contrast_takes_pictures_beside_texts(client: saegis.Client) -> None:
    """Each by itself, at the tokens at which the model is shown it: as Inspect reads it."""
    shown = [saegis.image(seeing.png(seed)) for seed in (1, 2)]
    found = client.contrast_features(["a bridge"], [], positive_images=shown[:1], negative_images=shown[1:])
    assert found.tested > 0
    assert {each.positive.firing_rate for each in found} <= {0.5, 1.0}
    assert {each.negative.firing_rate for each in found} <= {0.0, 1.0}
    with pytest.raises(saegis.InvalidArgument, match="negative_texts: must have at least one text"):
        client.contrast_features(["a"], [], positive_images=shown)
    with pytest.raises(saegis.InvalidArgument, match="pictures have none"):
        client.contrast_features(
            ["a"], ["b"], positive_images=shown[:1], positive_languages=["en"], negative_languages=["en"]
        )
    with pytest.raises(saegis.InvalidArgument, match="which stands for a picture"):
        client.contrast_features(["<image>"], ["b"])
    with pytest.raises(saegis.InvalidArgument, match="3 pictures in all; a request may have 2"):
        client.contrast_features([], [], positive_images=shown, negative_images=shown[:1])


def test_a_conversation_with_pictures_is_tokenized_as_it_is_read(client: saegis.Client) -> None:
    messages = said("see ", saegis.image(seeing.png()))
    read = client.tokenize(messages=messages)
    answer = client.generate(messages=messages, temperature=0.0, max_tokens=1)
    assert len(read.token_ids) == answer.usage.prompt_tokens
    assert list(read.tokens).count("<image>") == 16
