"""A server can start with the settings that deploy/ ships, once its files lie where they say."""

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from saegis_server.cli.app import app
from tests.deploy.test_manifests import switched_on
from tests.rpc.certificates import authority

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = [DEPLOY / "server.yaml", DEPLOY / "kubernetes" / "base" / "server.yaml"]
IDENTITIES = """
apiVersion: saegis.dev/v1
kind: Identities
principals:
  - {name: me, tenant: us, roles: [use], token_sha256: "%s"}
""" % ("0" * 64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with what an operator puts there."""
    etc, served = tmp_path / "etc" / "saegis", tmp_path / "var" / "lib" / "saegis"
    served.mkdir(parents=True)
    shutil.copytree(DEPLOY / "policies", etc / "policies")
    certificate = authority("localhost")
    for folder, name, content in (
        (etc, "identities.yaml", IDENTITIES.encode()),
        (etc / "identities", "identities.yaml", IDENTITIES.encode()),
        (etc / "tls", "tls.crt", certificate.pem),
        (etc / "tls", "tls.key", certificate.key_pem),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    return tmp_path


def checked(file: Path, root: Path, over_http: bool = False) -> str:
    """What `config check` says of a file whose paths are below `root`. over_http: with what is off there."""
    moved = root / file.name
    text = switched_on(file.read_text()) if over_http else file.read_text()
    moved.write_text(text.replace(" /", f" {root}/").replace("[/", f"[{root}/"))
    result = CliRunner().invoke(app, ["config", "check", "--config", str(moved)], env={"COLUMNS": "400"})
    return f"{result.exit_code}: {result.output}"


@pytest.mark.parametrize("over_http", [False, True])
@pytest.mark.parametrize("file", FILES, ids=["server", "kubernetes"])
def test_a_server_can_start_with_the_settings(file: Path, root: Path, over_http: bool) -> None:
    said = checked(file, root, over_http)
    assert said.startswith("0: "), said
    assert "a server can start" in said


@pytest.mark.parametrize("file", FILES, ids=["server", "kubernetes"])
def test_it_cannot_without_the_files(file: Path, root: Path) -> None:
    (folder,) = yaml.safe_load(file.read_text())["policy"]
    shutil.rmtree(root / folder[1:])
    assert not checked(file, root).startswith("0: ")
