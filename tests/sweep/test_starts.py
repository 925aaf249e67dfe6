"""Every start of `saegis serve` that cannot be: each option with nonsense, taken ports, files and folders.

Each is answered with a message that names what is wrong, and before the model is loaded: the model that these
starts name does not exist, and nothing may say so.
"""

import json
import logging
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

import saegis
from saegis.cli.output import own_command
from saegis_lab.cli.app import app
from saegis_server.cli.serve.command import _show
from saegis_server.rpc.server.address import ReadyFile
from saegis_server.rpc.server.config import Address
from tests.e2e.serving import TinyFiles, serving, write_tiny_files
from tests.rpc.harness import running

ADDRESS = Address(host="127.0.0.1", port=7, metrics_port=None)
NO_MODEL = "the model cannot be loaded"

#: Nonsense for every option that takes a value, with what is said of it. {here} is a folder with a `file`, an
#: `empty` folder and `bad.pem`.
NONSENSE: list[tuple[tuple[str, ...], str]] = [
    (("--config", ""), "the path is empty"),
    (("--config", "{here}/missing.yaml"), "missing.yaml cannot be read: No such file"),
    (("--config", "{here}/file"), "name a file that ends in .yaml, .yml or .toml"),
    (("--norm-scaling", "first=2"), "belongs to no SAE"),
    (("--norm-scaling", "=2"), "--norm-scaling '=2' belongs to no SAE"),
    (("--norm-scaling", "first=", "--sae", "first=x"), "saes.0.norm_scaling_factor"),
    (("--norm-scaling", "first=0", "--sae", "first=x"), "saes.0.norm_scaling_factor"),
    (("--metrics-host", "example.org"), "metrics_host: Value error, 'example.org' is neither"),
    (("--audit-mask", "/x"), "--audit-mask without an audit log"),
    (("--audit-mask", "x", "--audit", "{here}/a"), "audit.mask"),
    (("--audit-mask", "/prompt/", "--audit", "{here}/a"), "audit.mask"),
    (("--audit-mask", "/edits//label", "--audit", "{here}/a"), "audit.mask"),
    (("--audit-interval", "-1"), "--audit-interval"),
    (("--audit-interval", "0", "--audit", "{here}/a"), "audit.interval_seconds"),
    (("--audit-max-bytes", "1"), "--audit-max-bytes"),
    (("--audit-keep", "0"), "--audit-keep"),
    (("--audit-queue", "0"), "--audit-queue"),
    (("--audit-identity-per-minute", "-1"), "--audit-identity-per-minute"),
    (("--fair-slots", "-1"), "--fair-slots"),
    (("--fair-slots", "16"), "16 slots cannot be kept of 16"),
    (("--fair-seconds", "nan"), "--fair-seconds"),
    (("--fair-share", "2"), "--fair-share"),
    (("--max-message-bytes", "10"), "--max-message-bytes"),
    (("--max-pictures", "65"), "--max-pictures"),
    (("--max-picture-bytes", "10"), "--max-picture-bytes"),
    (("--max-picture-pixels", "0"), "--max-picture-pixels"),
    (("--max-picture-side", "70000"), "--max-picture-side"),
    (("--log-format", "xml"), "'xml' is not one of 'text', 'json'"),
    (("--model", ""), "model: String should have at least 1 character"),
    (("--sae", ""), "saes.0.path: String should have at least 1 character"),
    (("--sae", "={here}/empty"), "empty' has an SAE without a name next: give ID=PATH, or PATH alone"),
    (("--sae", " ={here}/empty"), "empty' has an SAE without a name"),
    (("--sae", "first="), "--sae 'first=' has an SAE without a path"),
    (("--sae", "{here}/missing"), "no such directory, and not a hub id"),
    (("--sae", "{here}/file"), "is a file; give the directory"),
    (("--sae", "{here}/empty"), "an SAE in SAELens' layout has a cfg.json"),
    (("--sae", "~nobody-here/x"), "cannot be looked up"),
    (("--site", ""), "'' is not a site"),
    (("--site", "layers.-1.resid_post"), "'layers.-1.resid_post' is not a site"),
    (("--name", ""), "name: String should have at least 1 character"),
    (("--dtype", "int8"), "'int8' is not one of 'auto', 'float32'"),
    (("--device", ""), "device '' is none; devices are cpu, cuda"),
    (("--device", "cuda:"), "device 'cuda:' is none"),
    (("--device", "tpu"), "device 'tpu' is none"),
    (("--device", "cuda:x"), "device 'cuda:x' is none"),
    (("--device", "cuda:999"), "device 'cuda:999'"),
    (("--compile", "sometimes"), "--compile"),
    (("--engine", "steam"), "--engine"),
    (("--engine", "vllm", "--batch-invariant"), "batch_invariant"),
    (("--engine", "vllm", "--dtype", "float16"), "dtype"),
    (("--tensor-parallel-size", "0"), "--tensor-parallel-size"),
    (
        ("--tensor-parallel-size", "2"),
        "tensor_parallel_size: the embedded engine runs a model in one process",
    ),
    (("--directions", "{here}/missing"), "missing: is no folder and no .safetensors or .npz file"),
    (("--directions", "{here}/file"), "file: is no folder and no .safetensors or .npz file"),
    (("--directions", "{here}/empty"), "empty: holds no .safetensors or .npz file"),
    (("--direction-state", ""), "the path is empty"),
    (("--direction-state", "{here}/file"), "file: is no folder"),
    (("--http-host", "example.org"), "http_host: Value error, 'example.org' is neither"),
    (("--http-host", "192.0.2.1", "--http-port", "0"), "other machines can reach 192.0.2.1"),
    (("--http-port", "65536"), "--http-port"),
    (("--http-origin", "nowhere", "--http-port", "0"), "'nowhere' is no origin such as"),
    (("--http-origin", "https://example.org"), "http_origins: nothing is served over HTTP"),
    (("--preset", "x"), "--preset 'x' has no file"),
    (("--preset", "x={here}/missing", "--http-port", "0"), "missing: No such file"),
    (("--preset", "x={here}/file", "--http-port", "0"), "must be an object, not"),
    (("--console", "maybe"), "--console"),
    (("--host", ""), "host: Value error, '' is neither an IP address nor localhost"),
    (("--host", "192.0.2.1"), "other machines can reach 192.0.2.1"),
    (("--port", "-1"), "--port"),
    (("--port", "many"), "--port"),
    (("--metrics-port", "65536"), "--metrics-port"),
    (("--unix", ""), "the path is empty"),
    (("--unix", "{here}/file"), "is there and is no socket"),
    (("--unix", "{here}/missing/x.sock"), "missing: no socket can be made in this folder"),
    (("--unix", "/" + 200 * "x"), "a socket's path has at most 107 bytes"),
    (("--unix", "{here}/x.sock", "--host", "0.0.0.0"), "on a Unix socket or on 0.0.0.0"),  # noqa: S104
    (("--tls-cert", ""), "the path is empty"),
    (("--tls-cert", "{here}/file"), "a certificate without its key"),
    (("--tls-key", "{here}/file"), "a certificate without its key"),
    (("--client-ca", "{here}/file"), "a certificate without its key"),
    (("--tls-cert", "{here}/missing", "--tls-key", "{here}/file"), "missing: No such file"),
    (("--tls-cert", "{here}/bad.pem", "--tls-key", "{here}/bad.pem"), "bad.pem are no PEM certificate"),
    (("--identities", "{here}/missing"), "missing: cannot be read: No such file"),
    (("--identities", "{here}/file"), "must be a map of apiVersion, kind, principals"),
    (("--policy", "{here}/missing"), "missing: cannot be read: No such file"),
    (("--policy", "{here}/file"), "file: the archive is no tar"),
    (("--policy", "{here}/empty"), "empty/policy.yaml: is missing"),
    (("--policy-state", ""), "the path is empty"),
    (("--policy-state", "{here}/file"), "file: cannot be used for the state of policies"),
    (("--policy-key", "{here}/file"), "a policy key without policies"),
    (("--policy-key", "{here}/bad.pem", "--policy-state", "{here}/s"), "bad.pem: holds no public key"),
    (("--unmatched-policies", "maybe"), "--unmatched-policies"),
    (("--unmatched-saes", "maybe"), "--unmatched-saes"),
    (("--audit", ""), "the path is empty"),
    (("--audit", "{here}/file"), "the audit log cannot be written"),
    (("--audit", "/proc/none"), "the audit log cannot be written"),
    (("--audit-fsync", "often"), "--audit-fsync"),
    (("--audit-key-file", "{here}/file"), "--audit-key-file without an audit log"),
    (("--audit-key-file", "{here}/file", "--audit", "{here}/a"), "a key has at least 32"),
    (("--audit-prompts",), "--audit-prompts without an audit log"),
    (("--audit-on-failure", "panic"), "--audit-on-failure"),
    (("--kv-memory", "much"), "kv_memory: Value error, 'much' is no amount of memory"),
    (("--kv-memory", "1.5"), "'1.5' has no unit and is no share between 0 and 1"),
    (("--kv-memory", "4 parsecs"), "'4 parsecs' is no amount of memory"),
    (("--kv-memory", "4XB"), "'4XB' has a unit that is none"),
    (("--kv-memory", "0MB"), "'0MB' is nothing"),
    (("--max-num-seqs", "0"), "--max-num-seqs"),
    (("--max-num-seqs", "100000"), "--max-num-seqs"),
    (("--max-model-len", "1"), "--max-model-len"),
    (("--queue-limit", "0"), "--queue-limit"),
    (("--queue-limit", str(2**80)), "--queue-limit"),
    (("--rows", "bans"), "--rows bans: a number is missing"),
    (("--rows", "heads=4"), "--rows heads=4: "),
    (("--rows", "=4"), "--rows =4: "),
    (("--rows", "bans="), "--rows bans=: "),
    (("--rows", "bans=1"), "--rows bans=1: Input should be greater than or equal to 2"),
    (("--limit", "requests"), "--limit 'requests' sets no limit"),
    (("--limit", "=4"), "--limit '=4' sets no limit"),
    (("--limit", ".requests=4"), "--limit '.requests=4' sets no limit"),
    (("--limit", "requests="), "limits.requests"),
    (("--limit", "requests=nan"), "limits.requests"),
    (("--limit", "tenant.requests=-1"), "limits.tenant.requests"),
    (("--tenant-class", "gold="), "--tenant-class 'gold=' has a tenant without a name in gold"),
    (("--tenant-class", "gold=a, ,b"), "--tenant-class 'gold=a, ,b' has a tenant without a name in gold"),
    (("--tenant-class", ""), "--tenant-class '' has a class without a name"),
    (("--tenant-class", "=a"), "--tenant-class '=a' has a class without a name"),
    (("--tenant-class", "gold=no one"), "tenant_classes.gold.0: String should match pattern"),
    (("--tenant-class", "_other=a"), "tenant_classes._other.[key]: String should match pattern"),
    (("--tenant-class", "gold=a", "--tenant-class", "gold=b"), "--tenant-class names gold twice"),
    (("--tenant-class", "gold=a", "--tenant-class", "iron=a"), "'a' is of the classes gold and iron"),
    (("--watch-feature", "1,2"), "watch_features: Value error, '1,2' is not of the form SAE:INDEX"),
    (("--watch-feature", ""), "watch_features: Value error, '' is not of the form SAE:INDEX"),
    (("--watch-feature", "first:"), "watch_features: Value error, 'first:' is not of the form SAE:INDEX"),
    (("--watch-feature", ":3"), "watch_features: Value error, ':3' has an SAE without a name"),
    (("--watch-feature", " :3"), "watch_features: Value error, ' :3' has an SAE without a name"),
    (("--sample-saes", "nan"), "--sample-saes"),
    (("--sample-saes", "-1"), "--sample-saes"),
    (("--usage-every", "-1"), "--usage-every"),
    (("--usage-state", "{here}/u"), "usage_state: nothing is counted that could be kept"),
    (("--stall", "nan"), "--stall"),
    (("--stall", "-1"), "--stall"),
    (("--grace", "inf"), "--grace"),
    (("--grace", "soon"), "--grace"),
    (("--traces", "here"), "traces: Value error, give a URL such as"),
    (("--traces", "http://:4318/"), "traces: Value error, give a URL such as"),
    (("--traces", "http://me:hush@here/"), "traces: Value error, the URL must hold no secret"),
    (("--ready-file", ""), "the path is empty"),
    (("--ready-file", "{here}"), "is there and is no plain file"),
    (("--ready-file", "{here}/missing/ready"), "missing: no ready file can be written here"),
    (("--log-level", "loud"), "'loud' is not one of 'debug'"),
]


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """`serve` sets up logging for its process; here it must leave no handler on a stream that is closed."""
    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of useless things."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "bad.pem").write_text("-----BEGIN NONSENSE-----\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    return tmp_path


def start(*options: str) -> Result:
    """A start on free ports without metrics, unless the options say otherwise; its model is not there."""
    given = {
        "--model": "/no/such/model",
        "--port": "0",
        "--metrics-port": "-1",
        "--compile": "never",
        "--log-level": "error",
    }
    base = [word for name, value in given.items() if name not in options for word in (name, value)]
    env = {"COLUMNS": "240", "HF_HUB_OFFLINE": "1"}
    return CliRunner().invoke(app, ["serve", *base, *options], env=env)


def told(result: Result) -> str:
    """What a start that failed in order said, on one line."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2), result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "complaint"), NONSENSE, ids=[" ".join(options)[:40] for options, _ in NONSENSE]
)
def test_nonsense_is_named_before_anything_is_loaded(
    here: Path, options: tuple[str, ...], complaint: str
) -> None:
    said = told(start(*(each.format(here=here) for each in options)))
    assert complaint in said
    assert NO_MODEL not in said


def test_the_table_has_every_option_that_takes_a_value() -> None:
    command: Any = typer.main.get_command(app)
    parameters = command.commands["serve"].params
    wanted = {each.opts[0] for each in parameters if each.name != "help" and not each.is_flag}
    assert wanted <= {option for options, _ in NONSENSE for option in options}


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_taken_port_is_named_before_anything_is_loaded(option: str, tmp_path: Path) -> None:
    """And the ready file of the server that has it is left."""
    path = tmp_path / "ready.json"
    running = ReadyFile(path)
    running.write(ADDRESS)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        said = told(start(option, str(port), "--ready-file", str(path)))
    assert f"port {port} of 127.0.0.1 is taken: choose another with {option}, or 0 for a free one" in said
    assert NO_MODEL not in said
    assert path.exists()
    running.remove()


def test_the_ready_file_of_a_running_server_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    running = ReadyFile(path)
    running.write(ADDRESS)
    said = told(start("--ready-file", str(path)))
    assert f"{path}: a running server has written it" in said
    assert NO_MODEL not in said
    assert json.loads(path.read_text(encoding="utf-8"))["target"] == ADDRESS.target
    running.remove()


def test_where_the_log_is_json_a_start_that_fails_is_a_record_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging as transformers_logging

    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    try:
        result = start("--log-format", "json", "--log-level", "info")
    finally:
        logging.captureWarnings(False)
        transformers_logging.enable_default_handler()
        transformers_logging.disable_propagation()
    assert (result.exit_code, result.stdout) == (1, "")
    *stages, last = (json.loads(line) for line in result.stderr.splitlines())
    assert "loading the libraries" in [line.get("stage") for line in stages]
    assert (last["level"], NO_MODEL in last["message"]) == ("critical", True)
    assert "give --model a directory or hub id" in last["next"]


def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """No ready file, also where a killed server left one, no socket, and an audit log that is whole."""
    ready, unix, audit = tmp_path / "ready.json", tmp_path / "x.sock", tmp_path / "audit"
    ready.write_text("stale", encoding="utf-8")
    said = told(start("--ready-file", str(ready), "--unix", str(unix), "--audit", str(audit)))
    assert NO_MODEL in said
    assert sorted(each.name for each in tmp_path.iterdir()) == ["audit", "x.sock.lock"]
    assert NO_MODEL in told(start("--unix", str(unix), "--audit", str(audit)))
    verified = CliRunner().invoke(app, ["audit", "verify", str(audit)])
    assert verified.exit_code == 0, verified.output


POLICY = """\
apiVersion: saegis.dev/v1
kind: Policy
name: calm
serial: 7
revision: "2026-01-01"
"""


def test_the_banner_names_policies_and_the_audit_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    audit, policy = tmp_path / "audit", tmp_path / "calm"
    policy.mkdir()
    (policy / "policy.yaml").write_text(POLICY, encoding="utf-8")
    with running(policies={"bundles": [policy]}, audit={"directory": audit}) as server:
        _show(server.address, server.services, server.config)
    said = capsys.readouterr().err
    assert "calm, revision 2026-01-01, serial 7" in said
    assert f"audit log {audit}" in " ".join(said.split())
    with running() as server:
        _show(server.address, server.services, server.config)
    said = " ".join(capsys.readouterr().err.split())
    assert "policies none audit log none" in said
    assert f"try {own_command()} chat --server {server.address.target}" in said


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """The files of the tiny model and its SAE."""
    return write_tiny_files(tmp_path_factory.mktemp("tiny"))


def test_after_a_kill_the_next_start_takes_what_is_stale(tiny_files: TinyFiles, tmp_path: Path) -> None:
    """Of the ready file and the socket; what is in force, and where it is recorded, is told at the start."""
    ready, unix, audit, policy = (tmp_path / name for name in ("ready.json", "x.sock", "audit", "calm"))
    policy.mkdir()
    (policy / "policy.yaml").write_text(POLICY, encoding="utf-8")
    options = (
        "--unix",
        str(unix),
        "--ready-file",
        str(ready),
        "--audit",
        str(audit),
        "--policy",
        str(policy),
    )
    with serving(tmp_path / "stderr", *tiny_files.options, *options) as server:
        assert server.ready["target"] == f"unix:{unix}"
        assert server.ready["policies"] == [{"name": "calm", "revision": "2026-01-01", "serial": 7}]
        assert server.ready["audit"] == str(audit)
        with saegis.Client(server.target) as client:
            assert client.healthy()
        assert "another server listens there" in told(start("--unix", str(unix)))
        server.process.send_signal(signal.SIGKILL)
        server.wait()
    assert ready.exists()
    assert unix.exists()
    assert NO_MODEL in told(start("--unix", str(unix), "--ready-file", str(ready)))
    assert not ready.exists()
    assert not unix.exists()
