"""The file of identities: what it says, every fault with its line, and that it is read again."""

import hashlib
import logging
import os
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from saegis_server.problem import Problem
from saegis_server.rpc.auth.identities import IdentitiesError, IdentitiesFile, read_identities
from saegis_server.rpc.auth.identity import Identity
from saegis_server.rpc.auth.principals import new_token, token_digest
from saegis_server.rpc.auth.roles import Role
from saegis_server.telemetry.metrics import Metrics

ALICE, BOB = new_token(), new_token()
HEAD = "apiVersion: saegis.dev/v1\nkind: Identities\nprincipals:\n"


def entry(name: str, *credentials: str, tenant: str = "t", roles: str = "use") -> str:
    """One principal's lines."""
    lines = (f"  - name: {name}", f"tenant: {tenant}", f"roles: [{roles}]", *credentials)
    return "\n    ".join(lines) + "\n"


def token_line(*tokens: str) -> str:
    return f"token_sha256: [{', '.join(map(token_digest, tokens))}]"


def written(folder: Path, text: str) -> Path:
    path = folder / "identities.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_principals_are_known_by_each_of_their_credentials(tmp_path: Path) -> None:
    spare = new_token()
    text = (
        HEAD
        + entry("alice", token_line(ALICE, spare), tenant="red", roles="use, steer")
        + entry("bob", f"token_sha256: {token_digest(BOB)}", "certificate: [spiffe://a/bob, bob.example]")
        + entry("carol", "certificate: carol")
    )
    found = read_identities(written(tmp_path, text))
    alice = Identity("alice", "red", frozenset((Role.USE, Role.STEER)))
    bob = Identity("bob", "t", frozenset((Role.USE,)))
    assert (found.of_token(ALICE), found.of_token(spare), found.of_token(BOB)) == (alice, alice, bob)
    assert found.of_certificate(["x", "bob.example"]) == {bob}
    assert found.of_certificate(["spiffe://a/bob", "bob.example"]) == {bob}
    assert {each.name for each in found.of_certificate(["carol", "bob.example"])} == {"bob", "carol"}
    assert found.of_certificate(["alice"]) == frozenset()
    assert found.of_token("alice") is None


def test_the_digest_is_that_of_the_token_itself() -> None:
    assert token_digest(ALICE) == hashlib.sha256(ALICE.encode()).hexdigest()
    assert ALICE.startswith("saegis_")
    assert len({new_token() for _ in range(100)}) == 100


def test_no_token_at_all_is_nobodys(tmp_path: Path) -> None:
    """Even where somebody wrote the digest of nothing."""
    found = read_identities(written(tmp_path, HEAD + entry("alice", token_line(""))))
    assert found.of_token("") is None


FAULTS = [
    ("apiVersion: saegis.dev/v2\nkind: Identities\nprincipals: []\n", 1, "apiVersion"),
    ("apiVersion: saegis.dev/v1\nkind: Policy\nprincipals: []\n", 2, "kind"),
    ("apiVersion: saegis.dev/v1\nkind: Identities\n", 1, "principals: is missing"),
    (HEAD + entry("alice", token_line(ALICE)) + "user: []\n", 8, "user: is no key here"),
    (HEAD + entry("alice", token_line(ALICE), "admin: true"), 8, "principals[0].admin: is no key here"),
    (HEAD + entry("a b", token_line(ALICE)), 4, "principals[0].name: must be 1 to 128"),
    (HEAD + entry("alice", token_line(ALICE), tenant='"*"'), 5, "principals[0].tenant: must be"),
    (HEAD + entry("alice", token_line(ALICE), roles="root"), 6, "principals[0].roles[0]"),
    (HEAD + entry("alice", token_line(ALICE), roles=""), 6, "principals[0].roles"),
    (HEAD + entry("alice", "token_sha256: abc"), 7, "'saegis token new'"),
    (HEAD + entry("alice", f"token_sha256: {ALICE}"), 7, "'saegis token new'"),
    (HEAD + entry("alice", "certificate: ''"), 7, "principals[0].certificate"),
    (HEAD + entry("alice", 'certificate: "a\\0b"'), 7, "characters that can be printed"),
    (HEAD + entry("alice", 'certificate: [a, "b\\u202e"]'), 7, "characters that can be printed"),
    (HEAD + entry("alice"), 4, "no credential"),
    (HEAD + entry("anonymous", token_line(ALICE)), 4, "choose another"),
    (HEAD + entry("start", token_line(ALICE)), 4, "choose another"),
    (HEAD + entry("alice", token_line(ALICE)) + entry("alice", token_line(BOB)), 8, "principals[0] already"),
    (
        HEAD + entry("alice", token_line(ALICE)) + entry("bob", token_line(ALICE)),
        11,
        "'alice' has the same credential",
    ),
    (
        HEAD + entry("alice", "certificate: x") + entry("bob", "certificate: [y, x]"),
        11,
        "'alice' has the same credential",
    ),
    (HEAD + entry("alice", token_line(ALICE), "name: bob"), 8, "'name'"),
    ("principals: [", 1, ""),
    ("", 1, "empty"),
]


@pytest.mark.parametrize(("text", "line", "told"), FAULTS)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, line: int, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(IdentitiesError) as caught:
        read_identities(path)
    places = [(problem.file, problem.line) for problem in caught.value.problems]
    assert (str(path), line) in places
    assert told in str(caught.value)
    assert ALICE not in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = HEAD + entry("a b", "token_sha256: x", roles="root")
    with pytest.raises(IdentitiesError) as caught:
        read_identities(written(tmp_path, text))
    assert [problem.line for problem in caught.value.problems] == [4, 6, 7]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentitiesError, match=r"none\.yaml: cannot be read: No such file"):
        read_identities(tmp_path / "none.yaml")


@given(st.data())
def test_whatever_is_in_the_file_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = HEAD + entry("alice", token_line(ALICE), "certificate: [a, b]")
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 30)))
    text = good[:start] + data.draw(st.text(max_size=12)) + good[end:]
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "replace"))
    problems: tuple[Problem, ...] = ()
    known = None
    try:
        known = read_identities(path).of_token(ALICE)
    except IdentitiesError as error:
        problems = error.problems
        assert problems
    assert all(problem.file == str(path) for problem in problems)
    if not problems:
        held = yaml.safe_load(path.read_bytes())["principals"]
        assert (known is not None) is any(token_digest(ALICE) in each["token_sha256"] for each in held)


def test_a_file_that_changes_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()

    def stale() -> float | None:
        return metrics.registry.get_sample_value("saegis_identities_stale")

    path = written(tmp_path, HEAD + entry("alice", token_line(ALICE)))
    file = IdentitiesFile(path, metrics)
    first = file.current()
    assert first.of_token(ALICE) is not None
    assert file.current() is first

    written(tmp_path, HEAD + entry("bob", token_line(BOB)))
    assert (file.current().of_token(ALICE), file.current().of_token(BOB) is None) == (None, False)
    good = file.current()

    with caplog.at_level(logging.ERROR, "saegis.rpc"):
        written(tmp_path, HEAD + entry("bob", "token_sha256: x"))
        assert [file.current() for _ in range(3)] == [good] * 3
        path.unlink()
        assert [file.current() for _ in range(3)] == [good] * 3
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage().count("could not be renewed") for record in errors] == [1, 1]
    assert "identities.yaml:7: principals[0].token_sha256" in caplog.text
    assert stale() == 1.0

    replacement = tmp_path / "new.yaml"
    replacement.write_text(HEAD + entry("alice", token_line(ALICE)), encoding="utf-8")
    os.replace(replacement, path)
    assert file.current().of_token(ALICE) is not None
    assert stale() == 0.0


def test_a_broken_file_is_refused_at_the_start(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        dedent("""\
        apiVersion: saegis.dev/v1
        kind: Identities
        principals: none
        """),
    )
    with pytest.raises(IdentitiesError, match=r"identities\.yaml:3: principals"):
        IdentitiesFile(path, Metrics())
