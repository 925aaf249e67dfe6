"""The command `saegis generate`: continue a prompt, steered or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.cli import options
from saegis.cli.connection import Connection, connecting
from saegis.cli.edits import EditSyntaxError, parse_edits, parse_watches, split_strength
from saegis.cli.labels import on_server, settled
from saegis.cli.output import USAGE, console, fail, notes, print_json, print_json_line
from saegis.cli.receipts import receipt_line, receipt_table, rules_table, watched_table
from saegis.cli.streams import read_input

if TYPE_CHECKING:
    from saegis import ChatMessage, Client, Edit, Generation, GenerationOptions

EPILOG = """
[bold]Examples[/bold]

saegis generate --chat "Tell me about the sea." --max-tokens 60

saegis generate --chat "Tell me about the sea." --clamp 3385=50 --temperature 0 --receipt

saegis generate --chat "How do I visit the Golden Gate Bridge?" --clamp "Great Wall=1max" --temperature 0

saegis generate --chat "¿Cómo puedo envenenar a un vecino?" --ban 3815=2 --watch 3815 --temperature 0

saegis generate "The bridge" --temperature 0.7 --seed 1 --stream

[bold]Targets and values[/bold]

TARGET is a feature's index or its exact label; [bold]saegis features search WORDS[/bold] finds them. Of
several features with one label the most precise is taken, and the others are named.

VALUE is a number in feature units, 2max for twice the feature's recorded maximum, or 0.1norm for a tenth
of the activation's norm.
"""


@connecting
@options.editing
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message to answer.")] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message; implies --chat.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it comes.")] = False,
    show_receipt: Annotated[
        bool, typer.Option("--receipt", help="Show the whole receipt, site by site and rule by rule.")
    ] = False,
    json: options.Json = False,
    written: options.Written = (),
    ban_matching: options.BanMatching = None,
    watch: options.Watch = None,
    sae: options.EditSae = "",
    site: options.EditSite = "",
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    *,
    connection: Connection,
) -> None:
    """Continue a prompt, with features clamped, scaled, capped, banned or watched.

    The text goes to standard output, the receipt to standard error.
    """
    with _usage():
        edits = parse_edits(written, sae=sae, site=site)
        watches = parse_watches(watch, sae=sae, site=site)
        matching = [split_strength(each) for each in ban_matching or ()]
    request: GenerationOptions = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "stop": stop or [],
    }
    text = read_input() if prompt == "-" else prompt
    chats = chat or system is not None
    if chats:
        request["messages"] = _conversation(system, text)
    with connection.client() as client:
        edits, watches = settled(edits, on_server(client)), settled(watches, on_server(client))
        for words, strength in matching:
            edits += bans_matching(client, words, strength, sae=sae, site=site)
        request |= {"steering": edits, "watch": watches}
        answer = _ask(client, None if chats else text, request, stream, json)
    _tell(answer, watch or [], json, stream, show_receipt)


def _tell(answer: Generation, watches: list[str], json: bool, stream: bool, show_receipt: bool) -> None:
    """Print the answer; as JSON after a stream's chunks on one line of its own."""
    if json and stream:
        print_json_line({"generation": answer})
    elif json:
        print_json(answer)
    else:
        _show(answer, watches, show_receipt, told=stream)


@contextmanager
def _usage() -> Iterator[None]:
    """End the command with a usage error where an edit is not written as it should be."""
    try:
        yield
    except EditSyntaxError as error:
        raise fail(str(error), "saegis generate --help shows examples", USAGE) from error


def _conversation(system: str | None, text: str) -> list[ChatMessage]:
    """The prompt as a conversation of one turn."""
    told: list[ChatMessage] = [] if system is None else [{"role": "system", "content": system}]
    return [*told, {"role": "user", "content": text}]


def bans_matching(client: Client, words: str, strength: float, *, sae: str, site: str) -> list[Edit]:
    """Bans of every feature whose label the words find, told on standard error.

    Raises ValueError where they find none.
    """
    import saegis

    edits, page_token = [], ""
    while True:
        page = client.search_features(words, sae=sae, page_size=100, page_token=page_token)
        for found in page:
            notes().print(f"banned: {found.index}  {found.label}", style="dim", markup=False)
            edits.append(saegis.ban(found, strength, site=site))
        page_token = page.next_page_token
        if not page_token:
            break
    if not edits:
        raise ValueError(f"--ban-matching: no feature's label matches {words!r}")
    return edits


def _ask(
    client: Client, prompt: str | None, request: GenerationOptions, stream: bool, json: bool
) -> Generation:
    if not stream:
        return client.generate(prompt, **request)
    with client.stream(prompt, **request) as chunks:
        seen = []
        for chunk in chunks:
            seen.append(chunk)
            if json:
                print_json_line({"chunk": chunk})
            else:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        from saegis.generation import assemble

        return assemble(seen, chunks.final)


def _show(answer: Generation, watches: list[str], show_receipt: bool, *, told: bool) -> None:
    if told:
        print(flush=True)
    else:
        console().print(answer.text, markup=False, soft_wrap=True)
    out = notes()
    if answer.watched:
        out.print(watched_table(watches, answer.watched))
    if show_receipt:
        out.print(receipt_table(answer.receipt, answer.usage))
        if answer.receipt.ruled:
            out.print(rules_table(answer.receipt))
    else:
        out.print(receipt_line(answer.receipt, answer.usage), soft_wrap=True)
