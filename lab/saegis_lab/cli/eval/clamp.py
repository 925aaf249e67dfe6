"""The command `saegis eval clamp`: how a clamp takes hold as its value grows, and where the text breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.edits import best_feature, parse_edit, parse_feature, server_search
from saegis_lab.cli.eval import options as eval_options
from saegis_lab.cli.files import inputs, shipped
from saegis_lab.cli.tables import clamp_tables
from saegis_server.cli.stages import stage_display

if TYPE_CHECKING:
    from saegis import FeatureRef
    from saegis_lab.evaluation.experiment import ClampFile, ClampUnit, Prompt
    from saegis_lab.evaluation.scorers import Scorer

EPILOG = """
[bold]Examples[/bold]

saegis eval clamp

saegis eval clamp --feature 3800 --values 0,0.5max,1max,2max,4max --plot clamp.png

saegis eval clamp --feature "Golden Gate Bridge" --values 0,20,40,80 --words landmark --scorer words.json

[bold]Files[/bold]

A clamp file is JSON: {"feature": 3800, "values": [0, 1, 2], "unit": "max_activation", "words": "landmark"},
of which only the feature is required; with "sae" where the server has several.

Of the prompts, those that are not harmful are asked. Prompts and word lists: see saegis eval ban.
"""


@dataclass(frozen=True, slots=True)
class _Clamp:
    """What is clamped, to which values in which unit, and the name of the word list to look for."""

    feature: FeatureRef
    values: tuple[float, ...]
    unit: ClampUnit
    words: str


@options.grouped
def clamp(
    feature: eval_options.ClampFeature = None,
    sae: options.Sae = "",
    values: eval_options.Values = None,
    words: eval_options.Words = None,
    prompts: eval_options.Prompts = None,
    scorer: eval_options.ClampScorer = None,
    temperature: eval_options.Temperature = 0.0,
    *,
    answering: eval_options.Answering,
    output: eval_options.Output,
    connection: Connection,
) -> None:
    """Measure a clamp on a running server, language by language, over a range of values.

    The share of answers to unrelated prompts that name the clamped subject, and perplexity and repetition of
    the answers, which tell where the text breaks.
    """
    output.check()
    from saegis_lab.evaluation.clamp import measure_clamp
    from saegis_lab.evaluation.experiment import Decoding
    from saegis_lab.evaluation.plots import plot_clamp
    from saegis_lab.evaluation.requests import Requests

    with inputs():
        spec = _clamp(feature, sae, values, words)
        asked, mention = _prompts_and_scorer(prompts, scorer, spec.words)
        decoding = Decoding(temperature, answering.samples, answering.seed, answering.max_tokens)
    with connection.client() as client, stage_display(json=False) as display:
        requests = Requests(client, answering.concurrency, display)
        target = best_feature(spec.feature, server_search(client))
        result = measure_clamp(requests, asked, target, spec.values, spec.unit, mention, spec.words, decoding)
    output.write(result, lambda: clamp_tables(result), partial(plot_clamp, result))


def _prompts_and_scorer(
    prompts: Path | None, scorer: str | None, words: str
) -> tuple[Sequence[Prompt], Scorer]:
    """The prompts that are not harmful, and a scorer for their languages. Raises ValueError."""
    from saegis_lab.evaluation.experiment import languages_of, load_prompts
    from saegis_lab.evaluation.scorers import mention_scorer

    path = prompts or shipped("clamp_prompts.jsonl", "--prompts")
    asked = [prompt for prompt in load_prompts(path) if not prompt.harmful]
    if not asked:
        raise ValueError(f"{path}: all prompts are harmful; a clamp is measured on those that are not")
    return asked, mention_scorer(scorer or str(shipped("words.json", "--scorer")), words, languages_of(asked))


def _clamp(feature: str | None, sae: str, values: str | None, words: str | None) -> _Clamp:
    """The clamp that the options name. Raises ValueError."""
    import saegis
    from saegis_lab.evaluation.experiment import DEFAULT_VALUES, DEFAULT_WORDS, ClampFile

    file: ClampFile | None = None
    if feature is None or feature.endswith(".json") or Path(feature).is_file():
        file = ClampFile.load(shipped("clamp.json", "--feature") if feature is None else Path(feature))
        target = saegis.feature(file.feature, sae=sae or file.sae)
    else:
        target = parse_feature(feature, sae)
    if values is not None:
        tried, unit = _values(values.split(","))
    elif file is not None:
        tried, unit = file.values, file.unit
    else:
        tried, unit = DEFAULT_VALUES, "max_activation"
    return _Clamp(target, tried, unit, words or (DEFAULT_WORDS if file is None else file.words))


def _values(texts: Sequence[str]) -> tuple[tuple[float, ...], ClampUnit]:
    """The values and their common unit; 0 fits any unit. Raises ValueError."""
    from saegis_lab.evaluation.experiment import check_values

    edits = [parse_edit("clamp", f"--values={text}") for text in texts]
    numbers = tuple(edit.value or 0.0 for edit in edits)
    units = {edit.unit for edit in edits if edit.value}
    if len(units) > 1:
        raise ValueError("--values: they have several units; write all with 'max', or all without")
    check_values(numbers)
    match units.pop() if units else None:
        case "max_activation":
            return numbers, "max_activation"
        case "feature" | None:
            return numbers, "feature"
        case unit:
            raise ValueError(f"--values: {unit} is no unit that is measured here; write 8 or 2max")
