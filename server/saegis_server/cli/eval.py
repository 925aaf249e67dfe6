"""The commands `saegis eval ...`: what edits do to a served model, measured language by language."""

import typer

from saegis_server.cli import eval_ban, eval_clamp, eval_coverage

app = typer.Typer(no_args_is_help=True, help="Measure what a ban or a clamp does, language by language.")
app.command(epilog=eval_ban.EPILOG)(eval_ban.ban)
app.command(epilog=eval_clamp.EPILOG)(eval_clamp.clamp)
app.command(epilog=eval_coverage.EPILOG)(eval_coverage.coverage)
