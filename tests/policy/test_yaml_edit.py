"""Setting one number in a YAML text: all other characters and all other meaning stay."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_server.policy.errors import PolicyError, SyntaxProblem
from saegis_server.policy.schema.yaml_text import Place, read_yaml, with_number

PLACE: Place = ("rules", 1, "ban", "strength")
BLOCK = """\
# No poison: 爆弾 🧨
name:   "p"   # strength: 9
rules:
  - id: other
    ban: {features: [{index: 1}], strength: 4}

  - ban:   # why
      # Chosen by hand.
      features: [{index: 7}]   # strength: 3
      strength:   2.50   # calibrated
      phase: all
    id: "strength: 1"
"""


def edited(text: str, value: float = 1.5, place: Place = PLACE) -> str:
    return with_number(text.encode(), "policy.yaml", place, value).decode()


@pytest.mark.parametrize(
    ("text", "after"),
    [
        (BLOCK, BLOCK.replace("2.50", "1.5")),
        (BLOCK.replace("\n", "\r\n"), BLOCK.replace("2.50", "1.5").replace("\n", "\r\n")),
        ("\ufeff" + BLOCK, "\ufeff" + BLOCK.replace("2.50", "1.5")),
        # Without the key: under the map's own key, so that the comment stays with the features.
        (
            BLOCK.replace("      strength:   2.50   # calibrated\n", ""),
            BLOCK.replace("      strength:   2.50   # calibrated\n", "").replace(
                "# why\n", "# why\n      strength: 1.5\n"
            ),
        ),
        (
            "rules:\r\n- 1\r\n- ban:\r\n   features: [1]\r\n",
            "rules:\r\n- 1\r\n- ban:\r\n   strength: 1.5\r\n   features: [1]\r\n",
        ),
        ("rules: [1, {ban: {a: [2] }}]", "rules: [1, {ban: {a: [2], strength: 1.5 }}]"),
        ("rules: [1, {ban: { }}]", "rules: [1, {ban: {strength: 1.5 }}]"),
        ("rules: [1, {ban: {strength: 2}}]", "rules: [1, {ban: {strength: 1.5}}]"),
        ("rules: [1, {ban: {strength: 2\n}}]\n", "rules: [1, {ban: {strength: 1.5\n}}]\n"),
        (
            "rules:\n- 1\n- ? ban\n  : features: [2]\n",
            "rules:\n- 1\n- ? ban\n  : strength: 1.5\n    features: [2]\n",
        ),
    ],
)
def test_only_the_number_changes(text: str, after: str) -> None:
    assert edited(text) == after
    assert edited(after) == after


COMMENTS = st.sampled_from(["", "  # note: 3", "   # strength: 7"])
NAMES = st.text("ab:#{}[] 桥\U0001f600", min_size=1, max_size=8)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A list of rules in block or flow style, in which the second one's strength may be missing."""
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    lines = [f'name: "{draw(NAMES)}"{draw(COMMENTS)}', f"rules:{draw(COMMENTS)}"]
    for _ in range(2):
        strength = draw(st.one_of(st.none(), st.sampled_from(["0", "2", "2.50", "+1e1", ".5"])))
        entries = ["features: [{index: 1}, {label: '" + draw(NAMES) + "'}]", "phase: all"]
        if strength is not None:
            entries.insert(draw(st.integers(0, 2)), f"strength: {strength}")
        lines.append(f'  - id: "{draw(NAMES)}"{draw(COMMENTS)}')
        if draw(st.booleans()):
            lines.append("    ban: {" + ", ".join(entries) + "}" + draw(COMMENTS))
        else:
            lines.append(f"    ban:{draw(COMMENTS)}")
            for entry in entries:
                lines += [f"      #{draw(COMMENTS)}"] * draw(st.integers(0, 1))
                lines.append(f"      {entry}{draw(COMMENTS)}")
    return newline.join(lines) + draw(st.sampled_from(["", newline]))


@given(texts(), st.floats(0.0, 1e6))
def test_what_is_read_is_the_same_but_for_the_number(text: str, value: float) -> None:
    before: Any = deepcopy(read_yaml(text.encode(), "f").value)
    there = "strength" in before["rules"][1]["ban"]
    after = edited(text, value)
    before["rules"][1]["ban"]["strength"] = value
    assert read_yaml(after.encode(), "f").value == before
    # Naive: what is around the change is a beginning and an end of the text before.
    start = next((n for n, (a, b) in enumerate(zip(text, after, strict=False)) if a != b), len(text))
    end = 0
    while end < min(len(text), len(after)) - start and text[-1 - end] == after[-1 - end]:
        end += 1
    changed = text[start : len(text) - end]
    assert len(changed) <= 4 if there else changed == ""


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("rules: []", PLACE),
        ("rules: [1, {other: {}}]", PLACE),
        ("rules: [1, {ban: 2}]", PLACE),
        ("rules: 3", PLACE),
        ("rules:\n- 1\n- ban:\n    strength:\n", PLACE),
    ],
)
def test_what_is_not_there_cannot_be_set(text: str, place: Place) -> None:
    with pytest.raises(PolicyError, match=r"policy.yaml:\d: rules\[1\].ban.strength: the number cannot"):
        edited(text, place=place)


def test_what_is_no_yaml_is_told() -> None:
    with pytest.raises(SyntaxProblem, match=r"policy\.yaml:1"):
        edited("rules: [")
