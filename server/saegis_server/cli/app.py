"""The application `saegis` with the server's commands, which importing this module adds."""

from saegis.cli.app import app
from saegis.cli.features import app as features
from saegis.cli.policy import app as policy
from saegis_server.cli.eval import app as eval
from saegis_server.cli.features import choose, label
from saegis_server.cli.policy import calibrate, diff, explain, sign, test, validate
from saegis_server.cli.serve import audit, bench, demo, token
from saegis_server.cli.serve import command as serve
from saegis_server.cli.train import command as train

__all__ = ["app"]

app.command(epilog=serve.EPILOG)(serve.serve)
app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=bench.EPILOG)(bench.bench)
app.add_typer(eval.app, name="eval")
app.add_typer(train.app, name="train")
app.add_typer(audit.app, name="audit")
app.add_typer(token.app, name="token")

features.command(epilog=label.EPILOG)(label.label)
features.command(epilog=choose.EPILOG)(choose.choose)

policy.command(epilog=validate.EPILOG)(validate.validate)
policy.command("test", epilog=test.EPILOG)(test.run)
policy.command(epilog=diff.EPILOG)(diff.diff)
# In the place of the client's, which asks a server alone.
policy.command(epilog=explain.EPILOG)(explain.explain)
policy.command(epilog=calibrate.EPILOG)(calibrate.calibrate)
policy.command(epilog=sign.SIGN_EPILOG)(sign.sign)
policy.command(epilog=sign.KEYGEN_EPILOG)(sign.keygen)
