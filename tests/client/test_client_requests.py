"""Arguments become requests: every option, every kind of edit and target, and precise refusals."""

import math
from pathlib import Path
from typing import Any

import numpy
import pytest

import saegis
from saegis import GenerationOptions
from saegis.generation import generate_request
from saegis.v1 import direction_pb2, generation_pb2, steering_pb2
from saegis.v1.steering_pb2 import Direction, FeatureRef

INFO = saegis.FeatureInfo("s", 9, "site", "label", None, None, (), (), None, {}, {}, False)


def build(prompt: str | None = "x", **options: Any) -> generation_pb2.GenerateRequest:
    return generate_request(prompt, GenerationOptions(**options))  # type: ignore[typeddict-item]


def asked(method: str, *arguments: Any, **options: Any) -> Any:
    """The request that a method of the clients writes."""
    return getattr(saegis.Client, method).__wrapped__(None, *arguments, **options)


def sent(edit: saegis.Edit) -> steering_pb2.Edit:
    return build(steering=[edit]).steering.edits[0]


def test_nothing_asked_nothing_sent() -> None:
    expected = generation_pb2.GenerateRequest(text="x", sampling=generation_pb2.SamplingParams())
    assert build() == expected
    assert build(temperature=None, steering=[], stop=[], logit_bias={}) == expected


SAMPLING: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 0.5,
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": -0.5,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.5,
    "max_tokens": 3,
    "min_tokens": 0,
    "stop": ["\n", "."],
    "stop_token_ids": [0, 5],
    "skip_special_tokens": False,
    "ignore_eos": True,
    "n": 2,
    "logprobs": 0,
    "seed": -7,
    "include_stop_str_in_output": True,
    "logit_bias": {3: -100.0},
}


def test_every_sampling_parameter_is_an_option() -> None:
    names = {field.name for field in generation_pb2.SamplingParams.DESCRIPTOR.fields}
    assert names == SAMPLING.keys()
    others = {"messages", "token_ids", "request_id", "steering", "watch", "read_prompt", "read_moves"}
    assert names | others == GenerationOptions.__annotations__.keys()


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_is_sent_zeros_too(name: str) -> None:
    expected = generation_pb2.SamplingParams(**{name: SAMPLING[name]})
    sampling = build(**{name: SAMPLING[name]}).sampling
    assert sampling == expected
    assert [field.name for field, _ in sampling.ListFields()] == [name], "sent, though it may be 0"


def test_one_stop_string_is_not_taken_for_its_letters() -> None:
    assert list(build(stop="END").sampling.stop) == ["END"]
    with pytest.raises(TypeError, match="positive_texts: expected several, not the single string 'abc'"):
        asked("contrast_features", "abc", ["d"])


def test_prompts() -> None:
    assert build("").WhichOneof("prompt") == "text"
    assert build(None, token_ids=[]).WhichOneof("prompt") == "token_ids"
    assert build(None, messages=[]).WhichOneof("prompt") == "chat"
    chat = build(None, messages=[{"role": "user", "content": "hi"}]).chat
    assert (chat.messages[0].role, chat.messages[0].content) == ("user", "hi")
    assert list(build(None, token_ids=numpy.arange(3)).token_ids.ids) == [0, 1, 2]
    assert build(request_id="mine").request_id == "mine"


@pytest.mark.parametrize(
    ("edit", "operation", "value"),
    [
        (saegis.clamp(1, 0), "CLAMP", 0.0),
        (saegis.clamp(1, 2, if_active=True), "CLAMP_IF_ACTIVE", 2.0),
        (saegis.scale(1, 0.5), "SCALE", 0.5),
        (saegis.add(1, -1.5), "ADD", -1.5),
        (saegis.cap(1, 3), "CAP", 3.0),
        (saegis.floor(1, 4), "FLOOR", 4.0),
        (saegis.ablate(1), "ABLATE", None),
        (saegis.ban(1), "BAN", 0.0),
        (saegis.ban(1, 2), "BAN", 2.0),
    ],
)
def test_operations(edit: saegis.Edit, operation: str, value: float | None) -> None:
    assert sent(edit) == steering_pb2.Edit(
        operation=f"OPERATION_{operation}", feature=FeatureRef(index=1), value=value
    )


def test_a_redirect_says_what_it_writes_instead() -> None:
    to = saegis.redirect(1, 1.5, to=saegis.feature("calm", sae="b"), unit="max_activation", phase="all")
    assert sent(to) == steering_pb2.Edit(
        operation="OPERATION_REDIRECT",
        feature=FeatureRef(index=1),
        value=1.5,
        unit="UNIT_MAX_ACTIVATION",
        phase="PHASE_ALL",
        redirect=steering_pb2.Redirection(
            feature=FeatureRef(sae="b", label="calm"), strength=0.0, threshold=0.0
        ),
    )
    to = saegis.redirect("a", -2, to=saegis.direction([1, 0.5]), strength=1, threshold=0.25, site="x")
    assert sent(to).redirect == steering_pb2.Redirection(
        direction=Direction(values=[1, 0.5]), strength=1.0, threshold=0.25
    )
    with pytest.raises(TypeError, match=r"redirect\.strength"):
        sent(saegis.redirect(1, 1, to=2, strength="much"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a target is"):
        saegis.redirect(1, 1, to=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a redirect needs one"):
        saegis.Edit("redirect", saegis.feature(1), 1.0)
    with pytest.raises(ValueError, match="no other operation takes one"):
        saegis.Edit("clamp", saegis.feature(1), 1.0, redirect=saegis.Redirection(saegis.feature(2)))


def test_every_operation_unit_and_phase_of_the_contract_can_be_said() -> None:
    for enum, literal in (("Operation", saegis.Operation), ("Unit", saegis.Unit), ("Phase", saegis.Phase)):
        names = steering_pb2.DESCRIPTOR.enum_types_by_name[enum].values_by_number.values()
        told = {value.name.removeprefix(f"{enum.upper()}_").lower() for value in names} - {"unspecified"}
        assert told == set(literal.__args__)  # type: ignore[attr-defined]


def test_unit_site_and_phase() -> None:
    edit = sent(saegis.clamp(1, 2, unit="max_activation", site="blocks.1", phase="completion"))
    assert edit == steering_pb2.Edit(
        operation="OPERATION_CLAMP",
        feature=FeatureRef(index=1),
        value=2,
        unit="UNIT_MAX_ACTIVATION",
        site="blocks.1",
        phase="PHASE_COMPLETION",
    )
    for make in (saegis.add, saegis.cap, saegis.floor):
        edit = sent(make(1, 2, unit="norm_fraction", site="b", phase="prompt"))
        assert (edit.unit, edit.site, edit.phase) == (3, "b", 2)
    for edit in (
        sent(saegis.scale(1, 2, site="b", phase="all")),
        sent(saegis.ablate(1, site="b", phase="all")),
        sent(saegis.ban(1, 2, site="b", phase="all")),
    ):
        assert (edit.site, edit.phase) == ("b", 1)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0, FeatureRef(index=0)),
        ("bridge", FeatureRef(label="bridge")),
        (saegis.feature(4, sae="s"), FeatureRef(index=4, sae="s")),
        (saegis.feature("bridge", sae="s"), FeatureRef(label="bridge", sae="s")),
        (INFO, FeatureRef(index=9, sae="s")),
        (saegis.direction([1, 0.5]), Direction(values=[1, 0.5])),
        (saegis.direction(numpy.ones(3, dtype="float32")), Direction(values=[1, 1, 1])),
        (saegis.direction("refusal"), Direction(name="refusal")),
        (saegis.direction("0f" * 32), Direction(digest="0f" * 32)),
        (saegis.direction("0F" * 32), Direction(name="0F" * 32)),
        (saegis.KeptDirection("0f" * 32, "refusal", "", shipped=False), Direction(digest="0f" * 32)),
    ],
)
def test_targets(target: saegis.Target, expected: FeatureRef | Direction) -> None:
    edit = sent(saegis.ablate(target))
    plain = build(watch=[target]).steering.watches[0]
    placed = build(watch=[saegis.watch(target, site="b")]).steering.watches[0]
    kind = "direction" if isinstance(expected, Direction) else "feature"
    for message in (edit, plain, placed):
        assert message.WhichOneof("target") == kind
        assert getattr(message, kind) == expected
    assert (plain.site, placed.site) == ("", "b")


@pytest.mark.parametrize(
    "parts",
    [{}, {"values": (1.0,), "name": "a"}, {"values": (1.0,), "digest": "a"}, {"name": "a", "digest": "b"}],
)
def test_a_direction_is_one_thing(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either values, a digest or a name"):
        saegis.Direction(**parts)


def test_a_direction_to_upload_is_numbers_a_path_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"file")
    for source in (b"file", tmp_path / "a", str(tmp_path / "a")):
        expected = direction_pb2.UploadDirectionRequest(name="n", site="s", file=b"file")
        assert asked("upload_direction", source, name="n", site="s") == expected
    for numbers in ([1, 0.5], (1.0, 0.5), numpy.array([1, 0.5])):
        assert asked("upload_direction", numbers) == direction_pb2.UploadDirectionRequest(values=[1, 0.5])
    with pytest.raises(FileNotFoundError):
        asked("upload_direction", tmp_path / "none")
    with pytest.raises(ValueError, match="either values"):
        asked("upload_direction", [])


def test_a_direction_to_delete_is_a_name_or_a_digest() -> None:
    digest, kept = "0f" * 32, saegis.KeptDirection("0f" * 32, "refusal", "", shipped=False)
    by_digest = direction_pb2.DeleteDirectionRequest(digest=digest)
    for reference in (digest, kept, saegis.direction(digest)):
        assert asked("delete_direction", reference) == by_digest
    for reference in ("refusal", saegis.direction("refusal")):
        assert asked("delete_direction", reference) == direction_pb2.DeleteDirectionRequest(name="refusal")
    with pytest.raises(ValueError, match="by name or by digest"):
        asked("delete_direction", saegis.direction([1.0]))


def test_not_finite_values_are_left_to_the_server() -> None:
    assert math.isnan(sent(saegis.clamp(1, math.nan)).value)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"prompt": None}, ValueError, "exactly one of a text, messages and token_ids, not 0"),
        ({"token_ids": [1]}, ValueError, "not 2"),
        ({"max_token": 3}, TypeError, "unknown option max_token"),
        ({"max_tokens": -1}, ValueError, "max_tokens: "),
        ({"max_tokens": 1.5}, TypeError, "max_tokens: "),
        ({"max_tokens": True}, TypeError, "max_tokens: expected a number, not True"),
        ({"temperature": "hot"}, TypeError, "temperature: "),
        ({"stop_token_ids": [-1]}, ValueError, "stop_token_ids: "),
        ({"logit_bias": {-1: 1.0}}, ValueError, "logit_bias: "),
        ({"request_id": 5}, TypeError, "request_id: "),
        ({"prompt": 5}, TypeError, "text: "),
        ({"prompt": None, "token_ids": [-1]}, ValueError, "token_ids: "),
        ({"prompt": None, "token_ids": "abc"}, TypeError, "token_ids: expected several"),
        ({"prompt": None, "messages": [{"role": "user"}]}, ValueError, "keys role and content, not role"),
        ({"prompt": None, "messages": [{"role": "u", "content": 1}]}, TypeError, "messages.content: "),
        ({"steering": [5]}, TypeError, "steering takes edits such as saegis.clamp"),
        ({"steering": [saegis.Edit("clamp", saegis.FeatureRef(-1), 2)]}, ValueError, "index: "),
        ({"watch": [1.5]}, TypeError, "a target is an index, a label, a feature or a direction, not float"),
    ],
)
def test_refusals_name_the_argument(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        build(**{"prompt": "x", **options})


def test_edits_refuse_what_does_not_exist() -> None:
    with pytest.raises(ValueError, match="unit must be one of feature, max_activation, norm_fraction, not"):
        saegis.clamp(1, 2, unit="metres")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="phase must be one of"):
        saegis.ablate(1, phase="always")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="operation must be one of"):
        saegis.Edit("explode", saegis.FeatureRef(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not bool"):
        saegis.ablate(True)


def score(text: str | None = None, **arguments: Any) -> generation_pb2.ScoreRequest:
    request: generation_pb2.ScoreRequest = asked("score", text, **arguments)
    return request


def test_scores() -> None:
    assert score("x") == generation_pb2.ScoreRequest(text="x")
    assert list(score(token_ids=numpy.arange(3)).token_ids.ids) == [0, 1, 2]
    edits = [saegis.clamp("bridge", 2), saegis.ablate(saegis.direction([1.0]))]
    assert score("x", steering=edits).steering == build(steering=edits).steering
    assert score("x", unruled=True) == generation_pb2.ScoreRequest(text="x", unruled=True)
    assert score(messages=[], request_id="mine").WhichOneof("prompt") == "chat"
    for arguments, kind, message in (
        ({}, ValueError, "not 0"),
        ({"text": "x", "token_ids": [1]}, ValueError, "not 2"),
        ({"token_ids": [-1]}, ValueError, "token_ids: "),
        ({"text": "x", "steering": [saegis.watch(1)]}, TypeError, "steering takes edits"),
        ({"text": "x", "request_id": 5}, TypeError, "request_id: "),
    ):
        with pytest.raises(kind, match=message):
            score(**arguments)


def test_get_feature_refuses_contradictions() -> None:
    assert asked("get_feature", INFO, sae="s").feature == FeatureRef(index=9, sae="s")
    with pytest.raises(ValueError, match="sae is 't' but the feature belongs to 's'"):
        asked("get_feature", INFO, sae="t")
    with pytest.raises(TypeError, match="a direction is no feature"):
        asked("get_feature", saegis.direction([1.0]))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt": "caf\udce9"}, "text"),
        ({"prompt": None, "messages": [{"role": "user", "content": "\ud800"}]}, "messages.content"),
        ({"stop": ["ok", "\ud800"]}, "stop"),
        ({"steering": [saegis.clamp("\ud800", 1.0)]}, "label"),
    ],
)
def test_text_that_is_none_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: no Unicode text: half of a character stands at"):
        build(**options)
