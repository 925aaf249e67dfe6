"""The family `saegis policy`: here the commands that ask a server; the others come with it."""

import typer

from saegis.cli.family import Family
from saegis.cli.policy import apply, explain, history


class _Policy(Family):
    """The commands `saegis policy ...`."""

    names = (
        *("validate", "test", "diff", "explain", "calibrate", "sign", "keygen"),
        *("apply", "list", "history", "roll-back"),
    )


app = typer.Typer(
    cls=_Policy,
    no_args_is_help=True,
    help="Check, try, calibrate, sign and put in force policies: the operator's rules.",
)
app.command(epilog=explain.EPILOG)(explain.explain)
app.command(epilog=apply.EPILOG)(apply.apply)
app.command("list", epilog=history.LIST_EPILOG)(history.list_policies)
app.command(epilog=history.HISTORY_EPILOG)(history.history)
app.command("roll-back", epilog=history.ROLL_BACK_EPILOG)(history.roll_back)
