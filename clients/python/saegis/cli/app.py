"""The application `saegis` and its subcommands. Each has its own module, which loads only what it needs."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from saegis.cli import chat, directions, explain, features, generate, policy
from saegis.cli.family import Family
from saegis.cli.output import FAILURE, USAGE, fail
from saegis.cli.streams import NotTextError, StreamError, checked, guarded, sentence
from saegis.version import __version__


class Commands(Family):
    """All commands. It handles errors that any may have: input that is not text, output that fails."""

    names = (
        *("serve", "demo", "generate", "chat", "inspect", "bench"),
        *("features", "directions", "eval", "train", "sae", "policy", "config", "audit", "token"),
    )

    def main(self, args: Sequence[str] | None = None, *further: Any, **settings: Any) -> Any:
        """Run a command, as typer does."""
        try:
            with guarded():
                written = sys.argv[1:] if args is None else args
                arguments = [checked(text, f"argument {number}") for number, text in enumerate(written, 1)]
                return super().main(arguments, *further, **settings)
        except (StreamError, OSError, UnicodeError) as error:
            wrong = isinstance(error, NotTextError | UnicodeError)
            sys.exit(fail(sentence(error), code=USAGE if wrong else FAILURE).exit_code)


EPILOG = """
[bold]Start here[/bold]

saegis demo                       see what steering does, live, on the reference model

saegis serve                      serve the reference model on 127.0.0.1:50051

saegis features search bridge     find a feature

saegis generate --chat "Tell me about the sea." --clamp 1785=50 --temperature 0

[bold]saegis COMMAND --help[/bold] explains a command, with examples.
"""

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Steer and guard language models through the features of sparse autoencoders.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=generate.EPILOG)(generate.generate)
app.command(epilog=chat.EPILOG)(chat.chat)
app.command(epilog=features.INSPECT_EPILOG)(features.inspect)
app.add_typer(features.app, name="features")
app.add_typer(directions.app, name="directions")
app.add_typer(policy.app, name="policy")
policy.app.command(epilog=explain.EPILOG)(explain.explain)


def _show_version(requested: bool) -> None:
    if requested:
        print(f"saegis {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
