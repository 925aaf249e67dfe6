"""YAML of bundles: what values mean, at which lines they stand, and what is refused, always with its line."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.policy.errors import SyntaxProblem
from saegis_server.policy.schema.yaml_text import DEEPEST, LARGEST, MOST_PROBLEMS, path_of, read_yaml
from saegis_server.problem import Problem
from tests.policy.bundles import CASES, PART, POLICY
from tests.tiers import sized


def refused(text: str | bytes) -> SyntaxProblem:
    with pytest.raises(SyntaxProblem) as caught:
        read_yaml(text if isinstance(text, bytes) else text.encode(), "rules/a.yaml")
    assert all(problem.file == "rules/a.yaml" for problem in caught.value.problems)
    return caught.value


def is_exponent(text: str) -> bool:
    """Whether it is a number to YAML 1.2 alone, such as 1e3: PyYAML writes such a text without quotes."""
    try:
        float(text)
    except ValueError:
        return False
    return "e" in text.lower()


KEYS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1, max_size=8).filter(
    lambda text: not is_exponent(text)
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), max_size=12).filter(
        lambda text: not is_exponent(text)
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=sized(200, 50), deadline=None)
@given(VALUES, st.sampled_from((None, True, False)))
def test_what_another_writer_writes_is_read_as_it_was(value: Any, flow: bool | None) -> None:
    """PyYAML's writer quotes whatever it does not mean as it stands, by the wider rules of YAML 1.1."""
    written = yaml.safe_dump(value, allow_unicode=True, default_flow_style=flow)
    assert read_yaml(written.encode(), "x").value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+7", 7),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("-.inf", -math.inf),
        ("~", None),
        ("'5'", "5"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        (".", "."),
        ("<<", "<<"),
        ("9" * 30, "9" * 30),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says_in_decimal(text: str, value: object) -> None:
    found = read_yaml(f"a: {text}".encode(), "x").value
    assert found == {"a": value}
    assert isinstance(found, dict)
    assert type(found["a"]) is type(value)


def test_every_key_and_entry_has_its_line() -> None:
    document = read_yaml(POLICY.encode(), "x")
    lines = POLICY.splitlines()
    assert len(document.lines) > 40
    for place, line in document.lines.items():
        if place and isinstance(place[-1], str):
            assert f"{place[-1]}:" in lines[line - 1]
    assert lines[document.line(("rules", 1, "when", "if", "any", 1)) - 1].lstrip().startswith("- not:")
    # What is not there is looked for where it would stand.
    assert document.line(("rules", 0, "ban", "sites", 3)) == document.line(("rules", 0, "ban"))


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' stands in line 1 already"),
        ("a:\n  - {b: 1,\n     b: 2}\n", 3, "the key 'b' stands in line 2 already"),
        ("a: 1\n'a': 2\n", 2, "the key 'a' stands in line 1 already"),
        ("a: &x 1\n", 1, "anchors are not used here"),
        ("\na: *x\n", 2, "*x: aliases are not used here"),
        ("a: !!python/object/apply:os.system [x]\n", 1, "tags (!)"),
        ("a: !!str 5\n", 1, "put text in quotes"),
        ("a: ! x\n", 1, "tags (!)"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("", 1, "the file is empty"),
        ("# only this\n", 1, "the file is empty"),
        ("a:\n\tb: 1\n", 2, "indent with spaces"),
        ("a: [1,\n  2", 2, "expected"),
        ("a: 'x\n", 2, "end of stream"),
        ("a: b: c\n", 1, "mapping values are not allowed"),
        ("? [1]\n: 2\n", 1, "a key must be a word, not a list"),
        ("? {b: 1}\n: 2\n", 1, "a key must be a word, not a map"),
        ("b: 1\n5: 2\n", 2, "a key must be a word, not 5 (put it in quotes)"),
        ("~: 2\n", 1, "a key must be a word, not nothing"),
        ("a: 1\nb: \x01\n", 2, "the character U+0001 is not allowed"),
        ('a: "\\ud800"\n', 1, "invalid Unicode character"),
        ('a: "\\U99999999"\n', 1, "invalid Unicode character"),
        ("%YAML 7.0\n---\na: 1\n", 1, "incompatible"),
    ],
)
def test_what_is_refused_names_its_line(text: str, line: int, told: str) -> None:
    problem = refused(text).problems[0]
    assert (problem.line, told in problem.message) == (line, True), str(problem)


def test_bytes_that_are_no_text_name_their_line() -> None:
    assert refused(b"a: 1\nb: \xff\n").problems[0].line == 2
    assert refused("a: 1\n".encode("utf-16")).problems[0].line == 1


def test_several_faults_are_told_at_once_but_not_without_end() -> None:
    problems = refused("a: 1\na: 2\nb: *x\nc: !t 1\nd: [\n").problems
    assert [problem.line for problem in problems[:3]] == [2, 3, 4]
    assert len(problems) == 4
    assert [problem.path for problem in problems] == ["a", "b", "c", ""]
    assert len(refused("a: 1\n" * 1000).problems) == MOST_PROBLEMS


def test_depth_and_size_are_bounded() -> None:
    inside = "[" * DEEPEST + "]" * DEEPEST
    read_yaml(inside.encode(), "x")
    for text in (f"[{inside}]", "[" * 100_000, "{a: " * 20_000, "- " * 50_000):
        problem = refused(text).problems[-1]
        assert (problem.line, f"more than {DEEPEST}" in problem.message) == (1, True)
    assert f"may have {LARGEST}" in str(refused(b"#" * (LARGEST + 1)))


def test_the_largest_file_is_read_in_a_fraction_of_a_second() -> None:
    for text in ("rules:\n" + "  - {id: a, ban: [1, 2]}\n" * 4900, "a: [" + "1," * 65_000 + "1]"):
        began = time.monotonic()
        read_yaml(text.encode(), "x")
        assert time.monotonic() - began < 1.2


def test_aliases_do_not_multiply() -> None:
    """The billion laughs: each line names the one before nine times."""
    laughs = ["a0: &a0 [lol]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert refused("\n".join(laughs)).problems[0].line == 1


def test_paths_are_written_as_people_do() -> None:
    assert path_of(("rules", 2, "ban", "strength")) == "rules[2].ban.strength"
    assert path_of((0, 1)) == "[0][1]"
    assert path_of(()) == ""


_PIECES = (
    "\n",
    " ",
    "  - ",
    ": ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "!x ",
    "'",
    '"',
    "|\n",
    "#",
    "\t",
    "? ",
    "\\",
    "%",
)


@settings(max_examples=sized(300, 60), deadline=None)
@given(st.sampled_from((POLICY, PART, CASES)), st.integers(0, 2**32), st.integers(1, 6))
def test_mutated_text_is_read_or_refused_with_a_line(text: str, seed: int, count: int) -> None:
    """Cut, doubled, shifted, sprinkled with YAML's own signs: no other exception, never without a line."""
    draw = random.Random(seed)
    for _ in range(count):
        at, to = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        to = min(to, at + 40)
        text = draw.choice(
            (
                text[:at] + text[to:],
                text[:at] + text[at:to] * 2 + text[to:],
                text[:at] + draw.choice(_PIECES) + text[at:],
                text[:at] + chr(draw.randrange(0x2FF)) + text[at + 1 :],
            )
        )
    try:
        document = read_yaml(text.encode(), "x")
    except SyntaxProblem as error:
        last = text.count("\n") + 2
        for problem in error.problems:
            assert problem.file == "x"
            assert 1 <= problem.line <= last + sum(text.count(end) for end in "\r\x85\u2028\u2029")
            assert problem.message
    else:
        assert all(line >= 1 for line in document.lines.values())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        read_yaml(data, "x")
    except SyntaxProblem as error:
        problems = error.problems
    assert all(problem.line for problem in problems)
