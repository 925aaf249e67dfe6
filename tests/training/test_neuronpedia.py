"""Neuronpedia's explanation files: read as they are, compressed or not, and what is wrong is named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from saegis_lab.records import InputFileError
from saegis_lab.training.neuronpedia import Explanations, read_explanations, relabelled
from saegis_server.sae.labels import FeatureLabel, Labels


def entry(index: object, description: object = "ships", **further: Any) -> str:
    known = {"modelId": "gpt2-small", "layer": "8-res-jb", "index": index, "description": description}
    return json.dumps(known | {"embedding": "[0.1]", "explanationModelName": "gpt-4o-mini"} | further)


def write(path: Path, *lines: str) -> Path:
    content = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["batch-0.jsonl.gz", "batch-0.jsonl"])
def test_the_first_explanation_of_each_feature_counts(tmp_path: Path, name: str) -> None:
    first = write(
        tmp_path / name, entry("3", " a\n ship\u2028at sea "), "", entry("4", ""), entry("5", "fog")
    )
    second = write(tmp_path / "batch-1.jsonl", entry("3", "boats"), entry("4", "rain"))
    found = read_explanations([first, second])
    assert found == Explanations("gpt2-small/8-res-jb", {3: "a ship at sea", 5: "fog", 4: "rain"}, 1)


def test_a_file_may_be_one_list(tmp_path: Path) -> None:
    path = write(tmp_path / "export.json", f"[{entry('1')},", f"{entry('2', 'fog')}]")
    assert read_explanations([path]).by_feature == {1: "ships", 2: "fog"}


def test_one_models_explanations_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", entry("1"), entry("1", "by another", explanationModelName="o4"))
    assert read_explanations([path], "o4").by_feature == {1: "by another"}
    with pytest.raises(
        InputFileError, match="no explanations in it by 'x'; there are some by gpt-4o-mini, o4"
    ):
        read_explanations([path], "x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("3", "line 2: not a JSON object"),
        (entry(4), "line 2: index is 4, not a text"),
        (entry("-1"), "line 2: index is '-1', not a number"),
        (entry("4", None), "line 2: description is None, not a text"),
        (entry("4", modelId=None), "line 2: modelId is None"),
        (
            entry("4", layer="9-res-jb"),
            "explains features of gpt2-small/9-res-jb, others are of gpt2-small/8",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", entry("1"), line)
    with pytest.raises(InputFileError, match=message):
        read_explanations([path])


def test_a_file_that_is_no_export_is_named(tmp_path: Path) -> None:
    cut = write(tmp_path / "cut.jsonl.gz", entry("1"))
    cut.write_bytes(cut.read_bytes()[:-9])
    with pytest.raises(InputFileError, match="cannot be read"):
        read_explanations([cut])
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text(entry("1"), encoding="utf-8")
    with pytest.raises(InputFileError, match="cannot be read"):
        read_explanations([plain])
    with pytest.raises(InputFileError, match="there are no explanations in it"):
        read_explanations([write(tmp_path / "empty.jsonl")])


def test_what_was_measured_of_a_feature_stays_and_what_of_its_old_label_goes() -> None:
    old = FeatureLabel(3, "token 'x'", ("sea",), ("en",), 0.5, {"en": 0.2}, 9.0, 0.1, True, {"en": 0.4})
    made = relabelled(
        Labels([old, FeatureLabel(7, "fog")]), Explanations("m/s", {3: "ships", 9: "rain"}, 0), 10
    )
    assert list(made) == [
        FeatureLabel(3, "ships", ("sea",), ("en",), max_activation=9.0, density=0.1, harmful=True),
        FeatureLabel(7, "fog"),
        FeatureLabel(9, "rain"),
    ]
    with pytest.raises(ValueError, match="m/s explains feature 9; this SAE has features 0 to 8"):
        relabelled(Labels(), Explanations("m/s", {9: "rain"}, 0), 9)
