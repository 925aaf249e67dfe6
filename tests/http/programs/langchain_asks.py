"""Asks by LangChain's client for OpenAI: steered, streamed and denied. Takes and prints JSON."""

import json
import sys
from typing import Any

import openai
from langchain_openai import ChatOpenAI


def client(asked: dict[str, Any], edit: dict[str, Any]) -> ChatOpenAI:
    """Its client, which steers by an edit."""
    return ChatOpenAI(
        base_url=asked["url"],
        api_key=asked["key"],
        model=asked["model"],
        temperature=0.0,
        max_tokens=asked["max_tokens"],
        max_retries=0,
        include_response_headers=True,
        extra_body={"steering": {"edits": [edit]}},
    )


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """What it was answered."""
    steered = client(asked, asked["allowed"])
    told = steered.invoke(asked["prompt"])
    try:
        client(asked, asked["forbidden"]).invoke(asked["prompt"])
    except openai.PermissionDeniedError as error:
        denied = {"status": error.status_code, "code": error.code, "message": str(error)}
    return {
        "text": told.content,
        "completion_tokens": told.usage_metadata["output_tokens"],
        "digest": told.response_metadata["headers"]["x-saegis-program-digest"],
        "streamed": [chunk.content for chunk in steered.stream(asked["prompt"])],
        "denied": denied,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
