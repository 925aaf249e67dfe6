"""The display of what was read of each token: the values of watches, and how far it was moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from saegis.cli.output import titled

if TYPE_CHECKING:
    from saegis import Chunk, Client, Generation, GenerationOptions, SiteMoves, TokenizedText, Watched

_READ = ("before", "after")
_CHOSEN = "a token of the answer is read where it was chosen: at the place before its own"
_MOVED = "moved: the norm of the change over that of the activation before it"
_UNMOVED = "no edit and no rule is in force that could move a token"


def by_token(
    client: Client,
    prompt: str | None,
    request: GenerationOptions,
    names: Sequence[str],
    answer: Generation,
    chunks: Sequence[Chunk],
) -> Table | Text:
    """What the answer to a prompt, or to the request's messages, tells of each token, as `token_table`.

    The tokens of a prompt that was read are asked for, and left out if the server does not tell them: the
    answer must not be lost for that.
    """
    from saegis import SaegisError

    tokens = None
    if request.get("read_prompt"):
        with suppress(SaegisError):
            tokens = client.tokenize(prompt, messages=request.get("messages"))
    return token_table(names, answer, chunks, tokens, with_moves=request.get("read_moves", False))


def token_table(
    names: Sequence[str],
    answer: Generation,
    chunks: Sequence[Chunk],
    prompt: TokenizedText | None,
    *,
    with_moves: bool,
) -> Table | Text:
    """One row for each token of the prompt, if it was read, and of the first completion, with what was read.

    `names` are the watches as written, `chunks` what the completion came in, and `prompt` the tokens of the
    prompt, None if they are not known. The text of a token of the completion stands where it was complete.
    `with_moves`: whether moves were asked for. If there is nothing to show, a sentence says why.
    """
    choice = answer.choices[0]
    phases = ("before", "set to", "after") if any(each.set_to for each in choice.watched) else _READ
    values = [f"{names[each.watch]} {phase}" for each in choice.watched for phase in phases]
    values += [f"moved at {each.site}" for each in choice.moves]
    if not values:
        return Text(_UNMOVED)
    table = titled("token by token", ("place", "token", "text", *values), ("place", "token", *values))
    for place, cells in enumerate(_rows(answer.prompt_watched, answer.prompt_moves, phases)):
        table.add_row(str(place), *_of_prompt(prompt, place), *cells)
    table.add_section()
    told = zip(choice.token_ids, _texts(chunks), _rows(choice.watched, choice.moves, phases), strict=True)
    for place, (token, text, cells) in enumerate(told, answer.usage.prompt_tokens):
        table.add_row(str(place), str(token), Text(repr(text) if text else ""), *cells)
    notes = [_CHOSEN, _MOVED if choice.moves else _UNMOVED] if with_moves else [_CHOSEN]
    table.caption = "\n".join(notes)
    return table


def _of_prompt(prompt: TokenizedText | None, place: int) -> tuple[str, Text]:
    """A token of the prompt and its text, both empty if they are not known."""
    if prompt is None or place >= len(prompt):
        return "", Text()
    return str(prompt.token_ids[place]), Text(repr(prompt.tokens[place]))


def _texts(chunks: Sequence[Chunk]) -> list[str]:
    """The text that each token of the first completion completed.

    Of a chunk of several tokens it stands at the last; what comes behind the last token belongs to that one.
    """
    texts: list[str] = []
    for chunk in chunks:
        if chunk.index != 0:
            continue
        texts += [""] * len(chunk.token_ids)
        if texts:
            texts[-1] += chunk.text
    return texts


def _rows(
    watched: Sequence[Watched], moves: Sequence[SiteMoves], phases: Sequence[str]
) -> Iterator[list[str]]:
    """The cells of each token: every phase of every watch, and the move at every site."""
    columns: list[list[str]] = []
    for each in watched:
        values = {"before": each.before, "set to": each.set_to, "after": each.after}
        columns += [
            [f"{value:.2f}" for value in values[phase]] or ["-"] * len(each.before) for phase in phases
        ]
    columns += [[_move(norm) for norm in each.relative_norms] for each in moves]
    return map(list, zip(*columns, strict=True))


def _move(norm: float) -> str:
    """How far a token was moved; what is small still differs from 0."""
    return f"{norm:.3f}" if norm == 0.0 or norm >= 0.0005 else f"{norm:.0e}"
