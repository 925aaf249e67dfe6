"""A tiny random model with its tokenizer, and SAEs with labels: what the tests of this folder serve."""

from dataclasses import replace
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saegis_lab.polyglot.tokenizer import train_tokenizer
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.catalog import Catalog, LoadedSAE
from saegis_server.sae.examples import Examples
from saegis_server.sae.labels import FeatureLabel, Labels
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Place, Site

WIDTH, FEATURES, VOCABULARY, CONTEXT = 32, 48, 300, 2048
FIRST_SITE, SECOND_SITE = Site(0, Place.RESID_POST), Site(1, Place.RESID_POST)
SITES = (FIRST_SITE, SECOND_SITE)
TEXT = "The bridge is red. The river runs under the bridge. Birds sing; the day is long and warm."

LABELS = (
    FeatureLabel(
        3, "the red bridge", ("bridge",), ("en", "de"), 0.9, {"en": 0.8}, 4.0, 0.01, False, {"de": 0.7}
    ),
    FeatureLabel(5, "a river", ("river",), ("en",), max_activation=2.0),
    FeatureLabel(7, "poison", ("poison",), ("en",), max_activation=3.0, harmful=True),
    FeatureLabel(8, "twins"),
    FeatureLabel(9, "twins"),
    FeatureLabel(10, "no maximum"),
)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a chat template."""
    return train_tokenizer([TEXT] * 4, VOCABULARY, CONTEXT)


def model(head_dim: int | None = None) -> LlamaForCausalLM:
    """A random Llama of two layers, the same every time; head_dim: another width of its heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=CONTEXT,
        eos_token_id=None,
        bos_token_id=tokenizer().bos_token_id,
        pad_token_id=None,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    made: LlamaForCausalLM = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    made.train(False)
    return made


def sae(name: str, seed: int, norm: Norm = Norm.NONE) -> SparseAutoencoder:
    """A random JumpReLU SAE."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return SparseAutoencoder(
        Architecture.JUMPRELU,
        W_enc=draw(WIDTH, FEATURES) / WIDTH**0.5,
        W_dec=draw(FEATURES, WIDTH) / WIDTH**0.5,
        b_dec=0.1 * draw(WIDTH),
        b_enc=0.1 * draw(FEATURES),
        threshold=0.1 * draw(FEATURES).abs(),
        norm=norm,
        name=name,
    )


def examples(made: SparseAutoencoder) -> Examples:
    """What was gathered of an SAE whose feature 3 alone ever fired: two pieces of text, and four firings."""
    tokens = torch.full((made.features, 2, 4), -1, dtype=torch.int32)
    activations, width = torch.zeros(made.features, 2, 4), torch.zeros(made.features)
    tokens[3, 0], activations[3, 0] = torch.tensor([5, 6, 5, 7]), torch.tensor([0.0, 2.5, 2.5, 1.0])
    tokens[3, 1, 2:], activations[3, 1, 2:] = torch.tensor([8, VOCABULARY - 1]), torch.tensor([0.5, 0.0])
    counts = torch.zeros(made.features, 8, dtype=torch.int64)
    counts[3, :6], width[3] = torch.tensor([1, 0, 1, 0, 0, 2]), 0.5
    return Examples(tokens, activations, counts, width, 1000, made.digest)


def _explosive() -> SparseAutoencoder:
    made = sae("explosive", 3)
    return replace(made, W_dec=made.W_dec * 1e35, digest="")


def catalog() -> Catalog:
    """Three SAEs at two sites; the first one has labels and examples, and the third one's edits may
    overflow."""
    first = sae("first", 1)
    return Catalog(
        [
            LoadedSAE(first, FIRST_SITE, Labels(LABELS), examples=examples(first)),
            LoadedSAE(sae("second", 2), SECOND_SITE),
            LoadedSAE(_explosive(), SECOND_SITE),
        ]
    )
