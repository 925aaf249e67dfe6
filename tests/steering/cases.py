"""Random probes, edits and programs for the steering tests."""

import torch
from torch import Tensor

from saegis_server.steering import rows
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.apply import Cuts, Readings, apply
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.projection import held_geometry
from saegis_server.steering.ranking import Ranking
from saegis_server.steering.rows import Edit, Norm, Phase, Probe, Redirection
from saegis_server.steering.site import Place, Site
from saegis_server.steering.table import Capacity, SiteTable, TableView
from saegis_server.steering.tokens import Spread, Tokens

#: Where the rows of a program of the tests are, where it does not matter.
SITE = Site(0, Place.RESID_POST)


def random_probe(rng: torch.Generator, width: int, kind: str, norm: Norm, name: str) -> Probe:
    """A feature of a ReLU, JumpReLU or gated SAE, or a direction."""
    read = torch.randn(width, generator=rng) / width**0.5
    if kind == "direction":
        return Probe.direction(read)
    write = torch.nn.functional.normalize(torch.randn(width, generator=rng), dim=0)
    bias, other = (0.3 * torch.randn(2, generator=rng)).tolist()
    gain = float(torch.rand(1, generator=rng)) + 0.5 if kind == "gated" else 1.0
    return Probe(
        key=f"{kind}:{norm.name}:{name}",
        read=read,
        write=write,
        gate_bias=bias,
        threshold=abs(other) if kind == "jumprelu" else 0.0,
        gain=gain,
        value_bias=other if kind == "gated" else bias,
        norm=norm,
    )


OPERATIONS = ("clamp", "clamp_if_active", "scale", "add", "cap", "floor", "ablate")


def random_edit(rng: torch.Generator, probe: Probe, operation: str) -> Edit:
    """An edit with a random value, phase and unit."""
    value = float(3.0 * torch.randn(1, generator=rng))
    phase = list(Phase)[int(torch.randint(3, (1,), generator=rng))]
    if operation == "ablate":
        return rows.ablate(probe, phase=phase)
    if operation == "scale":
        return rows.scale(probe, value, phase=phase)
    relative = bool(torch.rand(1, generator=rng) < 0.3)
    make = getattr(rows, operation)
    edit: Edit = make(probe, value / 10.0 if relative else value, phase=phase, relative=relative)
    return edit


def random_redirect(rng: torch.Generator, probe: Probe, target: Probe) -> Edit:
    """A redirect with a random factor, mostly of either sign, strength, threshold and phase."""
    factor = float(3.0 * torch.randn(1, generator=rng))
    strength, threshold = (torch.rand(2, generator=rng) * (torch.rand(2, generator=rng) < 0.5)).tolist()
    phase = list(Phase)[int(torch.randint(3, (1,), generator=rng))]
    return rows.redirect(probe, factor, Redirection(target, 2.0 * strength, 0.5 * threshold), phase=phase)


def may_rule(edit: Edit) -> bool:
    """Whether an edit may be an operator's rule: whether what it bounds can be held, by itself."""
    try:
        program = SteeringProgram({SITE: SiteProgram(rules=(edit,))})
        held_geometry(program.sites[SITE])
    except SteeringError:
        return False
    return True


def correlated_bans(
    rng: torch.Generator, count: int, width: int, gain: float, strength: float
) -> tuple[Edit, ...]:
    """Bans whose encoder rows share a common part (cosine about `gain`²) and are not their decoder rows."""
    common = torch.randn(width, generator=rng)
    bans = []
    for index in range(count):
        own = torch.randn(width, generator=rng)
        read = (gain * common + (1.0 - gain**2) ** 0.5 * own) / width**0.5
        write = torch.nn.functional.normalize(0.6 * read + 0.4 * torch.randn(width, generator=rng), dim=0)
        threshold = float(torch.rand(1, generator=rng))
        probe = Probe(f"banned:{index}", read, write, gate_bias=0.1, threshold=threshold, value_bias=0.1)
        bans.append(rows.ban(probe, strength))
    return tuple(bans)


def view(table: SiteTable) -> TableView:
    """The whole table, every slot and every row."""
    room = table.capacity
    reads = room.watches, room.watches
    return table.view(table.edits.vectors.shape[0], room.edits, room.rules, room.held, *reads)


def table_of(
    programs: list[SiteProgram],
    width: int,
    activations: torch.dtype = torch.float32,
    ranking: Ranking | None = None,
) -> SiteTable:
    """A table whose slots run `programs`."""
    table = SiteTable(len(programs), width, Capacity(), ranking=ranking)
    for slot, program in enumerate(programs):
        admitted = AdmittedRows.of(program, None, activations)
        table.write(slot, admitted, admitted.geometry, admitted.moves)
    return table


def cuts_of(table: SiteTable) -> Cuts:
    """The cuts that the programs of a table need, and no others."""
    table.ranking.want(table.needs(range(table.edits.vectors.shape[0])))
    return table.ranking.cuts


def applied(
    x: Tensor,
    view: TableView,
    prompt: Tensor,
    norms: frozenset[Norm] = frozenset({Norm.NONE}),
    on: Tensor | None = None,
    cuts: Cuts | None = None,
) -> tuple[Tensor, Readings]:
    """What `apply` gives for the activations [B, Q, d] of B slots, as [B, Q, ..]; on: bool [B, Q, 1 + C]."""
    batch, count = x.shape[:2]
    spread = Spread.EACH if count == 1 else Spread.ONE if batch == 1 else Spread.ANY
    slot = torch.arange(batch).repeat_interleave(count) if spread is Spread.ANY else None
    tokens = Tokens((prompt.expand(batch, count) > 0).reshape(-1), spread, slot)
    gates = None if on is None else lambda _: on.flatten(0, 1)
    result, readings = apply(x.flatten(0, 1), view, tokens, norms, gates, cuts)
    shaped = Readings(*(each.reshape(batch, count, *each.shape[1:]) for each in readings))
    return result.reshape(x.shape), shaped


def activations(rng: torch.Generator, *shape: int) -> Tensor:
    """Random activations with the uneven norms that residual streams have."""
    size = torch.exp(torch.randn(*shape[:-1], 1, generator=rng))
    return torch.randn(*shape, generator=rng) * size
