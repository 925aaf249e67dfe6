"""Families of commands: their order in the help, and the message for commands of the server package."""

from typing import Any, ClassVar

from typer.core import TyperGroup

from saegis.cli.output import USAGE, fail

INSTALL = "pip install saegis-server"


class Family(TyperGroup):
    """A family of commands.

    names: all of them, in their order in the help. Missing ones belong to the server package, which is not
    installed; using one prints what to install.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.away = [name for name in self.names if name not in self.commands]
        if self.away:
            section = f"[bold]With the server[/bold]\n\n{', '.join(self.away)}: {INSTALL}"
            self.epilog = f"{self.epilog or ''}\n\n{section}\n"

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the installed commands."""
        return sorted(self.commands, key=self.names.index)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments name. Ends with a message for one of the server package."""
        if args[0] in self.away:
            message = f"{ctx.command_path} {args[0]} is a command of the server, which is not installed"
            raise fail(message, INSTALL, USAGE)
        return super().resolve_command(ctx, args)
