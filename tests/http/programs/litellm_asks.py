"""Asks by LiteLLM, as of a provider with OpenAI's API: steered, streamed, denied. Takes and prints JSON."""

import json
import sys
from typing import Any

import litellm


def ask(asked: dict[str, Any], edit: dict[str, Any], **fields: Any) -> Any:
    """Its answer under an edit."""
    return litellm.completion(
        model=f"openai/{asked['model']}",
        api_base=asked["url"],
        api_key=asked["key"],
        messages=[{"role": "user", "content": asked["prompt"]}],
        temperature=0.0,
        max_tokens=asked["max_tokens"],
        num_retries=0,
        extra_body={"steering": {"edits": [edit]}},
        **fields,
    )


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """What it was answered."""
    told = ask(asked, asked["allowed"])
    stream = ask(asked, asked["allowed"], stream=True)
    try:
        ask(asked, asked["forbidden"])
    except litellm.exceptions.APIError as error:
        denied = {"status": error.status_code, "message": str(error)}
    return {
        "text": told.choices[0].message.content,
        "completion_tokens": told.usage.completion_tokens,
        "digest": told._hidden_params["additional_headers"]["llm_provider-x-saegis-program-digest"],
        "streamed": [chunk.choices[0].delta.content or "" for chunk in stream],
        "denied": denied,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
