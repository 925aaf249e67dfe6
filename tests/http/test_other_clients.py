"""LangChain and LiteLLM, where they are installed (the extra `clients`): steered and denied requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.http.conftest import url_of
from tests.http.guarded import guarded, token
from tests.rpc.harness import Running

#: Both warn of things of their own.
pytestmark = pytest.mark.filterwarnings("default")
CLAMP = {"operation": "OPERATION_CLAMP", "feature": {"sae": "first", "index": 12}, "value": 3.0}
FORBIDDEN = {**CLAMP, "feature": {"sae": "first", "index": 20}}
TEXT = "the river runs under the bridge"


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server under policies."""
    with guarded(tmp_path_factory.mktemp("guarded")) as server:
        yield server


def test_langchain(ruled: Running) -> None:
    chats: Any = pytest.importorskip("langchain_openai", reason="needs the extra `clients`")

    def chat(edit: Any) -> Any:
        return chats.ChatOpenAI(
            base_url=f"{url_of(ruled)}/v1",
            api_key=token("app", "free"),
            model="tiny",
            temperature=0.0,
            max_tokens=6,
            max_retries=0,
            include_response_headers=True,
            extra_body={"steering": {"edits": [edit]}},
        )

    told = chat(CLAMP).invoke(TEXT)
    assert told.content
    assert told.usage_metadata["output_tokens"] == 6
    assert len(told.response_metadata["headers"]["x-saegis-program-digest"]) == 64
    assert "".join(chunk.content for chunk in chat(CLAMP).stream(TEXT)) == told.content
    with pytest.raises(openai.PermissionDeniedError) as caught:
        chat(FORBIDDEN).invoke(TEXT)
    assert caught.value.code == "policy_denied"


def test_litellm(ruled: Running) -> None:
    litellm: Any = pytest.importorskip("litellm", reason="needs the extra `clients`")

    def ask(edit: Any, **fields: Any) -> Any:
        return litellm.completion(
            model="openai/tiny",
            api_base=f"{url_of(ruled)}/v1",
            api_key=token("app", "free"),
            messages=[{"role": "user", "content": TEXT}],
            temperature=0.0,
            max_tokens=6,
            num_retries=0,
            extra_body={"steering": {"edits": [edit]}},
            **fields,
        )

    told = ask(CLAMP)
    assert told.choices[0].message.content
    assert told.usage.completion_tokens == 6
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(CLAMP, stream=True))
    assert streamed == told.choices[0].message.content
    with pytest.raises(litellm.exceptions.APIError) as caught:
        ask(FORBIDDEN)
    assert caught.value.status_code == 403
    assert "the policy does not allow clamp of feature 20" in str(caught.value)
