"""Rows whose features' ranks decide: against the float64 loop, which sorts all pre-activations of an SAE."""

import math
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.steering import ranking as ranks
from saegis_server.steering import rows
from saegis_server.steering.admitted import Room
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.ranking import Moment, RankedDictionary, Ranking
from saegis_server.steering.rows import Norm, Phase, Redirection
from saegis_server.steering.site import Widths
from saegis_server.steering.table import Capacity, SiteTable
from tests.sae.sae_cases import build, random_sae
from tests.steering import cases, reference
from tests.tiers import sized

WIDTH, FEATURES = 16, 60
ALL_NORMS = frozenset(Norm)


def by_rank(seed: int, k: int, grouped: bool, norm: Norm = Norm.NONE) -> SparseAutoencoder:
    """An SAE that decides by rank, which the loop knows."""
    made = random_sae(
        Architecture.STANDARD, seed, norm=norm, width=WIDTH, features=FEATURES, k=k, grouped=grouped
    )
    return reference.know(made)


def ranking_of(*saes: SparseAutoencoder) -> Ranking:
    """What ranks the features of some SAEs."""
    dictionaries = [sae.ranked("cpu") for sae in saes]
    return Ranking([each for each in dictionaries if each is not None])


dividing = st.sampled_from([number for number in range(1, FEATURES + 1) if FEATURES % number == 0])


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    groups=dividing,
    at_once=st.integers(1, 2 * FEATURES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_what_passes_the_cut_is_what_sorting_keeps(
    seed: int, groups: int, at_once: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    """In parts of any size, of one group and of several."""
    kept = data.draw(st.integers(1, FEATURES // groups))
    rng = torch.Generator().manual_seed(seed)
    encoder, bias = torch.randn(WIDTH, FEATURES, generator=rng), torch.randn(FEATURES, generator=rng)
    x = cases.activations(rng, 5, WIDTH)
    p = reference.vector(x) @ reference.vector(encoder.to(dtype)) + reference.vector(bias)
    ordered = np.sort(p.reshape(5, groups, -1), -1)[..., ::-1]
    if kept < FEATURES // groups:
        assume((ordered[..., kept - 1] - ordered[..., kept] > 1e-4).all())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "FEATURES_AT_ONCE", {"cpu": at_once})
        dictionary = RankedDictionary("d", encoder.to(dtype), bias, kept, groups)
        assert sum(part.stop - part.start for part in dictionary.parts()) == FEATURES
        cuts = reference.vector(dictionary.cuts(x))
    passing = p.reshape(5, groups, -1) > cuts[..., None]
    assert (passing.sum(-1) == kept).all()
    assert (passing == (p.reshape(5, groups, -1) >= ordered[..., kept - 1 : kept])).all()


def random_program(rng: torch.Generator, saes: list[SparseAutoencoder], shape: list[int]) -> SiteProgram:
    """Edits, rules, bans and watches of features of these SAEs, of directions and of features without a rank;
    no probe twice."""
    left, others = [sae.probe(feature) for sae in saes for feature in range(FEATURES)], count()

    def pick() -> rows.Probe:
        if float(torch.rand(1, generator=rng)) < 0.2:
            kind = ("direction", "jumprelu")[int(torch.randint(2, (1,), generator=rng))]
            return cases.random_probe(rng, WIDTH, kind, Norm.NONE, f"{next(others)}")
        return left.pop(int(torch.randint(len(left), (1,), generator=rng)))

    def edit() -> rows.Edit:
        operations = (*cases.OPERATIONS, "redirect")
        operation = operations[int(torch.randint(len(operations), (1,), generator=rng))]
        probe = pick()
        if operation == "redirect":
            target = next(each for each in left if each.norm is probe.norm)
            return cases.random_redirect(rng, probe, target)
        return cases.random_edit(rng, probe, operation)

    def rule() -> rows.Edit:
        while not cases.may_rule(found := edit()):
            pass
        return found

    edits, rules, bans, watches = shape
    can_be_banned = [each for each in left if each.norm is Norm.NONE]
    banned = [can_be_banned.pop() for _ in range(bans)]
    left = [each for each in left if each not in banned]
    return SiteProgram(
        edits=tuple(edit() for _ in range(edits)),
        rules=tuple(rule() for _ in range(rules)),
        bans=tuple(rows.ban(probe, 1.5) for probe in banned),
        watches=tuple(pick() for _ in range(watches)),
        guards=tuple(pick() for _ in range(watches)),
    )


def near_a_cut(saes: list[SparseAutoencoder], x: reference.Vector, scale: float = 1e-4) -> bool:
    """Whether the least that is kept and the largest that is not lie within rounding, or any of 0."""
    for sae in saes:
        groups, kept = (sae.k or 0, 1) if sae.grouped else (1, sae.k or 0)
        p = np.sort(reference.pre_activations(sae, x).reshape(groups, -1), -1)[:, ::-1]
        size = scale * (1.0 + np.abs(p).max())
        if (np.abs(p) < size).any() or (p.shape[1] > kept and (p[:, kept - 1] - p[:, kept] < size).any()):
            return True
    return False


@settings(max_examples=sized(120, 40), deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.integers(1, 20),
    groups=dividing,
    norm=st.sampled_from(list(Norm)),
    sizes=st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=3),
    tokens=st.integers(1, 3),
)
def test_agrees_with_the_float64_loop(
    seed: int, k: int, groups: int, norm: Norm, sizes: list[list[int]], tokens: int
) -> None:
    """Programs of two SAEs at a site, TopK and group max, beside rows without a rank."""
    saes = [by_rank(seed % 997, k, False), by_rank(seed % 997 + 1, groups, True, norm)]
    rng = torch.Generator().manual_seed(seed)
    programs = [random_program(rng, saes, shape) for shape in sizes]
    table = cases.table_of(programs, WIDTH, ranking=ranking_of(*saes))
    x = cases.activations(rng, len(programs), tokens, WIDTH)
    prompt = torch.rand(len(programs), tokens, generator=rng) < 0.5
    result, readings = cases.applied(x, cases.view(table), prompt, ALL_NORMS, cuts=cases.cuts_of(table))
    for slot, program in enumerate(programs):
        for token in range(tokens):
            clean, in_prompt = reference.vector(x[slot, token]), bool(prompt[slot, token])
            edited, pushed = reference.steer(program, clean, in_prompt)
            ruled = reference.after_rules(program, clean, edited, in_prompt)
            got = reference.vector(result[slot, token])
            if any(near_a_cut(saes, at) for at in (clean, edited, ruled)):
                continue
            allowed = reference.half_spaces(program, clean, edited, in_prompt)
            nearest = reference.nearest_allowed(allowed, pushed) if allowed else pushed
            scale = 1.0 + max(np.abs(each).max() for each in (edited, pushed, nearest, clean))
            if (nearest == pushed).all():
                assert np.abs(got - pushed).max() <= 2e-5 * scale
            else:
                assert (reference.excess(allowed, got) <= 2e-5 * scale).all()
                least = np.linalg.norm(nearest - pushed)
                assert np.linalg.norm(got - pushed) <= 1.3 * least + 1e-4 * scale
            told = [
                *zip(program.watches, readings.watched_before[slot, token].tolist(), strict=False),
                *zip(program.guards, readings.guarded[slot, token].tolist(), strict=False),
            ]
            for probe, value in told:
                assert value == pytest.approx(reference.read(probe, clean), rel=1e-3, abs=1e-3)
            if not near_a_cut(saes, got):
                for probe, value in zip(
                    program.watches, readings.watched_after[slot, token].tolist(), strict=False
                ):
                    assert value == pytest.approx(reference.read(probe, got), rel=1e-3, abs=1e-3 * scale)


def test_a_banned_feature_is_not_active_however_the_others_stand() -> None:
    """TopK and group max, beside edits that push banned features up and all others down."""
    rng = torch.Generator().manual_seed(3)
    for trial in range(sized(200, 40)):
        number = 1 + trial % 8
        sae = by_rank(trial, (5, 12)[trial % 2], trial % 2 == 1)
        banned = torch.randperm(FEATURES, generator=rng)[:number].tolist()
        free = [feature for feature in range(FEATURES) if feature not in banned][:10]
        edits = tuple(
            [rows.clamp(sae.probe(feature), 30.0) for feature in banned[:4]]
            + [rows.clamp(sae.probe(feature), -30.0) for feature in free]
        )
        bans = tuple(rows.ban(sae.probe(feature), (0.0, 2.0)[trial % 2]) for feature in banned)
        program = SiteProgram(edits if trial % 3 else (), bans=bans, watches=tuple(b.probe for b in bans))
        dtype = (torch.float32, torch.bfloat16)[trial % 2]
        table = cases.table_of([program], WIDTH, dtype, ranking_of(sae))
        x = cases.activations(rng, 1, 20, WIDTH).to(dtype)
        cuts = cases.cuts_of(table)
        result, readings = cases.applied(x, cases.view(table), torch.ones(1, 20), ALL_NORMS, cuts=cuts)
        assert bool((sae.encode(result[0])[:, banned] == 0.0).all())
        assert bool((readings.watched_after[..., : len(bans)] == 0.0).all())
        # Not only out of the largest: were all others gone, it would still not be active.
        assert float(reference.excess(reference.banned(bans), reference.vector(result[0]).T).max()) <= 0.0
        on = sae.encode(x[0])[:, banned] > 0.0
        if not program.edits:
            assert torch.equal(readings.bans_fired[0], on.sum(-1).float())
        assert bool((result != x).any(-1)[0][on.any(-1)].all())


@pytest.mark.parametrize("operation", ["cap", "clamp", "ablate", "clamp_if_active"])
def test_a_rule_that_bounds_from_above_holds(operation: str) -> None:
    rng, value = torch.Generator().manual_seed(5), 0.25 if operation == "cap" else 0.0
    sae = by_rank(4, 8, False)
    probes = [sae.probe(feature) for feature in range(6)]
    make = getattr(rows, operation)
    rules = tuple(make(probe) if operation == "ablate" else make(probe, value) for probe in probes)
    edits = tuple(rows.clamp(probe, 20.0) for probe in probes)
    table = cases.table_of([SiteProgram(edits, rules)], WIDTH, ranking=ranking_of(sae))
    x = cases.activations(rng, 1, 50, WIDTH)
    result, _ = cases.applied(x, cases.view(table), torch.ones(1, 50), cuts=cases.cuts_of(table))
    assert float(sae.encode(result[0])[:, :6].max()) <= value


@pytest.mark.parametrize(
    "rule",
    [
        lambda probe, to: rows.floor(probe, 0.5),
        lambda probe, to: rows.floor(probe, 0.1, relative=True),
        lambda probe, to: rows.clamp(probe, 2.0),
        lambda probe, to: rows.clamp_if_active(probe, 2.0, phase=Phase.PROMPT),
        lambda probe, to: rows.redirect(probe, 1.0, Redirection(to)),
    ],
)
def test_what_others_could_undo_is_no_rule(rule: object) -> None:
    sae = by_rank(4, 8, False)
    made = rule(sae.probe(3), sae.probe(4))  # type: ignore[operator]
    with pytest.raises(SteeringError, match="its SAE decides by rank which features are active") as refused:
        SteeringProgram({cases.SITE: SiteProgram(rules=(rows.scale(sae.probe(5), 0.5), made))})
    assert (refused.value.site, refused.value.rows) == (cases.SITE, (("rules", 1),))
    SteeringProgram({cases.SITE: SiteProgram(edits=(made,))})


def test_what_ranks_nothing_refuses_rows_with_a_rank() -> None:
    """No table, and no server, reads them as if rank did not matter."""
    sae, other = by_rank(4, 8, False), by_rank(5, 8, False)
    program = SiteProgram(watches=(sae.probe(3),))
    for ranking in (None, ranking_of(other)):
        with pytest.raises(SteeringError, match="by its rank among all features of its SAE"):
            cases.table_of([program], WIDTH, ranking=ranking)
    room = Room((cases.SITE,), Widths(WIDTH), Capacity(), ranked=frozenset({(cases.SITE, other.digest)}))
    with pytest.raises(SteeringError, match="which decides by rank, is not at"):
        room.check(cases.SITE, program)
    room.check(cases.SITE, SiteProgram(guards=(other.probe(3),)))


def test_only_what_is_needed_is_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    saes = [by_rank(4, 8, False), by_rank(5, 6, True)]
    first, second = (sae.probe(3) for sae in saes)
    found: list[tuple[str, tuple[int, ...]]] = []
    cuts = RankedDictionary.cuts

    def counted(self: RankedDictionary, x: torch.Tensor) -> torch.Tensor:
        found.append((str(self.groups), tuple(x.shape)))
        return cuts(self, x)

    monkeypatch.setattr(RankedDictionary, "cuts", counted)
    x, prompt = cases.activations(torch.Generator().manual_seed(1), 1, 2, WIDTH), torch.ones(1, 2)
    wanted = [
        (SiteProgram(), []),
        (SiteProgram(edits=(rows.add(rows.Probe.direction(torch.ones(WIDTH)), 1.0),)), []),
        (SiteProgram(edits=(rows.scale(first, 2.0),)), ["1"]),
        (SiteProgram(guards=(second,)), ["6"]),
        (SiteProgram(watches=(first,)), ["1", "1"]),
        (SiteProgram(rules=(rows.scale(first, 2.0),), bans=(rows.ban(second),)), ["1", "6"]),
    ]
    for program, each in wanted:
        found.clear()
        table = cases.table_of([program], WIDTH, ranking=ranking_of(*saes))
        cases.applied(x, cases.view(table), prompt, cuts=cases.cuts_of(table))
        assert found == [(groups, (2, WIDTH)) for groups in each]
    table.clear(0)
    assert not table.needs((0,))


def test_needs_move_with_their_slot() -> None:
    sae = by_rank(4, 8, False)
    table = SiteTable(3, WIDTH, Capacity(), ranking=ranking_of(sae))
    table.write(1, SiteProgram(watches=(sae.probe(3),)), None)
    assert table.needs((0, 2)) == set()
    table.move(1, 0)
    assert table.needs((0,)) == {(0, Moment.CLEAN), (0, Moment.WRITTEN)}
    assert table.needs((1, 2)) == set()


def test_a_row_is_named_by_its_rank_too() -> None:
    """Equal weights under another k are another feature, and another program."""
    tensors = random_sae(Architecture.STANDARD, 1, width=WIDTH, features=FEATURES).tensors()
    saes = [
        build(Architecture.STANDARD, tensors, k=k, grouped=grouped)
        for k, grouped in ((None, False), (4, False), (5, False), (4, True))
    ]
    assert len({sae.digest for sae in saes}) == len({sae.probe(0).key for sae in saes}) == 4
    same_files = [
        build(Architecture.STANDARD, tensors, k=k, grouped=grouped, digest="ab" * 32)
        for k, grouped in ((None, False), (4, False), (5, False), (4, True))
    ]
    programs = [SteeringProgram({cases.SITE: SiteProgram(bans=(rows.ban(s.probe(0)),))}) for s in same_files]
    assert len({program.digest for program in programs}) == 4


def test_what_is_infinite_stays_active() -> None:
    """A condition must not miss what has gone beyond all bounds because others have too."""
    encoder = torch.eye(4)
    dictionary = RankedDictionary("d", encoder, torch.zeros(4), kept=1)
    inf, nan = math.inf, math.nan
    x = torch.tensor([[inf, 1.0, 0.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    dense = RankedDictionary("d", torch.zeros(2, 4), torch.tensor([inf, inf, 1.0, -inf]), kept=1)
    assert float(dense.cuts(torch.zeros(1, 2))) < inf
    assert float(dictionary.cuts(x)[1]) == 2.5
    assert not bool(torch.isnan(dictionary.cuts(torch.tensor([[nan, 1.0, 0.0, 0.0]]))).any())


def test_groups_that_do_not_fit_are_refused() -> None:
    for kept, groups in ((0, 1), (5, 1), (1, 3), (3, 2)):
        with pytest.raises(ValueError, match="cannot be kept of 4 features"):
            RankedDictionary("d", torch.zeros(2, 4), torch.zeros(4), kept, groups)
