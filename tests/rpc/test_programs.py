"""Steering messages become programs, and whatever is wrong with them is told with its field."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saegis.v1 import steering_pb2 as pb
from saegis_server.engine.api import FieldError
from saegis_server.rpc.wire.problems import ConflictError
from saegis_server.rpc.wire.programs import RequestSteering, request_steering
from saegis_server.rpc.wire.targets import Targets
from saegis_server.sae.catalog import (
    AmbiguousFeatureError,
    Catalog,
    CatalogError,
    LoadedSAE,
    SAENotAtSiteError,
    UnknownFeatureError,
    UnknownSAEError,
)
from saegis_server.steering import rows
from saegis_server.steering.program import SteeringError, SteeringProgram
from saegis_server.steering.rows import Norm, Phase
from saegis_server.steering.site import Widths
from saegis_server.steering.table import Capacity
from tests.rpc import tiny

CATALOG = tiny.catalog()
TARGETS = Targets(tiny.SITES, CATALOG, Widths(tiny.WIDTH))
FIRST = CATALOG.entries[0].sae


def feature(index: int = 3, sae: str = "first", **fields: object) -> pb.Edit:
    return pb.Edit(feature=pb.FeatureRef(sae=sae, index=index), **fields)  # type: ignore[arg-type]


def along(values: list[float], **fields: object) -> pb.Edit:
    return pb.Edit(direction=pb.Direction(values=values), **fields)  # type: ignore[arg-type]


def translate(
    *edits: pb.Edit, watches: tuple[pb.Watch, ...] = (), targets: Targets = TARGETS, room: int = 8
) -> RequestSteering:
    capacity = Capacity(edits=room, rules=2, bans=room, watches=room)
    found = request_steering(pb.Steering(edits=edits, watches=watches), targets, capacity)
    found.require_room(capacity)
    return found


def only_edit(edit: pb.Edit) -> rows.Edit:
    (found,) = translate(edit).program.sites[tiny.FIRST_SITE].edits
    return found


@pytest.mark.parametrize(
    ("operation", "make"),
    [
        (pb.OPERATION_CLAMP, rows.clamp),
        (pb.OPERATION_CLAMP_IF_ACTIVE, rows.clamp_if_active),
        (pb.OPERATION_SCALE, rows.scale),
        (pb.OPERATION_ADD, rows.add),
        (pb.OPERATION_CAP, rows.cap),
        (pb.OPERATION_FLOOR, rows.floor),
    ],
)
def test_an_operation_becomes_its_row(operation: pb.Operation, make: object) -> None:
    assert callable(make)
    found = only_edit(feature(operation=operation, value=2.5, phase=pb.PHASE_COMPLETION))
    expected = make(FIRST.probe(3), 2.5, phase=Phase.COMPLETION)
    assert found.numbers() == expected.numbers()
    assert found.probe.key == FIRST.probe(3).key
    assert torch.equal(found.probe.write, FIRST.W_dec[3])


def test_ablation_and_ban_take_no_unit() -> None:
    assert (
        only_edit(feature(operation=pb.OPERATION_ABLATE)).numbers() == rows.ablate(FIRST.probe(3)).numbers()
    )
    banned = translate(feature(operation=pb.OPERATION_BAN, value=2.0)).program.sites[tiny.FIRST_SITE]
    assert banned.edits == ()
    assert banned.bans[0].numbers() == rows.ban(FIRST.probe(3), 2.0).numbers()
    unset = translate(feature(operation=pb.OPERATION_BAN)).program.sites[tiny.FIRST_SITE]
    assert unset.bans[0].numbers() == rows.ban(FIRST.probe(3), 0.0).numbers()


def test_units() -> None:
    def clamped(unit: pb.Unit, value: float) -> rows.Edit:
        return only_edit(feature(operation=pb.OPERATION_CLAMP, value=value, unit=unit))

    assert clamped(pb.UNIT_FEATURE, 3.0).b == 3.0
    assert clamped(pb.UNIT_MAX_ACTIVATION, 3.0).b == 3.0 * 4.0
    relative = clamped(pb.UNIT_NORM_FRACTION, 0.5)
    assert (relative.b, relative.relative_to_norm) == (0.5, True)


def test_a_feature_by_label_whatever_its_case() -> None:
    by_label = pb.Edit(
        operation=pb.OPERATION_ABLATE, feature=pb.FeatureRef(sae="first", label="The Red Bridge")
    )
    assert only_edit(by_label).probe.key == FIRST.probe(3).key


def test_the_sae_may_follow_from_the_site() -> None:
    steering = translate(feature(4, sae="", operation=pb.OPERATION_ABLATE, site="blocks.0.hook_resid_post"))
    assert list(steering.program.sites) == [tiny.FIRST_SITE]


def test_an_empty_message_steers_nothing() -> None:
    assert not translate().program.sites
    assert translate().program.digest == SteeringProgram().digest


def test_watches_keep_their_places_in_the_request() -> None:
    def watch(index: int, sae: str) -> pb.Watch:
        return pb.Watch(feature=pb.FeatureRef(sae=sae, index=index))

    steering = translate(watches=(watch(1, "second"), watch(2, "first"), watch(3, "second")))
    assert list(steering.program.sites) == list(tiny.SITES)
    assert steering.watches == (1, 0, 2)


BAD_VALUES = [math.nan, math.inf, -math.inf, 1e7, -1e30, 1.7e308]


@pytest.mark.parametrize("value", BAD_VALUES)
@pytest.mark.parametrize("operation", [pb.OPERATION_CLAMP, pb.OPERATION_SCALE, pb.OPERATION_BAN])
def test_absurd_values_are_refused(value: float, operation: pb.Operation) -> None:
    with pytest.raises(FieldError) as caught:
        translate(feature(operation=pb.OPERATION_ABLATE, index=1), feature(operation=operation, value=value))
    assert caught.value.field == "steering.edits[1].value"


@pytest.mark.parametrize(
    ("edit", "field", "words"),
    [
        (feature(value=1.0), "operation", "must be given"),
        (feature(operation=99, value=1.0), "operation", "no operation 99"),
        (feature(operation=pb.OPERATION_CLAMP), "value", "OPERATION_CLAMP needs a value"),
        (feature(operation=pb.OPERATION_SCALE), "value", "needs a value"),
        (feature(operation=pb.OPERATION_ABLATE, value=0.0), "value", "takes no value"),
        (feature(operation=pb.OPERATION_BAN, value=-1.0), "value", "at least 0, not -1"),
        (feature(operation=pb.OPERATION_SCALE, value=1.0, unit=pb.UNIT_FEATURE), "unit", "takes no unit"),
        (feature(operation=pb.OPERATION_CLAMP, value=1.0, unit=99), "unit", "no unit 99"),
        (
            feature(10, operation=pb.OPERATION_CLAMP, value=1.0, unit=pb.UNIT_MAX_ACTIVATION),
            "unit",
            "no largest activation",
        ),
        (
            feature(20, operation=pb.OPERATION_CLAMP, value=1.0, unit=pb.UNIT_MAX_ACTIVATION),
            "unit",
            "no largest activation",
        ),
        (
            feature(3, operation=pb.OPERATION_CLAMP, value=9e5, unit=pb.UNIT_MAX_ACTIVATION),
            "value",
            "not 3.6e+06",
        ),
        (feature(operation=pb.OPERATION_CLAMP, value=1.0, phase=7), "phase", "no phase 7"),
        (pb.Edit(operation=pb.OPERATION_CLAMP, value=1.0), "", "one of feature and direction"),
        (
            pb.Edit(operation=pb.OPERATION_CLAMP, value=1.0, feature=pb.FeatureRef(sae="first")),
            "feature",
            "index and label",
        ),
        (feature(operation=pb.OPERATION_CLAMP, value=1.0, site="nowhere"), "site", "is not a site"),
        (
            feature(operation=pb.OPERATION_CLAMP, value=1.0, site="layers.1.mlp_out"),
            "site",
            "no site of this server",
        ),
        (
            along([1.0] * tiny.WIDTH, operation=pb.OPERATION_CLAMP, value=1.0),
            "site",
            "must be given for a direction",
        ),
        (
            along([1.0], operation=pb.OPERATION_CLAMP, value=1.0, site=str(tiny.FIRST_SITE)),
            "direction.values",
            "must have 32 numbers",
        ),
        (
            along([0.0] * tiny.WIDTH, operation=pb.OPERATION_CLAMP, value=1.0, site=str(tiny.FIRST_SITE)),
            "direction.values",
            "not zero",
        ),
        (
            along(
                [math.nan] * tiny.WIDTH, operation=pb.OPERATION_CLAMP, value=1.0, site=str(tiny.FIRST_SITE)
            ),
            "direction.values",
            "finite",
        ),
        (
            along(
                [1.0] * tiny.WIDTH,
                operation=pb.OPERATION_CLAMP,
                value=1.0,
                site=str(tiny.FIRST_SITE),
                unit=pb.UNIT_MAX_ACTIVATION,
            ),
            "unit",
            "for features",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_field(edit: pb.Edit, field: str, words: str) -> None:
    with pytest.raises(FieldError) as caught:
        translate(feature(1, operation=pb.OPERATION_ABLATE), edit)
    assert caught.value.field == f"steering.edits[1].{field}".rstrip(".")
    assert words in caught.value.description


@pytest.mark.parametrize(
    ("edit", "kind", "field", "words"),
    [
        (
            feature(0, "third", operation=pb.OPERATION_CLAMP, value=1.0),
            UnknownSAEError,
            "feature.sae",
            "first at layers.0",
        ),
        (
            feature(48, operation=pb.OPERATION_CLAMP, value=1.0),
            UnknownFeatureError,
            "feature.index",
            "features 0 to 47, not 48",
        ),
        (
            feature(3, "", operation=pb.OPERATION_CLAMP, value=1.0),
            AmbiguousFeatureError,
            "feature.sae",
            "name one of the 3 SAEs",
        ),
        (
            feature(3, operation=pb.OPERATION_CLAMP, value=1.0, site=str(tiny.SECOND_SITE)),
            SAENotAtSiteError,
            "site",
            "not at layers.1",
        ),
        (
            pb.Edit(
                operation=pb.OPERATION_CLAMP,
                value=1.0,
                feature=pb.FeatureRef(sae="first", label="unheard of"),
            ),
            UnknownFeatureError,
            "feature.label",
            "no feature labelled 'unheard of'",
        ),
        (
            pb.Edit(
                operation=pb.OPERATION_CLAMP, value=1.0, feature=pb.FeatureRef(sae="first", label="twins")
            ),
            AmbiguousFeatureError,
            "feature.label",
            "2 features of the SAE first are labelled 'twins': 8, 9; give one's index",
        ),
        (
            pb.Edit(operation=pb.OPERATION_CLAMP, value=1.0, feature=pb.FeatureRef(sae="second", label="x")),
            UnknownFeatureError,
            "feature.label",
            "none of them is labelled",
        ),
    ],
)
def test_unknown_features(edit: pb.Edit, kind: type[CatalogError], field: str, words: str) -> None:
    with pytest.raises(kind) as caught:
        translate(edit)
    assert caught.value.field == f"steering.edits[0].{field}"
    assert words in caught.value.description


def test_without_saes_a_feature_means_nothing() -> None:
    with pytest.raises(SAENotAtSiteError, match="this server has no SAE"):
        translate(
            feature(sae="", operation=pb.OPERATION_ABLATE),
            targets=Targets(tiny.SITES, Catalog(), Widths(tiny.WIDTH)),
        )


def redirect(
    index: int = 3,
    value: float | None = 1.0,
    *,
    unit: pb.Unit | None = None,
    phase: pb.Phase | None = None,
    **fields: object,
) -> pb.Edit:
    """A redirect of a feature, to feature 5 unless the fields say otherwise."""
    if "direction" not in fields:
        fields.setdefault("feature", pb.FeatureRef(sae="first", index=5))
    to = pb.Redirection(**fields)  # type: ignore[arg-type]
    return feature(index, operation=pb.OPERATION_REDIRECT, value=value, unit=unit, phase=phase, redirect=to)


def test_a_redirect_has_what_it_reads_and_what_it_writes() -> None:
    source, target = FIRST.probe(3), FIRST.probe(5)
    plain = only_edit(redirect(value=-2.0))
    assert plain.numbers() == rows.redirect(source, -2.0, rows.Redirection(target)).numbers()
    written = only_edit(redirect(value=1.5, strength=0.5, threshold=0.25, phase=pb.PHASE_PROMPT))
    to = rows.Redirection(target, 0.5, 0.25)
    assert written.numbers() == rows.redirect(source, 1.5, to, phase=Phase.PROMPT).numbers()
    # The recorded maxima are 4 and 2: 3 times the one at its own is 1.5 of the other for each of the one.
    in_maxima = only_edit(redirect(value=3.0, threshold=0.25, unit=pb.UNIT_MAX_ACTIVATION))
    to = rows.Redirection(target, 0.0, 1.0)
    assert in_maxima.numbers() == rows.redirect(source, 1.5, to).numbers()
    itself = only_edit(redirect(value=0.5, strength=1.0, feature=pb.FeatureRef(sae="first", index=3)))
    assert itself.sets(2.0) == -2.0
    assert torch.allclose(itself.write, 0.75 * source.write)


def test_a_redirect_to_a_direction_is_at_the_site_of_what_it_reads() -> None:
    values = [1.0] + [0.0] * (tiny.WIDTH - 1)
    found = only_edit(redirect(direction=pb.Direction(values=values)))
    assert found.target is not None
    assert found.target.write.tolist() == values
    source = pb.Edit(
        operation=pb.OPERATION_REDIRECT,
        value=1.0,
        direction=pb.Direction(values=values),
        site="layers.1",
        redirect=pb.Redirection(feature=pb.FeatureRef(sae="second", index=1)),
    )
    steering = translate(source)
    (row,) = steering.program.sites[tiny.SECOND_SITE].edits
    assert row.target is not None
    assert (row.probe.key, row.target.key) == (found.target.key, CATALOG.entries[1].sae.probe(1).key)
    assert steering.edits[0].to is not None
    assert (steering.edits[0].feature, steering.edits[0].to.index) == (None, 1)


def test_a_target_may_be_found_by_its_label_and_in_another_sae_of_the_site() -> None:
    beside = LoadedSAE(tiny.sae("beside", 7), tiny.FIRST_SITE)
    targets = Targets(tiny.SITES, Catalog([*CATALOG.entries, beside]), Widths(tiny.WIDTH))
    label = redirect(feature=pb.FeatureRef(sae="first", label="a river"))
    other = redirect(4, feature=pb.FeatureRef(sae="beside", index=2))
    found = translate(label, other, targets=targets).program.sites[tiny.FIRST_SITE].edits
    assert [edit.target.key for edit in found if edit.target] == [
        FIRST.probe(5).key,
        beside.sae.probe(2).key,
    ]


@pytest.mark.parametrize(
    ("edit", "field", "words"),
    [
        (
            feature(operation=pb.OPERATION_REDIRECT, value=1.0),
            "redirect",
            "OPERATION_REDIRECT needs a target",
        ),
        (
            feature(operation=pb.OPERATION_CLAMP, value=1.0, redirect=redirect().redirect),
            "redirect",
            "OPERATION_CLAMP takes no target",
        ),
        (
            feature(operation=pb.OPERATION_REDIRECT, value=1.0, redirect=pb.Redirection()),
            "redirect",
            "one of feature and direction",
        ),
        (redirect(value=None), "value", "needs a value"),
        (redirect(value=math.nan), "value", "finite"),
        (redirect(value=1e7), "value", "must lie between"),
        (redirect(unit=pb.UNIT_NORM_FRACTION), "unit", "OPERATION_REDIRECT takes no unit norm_fraction"),
        (redirect(strength=-1.0), "redirect.strength", "at least 0, not -1"),
        (redirect(strength=math.inf), "redirect.strength", "finite"),
        (redirect(threshold=-0.5), "redirect.threshold", "at least 0, not -0.5"),
        (redirect(threshold=math.nan), "redirect.threshold", "finite"),
        (
            redirect(threshold=9e5, unit=pb.UNIT_MAX_ACTIVATION),
            "redirect.threshold",
            "not 3.6e+06",
        ),
        (
            redirect(5, 9e5, unit=pb.UNIT_MAX_ACTIVATION, feature=pb.FeatureRef(sae="first", index=3)),
            "value",
            "1.8e+06",
        ),
        (redirect(10, unit=pb.UNIT_MAX_ACTIVATION), "unit", "recorded for this feature"),
        (
            redirect(unit=pb.UNIT_MAX_ACTIVATION, feature=pb.FeatureRef(sae="first", index=10)),
            "unit",
            "recorded for the feature that is written",
        ),
        (
            redirect(unit=pb.UNIT_MAX_ACTIVATION, direction=pb.Direction(values=[1.0] * tiny.WIDTH)),
            "unit",
            "a direction has no maximum",
        ),
        (redirect(direction=pb.Direction(values=[1.0])), "redirect.direction.values", "must have 32 numbers"),
        (
            redirect(direction=pb.Direction(values=[0.0] * tiny.WIDTH)),
            "redirect.direction.values",
            "not zero",
        ),
        (
            redirect(feature=pb.FeatureRef(sae="first", index=48)),
            "redirect.feature.index",
            "features 0 to 47",
        ),
        (redirect(feature=pb.FeatureRef(sae="first")), "redirect.feature", "one of index and label"),
        (
            redirect(feature=pb.FeatureRef(sae="second", index=1)),
            "redirect.feature.sae",
            "the SAE second is loaded at layers.1.resid_post, not at layers.0.resid_post",
        ),
        (redirect(feature=pb.FeatureRef(sae="none", index=1)), "redirect.feature.sae", "no SAE 'none'"),
    ],
)
def test_whatever_is_wrong_with_a_redirect_names_its_field(edit: pb.Edit, field: str, words: str) -> None:
    with pytest.raises((FieldError, CatalogError)) as caught:
        translate(feature(1, operation=pb.OPERATION_ABLATE), edit)
    error = caught.value
    assert isinstance(error, FieldError | CatalogError)
    assert error.field == f"steering.edits[1].{field}"
    assert words in error.description


BAN = feature(operation=pb.OPERATION_BAN)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (feature(operation=pb.OPERATION_CLAMP, value=1.0), feature(operation=pb.OPERATION_CLAMP, value=2.0)),
        (feature(operation=pb.OPERATION_CLAMP, value=1.0), feature(operation=pb.OPERATION_SCALE, value=2.0)),
        (BAN, feature(operation=pb.OPERATION_CLAMP, value=2.0)),
        (feature(operation=pb.OPERATION_ADD, value=2.0, phase=pb.PHASE_PROMPT), BAN),
        (BAN, feature(operation=pb.OPERATION_BAN, value=1.0)),
        (BAN, redirect()),
        (redirect(), BAN),
        (redirect(4), feature(5, operation=pb.OPERATION_BAN, phase=pb.PHASE_PROMPT)),
        (feature(5, operation=pb.OPERATION_BAN), redirect(4)),
        (redirect(), redirect()),
        (redirect(), feature(operation=pb.OPERATION_CLAMP, value=2.0)),
        (
            feature(operation=pb.OPERATION_CAP, value=1.0),
            feature(operation=pb.OPERATION_FLOOR, value=2.0),
        ),
    ],
)
def test_contradictions_name_both_fields(one: pb.Edit, other: pb.Edit) -> None:
    with pytest.raises(ConflictError) as caught:
        translate(feature(1, operation=pb.OPERATION_ABLATE), one, other)
    assert caught.value.field == "steering.edits[2]"
    assert caught.value.others == ("steering.edits[1]",)


def test_edits_of_other_tokens_or_features_go_together() -> None:
    translate(
        BAN,
        feature(4, operation=pb.OPERATION_CLAMP, value=1.0),
        feature(3, "second", operation=pb.OPERATION_CLAMP, value=1.0),
        feature(5, operation=pb.OPERATION_CLAMP, value=1.0, phase=pb.PHASE_PROMPT),
        feature(5, operation=pb.OPERATION_CLAMP, value=2.0, phase=pb.PHASE_COMPLETION),
        redirect(6),
        redirect(7),
    )


@pytest.mark.parametrize(("kind", "operation"), [("edits", pb.OPERATION_ABLATE), ("bans", pb.OPERATION_BAN)])
def test_more_rows_than_there_is_room_for(kind: str, operation: pb.Operation) -> None:
    with pytest.raises(FieldError, match=f"9 {kind} at layers.0.resid_post") as caught:
        translate(*(feature(index, operation=operation) for index in range(9)))
    assert caught.value.field == "steering.edits[8]"


def test_more_watches_than_there_is_room_for() -> None:
    watches = tuple(pb.Watch(feature=pb.FeatureRef(sae="first", index=index)) for index in range(9))
    with pytest.raises(FieldError) as caught:
        translate(watches=watches)
    assert caught.value.field == "steering.watches[8]"


def test_a_ban_that_cannot_be_guaranteed() -> None:
    normalising = Catalog([LoadedSAE(tiny.sae("n", 3, Norm.LAYER_NORM), tiny.FIRST_SITE)])
    with pytest.raises(FieldError, match="cannot be banned") as caught:
        translate(
            feature(1, "n", operation=pb.OPERATION_ABLATE),
            feature(3, "n", operation=pb.OPERATION_BAN),
            targets=Targets(tiny.SITES, normalising, Widths(tiny.WIDTH)),
        )
    assert caught.value.field == "steering.edits[1]"


def test_an_error_found_later_is_explained_too() -> None:
    steering = translate(feature(1, operation=pb.OPERATION_ABLATE), BAN)
    error = SteeringError("cannot hold", tiny.FIRST_SITE, (("bans", 0),))
    assert steering.explain(error).field == "steering.edits[1]"
    assert steering.explain(SteeringError("somewhere", None)).field == "steering"


_edits = st.builds(
    pb.Edit,
    operation=st.integers(0, 10),
    value=st.none() | st.floats(),
    unit=st.integers(0, 5),
    phase=st.integers(0, 5),
    site=st.sampled_from(["", *map(str, tiny.SITES), "layers.7.resid_post", "x"]),
    feature=st.none()
    | st.builds(pb.FeatureRef, sae=st.sampled_from(["", "first", "x"]), index=st.integers(0, 60)),
)


@given(st.lists(_edits, max_size=6))
def test_any_message_gives_a_program_or_a_field(edits: list[pb.Edit]) -> None:
    steering, wrong = None, ""
    try:
        steering = translate(*edits)
    except (FieldError, CatalogError) as error:
        wrong = error.field
    if steering is None:
        assert wrong.startswith("steering.edits[")
    else:
        sites = steering.program.sites.values()
        assert sum(len(site.edits) + len(site.bans) for site in sites) == len(edits)
