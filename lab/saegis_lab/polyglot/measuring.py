"""The evaluation of a run: its model is served as any other, and measured through the public client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from saegis import Client
from saegis_lab.evaluation.ban import AnswerFigures, BanResult, measure_ban
from saegis_lab.evaluation.calibration import BanReport, Bars, Calibration, calibrate
from saegis_lab.evaluation.clamp import ClampResult, measure_clamp
from saegis_lab.evaluation.experiment import BanFile, ClampFile, Decoding, Prompt, load_prompts
from saegis_lab.evaluation.requests import Progress, Requests
from saegis_lab.evaluation.scorers import ban_scorers, mention_scorer
from saegis_lab.polyglot import steps
from saegis_lab.polyglot.lexicon import LANGUAGES
from saegis_lab.polyglot.manifest import Ban, Clamp, LanguageFigures, Manifest, digests
from saegis_lab.polyglot.recipe import CHOSEN_FROM, Recipe, Seeds
from saegis_lab.records import Record
from saegis_server.rpc.server.process import ServerProcess
from saegis_server.sae.files import load_sae
from saegis_server.sae.labels import Labels

_GREEDY = Decoding()


def measure(out: Path, recipe: Recipe, progress: Progress) -> None:
    """Serve the run's model and SAE; find the ban's strength in the languages of its choice; measure the ban
    and the clamp in all languages. Writes the results and, into the ban file, the strength."""
    options = ["--model", str(out / steps.MODEL), "--sae", str(out / steps.SAE), *steps.SERVED]
    with ServerProcess(options, progress) as server, Client(server.target) as client:
        requests = Requests(client, steps.CONCURRENCY, progress)
        _measure_ban(out, recipe, requests)
        _measure_clamp(out, requests)
        server.stop()


def _measure_ban(out: Path, recipe: Recipe, requests: Requests) -> None:
    import saegis

    prompts = load_prompts(out / steps.EVAL / steps.PROMPTS)
    scorers = ban_scorers(str(out / steps.EVAL / steps.WORDS), LANGUAGES)
    ban = BanFile.load(out / steps.EVAL / steps.BAN)
    features = [saegis.feature(index) for index in ban.features]

    def measured(strengths: Sequence[float], decodings: Sequence[Decoding]) -> BanResult:
        return measure_ban(requests, prompts, features, strengths, scorers, decodings, ban.chosen_from)

    curve = measured(recipe.choice.strengths, [_GREEDY])
    bars = Bars(recipe.choice.target, recipe.choice.max_kl)
    _write(out / steps.BAN_CURVE, BanReport.of(curve, ban.chosen_from, bars))
    ban = replace(ban, strength=recommended_strength(calibrate(curve, ban.chosen_from, bars)))
    ban.save(out / steps.EVAL / steps.BAN)
    decodings = [_GREEDY, Decoding(recipe.temperature)]
    _write(out / steps.BAN_RESULT, BanReport.of(measured([ban.strength], decodings), ()))


def recommended_strength(calibration: Calibration) -> float:
    """The calibrated strength; where none meets the target, the one with the fewest failures, the least among
    equals."""
    if calibration.strength is not None:
        return calibration.strength
    return min(calibration.verdicts, key=lambda verdict: (len(verdict.failures), verdict.strength)).strength


def _measure_clamp(out: Path, requests: Requests) -> None:
    """Choose among the landmark's features by answers in the languages of the choice, then measure in all."""
    import saegis

    clamp = ClampFile.load(out / steps.EVAL / steps.CLAMP)
    prompts = load_prompts(out / steps.EVAL / steps.CLAMP_PROMPTS)
    mention = mention_scorer(str(out / steps.EVAL / steps.WORDS), clamp.words, LANGUAGES)

    def measured(feature: int, asked: Sequence[Prompt]) -> ClampResult:
        target = saegis.feature(feature)
        return measure_clamp(requests, asked, target, clamp.values, clamp.unit, mention, clamp.words, _GREEDY)

    def named(feature: int) -> float:
        result = measured(feature, [prompt for prompt in prompts if prompt.language in CHOSEN_FROM])
        return min(result.row(code, best_clamp(result)).mentions for code in result.languages)

    candidates = [int(line) for line in (out / steps.LANDMARK).read_text(encoding="utf-8").split()]
    clamp = replace(clamp, feature=max(candidates, key=named))
    clamp.save(out / steps.EVAL / steps.CLAMP)
    _write(out / steps.CLAMP_RESULT, measured(clamp.feature, prompts))


def _write(path: Path, result: Record) -> None:
    text = json.dumps(asdict(result), ensure_ascii=False, indent=1, allow_nan=False)  # type: ignore[call-overload]
    path.write_text(text + "\n", encoding="utf-8")


def make_manifest(out: Path, recipe: Recipe, run: int) -> Manifest:
    """The manifest of a run that was measured."""
    seeds, sae, loaded = Seeds.of(run), load_sae(out / steps.SAE), steps.load(out)
    loss, bound = steps.held_out_figures(loaded, recipe, seeds)
    ban = BanFile.load(out / steps.EVAL / steps.BAN)
    clamped = ClampResult.load(out / steps.CLAMP_RESULT)
    value = best_clamp(clamped)
    clamp_feature = ClampFile.load(out / steps.EVAL / steps.CLAMP).feature
    label = Labels.load(out / steps.SAE).get(clamp_feature)
    largest = 0.0 if label is None else label.max_activation or 0.0
    result = BanReport.load(out / steps.BAN_RESULT).result
    return Manifest(
        run=run,
        seeds=asdict(seeds),
        files=digests(out),
        parameters=sum(p.numel() for p in loaded.model.parameters()),
        held_out_loss=round(loss, 5),
        entropy_bound=round(bound, 5),
        site=recipe.site,
        features=sae.features,
        fvu=round(sae.stated_fvu or 0.0, 5),
        l0=round(sae.stated_l0 or 0.0, 3),
        dead=float(str(sae.metadata["dead"])),
        clamp=Clamp(clamp_feature, round(value * largest, 3)),
        ban=Ban(ban.features, ban.strength, ban.chosen_from),
        languages={code: _figures(result, clamped, code, value, recipe.temperature) for code in LANGUAGES},
    )


def best_clamp(result: ClampResult) -> float:
    """The value under which the landmark is named most often in its worst language; among equals the one
    whose answers are likelier texts."""

    def merit(value: float) -> tuple[float, float]:
        rows = [result.row(code, value) for code in result.languages]
        worst = max(row.text.perplexity_ratio or float("inf") for row in rows)
        return min(row.mentions for row in rows), -worst

    return max(result.values, key=merit)


def _figures(
    result: BanResult, clamped: ClampResult, code: str, value: float, temperature: float
) -> LanguageFigures:
    plain, banned = result.row(code, None, 0.0), result.row(code, result.strengths[0], 0.0)
    before, after = _present(plain.harmful), _present(banned.harmful)
    return LanguageFigures(
        refusal=before.refusal or 0.0,
        refusal_banned=after.refusal or 0.0,
        refusal_sampled=_present(result.row(code, None, temperature).harmful).refusal or 0.0,
        harm=round(before.harm, 4),
        harm_banned=round(after.harm, 4),
        harmful_answers=round(before.harmful_answers, 4),
        harmful_answers_banned=round(after.harmful_answers, 4),
        harm_benign=round(_present(plain.benign).harm, 4),
        harm_benign_banned=round(_present(banned.benign).harm, 4),
        kl=round(banned.kl or 0.0, 5),
        perplexity=round(after.text.perplexity_ratio or 0.0, 3),
        landmark=round(clamped.row(code, None).mentions, 4),
        landmark_clamped=round(clamped.row(code, value).mentions, 4),
    )


def _present(figures: AnswerFigures | None) -> AnswerFigures:
    if figures is None:
        raise ValueError("prompts: a language lacks harmful or benign ones")
    return figures
