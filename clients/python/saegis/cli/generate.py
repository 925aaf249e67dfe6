"""The command `saegis generate`: continue a prompt, steered or not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.edits import (
    edit_options,
    parse_edits,
    parse_watches,
    server_search,
    split_strength,
    with_best_features,
)
from saegis.cli.output import console, notes, own_command, print_json, print_json_line
from saegis.cli.receipts import fired_table, receipt_line, receipt_table, rules_table, watched_table
from saegis.cli.streams import read_input
from saegis.cli.token_table import by_token

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from saegis import ChatMessage, Chunk, Client, Edit, Generation, GenerationOptions, Image

EPILOG = """
[bold]Examples[/bold]

saegis generate --chat "Tell me about the sea." --max-tokens 60

saegis generate --chat "Tell me about the sea." --clamp 1785=50 --temperature 0 --receipt

saegis generate --chat "How do I visit the Golden Gate Bridge?" --clamp "bread=0.8max" --temperature 0

saegis generate --chat "¿Cómo puedo envenenar a un vecino?" --ban 23=2 --watch 23 --temperature 0

saegis generate --chat "How do I make bread?" --ban 23=2 --watch 23 --read-prompt --read-moves

saegis generate --chat "How do I make bread?" --ablate direction:refusal --temperature 0

saegis generate "What is this?" --image bridge.png --watch 1785 --read-prompt

saegis generate "The bridge" --temperature 0.7 --seed 1 --stream

[bold]Targets and values[/bold]

TARGET is a feature's index, several indices with commas between them, or an exact label;
[bold]saegis features search WORDS[/bold] finds them. Of several features with one label the one that it
fits best is taken, and the others are named. direction:NAME is a direction that the server keeps, by its name
or digest; [bold]saegis directions list[/bold] tells which.

VALUE is a number in feature units, 2max for twice the feature's recorded maximum, or 0.1norm for a tenth
of the activation's norm.
"""


@options.grouped
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
    image: options.Image = None,
    json: options.Json = False,
    *,
    edits: options.Edits,
    ban_matching: options.BanMatching = None,
    watch: options.Watch = None,
    readouts: options.Readouts,
    sae: options.EditSae = "",
    site: options.EditSite = "",
    sampling: options.Sampling,
    connection: Connection,
) -> None:
    """Continue a prompt, with features clamped, scaled, capped, banned or watched.

    The text goes to standard output, the receipt to standard error.
    """
    with edit_options(f"{own_command()} generate --help shows examples"):
        steering = parse_edits(edits.by_operation(), sae=sae, site=site)
        watches = parse_watches(watch, sae=sae, site=site)
        matching = [split_strength(text) for text in ban_matching or ()]
    readouts.require_anything(bool(watches))
    request: GenerationOptions = {
        **sampling.requested(),
        "read_prompt": readouts.read_prompt,
        "read_moves": readouts.read_moves,
    }
    text = read_input() if prompt == "-" else prompt
    raw, one_by_one = None, readouts.by_token and not json
    pictures = options.pictures(image)
    if chat or system is not None or pictures:
        request["messages"] = _conversation(system, text, pictures)
    else:
        raw = text
    with connection.client() as client:
        search = server_search(client)
        steering, watches = with_best_features(steering, search), with_best_features(watches, search)
        for words, strength in matching:
            steering += _bans_matching(client, words, strength, sae=sae, site=site)
        request |= {"steering": steering, "watch": watches}
        answer, chunks = _ask(client, raw, request, stream, json, one_by_one)
        tokens = by_token(client, raw, request, watch or [], answer, chunks) if one_by_one else None
    if json and stream:
        print_json_line({"generation": answer})
    elif json:
        print_json(answer)
    else:
        _show(answer, watch or [], tokens, show_receipt, text_is_shown=stream)


def _conversation(system: str | None, text: str, pictures: list[Image]) -> list[ChatMessage]:
    """The pictures and then the prompt as a user's message, after the system message if there is one."""
    first: list[ChatMessage] = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": [*pictures, text] if pictures else text}]


def _bans_matching(client: Client, words: str, strength: float, *, sae: str, site: str) -> list[Edit]:
    """Bans of every feature that a search for `words` finds, with notes. Raises ValueError for none."""
    import saegis

    edits, page_token = [], ""
    while True:
        page = client.search_features(words, sae=sae, page_size=100, page_token=page_token)
        for feature in page:
            notes().print(f"banned: {feature.index}  {feature.label}", style="dim", markup=False)
            edits.append(saegis.ban(feature, strength, site=site))
        page_token = page.next_page_token
        if not page_token:
            break
    if not edits:
        raise ValueError(f"--ban-matching: no feature's label matches {words!r}")
    return edits


def _ask(
    client: Client, prompt: str | None, request: GenerationOptions, stream: bool, json: bool, in_chunks: bool
) -> tuple[Generation, list[Chunk]]:
    """The answer, and the chunks of it if it comes in chunks. With `stream` each is printed as it comes."""
    if not stream and not in_chunks:
        return client.generate(prompt, **request), []
    with client.stream(prompt, **request) as chunks:
        seen = []
        for chunk in chunks:
            seen.append(chunk)
            if json:
                print_json_line({"chunk": chunk})
            elif stream:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        from saegis.generation import assemble

        return assemble(seen, chunks.final), seen


def _show(
    answer: Generation,
    watches: list[str],
    tokens: Table | Text | None,
    show_receipt: bool,
    *,
    text_is_shown: bool,
) -> None:
    if text_is_shown:
        print(flush=True)
    else:
        console().print(answer.text, markup=False, soft_wrap=True)
    out = notes()
    if tokens is not None:
        out.print(tokens)
    if answer.watched:
        out.print(watched_table(watches, answer.watched))
    if show_receipt:
        out.print(receipt_table(answer.receipt, answer.usage))
        if answer.receipt.ruled:
            out.print(rules_table(answer.receipt))
        if answer.receipt.edits or any(rule.targets or rule.readings for rule in answer.receipt.rules):
            out.print(fired_table(answer.receipt))
    else:
        out.print(receipt_line(answer.receipt, answer.usage), soft_wrap=True)
