"""The commands `saegis policy ...`: check, try, calibrate, sign and put in force the operator's rules."""

import typer

from saegis_server.cli import (
    policy_calibrate,
    policy_diff,
    policy_explain,
    policy_sign,
    policy_test,
    policy_validate,
)

app = typer.Typer(no_args_is_help=True, help="Check, try, calibrate and sign policies: the operator's rules.")
app.command(epilog=policy_validate.EPILOG)(policy_validate.validate)
app.command("test", epilog=policy_test.EPILOG)(policy_test.run)
app.command(epilog=policy_diff.EPILOG)(policy_diff.diff)
app.command(epilog=policy_explain.EPILOG)(policy_explain.explain)
app.command(epilog=policy_calibrate.EPILOG)(policy_calibrate.calibrate)
app.command(epilog=policy_sign.SIGN_EPILOG)(policy_sign.sign)
app.command(epilog=policy_sign.KEYGEN_EPILOG)(policy_sign.keygen)
