"""Tests of how edits and watches are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import saegis
from saegis.cli.edits import (
    EditSyntaxError,
    describe_edit,
    parse_edit,
    parse_edits,
    parse_target,
    parse_watches,
    split_strength,
)


@pytest.mark.parametrize(
    ("operation", "text", "expected"),
    [
        ("clamp", "12=3.5", saegis.clamp(12, 3.5, unit="feature")),
        ("clamp", " 12 = -3.5 ", saegis.clamp(12, -3.5, unit="feature")),
        ("clamp", "the red bridge=2max", saegis.clamp("the red bridge", 2, unit="max_activation")),
        ("clamp", "12=0.1NORM", saegis.clamp(12, 0.1, unit="norm_fraction")),
        ("clamp", "12=1e-3", saegis.clamp(12, 0.001, unit="feature")),
        ("clamp", "a=b=4", saegis.clamp("a=b", 4, unit="feature")),
        ("add", "7=+1", saegis.add(7, 1, unit="feature")),
        ("cap", "7=0", saegis.cap(7, 0, unit="feature")),
        ("scale", "7=0.5", saegis.scale(7, 0.5)),
        ("ban", "poison", saegis.ban("poison")),
        ("ban", "7=2", saegis.ban(7, 2.0)),
        ("ban", "a = b", saegis.ban("a = b")),
        ("redirect", "367=3552:1.3", saegis.redirect(367, 1.3, to=3552, unit="feature")),
        ("redirect", "a=b= calm :-2", saegis.redirect("a=b", -2, to="calm", unit="feature")),
        ("redirect", "7=a: b:1MAX", saegis.redirect(7, 1, to="a: b", unit="max_activation")),
        ("redirect", "7=8:1:2", saegis.redirect(7, 1, to=8, strength=2, unit="feature")),
        (
            "redirect",
            "7=8:1max:0:.5",
            saegis.redirect(7, 1, to=8, threshold=0.5, unit="max_activation"),
        ),
    ],
)
def test_an_edit_is_read_as_written(operation: str, text: str, expected: saegis.Edit) -> None:
    assert parse_edit(operation, text) == expected


@pytest.mark.parametrize(
    ("operation", "text", "complaint"),
    [
        ("clamp", "12", "has no value"),
        ("clamp", "12=", "is no value"),
        ("clamp", "12=much", "is no value"),
        ("clamp", "12=1.2.3", "is not a number"),
        ("clamp", "12=nan", "finite"),
        ("clamp", "12=-inf", "finite"),
        ("clamp", "12=1e999", "finite"),
        ("clamp", "=3", "names no feature"),
        ("ban", "", "names no feature"),
        ("scale", "12=2max", "without a unit"),
        ("ban", "12=2norm", "without a unit"),
        ("clamps", "12=2", "is no operation"),
        ("redirect", "12", "is no redirect"),
        ("redirect", "12=7", "is no redirect; write TARGET=TO:FACTOR"),
        ("redirect", "12=7:much", "is no redirect"),
        ("redirect", "12=7:1norm", "is no redirect"),
        ("redirect", "12=7:1:2max", "is no redirect"),
        ("redirect", "12=7:1:inf", "finite"),
        ("redirect", "12=:1", "names no feature"),
        ("redirect", "=7:1", "names no feature"),
    ],
)
def test_what_is_not_written_right_says_why(operation: str, text: str, complaint: str) -> None:
    with pytest.raises(EditSyntaxError, match=complaint):
        parse_edit(operation, text)


@given(
    st.integers(0, 2**31),
    st.floats(-1e6, 1e6),
    st.sampled_from(["", "max", "norm"]),
    st.sampled_from(["clamp", "add"]),
)
def test_every_number_comes_back(index: int, value: float, unit: str, operation: str) -> None:
    edit = parse_edit(operation, f"{index}={value!r}{unit}")
    assert edit.target == saegis.feature(index)
    assert edit.value == value


def test_sae_and_site_go_into_every_edit_and_watch() -> None:
    edits = parse_edits((("clamp", ["1=2"]), ("ban", ["x"]), ("add", None)), sae="second", site="layers.3")
    assert [(edit.target, edit.site) for edit in edits] == [
        (saegis.feature(1, sae="second"), "layers.3"),
        (saegis.feature("x", sae="second"), "layers.3"),
    ]
    (watch,) = parse_watches(["9"], sae="second", site="layers.3")
    assert watch == saegis.watch(saegis.feature(9, sae="second"), site="layers.3")


def test_several_indices_are_as_many_edits() -> None:
    written = (("redirect", ["12, 15,40=7:1.5:1"]), ("ban", ["3,5"]), ("clamp", ["1,2=a=3", "a,b=4", "6,=1"]))
    assert [describe_edit(edit) for edit in parse_edits(written)] == [
        *("redirect 12=7:1.5:1", "redirect 15=7:1.5:1", "redirect 40=7:1.5:1", "ban 3=0", "ban 5=0"),
        *("clamp 1=a=3", "clamp 2=a=3", "clamp a,b=4", "clamp 6,=1"),
    ]


def test_a_direction_is_named_behind_its_kind() -> None:
    digest = "0f" * 32
    assert (
        parse_target("direction:refusal")
        == parse_target(" direction:refusal ")
        == saegis.direction("refusal")
    )
    assert parse_target(f"direction:{digest}") == saegis.Direction(digest=digest)
    assert parse_target("directions: north") == saegis.feature("directions: north")
    assert parse_edit("ablate", "direction:refusal", site="layers.3") == saegis.ablate(
        saegis.direction("refusal"), site="layers.3"
    )
    assert parse_edit("redirect", "12=direction:refusal:1.5:1") == saegis.redirect(
        12, 1.5, to=saegis.direction("refusal"), strength=1.0, unit="feature"
    )
    with pytest.raises(EditSyntaxError, match="names no direction"):
        parse_target("direction:")


def test_an_index_in_other_digits_is_an_index() -> None:
    assert parse_target("١٢") == saegis.feature(12)


@pytest.mark.parametrize(
    ("text", "words", "strength"),
    [("poison", "poison", 0.0), ("poison = 2", "poison", 2.0), ("a=b", "a=b", 0.0)],
)
def test_words_and_strength_are_told_apart(text: str, words: str, strength: float) -> None:
    assert split_strength(text) == (words, strength)


@pytest.mark.parametrize(
    "text",
    [
        *("clamp 12=3.5", "clamp 12=2max", "add x=0.1norm", "scale 3=0.5", "ban 7=2"),
        *("ablate 12", "ablate direction:refusal", "add direction:refusal=2", f"cap direction:{'0f' * 32}=2"),
        *("redirect 12=direction:refusal:1.5",),
        *("redirect 12=7:1.5", "redirect a=b c:2max:1", "redirect 12=7:1:0:0.5"),
    ],
)
def test_a_described_edit_reads_back_as_itself(text: str) -> None:
    operation, _, rest = text.partition(" ")
    assert describe_edit(parse_edit(operation, rest)) == text


def test_a_direction_is_described_as_one() -> None:
    assert describe_edit(saegis.ablate(saegis.direction([1.0, 0.0]))) == "ablate a direction"
