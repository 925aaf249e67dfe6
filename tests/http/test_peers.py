"""Steering in the names of other servers: it is the contract's own steering, or it is refused."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest

from saegis.v1 import steering_pb2 as pb
from saegis_server.engine.api import FieldError
from saegis_server.http import peers
from tests.http.conftest import url_of
from tests.rpc import tiny
from tests.rpc.harness import Running

VECTOR = [0.5, -1.0, *[0.0] * (tiny.WIDTH - 2)]
PROMPT: dict[str, Any] = {"model": "tiny", "prompt": "the river", "max_tokens": 6, "temperature": 0.0}


def ask(server: Running, **fields: Any) -> dict[str, Any]:
    """The answer to a request with some more fields."""
    answer = httpx.post(f"{url_of(server)}/v1/completions", json=PROMPT | fields, timeout=60)
    told: dict[str, Any] = answer.json()
    return told


def same(server: Running, theirs: dict[str, Any], ours: list[dict[str, Any]]) -> None:
    """Both ways to say it must make one program, whose text differs from the unsteered one."""
    first, second = ask(server, **theirs), ask(server, steering={"edits": ours})
    digests = [each["saegis"]["receipt"]["program_digest"] for each in (first, second)]
    assert digests[0] == digests[1]
    assert first["choices"][0]["text"] == second["choices"][0]["text"]
    assert first["saegis"]["receipt"]["steered"]


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("steering_vectors", "PHASE_ALL"),
        ("prefill_steering_vectors", "PHASE_PROMPT"),
        ("decode_steering_vectors", "PHASE_COMPLETION"),
    ],
)
@pytest.mark.parametrize("scale", [None, 2.5])
def test_a_vector_is_added_at_the_blocks_end(
    served: Running, name: str, phase: str, scale: float | None
) -> None:
    entry = VECTOR if scale is None else {"vector": VECTOR, "scale": scale}
    ours = {
        "operation": "OPERATION_ADD",
        "direction": {"values": VECTOR},
        "site": "layers.1.resid_post",
        "value": math.hypot(*VECTOR) * (scale or 1.0),
        "phase": phase,
    }
    same(served, {name: {"post_block": {"1": entry}}}, [ours])


@pytest.mark.parametrize(
    ("clamp", "operation"),
    [
        ({"kind": "absolute"}, "OPERATION_CLAMP"),
        ({"kind": "absolute", "only_if_active": True}, "OPERATION_CLAMP_IF_ACTIVE"),
        ({"kind": "additive"}, "OPERATION_ADD"),
    ],
)
def test_a_clamp_spec_is_an_edit_of_a_feature(served: Running, clamp: dict[str, Any], operation: str) -> None:
    entry = {"feature_idx": 14, "value": 3.0, **clamp}
    spec = {"module_name": "first", "phase": "decode", "clamps": {"post_block": {"0": [entry]}}}
    ours = {
        "operation": operation,
        "feature": {"sae": "first", "index": 14},
        "value": 3.0,
        "phase": "PHASE_COMPLETION",
    }
    same(served, {"sae_clamp_specs": [spec]}, [ours])


def spec(**entry: Any) -> dict[str, Any]:
    """A clamp of the first SAE's feature 1, with some things different."""
    clamp = {"feature_idx": 1, "kind": "absolute", "value": 1.0} | entry
    return {"sae_clamp_specs": [{"module_name": "first", "clamps": {"post_block": {"0": [clamp]}}}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"steering_vectors": {"pre_attn": {"0": VECTOR}}}, "steering_vectors.pre_attn"),
        ({"steering_vectors": {"post_block": {"first": VECTOR}}}, "steering_vectors.post_block.first"),
        ({"steering_vectors": {"post_block": {"7": VECTOR}}}, "steering_vectors.post_block.7"),
        ({"steering_vectors": {"post_block": {"0": VECTOR[1:]}}}, "steering_vectors.post_block.0"),
        (
            {"steering_vectors": {"post_block": {"0": {"data": "", "dtype": "f"}}}},
            "steering_vectors.post_block.0",
        ),
        (
            {"steering_vectors": {"post_block": {"0": {"vector": VECTOR, "gate": 1}}}},
            "steering_vectors.post_block.0.gate",
        ),
        (spec(kind="relative"), "sae_clamp_specs[0].clamps.post_block.0[0].kind"),
        (
            spec(kind="additive", only_if_active=True),
            "sae_clamp_specs[0].clamps.post_block.0[0].only_if_active",
        ),
        (spec(feature_idx=-1), "sae_clamp_specs[0].clamps.post_block.0[0].feature_idx"),
        (spec(feature_idx=999), "sae_clamp_specs[0].clamps.post_block.0[0]"),
        (spec(strength=1), "sae_clamp_specs[0].clamps.post_block.0[0].strength"),
        ({"sae_clamp_specs": [{"module_name": "first", "gated": {}}]}, "sae_clamp_specs[0].gated"),
        ({"sae_clamp_specs": [{"module_name": "first", "phase": "all"}]}, "sae_clamp_specs[0].phase"),
        ({"sae_full_reconstruction_specs": []}, "sae_full_reconstruction_specs"),
        ({"steering_clamps": {}}, "steering_clamps"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(
    served: Running, fields: dict[str, Any], param: str
) -> None:
    error = ask(served, **fields)["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_edits_of_peers_are_the_contracts() -> None:
    ((place, edit),) = peers.vectors("steering_vectors", {"post_block": {"3": [3.0, 4.0]}})
    assert place == "steering_vectors.post_block.3"
    assert (edit.operation, edit.site, edit.value) == (pb.OPERATION_ADD, "layers.3.resid_post", 5.0)
    with pytest.raises(FieldError, match=r"steering_vectors.post_block.3\[0\]"):
        list(peers.vectors("steering_vectors", {"post_block": {"3": ["x"]}}))
