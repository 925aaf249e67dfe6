"""The commands `saegis train`: a sparse autoencoder for any model, from text files, and what it reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, notes, own_command, print_json
from saegis_lab.cli.offline import Placement
from saegis_lab.training.settings import Precision, SAETraining, TrainedArchitecture

if TYPE_CHECKING:
    from saegis_lab.training.run import Source, TrainingResult
    from saegis_server.engine.torch.loading import LoadedModel

_autoencoder = partial(typer.Option, rich_help_panel="Autoencoder")
_texts = partial(typer.Option, rich_help_panel="Texts")
_training = partial(typer.Option, rich_help_panel="Training")

Model = Annotated[str, typer.Option(metavar="PATH_OR_HUB_ID", help="The language model.")]
SiteName = Annotated[
    str, typer.Option("--site", metavar="SITE", help="Where to read, such as layers.12.resid_post.")
]
Out = Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Where the SAE is written.")]


@dataclass(frozen=True, slots=True)
class Texts:
    """A group of options: what is read, and how."""

    files: Annotated[
        list[Path],
        _texts(
            "--texts", metavar="FILE", exists=True, dir_okay=False, help=".txt or .jsonl. Again for another."
        ),
    ]
    held_out: Annotated[
        Path | None,
        _texts(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Texts to measure on; by default a share of those of --texts.",
        ),
    ] = None
    held_out_share: Annotated[float, _texts(metavar="SHARE", help="That share.")] = 0.05
    split_seed: Annotated[
        int | None, _texts(metavar="SEED", help="Which texts are held out; by default the --seed.")
    ] = None
    context: Annotated[
        int | None,
        _texts(
            min=2,
            metavar="TOKENS",
            help="Longer texts are cut into pieces; by default what the model allows, at most 1024.",
        ),
    ] = None
    raw: Annotated[
        bool, _texts("--raw", help="The texts hold their special tokens; the tokenizer adds none.")
    ] = False


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """A group of options: what is trained."""

    architecture: Annotated[TrainedArchitecture, _autoencoder(help="How features are made sparse.")] = (
        TrainedArchitecture.BATCHTOPK
    )
    feature_count: Annotated[
        int | None, _autoencoder(metavar="M", help="How many; by default 8 times the model's width.")
    ] = None
    k: Annotated[
        float | None, _autoencoder("--k", metavar="K", help="Features active at a token, on average; 32.")
    ] = None
    groups: Annotated[
        str | None,
        _autoencoder(
            metavar="SIZE,SIZE...",
            help="Matryoshka groups that sum to the features: the first learn what is general (batchtopk).",
        ),
    ] = None
    l1_coefficient: Annotated[
        float | None, _autoencoder(metavar="WEIGHT", help="The penalty of standard; 5.")
    ] = None
    l0_coefficient: Annotated[
        float | None,
        _autoencoder(
            metavar="WEIGHT",
            help="A plain penalty for jumprelu, such as 0.0006; by default it steers towards K.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Training:
    """A group of options: how it is trained."""

    tokens: Annotated[
        int,
        _training(
            min=1, help="How many activations to train on; the texts are repeated where they have fewer."
        ),
    ] = 8_000_000
    batch: Annotated[int, _training(help="Activations a step.")] = SAETraining.batch
    reuse: Annotated[
        int, _training(min=1, help="How often each activation is trained on: more saves the model's time.")
    ] = 1
    learning_rate: Annotated[
        float | None, _training(metavar="RATE", help="Adam's; by default 0.002 · √(1024 / M).")
    ] = None
    dead_after: Annotated[
        int, _training(metavar="TOKENS", help="A feature that has not fired for so long is revived.")
    ] = SAETraining.dead_after
    seed: Annotated[int, _training(help="The same seed gives the same SAE, on a CPU bit for bit.")] = 0
    precision: Annotated[
        Precision, _training("--precision", help="Of matrix products; auto is bfloat16 on CUDA.")
    ] = Precision.AUTO
    checkpoint_every: Annotated[int, _training(metavar="STEPS", help="How often the state is saved.")] = (
        SAETraining.checkpoint_every
    )


app = typer.Typer(no_args_is_help=True, help="Train a sparse autoencoder.")

HARVEST_EPILOG = """
[bold]Examples[/bold]

saegis train harvest --model ./my-model --texts web.jsonl --site layers.12.resid_post --out ./kept

saegis train sae --model ./my-model --texts web.jsonl --site layers.12.resid_post --harvest ./kept
--out ./my-sae

The same command goes on where it was broken off, and with more --tokens it adds to what is there. Texts
are cut and held out as `train sae` does it: give both the same options, and to SAEs of other seeds
--split-seed 0. A token takes 4 bytes for each
number of its activation: a million tokens of a model of width 640 take 2.6 GB.
"""

EPILOG = """
[bold]Examples[/bold]

saegis train sae --model ./my-model --texts wiki.txt --site layers.6.resid_post --out ./my-sae

saegis train sae --model owner/model --texts web.jsonl --site layers.12.resid_post --out ./my-sae
--feature-count 16384 --k 64 --tokens 200000000 --device cuda

saegis train sae --model ./my-model --texts a.jsonl --texts b.jsonl --site layers.2.resid_post
--out ./my-sae --feature-count 1024 --groups 64,192,768

saegis train sae --model ./my-model --texts chats.jsonl --raw --held-out test.jsonl
--site layers.2.resid_post --out ./my-sae --architecture jumprelu

[bold]Texts[/bold]

A .txt holds paragraphs, parted by blank lines; a line of a .jsonl is {"text": "Arsenic is a poison."}.
Each is a text by itself. The first token of each is left out, as is the beginning-of-sequence token:
their activations are outliers.

[bold]Architectures[/bold]

batchtopk keeps the strongest activations of a batch, K a token on average. jumprelu learns a threshold for
each feature and is steered towards K. standard is a ReLU with an L1 penalty.

A run that was broken off goes on from its last checkpoint when the same command is given again. The result
lies in SAELens's layout, with a sample of held-out text on which a server checks it.
"""
_LARGEST_CONTEXT = 1024
_INTERRUPTED = 130
#: Above these the SAE is probably of little use, and the command says what to try.
_HIGH_FVU, _MANY_DEAD = 0.5, 0.25


@app.callback()
def _group() -> None:
    """Without a callback typer would take a single command for the whole group."""


@app.command(epilog=EPILOG)
@options.grouped
def sae(
    *,
    model: Model,
    texts: Texts,
    site: SiteName,
    out: Out,
    placement: Placement,
    autoencoder: Autoencoder,
    training: Training,
    harvest: Annotated[
        Path | None,
        _training(metavar="DIR", file_okay=False, help="Activations of `train harvest`."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Train a sparse autoencoder on a model's activations at a site, and measure it on held-out text."""
    if (out / "cfg.json").exists():
        raise fail(f"{out} holds an SAE already", "give another --out, or delete it", USAGE)
    from saegis_lab.training.harvest import Harvest

    sizes = _sizes(autoencoder.groups)
    chosen = asdict(autoencoder) | asdict(training)
    count = chosen.pop("feature_count")
    chosen["features"] = sum(sizes) if sizes and count is None else count
    chosen["groups"] = sizes
    chosen["steps"] = max(1, -(-chosen.pop("tokens") // max(1, training.batch)))
    reuse = chosen.pop("reuse")
    if chosen["features"] is not None:
        _settings(chosen)
    with notes().status("loading the libraries and the model"):
        loaded = _load(model, placement)
        chosen["features"] = chosen["features"] or 8 * loaded.model.config.get_text_config().hidden_size
        settings = _settings(chosen)
    try:
        source = _source(loaded, site, texts, training.seed, reuse)
    except ValueError as error:
        raise fail(str(error), f"see {own_command()} train sae --help", USAGE) from error
    if harvest is not None:
        source = replace(source, harvest=Harvest(harvest))
    result = _train(source, settings, out)
    _show(result, model, json)


@app.command(epilog=HARVEST_EPILOG)
@options.grouped
def harvest(
    *,
    model: Model,
    texts: Texts,
    site: SiteName,
    out: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Where activations are kept.")],
    placement: Placement,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="How many activations; by default those of all texts.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Keep a model's activations at a site on disk, for `train sae` to read again and again."""
    import sys
    import time

    from saegis_lab.training.harvest import Harvest, HarvestError
    from saegis_lab.training.texts import TextError
    from saegis_server.cli.stages import stage_display

    with notes().status("loading the libraries and the model"):
        loaded = _load(model, placement)
    began = time.monotonic()
    try:
        source = _source(loaded, site, texts, 0, 1)
        with stage_display(json=False) as progress:
            held = source.gather(
                Harvest(out),
                tokens or sys.maxsize,
                lambda done: progress("activations", done, tokens or 0),
            )
    except (TextError, HarvestError, ValueError, OSError) as error:
        raise fail(str(error), f"see {own_command()} train harvest --help") from error
    except KeyboardInterrupt:
        raise fail("interrupted", "the same command goes on with the next texts", _INTERRUPTED) from None
    seconds = time.monotonic() - began
    if json:
        print_json({"path": str(out), "tokens": held, "seconds": seconds})
        return
    console().print(f"{held:,} activations in {out}, after {seconds:.0f} s")


def _sizes(groups: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in groups.split(",")) if groups else ()
    except ValueError:
        raise fail(
            f"--groups {groups!r} is not a list of whole numbers", "write it as 64,192,768", USAGE
        ) from None


def _settings(chosen: dict[str, Any]) -> SAETraining:
    try:
        return SAETraining(**chosen)
    except ValueError as error:
        raise fail(str(error), f"see {own_command()} train sae --help", USAGE) from error


def _load(model: str, placement: Placement) -> LoadedModel:
    from transformers.utils import logging as transformers_logging

    from saegis_server.engine.torch.loading import ModelLoadError, load_model

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return load_model(model, placement.dtype, placement.device)
    except ModelLoadError as error:
        raise fail(
            f"the model cannot be loaded: {error}", "give --model a directory or hub id with safetensors"
        ) from error


def _source(loaded: LoadedModel, site: str, texts: Texts, seed: int, reuse: int) -> Source:
    """What the activations come from. Raises ValueError for options that do not fit."""
    from saegis_lab.training.run import Source
    from saegis_lab.training.texts import Encoder, TextSplit
    from saegis_server.engine.sites import site_module
    from saegis_server.steering.site import Site

    context = texts.context
    if context is not None and context > loaded.max_context:
        raise ValueError(f"--context is {context}; the model's context has {loaded.max_context} tokens")
    place = Site.parse(site)
    site_module(loaded.model, place)
    length = context or min(_LARGEST_CONTEXT, loaded.max_context)
    chosen = seed if texts.split_seed is None else texts.split_seed
    split = TextSplit(texts.files, texts.held_out, texts.held_out_share, chosen)
    return Source(loaded, place, split, Encoder(loaded.tokenizer, length, texts.raw), reuse)


def _train(source: Source, settings: SAETraining, out: Path) -> TrainingResult:
    """Run the training; ends the command if the texts, the checkpoint or the result are wrong."""
    from saegis_lab.training.harvest import HarvestError
    from saegis_lab.training.run import run
    from saegis_lab.training.texts import TextError
    from saegis_lab.training.trainer import CheckpointError
    from saegis_server.sae.errors import SAEMismatch

    try:
        return run(source, settings, out, notes())
    except TextError as error:
        raise fail(
            str(error), f"see {own_command()} train sae --help for what the files must hold"
        ) from error
    except CheckpointError as error:
        raise fail(str(error), "") from error
    except HarvestError as error:
        raise fail(str(error), "give the same --model, --texts and --site to `train harvest`") from error
    except SAEMismatch as error:
        raise fail(str(error), "train on more --tokens, or with a larger --k") from error
    except ValueError as error:
        raise fail(str(error), f"see {own_command()} train sae --help") from error
    except OSError as error:
        raise fail(f"a file cannot be read or written: {error}", "is there room under --out?") from error
    except KeyboardInterrupt:
        raise fail("interrupted", "the same command goes on from the last checkpoint", _INTERRUPTED) from None


def _show(result: TrainingResult, model: str, json: bool) -> None:
    """Print the result, and what to do next."""
    serve = f"{own_command()} serve --model {model} --sae {result.path}"
    measured, rate = result.measured, result.tokens / max(result.seconds, 1e-9)
    if json:
        print_json(
            {
                "path": str(result.path),
                "fvu": measured.fvu,
                "l0": measured.l0,
                "dead": measured.dead,
                "held_out_tokens": measured.tokens,
                "tokens": result.tokens,
                "text_tokens": result.text_tokens,
                "readings": result.readings,
                "seconds": result.seconds,
                "tokens_per_second": rate,
                "next": serve,
            }
        )
        return
    table = Table(show_header=False, title=str(result.path), title_justify="left", title_style="bold")
    table.add_row("FVU", f"{measured.fvu:.4f}")
    table.add_row("L0", f"{measured.l0:.1f}")
    table.add_row("dead", f"{measured.dead:.1%}")
    table.add_row("measured on", f"{measured.tokens:,} held-out tokens")
    table.add_row("trained on", f"{result.tokens:,} tokens; the texts were begun {result.readings} times")
    table.add_row("time", f"{result.seconds:.0f} s, {rate:,.0f} tokens/s")
    table.add_row("next", Text(serve, style="bold"))
    console().print(table)
    if measured.fvu > _HIGH_FVU:
        notes().print(
            "The FVU is high: try more --tokens, or a larger --k or --feature-count.", style="yellow"
        )
    if measured.dead > _MANY_DEAD:
        notes().print(
            "Many features are dead: try a smaller --feature-count or more --tokens.", style="yellow"
        )
