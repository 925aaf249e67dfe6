"""The commands `saegis eval ...`: what edits do to a served model, measured language by language."""

import typer

from saegis_lab.cli.eval import ban as eval_ban
from saegis_lab.cli.eval import clamp as eval_clamp
from saegis_lab.cli.eval import coverage as eval_coverage

app = typer.Typer(no_args_is_help=True, help="Measure what a ban or a clamp does, language by language.")
app.command(epilog=eval_ban.EPILOG)(eval_ban.ban)
app.command(epilog=eval_clamp.EPILOG)(eval_clamp.clamp)
app.command(epilog=eval_coverage.EPILOG)(eval_coverage.coverage)
