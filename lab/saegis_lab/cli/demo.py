"""The command `saegis demo`: a server, a client, and what steering does, live."""

from __future__ import annotations

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import console, fail, notes, own_command, print_json
from saegis_server.cli.serve.configuration import reference
from saegis_server.cli.serve.options import Compile
from saegis_server.cli.stages import BarStages, LineStages

if TYPE_CHECKING:
    from saegis import Client
    from saegis_lab.cli.demo_scenes import Landmark
    from saegis_lab.polyglot.filter_figures import RunFilter
    from saegis_lab.polyglot.manifest import Manifest

EPILOG = """
[bold]Examples[/bold]

saegis demo

saegis demo --seed 3

saegis demo --json
"""
EAGER = "Eager: saegis serve compiles the step at its first start, for a minute or two, and is then faster."
NEXT = """\
{saegis} serve
    serve the model, then in another terminal:
{saegis} chat
    talk with it; /help shows how to steer
{saegis} features search "golden gate"
    find features
{saegis} generate --chat {question} --redirect {redirect} --temperature 0
    the first scene's answer again
{saegis} serve --model PATH --sae PATH
    serve a model of your own
"""


def demo(
    seed: Annotated[int, typer.Option(help="Which questions are asked.")] = 0,
    compile: Annotated[
        Compile,
        typer.Option(help="Compile the forward pass first; auto does where a C++ compiler is found."),
    ] = Compile.NEVER,
    json: options.Json = False,
) -> None:
    """Show what steering does: start a server, talk to it through the client, stop it.

    Every answer, activation and figure comes from the server while you watch.
    """
    reference()
    import saegis
    from saegis_server.rpc.server.process import ServerProcessError

    try:
        scenes = _run(seed, compile, json)
    except ServerProcessError as error:
        raise fail(str(error), f"{own_command()} serve shows the start by itself") from error
    except saegis.SaegisError as error:
        raise fail(f"a call failed: {error}", f"{own_command()} serve --log-level info shows more") from error
    if json:
        print_json(scenes)


def _run(seed: int, compile: Compile, json: bool) -> dict[str, Any]:
    """Run all scenes and return them; without --json, show each as soon as it is there."""
    from saegis import Client
    from saegis_lab.cli import demo_scenes, demo_view
    from saegis_lab.polyglot.manifest import manifest
    from saegis_server.rpc.server.process import ServerProcess

    progress, out = notes(), console()
    chosen = manifest()
    if chosen.filter is None:
        raise fail("the weights that ship have no filter", "python -m saegis_lab.polyglot filter makes one")
    progress.print(Text("Starting a server on a free loopback port.", style="bold"))
    display = BarStages(progress) if progress.is_terminal else LineStages(progress)
    with (
        display,
        TemporaryDirectory(prefix="saegis-demo-") as folder,
        TemporaryDirectory(prefix="saegis-demo-") as state,
        ServerProcess(
            [
                *("--compile", compile.value, "--policy-state", state),
                *("--policy", str(demo_scenes.open_policy(Path(folder)))),
            ],
            display,
        ) as server,
        Client(server.target) as client,
    ):
        served, info = client.model(), client.server_info()
        how = "compiled" if info.compiled else "eager"
        started = f"{served.id} serves at {server.target} ({how}) after {server.start_seconds:.1f} s."
        progress.print(Text(started, style="green"))
        if compile is Compile.NEVER:
            progress.print(EAGER, style="dim")
        scenes = _scenes(client, chosen, chosen.filter, seed, None if json else out)
        samples = demo_scenes.metrics(server.metrics_port)
        if not json:
            demo_view.show_metrics(out, samples)
        stopped = server.stop()
    if not json:
        _show_end(out, stopped, scenes["landmark"])
    about = {
        "model": served,
        "info": info,
        "target": server.target,
        "start_seconds": server.start_seconds,
        "stop_seconds": stopped,
        "stages": display.seconds,
    }
    return {"server": about, **scenes, "metrics": samples}


def _scenes(
    client: Client, chosen: Manifest, of_run: RunFilter, seed: int, out: Console | None
) -> dict[str, Any]:
    """What a client sees, scene by scene, each shown on `out` as soon as it is there."""
    from saegis_lab.cli import demo_scenes, demo_view

    landmark = demo_scenes.landmark(client, seed)
    if out is not None:
        demo_view.show_landmark(out, landmark)
    strongest = demo_scenes.strongest(client, chosen, seed)
    if out is not None:
        demo_view.show_strongest(out, strongest)
    filtered, shown, whole = demo_scenes.filtered(client, of_run, seed)
    if out is not None:
        demo_view.show_filter(out, filtered)
        demo_view.show_receipt(out, shown, whole)
    receipt = {
        "prompt": shown.prompt,
        "request_id": whole.request_id,
        "usage": whole.usage,
        "receipt": whole.receipt,
    }
    return {"landmark": landmark, "strongest": strongest, "filter": filtered, "receipt": receipt}


def _show_end(out: Console, seconds: float, landmark: Landmark) -> None:
    out.print(f"\nThe server drained and ended with exit 0, {seconds:.1f} s after SIGTERM.\n")
    out.print(Text("Next", style="bold"))
    redirect = landmark.redirect
    indices = ",".join(map(str, redirect.features))
    next_steps = NEXT.format(
        saegis=own_command(),
        question=shlex.quote(landmark.answers[0].prompt),
        redirect=f"{indices}={redirect.to}:{redirect.factor:g}:{redirect.strength:g}",
    )
    out.print(next_steps, markup=False, soft_wrap=True)
