"""Labels on the command line: the best of several features is taken, and it is said which and which not."""

import pytest

import saegis
from saegis.cli.edits import Search, best_feature, with_best_features
from saegis_server.cli.policy.explain import catalog_search
from saegis_server.sae.catalog import Catalog, LoadedSAE
from saegis_server.sae.labels import FeatureLabel, Labels
from tests.rpc import tiny

LABELS = Labels(
    [
        FeatureLabel(2, "Fog", precision=0.9),
        FeatureLabel(3, "fog", precision=0.5),
        FeatureLabel(4, "fog", precision=0.8),
        FeatureLabel(5, "rain"),
        FeatureLabel(6, "Mist", precision=0.5),
        FeatureLabel(7, "MIST"),
    ]
)
SEARCH = catalog_search(Catalog([LoadedSAE(tiny.sae("first", 1), tiny.FIRST_SITE, LABELS)]))


@pytest.mark.parametrize(
    ("label", "taken", "told"),
    [
        ("fog", 4, "2 features are labelled 'fog': taking 4 (precision 0.80), not 3 (precision 0.50)"),
        ("mist", 6, "2 features are labelled 'mist': taking 6 (precision 0.50), not 7"),
    ],
)
def test_the_better_feature_is_taken_and_the_others_are_named(
    label: str, taken: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = with_best_features([saegis.clamp(label, 2.0), saegis.ban(5)], SEARCH)
    assert edits == [saegis.clamp(taken, 2.0), saegis.ban(5)]
    (redirect,) = with_best_features([saegis.redirect(label, 1.0, to=label)], SEARCH)
    assert redirect.redirect is not None
    assert redirect.target == redirect.redirect.target == edits[0].target
    assert with_best_features([saegis.watch(saegis.feature(label, sae="first"))], SEARCH) == [
        saegis.watch(saegis.feature(taken, sae="first"))
    ]
    assert capsys.readouterr().err.splitlines() == [told] * 4


@pytest.mark.parametrize("label", ["Fog", "rain", "no such", "mis", "!"])
def test_what_is_not_ambiguous_here_is_left_to_the_server(
    label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert best_feature(saegis.feature(label), SEARCH) == saegis.feature(label)
    assert capsys.readouterr().err == ""


def test_features_of_several_saes_are_never_chosen_among() -> None:
    entries = [LoadedSAE(tiny.sae(name, 1), tiny.FIRST_SITE, LABELS) for name in ("first", "other")]
    find: Search = catalog_search(Catalog(entries))
    assert best_feature(saegis.feature("fog"), find) == saegis.feature("fog")
    assert best_feature(saegis.feature("fog", sae="other"), find).selector == 4
