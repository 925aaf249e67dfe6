"""Requests that share a batch: each gets what it would get alone, whatever runs or fails beside it."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

import saegis
from saegis import Client, Edit, Generation, GenerationOptions

PROGRAMS = 32
TOKENS = 24
PROMPT = "The red bridge"


def program(number: int) -> list[Edit]:
    """One of 32 different programs, of 0 to 4 rows."""
    edits: list[Edit] = [
        saegis.clamp(number % 32, 1.0 + number / 4),
        saegis.add((number + 5) % 32, -2.0),
        saegis.ban(32 + number % 16, number / 8),
        saegis.scale(48 + number % 16, 0.25 * (number % 5)),
    ]
    return edits[: number % 5]


def generate(client: Client, edits: Sequence[Edit]) -> Generation:
    return client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True, temperature=0.0, steering=edits)


def test_32_requests_with_32_programs_get_what_each_gets_alone(client: Client) -> None:
    programs = [program(number) for number in range(PROGRAMS)]
    with ThreadPoolExecutor(PROGRAMS) as threads:
        together = list(threads.map(lambda edits: generate(client, edits), programs))
    alone = [generate(client, edits) for edits in programs]
    for number, (one, other) in enumerate(zip(together, alone, strict=True)):
        assert one.token_ids == other.token_ids, number
        assert one.receipt.program_digest == other.receipt.program_digest
        assert one.usage == other.usage
    assert len({answer.receipt.program_digest for answer in together}) == PROGRAMS - (PROGRAMS - 1) // 5
    assert len({answer.token_ids for answer in together}) > PROGRAMS // 2


WRONG: dict[str, GenerationOptions] = {
    "feature": {"steering": [saegis.clamp(4000, 1.0)]},
    "label": {"steering": [saegis.ban("no such label")]},
    "site": {"steering": [saegis.clamp(3, 1.0, site="layers.7.resid_post")]},
    "value": {"steering": [saegis.clamp(3, float("nan"))]},
    "absurd": {"steering": [saegis.clamp(3, 1e30)]},
    "contradiction": {"steering": [saegis.clamp(3, 1.0), saegis.clamp(3, 2.0)]},
    "direction": {"steering": [saegis.add(saegis.direction([1.0, 2.0]), 1.0)]},
    "temperature": {"temperature": -1.0},
    "length": {"max_tokens": 1, "token_ids": [1] * 5000},
    "token": {"token_ids": [10**6]},
}


def test_wrong_input_of_every_kind_changes_nothing_for_what_runs_beside_it(client: Client) -> None:
    edits = [saegis.clamp(3, 2.0), saegis.ban(40, 1.0)]

    def run() -> Generation:
        return client.generate(PROMPT, max_tokens=300, ignore_eos=True, temperature=0.0, steering=edits)

    undisturbed = run()
    answers: list[Generation] = []
    beside = threading.Thread(target=lambda: answers.append(run()))
    beside.start()
    refused = 0
    while beside.is_alive() or refused < len(WRONG):
        for name, wrong in WRONG.items():
            with pytest.raises((saegis.InvalidArgument, saegis.NotFound)) as error:
                client.generate(None if "token_ids" in wrong else PROMPT, **wrong)
            assert error.value.violations, name
            refused += 1
    beside.join()
    assert answers[0].token_ids == undisturbed.token_ids
    assert answers[0].choices == undisturbed.choices


def test_a_request_id_in_use_is_refused_and_the_first_goes_on(client: Client) -> None:
    options: GenerationOptions = {
        "max_tokens": 200,
        "ignore_eos": True,
        "temperature": 0.0,
        "request_id": "mine",
    }
    stream = client.stream(PROMPT, **options)
    next(stream)
    with pytest.raises(saegis.AlreadyExists):
        client.generate(PROMPT, request_id="mine", max_tokens=1)
    assert len(stream.collect().token_ids) == 200
    assert client.generate(PROMPT, request_id="mine", max_tokens=1).request_id == "mine"
