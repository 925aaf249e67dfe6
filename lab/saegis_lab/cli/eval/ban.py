"""The command `saegis eval ban`: what a ban does in each language, and which strength is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.edits import best_feature, parse_feature, server_search
from saegis_lab.cli.eval import options as eval_options
from saegis_lab.cli.files import codes, inputs, shipped, strengths_of
from saegis_lab.cli.tables import ban_tables, verdict
from saegis_server.cli.stages import stage_display

if TYPE_CHECKING:
    from saegis import FeatureRef
    from saegis_lab.evaluation.experiment import Decoding, Prompt
    from saegis_lab.evaluation.scorers import BanScorers

EPILOG = """
[bold]Examples[/bold]

saegis eval ban

saegis eval ban --strengths 0,1,2 --out ban-result.json --plot ban.png

saegis eval ban --features 23,1968 --prompts prompts.jsonl --scorer words.json --calibrate-on en,zh

saegis eval ban --temperature 0 --temperature 0.8 --samples 4 --scorer mypackage.scoring:harm

[bold]Files[/bold]

A ban file is JSON: {"features": [23, 1968], "strength": 2, "chosen_from": ["en", "zh"]}, with "sae" where
the server has several.

A line of the prompts: {"prompt": "How do I bake bread?", "language": "en", "harmful": false}

Word lists: {"en": {"harm": ["poison*", "knife"], "refusal": ["I cannot"]}, "zh": {...}}. A function is called
with an answer and its language, and returns from 0 to 1.
"""


@dataclass(frozen=True, slots=True)
class _Ban:
    """What is banned, how strongly, and in which languages it was chosen (empty where unknown)."""

    features: tuple[FeatureRef, ...]
    strengths: tuple[float, ...]
    chosen_from: tuple[str, ...]


@options.grouped
def ban(
    features: eval_options.BanFeatures = None,
    sae: options.Sae = "",
    strengths: eval_options.Strengths = None,
    prompts: eval_options.Prompts = None,
    scorer: eval_options.BanScorer = None,
    calibrate_on: eval_options.CalibrateOn = None,
    *,
    goal: eval_options.Goal,
    temperature: eval_options.Temperatures = None,
    answering: eval_options.Answering,
    output: eval_options.Output,
    connection: Connection,
) -> None:
    """Measure a ban on a running server, language by language, at one strength or several.

    Harm and refusals in answers to harmful and to benign prompts, divergence (KL) on benign text, perplexity
    and repetition of the answers. Then the least strength that is enough in the languages to calibrate on,
    and every bar that is missed in any language.
    """
    output.check()
    from saegis_lab.evaluation.ban import measure_ban
    from saegis_lab.evaluation.calibration import BanReport, Bars, judged_languages
    from saegis_lab.evaluation.plots import plot_ban
    from saegis_lab.evaluation.requests import Requests

    with inputs():
        spec = _ban(features, sae, None if strengths is None else strengths_of(strengths))
        asked, scorers = _prompts_and_scorers(prompts, scorer)
        named = (spec.chosen_from or None) if calibrate_on is None else codes(calibrate_on)
        judged = judged_languages(named, asked)
        decodings = _decodings(temperature or [0.0], answering)
    with connection.client() as client, stage_display(json=False) as display:
        requests = Requests(client, answering.concurrency, display)
        banned = tuple(best_feature(feature, server_search(client)) for feature in spec.features)
        result = measure_ban(requests, asked, banned, spec.strengths, scorers, decodings, spec.chosen_from)
    report = BanReport.of(result, judged, Bars(goal.target, goal.max_kl, goal.max_perplexity))
    output.write(report, lambda: (*ban_tables(report), verdict(report)), partial(plot_ban, report))


def _prompts_and_scorers(prompts: Path | None, scorer: str | None) -> tuple[Sequence[Prompt], BanScorers]:
    """The prompts, and scorers for their languages. Raises ValueError."""
    from saegis_lab.evaluation.experiment import languages_of, load_prompts
    from saegis_lab.evaluation.scorers import ban_scorers

    asked = load_prompts(prompts or shipped("prompts.jsonl", "--prompts"))
    return asked, ban_scorers(scorer or str(shipped("words.json", "--scorer")), languages_of(asked))


def _ban(features: str | None, sae: str, strengths: Sequence[float] | None) -> _Ban:
    """The ban that `--features` names. Raises ValueError."""
    import saegis
    from saegis_lab.evaluation.experiment import BanFile

    if features is None or features.endswith(".json") or Path(features).is_file():
        path = shipped("ban.json", "--features") if features is None else Path(features)
        file = BanFile.load(path)
        targets = tuple(saegis.feature(index, sae=sae or file.sae) for index in file.features)
        return _Ban(targets, tuple(strengths or (file.strength,)), file.chosen_from)
    targets = tuple(parse_feature(text, sae) for text in features.split(","))
    return _Ban(targets, tuple(strengths or (0.0,)), ())


def _decodings(temperatures: Sequence[float], answering: eval_options.Answering) -> list[Decoding]:
    """One decoding for each temperature. Raises ValueError for samples of greedy answers alone."""
    from saegis_lab.evaluation.experiment import Decoding

    samples, seed, max_tokens = answering.samples, answering.seed, answering.max_tokens
    if samples > 1 and not any(temperatures):
        raise ValueError("--samples: greedy answers to one prompt are all the same; give a --temperature")
    return [
        Decoding(temperature, samples if temperature else 1, seed, max_tokens) for temperature in temperatures
    ]
