"""The catalog: which SAEs the server has loaded, at which sites, and what a reference to a feature means."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.checks import Reconstruction
from saegis_server.sae.labels import FeatureLabel, Labels
from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site


class CatalogError(LookupError):
    """A reference that means no feature; `field` is the path of what is wrong, as the caller named it."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class UnknownSAEError(CatalogError):
    """No SAE of the id `sae` is loaded."""

    def __init__(self, field: str, description: str, sae: str) -> None:
        super().__init__(field, description)
        self.sae = sae


class UnknownFeatureError(CatalogError):
    """The SAE of the id `sae` has no such feature; `feature` is the index or label that was given."""

    def __init__(self, field: str, description: str, sae: str, feature: int | str) -> None:
        super().__init__(field, description)
        self.sae = sae
        self.feature = feature


class AmbiguousFeatureError(CatalogError):
    """The reference leaves open which SAE or feature is meant."""


class SAENotAtSiteError(CatalogError):
    """There is no SAE where the reference says: the one of the id `sae`, or with an empty id any."""

    def __init__(self, field: str, description: str, sae: str) -> None:
        super().__init__(field, description)
        self.sae = sae


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSAE:
    """An SAE at its site, with its labels and what was measured when it was loaded, if it was."""

    sae: SparseAutoencoder
    site: Site
    labels: Labels = field(default_factory=Labels)
    measured: Reconstruction | None = None

    @property
    def id(self) -> str:
        """The name by which requests know it."""
        return self.sae.name


@dataclass(frozen=True, slots=True, eq=False)
class FoundFeature:
    """What a reference means: a feature of an SAE. `label` is None where nobody labelled it."""

    loaded: LoadedSAE
    index: int
    label: FeatureLabel | None

    @property
    def site(self) -> Site:
        """The site that the feature lies at."""
        return self.loaded.site

    @property
    def max_activation(self) -> float | None:
        """The largest activation recorded, in feature units."""
        return None if self.label is None else self.label.max_activation

    def probe(self) -> Probe:
        """How to read and write the feature."""
        return self.loaded.sae.probe(self.index)


class Catalog:
    """The loaded SAEs by id, in the order given. Raises ValueError if two have the same id."""

    def __init__(self, entries: Sequence[LoadedSAE] = ()) -> None:
        self._by_id = {entry.id: entry for entry in entries}
        if len(self._by_id) < len(entries):
            raise ValueError("two SAEs have the same id; give each its own")

    @property
    def entries(self) -> tuple[LoadedSAE, ...]:
        """All SAEs."""
        return tuple(self._by_id.values())

    def sae(self, sae: str, path: str, site: Site | None = None, site_path: str = "site") -> LoadedSAE:
        """The SAE of an id; an empty id means the only one (at `site`, where that is given).

        `path` and `site_path` name the fields in errors. Raises UnknownSAEError, SAENotAtSiteError if the
        SAE, or any, is not loaded at `site`, and AmbiguousFeatureError if an empty id may mean several.
        """
        if sae:
            found = self._by_id.get(sae)
            if found is None:
                raise UnknownSAEError(path, f"no SAE {sae!r} is loaded; {self._known()}", sae)
            if site is not None and found.site != site:
                raise SAENotAtSiteError(
                    site_path, f"the SAE {sae} is loaded at {found.site}, not at {site}", sae
                )
            return found
        candidates = [entry for entry in self.entries if site is None or entry.site == site]
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            where = "" if site is None else f" at {site}"
            raise SAENotAtSiteError(path, f"no SAE is loaded{where}; {self._known()}", sae)
        raise AmbiguousFeatureError(path, f"name one of the {len(candidates)} SAEs; {self._known()}")

    def by_index(self, loaded: LoadedSAE, index: int, path: str) -> FoundFeature:
        """The feature of an index. Raises UnknownFeatureError."""
        if not 0 <= index < loaded.sae.features:
            last = loaded.sae.features - 1
            told = f"the SAE {loaded.id} has features 0 to {last}, not {index}"
            raise UnknownFeatureError(path, told, loaded.id, index)
        return FoundFeature(loaded, index, loaded.labels.get(index))

    def by_label(self, loaded: LoadedSAE, label: str, path: str) -> FoundFeature:
        """The feature of a label, whatever its case and accents. Raises UnknownFeatureError if it has none,
        AmbiguousFeatureError if it has several and not exactly one in the spelling given."""
        found = loaded.labels.by_label(label)
        chosen = [each for each in found if each.label == label] or found
        if len(chosen) == 1:
            return FoundFeature(loaded, chosen[0].feature, chosen[0])
        if chosen:
            several = ", ".join(map(_with_precision, chosen[:8])) + (", ..." if len(chosen) > 8 else "")
            raise AmbiguousFeatureError(
                path,
                f"{len(chosen)} features of the SAE {loaded.id} are labelled {label!r}: {several}; "
                "give one's index",
            )
        unlabelled = "" if len(loaded.labels) else "; none of them is labelled"
        told = f"the SAE {loaded.id} has no feature labelled {label!r}{unlabelled}"
        raise UnknownFeatureError(path, told, loaded.id, label)

    def _known(self) -> str:
        if not self._by_id:
            return "this server has no SAE"
        return "this server has " + ", ".join(f"{entry.id} at {entry.site}" for entry in self.entries)


def _with_precision(label: FeatureLabel) -> str:
    return str(label.feature) + ("" if label.precision is None else f" (precision {label.precision:.2f})")
