"""Families of commands: in which order they are shown, and what is said of one that comes with the server."""

from typing import Any, ClassVar

from typer.core import TyperGroup

from saegis.cli.output import USAGE, fail

INSTALL = "pip install saegis-server"


class Family(TyperGroup):
    """A family of commands.

    names: all of them, in the order in which they are shown. Those that are not there are the server's, which
    is not installed: naming one tells what to install.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.away = [name for name in self.names if name not in self.commands]
        if self.away:
            section = f"[bold]With the server[/bold]\n\n{', '.join(self.away)}: {INSTALL}"
            self.epilog = f"{self.epilog or ''}\n\n{section}\n"

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of those that are there."""
        return sorted(self.commands, key=self.names.index)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments name, as typer does."""
        if args[0] in self.away:
            message = f"{ctx.command_path} {args[0]} is a command of the server, which is not installed"
            raise fail(message, INSTALL, USAGE)
        return super().resolve_command(ctx, args)
