"""A contrast as a policy's rule: what is printed stands in a policy as it is, whatever the labels say."""

from pathlib import Path

import pytest
import typer

import saegis
from saegis.cli.contrast import _texts, rule_yaml
from saegis_server.policy.schema.policy import Policy
from saegis_server.policy.schema.validation import validated
from saegis_server.policy.schema.yaml_text import read_yaml

HEAD = "apiVersion: saegis.dev/v1\nkind: Policy\nname: p\nserial: 1\nrevision: a\nrules:\n"


def ranked(index: int, label: str, rates: dict[str, float], q: float) -> saegis.FeatureContrast:
    info = saegis.FeatureInfo("my sae", index, "layers.1", label, None, None, (), (), None, {}, {}, False)
    side = saegis.ContrastSide(1.0, 0.9, 0.5, rates)
    return saegis.FeatureContrast(info, 0.9, side, saegis.ContrastSide(0.0, 0.0, 0.0, {}), 0.95, 2.0, q, q)


@pytest.mark.parametrize("label", ["poison", "a\n  - id: other", "x\u2028y\x85z # {", ""])
def test_a_rule_stands_in_a_policy_as_it_is_printed(label: str) -> None:
    features = ranked(3, label, {"en": 0.9, "sw": 0.8}, 0.001), ranked(12, "fog", {}, 0.04)
    text = rule_yaml(saegis.Contrast("my sae", features, 500), "ban-harm", 40, 38)
    made = validated(Policy, read_yaml((HEAD + text).encode(), "policy.yaml"), "policy.yaml")
    (rule,) = made.rules
    assert rule.ban is not None
    assert (rule.id, rule.ban.strength) == ("ban-harm", 2.0)
    assert [(each.sae, each.index) for each in rule.ban.features] == [("my sae", 3), ("my sae", 12)]
    assert "40 texts with 38 others, among 500" in text
    assert "false discoveries is at most 0.04" in text
    assert "fires in 90% and 0%, at least 80% in each language; q 0.001" in text


def test_texts_come_with_their_languages_from_lines_of_json(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(
        '{"text": "a\u2028b", "language": "en", "label": "x"}\n\n{"text": "c"}\n', encoding="utf-8"
    )
    found = _texts(["d"], file, "--with")
    assert (found.texts, found.languages) == (["d", "a\u2028b", "c"], ["", "en", ""])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[1]", "line 1 is no object"),
        ("{", "line 1 is no object"),
        ('{"language": "en"}', "line 1 is no object"),
        ('{"text": 3}', "line 1: text and language are texts"),
    ],
)
def test_a_wrong_line_is_named(
    tmp_path: Path, line: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(typer.Exit):
        _texts(None, file, "--with")
    assert complaint in capsys.readouterr().err
