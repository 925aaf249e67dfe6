"""The commands `saegis sae`: info, check, convert and list, on files of this machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from saegis_server.cli.app import app
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats.saelens import save_sae
from tests.engine import tiny
from tests.sae.layouts import PICKLERS, WRITERS
from tests.sae.sae_cases import random_sae


def plain(*arguments: str, code: int = 0) -> Any:
    """The JSON document that a command prints."""
    done = CliRunner().invoke(app, ["sae", *arguments, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def invoke(*arguments: str, code: int = 0) -> str:
    """Standard output and error of a command."""
    done = CliRunner().invoke(app, ["sae", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


def test_info_tells_what_a_folder_is(tmp_path: Path) -> None:
    folder = WRITERS["Gemma Scope"](tmp_path, 5).folder
    told = plain("info", str(folder))
    assert (told["site"], told["model_name"], told["stated_l0"]) == (
        "layers.7.mlp_out",
        "google/gemma-2-2b",
        71.0,
    )
    told = invoke("info", str(folder))
    assert "jumprelu" in told
    assert "blocks.7.hook_mlp_out = layers.7.mlp_out" in told


def test_info_tells_how_many_features_rank_leaves_active(tmp_path: Path) -> None:
    folder = WRITERS["sparsify"](tmp_path, 4).folder
    sae = load_sae(folder)
    assert f"{sae.activation} of {sae.k}, norm none" in invoke("info", str(folder))
    assert (plain("info", str(folder))["architecture"], sae.k) == (
        sae.activation,
        plain("info", str(folder))["k"],
    )
    assert plain("check", str(folder))["valid"]


def test_group_max_is_no_layout_of_what_is_converted(tmp_path: Path) -> None:
    folder, out = WRITERS["sparsify"](tmp_path, 5).folder, tmp_path / "out"
    assert load_sae(folder).activation == "groupmax"
    assert "groupmax, which SAELens does not have" in invoke("convert", str(folder), str(out), code=1)
    assert not out.exists()


def test_convert_makes_a_pickle_one_that_is_served(tmp_path: Path) -> None:
    written = PICKLERS["dictionary_learning"](tmp_path, 5)
    out = tmp_path / "out"
    told = invoke("convert", str(written.folder.parent), str(out))
    assert f"--sae {out}" in told
    sae = load_sae(out)
    assert (sae.hook_name, sae.model_name) == (written.hook_name, written.model_name)
    x = torch.randn(8, sae.width)
    f, reconstruction = written.forward(x.double())
    torch.testing.assert_close(sae.encode(x).double(), f, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode(x), x).double(), reconstruction, rtol=1e-5, atol=1e-5)
    assert "exists already" in invoke("convert", str(written.folder), str(out), code=2)


def test_convert_takes_the_place_that_no_file_states(tmp_path: Path) -> None:
    folder, out = WRITERS["Gemma Scope 2"](tmp_path, 5).folder, tmp_path / "out"
    invoke("convert", str(folder), str(out), "--site", "blocks.2.hook_resid_pre", "--name", "tiny")
    sae = load_sae(out)
    assert (sae.hook_name, sae.model_name) == ("layers.2.resid_pre", "tiny")
    assert "is not a site" in invoke("convert", str(folder), str(tmp_path / "no"), "--site", "x", code=2)
    assert not (tmp_path / "no").exists()


def test_convert_takes_a_transcoder_to_where_transcoders_are(tmp_path: Path) -> None:
    folder, out = WRITERS["Gemma Scope 2"](tmp_path, 4).folder, tmp_path / "out"
    place = (
        "model.layers.3.pre_feedforward_layernorm.output to model.layers.3.post_feedforward_layernorm.output"
    )
    assert f"{place} = layers.3.mlp_in_to_out" in invoke("info", str(folder))
    refused = invoke("convert", str(folder), str(out), "--site", "layers.2.mlp_in", code=2)
    assert "cannot be at layers.2.mlp_in" in refused
    invoke("convert", str(folder), str(out), "--site", "layers.2.mlp_in_to_out")
    assert plain("info", str(out))["site"] == "layers.2.mlp_in_to_out"
    skip, wanted = load_sae(out).W_skip, load_sae(folder).W_skip
    assert skip is not None
    assert wanted is not None
    assert torch.equal(skip, wanted)


def test_check_measures_it_on_a_model(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(str(tmp_path / "model"))
    both = torch.cat([torch.eye(tiny.WIDTH), -torch.eye(tiny.WIDTH)])
    sae = random_sae(width=tiny.WIDTH, features=2 * tiny.WIDTH)
    zeros = torch.zeros(2 * tiny.WIDTH)
    mirror = replace(
        sae,
        W_enc=both.T.contiguous(),
        W_dec=both,
        b_enc=zeros,
        threshold=zeros.clone(),
        b_dec=torch.zeros(tiny.WIDTH),
        model_name="owner/model",
    )
    save_sae(mirror, tmp_path / "sae")
    assert "valid: " in invoke("check", str(tmp_path / "sae"))
    arguments = ("check", str(tmp_path / "sae"), "--model", str(tmp_path / "model"))
    told = plain(*arguments)
    assert told["site"] == "layers.1.resid_post"
    assert told["fvu"] == pytest.approx(0.0, abs=1e-6)
    elsewhere = (*arguments, "--site", "layers.0.resid_post")
    assert "its files state the place blocks.1.hook_resid_post" in invoke(*elsewhere, code=1)
    assert "FVU" in invoke(*elsewhere, "--unmatched-saes", "warn")
    save_sae(replace(mirror, model_name="owner/other"), tmp_path / "other")
    refused = invoke("check", str(tmp_path / "other"), "--model", str(tmp_path / "model"), code=1)
    assert "its files state the model owner/other" in refused


def test_list_tells_releases_and_their_saes() -> None:
    told = invoke("list", "gemma-scope-2b-pt")
    assert "gemma-scope-2b-pt-res-canonical" in told
    assert "gemma-scope-2b-pt-att " in told
    told = invoke("list", "gemma-scope-2b-pt-transcoders")
    assert "gemma-2-2b/0-gemmascope-transcoder-16k" in told
    assert "not read" in told
    (entry,) = plain("list", "goodfire-llama-3.1-8b-instruct")
    assert entry["standing"] == "served after saegis sae convert"
    assert "no release" in invoke("list", "nothing-of-the-kind", code=1)
