"""The command `saegis bench`: what steering and watching cost, side by side, on this machine."""

from __future__ import annotations

import platform
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from saegis.cli import options
from saegis.cli.output import console, fail, notes, print_json
from saegis_lab.cli.files import write_or_show
from saegis_server.cli.options import Device

EPILOG = """
[bold]Examples[/bold]

saegis bench                            both models, about ten minutes on two cores

saegis bench --only reference --rounds 3

saegis bench --part operating --only reference --json     features counted, scrapes, a long text read

saegis bench --part operating --only reference --device cuda

saegis bench --part http --only reference                 tokens over HTTP beside gRPC

saegis bench --part sight --only reference                a vision tower beside, and text alone

saegis bench --markdown table.md        write the table as well

Ratios are medians over rounds in which both sides ran one after the other, with the interval in which the
median lies with nine chances in ten; a bar is what a ratio should reach. Nothing else should run on the
machine.
"""


class Models(StrEnum):
    """The models that are measured."""

    REFERENCE = "reference"
    RANDOM = "random"
    BOTH = "both"


class Part(StrEnum):
    """What is measured."""

    STEERING = "steering"
    OPERATING = "operating"
    HTTP = "http"
    SIGHT = "sight"
    ALL = "all"


def bench(
    only: Annotated[Models, typer.Option(help="Which models.")] = Models.BOTH,
    part: Annotated[
        Part,
        typer.Option(
            help="What is measured: steering is what requests cost; operating is what counting features, "
            "scraping metrics and reading long texts do to them; http is the reference model's tokens over "
            "HTTP beside gRPC; sight is what a vision tower costs those who send text alone."
        ),
    ] = Part.ALL,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side is measured.")] = 5,
    device: Device = "cpu",
    markdown: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
    json: options.Json = False,
) -> None:
    """Measure what steering costs, against the same server unsteered and against Transformers alone, and what
    watching a server costs those who use it."""
    import torch

    from saegis_lab.bench import report
    from saegis_lab.bench.faces import faces
    from saegis_lab.bench.run import in_own_thread, operating, steering
    from saegis_lab.bench.serving import served
    from saegis_lab.bench.sight import sight
    from saegis_lab.bench.subjects import REFERENCE, random_llama, reference_subject
    from saegis_server.reference import MODEL

    _require_machine(device)
    subjects = []
    if only in (Models.REFERENCE, Models.BOTH):
        subjects.append(in_own_thread(lambda: reference_subject(str(MODEL), device)))
    if only in (Models.RANDOM, Models.BOTH):
        subjects.append(in_own_thread(lambda: random_llama(device)))
    started = time.monotonic()
    ratios = []
    for subject in subjects:
        with notes().status(subject.name) as status:

            def progress(what: str, done: int, total: int, name: str = subject.name) -> None:
                status.update(f"{name}: {what} ({done} of {total}), {time.monotonic() - started:.0f} s")

            if part in (Part.STEERING, Part.ALL):
                ratios += steering(subject, rounds, progress)
            if part in (Part.OPERATING, Part.ALL):
                ratios += operating(subject, rounds, progress)
                if subject.name == REFERENCE:
                    ratios += served(subject.title, rounds, progress, device)
            if part in (Part.HTTP, Part.ALL) and subject.name == REFERENCE:
                ratios += faces(subject.title, rounds, progress, device)
            if part in (Part.SIGHT, Part.ALL):
                ratios += sight(subject, rounds, progress)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    if device != "cpu":
        machine += f", {torch.cuda.get_device_name(device)}"
    if markdown is not None:
        write_or_show(markdown, f"{report.markdown(ratios)}\n\n{machine}\n")
    if json:
        print_json({"machine": machine, "ratios": report.as_json(ratios)})
    else:
        console().print(report.rich_table(ratios, machine))


def _require_machine(device: str) -> None:
    """End the command where nothing can be compiled, or the device is not there."""
    from saegis_server.engine.torch.compile_cache import CompileCacheError, settle
    from saegis_server.engine.torch.loading import MachineError, check_device
    from saegis_server.engine.torch.warmup import missing_compiler

    if device == "cpu" and (reason := missing_compiler()) is not None:
        notes().print(f"[red]error:[/red] {reason}; the benchmark measures the compiled step")
        raise typer.Exit(1)
    try:
        settle()
    except CompileCacheError as error:
        raise fail(str(error), "name another folder with SAEGIS_COMPILE_CACHE") from error
    try:
        check_device(device)
    except MachineError as error:
        raise fail(str(error), "name another --device") from error
