"""Directions that a server keeps: a reference steers as the numbers do, for one tenant, within limits."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saegis
from saegis import Client, Edit, KeptDirection, Watch
from saegis.v1 import direction_pb2 as pb
from saegis.v1 import generation_pb2, steering_pb2
from saegis_server.directions.files import DirectionFileError
from saegis_server.directions.store import KeptDirection as Kept
from saegis_server.policy.errors import CompileError
from tests.directions.files import damaged, misfit, npz, safetensors, vector
from tests.policy.bundles import write_files
from tests.rpc import tiny
from tests.rpc.callers import by_token
from tests.rpc.harness import Running, config, running

FIRST, SECOND = map(str, tiny.SITES)
VECTOR = vector()
VALUES = VECTOR.tolist()
DAMAGED = {**damaged(), **misfit()}
PRINCIPALS = {"ann": ("acme", "use, steer, inspect"), "bob": ("bolt", "use, steer"), "cid": ("acme", "use")}
POLICY = f"""
apiVersion: saegis.dev/v1
kind: Policy
name: keep
serial: 1
revision: "1"
match: {{tenants: ["*"], models: ["*"]}}
allow:
  - {{id: anything, ops: [ablate, watch], directions: true}}
  - {{id: plain, uses: [text]}}
protect:
  - id: refusal
    directions:
      - {{file: directions/refusal.safetensors, tensor: refusal, site: {FIRST}}}
    max_cosine: 0.9
"""


def identities(folder: Path) -> str:
    lines = ["apiVersion: saegis.dev/v1", "kind: Identities", "principals:"]
    for name, (tenant, roles) in PRINCIPALS.items():
        lines.append(
            f"  - {{name: {name}, tenant: {tenant}, roles: [{roles}], {by_token(f'saegis_{name}')}}}"
        )
    path = folder / "identities.yaml"
    path.write_text("\n".join(lines))
    return str(path)


@dataclass(frozen=True)
class Callers:
    """The clients of the principals on one server."""

    server: Running
    ann: Client
    bob: Client
    cid: Client


@contextmanager
def called(folder: Path, **settings: Any) -> Iterator[Callers]:
    """A server with PRINCIPALS."""
    with running(max_num_seqs=2, identities=identities(folder), **settings) as server:
        clients = [Client(server.target, token=f"saegis_{name}", timeout=60.0) for name in PRINCIPALS]
        try:
            yield Callers(server, *clients)
        finally:
            for client in clients:
                client.close()


@pytest.fixture(scope="module")
def shared_callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    with called(tmp_path_factory.mktemp("directions")) as callers:
        yield callers


@pytest.fixture
def callers(shared_callers: Callers) -> Iterator[Callers]:
    """A server on which nothing is kept, before and after."""
    yield shared_callers
    for client in (shared_callers.ann, shared_callers.bob):
        for each in client.list_directions():
            client.delete_direction(each)


def answer(client: Client, edits: list[Edit], watch: list[Watch] | None = None) -> saegis.Generation:
    return client.generate(
        "The river", steering=edits, watch=watch or [], max_tokens=8, temperature=0.0, logprobs=3
    )


def told(found: saegis.Generation) -> dict[str, Any]:
    """An answer without what differs from one request to the next."""
    edits = [replace(each, target=replace(each.target, direction_name="")) for each in found.receipt.edits]
    receipt = found.receipt
    return {
        "choices": found.choices,
        "usage": found.usage,
        "digest": receipt.program_digest,
        "sites": receipt.sites,
        "edits": edits,
    }


MAKES: dict[str, Callable[[Any], Edit]] = {
    "ablate": lambda way: saegis.ablate(way, site=FIRST),
    "add": lambda way: saegis.add(way, 3.0, site=SECOND, phase="completion"),
    "cap": lambda way: saegis.cap(way, -0.5, unit="norm_fraction", site=FIRST),
    "redirect": lambda way: saegis.redirect(saegis.feature(3, sae="first"), 2.0, to=way),
    "redirected": lambda way: saegis.redirect(way, 2.0, to=saegis.direction(VALUES[::-1]), site=FIRST),
}
UPLOADS: dict[str, Any] = {
    "values": VALUES,
    "an array": VECTOR.numpy(),
    "safetensors": safetensors(VECTOR),
    "safetensors of doubles": safetensors(VECTOR.double()),
    "npz": npz(refusal=VECTOR.numpy()),
}


@pytest.mark.parametrize("make", MAKES)
def test_a_reference_steers_as_the_numbers_do(callers: Callers, make: str) -> None:
    client, edit = callers.ann, MAKES[make]
    kept = client.upload_direction(VALUES, name="refusal")
    unsteered = answer(client, [])
    inline = answer(client, [edit(saegis.direction(VALUES))])
    assert inline.receipt.program_digest != unsteered.receipt.program_digest
    assert inline.choices[0].logprobs != unsteered.choices[0].logprobs
    for way in ("refusal", kept.digest):
        assert told(answer(client, [edit(saegis.direction(way))])) == told(inline)
    assert told(answer(client, [edit(kept)])) == told(inline)


@pytest.mark.parametrize("upload", UPLOADS)
def test_whatever_it_comes_in_it_is_the_same_direction(callers: Callers, upload: str, tmp_path: Path) -> None:
    kept = callers.ann.upload_direction(UPLOADS[upload])
    numbers = np.array(VALUES)
    unit = (numbers / np.sqrt(np.sum(numbers**2))).astype("<f4")
    digest = hashlib.sha256(b"ttorch.float32[32]:" + unit.tobytes()).hexdigest()
    assert kept == KeptDirection(digest, "", "", shipped=False)
    assert callers.ann.list_directions() == (kept,)
    if isinstance(UPLOADS[upload], bytes):
        path = tmp_path / "file"
        path.write_bytes(UPLOADS[upload])
        assert callers.ann.upload_direction(path) == callers.ann.upload_direction(str(path)) == kept


def test_a_receipt_and_a_watch_name_it(callers: Callers) -> None:
    kept = callers.ann.upload_direction(VALUES, name="refusal", site=SECOND)
    by_name, by_digest = saegis.direction("refusal"), saegis.direction(kept.digest)
    edits = [saegis.add(by_name, 1.0, phase="prompt"), saegis.add(by_digest, 1.0, phase="completion")]
    found = answer(callers.ann, edits, [saegis.watch(by_name)])
    targets = [each.target for each in found.receipt.edits]
    assert [each.direction for each in targets] == [kept.digest, kept.digest]
    assert [each.direction_name for each in targets] == ["refusal", ""]
    assert [each.site for each in targets] == [SECOND, SECOND]
    inline = answer(callers.ann, edits, [saegis.watch(saegis.direction(VALUES), site=SECOND)])
    assert found.choices[0].watched == inline.choices[0].watched != ()


def test_it_is_at_its_own_site_unless_another_is_named(callers: Callers) -> None:
    client, inline = callers.ann, saegis.direction(VALUES)
    at_first, at_second = (
        told(answer(client, [saegis.ablate(inline, site=site)])) for site in (FIRST, SECOND)
    )
    assert at_first != at_second
    stated, there = safetensors(VECTOR, site="blocks.1.hook_resid_post"), saegis.direction("there")
    assert client.upload_direction(stated, name="there").site == SECOND
    assert told(answer(client, [saegis.ablate(there)])) == at_second
    assert told(answer(client, [saegis.ablate(there, site=FIRST)])) == at_first
    client.delete_direction("there")
    assert client.upload_direction(stated, name="there", site=FIRST).site == FIRST
    assert told(answer(client, [saegis.ablate(there)])) == at_first
    client.upload_direction(vector(1).tolist(), name="nowhere")
    with pytest.raises(saegis.InvalidArgument, match=r"steering\.edits\[0\]\.site: must be given"):
        answer(client, [saegis.ablate(saegis.direction("nowhere"))])


def test_scores_take_references_too(callers: Callers) -> None:
    callers.ann.upload_direction(VALUES, name="refusal", site=FIRST)
    edits = saegis.ablate(saegis.direction("refusal")), saegis.ablate(saegis.direction(VALUES), site=FIRST)
    by_name, inline = (callers.ann.score("The river runs.", steering=[each]) for each in edits)
    assert by_name.logprobs == inline.logprobs != by_name.plain_logprobs
    assert by_name.receipt.program_digest == inline.receipt.program_digest


def test_the_same_again_changes_nothing(callers: Callers) -> None:
    client = callers.ann
    kept = client.upload_direction(VALUES, name="refusal", site=FIRST)
    assert client.upload_direction(VALUES) == client.upload_direction(VALUES, name="refusal") == kept
    # A power of two changes no digit, so this is the same direction to the last bit.
    assert client.upload_direction((4.0 * VECTOR).tolist()) == kept
    assert client.list_directions() == (kept,)
    for field, name, site in (("name", "other", ""), ("site", "", SECOND)):
        with pytest.raises(saegis.AlreadyExists, match=f"^{field}: the direction is kept already") as refused:
            client.upload_direction(VALUES, name=name, site=site)
        assert (refused.value.reason, refused.value.violations[0].field) == ("DIRECTION_EXISTS", field)
    with pytest.raises(saegis.AlreadyExists, match="name: 'refusal' is another direction's already"):
        client.upload_direction(vector(1).tolist(), name="refusal")
    assert client.list_directions() == (kept,)


def test_what_is_deleted_is_gone(callers: Callers) -> None:
    client = callers.ann
    named, other = (
        client.upload_direction(VALUES, name="refusal"),
        client.upload_direction(vector(1).tolist()),
    )
    assert client.list_directions() == (named, other)
    assert client.delete_direction("refusal") == named
    assert client.delete_direction(other.digest) == other
    assert client.list_directions() == ()
    for way in ("refusal", named.digest, other.digest):
        with pytest.raises(saegis.NotFound) as unknown:
            answer(client, [saegis.ablate(saegis.direction(way), site=FIRST)])
        kind = "digest" if len(way) == 64 else "name"
        assert unknown.value.reason == "DIRECTION_NOT_FOUND"
        assert unknown.value.violations[0].field == f"steering.edits[0].direction.{kind}"
        with pytest.raises(saegis.NotFound, match=f"^{kind}: no direction"):
            client.delete_direction(way)


def test_tenants_are_apart(callers: Callers) -> None:
    ann, bob = callers.ann, callers.bob
    of_ann = ann.upload_direction(VALUES, name="refusal", site=FIRST)
    assert bob.list_directions() == ()
    unknown = "f" * 64
    messages = set()
    for way in ("refusal", "unheard-of", of_ann.digest, unknown):
        for attempt in (
            lambda way=way: answer(bob, [saegis.ablate(saegis.direction(way), site=FIRST)]),
            lambda way=way: bob.delete_direction(way),
        ):
            with pytest.raises(saegis.NotFound) as refused:
                attempt()
            messages.add(re.sub(r"^.*(name|digest)|'.*'", "", refused.value.message))
    # What another tenant has is told in the same words as what nobody has.
    assert len(messages) == 1
    of_bob = bob.upload_direction(vector(1).tolist(), name="refusal", site=FIRST)
    same = bob.upload_direction(VALUES, name="other", site=SECOND)
    assert same.digest == of_ann.digest != of_bob.digest
    edit = [saegis.ablate(saegis.direction("refusal"))]
    assert told(answer(ann, edit)) != told(answer(bob, edit))
    bob.delete_direction(same)
    assert ann.list_directions() == (of_ann,)
    # Another principal of the same tenant has the role for nothing here.
    for forbidden in (
        lambda: callers.cid.list_directions(),
        lambda: callers.cid.upload_direction(VALUES),
        lambda: callers.cid.delete_direction("refusal"),
    ):
        with pytest.raises(saegis.PermissionDenied, match="role 'steer'"):
            forbidden()


NAMES = (
    *(" ", "a b", "../a", "a/b", ".a", "-a", "a" * 64, "f" * 64, "a\n", "a\0"),
    *("é", "\u202ea", "a:b", "{", "'"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_refused(callers: Callers, name: str) -> None:
    with pytest.raises(saegis.InvalidArgument, match=r"^name: is no direction's name") as refused:
        callers.ann.upload_direction(VALUES, name=name)
    assert refused.value.violations[0].field == "name"
    assert callers.ann.list_directions() == ()
    with pytest.raises(saegis.InvalidArgument, match=r"^steering.edits\[0\].direction.name"):
        answer(callers.ann, [saegis.ablate(saegis.Direction(name=name), site=FIRST)])


@pytest.mark.parametrize("digest", ["0" * 63, "F" * 64, "g" * 64, "0" * 65, "../" + "0" * 61])
def test_a_hostile_digest_is_refused(callers: Callers, digest: str) -> None:
    with pytest.raises(saegis.InvalidArgument, match=r"^steering.edits\[0\].direction.digest: a digest has"):
        answer(callers.ann, [saegis.ablate(saegis.Direction(digest=digest), site=FIRST)])


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_refused(callers: Callers, what: str) -> None:
    data, reason = DAMAGED[what]
    with pytest.raises(saegis.SaegisError) as refused:
        callers.ann.upload_direction(data, name="refusal")
    assert isinstance(refused.value, saegis.InvalidArgument)
    assert refused.value.violations[0].field == "file"
    assert reason in refused.value.message
    assert callers.ann.list_directions() == ()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1.0] * 31, "must have 32 numbers"),
        ([1.0] * 33, "must have 32 numbers"),
        ([0.0] * 32, "finite and not zero"),
        ([math.nan] * 32, "finite and not zero"),
        ([math.inf] * 32, "finite and not zero"),
    ],
)
def test_numbers_that_are_no_direction_are_refused(
    callers: Callers, values: list[float], reason: str
) -> None:
    with pytest.raises(saegis.InvalidArgument, match=f"^values: .*{reason}"):
        callers.ann.upload_direction(values)


def test_a_request_has_numbers_or_a_reference(callers: Callers) -> None:
    client, stubs = callers.ann, callers.ann._stubs
    both = steering_pb2.Direction(values=VALUES, name="refusal")
    edit = steering_pb2.Edit(operation=steering_pb2.OPERATION_ABLATE, direction=both, site=FIRST)
    message = generation_pb2.GenerateRequest(text="x", steering=steering_pb2.Steering(edits=[edit]))
    with pytest.raises(saegis.InvalidArgument, match=r"direction: give either values or a reference"):
        client._call(stubs.generation.Generate, message, None)
    for empty in (pb.UploadDirectionRequest(name="a"), pb.UploadDirectionRequest(values=VALUES, file=b"x")):
        with pytest.raises(saegis.InvalidArgument, match=r"^values: either values or a file"):
            client._call(stubs.direction.UploadDirection, empty, None)
    with pytest.raises(saegis.InvalidArgument, match=r"^name: one of name and digest"):
        client._call(stubs.direction.DeleteDirection, pb.DeleteDirectionRequest(), None)
    with pytest.raises(saegis.NotFound, match=r"^site: 'layers.7.resid_post' is no site"):
        client.upload_direction(VALUES, site="layers.7.resid_post")


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"tenant": 2}, "directions.tenant"),
        ({"tenant_bytes": 8 * tiny.WIDTH + 1}, "directions.tenant_bytes"),
        ({"total": 3}, "directions.total"),
        ({"total_bytes": 12 * tiny.WIDTH + 1}, "directions.total_bytes"),
    ],
)
def test_a_limit_is_named_and_nothing_is_evicted(tmp_path: Path, limits: dict[str, int], name: str) -> None:
    with called(tmp_path, limits={"directions": limits}) as callers:
        callers.bob.upload_direction(vector(9).tolist(), name="of-bob")
        kept = [callers.ann.upload_direction(vector(seed).tolist(), name=f"n{seed}") for seed in (1, 2)]
        with pytest.raises(saegis.ResourceExhausted, match=re.escape(name)) as full:
            callers.ann.upload_direction(vector(3).tolist())
        assert full.value.reason == "DIRECTION_LIMIT"
        assert full.value.metadata["limit"] == name
        metrics = callers.server.services.metrics.registry
        assert metrics.get_sample_value("saegis_directions_kept") == 3
        assert metrics.get_sample_value("saegis_direction_bytes_kept") == 3 * 4 * tiny.WIDTH
        assert callers.ann.upload_direction(vector(1).tolist()) == kept[0]
        assert callers.ann.list_directions() == tuple(kept)
        assert len(callers.bob.list_directions()) == 1
        callers.ann.delete_direction("n1")
        callers.ann.upload_direction(vector(3).tolist())


def test_uploads_at_once_stay_within_the_limits(tmp_path: Path) -> None:
    limits = {"directions": {"tenant": 3, "total": 5}}
    with called(tmp_path, limits=limits, direction_state=str(tmp_path / "state")) as callers:

        def upload(seed: int) -> str:
            try:
                return (callers.ann, callers.bob)[seed % 2].upload_direction(vector(seed).tolist()).digest
            except saegis.ResourceExhausted:
                return ""

        with ThreadPoolExecutor(16) as pool:
            done = list(pool.map(upload, range(24)))
        # Each of the two may have three, and both together five.
        kept = [each.digest for client in (callers.ann, callers.bob) for each in client.list_directions()]
        assert sorted(filter(None, done)) == sorted(kept)
        assert len(kept) == 5
        assert len(list((tmp_path / "state").glob("*.safetensors"))) == 5


def test_a_policy_protects_against_references_as_against_numbers(tmp_path: Path) -> None:
    files = {"policy.yaml": POLICY.encode(), "directions/refusal.safetensors": safetensors(VECTOR)}
    bundle = write_files(tmp_path / "keep", files)
    aside = vector(6) - (vector(6) @ VECTOR) / (VECTOR @ VECTOR) * VECTOR
    # Each of the last two is far from it; what both together reach is not.
    pair = [VECTOR + sign * 4.0 * aside for sign in (1.0, -1.0)]
    attempts = [[-3.7 * VECTOR], [1e-6 * VECTOR], [VECTOR + 0.2 * vector(5)], pair]
    with called(tmp_path, policies={"bundles": [str(bundle)]}) as callers:
        client = callers.ann

        def refusal(ways: Sequence[saegis.Target], watched: bool) -> tuple[str, object]:
            edits = [] if watched else [saegis.ablate(way, site=FIRST) for way in ways]
            watches = [saegis.watch(way, site=FIRST) for way in ways] if watched else []
            with pytest.raises(saegis.PermissionDenied) as refused:
                answer(client, edits, watches)
            assert refused.value.metadata["rule"] == "refusal"
            return refused.value.message, refused.value.violations

        for vectors in attempts:
            kept = [client.upload_direction(each.tolist()) for each in vectors]
            inline = [saegis.direction(each.tolist()) for each in vectors]
            for watched in (False, True):
                assert refusal(kept, watched) == refusal(inline, watched)
            decision = client.evaluate_policy([saegis.ablate(each, site=FIRST) for each in kept])
            assert [denial.rule for denial in decision.denials][:1] == ["refusal"]
        harmless = client.upload_direction(aside.tolist(), name="aside", site=FIRST)
        (edit,) = answer(client, [saegis.ablate(saegis.direction("aside"))]).receipt.edits
        assert edit.target.direction == harmless.digest


def test_everything_is_recorded_by_digest(tmp_path: Path) -> None:
    with called(tmp_path, audit={"directory": str(tmp_path / "audit"), "fsync": "never"}) as callers:
        client = callers.ann
        kept = client.upload_direction(VALUES, name="refusal", site=FIRST)
        client.upload_direction(VALUES)
        answer(client, [saegis.ablate(saegis.direction("refusal"))], [saegis.watch(kept)])
        answer(client, [saegis.redirect(saegis.feature(3, sae="first"), 1.0, to=kept)])
        client.delete_direction("refusal")
        text = (tmp_path / "audit" / "audit.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    changes = [each for each in records if each["kind"] == "direction"]
    assert [each["action"] for each in changes] == ["upload", "delete"]
    whose = {"digest": kept.digest, "name": "refusal", "site": FIRST, "tenant": "acme", "by": "ann"}
    assert all(whose.items() <= each.items() for each in changes)
    first, second = (each["edits"] for each in records if each["kind"] == "decision")
    assert [(each["direction"], each.get("direction_name")) for each in first] == [
        (kept.digest, "refusal"),
        (kept.digest, None),
    ]
    assert (second[0]["to"], second[0]["to_direction"]) == (None, kept.digest)
    assert "direction" not in second[0]
    numbers = [f"{abs(value):.5g}" for value in (*VALUES, *(VECTOR / VECTOR.norm()).tolist())]
    # Times and digests may hold a short one by chance.
    assert not [number for number in numbers if len(number) > 5 and number in text]


@pytest.mark.parametrize("on_failure", ["refuse", "continue"])
def test_what_cannot_be_recorded_is_not_done(tmp_path: Path, on_failure: str) -> None:
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never", "on_failure": on_failure}
    with called(tmp_path, audit=audit, direction_state=str(tmp_path / "state")) as callers:
        kept = callers.ann.upload_direction(VALUES, name="refusal")
        assert callers.server.services.governor.audit is not None
        callers.server.services.governor.audit.close()
        if on_failure == "continue":
            callers.ann.upload_direction(vector(1).tolist())
            assert callers.ann.delete_direction(kept) == kept
            return
        attempts: tuple[Callable[[], object], ...] = (
            lambda: callers.ann.upload_direction(vector(1).tolist()),
            lambda: callers.ann.delete_direction(kept),
        )
        for attempt in attempts:
            with pytest.raises(saegis.Unavailable) as refused:
                attempt()
            assert refused.value.reason == "AUDIT_UNAVAILABLE"
        assert callers.ann.list_directions() == (kept,)
        assert len(list((tmp_path / "state").glob("*.safetensors"))) == 1


def test_without_a_folder_uploads_end_with_the_server(tmp_path: Path) -> None:
    for _ in range(2):
        with called(tmp_path) as callers:
            assert callers.ann.list_directions() == ()
            callers.ann.upload_direction(VALUES, name="refusal")


def test_with_a_folder_uploads_survive_a_restart(tmp_path: Path) -> None:
    settings = {"direction_state": str(tmp_path / "state")}
    edit = [saegis.add(saegis.direction("refusal"), 2.0)]
    with called(tmp_path, **settings) as callers:
        kept = callers.ann.upload_direction(VALUES, name="refusal", site=FIRST)
        nameless = callers.ann.upload_direction(vector(1).tolist())
        other = callers.bob.upload_direction(vector(2).tolist(), name="refusal")
        gone = callers.ann.upload_direction(vector(3).tolist(), name="gone")
        callers.ann.delete_direction("gone")
        before = told(answer(callers.ann, edit))
        with pytest.raises(DirectionFileError, match="another server keeps its directions here"):
            Running(config(**settings))
    with called(tmp_path, **settings, limits={"directions": {"tenant": 1}}) as callers:
        # A lower limit takes nothing away.
        assert callers.ann.list_directions() == (kept, nameless)
        assert callers.bob.list_directions() == (other,)
        assert told(answer(callers.ann, edit)) == before
        with pytest.raises(saegis.ResourceExhausted):
            callers.ann.upload_direction(vector(3).tolist())
        with pytest.raises(saegis.NotFound):
            callers.ann.delete_direction(gone)


def test_a_folder_that_cannot_be_trusted_stops_the_start(tmp_path: Path) -> None:
    state = tmp_path / "state"
    settings = {"direction_state": str(state)}
    with called(tmp_path, **settings) as callers:
        callers.ann.upload_direction(VALUES, name="refusal")
    (file,) = state.glob("*.safetensors")
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    for data, reason in (
        (whole[:-3], "is no whole safetensors file"),
        (bytes(changed), "its numbers are not those of the digest"),
        (safetensors(VECTOR), "does not tell digest, name, site, tenant"),
    ):
        file.write_bytes(data)
        with pytest.raises(DirectionFileError, match=reason) as refused:
            Running(config(**settings))
        assert str(file) in str(refused.value)
    file.write_bytes(whole)
    (state / "copy.safetensors").write_bytes(whole)
    with pytest.raises(DirectionFileError, match="of the tenant 'acme', as"):
        Running(config(**settings))
    (state / "copy.safetensors").unlink()
    with called(tmp_path, **settings) as callers:
        assert [each.name for each in callers.ann.list_directions()] == ["refusal"]


def test_what_the_operator_ships_is_everybodys(tmp_path: Path) -> None:
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "refusal.safetensors").write_bytes(safetensors(VECTOR, site=FIRST))
    (folder / "notes.txt").write_text("not a direction")
    single = tmp_path / "formal.npz"
    single.write_bytes(npz(formal=vector(1).numpy()))
    with called(tmp_path, directions=[str(folder), str(single)]) as callers:
        for client in (callers.ann, callers.bob):
            shipped = client.list_directions()
            assert [(each.name, each.site, each.shipped) for each in shipped] == [
                ("formal", "", True),
                ("refusal", FIRST, True),
            ]
            by_name = answer(client, [saegis.ablate(saegis.direction("refusal"))])
            assert told(by_name) == told(
                answer(client, [saegis.ablate(saegis.direction(VALUES), site=FIRST)])
            )
            for reference in ("refusal", shipped[0].digest):
                with pytest.raises(saegis.InvalidArgument, match="the operator's, which nobody can delete"):
                    client.delete_direction(reference)
            with pytest.raises(saegis.AlreadyExists, match="name: 'refusal' is the operator's already"):
                client.upload_direction(vector(2).tolist(), name="refusal")
        own = callers.ann.upload_direction(VALUES, name="mine", site=SECOND)
        assert own.digest == shipped[1].digest
        assert callers.ann.delete_direction(own.digest) == own
        assert callers.ann.list_directions() == shipped


def test_a_policy_names_what_is_shipped_by_digest(tmp_path: Path) -> None:
    shipped = tmp_path / "refusal.safetensors"
    shipped.write_bytes(safetensors(VECTOR, site=FIRST))
    digest = Kept.of(VECTOR).digest
    target = f"{{file: directions/refusal.safetensors, tensor: refusal, site: {FIRST}}}"
    rule = f"\nrules:\n  - {{id: no, ban: {{directions: [{{digest: {digest}}}]}}}}\n"
    told_of = []
    for where, text in (
        ("inline", POLICY + rule.replace(f"{{digest: {digest}}}", target)),
        ("shipped", POLICY.replace(target, f"{{digest: {digest}}}") + rule),
    ):
        files = {"policy.yaml": text.encode(), "directions/refusal.safetensors": safetensors(VECTOR)}
        bundle = write_files(tmp_path / where, files)
        with called(tmp_path, policies={"bundles": [str(bundle)]}, directions=[str(shipped)]) as callers:
            with pytest.raises(saegis.PermissionDenied) as denied:
                answer(callers.ann, [saegis.ablate(saegis.direction("refusal"))])
            found = answer(callers.ann, [])
        told_of.append((denied.value.violations, found.choices, found.receipt.rules, told(found)))
    assert told_of[0] == told_of[1]
    violations, _, (no,), _ = told_of[0]
    assert any("keep/refusal: this is protected" in each.description for each in violations)
    assert no.targets[0].direction == digest
    with pytest.raises(CompileError, match="the server ships no direction of this digest"):
        Running(config(policies={"bundles": [str(bundle)]}))


def test_a_name_that_the_operator_takes_later_means_neither(tmp_path: Path) -> None:
    settings = {"direction_state": str(tmp_path / "state")}
    with called(tmp_path, **settings) as callers:
        own = callers.ann.upload_direction(VALUES, name="refusal", site=FIRST)
    shipped = tmp_path / "refusal.safetensors"
    shipped.write_bytes(safetensors(vector(1)))
    with called(tmp_path, **settings, directions=[str(shipped)]) as callers:
        with pytest.raises(
            saegis.InvalidArgument, match=r"direction.name: 'refusal' names one of the tenant's"
        ):
            answer(callers.ann, [saegis.ablate(saegis.direction("refusal"))])
        answer(callers.ann, [saegis.ablate(own)])
        callers.ann.delete_direction(own)
        answer(callers.ann, [saegis.ablate(saegis.direction("refusal"), site=FIRST)])


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.safetensors": safetensors(VECTOR), "a.npz": npz(a=vector(1).numpy())}, "the same name as"),
        ({"a.safetensors": safetensors(VECTOR), "b.npz": npz(a=VECTOR.numpy())}, "the same direction as"),
        ({"a b.npz": npz(a=VECTOR.numpy())}, "its name is no direction's"),
        ({"a.npz": npz(a=np.zeros(tiny.WIDTH))}, "is zero everywhere"),
        ({"a.safetensors": safetensors(VECTOR, site="layers.9.resid_post")}, "no site of this server"),
        ({"a.safetensors": safetensors(VECTOR, site="here")}, "here"),
        ({"a.pt": b"x"}, "holds no .safetensors or .npz file"),
    ],
)
def test_what_cannot_be_shipped_stops_the_start(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    folder = write_files(tmp_path / "shipped", files)
    with pytest.raises(DirectionFileError, match=re.escape(reason)) as refused:
        Running(config(directions=[str(folder)]))
    assert str(folder) in str(refused.value)


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with called(tmp_path, direction_state=str(state)) as callers:
        kept = callers.ann.upload_direction(VALUES, name="refusal")
        state.rename(tmp_path / "moved")
        attempts: tuple[Callable[[], object], ...] = (
            lambda: callers.ann.upload_direction(vector(1).tolist()),
            lambda: callers.ann.delete_direction("refusal"),
        )
        for attempt in attempts:
            with pytest.raises(saegis.Unavailable, match="nothing has changed") as refused:
                attempt()
            assert refused.value.reason == "DIRECTION_STATE_UNAVAILABLE"
        assert callers.ann.list_directions() == (kept,)
