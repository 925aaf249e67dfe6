"""The options of `saegis train sae`."""

from pathlib import Path
from typing import Annotated

import typer

from saegis_lab.training.settings import Precision, TrainedArchitecture

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
