"""SAE sources: the SAEs of a configuration read from their files, put at their sites, and checked there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from saegis_server.engine.sites import Site, SiteError
from saegis_server.rpc.config import SAESource
from saegis_server.rpc.sample_text import SAMPLE_TEXT
from saegis_server.sae.catalog import LoadedSAE
from saegis_server.sae.checks import check_reconstruction
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.hub import resolve_sae
from saegis_server.sae.labels import Labels
from saegis_server.sae.left_out import left_out
from saegis_server.sae.saelens import load_sae
from saegis_server.sae.writer import SAMPLE_FILE

#: Tokens on which an SAE is checked; the first is left out, whose norm is a model's outlier.
CHECKED_TOKENS = 512


@dataclass(frozen=True, slots=True, eq=False)
class PlacedSAE:
    """An SAE read from its files, not yet checked; `sample` is the text to check it on."""

    loaded: LoadedSAE
    site: Site
    sample: str


def read_sae(source: SAESource, width: int) -> PlacedSAE:
    """Read one SAE; `width` is that of the model's activations.

    Raises SAEFileError, which names the file and the reason, for anything that cannot be read, does not say
    its site, or is of another width.
    """
    path = resolve_sae(source.path)
    sae = load_sae(path, name=source.id, norm_scaling_factor=source.norm_scaling_factor)
    if sae.width != width:
        raise SAEFileError(
            path, f"the SAE reads activations of width {sae.width}; the model's are {width} wide"
        )
    name = source.site or sae.hook_name
    if name is None:
        raise SAEFileError(path, "its cfg.json states no hook_name; say at which site it belongs")
    try:
        site = Site.parse(name)
    except SiteError as error:
        stated = "the site given" if source.site else "the hook_name of its cfg.json"
        raise SAEFileError(path, f"{stated} cannot be used: {error}") from error
    labels = Labels.load(path, sae.features)
    return PlacedSAE(LoadedSAE(sae, str(site), labels), site, _sample(path))


def _sample(path: Path) -> str:
    try:
        return (path / SAMPLE_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return SAMPLE_TEXT
    except (OSError, UnicodeDecodeError) as error:
        raise SAEFileError(path / SAMPLE_FILE, f"cannot be read: {error}") from error


def check_sae(
    placed: PlacedSAE,
    encode: Callable[[str], Sequence[int]],
    capture: Callable[[Sequence[int]], Tensor],
    max_length: int,
    special: frozenset[int] = frozenset(),
) -> LoadedSAE:
    """The SAE with what was measured at its site, without the tokens that it was not trained on.

    encode: a text's token ids; capture: tokens' activations at the SAE's site, [T, d]; special: the
    tokenizer's special tokens. Raises SAEMismatch.
    """
    tokens = list(encode(placed.sample))[: min(CHECKED_TOKENS, max_length)]
    sae = placed.loaded.sae
    activations = capture(tokens).cpu()[~left_out(tokens, sae, special, first=1)]
    measured = check_reconstruction(placed.loaded.sae, activations, placed.loaded.site)
    return replace(placed.loaded, measured=measured)
