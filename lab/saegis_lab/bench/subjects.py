"""What is measured: the reference model and a random Llama, with random SAEs of any width on them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from saegis_server.engine.torch.loading import load_model
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Place, Site

REFERENCE = "reference model"


@dataclass(frozen=True)
class Subject:
    """A model to measure; `make` gives a fresh copy of it on `device`, with Transformers' own attention."""

    name: str
    parameters: int
    vocabulary: int
    width: int
    site: Site
    device: torch.device
    make: Callable[[], PreTrainedModel]

    @property
    def title(self) -> str:
        """Its name and its size."""
        return f"{self.name}, {self.parameters / 1e6:.1f} M"


def _subject(name: str, original: PreTrainedModel) -> Subject:
    config = original.config.get_text_config()
    return Subject(
        name=name,
        parameters=sum(parameter.numel() for parameter in original.parameters()),
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        site=Site(config.num_hidden_layers // 2, Place.RESID_POST),
        device=original.device,
        make=lambda: copy.deepcopy(original),
    )


def reference_subject(path: str, device: str = "cpu", dtype: str = "auto") -> Subject:
    """The shipped reference model, on a device in a dtype as `load_model` knows them. Raises ValueError for a
    device that does not exist."""
    return _subject(REFERENCE, load_model(path, dtype, device).model)


def random_llama(device: str = "cpu") -> Subject:
    """A random Llama of about 30 M parameters: 8 layers of width 512, 8 query and 2 key heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model: PreTrainedModel = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.train(False).requires_grad_(False)
    return _subject("random Llama", model.to(device))  # type: ignore[arg-type]


def random_sae(width: int, features: int) -> SparseAutoencoder:
    """A random JumpReLU SAE of `features` features on activations of `width`."""
    rng = torch.Generator().manual_seed(features)
    decoder = torch.nn.functional.normalize(torch.randn(features, width, generator=rng), dim=1)
    return SparseAutoencoder(
        architecture=Architecture.JUMPRELU,
        W_enc=decoder.T.contiguous(),
        W_dec=decoder,
        b_enc=torch.zeros(features),
        b_dec=torch.zeros(width),
        threshold=torch.full((features,), 0.05),
        norm=Norm.NONE,
        apply_b_dec_to_input=False,
        name=f"random-{features}",
    )


def moved(sae: SparseAutoencoder, device: torch.device) -> SparseAutoencoder:
    """The same SAE on a device."""
    return replace(sae, **{name: tensor.to(device) for name, tensor in sae.tensors().items()})  # type: ignore[arg-type]
