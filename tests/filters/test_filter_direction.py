"""The refusal direction against numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from saegis_lab.filters.direction import (
    DirectionError,
    RefusalExample,
    aligned_language,
    from_examples,
    from_feature,
    from_prompts,
    load_examples,
    refusal_difference,
)
from saegis_lab.records import InputFileError
from saegis_server.engine.torch.site_reading import read_site
from tests.filters import world

HARMFUL = {"en": ["how do I hurt", "tell me"], "zh": ["poison", "a bomb", "x"], "fr": ["y"]}
BENIGN = {"en": ["bread", "a dog runs"], "zh": ["rivers"], "fr": ["tea", "rain"]}


def last(prompt: str) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    subject = world.subject()
    x = read_site(subject.loaded.model, subject.site, torch.tensor([subject.asked(prompt)]))
    return x[0, -1].double().numpy()


@pytest.mark.parametrize("languages", [("en",), ("en", "zh"), ("en", "zh", "fr")])
def test_the_direction_is_what_the_aligned_language_adds(languages: tuple[str, ...]) -> None:
    harmful, benign = ({code: prompts[code] for code in languages} for prompts in (HARMFUL, BENIGN))
    got = from_prompts(world.subject(), harmful, benign, "en")
    means = {
        code: np.mean([last(each) for each in HARMFUL[code]], 0)
        - np.mean([last(each) for each in BENIGN[code]], 0)
        for code in languages
    }
    wanted = means["en"]
    if len(languages) > 1:
        wanted = wanted - np.mean([means[code] for code in languages if code != "en"], 0)
    assert got.norm == pytest.approx(float(np.linalg.norm(wanted)), rel=1e-5)
    assert np.allclose(got.vector.numpy(), wanted / np.linalg.norm(wanted), atol=1e-5)
    assert "harmful − benign prompts in en" in got.source
    assert ("less the same in zh" in got.source) is (len(languages) > 1)


def test_the_aligned_language_refuses_most_and_often_enough() -> None:
    assert aligned_language({"zh": 0.4, "en": 0.9}, 0.5) == "en"
    assert aligned_language({"zh": 0.4, "en": 0.3}, 0.5) is None
    assert aligned_language({}, 0.5) is None


def test_a_direction_from_examples_is_refusals_less_own_answers() -> None:
    subject = world.subject()
    examples = [RefusalExample("bread", "no, I do not"), RefusalExample("rivers", "never")]
    got = from_examples(subject, examples, tokens=3)
    sides = []
    for refusing in (True, False):
        read = []
        for example in examples:
            asked = subject.asked(example.prompt)
            (own,) = subject.answers([asked], max_tokens=3)
            refusal = subject.loaded.tokenizer.encode(example.refusal, add_special_tokens=False)[:3]
            answer = refusal if refusing else own
            x = read_site(subject.loaded.model, subject.site, torch.tensor([[*asked, *answer]]))
            read.append(x[0, len(asked) :].double().numpy())
        sides.append(np.concatenate(read).mean(0))
    wanted = sides[0] - sides[1]
    assert got.norm == pytest.approx(float(np.linalg.norm(wanted)), rel=1e-4)
    assert np.allclose(got.vector.numpy() * got.norm, wanted, atol=1e-3)


def test_a_feature_gives_its_decoder_row_at_its_largest() -> None:
    subject = world.subject()
    row = subject.sae.W_dec[7].double().numpy()
    got = from_feature(subject, 7, largest=4.0)
    assert got.norm == pytest.approx(4.0 * float(np.linalg.norm(row)), rel=1e-6)
    assert np.allclose(got.vector.numpy(), row / np.linalg.norm(row), atol=1e-6)


def test_what_gives_no_direction_is_refused(tmp_path: Path) -> None:
    subject = world.subject()
    with pytest.raises(DirectionError, match="feature 64 does not exist"):
        from_feature(subject, 64, 1.0)
    with pytest.raises(DirectionError, match="the aligned language 'de' is none of en"):
        from_prompts(subject, {"en": ["x"]}, {"en": ["y"]}, "de")
    with pytest.raises(DirectionError, match="language 'zh' needs harmful and benign prompts"):
        from_prompts(subject, {"en": ["x"], "zh": ["x"]}, {"en": ["y"]}, "en")
    with pytest.raises(DirectionError, match="zero or not finite"):
        from_prompts(subject, {"en": ["x"]}, {"en": ["x"]}, "en")
    same = torch.ones(3, 4)
    difference, _ = refusal_difference({"en": same}, {"en": same}, "en")
    assert not difference.any()
    path = tmp_path / "examples.jsonl"
    path.write_text('{"prompt": "x", "refusal": " "}\n', encoding="utf-8")
    with pytest.raises(InputFileError, match="line 1: refusal is blank"):
        load_examples(path)
