"""The command `saegis chat`: a conversation in the terminal, steered as it goes."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.cli import options
from saegis.cli.connection import Connection, advice
from saegis.cli.edits import EditSyntaxError, edit_options, server_search, with_best_features
from saegis.cli.output import console, fail, notes, own_command
from saegis.cli.receipts import receipt_line, watched_table
from saegis.cli.streams import sentence
from saegis.cli.token_table import by_token

if TYPE_CHECKING:
    from saegis import Client, GenerationOptions
    from saegis.cli.chat_session import ChatSession, InForce

EPILOG = """
[bold]Examples[/bold]

saegis chat

saegis chat --clamp 1785=50 --temperature 0

[bold]In the chat[/bold]

/clamp 1785=50   /ban 23=2   /watch 1785   /steering   /unset 1785   /reset   /clear   /help   /quit

The server is asked about each edit when it is given. Arrow keys edit the line and bring back earlier ones.
"""


@options.grouped
def chat(
    clamp: options.Clamp = None,
    ban: options.Ban = None,
    watch: options.Watch = None,
    image: options.Image = None,
    sae: options.EditSae = "",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = None,
    seed: options.Seed = None,
    *,
    readouts: options.Readouts,
    connection: Connection,
) -> None:
    """Talk with the model; steer it between turns and see each answer's receipt.

    Prompts are kept nowhere: what the arrow keys bring back is forgotten when the chat ends.
    """
    from saegis.cli.chat_session import ChatSession

    session = ChatSession(sae=sae)
    lines = [f"/clamp {edit}" for edit in clamp or ()] + [f"/ban {edit}" for edit in ban or ()]
    lines += [f"/watch {target}" for target in watch or ()] + ([f"/system {system}"] if system else [])
    with edit_options(f"{own_command()} chat --help shows examples"):
        for line in lines:
            session.command(line)
    session.pictures += options.pictures(image)
    readouts.require_anything(bool(session.watches))
    settings: GenerationOptions = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "read_prompt": readouts.read_prompt,
        "read_moves": readouts.read_moves,
    }
    with connection.client() as client:
        model = client.model()
        _take_best_features(client, session)
        _try(client, session, ChatSession().in_force(), readouts.read_moves)
        notes().print(
            f"{model.id} at {connection.server}. /help lists the commands, /quit ends.", style="dim"
        )
        notes().print(session.steering(), style="dim", markup=False)
        _edit_lines()
        while not session.ended and (typed := _read()) is not None:
            _turn(client, session, typed.strip(), settings, connection.server)


def _edit_lines() -> None:
    """Let the arrow keys edit lines of `input` and bring back earlier ones, which are kept in memory only."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        # Python may be built without it; then the terminal itself edits lines.
        with suppress(ImportError):
            import readline  # noqa: F401 - importing it is what makes `input` use it


def _read() -> str | None:
    """The next line; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


def _turn(client: Client, session: ChatSession, line: str, settings: GenerationOptions, server: str) -> None:
    """Handle one line: a command, or a message to answer."""
    import saegis

    if line.startswith("/"):
        notes().print(_command(client, session, line, server), style="dim", markup=False, soft_wrap=True)
    elif line:
        session.say(line)
        try:
            _answer(client, session, settings)
        except (saegis.SaegisError, TypeError, ValueError) as error:
            session.unsay()
            hint = advice(error, server) if isinstance(error, saegis.SaegisError) else ""
            fail(sentence(error), hint or "/reset takes the steering back, /clear the conversation")


def _command(client: Client, session: ChatSession, line: str, server: str) -> str:
    """Do a command and return what to print. An edit or watch that the server refuses is taken back."""
    import saegis

    before = session.in_force()
    try:
        reply = session.command(line)
        _take_best_features(client, session)
        _try(client, session, before)
    except EditSyntaxError as error:
        return str(error)
    except (saegis.SaegisError, TypeError, ValueError) as error:
        session.restore(before)
        fail(str(error), advice(error, server) if isinstance(error, saegis.SaegisError) else "")
        return session.steering()
    return reply


def _try(client: Client, session: ChatSession, before: InForce, read_moves: bool = False) -> None:
    """Generate one token if an edit or a watch is new, or to find out whether moves may be read: only the
    server knows whether it is valid.

    Raises SaegisError if the server refuses it, and ValueError if no request can hold it.
    """
    now = session.in_force()
    if not now.adds_to(before) and not read_moves:
        return
    system = [message for message in session.messages if message["role"] == "system"]
    client.generate(
        messages=[*system, {"role": "user", "content": "."}],
        steering=now.edits,
        watch=now.watches,
        read_moves=read_moves,
        max_tokens=1,
        temperature=0.0,
    )


def _take_best_features(client: Client, session: ChatSession) -> None:
    """Replace each label of several features by the best of them."""
    search = server_search(client)
    session.replace_labels(
        with_best_features(session.edits, search), with_best_features(session.watches, search)
    )


def _answer(client: Client, session: ChatSession, settings: GenerationOptions) -> None:
    """Stream one answer; Ctrl-C cancels it and takes the message back."""
    from saegis.generation import assemble

    seen = []
    request: GenerationOptions = {
        **settings,
        "messages": session.messages,
        "steering": session.edits,
        "watch": session.watches,
    }
    read_moves = settings.get("read_moves", False)
    # Watches come and go in a chat, and without any the server refuses to read the prompt.
    request["read_prompt"] = settings.get("read_prompt", False) and bool(session.watches or read_moves)
    with client.stream(None, **request) as chunks:
        try:
            for chunk in chunks:
                seen.append(chunk)
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            session.unsay()
            notes().print("\nstopped; your last message is taken back", style="dim")
            return
        answer = assemble(seen, chunks.final)
    console().print()
    if request["read_prompt"] or read_moves:
        notes().print(by_token(client, None, request, session.watched, answer, seen))
    session.answered(answer.text)
    if answer.watched:
        notes().print(watched_table(session.watched, answer.watched))
    notes().print(receipt_line(answer.receipt, answer.usage), soft_wrap=True)
