"""The command `saegis train sae`: a sparse autoencoder for any model, from text files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, notes, own_command, print_json
from saegis_lab.training.settings import Precision, SAETraining, TrainedArchitecture
from saegis_server.cli.options import Device, Dtype, DtypeName

if TYPE_CHECKING:
    from saegis_lab.training.run import Source, TrainingResult
    from saegis_server.engine.torch.loading import LoadedModel

_AUTOENCODER = "Autoencoder"
_TEXTS = "Texts"
_TRAINING = "Training"

Model = Annotated[str, typer.Option(metavar="PATH_OR_HUB_ID", help="The language model.")]
SiteName = Annotated[
    str, typer.Option("--site", metavar="SITE", help="Where to read, such as layers.12.resid_post.")
]
Out = Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Where the SAE is written.")]

Texts = Annotated[
    list[Path],
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help=".txt or .jsonl. Again for another.",
        rich_help_panel=_TEXTS,
    ),
]
HeldOut = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Texts to measure on; by default a share of those of --texts.",
        rich_help_panel=_TEXTS,
    ),
]
HeldOutShare = Annotated[float, typer.Option(metavar="SHARE", help="That share.", rich_help_panel=_TEXTS)]
Context = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="TOKENS",
        help="Longer texts are cut into pieces; by default what the model allows, at most 1024.",
        rich_help_panel=_TEXTS,
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="The texts hold their special tokens; the tokenizer adds none.",
        rich_help_panel=_TEXTS,
    ),
]

Architecture = Annotated[
    TrainedArchitecture, typer.Option(help="How features are made sparse.", rich_help_panel=_AUTOENCODER)
]
FeatureCount = Annotated[
    int | None,
    typer.Option(
        metavar="M", help="How many; by default 8 times the model's width.", rich_help_panel=_AUTOENCODER
    ),
]
K = Annotated[
    float | None,
    typer.Option(
        "--k", metavar="K", help="Features active at a token, on average; 32.", rich_help_panel=_AUTOENCODER
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE,SIZE...",
        help="Matryoshka groups that sum to the features: the first learn what is general (batchtopk).",
        rich_help_panel=_AUTOENCODER,
    ),
]
L1Coefficient = Annotated[
    float | None,
    typer.Option(metavar="WEIGHT", help="The penalty of standard; 5.", rich_help_panel=_AUTOENCODER),
]
L0Coefficient = Annotated[
    float | None,
    typer.Option(
        metavar="WEIGHT",
        help="A plain penalty for jumprelu, such as 0.0006; by default it steers towards K.",
        rich_help_panel=_AUTOENCODER,
    ),
]

Tokens = Annotated[
    int,
    typer.Option(
        min=1,
        help="How many activations to train on; the texts are repeated where they have fewer.",
        rich_help_panel=_TRAINING,
    ),
]
Batch = Annotated[int, typer.Option(help="Activations a step.", rich_help_panel=_TRAINING)]
Reuse = Annotated[
    int,
    typer.Option(
        min=1,
        help="How often each activation is trained on: more saves the model's time.",
        rich_help_panel=_TRAINING,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(metavar="RATE", help="Adam's; by default 0.002 · √(1024 / M).", rich_help_panel=_TRAINING),
]
DeadAfter = Annotated[
    int,
    typer.Option(
        metavar="TOKENS",
        help="A feature that has not fired for so long is revived.",
        rich_help_panel=_TRAINING,
    ),
]
Seed = Annotated[
    int,
    typer.Option(help="The same seed gives the same SAE, on a CPU bit for bit.", rich_help_panel=_TRAINING),
]
PrecisionChoice = Annotated[
    Precision,
    typer.Option(
        "--precision", help="Of matrix products; auto is bfloat16 on CUDA.", rich_help_panel=_TRAINING
    ),
]
CheckpointEvery = Annotated[
    int, typer.Option(metavar="STEPS", help="How often the state is saved.", rich_help_panel=_TRAINING)
]

app = typer.Typer(no_args_is_help=True, help="Train a sparse autoencoder.")

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
#: Above these the result is probably of little use, and the command says what to try.
_HIGH_FVU, _MANY_DEAD = 0.5, 0.25


@app.callback()
def _group() -> None:
    """Without a callback typer would take a single command for the whole group."""


@app.command(epilog=EPILOG)
def sae(
    model: Model,
    texts: Texts,
    site: SiteName,
    out: Out,
    dtype: Dtype = DtypeName.AUTO,
    device: Device = "cpu",
    held_out: HeldOut = None,
    held_out_share: HeldOutShare = 0.05,
    context: Context = None,
    raw: Raw = False,
    architecture: Architecture = TrainedArchitecture.BATCHTOPK,
    feature_count: FeatureCount = None,
    k: K = None,
    groups: Groups = None,
    l1_coefficient: L1Coefficient = None,
    l0_coefficient: L0Coefficient = None,
    tokens: Tokens = 8_000_000,
    batch: Batch = SAETraining.batch,
    reuse: Reuse = 1,
    learning_rate: LearningRate = None,
    dead_after: DeadAfter = SAETraining.dead_after,
    seed: Seed = 0,
    precision: PrecisionChoice = Precision.AUTO,
    checkpoint_every: CheckpointEvery = SAETraining.checkpoint_every,
    json: options.Json = False,
) -> None:
    """Train a sparse autoencoder on a model's activations at a site, and measure it on held-out text."""
    if (out / "cfg.json").exists():
        raise fail(f"{out} holds an SAE already", "give another --out, or delete it", USAGE)
    sizes = _sizes(groups)
    chosen: dict[str, Any] = {
        "architecture": architecture,
        "features": sum(sizes) if sizes and feature_count is None else feature_count,
        "k": k,
        "groups": sizes,
        "steps": max(1, -(-tokens // max(1, batch))),
        "batch": batch,
        "learning_rate": learning_rate,
        "l1_coefficient": l1_coefficient,
        "l0_coefficient": l0_coefficient,
        "dead_after": dead_after,
        "seed": seed,
        "precision": precision,
        "checkpoint_every": checkpoint_every,
    }
    if chosen["features"] is not None:
        _settings(chosen)
    with notes().status("loading the libraries and the model"):
        loaded = _load(model, dtype, device)
        chosen["features"] = chosen["features"] or 8 * loaded.model.config.get_text_config().hidden_size
        settings = _settings(chosen)
    try:
        source = _source(loaded, site, (texts, held_out, held_out_share, seed), (context, raw), reuse)
    except ValueError as error:
        raise fail(str(error), f"see {own_command()} train sae --help", USAGE) from error
    result = _train(source, settings, out)
    _tell(result, model, json)


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


def _load(model: str, dtype: str, device: str) -> LoadedModel:
    from transformers.utils import logging as transformers_logging

    from saegis_server.engine.torch.loading import ModelLoadError, load_model

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return load_model(model, dtype, device)
    except ModelLoadError as error:
        raise fail(
            f"the model cannot be loaded: {error}", "give --model a directory or hub id with safetensors"
        ) from error


def _source(
    loaded: LoadedModel,
    site: str,
    texts: tuple[list[Path], Path | None, float, int],
    encoding: tuple[int | None, bool],
    reuse: int,
) -> Source:
    """What the activations come from. Raises ValueError for options that do not fit."""
    from saegis_lab.training.run import Source
    from saegis_lab.training.texts import Encoder, TextSplit
    from saegis_server.engine.sites import site_module
    from saegis_server.steering.site import Site

    context, raw = encoding
    if context is not None and context > loaded.max_context:
        raise ValueError(f"--context is {context}; the model's context has {loaded.max_context} tokens")
    place = Site.parse(site)
    site_module(loaded.model, place)
    length = context or min(_LARGEST_CONTEXT, loaded.max_context)
    return Source(loaded, place, TextSplit(*texts), Encoder(loaded.tokenizer, length, raw), reuse)


def _train(source: Source, settings: SAETraining, out: Path) -> TrainingResult:
    """Run the training; what is wrong with the texts, the checkpoint or the result ends the command."""
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
    except SAEMismatch as error:
        raise fail(str(error), "train on more --tokens, or with a larger --k") from error
    except ValueError as error:
        raise fail(str(error), f"see {own_command()} train sae --help") from error
    except OSError as error:
        raise fail(f"a file cannot be read or written: {error}", "is there room under --out?") from error
    except KeyboardInterrupt:
        raise fail("interrupted", "the same command goes on from the last checkpoint", _INTERRUPTED) from None


def _tell(result: TrainingResult, model: str, json: bool) -> None:
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
