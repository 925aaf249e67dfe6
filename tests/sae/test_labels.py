"""Feature labels: reading with line numbers, writing, finding by label, and how well one fits."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.labels import LABELS_FILE, FeatureLabel, Labels
from tests.tiers import sized

BRIDGE = FeatureLabel(
    7, "Golden Gate Bridge", ("landmark", "bridge"), ("en", "es"), 0.9, {"en": 0.8, "es": 0.7}, 31.5, 0.01
)
POISON = FeatureLabel(
    3, "Poison (harmful)", ("poison",), ("en", "fr"), 0.95, {"en": 0.9}, 12.0, 0.02, harmful=True
)
LABELS = Labels([BRIDGE, POISON])


def _write(folder: Path, *lines: str) -> Path:
    (folder / LABELS_FILE).write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_an_absent_file_is_no_labels(tmp_path: Path) -> None:
    labels = Labels.load(tmp_path)
    assert (len(labels), labels.get(0), labels.by_label("x"), len(labels.find("x"))) == (0, None, (), 0)


def test_fields_are_read(tmp_path: Path) -> None:
    line = (
        '{"feature": 5, "label": "fog", "subjects": ["weather"], "languages": ["en", "de"], '
        '"precision": 0.5, "recall": {"en": 1, "de": 0.25}, '
        '"max_activation": 9.5, "density": 0.125, "harmful": true, '
        '"precision_by_language": {"en": 0.75}}'
    )
    labels = Labels.load(_write(tmp_path, line, "", '{"feature": 2, "label": "rain"}'), features=6)
    assert [label.feature for label in labels] == [2, 5]
    fog = labels.get(5)
    assert fog == FeatureLabel(
        5, "fog", ("weather",), ("en", "de"), 0.5, {"en": 1.0, "de": 0.25}, 9.5, 0.125, True, {"en": 0.75}
    )
    assert labels.get(2) == FeatureLabel(2, "rain")


finite = st.floats(0.0, 1.0)
labels_strategy = st.lists(
    st.builds(
        FeatureLabel,
        feature=st.integers(0, 999),
        label=st.text(min_size=1).filter(lambda text: text.strip() and text.isprintable()),
        subjects=st.lists(st.text(st.characters(codec="utf-8"))).map(tuple),
        languages=st.lists(st.text(st.characters(codec="utf-8"))).map(tuple),
        precision=st.none() | finite,
        recall=st.dictionaries(st.text(st.characters(codec="utf-8")), finite),
        max_activation=st.none() | st.floats(0.0, 1e30),
        density=st.none() | finite,
        harmful=st.booleans(),
        precision_by_language=st.dictionaries(st.text(st.characters(codec="utf-8")), finite),
    ),
    unique_by=lambda label: label.feature,
    max_size=5,
)


@settings(max_examples=sized(100, 25))
@given(labels=labels_strategy)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, labels: list[FeatureLabel]
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    Labels(labels).save(folder)
    assert list(Labels.load(folder)) == sorted(labels, key=lambda label: label.feature)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting"),
        ("[1]", "not a JSON object"),
        ('{"label": "x"}', "feature is None, not a whole number"),
        ('{"feature": true, "label": "x"}', "feature is True"),
        ('{"feature": -1, "label": "x"}', "feature is -1"),
        ('{"feature": 3}', "label is None, not a text"),
        ('{"feature": 3, "label": " "}', "label is ' ', not a text"),
        ('{"feature": 3, "label": "x", "lable": "y"}', "unknown field 'lable'; known are feature, label"),
        ('{"feature": 3, "label": "x", "label": "y"}', "a field stands twice"),
        ('{"feature": 3, "label": "x", "subjects": "a"}', "subjects is 'a', not a list of texts"),
        ('{"feature": 3, "label": "x", "languages": [1]}', r"languages is \[1\]"),
        ('{"feature": 3, "label": "x", "precision": 1.5}', "precision is 1.5, not a number from 0 to 1"),
        ('{"feature": 3, "label": "x", "density": NaN}', "density is nan"),
        ('{"feature": 3, "label": "x", "max_activation": "9"}', "max_activation is '9'"),
        ('{"feature": 3, "label": "x", "recall": [0.1]}', r"recall is \[0.1\], not an object"),
        ('{"feature": 3, "label": "x", "recall": {"en": -1}}', "recall.en is -1"),
        ('{"feature": 3, "label": "x", "precision_by_language": 1}', "precision_by_language is 1, not an"),
        ('{"feature": 3, "label": "x", "precision_by_language": {"en": 2}}', "precision_by_language.en is 2"),
        ('{"feature": 3, "label": "x", "harmful": 1}', "harmful is 1, not true or false"),
        ('{"feature": 0, "label": "x"}', "feature 0 stands in line 1 already"),
        ('{"feature": 24, "label": "x"}', "feature 24 does not exist: there are 24"),
        ("[" * 100_000, ""),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    _write(tmp_path, '{"feature": 0, "label": "a\u2028b"}', "", line)
    with pytest.raises(SAEFileError, match=rf"features\.jsonl: line 3: .*{message}"):
        Labels.load(tmp_path, features=24)


def test_two_labels_of_one_feature_are_refused() -> None:
    with pytest.raises(ValueError, match="same feature"):
        Labels([BRIDGE, FeatureLabel(7, "other")])


@pytest.mark.parametrize("label", ["Golden Gate Bridge", "golden  gate bridge", "GOLDEN GATE BRÍDGE"])
def test_by_label_ignores_case_and_accents(label: str) -> None:
    assert LABELS.by_label(label) == (BRIDGE,)
    assert LABELS.by_label("golden gate") == ()


SEVERAL = Labels(
    [
        FeatureLabel(1, "the fog horn", ("fog", "horn"), precision=1.0),
        FeatureLabel(4, "Fog", precision=0.5),
        FeatureLabel(5, "foggy"),
        FeatureLabel(6, "fog"),
        FeatureLabel(9, "fog", precision=0.8),
    ]
)


def test_by_label_gives_all_the_best_fitting_first() -> None:
    assert [label.feature for label in SEVERAL.by_label("fog")] == [9, 4, 6]


@pytest.mark.parametrize(
    ("precision", "recall", "fit"),
    [
        (None, {"en": 1.0}, 0.0),
        (0.8, {}, 0.8),
        (0.5, {"en": 0.5}, 0.5),
        (1.0, {"en": 0.2, "fr": 0.4}, 2 * 0.3 / 1.3),
        (0.0, {"en": 0.0}, 0.0),
    ],
)
def test_a_label_fits_by_precision_and_recall(
    precision: float | None, recall: dict[str, float], fit: float
) -> None:
    assert FeatureLabel(0, "x", precision=precision, recall=recall).fit == pytest.approx(fit)
