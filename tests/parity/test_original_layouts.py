"""Files that the original libraries write, and their own encode and decode."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saegis_server.sae import unpickle
from saegis_server.sae.convert import read_plain
from saegis_server.sae.files import load_sae
from tests.sae.test_layouts import activations, close
from tests.tiers import sized
from tests.tools import original


def agrees(found: Tensor, wanted: Tensor) -> None:
    """Equal, but where a pre-activation lies within rounding of deciding otherwise."""
    same = ((found != 0.0) == (wanted != 0.0)).all(-1)
    assert float(same.float().mean()) >= 0.9
    assert close(found[same], wanted[same].double())


DICTIONARIES = {
    "AutoEncoder": ("dictionary_learning.dictionary", ()),
    "AutoEncoderNew": ("dictionary_learning.dictionary", ()),
    "GatedAutoEncoder": ("dictionary_learning.dictionary", ()),
    "JumpReluAutoEncoder": ("dictionary_learning.dictionary", ()),
    "AutoEncoderTopK": ("dictionary_learning.trainers.top_k", (4,)),
    "BatchTopKSAE": ("dictionary_learning.trainers.batch_top_k", (4,)),
    "MatryoshkaBatchTopKSAE": ("dictionary_learning.trainers.matryoshka_batch_top_k", (4, [8, 12])),
}


@pytest.mark.parametrize("name", DICTIONARIES)
@torch.no_grad()
def test_dictionary_learning(name: str, tmp_path: Path) -> None:
    module, arguments = DICTIONARIES[name]
    kind = getattr(original(module), name)
    for seed in range(sized(30, 5)):
        generator = torch.Generator().manual_seed(seed)
        theirs = kind(12, 20, *arguments)
        for parameter in theirs.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        if hasattr(theirs, "threshold"):
            theirs.threshold.fill_(0.3)
        torch.save(theirs.state_dict(), tmp_path / "ae.pt")
        trainer = {"dict_class": name, "layer": 3, "lm_name": "gpt2", "k": 4}
        (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
        unpickle.main(str(tmp_path / "ae.pt"), str(tmp_path / "plain.safetensors"))
        ours = read_plain(tmp_path / "ae.pt", tmp_path / "plain.safetensors")
        x = activations(12, seed)
        f = theirs.encode(x)
        assert bool((f > 0.0).any())
        agrees(ours.encode(x), f)
        assert close(ours.decode(f, x), theirs.decode(f).double())


@torch.no_grad()
def test_sparsify(tmp_path: Path) -> None:
    coder = original("sparsify.sparse_coder").SparseCoder
    settings = original("sparsify.config").SparseCoderConfig
    for seed in range(sized(30, 5)):
        generator = torch.Generator().manual_seed(seed)
        theirs = coder(12, settings(num_latents=20, k=1 + seed % 9))
        for parameter in theirs.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        theirs.save_to_disk(tmp_path / "layers.3")
        ours = load_sae(tmp_path / "layers.3")
        assert ours.hook_name == "layers.3"
        x = activations(12, seed)
        values, places, _ = theirs.encode(x)
        f = torch.zeros(len(x), 20).scatter(-1, places, values)
        agrees(ours.encode(x), f)
        assert close(ours.decode(f, x), theirs.decode(values, places).double())
