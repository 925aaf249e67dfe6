"""PolicyService over a socket: what comes in force, what does not, and how that is told."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

import saegis
from saegis.bundles import write_archive
from saegis.v1 import policy_pb2 as pb
from saegis.v1 import policy_pb2_grpc, steering_pb2
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.errors import UnmatchedError
from saegis_server.rpc.server.listener import SERVICES
from saegis_server.rpc.wire.errors import DETAILS_KEY
from tests.policy import made
from tests.policy.bundles import write_files
from tests.rpc.callers import bearer, by_token
from tests.rpc.harness import Failure, Running, failure, running

Code = grpc.StatusCode
Stub = policy_pb2_grpc.PolicyServiceStub
MISSING = {
    "GetPolicy": pb.GetPolicyRequest(name="harm"),
    "ListPolicies": pb.ListPoliciesRequest(),
    "ValidatePolicy": pb.ValidatePolicyRequest(bundle=b"x"),
    "EvaluatePolicy": pb.EvaluatePolicyRequest(),
    "PutPolicy": pb.PutPolicyRequest(bundle=b"x"),
    "RollBackPolicy": pb.RollBackPolicyRequest(name="harm", digest="0" * 8, etag="e"),
    "ListPolicyRevisions": pb.ListPolicyRevisionsRequest(name="harm"),
}


@pytest.fixture
def governed(tmp_path: Path) -> Iterator[Running]:
    """A server with a state directory, and no policy yet."""
    with running(policies={"state": str(tmp_path / "state")}) as server:
        yield server


@pytest.fixture
def stub(governed: Running) -> Iterator[Stub]:
    with grpc.insecure_channel(governed.target) as channel:
        yield Stub(channel)


def put(stub: Stub, bundle: bytes, etag: str = "", shadow: bool = False) -> pb.PolicyState:
    return stub.PutPolicy(pb.PutPolicyRequest(bundle=bundle, etag=etag, shadow=shadow)).policy


def edit(index: int, value: float) -> steering_pb2.Edit:
    feature = steering_pb2.FeatureRef(sae="first", index=index)
    return steering_pb2.Edit(operation=steering_pb2.OPERATION_CLAMP, feature=feature, value=value)


def sample(server: Running, name: str, **labels: str) -> float | None:
    return server.services.metrics.registry.get_sample_value(name, labels)


def test_the_service_is_among_those_that_health_knows() -> None:
    assert "saegis.v1.PolicyService" in SERVICES


@pytest.mark.parametrize("method", MISSING)
def test_a_server_without_policies_says_what_to_do(served: Running, method: str) -> None:
    with grpc.insecure_channel(served.target) as channel:
        told = failure(lambda: getattr(Stub(channel), method)(MISSING[method]))
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "NO_POLICIES")
    assert "saegis serve --policy" in told.message


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("GetPolicy", pb.GetPolicyRequest(), "name"),
        ("GetPolicy", pb.GetPolicyRequest(name="harm", digest="0" * 64), "digest"),
        ("ValidatePolicy", pb.ValidatePolicyRequest(), "bundle"),
        ("PutPolicy", pb.PutPolicyRequest(etag="e"), "bundle"),
        ("RollBackPolicy", pb.RollBackPolicyRequest(digest="0" * 64, etag="e"), "name"),
        ("RollBackPolicy", pb.RollBackPolicyRequest(name="harm", etag="e"), "digest"),
        ("RollBackPolicy", pb.RollBackPolicyRequest(name="harm", digest="0" * 7, etag="e"), "digest"),
        ("RollBackPolicy", pb.RollBackPolicyRequest(name="harm", digest="0" * 64), "etag"),
        ("ListPolicyRevisions", pb.ListPolicyRevisionsRequest(), "name"),
        (
            "EvaluatePolicy",
            pb.EvaluatePolicyRequest(steering=steering_pb2.Steering(edits=[edit(3, math.nan)])),
            "steering.edits[0].value",
        ),
    ],
)
def test_a_wrong_request_names_its_field(stub: Stub, method: str, request_: Any, field: str) -> None:
    told = failure(lambda: getattr(stub, method)(request_))
    assert (told.code, told.reason, told.fields) == (Code.INVALID_ARGUMENT, "FIELD_INVALID", [field])


def test_the_life_of_a_policy(governed: Running, stub: Stub) -> None:
    assert stub.ListPolicies(pb.ListPoliciesRequest()) == pb.ListPoliciesResponse()
    one = put(stub, made.archive(1))
    assert (one.active.serial, one.active.put_by, one.active.active) == (1, "anonymous", True)
    assert one.active.put_time.ToSeconds() > 0
    assert (list(one.rules), one.description, one.HasField("shadow")) == (["ban-1"], "Serial 1.", False)
    # The same bundle again, as after a lost answer, is as good as done.
    assert put(stub, made.archive(1)) == one
    two = put(stub, made.archive(2), one.etag)
    beside = put(stub, made.archive(3), two.etag, shadow=True)
    assert (beside.active.serial, beside.shadow.serial, beside.shadow.shadow) == (2, 3, True)
    got = stub.GetPolicy(pb.GetPolicyRequest(name="harm", include_bundle=True))
    assert got.policy == beside
    assert Bundle.from_archive(got.bundle) == made.bundle(2)
    assert stub.GetPolicy(pb.GetPolicyRequest(name="harm")).bundle == b""
    for digest, serial in ((one.active.digest, 1), (two.active.digest[:8], 2), (beside.shadow.digest, 3)):
        got = stub.GetPolicy(pb.GetPolicyRequest(name="harm", include_bundle=True, digest=digest))
        assert (got.policy, Bundle.from_archive(got.bundle)) == (beside, made.bundle(serial))
    listed = stub.ListPolicies(pb.ListPoliciesRequest())
    assert (list(listed.policies), listed.policy_revision) == ([beside], "harm@r2")
    back = stub.RollBackPolicy(
        pb.RollBackPolicyRequest(name="harm", digest=one.active.digest[:8], etag=beside.etag)
    ).policy
    assert (back.active.serial, back.HasField("shadow")) == (1, False)
    revisions = stub.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(name="harm")).revisions
    assert [(each.serial, each.active, each.shadow) for each in revisions] == [
        (3, False, False),
        (2, False, False),
        (1, True, False),
    ]
    assert sample(governed, "saegis_policy_info", policy="harm", revision="r1") == 1.0


@pytest.mark.parametrize(("kind", "broken", "told"), made.BROKEN)
def test_a_broken_bundle_leaves_the_old_one_in_force(
    governed: Running,
    stub: Stub,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    broken: Callable[[int], bytes],
    told: str,
) -> None:
    state = put(stub, made.archive(1))
    deciding = governed.services.policies
    assert deciding is not None
    before = deciding.active
    bundle = broken(2)
    refused = failure(lambda: put(stub, bundle, state.etag))
    serial = kind == "serial"
    assert refused.code is (Code.FAILED_PRECONDITION if serial else Code.INVALID_ARGUMENT)
    assert refused.reason == ("POLICY_SERIAL" if serial else "POLICY_INVALID")
    assert dict(refused.details["ErrorInfo"].metadata)["kind"] == kind
    violations = refused.details["BadRequest"].field_violations
    assert told in "\n".join(f"{each.field} {each.description}" for each in violations)
    assert told in refused.message
    assert deciding.active is before
    assert stub.GetPolicy(pb.GetPolicyRequest(name="harm")).policy == state
    assert f"kind={kind} by=anonymous" in caplog.text
    assert sample(governed, "saegis_policy_reload_failures_total", kind=kind) == 1.0
    assert sample(governed, "saegis_policy_last_reload_successful") == 0.0
    # Validating it tells the same, counts nothing and changes nothing.
    found = stub.ValidatePolicy(pb.ValidatePolicyRequest(bundle=bundle))
    assert not found.valid
    assert told in "\n".join(f"{each.file} {each.path} {each.message}" for each in found.problems)
    assert sample(governed, "saegis_policy_reload_failures_total", kind=kind) == 1.0


def test_a_problem_has_its_file_line_and_key(stub: Stub) -> None:
    files = made.files(1)
    files["policy.yaml"] = files["policy.yaml"].replace(b"strength: 1", b"strength: -1")
    told = failure(lambda: put(stub, write_archive(files)))
    assert told.fields == ["policy.yaml:11 rules[0].ban.strength"]
    (problem,) = stub.ValidatePolicy(pb.ValidatePolicyRequest(bundle=write_archive(files))).problems
    assert (problem.file, problem.line, problem.path) == ("policy.yaml", 11, "rules[0].ban.strength")


def test_very_many_problems_still_fit_into_the_trailers(stub: Stub) -> None:
    files = made.files(1)
    keys = "".join(f"kéÿ{number}{'ж' * 300}: 1\n" for number in range(90))
    files["policy.yaml"] += keys.encode()
    told = failure(lambda: put(stub, write_archive(files)))
    assert (told.code, told.reason) == (Code.INVALID_ARGUMENT, "POLICY_INVALID")
    assert dict(told.details["ErrorInfo"].metadata)["problems"] == "90"
    assert 1 <= len(told.fields) < 90
    details = told.trailers[DETAILS_KEY]
    assert len(details) < 5000
    problems = stub.ValidatePolicy(pb.ValidatePolicyRequest(bundle=write_archive(files))).problems
    assert len(problems) == 90


def test_signatures_are_checked_where_keys_are_configured(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    file = tmp_path / "operator.pub"
    (key,) = made.public(1)
    file.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    bundle = tmp_path / "bundle.tar.gz"
    bundle.write_bytes(made.archive(1, signed=1))
    settings = {"bundles": [str(bundle)], "keys": [str(file)]}
    with running(policies=settings) as server, grpc.insecure_channel(server.target) as channel:
        stub = Stub(channel)
        state = stub.GetPolicy(pb.GetPolicyRequest(name="harm")).policy
        assert (state.active.put_by, len(state.active.signed_by)) == ("start", 16)
        for unsigned in (made.archive(2), made.archive(2, signed=2)):
            refused = failure(partial(put, stub, unsigned, state.etag))
            assert (refused.code, refused.reason) == (Code.PERMISSION_DENIED, "POLICY_SIGNATURE")
            assert sample(server, "saegis_policy_last_reload_successful") == 0.0
        assert stub.GetPolicy(pb.GetPolicyRequest(name="harm")).policy == state
        put(stub, made.archive(2, signed=1), state.etag)
        assert sample(server, "saegis_policy_last_reload_successful") == 1.0


def conflict(told: Failure) -> None:
    assert (told.code, told.reason) == (Code.ABORTED, "REVISION_CONFLICT")
    assert told.fields == ["etag"]


def test_a_stale_etag_is_a_conflict(stub: Stub) -> None:
    one = put(stub, made.archive(1))
    two = put(stub, made.archive(2), one.etag)
    back = pb.RollBackPolicyRequest(name="harm", digest=one.active.digest, etag=one.etag)
    conflict(failure(lambda: put(stub, made.archive(3), one.etag)))
    conflict(failure(lambda: put(stub, made.archive(3))))
    conflict(failure(lambda: put(stub, made.archive(1, name="other"), "e")))
    conflict(failure(lambda: stub.RollBackPolicy(back)))
    assert stub.GetPolicy(pb.GetPolicyRequest(name="harm")).policy == two


def test_what_is_not_there_is_not_found(stub: Stub) -> None:
    def absent(call: Callable[[], object], reason: str, name: str) -> None:
        told = failure(call)
        assert (told.code, told.reason) == (Code.NOT_FOUND, reason)
        assert told.details["ResourceInfo"].resource_name == name

    absent(lambda: stub.GetPolicy(pb.GetPolicyRequest(name="harm")), "POLICY_NOT_FOUND", "harm")
    absent(
        lambda: stub.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(name="harm")),
        "POLICY_NOT_FOUND",
        "harm",
    )
    absent(lambda: put(stub, made.archive(1), shadow=True), "POLICY_NOT_FOUND", "harm")
    etag = put(stub, made.archive(1)).etag
    request = pb.RollBackPolicyRequest(name="harm", digest="0" * 8, etag=etag)
    absent(lambda: stub.RollBackPolicy(request), "REVISION_NOT_FOUND", f"harm@{'0' * 8}")


def test_a_good_bundle_is_valid_and_changes_nothing(stub: Stub) -> None:
    found = stub.ValidatePolicy(pb.ValidatePolicyRequest(bundle=made.archive(4)))
    assert (found.valid, list(found.problems)) == (True, [])
    assert (found.revision.name, found.revision.serial, found.revision.revision) == ("harm", 4, "r4")
    assert found.revision.digest == made.bundle(4).digest
    assert not found.revision.HasField("put_time")
    assert [(case.name, case.passed) for case in found.cases] == [("no edits", True)]
    assert not stub.ListPolicies(pb.ListPoliciesRequest()).policies


def test_evaluate_tells_the_decision_of_what_is_in_force(stub: Stub) -> None:
    def ask(*edits: steering_pb2.Edit, **who: Any) -> pb.PolicyDecision:
        steering = steering_pb2.Steering(edits=edits)
        return stub.EvaluatePolicy(pb.EvaluatePolicyRequest(steering=steering, **who)).decision

    nobody = ask()
    assert (nobody.allowed, nobody.program_digest, [each.rule for each in nobody.denials]) == (
        False,
        "",
        ["match"],
    )
    style = "allow: [{id: style, ops: [clamp], features: [{sae: first, index: 3}], max: 4}]"
    put(stub, made.archive(1, extra=style))
    plain, styled, refused = ask(), ask(edit(3, 4.0)), ask(edit(3, 4.0), edit(5, 1.0))
    assert (plain.allowed, styled.allowed, refused.allowed) == (True, True, False)
    assert (plain.policy_revision, plain.rules[0].rule, plain.rules[0].action) == ("harm@r1", "ban-1", "ban")
    assert (plain.rules[0].mode, list(plain.rules[0].labels)) == (pb.RULE_MODE_ENFORCE, ["poison"])
    assert len(plain.program_digest) == len(styled.program_digest) == 64
    assert plain.program_digest != styled.program_digest
    assert [(each.policy, each.rule, each.field) for each in refused.denials] == [
        ("harm", "allow", "steering.edits[1]")
    ]
    # Whoever else would ask, and another bundle than the one in force.
    narrow = made.archive(9, name="narrow", tenants='["acme"]')
    assert not ask(bundle=narrow).allowed
    other = ask(bundle=narrow, tenant="acme")
    assert (other.allowed, other.policy_revision) == (True, "narrow@r9")
    assert failure(lambda: ask(bundle=b"no bundle")).reason == "POLICY_INVALID"
    assert ask() == plain


def test_requests_in_flight_keep_what_they_hold(governed: Running, stub: Stub) -> None:
    store = governed.services.policies
    assert store is not None
    state = put(stub, made.archive(1))
    held = store.active
    put(stub, made.archive(2), state.etag)
    assert (held.revision, store.active.revision) == ("harm@r1", "harm@r2")


def test_everything_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    settings = {"state": str(tmp_path)}
    with running(policies=settings) as server, saegis.Client(server.target) as client:
        client.put_policy(made.archive(1))
        state = client.put_policy(made.archive(2), etag=client.get_policy("harm").policy.etag)
    with running(policies=settings) as server, saegis.Client(server.target) as client:
        assert client.get_policy("harm").policy == state
        assert client.list_policies().policy_revision == "harm@r2"
        (newest, oldest) = client.policy_revisions("harm")
        back = client.roll_back_policy("harm", oldest.digest, etag=state.etag)
        assert (newest.active, back.active.serial) == (True, 1)
        with pytest.raises(saegis.Aborted, match="read it again"):
            client.put_policy(made.archive(3), etag=state.etag)


def test_a_start_with_a_broken_policy_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(made.archive(1, target="{sae: absent, index: 1}"))
    with pytest.raises(Exception, match="absent"), running(policies={"bundles": [str(broken)]}):
        pass


def test_a_state_that_cannot_be_written_is_told_and_nothing_changes(
    governed: Running, stub: Stub, tmp_path: Path
) -> None:
    state = put(stub, made.archive(1))
    folder = tmp_path / "state/harm"
    folder.rename(tmp_path / "away")
    folder.write_text("no folder")
    told = failure(lambda: put(stub, made.archive(2), state.etag))
    assert (told.code, told.reason) == (Code.UNAVAILABLE, "POLICY_STATE_UNAVAILABLE")
    assert "cannot be written" in told.message
    assert stub.GetPolicy(pb.GetPolicyRequest(name="harm")).policy == state
    assert sample(governed, "saegis_policy_reload_failures_total", kind="state") == 1.0


def people(*tenants: str) -> str:
    entries = (
        f"- {{name: of-{tenant}, tenant: {tenant}, roles: [use, inspect, administer], {by_token(tenant)}}}\n"
        for tenant in tenants
    )
    return "apiVersion: saegis.dev/v1\nkind: Identities\nprincipals:\n" + "".join(entries)


def test_a_policy_that_matches_nothing_here_is_never_in_force_unnoticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identities, bundle = tmp_path / "identities.yaml", tmp_path / "bundle.tar.gz"
    identities.write_text(people("acme"))
    bundle.write_bytes(made.archive(1, tenants="[acme]"))
    settings: dict[str, Any] = {"identities": str(identities)}
    # Another model than the policy names, at the start.
    with (
        pytest.raises(UnmatchedError, match="'Tiny' is not the model of this server: there is my-model"),
        running(policies={"bundles": [str(in_model(tmp_path, "Tiny"))]}, name="my-model", **settings),
    ):
        pass
    with (
        running(policies={"bundles": [str(bundle)]}, **settings) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub, metadata = Stub(channel), bearer("acme")
        alike = made.archive(2, name="other", tenants="[Acme]")
        told = failure(lambda: stub.PutPolicy(pb.PutPolicyRequest(bundle=alike), metadata=metadata))
        assert (told.code, told.reason) == (Code.INVALID_ARGUMENT, "POLICY_INVALID")
        assert dict(told.details["ErrorInfo"].metadata)["kind"] == "unmatched"
        assert told.fields == ["policy.yaml:7 match.tenants[0]"]
        assert "did you mean 'acme'?" in told.message
        found = stub.ValidatePolicy(pb.ValidatePolicyRequest(bundle=alike), metadata=metadata)
        assert [(each.path, each.line) for each in found.problems] == [("match.tenants[0]", 7)]
        # Who may call is what the file says now.
        later = made.archive(1, name="later", tenants="[acme, globex]")
        found = stub.ValidatePolicy(pb.ValidatePolicyRequest(bundle=later), metadata=metadata)
        assert (found.valid, [each.path for each in found.warnings]) == (True, ["match.tenants[1]"])
        identities.write_text(people("acme", "globex"))
        found = stub.ValidatePolicy(pb.ValidatePolicyRequest(bundle=later), metadata=metadata)
        assert (found.valid, list(found.warnings)) == (True, [])
        identities.write_text(people("acme"))
        assert stub.PutPolicy(pb.PutPolicyRequest(bundle=later), metadata=metadata)
        assert "later@r1: policy.yaml:7: match.tenants[1]: 'globex' is the tenant of nobody" in caplog.text
    warned = {"bundles": [str(in_model(tmp_path, "large"))], "unmatched": "warn"}
    with running(policies=warned, **settings):
        assert "'large' is not the model of this server: there is tiny" in caplog.text


def in_model(folder: Path, model: str) -> Path:
    files = made.files(1)
    files["policy.yaml"] = files["policy.yaml"].replace(
        b"{tenants", b"{models: [%s], tenants" % model.encode()
    )
    files["tests/cases.yaml"] = files["tests/cases.yaml"].replace(b"model: tiny", b"model: " + model.encode())
    return write_files(folder / model, files)
