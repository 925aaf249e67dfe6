"""Makes the calls that Open WebUI makes of a server, by the HTTP client that it uses. Takes and prints JSON.

It lists the models, with the headers that tell who asks, and asks one with its whole chat as a stream and
with usage; a chat's title it asks for without a stream.
"""

import asyncio
import json
import sys
from typing import Any

import aiohttp

WHO = {
    "X-OpenWebUI-User-Name": "Ada%20L",
    "X-OpenWebUI-User-Id": "5d5a0c8e-5a3c-4a9e-9f0f-000000000000",
    "X-OpenWebUI-User-Email": "ada@example.org",
    "X-OpenWebUI-User-Role": "user",
}


async def post(session: aiohttp.ClientSession, asked: dict[str, Any], **body: Any) -> tuple[int, str, str]:
    """Status, kind and text of an answer; the body goes as text, as it sends it."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {asked['key']}", **WHO}
    sent = json.dumps(body)
    async with session.post(f"{asked['url']}/chat/completions", data=sent, headers=headers) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


async def main(asked: dict[str, Any]) -> dict[str, Any]:
    """What it was answered."""
    headers = {"Authorization": f"Bearer {asked['key']}", **WHO}
    async with aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(total=120)) as session:
        async with session.get(f"{asked['url']}/models", headers=headers) as answer:
            models = [each["id"] for each in (await answer.json())["data"]]
        chat = [{"role": "user", "content": asked["prompt"]}]
        limit = {"max_tokens": asked["max_tokens"], "temperature": 0.0}
        usage = {"include_usage": True}
        asks = {
            model: await post(
                session, asked, stream=True, model=model, messages=chat, stream_options=usage, **limit
            )
            for model in models
        }
        title = await post(session, asked, model=asked["model"], messages=chat, stream=False, **limit)
    return {"models": models, "asks": asks, "title": title}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
