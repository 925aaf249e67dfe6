"""SAEs that decide by rank at the tests' sites, and programs of their features."""

import torch

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Norm, Phase, Redirection
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.sae.sae_cases import random_sae
from tests.steering import reference

FEATURES = 96


def _sae(seed: int, k: int, grouped: bool, norm: Norm) -> SparseAutoencoder:
    made = random_sae(
        Architecture.STANDARD,
        seed,
        norm=norm,
        name=f"ranked-{seed}",
        width=tiny.WIDTH,
        features=FEATURES,
        k=k,
        grouped=grouped,
    )
    return reference.know(made)


#: TopK, group max, and OpenAI's: TopK behind a layer norm.
SAES: dict[Site, SparseAutoencoder] = {
    site: _sae(seed, *form)
    for seed, (site, form) in enumerate(
        zip(
            tiny.SITES,
            ((9, False, Norm.NONE), (12, True, Norm.NONE), (7, False, Norm.LAYER_NORM)),
            strict=True,
        ),
        start=70,
    )
}


def program(seed: int, watches: int = 2) -> SteeringProgram:
    """Edits of every kind at every site, a rule and a ban where they can be, and watches."""
    rng, sites = torch.Generator().manual_seed(seed), {}
    for site, sae in SAES.items():
        order = torch.randperm(FEATURES, generator=rng).tolist()
        probes = [sae.probe(feature) for feature in order[:12]]
        phase = list(Phase)[seed % 3]
        edits = (
            rows.clamp(probes[0], 4.0, phase=phase),
            rows.clamp_if_active(probes[1], 3.0),
            rows.scale(probes[2], -2.0),
            rows.add(probes[3], 1.5),
            rows.redirect(probes[4], 1.5, Redirection(probes[5], 0.5)),
        )
        held = sae.norm is Norm.NONE
        sites[site] = SiteProgram(
            edits[: 1 + seed % 5],
            (rows.scale(probes[6], 0.5),),
            (rows.ban(probes[7], 1.0),) if held and seed % 2 else (),
            watches=tuple(probes[8 : 8 + watches]),
        )
    return SteeringProgram(sites)
