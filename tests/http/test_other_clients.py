"""LangChain, LiteLLM and what Open WebUI asks, unmodified, in their own environment: steered and denied."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.conftest import url_of
from tests.http.guarded import client_of, guarded, token
from tests.rpc.harness import Running
from tests.tools import other_python

PROGRAMS = Path(__file__).parent / "programs"
CLAMP = {"operation": "OPERATION_CLAMP", "feature": {"sae": "first", "index": 12}, "value": 3.0}
FORBIDDEN = {**CLAMP, "feature": {"sae": "first", "index": 20}}
ASKED = {"model": "tiny", "prompt": "the river runs under the bridge", "max_tokens": 6}
#: Importing them takes seconds, and on a busy machine many.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server under policies, with a preset that they allow and one that they do not."""
    folder = tmp_path_factory.mktemp("guarded")
    presets = {"style": CLAMP, "other": FORBIDDEN}
    for name, edit in presets.items():
        (folder / f"{name}.json").write_text(json.dumps({"edits": [edit]}), encoding="utf-8")
    with guarded(folder, presets={name: folder / f"{name}.json" for name in presets}) as server:
        yield server


def answered(server: Running, name: str) -> dict[str, Any]:
    """What a program prints that asks a server."""
    asked = {"url": f"{url_of(server)}/v1", "key": token("app", "free"), **ASKED}
    asked |= {"allowed": CLAMP, "forbidden": FORBIDDEN}
    # Otherwise LiteLLM asks the web what models cost, and LangChain where to send traces.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    environment.pop("PYTHONPATH", None)
    command = [other_python(), str(PROGRAMS / f"{name}_asks.py")]
    done = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    # LiteLLM prints where to get help, before.
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def steered_text(server: Running) -> str:
    """What OpenAI's own client is answered."""
    with client_of(server) as client:
        told = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": str(ASKED["prompt"])}],
            temperature=0.0,
            max_tokens=6,
            extra_body={"steering": {"edits": [CLAMP]}},
        )
    return told.choices[0].message.content or ""


@pytest.mark.parametrize("name", ["langchain", "litellm"])
def test_a_client_steers_streams_and_is_denied(ruled: Running, name: str) -> None:
    told = answered(ruled, name)
    assert told["text"] == steered_text(ruled)
    assert told["completion_tokens"] == 6
    assert len(told["digest"]) == 64
    assert "".join(told["streamed"]) == told["text"]
    assert len([piece for piece in told["streamed"] if piece]) > 1
    assert told["denied"]["status"] == 403
    assert told["denied"].get("code") in (None, "policy_denied")
    assert "the policy does not allow clamp of feature 20" in told["denied"]["message"]


def test_open_webui_lists_the_presets_and_steers_by_their_names(ruled: Running) -> None:
    told = answered(ruled, "open_webui")
    assert told["models"] == ["tiny", "tiny@style", "tiny@other"]
    texts, digests = {}, set()
    for model in ("tiny", "tiny@style"):
        status, kind, text = told["asks"][model]
        assert (status, kind.partition(";")[0]) == (200, "text/event-stream")
        *events, end = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert end == "[DONE]"
        chunks = [json.loads(event) for event in events]
        texts[model] = "".join(
            choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]
        )
        assert chunks[-1]["usage"]["completion_tokens"] == 6
        digests.add(chunks[-1]["saegis"]["receipt"]["program_digest"])
    assert len(digests) == 2
    assert texts["tiny@style"] == steered_text(ruled) != texts["tiny"]
    status, kind, text = told["asks"]["tiny@other"]
    assert (status, json.loads(text)["error"]["code"]) == (403, "policy_denied")
    status, kind, text = told["title"]
    assert status == 200
    assert json.loads(text)["choices"][0]["finish_reason"] == "length"
