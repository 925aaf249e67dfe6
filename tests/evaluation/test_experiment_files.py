"""Tests of the files of bans, clamps and redirects and of decodings, and how a wrong one is told."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import saegis
from saegis_lab.evaluation.experiment import DEFAULT_VALUES, BanFile, ClampFile, Decoding, RedirectFile
from saegis_lab.records import InputFileError

BAN = {"features": [3, 5], "strength": 2, "chosen_from": ["en", "zh"]}
CLAMP = {"feature": 3}
REDIRECT = {"features": (3, 5), "to": 7, "factor": 1.5, "strength": 0.5, "chosen_from": ("en", "zh")}
bans = st.builds(
    BanFile,
    st.lists(st.integers(0, 10**6), min_size=1, unique=True).map(tuple),
    st.floats(0, 1e6),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@given(bans)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, ban: BanFile) -> None:
    path = tmp_path_factory.mktemp("ban") / "ban.json"
    ban.save(path)
    assert BanFile.load(path) == ban
    assert ("sae" in json.loads(path.read_text(encoding="utf-8"))) == bool(ban.sae)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"features": []}, "features: there must be at least one"),
        ({"features": [3, -1]}, "-1 is no index"),
        ({"features": [3, 5, 3]}, "3 stands there twice"),
        ({"features": [3, "poison"]}, r"features\[1\]: Input should be a valid integer"),
        ({"features": [3, True]}, r"features\[1\]: Input should be a valid integer"),
        ({"features": 3}, "features: Input should be a valid array"),
        ({"strength": -1}, "strength: must be a finite number"),
        ({"strength": "2"}, "strength: Input should be a valid number"),
        ({"chosen_from": "en"}, "chosen_from: Input should be a valid array"),
        ({"languages": ["en"]}, "languages: is not a key"),
    ],
)
def test_a_wrong_ban_file_is_told(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    path = tmp_path / "ban.json"
    path.write_text(json.dumps(BAN | change), encoding="utf-8")
    with pytest.raises(InputFileError, match=complaint) as caught:
        BanFile.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", list(BAN))
def test_a_ban_file_needs_its_keys(tmp_path: Path, key: str) -> None:
    path = tmp_path / "ban.json"
    path.write_text(json.dumps({name: value for name, value in BAN.items() if name != key}), encoding="utf-8")
    with pytest.raises(InputFileError, match=f"{key}: is missing"):
        BanFile.load(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_are_finite(tmp_path: Path, number: str) -> None:
    path = tmp_path / "ban.json"
    text = json.dumps(BAN).replace('"strength": 2', f'"strength": {number}')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputFileError, match="strength: Input should be a finite number"):
        BanFile.load(path)


def test_a_clamp_file_needs_its_feature_alone(tmp_path: Path) -> None:
    path = tmp_path / "clamp.json"
    path.write_text(json.dumps(CLAMP), encoding="utf-8")
    assert ClampFile.load(path) == ClampFile(3, DEFAULT_VALUES, "max_activation", "landmark", "")
    path.write_text(json.dumps({"feature": 3, "values": [0, 8.5], "unit": "feature", "sae": "a"}))
    assert ClampFile.load(path) == ClampFile(3, (0.0, 8.5), "feature", "landmark", "a")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"feature": -3}, "-3 is no index"),
        ({"feature": "bridge"}, "feature: Input should be a valid integer"),
        ({"values": []}, "values: there must be at least one"),
        ({"values": [0, 2, 2]}, "values: each must be greater"),
        ({"unit": "norm_fraction"}, "unit: Input should be 'feature' or 'max_activation'"),
        ({"value": 3}, "value: is not a key"),
    ],
)
def test_a_wrong_clamp_file_is_told(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    path = tmp_path / "clamp.json"
    path.write_text(json.dumps(CLAMP | change), encoding="utf-8")
    with pytest.raises(InputFileError, match=complaint):
        ClampFile.load(path)


def test_a_redirect_file_is_a_redirect_of_each_of_its_features(tmp_path: Path) -> None:
    path = tmp_path / "redirect.json"
    redirect = RedirectFile(**REDIRECT)  # type: ignore[arg-type]
    redirect.save(path)
    assert RedirectFile.load(path) == redirect
    to = saegis.feature(7)
    assert redirect.edits == [
        saegis.redirect(3, 1.5, to=to, strength=0.5),
        saegis.redirect(5, 1.5, to=to, strength=0.5),
    ]
    named = replace(redirect, sae="a")
    named.save(path)
    assert RedirectFile.load(path) == named
    target = named.edits[0].redirect
    assert target is not None
    assert named.edits[0].target == saegis.feature(3, sae="a")
    assert target.target == saegis.feature(7, sae="a")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"features": ()}, "features: there must be at least one"),
        ({"features": (3, 3)}, "features: 3 stands there twice"),
        ({"features": (-1,)}, "features: -1 is no index"),
        ({"to": -7}, "to: -7 is no index"),
        ({"to": 5}, "to: 5 is one of the features that are redirected"),
        ({"factor": -1.0}, "factor: must be a finite number of at least 0"),
        ({"strength": math.inf}, "strength: must be a finite number of at least 0"),
    ],
)
def test_a_wrong_redirect_is_told(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        RedirectFile(**REDIRECT | change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "samples": 0}, "samples"),
        ({"samples": 2}, "samples"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_wrong_decoding_names_its_field(settings: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        Decoding(**settings)  # type: ignore[arg-type]


def test_a_decoding_tells_what_it_is() -> None:
    assert str(Decoding()) == "greedy"
    assert str(Decoding(0.8)) == "temperature 0.8"
    assert str(Decoding(0.8, 4)) == "temperature 0.8, 4 samples"
