"""The options of the commands that try policies on a server of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.cli.output import FAILURE, USAGE, fail
from saegis_lab.cli.eval import options as eval_options
from saegis_lab.cli.files import codes, shipped
from saegis_server.cli.options import Dtype, DtypeName
from saegis_server.cli.policy.world import read_bundle
from saegis_server.cli.serve.configuration import room_for_rows
from saegis_server.cli.serve.options import Compile

if TYPE_CHECKING:
    from saegis import Client
    from saegis_lab.evaluation.experiment import Decoding, Prompt
    from saegis_lab.evaluation.requests import Progress
    from saegis_lab.evaluation.scorers import BanScorers
    from saegis_server.policy.bundle.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Trial:
    """A group of options: the policies, what they are tried on, and by which prompts."""

    policy: Annotated[
        list[Path],
        typer.Option(metavar="DIR_OR_TAR", exists=True, help="A bundle to try. Again for another."),
    ]
    parts: Annotated[
        bool,
        typer.Option("--parts", help="Try each action's rules alone and left out too."),
    ] = False
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_HUB_ID", help="The model to serve; by default the reference model."),
    ] = None
    sae: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ID=]FOLDER",
            help="Its SAE, by the id that the policies call it by; by default the folder's name. Again for "
            "another.",
        ),
    ] = None
    compile: Annotated[Compile, typer.Option(help="Whether the server compiles the model.")] = Compile.NEVER
    dtype: Dtype = DtypeName.AUTO
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens of prompt and completion together, on the server: the fewer, the faster.",
        ),
    ] = None
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=NUMBER",
            help="Room for rows on the server, as of saegis serve, such as rules=64. Again for another kind.",
        ),
    ] = None
    prompts: eval_options.Prompts = None
    scorer: eval_options.BanScorer = None
    prompts_per_language: Annotated[
        int | None, typer.Option(min=1, help="Take only the first so many of each kind in each language.")
    ] = None
    chosen_from: Annotated[
        str,
        typer.Option(
            metavar="CODE,CODE...",
            help="The languages that took part in choosing the policies; all others are marked.",
        ),
    ] = ""
    max_tokens: eval_options.MaxTokens = 80
    seed: Annotated[int, eval_options.in_sampling(help="The same seed gives the same answers.")] = 0
    concurrency: eval_options.Concurrency = 16

    @property
    def chose(self) -> tuple[str, ...]:
        """The languages that took part in choosing."""
        return codes(self.chosen_from)

    def conditions(self) -> dict[str, Bundle | None]:
        """What is tried, by name, first no rules; ends the command where a bundle is wrong.

        Raises ValueError where two bundles have the same name.
        """
        from saegis_lab.evaluation.bundle_copies import parts
        from saegis_lab.evaluation.filtered import ordered

        conditions: dict[str, Bundle | None] = {}
        for path in self.policy:
            bundle = read_bundle(path)
            name = bundle.policy.name
            if name in conditions:
                raise ValueError(f"--policy {path}: another one is called {name!r} too")
            conditions[name] = bundle
            if self.parts:
                conditions |= {f"{name}: {part}": made for part, made in parts(bundle).items()}
        return ordered(conditions)

    def asked(self) -> tuple[tuple[Prompt, ...], BanScorers]:
        """The prompts, and scorers for their languages. Raises ValueError."""
        from saegis_lab.evaluation.experiment import first_of_each, languages_of, load_prompts
        from saegis_lab.evaluation.scorers import ban_scorers

        prompts = load_prompts(self.prompts or shipped("prompts.jsonl", "--prompts"))
        scorers = ban_scorers(self.scorer or str(shipped("words.json", "--scorer")), languages_of(prompts))
        return first_of_each(prompts, self.prompts_per_language), scorers

    def decodings(self, temperatures: Sequence[float], samples: int) -> list[Decoding]:
        """One for each temperature. Raises ValueError."""
        from saegis_lab.evaluation.experiment import Decoding

        return [
            Decoding(temperature, samples if temperature else 1, self.seed, self.max_tokens)
            for temperature in temperatures
        ]

    @contextmanager
    def client(self, progress: Progress) -> Iterator[Client]:
        """A client of a server of the model; ends the command where it cannot be served."""
        from saegis_lab.evaluation.policy_trial import serving
        from saegis_server.rpc.server.process import ServerProcessError

        saes: dict[str, Path] = {}
        for written in self.sae or ():
            name, _, path = written.rpartition("=")
            folder = Path(path)
            if not folder.is_dir():
                raise fail(f"--sae {written}: there is no folder {folder}", "give the SAE's folder", USAGE)
            saes[name or folder.resolve().name] = folder
        options = ["--compile", self.compile.value, "--dtype", self.dtype.value]
        options += [f"--rows={kind}={number}" for kind, number in room_for_rows(self.rows or []).items()]
        if self.max_model_len is not None:
            options += ["--max-model-len", str(self.max_model_len)]
        try:
            with serving(self.model, saes, progress, options) as client:
                yield client
        except ServerProcessError as error:
            raise fail(str(error), "serve the model with saegis serve to see more", FAILURE) from error


def temperatures_of(text: str) -> list[float]:
    """The temperatures of a comma-separated list. Raises ValueError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--temperatures: {text!r} is no list of numbers") from None
