"""The command `saegis policy make-filter`: a bundle that turns harmful answers into refusals."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, notes, print_json
from saegis_lab.cli import offline
from saegis_lab.cli.eval import options as eval_options
from saegis_lab.cli.files import codes, inputs, note_written
from saegis_lab.cli.tables import number, titled
from saegis_server.cli.policy.world import read_bundle
from saegis_server.cli.stages import StageDisplay, stage_display

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from saegis import Client
    from saegis_lab.evaluation.attack_report import AttackReport
    from saegis_lab.evaluation.experiment import Prompt
    from saegis_lab.evaluation.filtered import FilterResult
    from saegis_lab.evaluation.scorers import BanScorers
    from saegis_lab.filters.card import FilterCard
    from saegis_lab.filters.direction import RefusalDirection
    from saegis_lab.filters.making import DirectionSource, Material
    from saegis_lab.filters.recipe import FilterRecipe
    from saegis_lab.training.texts import LabelledText

EPILOG = f"""
[bold]Examples[/bold]

saegis policy make-filter --model ./model --sae ./sae --texts texts.jsonl --prompts prompts.jsonl
--scorer words.json --languages en,zh --out no-harm

saegis policy make-filter --model ./model --sae ./sae --texts texts.jsonl --prompts prompts.jsonl
--scorer words.json --languages en,zh --refusal-examples refusals.jsonl --out no-harm
{offline.TEXTS_HELP}
[bold]What is written[/bold]

A bundle: policy.yaml, the refusal direction, cases, and its card, README.md for people and calibration.json
for programs. Only texts and prompts in --languages decide anything. Prompts in other languages are answered
at the end, to say what the filter does there and which bars it misses. Where a model refuses nowhere, give
--refusal-examples; a line is {{"prompt": "How do I make a bomb?", "refusal": "I do not help with that."}}.
--recipe is JSON with numbers of the recipe by their names, such as {{"least_score": 0.2}}; the card tells
those that were used. Word lists are written as for saegis eval ban; --scorer needs those named 'refusal'
too to tell refusals.
"""


@dataclass(frozen=True, slots=True)
class Towards:
    """A group of options: what the refusal direction is made from, the prompts if nothing is given."""

    aligned: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="The language in which the model refuses. By default found."),
    ] = None
    direction: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors", exists=True, dir_okay=False, help="A refusal direction: one tensor."
        ),
    ] = None
    refusal_examples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="JSONL, one example a line: prompt, refusal."
        ),
    ] = None
    refusal_feature: Annotated[
        int | None,
        typer.Option("--refusal-feature", metavar="INDEX", min=0, help="A feature of refusals."),
    ] = None

    def source(self, languages: Sequence[str]) -> DirectionSource:
        """What the options name; ends the command where they contradict each other or a file is wrong."""
        from saegis_lab.filters.direction import load_examples
        from saegis_lab.filters.making import DirectionSource

        named = {
            "--aligned": self.aligned,
            "--direction": self.direction,
            "--refusal-examples": self.refusal_examples,
            "--refusal-feature": self.refusal_feature,
        }
        given = [option for option, value in named.items() if value is not None]
        if len(given) > 1:
            raise fail(f"{' and '.join(given)} contradict each other", "give one of them", USAGE)
        if self.aligned is not None and self.aligned not in languages:
            raise fail(f"--aligned: {self.aligned!r} is none of --languages", code=USAGE)
        with inputs():
            examples = None if self.refusal_examples is None else load_examples(self.refusal_examples)
        vector = None if self.direction is None else _vector(self.direction)
        return DirectionSource(vector, examples, self.refusal_feature, self.aligned)


@dataclass(frozen=True, slots=True)
class Named:
    """A group of options: what the policy is called and what it is for."""

    name: Annotated[str, typer.Option(metavar="NAME", help="The policy's name.")] = "no-harm"
    revision: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Its revision; by default today's date.")
    ] = None
    serial: Annotated[int, typer.Option(min=1, help="Its serial.")] = 1
    sae_id: Annotated[str, typer.Option("--sae-id", metavar="ID", help="The SAE's id on the server.")] = "sae"
    for_model: Annotated[
        str, typer.Option("--for-model", metavar="NAME", help="The model that the policy is for; * for any.")
    ] = "*"


@dataclass(frozen=True, slots=True)
class Trial:
    """A group of options: what is tried on a server."""

    measure: Annotated[
        bool, typer.Option(help="Measure the bundle on a server, in every language of the prompts.")
    ] = True
    attack: Annotated[
        bool, typer.Option(help="Attack the bundle there too, as saegis eval attack does; takes long.")
    ] = False

    def check(self) -> None:
        """End the command where the options contradict each other."""
        if self.attack and not self.measure:
            raise fail("--attack and --no-measure contradict each other", "give one of them", USAGE)


@dataclass(frozen=True, slots=True)
class Given:
    """What a filter is made and measured from. texts: those in the languages that hold no refusal; prompts:
    in every language; languages: those that choose."""

    languages: tuple[str, ...]
    texts: tuple[LabelledText, ...]
    prompts: tuple[Prompt, ...]
    scorers: BanScorers
    max_tokens: int


@options.grouped
def make_filter(
    *,
    source: offline.Source,
    prompts: Annotated[
        Path,
        eval_options.in_files(
            exists=True, dir_okay=False, help="JSONL, one prompt a line: prompt, language, harmful."
        ),
    ],
    scorer: Annotated[
        str,
        eval_options.in_files(
            metavar="FILE|MODULE:FUNCTION",
            help="Word lists with 'harm' and 'refusal', or a function that scores harm.",
        ),
    ],
    languages: Annotated[
        str, typer.Option(metavar="CODE,CODE...", help="The languages to choose everything in.")
    ],
    towards: Towards,
    named: Named,
    out: Annotated[Path, eval_options.in_files(metavar="DIR", help="The bundle's directory, made new.")],
    site: offline.SiteName = None,
    raw: offline.Raw = False,
    max_tokens: eval_options.MaxTokens = 80,
    recipe: Annotated[
        Path | None,
        eval_options.in_files(
            metavar="FILE", exists=True, dir_okay=False, help="Other numbers of the recipe than the usual."
        ),
    ] = None,
    trial: Trial,
    placement: offline.Placement,
    json: options.Json = False,
) -> None:
    """Make a filter: where features of harmful subjects fire, the model's own refusal is written instead.

    No server is needed. The features are found in the texts, the refusal in the prompts; factor, threshold, a
    ban and stops are kept as far as they gain something, in every one of the languages.
    """
    _check_out(out)
    trial.check()
    chosen = codes(languages)
    towards_source = towards.source(chosen)
    numbers = _numbers(recipe)
    given = _inputs(source, prompts, scorer, chosen, max_tokens)
    if trial.attack:
        notes().print(f"the attack asks for up to {_answers_of(given)} answers")
    with stage_display(json=False) as display:
        subject = offline.load_subject(source, site, given.texts, raw, placement, display)
        card = _made(subject, given, towards_source, numbers, display)
        _write(out, card, named)
        if trial.measure:
            card = _tried(card, out, source, given, named, trial, display)
    if json:
        print_json(card.record())
        return
    _tell(card)
    subject.note_cut()
    _note_next(out, None if trial.attack else _answers_of(given))


def _note_next(out: Path, unasked: int | None) -> None:
    """Say where the filter is and what comes next. unasked: how many answers an attack would ask for."""
    note_written(out)
    if unasked is not None:
        notes().print(f"not attacked: --attack asks for up to {unasked} answers more")
    following = f"next:  saegis policy validate {out}; saegis policy test {out}; sign it"
    notes().print(following, markup=False, soft_wrap=True)


def _tell(card: FilterCard) -> None:
    """Print the card's table and what it misses."""
    console().print(_table(card))
    for miss in card.misses:
        console().print(f"missed: {miss.told}", style="yellow", markup=False, soft_wrap=True)


def _numbers(path: Path | None) -> FilterRecipe:
    """The recipe with the numbers of a file; ends the command where it is wrong."""
    from saegis_lab.filters.recipe import FilterRecipe
    from saegis_lab.records import read_record

    if path is None:
        return FilterRecipe()
    with inputs():
        return read_record(FilterRecipe, path)


def _check_out(out: Path) -> None:
    """End the command before the work if its result could not be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise fail(f"--out {out}: is there already", "name a new folder", USAGE)
    if not out.parent.is_dir():
        raise fail(f"--out {out}: there is no folder {out.parent}", "make it first", USAGE)


def _inputs(
    source: offline.Source, prompts: Path, scorer: str, languages: tuple[str, ...], max_tokens: int
) -> Given:
    """What the files hold; ends the command where something is missing."""
    from saegis_lab.evaluation.experiment import languages_of, load_prompts
    from saegis_lab.evaluation.scorers import ban_scorers, holds_refusal

    if not languages:
        raise fail("--languages names no language", "give some, such as --languages en,zh", USAGE)
    texts = source.labelled_texts()
    with inputs():
        asked = load_prompts(prompts)
        scorers = ban_scorers(scorer, languages_of(asked))
        refuses = holds_refusal(scorer)
    for what, there in (("text", {text.language for text in texts}), ("prompt", set(languages_of(asked)))):
        if unknown := [code for code in languages if code not in there]:
            raise fail(
                f"--languages: no {what} is in {unknown[0]!r}",
                f"they are in {', '.join(sorted(there))}",
                USAGE,
            )
    kept = tuple(text for text in texts if text.language in languages and not refuses(text.text))
    return Given(languages, kept, asked, scorers, max_tokens)


def _made(
    subject: offline.Subject,
    given: Given,
    source: DirectionSource,
    recipe: FilterRecipe,
    display: StageDisplay,
) -> FilterCard:
    """The filter, not yet measured; ends the command where none can be made."""
    from saegis_lab.filters.card import FilterCard
    from saegis_lab.filters.making import make_filter as make

    def progress(stage: str) -> None:
        display(stage, 0, 0)

    try:
        material = _material(subject, given, display)
        return FilterCard(subject.loaded.name, make(material, source, recipe, progress))
    except ValueError as error:
        display.close()
        raise fail(str(error), "see the command's --help", USAGE) from error


def _material(subject: offline.Subject, given: Given, display: StageDisplay) -> Material:
    """What the choices are made from: nothing in another language."""
    from saegis_lab.filters.candidates import firings
    from saegis_lab.filters.making import Material
    from saegis_lab.filters.subject import FilterSubject
    from saegis_lab.training.activations import on_device

    sae = on_device(subject.sae, subject.loaded.model.device)
    labels = subject.placed.loaded.labels
    return Material(
        FilterSubject(subject.loaded, subject.site, sae),
        given.languages,
        given.texts,
        subject.rows,
        firings(subject.batches(sae, display), len(given.texts), sae.features),
        tuple(prompt for prompt in given.prompts if prompt.language in given.languages),
        given.scorers,
        {label.feature: label.max_activation for label in labels if label.max_activation},
    )


def _vector(path: Path) -> RefusalDirection:
    """The one tensor of a file as a direction, of the length that the file states, if it does; ends the
    command where it is none."""
    from safetensors import safe_open

    from saegis_lab.filters.direction import DirectionError, RefusalDirection
    from saegis_server.policy.bundle.bundle import read_directions
    from saegis_server.policy.errors import PolicyError

    try:
        tensors = read_directions(path.read_bytes(), path.name)
        if len(tensors) != 1:
            raise DirectionError(f"{path} holds {len(tensors)} tensors, not one")
        (vector,) = tensors.values()
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
        length = float(told["norm"]) / float(vector.norm()) if "norm" in told else 1.0
        return RefusalDirection.of(vector * length, told.get("source", f"the file {path.name}"))
    except (OSError, PolicyError, DirectionError, ValueError) as error:
        raise fail(f"--direction: {error}", "give a safetensors file of one tensor [d]", USAGE) from error


def _tried(
    card: FilterCard,
    out: Path,
    source: offline.Source,
    given: Given,
    named: Named,
    trial: Trial,
    display: StageDisplay,
) -> FilterCard:
    """The card with what the written bundle does on a server, written anew after each part of it."""
    with _served(out, source, named, display) as client:
        card = replace(card, measured=_measured(out, given, client, display))
        _write(out, card, named)
        if trial.attack:
            card = replace(card, attacked=_attacked(out, given, client, display))
            _write(out, card, named)
    return card


@contextmanager
def _served(out: Path, source: offline.Source, named: Named, display: StageDisplay) -> Iterator[Client]:
    """A client of a server with room for the written bundle; ends the command where it cannot be measured."""
    from saegis_lab.evaluation.bundle_features import room_for
    from saegis_lab.evaluation.policy_trial import serving
    from saegis_server.rpc.server.process import ServerProcessError
    from saegis_server.sae.files import resolve_sae

    room = room_for(read_bundle(out).policy)
    options = ["--compile", "never", *(f"--rows={kind}={rows}" for kind, rows in room.items())]
    try:
        with serving(
            source.model, {named.sae_id: resolve_sae(source.sae).folder}, display, options
        ) as client:
            yield client
    except (ServerProcessError, ValueError) as error:
        display.close()
        raise fail(f"the bundle was written, but not measured to the end: {error}") from error


def _measured(out: Path, given: Given, client: Client, display: StageDisplay) -> FilterResult:
    """What the written bundle and its parts do on a server. Raises ValueError."""
    from saegis_lab.evaluation.bundle_copies import parts
    from saegis_lab.evaluation.experiment import Decoding
    from saegis_lab.evaluation.filtered import measure_filters
    from saegis_lab.filters.card import WHOLE

    bundle = read_bundle(out)
    return measure_filters(
        client,
        {WHOLE: bundle, **parts(bundle)},
        given.prompts,
        given.scorers,
        [Decoding(max_tokens=given.max_tokens)],
        chosen_from=given.languages,
        progress=display,
    )


def _attacked(out: Path, given: Given, client: Client, display: StageDisplay) -> AttackReport:
    """What comes back under the written bundle on a server. Raises ValueError."""
    from saegis_lab.evaluation.attack import AttackSettings, measure_attacks
    from saegis_lab.evaluation.attack_report import AttackReport
    from saegis_lab.evaluation.wordings import load_wordings
    from saegis_lab.filters.card import WHOLE

    result = measure_attacks(
        client,
        {WHOLE: read_bundle(out)},
        given.prompts,
        given.scorers,
        load_wordings(),
        AttackSettings(max_tokens=given.max_tokens),
        chosen_from=given.languages,
        progress=display,
    )
    return AttackReport.of(result)


def _answers_of(given: Given) -> int:
    """How many answers an attack asks for: without rules and under the filter."""
    from saegis_lab.evaluation.attack import AttackSettings, answers_of_attacks
    from saegis_lab.evaluation.wordings import load_wordings

    return 2 * answers_of_attacks(given.prompts, load_wordings(), AttackSettings(max_tokens=given.max_tokens))


def _write(out: Path, card: FilterCard, named: Named) -> None:
    """Write the bundle, and read it as a server would."""
    from saegis_lab.filters.bundle_files import BundleSettings, bundle_files

    settings = BundleSettings(
        name=named.name,
        revision=named.revision or f"{datetime.now(UTC):%Y-%m-%d}",
        sae=named.sae_id,
        serial=named.serial,
        model=named.for_model,
    )
    files = bundle_files(card.made, settings, card.markdown(), {"filter": card.record()})
    try:
        for path, data in files.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(data)
    except OSError as error:
        raise fail(f"{error.filename} cannot be written: {error.strerror}") from error
    read_bundle(out)


def _table(card: FilterCard) -> Table:
    """A row for each language: what the filter does there, on the server or, in those that took part, as it
    was calibrated."""
    from saegis_lab.filters.card import WHOLE, served_figures

    names = ("harm", "refused", "benign refused", "KL", "× perplexity")
    words = ("language", "chosen in")
    table = titled("the filter, by language", (*words, *names), words=words)
    measured = card.measured
    rows = card.made.choice.calibrated.best.figures
    if measured is not None:
        served = (served_figures(measured, code, WHOLE, 0.0) for code in measured.languages)
        rows = tuple(figures for figures in served if figures is not None)
    for row in rows:
        table.add_row(
            row.language,
            "yes" if row.language in card.made.languages else "no",
            f"{row.harm_before:.3f} → {row.harm:.4f}",
            number(row.refused, ".0%"),
            number(row.benign_refused, ".0%"),
            number(row.kl, ".4f"),
            number(row.perplexity, ".2f"),
        )
    return table
