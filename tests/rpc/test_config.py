"""The configuration: unknown keys and impossible values are refused, defaults are safe."""

from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError

from saegis_server.cli.serve import options
from saegis_server.cli.serve.configuration import configuration
from saegis_server.rpc.server.config import Address, ServerConfig
from saegis_server.rpc.server.limits import Limits


def test_the_defaults_are_safe() -> None:
    config = ServerConfig(model="m")
    assert config.is_loopback
    assert (config.host, config.metrics_host, config.tls) == ("127.0.0.1", "127.0.0.1", None)
    assert config.max_message_bytes == 4 * 2**20


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"modle": "x"}, "modle"),
        ({"port": 65536}, "port"),
        ({"host": "example.org"}, "host"),
        ({"compile": "sometimes"}, "compile"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"queue_limit": 0}, "queue_limit"),
        ({"grace_seconds": -1.0}, "grace_seconds"),
        ({"max_message_bytes": 2**40}, "max_message_bytes"),
        ({"saes": [{"path": "p", "sight": "x"}]}, "saes.0.sight"),
        ({"saes": [{"path": "p", "norm_scaling_factor": 0.0}]}, "saes.0.norm_scaling_factor"),
        ({"tls": {"cert": "c"}}, "tls.key"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ServerConfig.model_validate({"model": "m", **settings})
    assert field in [".".join(map(str, error["loc"])) for error in caught.value.errors()]


def test_two_saes_of_one_id() -> None:
    with pytest.raises(ValidationError, match="two SAEs have the same id"):
        ServerConfig.model_validate(
            {"model": "m", "saes": [{"path": "a", "id": "x"}, {"path": "b", "id": "x"}]}
        )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # noqa: S104
def test_whoever_can_be_reached_from_elsewhere_asks_who_calls(host: str) -> None:
    tls = {"cert": "c", "key": "k", "client_ca": "a"}
    with pytest.raises(ValidationError, match=r"identities: other machines can reach .* 'saegis token new'"):
        ServerConfig.model_validate({"model": "m", "host": host, "tls": tls})


@pytest.mark.parametrize(
    ("host", "loopback", "target"),
    [
        ("127.0.0.1", True, "127.0.0.1:7"),
        ("localhost", True, "localhost:7"),
        ("::1", True, "[::1]:7"),
        ("0.0.0.0", False, "127.0.0.1:7"),  # noqa: S104
        ("::", False, "[::1]:7"),
        ("192.0.2.1", False, "192.0.2.1:7"),
    ],
)
def test_where_it_listens(host: str, loopback: bool, target: str) -> None:
    config = ServerConfig(model="m", host=host, identities=Path("identities.yaml"))
    assert config.is_loopback is loopback
    assert Address(host=host, port=7, metrics_port=None).target == target


def limited(*texts: str) -> ServerConfig:
    """The configuration of a server with these limits of callers."""
    given = options.ServerOptions(options.Served(model="tiny"), limits=options.Limits(limits=list(texts)))
    return configuration(given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("tenant.requests", "sets no limit"),
        ("tenant.rubbish=3", "sets no limit"),
        ("tenant=3", "sets no limit"),
        ("user.requests=3", "sets no limit"),
        ("tenant.requests=many", "limits.tenant.requests"),
        ("tenant.requests=0", "limits.tenant.requests"),
    ],
)
def test_a_limit_that_is_none_is_told(given: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        limited(given)
    assert told in capsys.readouterr().err


def test_limits_are_set_by_name() -> None:
    limits = limited("tenant.tokens_per_minute=60000", "principal.requests=8", "requests=100").limits
    assert (limits.tenant.tokens_per_minute, limits.principal.requests, limits.requests) == (60000, 8, 100)
    assert limits.tenant.requests == Limits().tenant.requests
