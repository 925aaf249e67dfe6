"""The settings of the audit log: keys, and what may be masked."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from saegis_server.audit import AuditBrokenError, AuditKeyError
from saegis_server.audit.log import AuditLog, AuditSettings
from saegis_server.audit.verify import verify
from tests.audit.logs import lines, settings, write


def test_a_keyed_chain_needs_its_key(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 64 + b"\n")
    directory = tmp_path / "log"
    write(settings(directory, key_file=key), 3)
    assert lines(directory)[0]["chain"] == "hmac-sha256"
    assert verify(directory, b"k" * 64).problems == ()
    assert len(verify(directory).problems) == 5
    assert len(verify(directory, b"l" * 64).problems) == 5
    with pytest.raises(AuditBrokenError, match="another key"):
        AuditLog(settings(directory))
    write(settings(directory, key_file=key), 1)


def test_a_short_or_missing_key_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with pytest.raises(AuditKeyError, match="No such file"):
        AuditLog(settings(tmp_path / "log", key_file=key))
    key.write_text("short\n")
    with pytest.raises(AuditKeyError, match="holds 5 bytes"):
        AuditLog(settings(tmp_path / "log", key_file=key))


@pytest.mark.parametrize(
    "pointer", ["prompt", "", "/", "/prompt/", "//label", "/edits//label", "/seq", "/hash", "/*"]
)
def test_settings_refuse_pointers_that_cannot_be_masked(tmp_path: Path, pointer: str) -> None:
    with pytest.raises(ValidationError, match=r"pointer|cannot be masked"):
        AuditSettings(directory=tmp_path, mask=(pointer,))
