"""Settings of a server: which source wins, what is refused, and that each can be set and is told."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from annotated_types import Ge, Le
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from saegis.cli.options import grouped
from saegis_server import reference
from saegis_server.audit.log import AuditSettings
from saegis_server.cli.app import app
from saegis_server.cli.serve import options
from saegis_server.cli.serve.configuration import configuration
from saegis_server.cli.serve.settings import Config, SettingsCommand
from saegis_server.reference import EYES_NAME, MODEL, SAE
from saegis_server.rpc.server.config import ServerConfig
from scripts.gen_settings import DOCUMENT, current


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1", **variables})


def shown(*arguments: str, **variables: str) -> dict[str, dict[str, Any]]:
    """What `config show` tells of each setting."""
    result = run("config", "show", "--json", *arguments, **variables)
    assert result.exit_code == 0, result.output
    told: dict[str, dict[str, Any]] = json.loads(result.stdout)
    return told


def refused(*arguments: str, **variables: str) -> str:
    """What is said of settings that cannot be, on one line."""
    result = run("config", "show", *arguments, **variables)
    assert (result.exit_code, result.stdout) == (2, "")
    return " ".join(result.stderr.replace("│", " ").split())


def written(folder: Path, text: str, name: str = "server.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_flag_wins_then_the_environment_then_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "port: 1\nqueue-limit: 2\n\ngrace: 3\nlimit: [requests=9]\n")
    variables = {"SAEGIS_PORT": "11", "SAEGIS_QUEUE_LIMIT": "12", "SAEGIS_STALL": "", "SAEGIS_TOKEN": "hush"}
    told = shown("--config", file, "--port", "21", **variables)
    assert told["port"] == {"value": 21, "source": "flag"}
    assert told["queue-limit"] == {"value": 12, "source": "SAEGIS_QUEUE_LIMIT"}
    assert told["grace"] == {"value": 3.0, "source": f"{file}:4"}
    assert told["stall"] == {"value": 10.0, "source": "default"}
    assert told["limit"] == {"value": ["requests=9"], "source": f"{file}:5"}
    assert "hush" not in str(told)
    assert shown(SAEGIS_CONFIG=file)["port"]["value"] == 1


def test_yaml_and_toml_say_the_same(tmp_path: Path) -> None:
    yaml = """
sae: {first: a=b, second: ./c}
reflection: false
rows: {bans: 64, rules: 8}
limit: {tenant: {requests: 5, tokens_per_minute: 60}, requests: 100}
audit: log
audit-mask: [/a, /b]
"""
    toml = """
sae = ["first=a=b", "second=./c"]
reflection = false
audit = "log"
audit-mask = ["/a", "/b"]
[rows]
bans = 64
rules = 8
[limit]
requests = 100
tenant = {requests = 5, tokens_per_minute = 60}
"""
    of_yaml = shown("--config", written(tmp_path, yaml))
    of_toml = shown("--config", written(tmp_path, toml, "server.toml"))
    assert of_yaml["sae"]["value"] == ["first=a=b", "second=./c"]
    assert of_yaml["rows"]["value"] == ["bans=64", "rules=8"]
    assert of_yaml["reflection"]["value"] is False
    assert of_toml["rows"]["source"] == str(tmp_path / "server.toml")
    assert sorted(of_yaml["limit"]["value"]) == sorted(of_toml["limit"]["value"])
    assert {name: each["value"] for name, each in of_yaml.items() if name != "limit"} == {
        name: each["value"] for name, each in of_toml.items() if name != "limit"
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot: 1", "server.yaml:1: there is no setting 'prot'; did you mean port?"),
        (
            "port: 1\nmax_num_seqs: 2",
            "server.yaml:2: there is no setting 'max_num_seqs'; did you mean max-num",
        ),
        ("config: x.yaml", "there is no setting 'config'"),
        ("port: many", "Invalid value for '--port': Input should be a valid integer"),
        ("\nport: 70000", "(from {folder}/server.yaml:2)"),
        ("port: true", "Input should be a valid integer"),
        ("port: [1, 2]", "port: has a single value"),
        ("port: {a: 1}", "port: is no map"),
        ("port:", "port: has no value; write one, or leave the key out"),
        ("policy: [[a]]", "policy: holds a list or map"),
        ("rows: {bans: [8, 9]}", "--rows bans=8,9: Input should be a valid integer"),
        ("rows: {bans: [[8]]}", "rows: holds a list or map"),
        ("rows: {bans: }", "rows: has no value"),
        ("rows: {bans: 1}", "--rows bans=1: Input should be greater"),
        ("compile: sometimes", "'sometimes' is not one of 'auto', 'always', 'never'"),
        ("- port", "it must be a map of settings"),
        ("port: 1\nport: 2", "server.yaml:2: port: the key 'port' stands in line 1 already"),
        ("fair-slots: 16", "16 slots cannot be kept of 16"),
    ],
)
def test_what_a_file_cannot_say_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    assert told.format(folder=tmp_path) in refused("--config", written(tmp_path, text))


def test_toml_that_is_none_is_told(tmp_path: Path) -> None:
    assert "server.toml cannot be read" in refused("--config", written(tmp_path, "port", "server.toml"))
    said = refused("--config", written(tmp_path, "port = 1999-01-01", "server.toml"))
    assert "port: must be text, a number, true or false" in said


def test_a_variable_that_nobody_reads_is_refused_with_the_nearest() -> None:
    assert "there is no SAEGIS_PROT; did you mean SAEGIS_PORT?" in refused(SAEGIS_PROT="s3cret")
    assert "s3cret" not in refused(SAEGIS_TOKENS="s3cret")
    assert "(from SAEGIS_PORT)" in refused(SAEGIS_PORT="many")
    others = ("SERVER", "TOKEN", "CA", "CERT", "KEY", "COMPILE_CACHE")
    links = {
        "SAEGIS_SERVICE_HOST": "10.0.0.1",
        "SAEGIS_SERVICE_PORT_GRPC": "50051",
        "SAEGIS_PORT_50051_TCP_ADDR": "10.0.0.1",
        "SAEGIS_GRAFANA_PORT": "tcp://10.0.0.2:3000",
    }
    shown(**{f"SAEGIS_{name}": "x" for name in others}, **links)
    assert "enableServiceLinks: false" in refused(SAEGIS_PORT="tcp://10.0.0.1:50051")
    assert run("serve", "--help", SAEGIS_PROT="1").exit_code == 0


made: list[ServerConfig] = []
maker = typer.Typer()


@maker.command(cls=SettingsCommand)
@grouped
def make(*, server: options.ServerOptions, config: Config = None) -> None:
    made.append(configuration(server))


def configured(*arguments: str) -> ServerConfig:
    """The configuration that settings make."""
    result = CliRunner().invoke(maker, arguments)
    assert result.exit_code == 0, result.output
    return made.pop()


def leaves(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """The values within nested maps, with the keys that lead there."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves(item, f"{place}.{name}")
    else:
        yield place, value


EVERY = """
model: m
sae: {first: a}
norm-scaling: {first: 2}
site: [layers.1.resid_post, layers.2.resid_post]
directions: [refusal.safetensors, more]
direction-state: kept
name: called
dtype: float16
device: cuda
compile: never
batch-invariant: true
port: 1
metrics-host: 0.0.0.0
metrics-port: 2
http-host: 127.0.0.2
http-port: 3
http-origin: https://example.org
console: always
preset: [landmark=landmark.yaml]
tls-cert: cert
tls-key: key
client-ca: ca
identities: who
reflection: false
policy: [bundle]
policy-state: state
policy-key: [key.pub]
unmatched-policies: warn
unmatched-saes: warn
audit: log
audit-fsync: interval
audit-key-file: audit.key
audit-prompts: true
audit-on-failure: continue
audit-mask: [/a]
audit-interval: 5
audit-max-bytes: 2048
audit-keep: 3
audit-queue: 4
audit-identity-per-minute: 5
kv-memory: 4GiB
max-num-seqs: 6
max-model-len: 7
rows: {bans: 64}
queue-limit: 8
fair-slots: 2
fair-seconds: 9
fair-share: 0.5
max-message-bytes: 4096
max-pictures: 3
max-picture-bytes: 2048
max-picture-pixels: 1000
max-picture-side: 100
limit:
  principal: {requests: 1, tokens_per_minute: 2, bytes_per_minute: 3}
  tenant: {requests: 4, tokens_per_minute: 5, bytes_per_minute: 6}
  directions: {tenant: 1, tenant_bytes: 2, total: 3, total_bytes: 4}
  requests: 7
  held_bytes: 2000
tenant-class: {gold: [a, b]}
watch-feature: ["first:3"]
sample-saes: 5
usage-every: 16
usage-state: usage
stall: 1
grace: 2
steer-first-token: true
read-first-token: true
ready-file: ready
traces: http://127.0.0.1:4318/v1/traces
"""


def test_every_setting_of_a_server_can_be_set(tmp_path: Path) -> None:
    """And, in the other direction, what is set here is all that there is."""
    here, there = (
        configured("--config", written(tmp_path, EVERY + last, f"{number}.yaml"))
        for number, last in enumerate(("host: 0.0.0.0", "unix: socket"))
    )
    # Some of these are refused with the engine on vLLM.
    in_vllm = configured(
        "--config", written(tmp_path, "model: m\nengine: vllm\ntensor-parallel-size: 2\n", "2.yaml")
    )
    default = dict(leaves(ServerConfig(model="reference").model_dump()))
    changed = {
        name
        for each in (here, there, in_vllm)
        for name, value in leaves(each.model_dump())
        if value != default.get(name)
    }
    within = {"tls": {"cert", "key", "client_ca"}, "policies": {"bundles", "state", "keys", "unmatched"}}
    within |= {"audit": set(AuditSettings.model_fields)}
    wanted = {name for name in default if name.lstrip(".") not in within}
    wanted |= {f".{room}.{name}" for room, names in within.items() for name in names}
    wanted |= {".rows.bans", ".tenant_classes.gold", ".presets.landmark"}
    assert changed == wanted
    assert here.saes[0].model_dump() == {
        "path": "a",
        "site": "layers.1.resid_post",
        "id": "first",
        "norm_scaling_factor": 2.0,
    }
    assert here.sites == ("layers.2.resid_post",)
    assert here.tenant_classes == {"gold": ("a", "b")}


def test_the_reference_model_with_eyes_is_served_under_its_name_or_refused_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "EYES", tmp_path / "eyes")
    told = CliRunner().invoke(maker, ["--model", EYES_NAME])
    assert told.exit_code != 0
    assert f"{EYES_NAME} does not ship with this version" in " ".join(told.output.split())
    (tmp_path / "eyes").mkdir()
    seeing = configured("--model", EYES_NAME)
    assert (seeing.model, seeing.name) == (str(tmp_path / "eyes"), "saegis/polyglot")
    assert [source.path for source in seeing.saes] == [str(SAE)]


def test_the_defaults_and_bounds_of_the_options_are_those_of_the_configuration() -> None:
    source = {"path": str(SAE), "id": "polyglot"}
    plain = {"model": str(MODEL), "name": "saegis/polyglot", "saes": [source]}
    assert configured() == ServerConfig.model_validate(plain)
    assert configured("--audit", "log").audit == AuditSettings(directory=Path("log"))
    groups: list[tuple[type, type[BaseModel]]] = [
        (options.Network, ServerConfig),
        (options.Limits, ServerConfig),
        (options.Audit, AuditSettings),
    ]
    seen = 0
    for group, model in groups:
        hints = get_type_hints(group, include_extras=True)
        for field in fields(group):
            option = get_args(hints[field.name])[1]
            if option.min is None or field.name not in model.model_fields or option.min < 0:
                continue
            known = model.model_fields[field.name].metadata
            least, most = (
                next((getattr(each, name) for each in known if isinstance(each, bound)), None)
                for bound, name in ((Ge, "ge"), (Le, "le"))
            )
            # What must be above zero is refused at zero by the configuration.
            assert (option.min, option.max) == (least or option.min, most), field.name
            seen += 1
    assert seen > 10


@pytest.mark.parametrize(
    ("text", "path", "name"),
    [
        ("owner/repo/folder@main", "owner/repo/folder@main", None),
        ("bridges=owner/repo", "owner/repo", "bridges"),
        ("gpt2.res-jb_1=./a=b", "./a=b", "gpt2.res-jb_1"),
        ("./a=b", "./a=b", None),
        ("~/a=b", "~/a=b", None),
        ("./=x", "./=x", None),
        ("two words=/a", "/a", "two words"),
    ],
)
def test_an_sae_may_be_given_its_id(text: str, path: str, name: str | None) -> None:
    (source,) = configured("--model", "m", "--sae", text).saes
    assert (source.path, source.id) == (path, name)


def test_check_reads_the_files_that_are_named_and_writes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, f"audit: {tmp_path}/log\npolicy-state: {tmp_path}/state\n")
    result = run("config", "check", "--config", file)
    assert result.exit_code == 0, result.output
    assert "a server can start" in result.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["server.yaml"]
    (tmp_path / "short.key").write_text("x")
    failed = run("config", "check", "--config", file, "--audit-key-file", str(tmp_path / "short.key"))
    assert (failed.exit_code, "a key has at least 32" in failed.stderr) == (1, True)
    failed = run("config", "check", "--sae", str(tmp_path / "nothing"))
    assert (failed.exit_code, "no such directory" in failed.stderr) == (1, True)


def test_the_document_has_every_setting_as_it_is_declared() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert current(text) == text, "run scripts/gen_settings.py"


def test_the_example_of_the_document_is_a_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    config = configured("--config", written(tmp_path, example))
    assert [source.id for source in config.saes] == ["bridges"]
    assert (config.limits.tenant.requests, config.rows) == (64, {"bans": 64})
