"""The application `saegis` with the server's commands, which importing this module adds."""

from saegis.cli.app import app
from saegis.cli.policy import app as policy
from saegis_server.cli.policy import diff, explain, sign, test, validate
from saegis_server.cli.sae import check, convert, info, listing
from saegis_server.cli.sae.common import app as sae
from saegis_server.cli.serve import audit, config, token
from saegis_server.cli.serve import command as serve
from saegis_server.cli.serve.settings import SettingsCommand

__all__ = ["app"]

app.command(epilog=serve.EPILOG, cls=SettingsCommand)(serve.serve)
app.add_typer(config.app, name="config")
app.add_typer(audit.app, name="audit")
app.add_typer(token.app, name="token")
app.add_typer(sae, name="sae")

sae.command(epilog=info.EPILOG)(info.info)
sae.command(epilog=check.EPILOG)(check.check)
sae.command(epilog=convert.EPILOG)(convert.convert)
sae.command("list", epilog=listing.EPILOG)(listing.show)

policy.command(epilog=validate.EPILOG)(validate.validate)
policy.command("test", epilog=test.EPILOG)(test.run)
policy.command(epilog=diff.EPILOG)(diff.diff)
# Replaces the client's command, which can only ask a server.
policy.command(epilog=explain.EPILOG)(explain.explain)
policy.command(epilog=sign.SIGN_EPILOG)(sign.sign)
policy.command(epilog=sign.KEYGEN_EPILOG)(sign.keygen)
