"""Every layout that is read: encode and decode are those of who made it, in random configurations."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from saegis_server.sae import unpickle
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.convert import read_plain
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats import LAYOUTS, PICKLED
from tests.sae.layouts import PICKLERS, WRITERS, Written
from tests.tiers import sized

TOLERANCE = 1e-5
TOKENS = 32


def close(found: Tensor, wanted: Tensor) -> bool:
    """Equal to TOLERANCE of the largest value, or of one."""
    return bool((found.double() - wanted).abs().max() <= TOLERANCE * max(1.0, float(wanted.abs().max())))


def activations(width: int, seed: int) -> Tensor:
    """float32 [TOKENS, width], away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(TOKENS, width, generator=generator) + 0.4


def read(written: Written) -> SparseAutoencoder:
    """The SAE; a pickle is opened as in a process of its own, but in this one, which is quicker."""
    if written.folder.is_dir():
        return load_sae(written.folder)
    plain = written.folder.with_suffix(".safetensors")
    unpickle.main(str(written.folder), str(plain))
    return read_plain(written.folder, plain)


def test_every_layout_is_tried_here() -> None:
    """SAELens's own is tried against SAELens itself, in tests/parity."""
    assert {layout.name for layout in LAYOUTS} == {"SAELens", *WRITERS}
    assert {layout.name for layout in PICKLED} == set(PICKLERS)


@pytest.mark.parametrize("layout", [*WRITERS, *PICKLERS])
def test_encode_and_decode_are_those_of_its_makers(layout: str, tmp_path: Path) -> None:
    mixed = 0
    for seed in range(sized(200, 24)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        written = (WRITERS | PICKLERS)[layout](folder, seed)
        sae = read(written)
        assert (sae.hook_name, sae.model_name) == (written.hook_name, written.model_name)
        x = activations(sae.width, seed)
        f, reconstruction = written.forward(x.double())
        found = sae.encode(x)
        # A pre-activation within rounding of its threshold, or of another one, may fall on either side.
        same = ((found > 0.0) == (f > 0.0)).all(-1)
        assert float(same.float().mean()) >= 0.9
        assert close(found[same], f[same]), seed
        assert close(sae.decode(found, x)[same], reconstruction[same]), seed
        mixed += bool((f > 0.0).any() and (f == 0.0).any())
    assert mixed > 15, "both sides of the gate must be seen"


@pytest.mark.parametrize("layout", [name for name in PICKLERS if name != "dictionary_learning"])
def test_what_lies_beside_a_pickle_says_nothing_of_it(layout: str, tmp_path: Path) -> None:
    """The config.json of dictionary_learning is that of its own file."""
    written = PICKLERS[layout](tmp_path, 1)
    PICKLERS["dictionary_learning"](written.folder.parent, 1)
    sae = read(written)
    assert (sae.hook_name, sae.model_name) == (written.hook_name, written.model_name)
