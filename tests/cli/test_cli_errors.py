"""Tests of what commands say, and with which exit code they end, when something is wrong."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import saegis
from saegis.cli.connection import advice
from saegis_lab.cli.app import app
from saegis_server.cli.serve.start_errors import start_failed
from saegis_server.engine.torch.loading import ModelLoadError
from saegis_server.policy.errors import CompileError, HistoryError
from saegis_server.problem import Problem
from saegis_server.sae.errors import SAEFileError, SAEMismatch

NOBODY = ("--server", "127.0.0.1:1", "--timeout", "2")


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """`serve` sets up logging for its process; here it must leave no handler on a stream that is closed."""
    before = logging.root.handlers[:]
    yield
    for handler in logging.root.handlers[:]:
        if handler not in before:
            logging.root.removeHandler(handler)


def run(*arguments: str, code: int) -> str:
    """What the command writes to standard error, on one line; nothing may go to standard output."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "hi"),
        ("generate", "hi", "--stream"),
        ("generate", "hi", "--json"),
        ("inspect", "hi"),
        ("features", "search", "x"),
        ("features", "show", "1"),
        ("features", "contrast", "--with", "a", "--without", "b"),
        ("chat",),
    ],
)
def test_without_a_server_the_error_says_how_to_start_one(command: tuple[str, ...]) -> None:
    told = run(*command, *NOBODY, code=1)
    assert told.startswith("error: ")
    assert "saegis serve" in told
    assert "127.0.0.1:1" in told


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("serve", "--policy-key", "operator.pub"), "a policy key without policies"),
        (("generate", "hi", "--clamp", "12"), "'12' has no value"),
        (("generate", "hi", "--ban-matching", "=2"), "names no feature"),
        (("generate", "hi", "--max-tokens", "x"), "--max-tokens"),
        (("generate",), "Missing argument"),
        (("generate", "hi", "--no-such-option"), "No such option"),
        (("generate", "hi", "--ca", "/no/such/file.pem"), "/no/such/file.pem"),
        (("generate", "hi", "--ca", __file__, "--insecure"), "contradict"),
        (("generate", "hi", "--seed", str(2**63), *NOBODY), "seed"),
        (("generate", "hi", "--timeout", "0"), "timeout"),
        (("chat", "--clamp", "12"), "'12' has no value"),
        (("features", "contrast", "--with", "a"), "no texts are given with --without"),
        (("features", "show", ""), "names no feature"),
        (("serve", "--host", "example.com"), "host"),
        (("serve", "--port", "70000"), "--port"),
        (("serve", "--sae", "a", "--sae", "b", "--site", "layers.1"), "2 SAEs but 1 sites"),
        (("serve", "--tls-cert", "x.pem"), "without its key"),
        (("serve", "--log-level", "loud"), "loud"),
        (("serve", "--compile", "sometimes"), "sometimes"),
        (("nonsense",), "No such command"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in run(*arguments, code=2)


def test_a_model_that_does_not_exist_stops_the_start(tmp_path: Path) -> None:
    told = run("serve", "--model", str(tmp_path / "nothing"), "--port", "0", "--metrics-port", "-1", code=1)
    assert "the model cannot be loaded" in told
    assert str(tmp_path / "nothing") in told


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (saegis.Unavailable("down"), "saegis serve"),
        (saegis.Unavailable("gone", reason=saegis.Unreached.NO_SERVER), "saegis serve"),
        (saegis.Unavailable("x", reason=saegis.Unreached.SERVER_NOT_TRUSTED), "--ca"),
        (saegis.Unavailable("x", reason=saegis.Unreached.TLS_EXPECTED), "--ca"),
        (saegis.Unavailable("x", reason=saegis.Unreached.TLS_NOT_OFFERED), "--insecure"),
        (saegis.Unavailable("x", reason=saegis.Unreached.CLIENT_CERTIFICATE_MISSING), "SAEGIS_CERT"),
        (saegis.Unavailable("draining", reason="DRAINING", retry_after=1.5), "try again in 1.5 s"),
        (saegis.ResourceExhausted("full", retry_after=2.0), "try again in 2 s"),
        (
            saegis.InvalidArgument(
                "x", violations=[saegis.FieldViolation("steering.edits[0].feature", "none")]
            ),
            "features search",
        ),
        (saegis.Unauthenticated("who"), "SAEGIS_TOKEN"),
        (saegis.DeadlineExceeded("late"), "--timeout"),
        (saegis.InternalError("x", request_id="r1", metadata={"error_id": "e1"}), "request r1 error_id e1"),
        (saegis.PermissionDenied("no"), ""),
    ],
)
def test_each_failure_has_its_advice(error: saegis.SaegisError, hint: str) -> None:
    assert hint in advice(error, "host:1")


def test_foreseen_starts_that_fail_are_told_and_defects_are_not() -> None:
    told = start_failed(SAEFileError("sae/cfg.json", "is not JSON"))
    assert told is not None
    assert "sae/cfg.json: is not JSON" in told[0]
    mismatch = start_failed(SAEMismatch("it does not fit", 2.0, 3.0, None, None))
    assert mismatch is not None
    assert "--site" in mismatch[1]
    assert start_failed(ModelLoadError("gone")) is not None
    policy = start_failed(CompileError([Problem("no such feature", "rules.ban", "policy.yaml", 7)]))
    assert policy is not None
    assert "policy.yaml:7: rules.ban: no such feature" in policy[0]
    assert "saegis policy validate" in policy[1]
    state = start_failed(HistoryError("harm/state.json: cannot be read"))
    assert state is not None
    assert "--policy-state" in state[1]
    assert start_failed(KeyError("defect")) is None
