"""The command `saegis directions make`: a direction, as the difference between the activations of two sets of
texts."""

from __future__ import annotations

from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, print_json
from saegis_lab.cli import offline
from saegis_lab.cli.files import check_places, inputs, note_written
from saegis_server.cli.stages import StageDisplay, stage_display

if TYPE_CHECKING:
    from saegis_lab.filters.direction import RefusalDirection
    from saegis_lab.filters.subject import SiteSubject

EPILOG = """
[bold]Examples[/bold]

saegis directions make --model ./model --site layers.3.resid_post --towards harmful.jsonl --away benign.jsonl
--out refusal.safetensors

saegis directions make --model ./model --site layers.3.resid_post --towards formal.txt --away casual.txt
--raw --every-token --out formal.safetensors --name formal

[bold]Texts[/bold]

A line is a text, or a JSON object with a "prompt" or a "text". Each is read as a user's message, up to
where the answer begins; with --raw as it stands. The direction is the mean activation at the last token of
the texts towards, less that of the texts away: from prompts that the model refuses and prompts that it
answers comes its refusal direction.

[bold]What is written[/bold]

A safetensors file with one unit vector and its site. saegis directions upload keeps it on a server, where
edits name it, and so does saegis serve --directions for everybody; policies name it under directions/, for
their rules and for what they protect.
"""


@options.grouped
def make(
    *,
    model: Annotated[str, typer.Option(metavar="PATH_OR_HUB_ID", help="The language model.")],
    site: Annotated[str, typer.Option(metavar="SITE", help="Where, such as layers.12.resid_post.")],
    towards: Annotated[
        Path, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Texts that it points to.")
    ],
    away: Annotated[
        Path, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Texts that it points from.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="The file to write.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="The name of its tensor.")] = "direction",
    every_token: Annotated[
        bool, typer.Option("--every-token", help="The mean over all tokens, not the last of each text.")
    ] = False,
    raw: offline.Raw = False,
    placement: offline.Placement,
    json: options.Json = False,
) -> None:
    """Make a direction from two sets of texts: the mean activation of the one less that of the other."""
    check_places(out, None)
    if out.suffix != ".safetensors":
        raise fail(f"--out {out}: directions are safetensors files", f"write {out}.safetensors", USAGE)
    with inputs():
        texts = read_texts(towards), read_texts(away)
    with stage_display(json=False) as display:
        subject = _subject(model, site, placement, display)
        display("reading the texts", 0, 0)
        made, shift = _made(subject, texts, raw, every_token)
    digest = _written(made, out, name, str(subject.site))
    found = {
        "file": str(out),
        "tensor": name,
        "site": str(subject.site),
        "key": digest,
        "norm": made.norm,
        "towards": {"texts": len(texts[0]), "mean": shift[0]},
        "away": {"texts": len(texts[1]), "mean": shift[1]},
    }
    note_written(out)
    if json:
        print_json(found)
        return
    console().print(
        f"{name} at {subject.site}: {made.source}; along it the last tokens are at {shift[0]:.4g} and "
        f"{shift[1]:.4g}",
        markup=False,
    )


def read_texts(path: Path) -> tuple[str, ...]:
    """The texts of a file, one a line. Raises InputFileError."""
    from saegis_lab.records import read_lines

    return read_lines(path, _text, "holds no text; write one a line")


def _text(line: str) -> str:
    if not line.lstrip().startswith("{"):
        return line.strip()
    entry = loads(line)
    text = entry.get("prompt", entry.get("text"))
    if not isinstance(text, str) or not text.strip():
        raise ValueError("neither a prompt nor a text stands there")
    return text


def _subject(model: str, site: str, placement: offline.Placement, display: StageDisplay) -> SiteSubject:
    """The model at the site; ends the command where there is no such model or site."""
    display("loading the libraries", 0, 0)
    from saegis_lab.filters.subject import SiteSubject
    from saegis_server.cli.serve.start_errors import start_failed
    from saegis_server.engine.sites import site_module
    from saegis_server.engine.torch.loading import load_model
    from saegis_server.steering.site import Site

    try:
        place = Site.parse(site)
        display("loading the model", 0, 0)
        loaded = load_model(model, placement.dtype.value, placement.device)
        site_module(loaded.model, place)
    except Exception as error:
        display.close()
        if (failure := start_failed(error)) is None:
            raise
        raise fail(*failure) from error
    return SiteSubject(loaded, place)


def _made(
    subject: SiteSubject, texts: tuple[tuple[str, ...], tuple[str, ...]], raw: bool, every_token: bool
) -> tuple[RefusalDirection, list[float]]:
    """The direction, and where the last tokens of the texts towards and away lie along it, on average."""
    from saegis_lab.filters.direction import from_texts, last_activations
    from saegis_server.rpc.wire.problems import PreconditionError

    encode = subject.loaded.tokenizer.encode
    try:
        towards, away = ([encode(text) if raw else subject.asked(text) for text in each] for each in texts)
    except PreconditionError as error:
        raise fail(str(error), "--raw reads the texts as they stand", USAGE) from error
    with inputs():
        longest = max(map(len, (*towards, *away)))
        if longest > subject.loaded.max_context:
            raise ValueError(
                f"a text has {longest} tokens; the model's context has {subject.loaded.max_context}"
            )
        made = from_texts(subject, towards, away, every_token)
    means = [float((last_activations(subject, rows) @ made.vector).mean()) for rows in (towards, away)]
    return made, means


def _written(made: RefusalDirection, out: Path, name: str, site: str) -> str:
    """Write the file; returns the key by which the server tells the direction from others."""
    from safetensors.torch import save

    from saegis_server.steering.rows import Probe

    data = save({name: made.vector}, {"site": site, "norm": repr(made.norm), "source": made.source})
    try:
        out.write_bytes(data)
    except OSError as error:
        raise fail(f"{out} cannot be written: {error.strerror}", "name another file with --out") from error
    return Probe.direction(made.vector).key
