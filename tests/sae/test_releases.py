"""The names that people have, looked up in SAELens's own table, without the network."""

import re
from pathlib import Path

import pytest

from saegis_server.sae import releases
from saegis_server.sae.coverage import Standing, coverage
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import check_sae, hub_place, load_sae, resolve_sae
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.releases import CENTRED, by_name, release, release_names, said_of
from scripts.gen_saes import DOCUMENT, current
from tests.sae.sae_cases import random_sae
from tests.sae.test_files import FakeDownload, download

__all__ = ["download"]


@pytest.mark.parametrize(
    ("name", "repo", "path"),
    [
        (
            "gemma-scope-2b-pt-res-canonical/layer_20/width_16k/canonical",
            "google/gemma-scope-2b-pt-res",
            "layer_20/width_16k/average_l0_71",
        ),
        ("gpt2-small/8-res-jb", "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre"),
        ("google/gemma-scope-9b-it-res/layer_9", "google/gemma-scope-9b-it-res", "layer_9"),
    ],
)
def test_a_name_is_a_place_on_the_hub(name: str, repo: str, path: str) -> None:
    place = hub_place(name)
    assert place is not None
    assert (place.repo, place.path, place.revision) == (repo, path, None)
    check_sae(name)


def test_a_release_without_such_an_sae_tells_those_that_are_like_it() -> None:
    with pytest.raises(SAEFileError, match=r"has no SAE layer_20/width_16; it has layer_20/width_16k"):
        by_name("gemma-scope-2b-pt-res-canonical/layer_20/width_16")


def test_a_release_whose_files_are_pickles_says_so() -> None:
    with pytest.raises(SAEFileError, match="convert it with: saegis sae convert goodfire-llama"):
        check_sae("goodfire-llama-3.1-8b-instruct/layer_19")


def test_what_the_table_says_counts_for_the_hub_id_too(download: FakeDownload) -> None:
    repo, folder = "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre"
    save_sae(random_sae(), download.snapshot / folder)
    for spec in (f"{repo}/{folder}", "gpt2-small/8-res-jb", f"gpt2-small-res-jb/{folder}"):
        found = resolve_sae(spec)
        assert load_sae(found.folder, release=found.release).centred, spec
    assert not load_sae(download.snapshot / folder).centred
    factor = said_of("tommmcgrath/gpt2-small-mlp-out-saes", "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1")
    assert factor.norm_scaling_factor == pytest.approx(1.0493, abs=1e-4)


def test_a_folder_of_the_hubs_cache_is_known_by_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "models--jbloom--GPT2-Small-SAEs-Reformatted" / "snapshots" / "1f" / "blocks.8"
    save_sae(random_sae(), folder)
    assert resolve_sae(str(folder)).release.overrides


def test_centred_releases_are_known_without_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    centred = {
        entry.repo
        for name in release_names()
        if "center_writing_weights" in releases._blocks()[name]
        for entry in release(name)
        if entry.said.overrides["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    }
    assert centred == CENTRED
    monkeypatch.setattr(releases, "_blocks", dict)
    assert said_of("jbloom/GPT2-Small-SAEs-Reformatted", "anything").overrides
    assert by_name("gpt2-small/8-res-jb") is None
    monkeypatch.setattr("saegis_server.sae.files.table_file", lambda: None)
    with pytest.raises(SAEFileError, match="are known where the package sae-lens is installed"):
        check_sae("gemma:x")


def test_the_standing_of_releases() -> None:
    standings = {
        "gemma-scope-2b-pt-mlp": {Standing.SERVED},
        "gemma-scope-2b-pt-att": {Standing.SERVED},
        "gemma-scope-2-270m-it-res-all": {Standing.SERVED},
        "gemma-scope-2-270m-it-transcoders": {Standing.SERVED},
        "llama_scope_lxr_8x": {Standing.SERVED},
        "qwen-scope-3-8b-base-w64k-l50": {Standing.CONVERTED},
        "sae_bench_pythia70m_sweep_gated_ctx128_0730": {Standing.CONVERTED},
        "gpt2-small-resid-post-v5-32k": {Standing.SERVED},
        "gpt2-small-resid-mid-v5-32k": {Standing.SERVED},
        "goodfire-llama-3.1-8b-instruct": {Standing.CONVERTED},
    }
    for name, wanted in standings.items():
        assert {coverage(entry).standing for entry in release(name)} == wanted, name


def test_the_document_is_current() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert current(text) == text, "run scripts/gen_saes.py"
    assert re.search(r"has 1\d\d releases", text)
