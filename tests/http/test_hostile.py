"""A hostile client over HTTP: bans hold, every request is decided once and audited, and no body breaks it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from saegis.v1 import steering_pb2
from saegis_server.audit.verify import verify
from saegis_server.http.fields import FIELDS
from tests.hostile.edits import Held
from tests.hostile.watched import InTorch
from tests.hostile.witness import Witness
from tests.http.conftest import url_of
from tests.http.guarded import guarded, records, token
from tests.http.test_equality import as_body, drawn
from tests.rpc import tiny
from tests.rpc.harness import Running, embedded, eventually
from tests.tiers import sized

BANNED = (3, 7, 21)
#: Allows whatever can be allowed; what holds then, the bans alone hold.
PERMISSIVE = """
apiVersion: saegis.dev/v1
kind: Policy
name: permissive
serial: 1
revision: r1
match: {tenants: [%(tenant)s]}
rules:
  - {id: ban, ban: {features: [{sae: first, indices: [3, 7, 21]}], strength: 1}}
allow:
  - id: everything
    ops: [clamp, clamp_if_active, scale, add, cap, floor, ablate, ban, watch]
    directions: true
  - {id: uses, uses: [text, token_ids, prefill, n, logit_bias, temperature]}
limits: {after_bans: true}
"""
pytestmark = pytest.mark.timeout(1800)
HEADERS = {"authorization": f"Bearer {token('app', 'free')}"}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Witness]]:
    """A server under bans, and a witness of what lies behind them."""
    with guarded(tmp_path_factory.mktemp("attacked"), PERMISSIVE, queue_limit=256) as server:
        engine = embedded(server.services)
        bos = tiny.tokenizer().bos_token_id
        assert isinstance(bos, int)
        held = (Held(tiny.FIRST_SITE, "first", BANNED),)
        yield server, Witness(InTorch(engine.step), tiny.catalog(), held, bos)


def pushed(draw: random.Random) -> dict[str, Any]:
    """A request that pushes what is banned, by its feature or along its rows."""
    body = as_body(drawn(draw))
    sae, index = tiny.sae("first", 1), draw.choice(BANNED)
    rows = (sae.W_dec[index], sae.W_enc[:, index], -sae.W_dec[index])
    along = steering_pb2.Direction(values=draw.choice(rows).tolist())
    feature = steering_pb2.FeatureRef(sae="first", index=draw.choice((*BANNED, 12)))
    edit = steering_pb2.Edit(operation=steering_pb2.OPERATION_ADD, value=draw.choice((1.0, 30.0, -30.0, 1e6)))
    if draw.random() < 0.5:
        edit.direction.CopyFrom(along)
        edit.site = str(tiny.FIRST_SITE)
    else:
        edit.feature.CopyFrom(feature)
    body.setdefault("steering", {}).setdefault("edits", []).append(
        MessageToDict(edit, preserving_proto_field_name=True)
    )
    body["stream"] = draw.random() < 0.3
    return body


@pytest.mark.parametrize("count", [sized(200, 30), pytest.param(1000, marks=pytest.mark.nightly)])
def test_bans_hold_and_every_request_is_decided_once(attacked: tuple[Running, Witness], count: int) -> None:
    server, witness = attacked
    draw = random.Random(1)
    bodies = [{**pushed(draw), "request_id": f"hostile-{number}"} for number in range(count)]
    before = Counter(each["allowed"] for each in records(server, "decision"))

    def send(body: dict[str, Any]) -> int:
        path = "chat/completions" if "messages" in body else "completions"
        answer = httpx.post(f"{url_of(server)}/v1/{path}", json=body, headers=HEADERS, timeout=120)
        assert answer.status_code < 500, answer.text
        return answer.status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(send, bodies))
    eventually(server.is_idle)
    assert not witness.awake, witness.awake[:3]
    assert witness.tokens > len(bodies)
    assert statuses[200] > len(bodies) // 3
    decided = [each for each in records(server, "decision") if each["request_id"].startswith("hostile-")]
    assert len({each["request_id"] for each in decided}) == len(decided)
    allowed = {each["decision_id"] for each in decided if each["allowed"]}
    answered = [each["decision_id"] for each in records(server, "answer")]
    assert len(answered) == len(set(answered))
    assert allowed == set(answered) & {each["decision_id"] for each in decided}
    assert len(decided) - len(allowed) == statuses[403] - before[False]
    assert server.config.audit is not None
    assert verify(server.config.audit.directory).records > len(decided)


#: Values that stand in for others.
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    2**31,
    2**64,
    10**400,
    1e308,
    "",
    "x",
    "1",
    "\x00",
    "NaN",
    "é" * 100,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    [1] * 2000,
    [{"type": "text"}],
    {"edits": {}},
    {"edits": [{}]},
    {"edits": [{"operation": 99}]},
    {"post_block": {"0": [1.0] * tiny.WIDTH}},
    {"post_block": {"0": [0.0] * tiny.WIDTH}},
    {"post_block": {"x": []}},
    [
        {
            "module_name": "first",
            "clamps": {"post_block": {"0": [{"feature_idx": 1, "kind": "absolute", "value": 1}]}},
        }
    ],
    [{"module_name": "first", "clamps": {"post_block": {"0": [{"feature_idx": -1}]}}}],
)


def spoilt(draw: random.Random) -> bytes:
    """A body that is mostly wrong somewhere."""
    body = as_body(drawn(draw)) | {"max_tokens": draw.randint(1, 3)}
    for _ in range(draw.randint(1, 3)):
        body[draw.choice((*FIELDS, "unheard"))] = deepcopy(draw.choice(ODD))
    place, key = _somewhere(body, draw)
    if draw.random() < 0.5:
        place[key] = deepcopy(draw.choice(ODD))
    data = json.dumps(body).encode()
    match draw.randrange(8):
        case 0:
            at = draw.randrange(len(data))
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        case 1:
            data = data[: draw.randrange(len(data))]
        case 2:
            data = data.replace(b'"', b"", 1)
    return data


def _somewhere(value: Any, draw: random.Random) -> tuple[Any, Any]:
    """A place within a value: an object or an array, and a key of it."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw.choice(keys)
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            return value, key
        value = inner


#: How many bodies are tried, drawn from which seed: 20,000 at night, a thousand at a time.
BODIES = [
    (sized(1000, 100), 2),
    *(pytest.param(1000, seed, marks=pytest.mark.nightly) for seed in range(100, 120)),
]


@pytest.mark.parametrize(("count", "seed"), BODIES)
def test_no_body_breaks_the_server(served: Running, count: int, seed: int) -> None:
    draw = random.Random(seed)
    statuses: Counter[int] = Counter()
    with httpx.Client(
        base_url=url_of(served), timeout=60, headers={"content-type": "application/json"}
    ) as http:
        for _ in range(count):
            path = draw.choice(("chat/completions", "completions", "inspect", "contrast", "usage"))
            answer = http.post(f"/v1/{path}", content=spoilt(draw))
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, answer.text
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert {"message", "type", "param", "code"} <= error.keys()
    assert statuses[400] > statuses[200]
