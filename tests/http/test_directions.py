"""Directions by name and digest in requests and presets over HTTP."""

from pathlib import Path
from typing import Any

import openai
import pytest

import saegis
from saegis_server.http.presets import PresetError
from tests.directions.files import safetensors, vector
from tests.http.conftest import url_of
from tests.rpc import tiny
from tests.rpc.harness import Running, config, running

SITE = str(tiny.FIRST_SITE)
ASKED: dict[str, Any] = {"prompt": "The river", "max_tokens": 8, "temperature": 0.0, "logprobs": 2}
PRESET = "edits: [{operation: OPERATION_ABLATE, direction: {name: refusal}}]\n"


def test_a_direction_is_named_in_a_body_and_in_a_preset(tmp_path: Path) -> None:
    shipped, preset = tmp_path / "refusal.safetensors", tmp_path / "without.yaml"
    shipped.write_bytes(safetensors(vector(), site=SITE))
    preset.write_text(PRESET)
    with (
        running(http_port=0, directions=[str(shipped)], presets={"without": preset}) as server,
        openai.OpenAI(base_url=f"{url_of(server)}/v1", api_key="none", max_retries=0) as client,
        saegis.Client(server.target) as own,
    ):
        kept = own.upload_direction(vector(1).tolist(), name="mine")

        def told(direction: dict[str, Any], model: str = "tiny") -> Any:
            edit = {"operation": "OPERATION_ABLATE", "site": SITE, "direction": direction}
            steering = {"steering": {"edits": [edit] if direction else []}}
            return client.completions.create(model=model, extra_body=steering, **ASKED).choices

        unsteered, inline = told({}), told({"values": vector().tolist()})
        assert inline != unsteered
        assert told({"name": "refusal"}) == told({}, "tiny@without") == inline
        assert told({"name": "mine"}) == told({"digest": kept.digest}) == told({"values": vector(1).tolist()})
        with pytest.raises(openai.NotFoundError) as unknown:
            told({"name": "unheard-of"})
        assert unknown.value.param == "steering.edits[0].direction.name"


def test_a_preset_of_a_direction_that_is_not_shipped_stops_the_start(tmp_path: Path) -> None:
    preset = tmp_path / "without.yaml"
    preset.write_text(PRESET)
    with pytest.raises(PresetError, match="no direction 'refusal' is kept"):
        Running(config(http_port=0, presets={"without": preset}))
