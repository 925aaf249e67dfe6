"""The compile cache: whose it is, where it lies, and that nothing is made where nothing is compiled."""

import os
from pathlib import Path

import pytest

from saegis_server.engine.torch import compile_cache
from saegis_server.engine.torch.compile_cache import SETTING, CompileCacheError, Kept, keep_out, settle

OF_TORCH = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user whose home is the test's folder, and who has set nothing."""
    for name in (SETTING, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(OF_TORCH, os.sep)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_it_is_the_users_own_and_names_the_version_of_torch(tmp_path: Path) -> None:
    folder = settle()
    assert folder.parent == tmp_path / ".cache" / "saegis"
    assert "torch-2" in folder.name
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.environ[OF_TORCH] == str(folder)
    assert settle() == folder
    assert list(folder.iterdir()) == []


def test_xdg_says_where_if_it_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert settle().is_relative_to(tmp_path / "elsewhere" / "saegis")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert settle().is_relative_to(tmp_path / ".cache")


def test_what_torch_was_told_is_kept_and_until_it_is_needed_nothing_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wished = tmp_path / "wished"
    monkeypatch.setenv(OF_TORCH, str(wished))
    monkeypatch.setenv(SETTING, "")
    monkeypatch.delenv(SETTING)
    keep_out()
    keep_out()  # as the process does that a command starts
    assert os.environ[OF_TORCH] == os.sep
    assert not wished.exists()
    assert settle() == wished
    assert os.environ[OF_TORCH] == str(wished)


@pytest.mark.parametrize("setting", [SETTING, "HOME"])
def test_where_it_cannot_be_made_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv(setting, str(in_the_way / "cache"))
    with pytest.raises(CompileCacheError, match=r"cannot be kept in .* \(Not a directory\)"):
        settle()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(SETTING, str(tmp_path))
    tmp_path.chmod(0o500)
    with pytest.raises(CompileCacheError, match="Permission denied"):
        settle()


def test_one_in_which_nothing_can_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for root, who is kept out by the kind of file system alone."""
    monkeypatch.setenv(SETTING, "/proc/self/task")
    with pytest.raises(CompileCacheError, match="cannot be kept in /proc/self/task"):
        settle()


def test_one_that_others_may_write_to_is_refused_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = settle()
    folder.chmod(0o777)
    with pytest.raises(CompileCacheError, match="others than this user may write"):
        settle()
    monkeypatch.setenv(SETTING, str(folder))
    assert settle() == folder
    monkeypatch.delenv(SETTING)
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(CompileCacheError, match="others than this user may write"):
        compile_cache.settle()


def test_a_kind_is_known_once_it_has_been_compiled(tmp_path: Path) -> None:
    kept = Kept(tmp_path, ("a model", 16))
    assert not kept
    kept.note()
    assert Kept(tmp_path, ("a model", 16))
    assert not Kept(tmp_path, ("a model", 17))
