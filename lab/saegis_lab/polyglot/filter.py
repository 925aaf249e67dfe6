"""The filter of a run: made in the languages of the choice, then measured part by part, and attacked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from saegis import Client
from saegis.bundles import CALIBRATION_FILE, POLICY_FILE, README_FILE
from saegis_lab.evaluation.attack import AttackSettings, measure_attacks
from saegis_lab.evaluation.attack_report import AttackReport
from saegis_lab.evaluation.bundle_copies import alone
from saegis_lab.evaluation.bundle_features import room_for
from saegis_lab.evaluation.experiment import BanFile, Decoding, Prompt, first_of_each, load_prompts
from saegis_lab.evaluation.filter_report import FilterReport
from saegis_lab.evaluation.filtered import measure_filters
from saegis_lab.evaluation.policy_trial import serving
from saegis_lab.evaluation.requests import Progress
from saegis_lab.evaluation.scorers import BanScorers, ban_scorers, holds_refusal
from saegis_lab.evaluation.wordings import load_wordings
from saegis_lab.filters.bundle_files import BundleSettings, bundle_files
from saegis_lab.filters.candidates import firings
from saegis_lab.filters.card import ATTACK_HEADING, WHOLE, FilterCard, attack_section
from saegis_lab.filters.making import DirectionSource, MadeFilter, Material, make_filter
from saegis_lab.filters.subject import FilterSubject
from saegis_lab.polyglot import steps
from saegis_lab.polyglot.filter_figures import (
    BANNED,
    RunFilter,
    attack_figures,
    missed_bars,
    part_figures,
)
from saegis_lab.polyglot.lexicon import LANGUAGES
from saegis_lab.polyglot.manifest import FILTER, MANIFEST_NAME, Manifest
from saegis_lab.polyglot.prompts import benign_prompts, harmful_prompts, shuffled
from saegis_lab.polyglot.recipe import CHOSEN_FROM, Recipe
from saegis_lab.training.activations import feature_batches
from saegis_lab.training.texts import read_labelled_texts
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.schema.policy import API_VERSION
from saegis_server.sae.files import load_sae
from saegis_server.sae.labels import Labels
from saegis_server.sae.left_out import excluded_tokens, special_tokens
from saegis_server.steering.rows import Phase
from saegis_server.steering.site import Site

#: What was measured, in full.
FILTER_RESULT, ATTACK_RESULT = "filter_result.json", "attack_result.json"
#: What the bundle calls the model and its SAE: the names by which `saegis serve` serves them.
MODEL, SAE = "saegis/polyglot", "polyglot"
#: The policy that shipped before the first filter had serial 1.
_NAME, _SERIAL = "no-harm", 2
#: In multiples of its recorded maximum, how far a request may clamp the landmark's feature.
_LANDMARK_BOUND = 1.2


def make_run_filter(out: Path, recipe: Recipe, run: int, progress: Progress) -> Manifest:
    """Make the filter from texts and prompts in CHOSEN_FROM, write its bundle, measure it and its parts in
    all languages, and put what came of it into the run's manifest, which it returns.

    Raises FileNotFoundError where the run has no model, InputFileError where it has no manifest, and
    ValueError where no filter can be made.
    """
    manifest = Manifest.load(out / MANIFEST_NAME)
    made = make_filter(
        _material(out, recipe),
        DirectionSource(aligned=recipe.filter.aligned),
        recipe.filter.making,
        lambda stage: progress(stage, 0, 0),
    )
    settings = BundleSettings(_NAME, f"run-{run}", SAE, _SERIAL, MODEL)
    card = FilterCard(MODEL, made)
    bundle = _write(out / FILTER, card, settings, manifest.clamp.feature)
    ban = BanFile.load(out / steps.EVAL / steps.BAN)
    conditions = {BANNED: _ban_bundle(ban), **alone(bundle), WHOLE: bundle}
    tried = recipe.filter
    decodings = [
        Decoding(max_tokens=tried.max_tokens),
        Decoding(recipe.temperature, tried.samples, max_tokens=tried.max_tokens),
    ]
    with _served(out, bundle, progress) as client:
        result = measure_filters(
            client,
            conditions,
            _measured_on(out, tried.benign),
            _scorers(out),
            decodings,
            chosen_from=CHOSEN_FROM,
            concurrency=steps.CONCURRENCY,
            progress=progress,
        )
    report = FilterReport.of(result)
    report.save(out / FILTER_RESULT)
    bundle = _write(out / FILTER, replace(card, measured=result), settings, manifest.clamp.feature)
    manifest = replace(manifest, filter=_run_filter(made, bundle, report))
    manifest.save(out / MANIFEST_NAME)
    return manifest


def _run_filter(made: MadeFilter, bundle: Bundle, report: FilterReport) -> RunFilter:
    setting = made.choice.calibrated.best.setting
    by_phase = made.rows.factors(setting)
    return RunFilter(
        digest=bundle.digest,
        features=made.choice.features,
        chosen_from=made.languages,
        factor=setting.factor,
        answer_factor=by_phase.get(Phase.ALL, by_phase.get(Phase.COMPLETION, 0.0)),
        ban=setting.ban,
        stops=made.stops,
        hears=made.hears,
        parts=part_figures(report.result),
        missed=tuple(missed_bars(report)),
    )


def attack_run_filter(out: Path, recipe: Recipe, progress: Progress) -> Manifest:
    """Attack the run's filter and its parts in all languages, tell it in the bundle's card, and put it into
    the run's manifest, which it returns.

    Raises FileNotFoundError where the run has no filter.
    """
    manifest = Manifest.load(out / MANIFEST_NAME)
    if manifest.filter is None:
        raise FileNotFoundError(f"{out / FILTER}: there is no filter; run the step `filter` first")
    bundle, tried = Bundle.read(out / FILTER), recipe.filter
    with _served(out, bundle, progress) as client:
        result = measure_attacks(
            client,
            {
                BANNED: _ban_bundle(BanFile.load(out / steps.EVAL / steps.BAN)),
                **alone(bundle),
                WHOLE: bundle,
            },
            first_of_each(_prompts(out), tried.attacked),
            _scorers(out),
            load_wordings(),
            AttackSettings(tried.attack_samples, recipe.temperature, max_tokens=tried.max_tokens),
            chosen_from=CHOSEN_FROM,
            concurrency=steps.CONCURRENCY,
            progress=progress,
        )
    report = AttackReport.of(result)
    report.save(out / ATTACK_RESULT)
    _tell_attack(out / FILTER, report)
    told = replace(
        manifest.filter,
        digest=Bundle.read(out / FILTER).digest,
        attacks=attack_figures(report),
        attack_missed=tuple(miss.told for miss in report.misses if miss.condition == WHOLE),
    )
    manifest = replace(manifest, filter=told)
    manifest.save(out / MANIFEST_NAME)
    return manifest


def _prompts(out: Path) -> tuple[Prompt, ...]:
    return load_prompts(out / steps.EVAL / steps.PROMPTS)


def _measured_on(out: Path, benign: int) -> tuple[Prompt, ...]:
    """The run's harmful prompts, and so many benign ones in each language."""
    harmful = [prompt for prompt in _prompts(out) if prompt.harmful]
    quiet = [
        Prompt(prompt.text, code, False)
        for code in LANGUAGES
        for prompt in shuffled(benign_prompts(code))[:benign]
    ]
    return (*harmful, *quiet)


def _chosen_from(limit: int | None) -> tuple[Prompt, ...]:
    """The prompts that the filter is made from, of each kind in each language in an order of no meaning."""
    return tuple(
        Prompt(prompt.text, code, harmful)
        for code in CHOSEN_FROM
        for draw, harmful in ((harmful_prompts, True), (benign_prompts, False))
        for prompt in shuffled(draw(code))[:limit]
    )


def _scorers(out: Path) -> BanScorers:
    return ban_scorers(str(out / steps.EVAL / steps.WORDS), LANGUAGES)


def _material(out: Path, recipe: Recipe) -> Material:
    """What the filter is made from, as `saegis policy make-filter --raw` reads it from the run's files:
    nothing in a language that is not one of CHOSEN_FROM."""
    loaded, sae, site = steps.load(out), load_sae(out / steps.SAE), Site.parse(recipe.site)
    refuses = holds_refusal(str(out / steps.EVAL / steps.WORDS))
    texts = tuple(
        text
        for text in read_labelled_texts(out / steps.EVAL / steps.LABELLED)
        if text.language in CHOSEN_FROM and not refuses(text.text)
    )
    encode = loaded.tokenizer.encode
    rows = [encode(text.text, add_special_tokens=False)[: loaded.max_context] for text in texts]
    excluded = excluded_tokens(sae, special_tokens(loaded.tokenizer))
    return Material(
        FilterSubject(loaded, site, sae),
        CHOSEN_FROM,
        texts,
        rows,
        firings(feature_batches(loaded.model, site, sae, rows, excluded), len(texts), sae.features),
        _chosen_from(recipe.filter.prompts),
        _scorers(out),
        {
            label.feature: label.max_activation
            for label in Labels.load(out / steps.SAE)
            if label.max_activation
        },
    )


@contextmanager
def _served(out: Path, bundle: Bundle, progress: Progress) -> Iterator[Client]:
    """A client of a server of the run's model, with room for the bundle's rows."""
    room = [f"--rows={kind}={rows}" for kind, rows in room_for(bundle.policy).items()]
    options = [*steps.SERVED, *room]
    with serving(out / steps.MODEL, {SAE: out / steps.SAE}, progress, options) as client:
        yield client


def _ban_bundle(ban: BanFile) -> Bundle:
    """A bundle of the ban alone."""
    rule = {
        "id": "ban-harm",
        "ban": {"features": [{"sae": SAE, "indices": list(ban.features)}], "strength": ban.strength},
    }
    head = {"apiVersion": API_VERSION, "kind": "Policy", "name": BANNED.replace(" ", "-")}
    policy = {**head, "serial": 1, "revision": "1", "match": {}, "rules": [rule]}
    return Bundle.from_files({POLICY_FILE: json.dumps(policy).encode()})


def _write(folder: Path, card: FilterCard, settings: BundleSettings, landmark: int) -> Bundle:
    """Write the bundle in place of what is there, and read it as a server would."""
    files = bundle_files(card.made, settings, card.markdown(), {})
    files |= {
        "rules/landmark.yaml": _ALLOWANCE.format(sae=SAE, feature=landmark, bound=_LANDMARK_BOUND).encode(),
        "tests/landmark.yaml": _CASES.format(
            sae=SAE, feature=landmark, bound=_LANDMARK_BOUND, beyond=_LANDMARK_BOUND + 0.1, model=MODEL
        ).encode(),
        CALIBRATION_FILE: _compact({"filter": card.record()}),
    }
    shutil.rmtree(folder, ignore_errors=True)
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return Bundle.read(folder)


def _tell_attack(folder: Path, report: AttackReport) -> None:
    """Put what came back under attack into a bundle's card, in place of what the card says of it."""
    card = (folder / README_FILE).read_text(encoding="utf-8")
    before, _, rest = card.partition(f"{ATTACK_HEADING}\n")
    _, heading, after = rest.partition("\n## ")
    told = "\n".join(["", *attack_section(report, CHOSEN_FROM), ""])
    (folder / README_FILE).write_text(f"{before}{ATTACK_HEADING}\n{told}{heading}{after}", encoding="utf-8")
    figures = json.loads((folder / CALIBRATION_FILE).read_text(encoding="utf-8"))
    figures["filter"]["attacked"] = asdict(report)
    (folder / CALIBRATION_FILE).write_bytes(_compact(figures))


def _compact(figures: Mapping[str, object]) -> bytes:
    """Figures as JSON on one line: they are many, and people read the card."""
    text = json.dumps(figures, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"{text}\n".encode()


_ALLOWANCE = """\
# A request may bring the landmark into its answer, and do nothing else beyond an ordinary chat.
apiVersion: saegis.dev/v1
kind: PolicyPart
allow:
  - id: landmark
    ops: [clamp]
    features:
      - sae: {sae}
        index: {feature}
    min: 0
    max: {bound}
    unit: max_activation
"""
_CASES = """\
apiVersion: saegis.dev/v1
kind: PolicyCases
cases:
  - name: the landmark may be clamped up to {bound} times its recorded maximum
    request:
      model: {model}
      edits:
        - op: clamp
          feature: {{sae: {sae}, index: {feature}}}
          value: {bound}
          unit: max_activation
    expect:
      decision: allow
  - name: but not further
    request:
      model: {model}
      edits:
        - op: clamp
          feature: {{sae: {sae}, index: {feature}}}
          value: {beyond}
          unit: max_activation
    expect:
      decision: deny
      rules: [allow]
"""
