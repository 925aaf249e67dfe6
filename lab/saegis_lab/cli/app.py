"""The application `saegis` with the server's commands and the lab's, which importing this module adds."""

import typer

from saegis.cli.directions import app as kept_directions
from saegis.cli.features import app as features
from saegis.cli.policy import app as policy
from saegis_lab.cli import bench, calibrate, demo, directions, make_filter, train
from saegis_lab.cli.eval import attack, ban, clamp, coverage, detectors, filter
from saegis_lab.cli.features import choose, import_labels, label
from saegis_server.cli.app import app

__all__ = ["app"]

app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=bench.EPILOG)(bench.bench)
eval = typer.Typer(no_args_is_help=True, help="Measure what bans, clamps and policies do in each language.")
eval.command(epilog=ban.EPILOG)(ban.ban)
eval.command(epilog=clamp.EPILOG)(clamp.clamp)
eval.command(epilog=coverage.EPILOG)(coverage.coverage)
eval.command(epilog=detectors.EPILOG)(detectors.detectors)
eval.command("filter", epilog=filter.EPILOG)(filter.filter_)
eval.command(epilog=attack.EPILOG)(attack.attack)
app.add_typer(eval, name="eval")
app.add_typer(train.app, name="train")
kept_directions.command(epilog=directions.EPILOG)(directions.make)

features.command(epilog=label.EPILOG)(label.label)
features.command("import", epilog=import_labels.EPILOG)(import_labels.import_labels)
features.command(epilog=choose.EPILOG)(choose.choose)

policy.command(epilog=calibrate.EPILOG)(calibrate.calibrate)
policy.command(epilog=make_filter.EPILOG)(make_filter.make_filter)
