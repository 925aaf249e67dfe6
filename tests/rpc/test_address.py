"""Where a server listens: ports that are taken, and a Unix socket that is its owner's and its own."""

import os
import socket
import stat
from pathlib import Path

import pytest

import saegis
from saegis_server.rpc.server.address import LONGEST_PATH, UnixSocket, check_port
from tests.rpc.harness import Running, config, running


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("localhost", socket.AF_INET)])
def test_a_port_that_is_taken_is_named_with_its_option(host: str, family: socket.AddressFamily) -> None:
    with socket.create_server(("127.0.0.1", 0), family=family) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of {host} is taken: .* --metrics-port"):
            check_port(host, port, "--metrics-port")
    check_port(host, port, "--metrics-port")


def test_an_address_of_another_machine_is_no_place_to_listen() -> None:
    with pytest.raises(OSError, match=r"cannot listen on port 0 of 192\.0\.2\.1"):
        check_port("192.0.2.1", 0, "--port")


@pytest.mark.parametrize("key", ["port", "metrics_port"])
def test_the_start_names_the_port_that_is_taken(key: str, served: Running) -> None:
    taken = {"port": served.address.port, "metrics_port": served.address.metrics_port}[key]
    with pytest.raises(OSError, match=f"port {taken} of 127.0.0.1 is taken"):
        Running(config(**{key: taken}))


def test_a_unix_socket_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "saegis.sock"
    mask = os.umask(0o022)
    with running(unix=path) as server:
        assert os.umask(mask) == 0o022
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert server.target == f"unix:{path}"
        with saegis.Client(server.target) as client:
            assert client.healthy()
            assert client.generate("the river", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
    assert not path.exists()


def test_a_second_server_leaves_the_socket_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "saegis.sock"
    with running(unix=path) as server:
        with pytest.raises(OSError, match="another server listens there"):
            Running(config(unix=path))
        with saegis.Client(server.target) as client:
            assert client.healthy()


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "saegis.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert path.exists()
    with running(unix=path) as server, saegis.Client(server.target) as client:
        assert client.healthy()


def test_what_another_program_has_there_is_left(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="another server listens there"):
            UnixSocket(path)
        assert path.exists()
    file = tmp_path / "notes.txt"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(OSError, match="is no socket"):
        UnixSocket(file)
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"at most {LONGEST_PATH} bytes"):
        UnixSocket(tmp_path / ("x" * LONGEST_PATH))
    with pytest.raises(FileNotFoundError):
        UnixSocket(tmp_path / "missing" / "saegis.sock")


def test_a_socket_of_a_server_that_asks_who_calls(tmp_path: Path) -> None:
    """The file's mode lets the owner's programs connect; identities ask them who they are all the same."""
    path = tmp_path / "saegis.sock"
    identities = tmp_path / "identities.yaml"
    identities.write_text("apiVersion: saegis.dev/v1\nkind: Identities\nprincipals: []\n", encoding="utf-8")
    with (
        running(unix=path, identities=identities) as server,
        saegis.Client(server.target) as client,
        pytest.raises(saegis.Unauthenticated),
    ):
        client.load()
