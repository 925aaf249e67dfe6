"""Coverage: against a plain loop, the SAE with few features, and the plot."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis.cli.output import plain
from saegis_lab.evaluation.coverage import Coverage, CoverageCounter, with_features
from saegis_lab.evaluation.plots import DOTS_PER_INCH, plot_coverage
from saegis_lab.training.texts import TokenTruth
from saegis_server.sae.autoencoder import Architecture
from saegis_server.steering.rows import Norm
from tests.sae.sae_cases import FEATURES, random_activations, random_sae
from tests.training.statistics_cases import TRUTHS, Tokens, random_tokens


def is_cat(truth: TokenTruth) -> bool:
    return truth.subject == "cat"


def measured(tokens: Tokens, texts: torch.Tensor, found_in: tuple[str, ...] = (), size: int = 16) -> Coverage:
    counter = CoverageCounter([5, 3, 9][: tokens.activations.shape[1]], is_cat)
    for part, numbers in zip(tokens.parts(size), torch.split(texts, size), strict=True):
        counter.add(numbers, part.truths, part.activations)
    return counter.result("cat", found_in)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), n=st.integers(30, 80), size=st.integers(1, 90))
def test_every_share_is_that_of_a_plain_loop(seed: int, n: int, size: int) -> None:
    tokens = random_tokens(seed, n, 3)
    texts = torch.arange(n) // 4
    rows = list(zip(texts.tolist(), tokens.truths, (tokens.activations > 0).tolist(), strict=True))
    languages = {truth.language for _, truth, _ in rows if is_cat(truth)}
    if not languages:
        return
    result = measured(tokens, texts, size=size)
    assert list(result.languages) == sorted(languages)
    for code in languages:
        on = [(text, fired) for text, truth, fired in rows if truth.language == code and is_cat(truth)]
        off = [fired for _, truth, fired in rows if truth.language == code and not is_cat(truth)]
        for column, each in enumerate(result.features):
            hits = sum(fired[column] for _, fired in on)
            others = sum(fired[column] for fired in off)
            assert each.recall[code] == hits / len(on)
            assert each.precision[code] == (hits / (hits + others) if hits + others else None)
        together = result.languages[code]
        assert together.wanted_tokens == len(on)
        assert together.tokens == sum(any(fired) for _, fired in on) / len(on)
        assert together.wanted_texts == len({text for text, _ in on})
        covered = {text for text, fired in on if any(fired)}
        assert together.texts == len(covered) / together.wanted_texts
        assert together.other_tokens == (sum(map(any, off)) / len(off) if off else None)
    for each in result.features:
        assert each.recall[each.worst] == min(each.recall.values())


def english_alone() -> Coverage:
    """Feature 5 fires on cats in English alone, feature 3 on half of them in every language."""
    truths = [truth for truth in TRUTHS for _ in range(4)]
    rows = [
        [1.0 * (is_cat(t) and t.language == "en"), 1.0 * (is_cat(t) and n % 2)] for n, t in enumerate(truths)
    ]
    tokens = Tokens(torch.zeros(20, dtype=torch.int64), torch.tensor(rows), truths)
    return measured(tokens, torch.arange(20) // 2, ("en",))


def test_the_worst_language_is_one_in_which_a_feature_was_not_found() -> None:
    result = english_alone()
    first, second = result.features
    assert (first.feature, first.recall, first.worst) == (5, {"en": 1.0, "fr": 0.0}, "fr")
    assert first.precision == {"en": 1.0, "fr": None}
    assert (second.recall, second.worst) == ({"en": 0.5, "fr": 0.5}, "fr")
    assert result.languages["en"].tokens == 1.0
    assert (result.languages["fr"].tokens, result.languages["fr"].texts) == (0.5, 1.0)
    assert (result.languages["fr"].wanted_texts, result.languages["fr"].other_tokens) == (2, 0.0)


def test_a_result_has_a_json_form() -> None:
    told = plain(english_alone())
    assert told["found_in"] == ["en"]
    assert told["features"][0]["recall"] == {"en": 1.0, "fr": 0.0}
    assert told["languages"]["fr"]["texts"] == 1.0


def test_where_nothing_is_wanted_there_is_no_coverage() -> None:
    counter = CoverageCounter([5], lambda truth: truth.subject == "dog")
    counter.add(torch.zeros(5, dtype=torch.int64), list(TRUTHS), torch.ones(5, 1))
    with pytest.raises(ValueError, match=r"no token of the texts is wanted \(dog\)"):
        counter.result("dog")
    with pytest.raises(ValueError, match=r"language 'zh': no token is wanted .* there are some in en, fr"):
        measured(random_tokens(0, 60, 1), torch.zeros(60, dtype=torch.int64), ("zh",))


@given(
    architecture=st.sampled_from(Architecture),
    norm=st.sampled_from(Norm),
    features=st.lists(st.integers(0, FEATURES - 1), min_size=1, unique=True),
    applied=st.booleans(),
)
def test_an_sae_of_few_features_encodes_them_as_the_whole_one(
    architecture: Architecture, norm: Norm, features: list[int], applied: bool
) -> None:
    sae = random_sae(architecture, norm=norm, apply_b_dec_to_input=applied)
    x = random_activations(20)
    few = with_features(sae, features).encode(x)
    assert torch.allclose(few, sae.encode(x)[:, features], atol=1e-5, rtol=1e-5)


def test_a_feature_that_does_not_exist_is_refused() -> None:
    with pytest.raises(IndexError, match=f"feature {FEATURES} does not exist"):
        with_features(random_sae(), [0, FEATURES])


@pytest.mark.parametrize("found_in", [(), ("en",), ("en", "fr")])
def test_the_plot_is_a_png_with_a_cell_for_every_share(tmp_path: Path, found_in: tuple[str, ...]) -> None:
    from matplotlib.image import imread

    tokens = random_tokens(1, 80, 3)
    result = measured(tokens, torch.arange(80) // 4, found_in)
    path = tmp_path / "coverage.png"
    plot_coverage(result, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread(path)
    height, width = image.shape[:2]
    inches = (1.9 + 0.62 * 2, 1.7 + 0.3 * 5)
    assert math.isclose(width, inches[0] * DOTS_PER_INCH, abs_tol=1)
    assert math.isclose(height, inches[1] * DOTS_PER_INCH, abs_tol=1)
    shades = {tuple(map(int, 255 * pixel)) for pixel in image[:: height // 40, :: width // 40].reshape(-1, 4)}
    assert len(shades) > len(set(result.features[0].recall.values()))
