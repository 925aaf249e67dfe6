"""The command `saegis bench`: what steering and watching cost, side by side, on this machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.cli import options
from saegis.cli.output import console, fail, notes, print_json
from saegis_lab.cli.files import write_or_show
from saegis_server.cli.options import Device
from saegis_server.cli.serve.options import EngineName

if TYPE_CHECKING:
    from saegis_lab.bench.report import Ratio
    from saegis_server.engine.api import Progress

EPILOG = """
[bold]Examples[/bold]

saegis bench                            both models, about twenty minutes on two cores

saegis bench --only reference --rounds 3

saegis bench --part operating --only reference --json     features counted, scrapes, a long text read

saegis bench --part operating --only reference --device cuda

saegis bench --part http --only reference                 tokens over HTTP beside gRPC

saegis bench --part packing --only random                 weights packed for the processor, and not

saegis bench --part sight --only reference                a vision tower beside, and text alone

saegis bench --engine vllm                                vLLM, plain and steered, and the embedded engine

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
    PACKING = "packing"
    SIGHT = "sight"
    ALL = "all"


def bench(
    only: Annotated[Models, typer.Option(help="Which models.")] = Models.BOTH,
    part: Annotated[
        Part,
        typer.Option(
            help="What is measured: steering is what requests cost; operating is what counting features, "
            "scraping metrics and reading long texts do to them; http is the reference model's tokens over "
            "HTTP beside gRPC; packing is what weights packed for the processor are worth; sight is what a "
            "vision tower costs those who send text alone."
        ),
    ] = Part.ALL,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="What is measured: torch is the embedded engine; vllm is vLLM, plain and with the steering "
            "in it, with the embedded engine beside it, on the random model alone."
        ),
    ] = EngineName.TORCH,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side is measured.")] = 5,
    device: Device = "cpu",
    markdown: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
    json: options.Json = False,
) -> None:
    """Measure what steering costs, against the same server unsteered and against Transformers alone, and what
    watching a server costs those who use it."""
    import torch

    from saegis_lab.bench import report

    _require_machine(device)
    in_vllm = engine is EngineName.VLLM
    ratios = _of_vllm(only, part, rounds, device) if in_vllm else _of_torch(only, part, rounds, device)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    if device != "cpu":
        machine += f", {torch.cuda.get_device_name(device)}"
    if markdown is not None:
        write_or_show(markdown, f"{report.markdown(ratios)}\n\n{machine}\n")
    if json:
        print_json({"machine": machine, "ratios": report.as_json(ratios)})
    else:
        console().print(report.rich_table(ratios, machine))


def _of_torch(only: Models, part: Part, rounds: int, device: str) -> list[Ratio]:
    """What is measured of the embedded engine."""
    from saegis_lab.bench.faces import faces
    from saegis_lab.bench.run import in_own_thread, operating, packing, steering
    from saegis_lab.bench.serving import served
    from saegis_lab.bench.sight import sight
    from saegis_lab.bench.subjects import REFERENCE, random_llama, reference_subject
    from saegis_server.reference import MODEL

    subjects = []
    if only in (Models.REFERENCE, Models.BOTH):
        subjects.append(in_own_thread(lambda: reference_subject(str(MODEL), device)))
    if only in (Models.RANDOM, Models.BOTH):
        subjects.append(in_own_thread(lambda: random_llama(device)))
    ratios: list[Ratio] = []
    for subject in subjects:
        with _telling(subject.name) as progress:
            if part in (Part.STEERING, Part.ALL):
                ratios += steering(subject, rounds, progress)
            if part in (Part.OPERATING, Part.ALL):
                ratios += operating(subject, rounds, progress)
                if subject.name == REFERENCE:
                    ratios += served(subject.title, rounds, progress, device)
            if part in (Part.PACKING, Part.ALL):
                ratios += packing(subject, rounds, progress)
            if part in (Part.HTTP, Part.ALL) and subject.name == REFERENCE:
                ratios += faces(subject.title, rounds, progress, device)
            if part in (Part.SIGHT, Part.ALL):
                ratios += sight(subject, rounds, progress)
    return ratios


def _of_vllm(only: Models, part: Part, rounds: int, device: str) -> list[Ratio]:
    """What is measured of vLLM, with the embedded engine beside it."""
    for name, is_given in (
        ("--only reference", only is Models.REFERENCE),
        (f"--part {part}", part not in (Part.STEERING, Part.ALL)),
        (f"--device {device}", device != "cpu"),
    ):
        if is_given:
            raise fail(f"--engine vllm is not measured with {name}", "leave that out")
    from saegis_lab.bench.run import in_own_thread
    from saegis_lab.bench.subjects import random_llama
    from saegis_lab.bench.vllm import beside_vllm
    from saegis_server.engine.vllm.in_process import VllmMissingError, require_vllm

    try:
        require_vllm()
    except VllmMissingError as error:
        raise fail(str(error), "make vllm, and .venv-vllm/bin/saegis bench --engine vllm") from error
    title = in_own_thread(lambda: random_llama().title)
    with _telling("vLLM") as progress:
        return beside_vllm(title, rounds, progress)


@contextmanager
def _telling(name: str) -> Iterator[Progress]:
    """What tells how far the measurement of something is."""
    began = time.monotonic()
    with notes().status(name) as status:

        def progress(what: str, done: int, total: int) -> None:
            status.update(f"{name}: {what} ({done} of {total}), {time.monotonic() - began:.0f} s")

        yield progress


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
