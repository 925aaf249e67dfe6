"""Selectors: the features and directions that a policy names, resolved to probes at their sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from saegis_server.directions.store import KeptDirection
from saegis_server.policy.decide.world import World
from saegis_server.policy.schema.policy import (
    DirectionSelector,
    FeatureSelector,
    Target,
    Targets,
    Where,
)
from saegis_server.problem import Problem
from saegis_server.sae.catalog import CatalogError, FoundFeature, LoadedSAE
from saegis_server.sae.request_edit import EditError, redirected, scaled
from saegis_server.steering.operations import Unit
from saegis_server.steering.rows import Probe, Redirection
from saegis_server.steering.site import Site, SiteError

#: The tensors of a bundle's direction files, by path and then by name.
Directions = Mapping[str, Mapping[str, Tensor]]


class SelectionError(LookupError):
    """Selectors or values that mean nothing in the world: a problem for each, with its key as the path."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class Faults:
    """Gathers the problems of several places, so that all of them are reported and not only the first."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the problems of a SelectionError in the block, and go on after the block."""
        try:
            yield
        except SelectionError as error:
            self.problems += error.problems

    def raise_any(self) -> None:
        """Raise SelectionError with all gathered problems, if there are any."""
        if self.problems:
            raise SelectionError(*self.problems)


def _fault(path: str, message: str) -> SelectionError:
    return SelectionError(Problem(message, path))


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """One feature or direction at its site. name: what messages call it."""

    site: Site
    probe: Probe
    name: str
    feature: FoundFeature | None = None

    @property
    def key(self) -> tuple[Site, str]:
        """Its identity: its site and its probe's key."""
        return self.site, self.probe.key

    def scaled(self, value: float, unit: Unit, path: str) -> tuple[float, bool]:
        """A value in feature units or, with True, as a fraction of ‖x‖. Raises SelectionError."""
        try:
            return scaled(value, unit, self.feature, self.name)
        except EditError as error:
            raise _fault(path, str(error)) from error

    def redirected(
        self, to: Selected, factor: float, unit: Unit, strengths: tuple[float, float], path: str
    ) -> tuple[float, Redirection]:
        """The factor and the redirection of a redirect to `to` in feature units. Raises SelectionError.

        strengths: the strength, and the threshold in `unit`.
        """
        given = Redirection(to.probe, *strengths)
        try:
            return redirected(factor, unit, given, (self.feature, to.feature), (self.name, to.name))
        except EditError as error:
            raise _fault(f"{path}.{error.field}".replace(".value", ".factor"), str(error)) from error


class Selectors:
    """Resolves selectors in one world. The same feature always gives the same `Probe` object.

    directions: the tensors of the bundle's `directions/`, float32 [d] each.
    """

    def __init__(self, world: World, directions: Directions) -> None:
        self._world, self._directions = world, directions
        self._known: dict[tuple[Site, str], Selected] = {}

    def targets(self, targets: Targets, path: str) -> tuple[Selected, ...]:
        """All features and directions, each once, sorted by site and key. Raises SelectionError."""
        distinct: dict[tuple[Site, str], Selected] = {}
        faults = Faults()
        for place, feature in enumerate(targets.features):
            with faults.gathered():
                selected = self.features(feature, f"{path}.features[{place}]")
                distinct.update((target.key, target) for target in selected)
        for place, direction in enumerate(targets.directions):
            with faults.gathered():
                target = self.direction(direction, f"{path}.directions[{place}]")
                distinct[target.key] = target
        faults.raise_any()
        return tuple(
            sorted(distinct.values(), key=lambda target: (self.order(target.site), target.probe.key))
        )

    def features(self, selector: FeatureSelector, path: str) -> tuple[Selected, ...]:
        """The features that a selector names, at least one. Raises SelectionError."""
        catalog = self._world.catalog
        try:
            loaded = catalog.sae(selector.sae, f"{path}.sae")
            if selector.index is not None:
                features = [catalog.by_index(loaded, selector.index, f"{path}.index")]
            elif selector.indices is not None:
                features = [catalog.by_index(loaded, index, f"{path}.indices") for index in selector.indices]
            elif selector.label is not None:
                features = [catalog.by_label(loaded, selector.label, f"{path}.label")]
            elif selector.where is not None:
                features = _labelled(loaded, selector.where, f"{path}.where")
            else:
                raise _fault(path, "must give one of index, indices, label and where")
        except CatalogError as error:
            raise _fault(error.field, error.description) from error
        return tuple(self._feature(feature, path) for feature in features)

    def feature(self, selector: FeatureSelector, path: str) -> Selected:
        """The one feature that a selector names. Raises SelectionError for several."""
        features = self.features(selector, path)
        if len(features) > 1:
            raise _fault(path, f"must name one feature; it names {len(features)}")
        return features[0]

    def direction(self, selector: DirectionSelector, path: str) -> Selected:
        """A direction of the bundle, or one that is shipped. Raises SelectionError for one that is missing or
        does not fit."""
        if selector.file is None:
            kept = self._shipped(selector.digest, path)
            site = self._direction_site(selector.site or str(kept.site or ""), f"{path}.site")
            self._check_width(kept.probe.read, site, path)
            return self._known.setdefault((site, kept.probe.key), Selected(site, kept.probe, kept.name))
        vector, name = self._of_bundle(selector.file, selector.tensor, path)
        site = self._direction_site(selector.site, f"{path}.site")
        self._check_width(vector, site, path)
        try:
            probe = Probe.direction(vector)
        except ValueError as error:
            raise _fault(path, str(error)) from error
        return self._known.setdefault((site, probe.key), Selected(site, probe, name))

    def _shipped(self, digest: str | None, path: str) -> KeptDirection:
        for kept in self._world.directions:
            if kept.digest == digest:
                return kept
        raise _fault(f"{path}.digest", "the server ships no direction of this digest (--directions)")

    def _of_bundle(self, file: str, tensor: str, path: str) -> tuple[Tensor, str]:
        """The vector of a direction in a file of the bundle, and what messages call it."""
        tensors = self._directions.get(file)
        if tensors is None:
            known = ", ".join(sorted(self._directions)) or "none"
            raise _fault(f"{path}.file", f"{file} is not in the bundle; its files: {known}")
        vector = tensors[_tensor_name(tensors, file, tensor, path)]
        name = file.removeprefix("directions/")
        return vector, f"{name}:{tensor}" if tensor else name

    def _check_width(self, vector: Tensor, site: Site, path: str) -> None:
        if site.written_at != site:
            raise _fault(path, f"a direction cannot be at {site}, which is not written where it is read")
        if vector.shape != ((width := self._world.widths.at(site)),):
            expected = f"[{width}], as the model's activations at {site}"
            raise _fault(path, f"has the shape {list(vector.shape)}, not {expected}")

    def written(self, target: Target, site: Site, path: str) -> Selected:
        """The one feature or direction that a redirect at `site` writes. Raises SelectionError."""
        if target.feature is not None:
            selected = self.feature(target.feature, f"{path}.feature")
        elif target.direction is not None:
            # Where it is not told, a direction is at the site of what is redirected.
            at = target.direction.site or str(site)
            selected = self.direction(target.direction.model_copy(update={"site": at}), f"{path}.direction")
        else:
            raise _fault(path, "give one of feature and direction")
        if selected.site != site:
            raise _fault(path, f"{selected.name} is at {selected.site}, and what is redirected is at {site}")
        return selected

    def site(self, name: str, path: str) -> Site:
        """A site of the world, in any spelling. Raises SelectionError."""
        try:
            site = Site.parse(name)
        except SiteError as error:
            raise _fault(path, str(error)) from error
        if site not in self._world.sites:
            raise _fault(path, f"{name!r} is no site of this server; its sites: {self._sites()}")
        return site

    def order(self, site: Site) -> int:
        """The position of a site in the forward pass."""
        return self._world.sites.index(site)

    def _feature(self, feature: FoundFeature, path: str) -> Selected:
        loaded, site = feature.loaded, feature.site
        probe = loaded.sae.probe(feature.index)
        key = (site, probe.key)
        if key not in self._known:
            if site not in self._world.sites:
                raise _fault(
                    path, f"the SAE {loaded.id} is at {site}, no site of this server: {self._sites()}"
                )
            if probe.read.shape != ((width := self._world.widths.at(site)),):
                fault = f"has the width {len(probe.read)}, not the {width} of {site}"
                raise _fault(path, f"the SAE {loaded.id} {fault}")
            label = f" ({feature.label.label})" if feature.label else ""
            self._known[key] = Selected(site, probe, f"{loaded.id}:{feature.index}{label}", feature)
        return self._known[key]

    def _direction_site(self, name: str, path: str) -> Site:
        if name:
            return self.site(name, path)
        if len(self._world.sites) != 1:
            raise _fault(path, f"must be given for a direction; this server's sites: {self._sites()}")
        return self._world.sites[0]

    def _sites(self) -> str:
        return ", ".join(map(str, self._world.sites)) or "none"


def _tensor_name(tensors: Mapping[str, Tensor], file: str, tensor: str, path: str) -> str:
    if tensor in tensors:
        return tensor
    if not tensor and len(tensors) == 1:
        return next(iter(tensors))
    known = ", ".join(sorted(tensors)) or "none"
    fault = f"has no tensor {tensor!r}" if tensor else "holds several tensors; name one"
    raise _fault(f"{path}.tensor", f"{file} {fault}; it holds {known}")


def _labelled(loaded: LoadedSAE, where: Where, path: str) -> list[FoundFeature]:
    features = [FoundFeature(loaded, label.feature, label) for label in loaded.labels if fits(label, where)]
    if not features:
        conditions = ", ".join(f"{name} {value}" for name, value in where if value is not None)
        labelled = "" if len(loaded.labels) else "; none of its features is labelled"
        raise _fault(path, f"the SAE {loaded.id} has no feature with {conditions}{labelled}")
    return features


class Labelled(Protocol):
    """What is known of a labelled feature, wherever it is stored."""

    @property
    def harmful(self) -> bool: ...
    @property
    def subjects(self) -> Sequence[str]: ...
    @property
    def languages(self) -> Sequence[str]: ...
    @property
    def precision(self) -> float | None: ...


def fits(label: Labelled, where: Where) -> bool:
    """Whether a feature's label meets all conditions of `where`."""
    conditions: Sequence[bool] = (
        where.harmful is None or label.harmful == where.harmful,
        where.subject is None or where.subject in label.subjects,
        where.language is None or where.language in label.languages,
        where.min_precision is None
        or (label.precision is not None and label.precision >= where.min_precision),
    )
    return all(conditions)


def names(selected: Sequence[Selected]) -> str:
    """The first few names, for messages."""
    shown = ", ".join(target.name for target in selected[:4])
    return shown if len(selected) <= 4 else f"{shown} and {len(selected) - 4} more"
