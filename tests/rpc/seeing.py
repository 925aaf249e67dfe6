"""A tiny server whose model sees pictures, with an SAE, and files of pictures."""

import io
from typing import Any

import torch
from PIL import Image

from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import Step
from saegis_server.rpc.server.config import ServerConfig
from saegis_server.rpc.server.loading import services
from saegis_server.rpc.server.premises import Premises
from saegis_server.rpc.services.shared import Services
from saegis_server.rpc.wire.prompts import PromptReader
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.catalog import LoadedSAE
from saegis_server.sae.labels import FeatureLabel, Labels
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine import seeing, tiny

SITE = Site.parse("layers.1.resid_post")
FEATURES = 32
CONTEXT = 256


def sae() -> SparseAutoencoder:
    """A random JumpReLU SAE at the tiny model's site."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return SparseAutoencoder(
        Architecture.JUMPRELU,
        W_enc=draw(tiny.WIDTH, FEATURES) / tiny.WIDTH**0.5,
        W_dec=draw(FEATURES, tiny.WIDTH) / tiny.WIDTH**0.5,
        b_dec=0.1 * draw(tiny.WIDTH),
        b_enc=0.1 * draw(FEATURES),
        threshold=0.1 * draw(FEATURES).abs(),
        name="seen",
    )


def seeing_services(settings: ServerConfig, premises: Premises, family: str = "llava") -> Services:
    """An engine over a tiny model that sees, not started, with everything around it."""
    model = seeing.make(family)
    loaded = model.loaded
    sites = {SITE: frozenset((Norm.NONE,))}
    slots = Slots(model.model, tuple(sites), max(2, settings.max_num_seqs or 4), CONTEXT, Capacity())
    step = Step(model.model, sites, slots, compiled=False, eyes=loaded.eyes)
    prompts = PromptReader(loaded.tokenizer, slots.vocabulary, loaded.eyes)
    labels = Labels([FeatureLabel(5, "a bridge", ("bridge",), ("en",), max_activation=2.0)])
    return services(settings, premises, loaded, step, prompts, [LoadedSAE(sae(), SITE, labels)])


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture."""
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def png(seed: int = 0, width: int = 24, height: int = 20) -> bytes:
    """A random picture as a PNG file."""
    return file_of(seeing.picture(seed, width, height))
