"""What the console asks of the server beside OpenAI's paths: the model, tokens' ids, and the policies."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.conftest import url_of
from tests.http.guarded import guarded, token
from tests.rpc.harness import Running


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server under policies."""
    with guarded(tmp_path_factory.mktemp("guarded")) as server:
        yield server


def caller(server: Running, role: str) -> httpx.Client:
    """A principal of the tenant `free`."""
    return httpx.Client(
        base_url=url_of(server), headers={"authorization": f"Bearer {token(role, 'free')}"}, timeout=30.0
    )


def test_the_model_and_the_server_are_described(served: Running) -> None:
    with httpx.Client(base_url=url_of(served)) as client:
        model, server = client.get("/v1/model").json(), client.get("/v1/server").json()
    assert (model["id"], [sae["id"] for sae in model["saes"]][:2]) == ("tiny", ["first", "second"])
    assert server["limits"]["max_edits_per_site"] == 8


@pytest.mark.parametrize("kind", ["chat/completions", "completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_told_by_id_where_that_is_asked_for(served: Running, kind: str, stream: bool) -> None:
    messages = [{"role": "user", "content": "the river"}]
    asked = {"messages": messages} if kind.startswith("chat") else {"prompt": "the river"}
    body = asked | {"max_tokens": 5, "temperature": 0, "ignore_eos": True}
    with httpx.Client(base_url=url_of(served)) as client:
        assert "token_ids" not in client.post(f"/v1/{kind}", json=body).json()["choices"][0]
        told = client.post(f"/v1/{kind}", json=body | {"return_token_ids": True, "stream": stream})
        if stream:
            events = [line.removeprefix("data: ") for line in told.text.splitlines() if line]
            chunks = [httpx.Response(200, text=event).json() for event in events[:-1]]
            ids = [each for chunk in chunks for each in chunk["choices"][0].get("token_ids", ())]
        else:
            ids = told.json()["choices"][0]["token_ids"]
        tokens = client.post("/v1/tokenize", json={"text": "the river"}).json()
    assert len(ids) == 5
    assert len(tokens["token_ids"]) == len(tokens["tokens"])


def test_policies_are_listed_shown_and_asked(ruled: Running) -> None:
    with caller(ruled, "app") as client:
        listed = client.get("/v1/policies").json()
        assert [policy["active"]["name"] for policy in listed["policies"]] == ["bridges-free"]
        shown = client.get("/v1/policies/bridges-free", params={"include_bundle": "true"}).json()
        assert set(shown["policy"]["rules"]) == {"no-bridges", "cap-river", "ends"}
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(shown["bundle"]))) as bundle:
            assert bundle.getnames() == ["policy.yaml"]
        revisions = client.get("/v1/policies/bridges-free/revisions").json()["revisions"]
        assert [(each["revision"], each["active"]) for each in revisions] == [("r1", True)]
        checked = client.post("/v1/policies/validate", json={"bundle": shown["bundle"]}).json()
        assert not checked["changes"]["changes"]
        assert client.get("/v1/policies/bridges-stopped").status_code == 404


def test_a_decision_is_told_without_an_answer(ruled: Running) -> None:
    clamp: dict[str, Any] = {"operation": "OPERATION_CLAMP", "value": 1.0}
    allowed, denied = (
        {"steering": {"edits": [clamp | {"feature": {"sae": "first", "index": index}}]}} for index in (12, 3)
    )
    with caller(ruled, "app") as client:
        decision = client.post("/v1/policies/evaluate", json=allowed).json()["decision"]
        assert decision["allowed"]
        assert {rule["rule"]: rule["action"] for rule in decision["rules"]} == {
            "no-bridges": "ban",
            "cap-river": "cap",
            "ends": "stop",
        }
        decision = client.post("/v1/policies/evaluate", json=denied).json()["decision"]
        assert not decision["allowed"]
        assert decision["denials"][0]["field"] == "steering.edits[0]"


def test_who_may_not_is_told_which_role_is_missing(ruled: Running) -> None:
    with caller(ruled, "reader") as client:
        for path in ("/v1/policies", "/v1/policies/bridges-free", "/v1/features/search", "/v1/usage"):
            told = client.get(path)
            assert told.status_code == 403
            error = told.json()["error"]
            assert error["metadata"]["role"] == ("operate" if path == "/v1/usage" else "inspect")
    with httpx.Client(base_url=url_of(ruled)) as client:
        assert client.get("/v1/policies").status_code == 401
        assert client.get("/").status_code == 200


def test_the_audit_log_is_searched_by_who_administers(tmp_path: Path) -> None:
    with guarded(tmp_path) as server:
        with caller(server, "app") as client:
            banned = {"operation": "OPERATION_CLAMP", "value": 1.0, "feature": {"sae": "first", "index": 3}}
            body = {"messages": [{"role": "user", "content": "the river"}], "max_tokens": 2}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            denied = client.post("/v1/chat/completions", json=body | {"steering": {"edits": [banned]}})
            assert denied.status_code == 403
            told = client.get("/v1/audit")
            assert (told.status_code, told.json()["error"]["metadata"]["role"]) == (403, "administer")
        with caller(server, "owner") as client:
            found = client.get("/v1/audit", params={"tenant": "free", "denied": "true"}).json()["records"]
            assert [record["allowed"] for record in found] == [False]
            rule = found[0]["denials"][0]["rule"]
            by_rule = client.get("/v1/audit", params={"rule": rule}).json()["records"]
            assert by_rule[0] == found[0]
            assert all(record["kind"] == "answer" for record in by_rule[1:])
            page = client.get("/v1/audit", params={"page_size": 1}).json()
            assert page["records"][0]["kind"] == "decision"
            rest = client.get("/v1/audit", params={"page_token": page["next_page_token"]}).json()
            assert [record["kind"] for record in rest["records"]] == ["answer", "decision"]
            ever = {"start_time": "0001-01-01T00:00:00Z", "end_time": "9999-12-31T23:59:59Z"}
            assert len(client.get("/v1/audit", params=ever).json()["records"]) == 3
            later = {"start_time": "2100-01-01T00:00:00Z"}
            assert client.get("/v1/audit", params=later).json()["records"] == []
            for wrong in ({"page_size": 101}, {"page_token": "x"}, {"start_time": "soon"}):
                assert client.get("/v1/audit", params=wrong).status_code == 400


def test_a_server_without_an_audit_log_says_so(served: Running) -> None:
    with httpx.Client(base_url=url_of(served)) as client:
        told = client.get("/v1/audit")
    assert (told.status_code, told.json()["error"]["code"]) == (422, "no_audit")


def test_a_features_neighbours_are_told_where_they_are_asked_for(served: Running) -> None:
    with httpx.Client(base_url=url_of(served)) as client:
        assert not client.get("/v1/features/first/3").json().get("neighbours")
        told = client.get("/v1/features/first/3", params={"neighbour_count": 5}).json()["neighbours"]
        assert len(told) == 5
        assert 3 not in {each["feature"]["index"] for each in told}
        assert [each["cosine"] for each in told] == sorted((each["cosine"] for each in told), reverse=True)
        wrong = client.get("/v1/features/first/3", params={"neighbour_count": 101})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "neighbour_count")
