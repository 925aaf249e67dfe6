"""The pipeline on a tiny recipe, from the corpus to the plots, by its command."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from saegis_lab.evaluation.attack_report import AttackReport
from saegis_lab.evaluation.calibration import BanReport, Calibration, Verdict
from saegis_lab.evaluation.clamp import ClampResult
from saegis_lab.evaluation.experiment import BanFile, RedirectFile
from saegis_lab.evaluation.filter_report import FilterReport
from saegis_lab.filters.card import WHOLE
from saegis_lab.polyglot.__main__ import app
from saegis_lab.polyglot.corpus import Corpus
from saegis_lab.polyglot.filter import attack_run_filter
from saegis_lab.polyglot.filter_figures import BANNED, RunFilter
from saegis_lab.polyglot.language_model import Training, held_out_loss, train_language_model
from saegis_lab.polyglot.lexicon import LANGUAGES
from saegis_lab.polyglot.manifest import Manifest, digests, ship
from saegis_lab.polyglot.measuring import best_clamp, recommended_strength
from saegis_lab.polyglot.recipe import CHOSEN_FROM, Recipe, Seeds
from saegis_lab.polyglot.steps import load, make_model
from saegis_lab.training.held_out import held_out_activations, measure_held_out
from saegis_lab.training.texts import Encoder, read_documents
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.steering.conditions import Scope

pytestmark = pytest.mark.slow


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("polyglot")
    done = command("all", "--quick", "--seed", 3, "--out", out)
    assert done.exit_code == 0, done.output[-3000:]
    return out


def test_every_step_leaves_its_files(made: Path) -> None:
    told = Manifest.load(made / "manifest.json")
    assert told.run == 3
    assert told.files == digests(made)
    assert {"model/model.safetensors", "model/tokenizer.json", "sae/sae_weights.safetensors"} <= set(
        told.files
    )
    assert {"eval/ban.json", "eval/prompts.jsonl", "eval/words.json", "sae/sample.txt"} <= set(told.files)
    first = json.loads((made / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[0])
    document = Corpus(Seeds.of(3).train).document(0)
    assert "".join(segment["text"] for segment in first["segments"]) == document.text
    labels = (made / "sae" / "features.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(labels) == told.features == Recipe.quick().sae.features
    for name in ("ban.png", "clamp.png"):
        assert (made / name).read_bytes().startswith(b"\x89PNG")


def test_the_manifest_tells_what_was_measured(made: Path) -> None:
    told = Manifest.load(made / "manifest.json")
    loaded = load(made)
    documents = list(Corpus(Seeds.of(3).held_out).documents(Recipe.quick().held_out_documents))
    loss, bound = held_out_loss(loaded.model, loaded.tokenizer, documents)
    assert told.held_out_loss == pytest.approx(loss, abs=1e-4)
    assert told.entropy_bound == pytest.approx(bound, abs=1e-4)
    curve, result = (BanReport.load(made / f"ban_{name}.json") for name in ("curve", "result"))
    ban = BanFile.load(made / "eval" / "ban.json")
    assert ban.chosen_from == told.ban.languages == CHOSEN_FROM
    assert ban.features == told.ban.features == curve.result.features
    assert ban.strength == told.ban.strength == result.result.strengths[0]
    assert curve.calibration is not None
    assert curve.calibration.languages == CHOSEN_FROM
    row = result.result.row("de", ban.strength, 0.0)
    assert row.kl is not None
    assert told.languages["de"].kl == pytest.approx(row.kl, abs=1e-5)


def test_the_stated_fit_is_that_on_the_held_out_text(made: Path) -> None:
    from saegis_server.sae.files import load_sae
    from saegis_server.steering.site import Site

    told, loaded, sae = Manifest.load(made / "manifest.json"), load(made), load_sae(made / "sae")
    rows = Encoder(loaded.tokenizer, 1024, raw=True).rows(read_documents(made / "held_out.jsonl"))
    special = frozenset(id for id in (loaded.tokenizer.bos_token_id, loaded.tokenizer.pad_token_id) if id)
    fit = measure_held_out(sae, held_out_activations(loaded, Site.parse(told.site), rows, special))
    assert (told.fvu, told.l0, told.dead) == pytest.approx((fit.fvu, fit.l0, fit.dead), abs=1e-3)


def filter_of(made: Path) -> RunFilter:
    told = Manifest.load(made / "manifest.json").filter
    assert told is not None
    return told


def test_the_filter_is_told_as_it_was_measured_part_by_part(made: Path) -> None:
    told, result = filter_of(made), FilterReport.load(made / "filter_result.json").result
    assert told.chosen_from == result.chosen_from == CHOSEN_FROM
    assert list(told.parts) == [condition.name for condition in result.conditions]
    assert list(told.parts)[:2] == ["nothing", BANNED]
    assert list(told.parts)[-1] == WHOLE
    for part, figures in told.parts.items():
        for temperature, by_language in ((0.0, figures.greedy), (1.0, figures.sampled)):
            assert list(by_language) == list(LANGUAGES)
            for code, received in by_language.items():
                row = result.row(code, part, temperature)
                assert row.harmful
                assert row.benign
                assert received.harm == pytest.approx(row.harmful.harm.words, abs=1e-4)
                assert received.lost == pytest.approx(row.benign.lost, abs=1e-4)
                assert received.kl == pytest.approx(row.kl, abs=1e-5)
                assert (received.refused, received.stopped) == (row.harmful.refused, row.harmful.stopped)
    moved = [code for code in LANGUAGES if told.parts[WHOLE].greedy[code].kl > 0.0]
    assert moved, "the filter moves what the model predicts"


def test_the_bundle_of_the_filter_is_the_one_that_the_manifest_names(made: Path) -> None:
    told, bundle = filter_of(made), Bundle.read(made / "filter")
    assert bundle.digest == told.digest
    redirects = [rule.redirect for rule in bundle.policy.rules if rule.redirect is not None]
    indices = {index for each in redirects for selector in each.features for index in selector.indices or ()}
    assert indices == set(told.features)
    assert {each.factor for each in redirects} == {told.factor, told.answer_factor} - {0.0}
    over = {rule.when.over for rule in bundle.policy.rules if rule.stop is not None and rule.when is not None}
    assert (Scope.PROMPT in over, Scope.ANSWER in over) == (told.hears, told.stops)
    (landmark,) = bundle.policy.allow
    clamped = Manifest.load(made / "manifest.json").clamp.feature
    assert [selector.index for selector in landmark.features or ()] == [clamped]


def test_what_comes_back_under_attack_is_told_in_manifest_and_card(made: Path) -> None:
    told, report = filter_of(made), AttackReport.load(made / "attack_result.json")
    result = report.result
    assert list(told.attacks) == list(result.attacks)
    for attack, backs in told.attacks.items():
        assert list(backs) == [condition.name for condition in result.conditions[1:]]
        mean = result.mean_back(attack, WHOLE)
        assert backs[WHOLE].mean == (None if mean is None else pytest.approx(mean, abs=1e-4))
    card = (made / "filter" / "README.md").read_text(encoding="utf-8")
    assert "It was not attacked" not in card
    assert all(f"| {attack} |" in card for attack in result.attacks)
    assert "## Why these parts" in card
    figures = json.loads((made / "filter" / "calibration.json").read_text(encoding="utf-8"))["filter"]
    assert figures["attacked"]["result"]["attacks"] == list(result.attacks)
    assert figures["measured"]["languages"] == list(LANGUAGES)


def test_a_run_ships_whole_and_stands_in_the_table_of_seeds(made: Path, tmp_path: Path) -> None:
    weights, policy = tmp_path / "weights", tmp_path / "policy"
    ship(made, weights, policy)
    assert digests(weights) == Manifest.load(weights / "manifest.json").files
    assert Bundle.read(policy) == Bundle.read(made / "filter")
    done = command("seeds", "--out", made, "--out", weights / "manifest.json")
    assert done.exit_code == 0
    assert done.stdout.count("run 3") >= 6
    for told in ("dead features", BANNED, WHOLE, "bars missed", "what ships: "):
        assert told in done.stdout
    (policy / "README.md").write_text("another", encoding="utf-8")
    shutil.copytree(policy, tmp_path / "run" / "filter")
    shutil.copy(weights / "manifest.json", tmp_path / "run")
    with pytest.raises(ValueError, match="run the step `filter` again"):
        ship(tmp_path / "run", weights, policy)


def test_a_step_without_the_one_before_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the step `tokenizer` first"):
        make_model(tmp_path, Recipe.quick(), Seeds.of(0))
    with pytest.raises(FileNotFoundError, match="run the step `model` first"):
        load(tmp_path)


def test_an_attack_without_a_filter_says_so(made: Path, tmp_path: Path) -> None:
    replace(Manifest.load(made / "manifest.json"), filter=None).save(tmp_path / "manifest.json")
    with pytest.raises(FileNotFoundError, match="run the step `filter` first"):
        attack_run_filter(tmp_path, Recipe.quick(), lambda *_: None)


def test_runs_share_no_seed() -> None:
    one, two = vars(Seeds.of(0)).values(), vars(Seeds.of(1)).values()
    assert len({*one, *two}) == len(one) + len(two)


def test_the_recommended_strength_is_the_calibrated_or_the_one_that_fails_least() -> None:
    verdicts = (Verdict(0.0, ("a", "b")), Verdict(1.0, ("a",)), Verdict(2.0, ("b",)))
    assert recommended_strength(Calibration(("en",), 0.1, 0.05, None, verdicts)) == 1.0
    assert recommended_strength(Calibration(("en",), 0.1, 0.05, 2.0, verdicts)) == 2.0


def test_the_best_clamp_names_the_landmark_most_where_it_is_named_least(made: Path) -> None:
    result = ClampResult.load(made / "clamp_result.json")
    worst = {
        value: min(result.row(code, value).mentions for code in result.languages) for value in result.values
    }
    assert worst[best_clamp(result)] == max(worst.values())


def test_the_redirect_is_measured_beside_the_clamp_in_every_language(made: Path) -> None:
    told, redirect = Manifest.load(made / "manifest.json"), RedirectFile.load(made / "eval" / "redirect.json")
    assert redirect.chosen_from == CHOSEN_FROM
    assert list(told.landmark) == list(LANGUAGES)
    rows = json.loads((made / "redirect_result.json").read_text(encoding="utf-8"))
    last = {(row["edits"], row["language"]): row for row in rows}
    for code, figures in told.landmark.items():
        plain = last["without edits", code]["text"]["perplexity_ratio"]
        assert plain in (None, 1.0)  # None where all answers are empty, as so small a model's may be
        assert figures.plain.perplexity == (plain or 0.0)
        for name in ("clamped", "redirected"):
            text, row = getattr(figures, name), last[name, code]
            assert text.named == pytest.approx(row["mentions"], abs=1e-4)
            assert text.reads_well == pytest.approx(row["reads_well"], abs=1e-4)
            assert text.perplexity == pytest.approx(row["text"]["perplexity_ratio"] or 0.0, abs=1e-3)
            assert text.repetition == pytest.approx(row["text"]["repetition"], abs=1e-4)


def test_training_lowers_the_loss_and_resumes_to_the_same_weights(made: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(made / "model"))
    shape = Recipe.quick().shape
    settings = Training(steps=30, batch_tokens=1024, pool=64, warmup=2, checkpoint_every=10)
    whole = train_language_model(tokenizer, Corpus(0), shape, settings, 7, tmp_path / "whole")
    assert held_out_loss(whole, tokenizer, list(Corpus(1).documents(20)))[0] < 6.0
    checkpoint = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 30
    again = train_language_model(tokenizer, Corpus(0), shape, settings, 7, tmp_path / "whole")
    for one, two in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        train_language_model(tokenizer, Corpus(0), shape, settings, 8, tmp_path / "whole")


def test_a_resumed_run_equals_an_unbroken_one(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(made / "model"))
    shape = Recipe.quick().shape
    settings = Training(steps=4, batch_tokens=512, pool=32, warmup=1, checkpoint_every=2)
    whole = train_language_model(tokenizer, Corpus(0), shape, settings, 7, tmp_path / "whole")
    import saegis_lab.polyglot.language_model as module

    write = module._checkpoint

    def write_and_break(folder: Path, *rest: object) -> None:
        write(folder, *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_checkpoint", write_and_break)
        with pytest.raises(KeyboardInterrupt):
            train_language_model(tokenizer, Corpus(0), shape, settings, 7, tmp_path / "broken")
    resumed = train_language_model(tokenizer, Corpus(0), shape, settings, 7, tmp_path / "broken")
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_held_out_loss_is_that_of_each_document_by_itself(made: Path) -> None:
    loaded = load(made)
    documents = list(Corpus(11).documents(6))
    total = tokens = 0.0
    for document in documents:
        ids = torch.tensor([loaded.tokenizer(document.text, add_special_tokens=False)["input_ids"]])
        logits = loaded.model(input_ids=ids).logits.double()
        total += functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    loss, bound = held_out_loss(loaded.model, loaded.tokenizer, documents)
    assert loss == pytest.approx(total / tokens, rel=1e-4)
    assert bound == pytest.approx(math.fsum(each.surprise for each in documents) / tokens)
