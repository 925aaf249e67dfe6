"""Targets: resolves the feature or direction that an edit or a watch names to a probe."""

from dataclasses import dataclass
from typing import Protocol

import torch

from saegis.v1 import steering_pb2
from saegis_server.engine.api import FieldError
from saegis_server.rpc.wire.problems import UnknownSiteError
from saegis_server.sae.catalog import Catalog, FoundFeature
from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site, SiteError, Widths

#: The most characters of a label that a feature is looked up by.
LONGEST_LABEL = 1024


class Target(Protocol):
    """Any message that names a feature or a direction, and a site: an edit or a watch."""

    site: str

    @property
    def feature(self) -> steering_pb2.FeatureRef: ...
    @property
    def direction(self) -> steering_pb2.Direction: ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """A resolved target: its site, its probe, and its feature; None for a direction."""

    site: Site
    probe: Probe
    feature: FoundFeature | None = None


class Targets:
    """Resolves targets against the sites of the engine and the catalog of SAEs."""

    def __init__(self, sites: tuple[Site, ...], catalog: Catalog, widths: Widths) -> None:
        self.sites = sites
        self.catalog = catalog
        self.widths = widths

    def resolve(self, message: Target, kind: str | None, path: str) -> Resolved:
        """What a target means; `kind` is which of `feature` and `direction` is set.

        Raises FieldError and the catalog's errors, with field paths that begin with `path`.
        """
        site = self.site(message.site, f"{path}.site") if message.site else None
        if kind == "feature":
            feature = self.feature(message.feature, f"{path}.feature", site, f"{path}.site")
            return Resolved(feature.site, feature.probe(), feature)
        if kind == "direction":
            site = site or self._only_site(f"{path}.site")
            return Resolved(site, self._direction(message.direction, site, f"{path}.direction"))
        raise FieldError(path, "one of feature and direction must be given")

    def written(self, message: steering_pb2.Redirection, site: Site, path: str) -> Resolved:
        """What a redirect writes at the site of what it reads.

        Raises FieldError and the catalog's errors, with field paths that begin with `path`.
        """
        kind = message.WhichOneof("target")
        if kind == "feature":
            feature = self.feature(message.feature, f"{path}.feature", site, f"{path}.feature.sae")
            return Resolved(site, feature.probe(), feature)
        if kind == "direction":
            return Resolved(site, self._direction(message.direction, site, f"{path}.direction"))
        raise FieldError(path, "one of feature and direction must be given")

    def site(self, name: str, path: str) -> Site:
        """The site of a name, in any spelling that `Site.parse` reads.

        Raises FieldError for what is no site's name, UnknownSiteError for a site that is not offered.
        """
        try:
            site = Site.parse(name)
        except SiteError as error:
            raise FieldError(path, str(error)) from error
        if site not in self.sites:
            names = ", ".join(map(str, self.sites)) or "none"
            raise UnknownSiteError(path, f"{name!r} is no site of this server; its sites: {names}", name)
        return site

    def feature(
        self, message: steering_pb2.FeatureRef, path: str, site: Site | None = None, site_path: str = "site"
    ) -> FoundFeature:
        """The feature of a reference. Raises FieldError and the catalog's errors."""
        loaded = self.catalog.sae(message.sae, f"{path}.sae", site, site_path)
        match message.WhichOneof("selector"):
            case "index":
                return self.catalog.by_index(loaded, message.index, f"{path}.index")
            case "label":
                if len(message.label) > LONGEST_LABEL:
                    described = f"at most {LONGEST_LABEL} characters, not {len(message.label)}"
                    raise FieldError(f"{path}.label", described)
                return self.catalog.by_label(loaded, message.label, f"{path}.label")
        raise FieldError(path, "one of index and label must be given")

    def _only_site(self, path: str) -> Site:
        if len(self.sites) == 1:
            return self.sites[0]
        names = ", ".join(map(str, self.sites)) or "none"
        raise FieldError(path, f"must be given for a direction; this server's sites: {names}")

    def _direction(self, message: steering_pb2.Direction, site: Site, path: str) -> Probe:
        if site.written_at != site:
            raise FieldError(path, f"a direction cannot be at {site}, which is not written where it is read")
        if len(message.values) != (width := self.widths.at(site)):
            raise FieldError(
                f"{path}.values",
                f"must have {width} numbers, as the model's activations at {site}, not {len(message.values)}",
            )
        try:
            return Probe.direction(torch.tensor(message.values, dtype=torch.float32))
        except ValueError as error:
            raise FieldError(f"{path}.values", str(error)) from error
