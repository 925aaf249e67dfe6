"""The description is of what is served: every route and field, and every answer fits its schema."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from saegis_server.http.endpoints import GENERATE, STREAM
from saegis_server.http.fields import FIELDS, Kind
from saegis_server.http.openapi import description
from saegis_server.http.routes import ROUTES
from saegis_server.rpc.auth.roles import NEEDED
from tests.http.conftest import url_of
from tests.rpc.harness import Running, running

ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 2, "temperature": 0.0}
#: A request of each route, which must be answered.
REQUESTS: dict[str, dict[str, Any]] = {
    "GET /v1/models": {},
    "GET /v1/models/{model}": {"path": {"model": "tiny"}},
    "POST /v1/chat/completions": {"json": {**ASK, "messages": [{"role": "user", "content": "the river"}]}},
    "POST /v1/completions": {"json": {**ASK, "prompt": "the river"}},
    "GET /v1/features/search": {"params": {"query": "river", "page_size": "3"}},
    "GET /v1/features/{sae}/{index}": {"path": {"sae": "first", "index": "3"}},
    "POST /v1/inspect": {"json": {"text": "the river", "sae": "first"}},
    "POST /v1/contrast": {
        "json": {"positive_texts": ["the river"], "negative_texts": ["birds sing"], "sae": "first"}
    },
    "GET /v1/usage": {"params": {"sae": "first", "source": "USAGE_SOURCE_WATCHED"}},
    "POST /v1/usage": {"json": {"sae": "first", "source": "USAGE_SOURCE_WATCHED"}},
    "GET /v1/model": {},
    "GET /v1/server": {},
    "POST /v1/tokenize": {"json": {"text": "the river"}},
}
#: The routes of policies and of the audit log, which answer where there are any; see test_console_routes.
GOVERNED = {
    "GET /v1/audit",
    "GET /v1/policies",
    "GET /v1/policies/{name}",
    "GET /v1/policies/{name}/revisions",
    "POST /v1/policies/evaluate",
    "POST /v1/policies/validate",
}


def misfits(value: Any, schema: dict[str, Any]) -> list[str]:
    """Where a value does not fit a schema of the description."""
    whole = {"components": description()["components"], **schema}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(whole).iter_errors(value)]


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_each_route_answers_as_it_is_described(served: Running, name: str) -> None:
    verb, path = name.split(" ")
    told = description()["paths"][path][verb.lower()]
    asked = dict(REQUESTS[name])
    if "json" in asked:
        schema = told["requestBody"]["content"]["application/json"]["schema"]
        assert not misfits(asked["json"], schema)
    where = path.format(**asked.pop("path", {}))
    answer = httpx.request(verb, f"{url_of(served)}{where}", **asked, timeout=60)
    assert answer.status_code == 200, answer.text
    assert not misfits(answer.json(), told["responses"]["200"]["content"]["application/json"]["schema"])
    assert answer.headers["x-request-id"]
    missing = httpx.request(verb, f"{url_of(served)}{where}", params={"unheard": "1"}, json={"unheard": 1})
    if missing.status_code != 200:
        assert not misfits(missing.json(), {"$ref": "#/components/schemas/Error"})


def test_every_route_and_every_field_is_described() -> None:
    paths = description()["paths"]
    served = {f"{route.verb} {re.sub(r':[a-z]+', '', route.path)}" for route in ROUTES}
    described = {f"{verb.upper()} {path}" for path, verbs in paths.items() for verb in verbs}
    assert described == served == REQUESTS.keys() | GOVERNED
    schemas = description()["components"]["schemas"]
    for kind, name in ((Kind.CHAT, "ChatRequest"), (Kind.COMPLETION, "CompletionRequest")):
        assert set(schemas[name]["properties"]) == {each for each in FIELDS if kind in FIELDS[each].kinds}
    named = set(re.findall(r"#/components/schemas/(\w+)", str(description())))
    assert named <= schemas.keys()


def test_a_stream_needs_the_role_of_a_whole_answer() -> None:
    """Its caller is let in before the body says which of the two is asked for."""
    assert NEEDED[GENERATE].role is NEEDED[STREAM].role


def test_the_description_is_told_to_those_who_may_read_the_contract(served: Running) -> None:
    assert httpx.get(f"{url_of(served)}/openapi.json").json() == description()
    with running(http_port=0, reflection=False) as server:
        assert httpx.get(f"{url_of(server)}/openapi.json").status_code == 404
