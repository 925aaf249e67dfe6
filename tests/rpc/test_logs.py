"""The log: JSON objects a line, with the request that they are about, and nothing of what it says."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import saegis
from saegis_server.rpc.auth.roles import ALL_ROLES
from saegis_server.rpc.server.logs import JsonFormatter, request_id, with_fields
from tests.rpc.callers import by_token, identities
from tests.rpc.harness import running


@contextmanager
def recorded() -> Iterator[io.StringIO]:
    """Everything that is logged meanwhile, of any level, as JSON."""
    text, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(text), root.level
    handler.setFormatter(JsonFormatter())
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield text
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def lines(text: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.getvalue().split("\n") if line]


def test_a_record_is_one_line_whatever_it_says() -> None:
    log = logging.getLogger("saegis.here")
    with recorded() as text:
        log.warning("two\nlines \u2028 of %s", "text", extra=with_fields(code="OK", reason=None, seconds=0.5))
        token = request_id.set("r-1")
        try:
            raise ValueError("a defect")
        except ValueError:
            log.exception("failed")
        finally:
            request_id.reset(token)
    first, second = lines(text)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning",
        "logger": "saegis.here",
        "message": "two\nlines \u2028 of text",
        "code": "OK",
        "seconds": 0.5,
    }
    assert (second["level"], second["request_id"]) == ("error", "r-1")
    assert second["exception"].startswith("Traceback")
    assert second["exception"].endswith("ValueError: a defect")
    assert text.getvalue().count("\n") == 2
    assert text.getvalue().isascii()


def test_calls_are_told_with_their_ids_and_without_what_they_say(tmp_path: Path) -> None:
    known = identities(tmp_path, {"one": (ALL_ROLES, by_token("hush-hush"))})
    with recorded() as text, running(identities=known, audit={"directory": tmp_path / "log"}) as server:
        with saegis.Client(server.target, token="hush-hush") as client:
            answer = client.generate("the river sleeps", max_tokens=3, request_id="mine")
            with pytest.raises(saegis.NotFound):
                client.generate("the river sleeps", steering=[saegis.ban(saegis.feature(1, sae="none"))])
        with (
            saegis.Client(server.target, token="not-known") as client,
            pytest.raises(saegis.Unauthenticated),
        ):
            client.generate("the river sleeps")
    calls = [line for line in lines(text) if "method" in line]
    assert {line["method"] for line in calls} == {"/saegis.v1.GenerationService/Generate"}
    assert [line["code"] for line in calls] == ["OK", "NOT_FOUND", "UNAUTHENTICATED"]
    assert [line.get("reason") is None for line in calls] == [True, False, False]
    assert calls[0]["request_id"] == answer.request_id == "mine"
    assert len({line["request_id"] for line in calls}) == 3
    assert all(0.0 < line["seconds"] < 60.0 for line in calls)
    for secret in ("sleeps", answer.text, "hush", "not-known"):
        assert secret not in text.getvalue()
