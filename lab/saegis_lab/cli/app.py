"""The application `saegis` with the server's commands and the lab's, which importing this module adds."""

from saegis.cli.features import app as features
from saegis.cli.policy.app import app as policy
from saegis_lab.cli import bench, calibrate, demo
from saegis_lab.cli.eval import app as eval
from saegis_lab.cli.features import choose, label
from saegis_lab.cli.train import command as train
from saegis_server.cli.app import app

__all__ = ["app"]

app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=bench.EPILOG)(bench.bench)
app.add_typer(eval.app, name="eval")
app.add_typer(train.app, name="train")

features.command(epilog=label.EPILOG)(label.label)
features.command(epilog=choose.EPILOG)(choose.choose)

policy.command(epilog=calibrate.EPILOG)(calibrate.calibrate)
