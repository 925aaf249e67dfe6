"""The catalog: the loaded SAEs with their sites, and the features that references mean."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.checks import Reconstruction
from saegis_server.sae.examples import Examples
from saegis_server.sae.labels import FeatureLabel, Labels
from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site


class CatalogError(LookupError):
    """A reference that means no feature; `field` is the path of the fault, as the caller named it."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class UnknownSAEError(CatalogError):
    """No SAE with the id `sae` is loaded."""

    def __init__(self, field: str, description: str, sae: str) -> None:
        super().__init__(field, description)
        self.sae = sae


class UnknownFeatureError(CatalogError):
    """The SAE with the id `sae` has no such feature; `feature` is the requested index or label."""

    def __init__(self, field: str, description: str, sae: str, feature: int | str) -> None:
        super().__init__(field, description)
        self.sae = sae
        self.feature = feature


class AmbiguousFeatureError(CatalogError):
    """The reference leaves open which SAE or feature is meant."""


class SAENotAtSiteError(CatalogError):
    """The SAE with the id `sae` is not at the site of the reference; if the id is empty, no SAE is."""

    def __init__(self, field: str, description: str, sae: str) -> None:
        super().__init__(field, description)
        self.sae = sae


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSAE:
    """An SAE at its site, with its labels and, if it was measured when loaded, its reconstruction. examples:
    where its features fire, if that was gathered."""

    sae: SparseAutoencoder
    site: Site
    labels: Labels = field(default_factory=Labels)
    measured: Reconstruction | None = None
    examples: Examples | None = None

    @property
    def id(self) -> str:
        """The name by which requests know it."""
        return self.sae.name


@dataclass(frozen=True, slots=True, eq=False)
class FoundFeature:
    """The feature of an SAE that a reference means. `label` is None if it has none."""

    loaded: LoadedSAE
    index: int
    label: FeatureLabel | None

    @property
    def site(self) -> Site:
        """The site of the feature."""
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
        """The SAE with this id; an empty id means the only one (at `site`, if that is given).

        `path` and `site_path` name the fields in errors. Raises UnknownSAEError; SAENotAtSiteError if the SAE
        or, for an empty id, any is not at `site`; and AmbiguousFeatureError if an empty id may mean several.
        """
        if sae:
            loaded = self._by_id.get(sae)
            if loaded is None:
                raise UnknownSAEError(path, f"no SAE {sae!r} is loaded; {self._known()}", sae)
            if site is not None and loaded.site != site:
                raise SAENotAtSiteError(
                    site_path, f"the SAE {sae} is loaded at {loaded.site}, not at {site}", sae
                )
            return loaded
        candidates = [entry for entry in self.entries if site is None or entry.site == site]
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            where = "" if site is None else f" at {site}"
            raise SAENotAtSiteError(path, f"no SAE is loaded{where}; {self._known()}", sae)
        raise AmbiguousFeatureError(path, f"name one of the {len(candidates)} SAEs; {self._known()}")

    def by_index(self, loaded: LoadedSAE, index: int, path: str) -> FoundFeature:
        """The feature with this index. Raises UnknownFeatureError."""
        if not 0 <= index < loaded.sae.features:
            last = loaded.sae.features - 1
            description = f"the SAE {loaded.id} has features 0 to {last}, not {index}"
            raise UnknownFeatureError(path, description, loaded.id, index)
        return FoundFeature(loaded, index, loaded.labels.get(index))

    def by_probe(self, site: Site, key: str) -> FoundFeature | None:
        """The feature whose probe at a site has this key; None for a direction."""
        kind, _, rest = key.partition(":")
        digest, _, index = rest.rpartition(":")
        if kind != "sae":
            return None
        found = (entry for entry in self.entries if entry.site == site and entry.sae.digest == digest)
        loaded = next(found, None)
        return None if loaded is None else self.by_index(loaded, int(index), "key")

    def by_label(self, loaded: LoadedSAE, label: str, path: str) -> FoundFeature:
        """The feature with this label, whatever its case and accents.

        Raises UnknownFeatureError if there is none, and AmbiguousFeatureError if there are several and not
        exactly one of them is spelled like this.
        """
        candidates = loaded.labels.by_label(label)
        chosen = [candidate for candidate in candidates if candidate.label == label] or candidates
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
        description = f"the SAE {loaded.id} has no feature labelled {label!r}{unlabelled}"
        raise UnknownFeatureError(path, description, loaded.id, label)

    def _known(self) -> str:
        if not self._by_id:
            return "this server has no SAE"
        return "this server has " + ", ".join(f"{entry.id} at {entry.site}" for entry in self.entries)


def _with_precision(label: FeatureLabel) -> str:
    return str(label.feature) + ("" if label.precision is None else f" (precision {label.precision:.2f})")
