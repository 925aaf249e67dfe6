"""SAE sources: reads the SAEs of a configuration, places them at their sites, and checks them there."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from saegis_server.amounts import in_units
from saegis_server.host_memory import free_host_bytes
from saegis_server.policy.errors import Unmatched
from saegis_server.rpc.server.config import SAESource
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.catalog import LoadedSAE
from saegis_server.sae.checks import check_reconstruction, largest_fvu, measure, stated_fit
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import FILES, load_sae, resolve_sae
from saegis_server.sae.labels import Labels
from saegis_server.sae.layout import SAMPLE_FILE, weigh
from saegis_server.sae.left_out import left_out
from saegis_server.sae.origin import misfits, stated_site
from saegis_server.steering.site import Place, Site, SiteError, Widths

log = logging.getLogger("saegis.rpc")

#: Calls a function with the activations [1, T, d] of some tokens at each of the model's sites.
Survey = Callable[[Sequence[int], Callable[[Site, Tensor], None]], None]
#: The metadata key of an SAE that `saegis train sae` made.
TRAINED_BY = "saegis_version"
#: Tokens on which an SAE is checked. The first is left out, since its norm is an outlier.
CHECKED_TOKENS = 512
#: What an SAE of this many bytes takes is told.
_LARGE = 2**30
#: On a wide SAE fewer are checked, so many that this many numbers are encoded; still enough to see a misfit.
_CHECKED_NUMBERS, _FEWEST_CHECKED = 2**26, 64


@dataclass(frozen=True, slots=True, eq=False)
class PlacedSAE:
    """An SAE read from its files in `folder` but not checked; `sample` is its own text for the check, if it
    has one."""

    loaded: LoadedSAE
    sample: str | None
    folder: Path


def read_sae(source: SAESource, widths: Widths, tell: Callable[[str], None] = log.info) -> PlacedSAE:
    """Read one SAE; `widths` are those of the model's activations. tell: hears what memory a large one takes,
    before it is taken.

    Raises SAEFileError, which names the file and the reason, if it cannot be read, its site is not known, its
    width differs, or there is no memory for it.
    """
    found = resolve_sae(source.path)
    path, release = found.folder, found.release
    if source.norm_scaling_factor is not None:
        release = replace(release, norm_scaling_factor=source.norm_scaling_factor)
    _require_memory(path, tell)
    sae = load_sae(path, name=source.id, release=release)
    site = _site(source, sae, path)
    if sae.width != (width := widths.at(site)):
        raise SAEFileError(
            path, f"the SAE reads activations of width {sae.width}; the model's are {width} wide at {site}"
        )
    labels = Labels.load(path, sae.features)
    sample = _sample(path)
    if sample is None and TRAINED_BY in sae.metadata:
        log.warning(
            "%s: there is no %s, which `saegis train sae` wrote beside the weights; copy it too",
            path,
            SAMPLE_FILE,
        )
    return PlacedSAE(LoadedSAE(sae, site, labels), sample, path)


def _site(source: SAESource, sae: SparseAutoencoder, path: Path) -> Site:
    """Where an SAE is served: at the site that is given, else where its files say. Raises SAEFileError."""
    try:
        site = Site.parse(source.site) if source.site else stated_site(sae)
    except SiteError as error:
        stated = "the site given" if source.site else "the hook_name of its files"
        raise SAEFileError(path, f"{stated} cannot be used: {error}") from error
    if site is None:
        raise SAEFileError(path, "its files state no hook_name; say at which site it belongs")
    if (site.read_at == site) != (sae.hook_name_out is None):
        what = "it is no transcoder" if sae.hook_name_out is None else "it is a transcoder"
        raise SAEFileError(
            path, f"{what}, and transcoders alone are at layers.<number>.{Place.MLP_IN_TO_OUT}"
        )
    return site


def check_origin(
    placed: PlacedSAE, names: Sequence[str], has_layer_norms: bool, unmatched: Unmatched
) -> None:
    """Raise SAEFileError if the files of an SAE name another model or place than it is served at, unless that
    is only to be warned of; and if it reads a centred stream, and the model has no layer norms.

    names: what the served model is called.
    """
    sae, site = placed.loaded.sae, placed.loaded.site
    if sae.centred and not has_layer_norms:
        raise SAEFileError(
            placed.folder,
            "center_writing_weights: it reads the stream without its mean, and this model, which has no "
            "layer norms, cannot be centred",
        )
    for misfit in misfits(sae, site, names):
        if unmatched is Unmatched.REFUSE:
            raise SAEFileError(placed.folder, f"{misfit}; serve it anyway with --unmatched-saes warn")
        log.warning("%s: %s", placed.folder, misfit)


def _require_memory(folder: Path, tell: Callable[[str], None]) -> None:
    """Tell what a large SAE takes; raise SAEFileError where there is no memory for it."""
    for path in (folder / name for name in FILES if name.endswith(".safetensors")):
        if not path.is_file():
            continue
        weight, free = weigh(path), free_host_bytes()
        if weight.copied > free:
            raise SAEFileError(
                path, f"takes {in_units(weight.copied)} of memory as float32, but {in_units(free)} are free"
            )
        if weight.copied + weight.mapped >= _LARGE:
            tell(
                f"{path}: {in_units(weight.copied)} of memory, of {in_units(free)} that are free; "
                f"{in_units(weight.mapped)} stay in the file"
            )


def _sample(path: Path) -> str | None:
    file = path / SAMPLE_FILE
    if not os.path.lexists(file):
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SAEFileError(file, f"cannot be read: {error}") from error
    if not text.strip():
        raise SAEFileError(file, "is empty; copy it again, or take it away for the built-in text")
    return text


def check_sae(
    placed: PlacedSAE,
    encode: Callable[[str], Sequence[int]],
    capture: Callable[[Sequence[int], Site], Tensor],
    survey: Survey,
    max_length: int,
    special: frozenset[int] = frozenset(),
) -> LoadedSAE:
    """The SAE with its fit at its site, measured without the tokens that it was not trained on.

    It is checked on its own sample or, without one, on the built-in text. On the built-in text the FVU may be
    higher than its file states: then it is accepted, with a warning, if no other site has a lower FVU.

    encode: returns a text's token ids; capture: returns the activations [T, d] of tokens at a site;
    special: the tokenizer's special tokens. Raises SAEMismatch.
    """
    sae, site = placed.loaded.sae, placed.loaded.site
    own = placed.sample is not None
    text = placed.sample if placed.sample is not None else SAMPLE_TEXT
    enough = max(_FEWEST_CHECKED, min(CHECKED_TOKENS, _CHECKED_NUMBERS // sae.features))
    tokens = list(encode(text))[: min(enough, max_length)]
    kept, written = ~left_out(tokens, sae, special, first=1), site.written_at
    wanted = None if written == site else capture(tokens, written).cpu()[kept]

    def elsewhere() -> dict[str, float]:
        fvus: dict[str, float] = {}

        def visit(other: Site, x: Tensor) -> None:
            with suppress(ValueError):  # A site without a meaningful FVU is no better fit.
                fvus[str(other)] = measure(sae, x[0].cpu()[kept], wanted).fvu

        survey(tokens, visit)
        fvus.pop(str(site.read_at), None)
        return fvus

    name = f"its {SAMPLE_FILE}" if own else f"the built-in text, since it has no {SAMPLE_FILE}"
    activations = capture(tokens, site.read_at).cpu()[kept]
    measured = check_reconstruction(sae, activations, str(site), name, None if own else elsewhere, wanted)
    if measured.fvu > largest_fvu(sae.stated_fvu):
        log.warning(
            "the SAE %s: measured at %s on %s, its FVU is %.3g and its L0 %.3g; %s, which is of other text. "
            "It is taken, since at every other site of the model its FVU on the built-in text is no lower",
            *(sae.name, site, name, measured.fvu, measured.l0, stated_fit(sae)),
        )
    return replace(placed.loaded, measured=measured)


SAMPLE_TEXT = """\
The river rises in the hills above the town and runs for forty miles before it reaches the sea. In
spring, when the snow melts, it floods the meadows on both sides, and the farmers move their cattle to
higher ground. There has been a bridge here since the twelfth century. The present one was built of grey
stone in 1784, after the old one had been carried away by ice, and it still bears the traffic of the
road between the two market towns.

"How long have you lived here?" she asked him. "All my life," he said, "and my father before me. He kept
the mill until it closed. After that he worked on the railway." They walked on without speaking. It had
begun to rain, and the lamps along the street were already lit although it was not yet five o'clock.

Researchers at the university reported on Tuesday that the new method reduces the energy needed by about
a third. The study followed 1,248 patients over six years; those who exercised at least three times a
week had a lower risk of heart disease (p < 0.01). The authors warn, however, that the sample was small
and that more work is needed.

To make the dough, mix 500 g of flour with a teaspoon of salt, add 320 ml of warm water and a little
yeast, and knead it for ten minutes. Let it rest under a damp cloth until it has doubled in size. Bake
at 230 degrees for thirty-five minutes. Let the bread cool on a rack before you cut it.

Der Zug nach Hamburg hatte an diesem Morgen zwanzig Minuten Verspätung, und auf dem Bahnsteig standen viele
Leute.
La casa de mi abuela estaba al final del pueblo, cerca de un huerto donde crecían naranjos y limoneros.
Le musée est ouvert tous les jours sauf le lundi; l'entrée est gratuite le premier dimanche du mois.
Вечером мы сидели на берегу и смотрели, как солнце медленно садится за дальний лес.

def mean(values):
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

The committee will meet again on the ninth of March to decide whether the proposal should be put to a
vote. Until then, members may send their comments to the secretary. Questions about the budget should be
addressed to the treasurer, who will answer them in writing before the end of the month.
"""
