"""Policies for tests: written as YAML, compiled for the tiny world, and requests to decide on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from textwrap import dedent, indent

import torch
from safetensors.torch import save

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.compiled import CompiledPolicy, compile_policy
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import Decision, Denial, RequestFacts
from saegis_server.policy.decide.uses import UseOfRequest
from saegis_server.policy.decide.world import World
from saegis_server.sae.catalog import Catalog, FoundFeature
from saegis_server.sae.request_edit import RequestEdit, Wish, request_edit
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.rows import Phase, Probe
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Capacity
from tests.rpc import tiny

CATALOG = tiny.catalog()
WORLD = World("tiny", tiny.SITES, Widths(tiny.WIDTH), CATALOG, Capacity())

_HEAD = """\
apiVersion: saegis.dev/v1
kind: Policy
name: {name}
serial: {serial}
revision: r{serial}
"""
_CASES = """\
apiVersion: saegis.dev/v1
kind: PolicyCases
cases:
"""


def bundle(
    text: str = "",
    *,
    name: str = "p",
    serial: int = 1,
    cases: str = "",
    directions: Mapping[str, torch.Tensor] | None = None,
    parts: Iterable[str] = (),
) -> Bundle:
    """A bundle of a policy's keys after its identity, the list of its cases, and a file of directions."""
    files = {"policy.yaml": (_HEAD.format(name=name, serial=serial) + dedent(text)).encode()}
    if cases:
        files["tests/cases.yaml"] = (_CASES + indent(dedent(cases).lstrip("\n"), "  ")).encode()
    if directions:
        files["directions/all.safetensors"] = save(dict(directions))
    for number, part in enumerate(parts):
        head = "apiVersion: saegis.dev/v1\nkind: PolicyPart\n"
        files[f"rules/part{number}.yaml"] = (head + dedent(part).lstrip("\n")).encode()
    return Bundle.from_files(files)


def policy(text: str = "", *, name: str = "p", world: World = WORLD) -> CompiledPolicy:
    """The policy of a text, compiled."""
    return compile_policy(bundle(text, name=name), world)


def world(catalog: Catalog = CATALOG, **capacity: int) -> World:
    """The tiny world with other SAEs or less room."""
    return World("tiny", tiny.SITES, Widths(tiny.WIDTH), catalog, Capacity(**capacity))


def edit(
    index: int = 3,
    op: Op = Op.CLAMP,
    value: float | None = 1.0,
    *,
    sae: str = "first",
    place: int = 0,
    unit: Unit = Unit.FEATURE,
    phase: Phase = Phase.ALL,
) -> RequestEdit:
    """A request's edit of a feature. A redirect goes to feature 11 of the same SAE."""
    if op.redirects:
        return redirect(index, 11, value or 0.0, sae=sae, place=place, unit=unit, phase=phase)
    found = CATALOG.by_index(CATALOG.sae(sae, "sae"), index, "index")
    value = None if op is Op.ABLATE else value
    times = (found.max_activation or 1.0) if unit is Unit.MAX_ACTIVATION else 1.0
    made = op.row(found.probe(), (value or 0.0) * times, phase, unit is Unit.NORM_FRACTION)
    return RequestEdit(f"steering.edits[{place}]", found.site, op, made, found, value, unit)


def along(
    vector: torch.Tensor,
    op: Op = Op.ADD,
    value: float | None = 1.0,
    *,
    site: Site = tiny.FIRST_SITE,
    place: int = 0,
    phase: Phase = Phase.ALL,
) -> RequestEdit:
    """A request's edit of a direction of its own. A redirect goes to another one."""
    if op.redirects:
        return redirect(vector, vector.flip(0), value or 0.0, site=site, place=place, phase=phase)
    made = op.row(Probe.direction(vector), value or 0.0, phase)
    return RequestEdit(f"steering.edits[{place}]", site, op, made, None, value)


@dataclass(frozen=True)
class _Found:
    """A feature or a direction, as a request names it."""

    site: Site
    probe: Probe
    feature: FoundFeature | None

    @classmethod
    def of(cls, named: int | torch.Tensor, sae: str, site: Site) -> _Found:
        """A feature by its index in an SAE, or a direction at a site."""
        if isinstance(named, torch.Tensor):
            return cls(site, Probe.direction(named), None)
        feature = CATALOG.by_index(CATALOG.sae(sae, "sae"), named, "index")
        return cls(feature.site, feature.probe(), feature)


def redirect(
    source: int | torch.Tensor = 3,
    to: int | torch.Tensor = 5,
    factor: float = 1.0,
    *,
    sae: str = "first",
    site: Site = tiny.FIRST_SITE,
    place: int = 0,
    unit: Unit = Unit.FEATURE,
    phase: Phase = Phase.ALL,
    strength: float = 0.0,
    threshold: float = 0.0,
) -> RequestEdit:
    """A request's redirect of a feature or direction to another one."""
    wish = Wish(Op.REDIRECT, factor, unit, phase, _Found.of(to, sae, site), strength, threshold)
    return request_edit(f"steering.edits[{place}]", _Found.of(source, sae, site), wish)


def watch(index: int = 3, *, sae: str = "first", place: int = 0) -> RequestEdit:
    """A request's watch of a feature."""
    return replace(edit(index, Op.WATCH, None, sae=sae), path=f"steering.watches[{place}]")


def ask(
    *asked: RequestEdit | UseOfRequest,
    tenant: str = "acme",
    roles: tuple[str, ...] = ("use",),
    model: str = "tiny",
) -> RequestFacts:
    """A request."""
    edits = tuple(each for each in asked if isinstance(each, RequestEdit))
    uses = tuple(each for each in asked if isinstance(each, UseOfRequest))
    return RequestFacts(tenant, frozenset(roles), model, edits, uses)


def decide(
    policies: Iterable[CompiledPolicy] | CompiledPolicy, *asked: RequestEdit | UseOfRequest
) -> Decision:
    """What policies say to a request with these edits, watches and uses."""
    group = (policies,) if isinstance(policies, CompiledPolicy) else policies
    return PolicySet(group).decide(ask(*asked))


def reasons(denials: Iterable[Denial]) -> set[tuple[str, str, str]]:
    """Policy, rule and field of each denial."""
    return {(denial.policy, denial.rule, denial.field) for denial in denials}
