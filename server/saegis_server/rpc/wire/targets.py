"""Targets: resolves the feature or direction that an edit or a watch names to a probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from saegis.v1 import direction_pb2, steering_pb2
from saegis_server.directions.store import (
    NAME_PATTERN,
    NO_DIRECTIONS,
    AmbiguousNameError,
    KeptDirection,
    Shelf,
    is_digest,
    is_name,
)
from saegis_server.engine.api import FieldError
from saegis_server.rpc.wire.problems import UnknownDirectionError, UnknownSiteError
from saegis_server.sae.catalog import Catalog, FoundFeature
from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site, SiteError, Widths

#: A message that refers to a direction that is kept.
Reference = steering_pb2.Direction | direction_pb2.DeleteDirectionRequest
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
    """A resolved target: its site, its probe, and its feature; None for a direction. direction_name: by which
    name it was referred to, if it is a direction that is kept."""

    site: Site
    probe: Probe
    feature: FoundFeature | None = None
    direction_name: str = ""


class Targets:
    """Resolves targets against the sites of the engine and the catalog of SAEs.

    widths: of the activations there. directions: those that may be referred to.
    """

    def __init__(
        self, sites: tuple[Site, ...], catalog: Catalog, widths: Widths, directions: Shelf = NO_DIRECTIONS
    ) -> None:
        self.sites = sites
        self.catalog = catalog
        self.widths = widths
        self.directions = directions

    def with_directions(self, directions: Shelf) -> Self:
        """The same targets, with these directions to refer to."""
        return type(self)(self.sites, self.catalog, self.widths, directions)

    def resolve(self, message: Target, kind: str | None, path: str) -> Resolved:
        """What a target means; `kind` is which of `feature` and `direction` is set.

        Raises FieldError and the catalog's errors, with field paths that begin with `path`.
        """
        site = self.site(message.site, f"{path}.site") if message.site else None
        if kind == "feature":
            feature = self.feature(message.feature, f"{path}.feature", site, f"{path}.site")
            return Resolved(feature.site, feature.probe(), feature)
        if kind == "direction":
            return self._direction(message.direction, site, path)
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
            return self._direction(message.direction, site, path)
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

    def kept(self, message: Reference, prefix: str = "") -> KeptDirection:
        """The direction that a message refers to; `prefix` stands before the names of its fields.

        Raises FieldError for what is no reference or means two directions, UnknownDirectionError for what is
        not kept.
        """
        if message.WhichOneof("reference") == "digest":
            path, reference = f"{prefix}digest", message.digest
            if not is_digest(reference):
                raise FieldError(path, "a digest has 64 hexadecimal digits, in lower case")
            found = self.directions.of_digest(reference)
        else:
            path, reference = f"{prefix}name", message.name
            if not is_name(reference):
                raise FieldError(path, f"is no direction's name: {NAME_PATTERN}")
            try:
                found = self.directions.of_name(reference)
            except AmbiguousNameError as error:
                raise FieldError(path, str(error)) from error
        if found is None:
            raise UnknownDirectionError(path, reference)
        return found

    def _direction(self, message: steering_pb2.Direction, site: Site | None, path: str) -> Resolved:
        """A direction at a site, by default its own or the only one; `path` is that of its edit or watch."""
        field = f"{path}.direction"
        if not message.WhichOneof("reference"):
            site = site or self._only_site(f"{path}.site")
            _require_whole(site, field)
            return Resolved(site, self._probe(message.values, site, f"{field}.values"))
        if message.values:
            raise FieldError(field, "give either values or a reference")
        kept = self.kept(message, f"{field}.")
        if site is None and kept.site is not None and kept.site not in self.sites:
            described = f"the direction is kept at {kept.site}, no site of this server; name another"
            raise UnknownSiteError(f"{path}.site", described, str(kept.site))
        site = site or kept.site or self._only_site(f"{path}.site")
        _require_whole(site, field)
        if (wide := len(kept.probe.read)) != (width := self.widths.at(site)):
            raise FieldError(
                f"{path}.site", f"the direction has {wide} numbers, and activations {width} there"
            )
        return Resolved(site, kept.probe, direction_name=message.name)

    def vector(self, values: Sequence[float], site: Site | None, path: str) -> Tensor:
        """The numbers of a direction at a site, or of one for the residual stream, as float32 [d].

        Raises FieldError for another number of them.
        """
        width, at = (self.widths.stream, "") if site is None else (self.widths.at(site), f" at {site}")
        if len(values) != width:
            raise FieldError(
                path, f"must have {width} numbers, as the model's activations{at}, not {len(values)}"
            )
        return torch.tensor(values, dtype=torch.float32)

    def _probe(self, values: Sequence[float], site: Site, path: str) -> Probe:
        try:
            return Probe.direction(self.vector(values, site, path))
        except ValueError as error:
            raise FieldError(path, str(error)) from error


def _require_whole(site: Site, path: str) -> None:
    if site.written_at != site:
        raise FieldError(path, f"a direction cannot be at {site}, which is not written where it is read")
