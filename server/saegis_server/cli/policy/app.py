"""The commands `saegis policy ...`: check, try, calibrate, sign and put in force the operator's rules."""

import typer

from saegis_server.cli.policy import apply as policy_apply
from saegis_server.cli.policy import calibrate as policy_calibrate
from saegis_server.cli.policy import diff as policy_diff
from saegis_server.cli.policy import explain as policy_explain
from saegis_server.cli.policy import history as policy_history
from saegis_server.cli.policy import sign as policy_sign
from saegis_server.cli.policy import test as policy_test
from saegis_server.cli.policy import validate as policy_validate

app = typer.Typer(
    no_args_is_help=True, help="Check, try, calibrate, sign and put in force policies: the operator's rules."
)
app.command(epilog=policy_validate.EPILOG)(policy_validate.validate)
app.command("test", epilog=policy_test.EPILOG)(policy_test.run)
app.command(epilog=policy_diff.EPILOG)(policy_diff.diff)
app.command(epilog=policy_explain.EPILOG)(policy_explain.explain)
app.command(epilog=policy_calibrate.EPILOG)(policy_calibrate.calibrate)
app.command(epilog=policy_sign.SIGN_EPILOG)(policy_sign.sign)
app.command(epilog=policy_sign.KEYGEN_EPILOG)(policy_sign.keygen)
app.command(epilog=policy_apply.EPILOG)(policy_apply.apply)
app.command("list", epilog=policy_history.LIST_EPILOG)(policy_history.list_policies)
app.command(epilog=policy_history.HISTORY_EPILOG)(policy_history.history)
app.command("roll-back", epilog=policy_history.ROLL_BACK_EPILOG)(policy_history.roll_back)
