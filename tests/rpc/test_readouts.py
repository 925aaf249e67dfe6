"""What is read of single tokens over a socket: in chunks and at once, for whom, and how much of it."""

from pathlib import Path

import grpc
import pytest

import saegis
from saegis.generation import assemble
from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc, steering_pb2
from saegis_server.rpc.services import generation
from tests.rpc import tiny
from tests.rpc.harness import failure, running
from tests.rpc.test_governor import ask, denied, edit, ruled, write

WATCHED = [saegis.feature(3, sae="first"), saegis.feature(5, sae="second")]
OPTIONS: saegis.GenerationOptions = {
    "max_tokens": 6,
    "temperature": 0.0,
    "n": 2,
    "steering": [saegis.scale(WATCHED[0], 0.5), saegis.ban(WATCHED[1])],
    "watch": WATCHED,
    "read_prompt": True,
    "read_moves": True,
}


def test_chunks_bring_what_is_told_at_once() -> None:
    """The prompt's values come with the first chunk alone; each token's with its own."""
    with running() as server, saegis.Client(server.target) as client:
        whole = client.generate("the red bridge over the river", **OPTIONS)
        with client.stream("the red bridge over the river", **OPTIONS) as stream:
            chunks = list(stream)
        assert [bool(chunk.prompt_watched) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
        for chunk in chunks:
            counts = [len(each.relative_norms) for each in chunk.moves]
            assert counts == [len(chunk.token_ids)] * 2
        joined = assemble(chunks, stream.final)
        plain = client.generate("the red bridge over the river", max_tokens=2)
    assert (joined.choices, joined.prompt_watched, joined.prompt_moves) == (
        whole.choices,
        whole.prompt_watched,
        whole.prompt_moves,
    )
    tokens = whole.usage.prompt_tokens
    assert [(each.watch, len(each.before), len(each.after)) for each in whole.prompt_watched] == [
        (0, tokens, tokens),
        (1, tokens, tokens),
    ]
    assert [each.site for each in whole.prompt_moves] == [str(site) for site in tiny.SITES]
    # The first token of an answer is read at the prompt's last one.
    assert whole.prompt_watched[0].after[-1] == whole.watched[0].after[0]
    # A ban keeps what it bans from being active; the first token, which is the model's own, stays as it is.
    assert max(whole.prompt_watched[1].after[1:]) <= 1e-4
    assert [each.relative_norms[0] for each in whole.prompt_moves] == [0.0, 0.0]
    largest = [
        max(
            value
            for each in (*whole.prompt_moves, *(moves for choice in whole.choices for moves in choice.moves))
            if each.site == site.site
            for value in each.relative_norms
        )
        for site in whole.receipt.sites
    ]
    assert largest == [site.largest_relative_norm for site in whole.receipt.sites]
    assert {plain.prompt_watched, plain.prompt_moves, plain.choices[0].moves} == {()}


def reading() -> pb.GenerateRequest:
    """A request with an edit that asks for moves."""
    request = ask("the river", 2, edit(3, 0.5, steering_pb2.OPERATION_SCALE))
    request.steering.read_moves = True
    return request


def test_moves_need_a_policys_permission_and_are_refused_where_it_conceals(tmp_path: Path) -> None:
    body = "allow: [{{id: any, ops: [scale]}}{}]\n"
    allowed = body.format(", {id: read, uses: [moves]}")
    with ruled(write(tmp_path, body.format(""))) as (_, stub):
        found = denied(stub, reading())
        (violation,) = found.details["BadRequest"].field_violations
        assert violation.field == "steering.read_moves"
    with ruled(write(tmp_path, allowed, "allows")) as (_, stub):
        assert stub.Generate(reading()).choices[0].moves
    with ruled(write(tmp_path, "transparency: steered\n" + allowed, "hides")) as (_, stub):
        refused = failure(lambda: stub.Generate(reading()))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["steering.read_moves"])


def test_what_cannot_be_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server, saegis.Client(server.target) as client:
        with pytest.raises(saegis.InvalidArgument, match="nothing to read") as nothing:
            client.generate("the river", read_prompt=True)
        monkeypatch.setattr(generation, "MOST_PROMPT_NUMBERS", 8)
        with pytest.raises(saegis.InvalidArgument, match="at most 8 are told") as many:
            client.generate("the red bridge over the river", **OPTIONS)
        assert {error.value.violations[0].field for error in (nothing, many)} == {"steering.read_prompt"}
        with grpc.insecure_channel(server.target) as channel:
            score = pb.ScoreRequest(text="the river", steering=steering_pb2.Steering(read_moves=True))
            found = failure(lambda: generation_pb2_grpc.GenerationServiceStub(channel).Score(score))
    assert (found.code, found.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["steering.read_moves"])
