"""Finding an SAE's files: local directories, and the hub's snapshots without the network."""

import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from saegis_server.rpc.server.config import SAESource
from saegis_server.rpc.server.sae_sources import read_sae
from saegis_server.sae import files
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import FILES, check_sae, load_sae, resolve_sae
from saegis_server.sae.formats import LAYOUTS
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.labels import FeatureLabel, Labels
from saegis_server.sae.layout import Layout, Release
from saegis_server.steering.site import Widths
from tests.sae.sae_cases import random_sae


class FakeDownload:
    """Stands for the download alone: notes what is asked for and gives a folder of this machine."""

    def __init__(self, snapshot: Path) -> None:
        self.snapshot = snapshot
        self.calls: list[tuple[str, str | None, list[str]]] = []

    def __call__(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append((repo_id, revision, allow_patterns))
        return str(self.snapshot)


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDownload:
    fake = FakeDownload(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_a_local_directory_is_itself(tmp_path: Path, download: FakeDownload) -> None:
    assert resolve_sae(str(tmp_path)).folder == tmp_path
    assert download.calls == []


@pytest.mark.parametrize(
    ("spec", "repo", "folder", "revision"),
    [
        ("owner/repo", "owner/repo", "", None),
        ("owner/repo@v1.0", "owner/repo", "", "v1.0"),
        ("owner/my.repo-2b/layer_3/width_16k", "owner/my.repo-2b", "layer_3/width_16k", None),
        ("owner/repo/a/b@refs/pr/7", "owner/repo", "a/b", "refs/pr/7"),
    ],
)
def test_hub_ids(spec: str, repo: str, folder: str, revision: str | None, download: FakeDownload) -> None:
    save_sae(random_sae(), download.snapshot / folder)
    path = resolve_sae(spec).folder
    assert path == download.snapshot / folder
    assert load_sae(path).features
    assert download.calls == [(repo, revision, [f"{folder}/{name}".lstrip("/") for name in FILES])]


def test_all_that_training_and_labelling_write_comes_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for the hub gives what is asked for, and no more."""
    repository, snapshot = tmp_path / "repository", tmp_path / "snapshot"
    sae = replace(random_sae(), hook_name="blocks.0.hook_resid_post")
    save_sae(sae, repository / "layer_0", "a text of its own")
    Labels([FeatureLabel(1, "bridge")]).save(repository / "layer_0")
    (repository / "layer_0" / "checkpoint.pt").write_bytes(b"no business of a server")

    def downloaded(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        for name in allow_patterns:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            if (repository / name).exists():
                shutil.copy(repository / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloaded)
    placed = read_sae(SAESource(path="owner/repo/layer_0"), Widths(sae.width))
    assert placed.sample == "a text of its own"
    assert len(placed.loaded.labels) == 1
    assert {path.name for path in (repository / "layer_0").iterdir()} - {
        path.name for path in (snapshot / "layer_0").iterdir()
    } == {"checkpoint.pt"}


@pytest.mark.parametrize("name", ["features.jsonl", "sample.txt"])
def test_a_link_to_nothing_is_not_an_absent_file(tmp_path: Path, name: str) -> None:
    """As in the hub's cache, whose files are links to blobs, copied without them."""
    sae = replace(random_sae(), hook_name="blocks.0.hook_resid_post")
    save_sae(sae, tmp_path)
    (tmp_path / name).symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(SAEFileError, match=f"{name}: cannot be read"):
        read_sae(SAESource(path=str(tmp_path)), Widths(sae.width))


@pytest.mark.parametrize(
    "spec", ["", "nowhere", "./a/b", "/no/such/place", "a/../b", "a/b/../c", "a/b/*", "a b/c", "a/b@"]
)
def test_neither_directory_nor_hub_id(
    spec: str, download: FakeDownload, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if not spec:
        spec = "missing"
    with pytest.raises(SAEFileError, match="no such directory, and not a hub id of the form") as caught:
        resolve_sae(spec)
    assert caught.value.path == spec
    assert download.calls == []


@pytest.mark.parametrize("spec", ["~nobody-of-this-name/sae", "a" * 5000])
def test_names_that_the_system_refuses(spec: str, download: FakeDownload) -> None:
    with pytest.raises(SAEFileError, match="cannot be looked up"):
        resolve_sae(spec)
    assert download.calls == []


def test_a_file_is_refused(tmp_path: Path, download: FakeDownload) -> None:
    save_sae(random_sae(), tmp_path)
    with pytest.raises(SAEFileError, match="is a file; give the directory"):
        resolve_sae(str(tmp_path / "cfg.json"))


def test_a_folder_is_in_the_layout_of_which_it_holds_the_most_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def read(folder: Path, name: str, release: Release) -> SparseAutoencoder:
        return replace(random_sae(), name=name)

    other = Layout("theirs", files=("cfg.json", "other.safetensors"), check=seen.append, read=read, origin="")
    monkeypatch.setattr(files, "LAYOUTS", (*LAYOUTS, other))
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(SAEFileError, match=r"cfg\.json: d_in is None"):
        load_sae(tmp_path)
    (tmp_path / "other.safetensors").touch()
    assert load_sae(tmp_path, name="theirs").name == "theirs"
    check_sae(str(tmp_path))
    assert seen == [tmp_path]


def test_a_repository_without_the_folder(download: FakeDownload) -> None:
    with pytest.raises(SAEFileError, match=r"the repository owner/repo has no layer_9/cfg\.json"):
        resolve_sae("owner/repo/layer_9")


def test_offline_reads_the_cache_and_refuses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub library's own offline mode, with a cache in its real layout."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--owner--cached"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    save_sae(random_sae(), repo / "snapshots" / commit / "layer_2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_sae(resolve_sae("owner/cached/layer_2").folder).features
    with pytest.raises(SAEFileError, match="neither a local directory nor to be had from the hub") as caught:
        resolve_sae("owner/absent/layer_2")
    assert caught.value.path == "owner/absent/layer_2"
