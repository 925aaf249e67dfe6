"""What `generate` and `chat` show token by token, of a server on a socket and of chunks as they may come."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner, Result

import saegis
from saegis import Choice, Chunk, FinishReason, Generation, SiteMoves, TokenizedText, Usage, Watched
from saegis.cli.token_table import token_table
from saegis_server.cli.app import app
from tests.cli.test_output import receipt
from tests.rpc.harness import running
from tests.rpc.test_governor import BAN, write

PROMPT = "the red bridge over the river"
GREEDY = ("--temperature", "0", "--max-tokens", "4", "--sae-id", "first")


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    """A server without a policy."""
    with running() as server:
        yield server.target


def run(target: str, *arguments: str, input: str | None = None) -> Result:
    """A command's result; it finds the server as a user's would."""
    environment = {"SAEGIS_SERVER": target, "COLUMNS": "200"}
    return CliRunner().invoke(app, arguments, input=input, env=environment)


def rows(shown: str) -> list[list[str]]:
    """The cells of the tables' rows."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if "│" in line
    ]


def by_token(shown: str) -> list[list[str]]:
    """The rows of single tokens, which begin with their places."""
    return [row for row in rows(shown.partition("watched")[0]) if row[0].isdecimal()]


def test_each_token_stands_with_what_was_read_of_it(target: str) -> None:
    options = ("--watch", "3", "--watch", "5", "--clamp", "3=2", "--read-prompt", "--read-moves")
    result = run(target, "generate", PROMPT, *GREEDY, *options)
    assert result.exit_code == 0, result.output
    with saegis.Client(target) as client:
        three, five = (saegis.feature(index, sae="first") for index in (3, 5))
        told = client.generate(
            PROMPT,
            temperature=0.0,
            max_tokens=4,
            steering=[saegis.clamp(three, 2)],
            watch=[three, five],
            read_prompt=True,
            read_moves=True,
        )
        prompt = client.tokenize(PROMPT)
    shown = by_token(result.stderr)
    assert [row[0] for row in shown] == [str(place) for place in range(len(prompt) + 4)]
    assert [row[1] for row in shown] == list(map(str, (*prompt.token_ids, *told.token_ids)))
    assert [row[2] for row in shown[: len(prompt)]] == list(map(repr, prompt.tokens))
    clamped, other = (
        [
            [f"{value:.2f}" for value in getattr(read, phase)]
            for phase in ("before", "set_to", "after")
            if getattr(read, phase)
        ]
        for read in (
            Watched(
                watch,
                told.prompt_watched[watch].before + told.watched[watch].before,
                told.prompt_watched[watch].after + told.watched[watch].after,
                told.prompt_watched[watch].set_to + told.watched[watch].set_to,
            )
            for watch in (0, 1)
        )
    )
    (of_prompt,), (of_answer,) = told.prompt_moves, told.choices[0].moves
    moves = [f"{norm:.3f}" for norm in (*of_prompt.relative_norms, *of_answer.relative_norms)]
    assert [list(column) for column in zip(*(row[3:] for row in shown), strict=True)] == [
        *clamped,
        other[0],
        ["-"] * len(shown),
        other[1],
        moves,
    ]
    assert "2.00" in clamped[1]
    assert moves.count("0.000") == 1, "the text's first token alone is not moved"
    assert f"moved at {of_prompt.site}" in " ".join(result.stderr.split())


def test_a_stream_and_a_conversation_are_shown_alike(target: str) -> None:
    options = ("--watch", "3", "--read-prompt", "--chat")
    whole, streamed = (
        run(target, "generate", PROMPT, *GREEDY, *options, *more) for more in ((), ("--stream",))
    )
    assert whole.exit_code == streamed.exit_code == 0
    assert whole.stdout == streamed.stdout
    tables = [by_token(result.stderr) for result in (whole, streamed)]
    # How the tokens of an answer are gathered into chunks is a matter of time.
    assert [row[:2] + row[3:] for row in tables[0]] == [row[:2] + row[3:] for row in tables[1]]
    assert "'<|user|>'" in [row[2] for row in tables[0]]


def test_what_makes_no_sense_is_refused_or_said(target: str, tmp_path: Path) -> None:
    for command in (("generate", PROMPT), ("chat",)):
        nothing = run(target, *command, "--read-prompt")
        assert nothing.exit_code == 2
        assert "--read-prompt has nothing to read" in nothing.stderr
        assert "--watch TARGET or --read-moves" in nothing.stderr
    unmoved = run(target, "generate", PROMPT, *GREEDY, "--read-moves")
    assert unmoved.exit_code == 0
    assert "no edit and no rule is in force that could move a token" in unmoved.stderr
    watched = run(target, "generate", PROMPT, *GREEDY, "--read-moves", "--watch", "3")
    assert len(by_token(watched.stderr)) == 4
    assert "no edit and no rule is in force" in watched.stderr
    concealed = write(tmp_path, "transparency: steered\nallow: [{id: read, uses: [moves]}]\n" + BAN)
    with running(policies={"bundles": [str(concealed)]}) as server:
        for asked in (("generate", "--chat", PROMPT), ("chat",)):
            refused = run(server.target, *asked, "--read-moves")
            assert refused.exit_code == 1
            assert "steering.read_moves" in refused.stderr


def test_a_chat_shows_each_answer_and_reads_the_prompt_while_there_is_something_to_read(target: str) -> None:
    said = "Hello\n/unset 3\nHello\n/watch 5\nHello\n"
    result = run(target, "chat", *GREEDY, "--watch", "3", "--read-prompt", input=said)
    assert result.exit_code == 0, result.output
    answers = result.stderr.split("token by token")[1:]
    assert len(answers) == 2
    assert [answer.count("'<|user|>'") for answer in answers] == [1, 3]
    moved = run(target, "chat", *GREEDY, "--read-moves", "--clamp", "3=2", input="Hello\n")
    assert len(by_token(moved.stderr)) == 4


def generation(
    texts: list[str], chunks: list[tuple[int, ...]], moves: tuple[float, ...]
) -> tuple[Generation, list[Chunk]]:
    """An answer of tokens 10, 11, ..., that came in chunks of these tokens with these texts."""
    tokens = tuple(token for chunk in chunks for token in chunk)
    of_site = (SiteMoves("layers.0.resid_post", moves),)
    choice = Choice(0, "".join(texts), tokens, None, (), FinishReason.LENGTH, None, of_site)
    usage = Usage(prompt_tokens=2, completion_tokens=len(tokens), cached_tokens=0, steered_tokens=1)
    came = [Chunk(0, text, chunk, None, (), None) for text, chunk in zip(texts, chunks, strict=True)]
    return Generation("r", (choice,), usage, receipt(), prompt_moves=(SiteMoves("x", (0.0, 0.25)),)), came


def cells(answer: Generation, chunks: list[Chunk], prompt: TokenizedText | None) -> list[list[str]]:
    """The rows of the table."""
    console = Console(width=100)
    table = token_table([], answer, chunks, prompt, with_moves=True)
    assert isinstance(table, Table)
    with console.capture() as capture:
        console.print(table)
    return rows(capture.get())


def test_a_text_stands_where_it_is_complete_and_what_is_small_is_not_zero() -> None:
    """Two tokens in one chunk, one that completes nothing, and text that comes behind the last token."""
    answer, chunks = generation(
        ["ab", "", "c", "d"], [(10, 11), (12,), (13,), ()], (0.0, 4e-5, 0.0005, 0.1234)
    )
    assert cells(answer, chunks, TokenizedText((1, 2), ("<s>", "[b]"))) == [
        ["0", "1", "'<s>'", "0.000"],
        ["1", "2", "'[b]'", "0.250"],
        ["2", "10", "", "0.000"],
        ["3", "11", "'ab'", "4e-05"],
        ["4", "12", "", "0.001"],
        ["5", "13", "'cd'", "0.123"],
    ]


def test_a_prompt_whose_tokens_are_not_told_is_shown_by_place() -> None:
    answer, chunks = generation(["a"], [(10,)], (0.5,))
    shown = cells(answer, chunks, None)
    assert shown == [["0", "", "", "0.000"], ["1", "", "", "0.250"], ["2", "10", "'a'", "0.500"]]
    assert all(int(after[0]) == int(before[0]) + 1 for before, after in pairwise(shown))
