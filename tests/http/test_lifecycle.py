"""The HTTP port from the start to the end: starting, draining, TLS with renewed files, counts, settings."""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from saegis_server.http.presets import PresetError
from tests.http.conftest import url_of
from tests.rpc.harness import Running, config, eventually, running
from tests.rpc.test_lifecycle import certificate

ASK: dict[str, Any] = {"model": "tiny", "prompt": "the river", "temperature": 0.0}


def test_before_it_serves_it_says_so_and_when_to_try_again() -> None:
    server = Running(config(http_port=0))
    try:
        answer = httpx.post(f"{url_of(server)}/v1/completions", json=ASK)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
        assert answer.headers["x-should-retry"] == "true"
        assert httpx.get(f"{url_of(server)}/health").status_code == 503
        server.open()
        assert httpx.post(f"{url_of(server)}/v1/completions", json=ASK, timeout=60).status_code == 200
    finally:
        server.close()


def test_what_runs_ends_whole_while_the_server_drains() -> None:
    told: list[Any] = []
    with running(http_port=0) as server:
        url = url_of(server)

        def stream() -> None:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                told.extend(client.completions.create(**ASK, max_tokens=60, stream=True))

        streaming = threading.Thread(target=stream)
        streaming.start()
        eventually(lambda: not server.is_idle())
        draining = asyncio.run_coroutine_threadsafe(server.server.drain(), server.loop)
        eventually(lambda: not server.server.gate.is_healthy)
        refused = httpx.post(f"{url}/v1/completions", json=ASK)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        streaming.join()
        draining.result(60)
    assert told[-1].choices[0].finish_reason == "length"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_what_does_not_end_within_the_grace_period_is_cut_off() -> None:
    with running(http_port=0, grace_seconds=0.2) as server:
        url = f"{url_of(server)}/v1/completions"
        with httpx.stream("POST", url, json=ASK | {"max_tokens": 2000, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            server.on_loop(server.server.drain())
            rest = [line for line in lines if line]
    assert '"finish_reason":"abort"' in "".join(rest) or '"code":"draining"' in rest[-1]


def test_tls_is_that_of_grpc_and_renewed_without_a_restart(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "one")
    client_cert, client_key = certificate(tmp_path, "client")

    def call(authority: Path, known: bool = True, host: str = "localhost") -> int:
        context = ssl.create_default_context(cafile=str(authority))
        if known:
            context.load_cert_chain(client_cert, client_key)
        url = f"https://{host}:{server.address.http_port}/v1/models"
        return httpx.get(url, verify=context, timeout=20).status_code

    files = {"cert": cert, "key": key, "client_ca": client_cert}
    with running(tls=files, http_port=0) as server:
        assert call(cert) == 200
        assert call(cert, host="127.0.0.1") == 200
        with pytest.raises(httpx.TransportError):
            call(cert, known=False)
        renewed, renewed_key = certificate(tmp_path, "two")
        key.write_bytes(renewed_key.read_bytes())
        cert.write_bytes(renewed.read_bytes())
        assert call(renewed) == 200
        assert call(renewed, host="127.0.0.1") == 200
        with pytest.raises(httpx.TransportError):
            call(renewed, known=False)
        cert.unlink()
        assert call(renewed) == 200


def test_a_request_is_counted_once_under_the_name_of_its_rpc(served: Running) -> None:
    def counted(name: str) -> float:
        service = "ModelService" if name == "GetModel" else "GenerationService"
        requests = served.services.metrics.requests
        found: float = requests.labels(f"/saegis.v1.{service}/{name}", "OK")._value.get()
        return found

    def all_counted() -> list[float]:
        return [counted("Generate"), counted("StreamGenerate"), counted("GetModel")]

    wanted = [each + 1 for each in all_counted()]
    url = url_of(served)
    httpx.post(f"{url}/v1/completions", json=ASK, timeout=60)
    httpx.post(f"{url}/v1/completions", json=ASK | {"stream": True}, timeout=60)
    httpx.get(f"{url}/v1/models")
    # A request is counted once its answer is sent, so maybe after the client has read it.
    eventually(lambda: all_counted() == wanted)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("edits: [{operation: CLAMP}]", r"edits\[0\].operation"),
        ("edits: []", "no edits"),
        ("- 1", "must be an object"),
        ("edits: [{operation: OPERATION_ABLATE, feature: {sae: first, index: 99}}]", "features 0 to 47"),
        ("edits: [", "bad.yaml"),
    ],
)
def test_a_preset_that_cannot_run_ends_the_start(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PresetError, match=told), running(http_port=0, presets={"bad": path}):
        pass


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"http_port": 0, "http_host": "0.0.0.0"}, "identities"),  # noqa: S104 - what is refused
        ({"http_port": 0, "http_host": "example.org"}, "http_host"),
        ({"http_port": 0, "http_origins": ["example.org"]}, "origin"),
        ({"http_port": 0, "http_origins": ["https://example.org/path"]}, "origin"),
        ({"http_port": 0, "presets": {"a b": "file"}}, "presets"),
        ({"presets": {"a": "file"}}, "http_port"),
        ({"http_origins": ["*"]}, "http_port"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        config(**settings)
