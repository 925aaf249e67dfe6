"""A transcoder from its files to a server: where it is, how it is measured, and what of it is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saegis.v1 import steering_pb2 as pb
from saegis_server.engine.api import FieldError
from saegis_server.engine.torch.site_reading import read_site
from saegis_server.policy.decide.compiled import compile_policy
from saegis_server.policy.decide.world import World
from saegis_server.policy.errors import CompileError
from saegis_server.rpc.server.sae_sources import SAMPLE_TEXT
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.steering.site import Place, Site
from tests.policy.policies import bundle
from tests.rpc import tiny
from tests.rpc.test_serve import load, mirrored, model_path

__all__ = ["model_path"]


def transcoder_of(layer: int) -> SparseAutoencoder:
    """What the tiny model's MLP adds, as well as a linear map of what it reads tells that: twice, by features
    that read what is above and below zero."""
    model, sae = tiny.model(), mirrored()
    ids = torch.tensor([tiny.tokenizer().encode(SAMPLE_TEXT)])
    read, added = (
        read_site(model, Site(layer, place), ids)[0, 1:] for place in (Place.MLP_IN, Place.MLP_OUT)
    )
    linear = torch.linalg.lstsq(read, added).solution
    return replace(
        sae,
        W_dec=sae.W_dec @ linear,
        apply_b_dec_to_input=False,
        digest="",
        stated_fvu=None,
        hook_name=Site(layer, Place.MLP_IN).transformer_lens,
        hook_name_out=Site(layer, Place.MLP_OUT).transformer_lens,
    )


def test_a_transcoder_is_served_where_its_files_say_and_measured_by_what_the_mlp_adds(
    model_path: Path, tmp_path: Path
) -> None:
    save_sae(transcoder_of(1), tmp_path / "transcoder")
    found = load(model_path, tmp_path / "transcoder")
    (loaded,) = found.catalog.entries
    through = Site(1, Place.MLP_IN_TO_OUT)
    assert loaded.site == through
    assert loaded.measured is not None
    assert 0.01 < loaded.measured.fvu < 0.9
    world = World("tiny", (through,), found.targets.widths, found.catalog, found.engine.capacity)
    banned = bundle("rules: [{id: no, ban: {features: [{sae: transcoder, index: 1}]}}]")
    with pytest.raises(CompileError, match=r"nothing can be ruled or banned at layers\.1\.mlp_in_to_out"):
        compile_policy(banned, world)
    edit = pb.Edit(operation=pb.OPERATION_CLAMP, value=1.0, direction=pb.Direction(values=[1.0] * tiny.WIDTH))
    with pytest.raises(FieldError, match=r"a direction cannot be at layers\.1\.mlp_in_to_out"):
        found.targets.resolve(edit, "direction", "edits[0]")
    for site, sae in ((str(through), mirrored()), ("layers.1.mlp_out", transcoder_of(1))):
        save_sae(sae, tmp_path / "other")
        with pytest.raises(SAEFileError, match="transcoders alone are at"):
            load(model_path, tmp_path / "other", source={"site": site})
    save_sae(replace(transcoder_of(1), hook_name="blocks.0.mlp.hook_in"), tmp_path / "crossed")
    with pytest.raises(SAEFileError, match=r"a transcoder from blocks\.0\.mlp\.hook_in to blocks\.1"):
        load(model_path, tmp_path / "crossed")
