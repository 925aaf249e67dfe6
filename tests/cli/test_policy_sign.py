"""`saegis policy keygen` and `saegis policy sign`."""

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saegis_server.cli.app import app
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.signing import key_id, load_public_key, verify
from tests.policy.bundles import POLICY, bundle_files, write_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "policy", bundle_files())


@pytest.fixture
def key(tmp_path: Path) -> Path:
    run("keygen", str(tmp_path / "policy.key"))
    return tmp_path / "policy.key"


def run(*arguments: str, code: int = 0) -> str:
    """What the command prints, on one line."""
    result = CliRunner().invoke(app, ["policy", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join((result.stderr if code else result.stdout).split())


def test_keygen_writes_two_files_once(key: Path) -> None:
    public = Path(f"{key}.pub")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PUBLIC" in public.read_bytes()
    before = key.read_bytes()
    assert "never overwritten" in run("keygen", str(key), code=1)
    assert key.read_bytes() == before
    told = json.loads(run("keygen", f"{key}2", "--json"))
    assert told == {
        "key": key_id(load_public_key(Path(f"{key}2.pub"))),
        "private": f"{key}2",
        "public": f"{key}2.pub",
    }


def test_a_folder_is_signed_in_place(folder: Path, key: Path) -> None:
    public = load_public_key(Path(f"{key}.pub"))
    told = run("sign", str(folder), "--key", str(key))
    assert f"signed: acme.base@2026.1, serial 3, digest {Bundle.read(folder).digest[:12]}" in told
    assert key_id(public) in told
    assert verify(Bundle.read(folder), [public]) == key_id(public)
    # Once more after a change: the old signature gives way.
    (folder / "policy.yaml").write_text(POLICY.replace("serial: 3", "serial: 4"), encoding="utf-8")
    report = json.loads(run("sign", str(folder), "--key", str(key), "--json"))
    assert (report["serial"], report["key"]) == (4, key_id(public))
    assert report["written"] == str(folder / "signature.json")
    assert verify(Bundle.read(folder), [public]) == key_id(public)


def test_an_archive_is_written_where_asked_for(folder: Path, key: Path, tmp_path: Path) -> None:
    public = load_public_key(Path(f"{key}.pub"))
    out = tmp_path / "policy.tar.gz"
    run("sign", str(folder), "--key", str(key), "--out", str(out))
    assert not (folder / "signature.json").exists()
    first = out.read_bytes()
    assert verify(Bundle.read(out), [public]) == key_id(public)
    # Ed25519 draws nothing by chance, so that signing the archive gives the same bytes.
    run("sign", str(out), "--key", str(key), "--out", str(tmp_path / "again.tar.gz"))
    assert (tmp_path / "again.tar.gz").read_bytes() == first
    assert "say with --out" in run("sign", str(out), "--key", str(key), code=2)


def test_what_stops_it_is_told(folder: Path, key: Path, tmp_path: Path) -> None:
    assert "holds no private key" in run("sign", str(folder), "--key", f"{key}.pub", code=2)
    assert "cannot be read" in run("sign", str(folder), "--key", str(tmp_path / "nowhere"), code=2)
    nowhere = str(tmp_path / "no" / "out.tar.gz")
    assert "cannot be written" in run("sign", str(folder), "--key", str(key), "--out", nowhere, code=1)
    (folder / "policy.yaml").write_text(POLICY.replace("serial", "serail"), encoding="utf-8")
    told = run("sign", str(folder), "--key", str(key), code=1)
    assert "policy.yaml:4: serail: there is no key 'serail' here; did you mean 'serial'?" in told
    assert not (folder / "signature.json").exists()
