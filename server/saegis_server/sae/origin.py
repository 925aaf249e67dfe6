"""Origin: whether an SAE was trained on the model and at the place that its files name, as it is served."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.site import Place, Site, SiteError

_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/")
#: Names of TransformerLens and Neuronpedia, without punctuation, and the models' own.
_ALIASES = {
    "gpt2small": "gpt2",
    "mistral7b": "mistral7bv01",
    "gemma2bit": "gemma2bit",
    "llama38bit": "llama38binstruct",
    "llama318bit": "llama318binstruct",
}
_MUTE = re.compile(r"[^a-z0-9]+")


def misfits(sae: SparseAutoencoder, site: Site, model_names: Iterable[str]) -> Iterator[str]:
    """In words, each thing that an SAE's files state and that differs from what is served: the model, by none
    of its names, or the place. What they do not state differs from nothing."""
    names = [name for name in model_names if name]
    if sae.model_name is not None and not any(same_model(sae.model_name, name) for name in names):
        yield f"its files state the model {sae.model_name}; served is {names[0] if names else 'another'}"
    try:
        stated = stated_site(sae)
    except SiteError:
        yield f"its files state the place {sae.hook_name}, which is no site of this server; given is {site}"
        return
    if stated not in (None, site):
        yield f"its files state the place {sae.hook_name}; given is {site}"


def stated_site(sae: SparseAutoencoder) -> Site | None:
    """The site that an SAE's files state; None if they state none. Raises SiteError for a name that is none,
    and for a transcoder from or to another place than a layer's MLP reads and adds to."""
    if sae.hook_name is None:
        return None
    stated = Site.parse(sae.hook_name)
    if sae.hook_name_out is None:
        return stated
    through, written = Site(stated.layer, Place.MLP_IN_TO_OUT), Site.parse(sae.hook_name_out)
    if (through.read_at, through.written_at) != (stated, written):
        raise SiteError(
            f"a transcoder from {sae.hook_name} to {sae.hook_name_out} is not served, but one from what a "
            "layer's MLP reads to what it adds"
        )
    return through


def same_model(stated: str, served: str) -> bool:
    """Whether two names mean one model: whoever publishes it, and however it is spelled."""
    return _plain(stated) == _plain(served)


def _plain(name: str) -> str:
    snapshot = _SNAPSHOT.search(name)
    last = snapshot["name"] if snapshot else Path(name.rstrip("/")).name
    plain = _MUTE.sub("", last.lower().removeprefix("meta-").removesuffix("-pt"))
    return _ALIASES.get(plain, plain)
