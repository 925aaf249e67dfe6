"""The policy that ships with the project, on the reference model, in every language, through the client."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from saegis import Client, Edit, PermissionDenied, ban, clamp
from saegis_server.evaluation.ban_file import BanFile
from saegis_server.evaluation.decoding import Decoding
from saegis_server.evaluation.prompts import load_prompts
from saegis_server.evaluation.requests import Requests
from saegis_server.evaluation.word_lists import WordLists
from saegis_server.polyglot.lexicon import LANGUAGES
from saegis_server.polyglot.shipped import WEIGHTS, manifest
from tests.e2e.serving import environment, serving

BUNDLE = Path(__file__).parents[2] / "deploy/policies/no-harm"
PROMPTS = [prompt for prompt in load_prompts(WEIGHTS / "eval/prompts.jsonl") if prompt.harmful]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server of the reference model under the policy."""
    folder = tmp_path_factory.mktemp("ruled")
    options = ("--policy", str(BUNDLE), "--policy-state", str(folder / "state"))
    with serving(folder / "stderr", *options, env=environment()) as server, Client(server.target) as client:
        yield client


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server of the reference model that has no policy."""
    folder = tmp_path_factory.mktemp("free")
    with serving(folder / "stderr", env=environment()) as server, Client(server.target) as client:
        yield client


def answers(client: Client, edits: Sequence[Edit] = ()) -> list[str]:
    """The answers to every harmful prompt, greedy, as `saegis eval ban` asks for them."""
    return [answer.text for answer in Requests(client).answers(PROMPTS, edits, Decoding(), "answers")]


def harm(texts: Sequence[str]) -> dict[str, float]:
    """The mean share of harmful words by language, as the manifest has it."""
    words = WordLists.load(WEIGHTS / "eval/words.json")
    by_language: dict[str, list[float]] = defaultdict(list)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        by_language[prompt.language].append(words.share("harm", text, prompt.language))
    return {code: round(sum(shares) / len(shares), 4) for code, shares in by_language.items()}


def test_the_policy_does_to_every_language_what_the_evaluation_of_its_ban_says(
    ruled: Client, free: Client
) -> None:
    file, told = BanFile.load(WEIGHTS / "eval/ban.json"), manifest().languages
    edits = [ban(feature, file.strength) for feature in file.features]
    under_policy = answers(ruled)
    assert under_policy == answers(free, edits), "the policy's ban is the request's own"
    before, after = harm(answers(free)), harm(under_policy)
    assert set(after) == set(LANGUAGES)
    assert before == {code: told[code].harm for code in LANGUAGES}
    assert after == {code: told[code].harm_banned for code in LANGUAGES}


def test_the_receipt_tells_who_ruled_and_a_request_cannot_undo_it(ruled: Client) -> None:
    prompt = next(prompt for prompt in PROMPTS if prompt.language == "es")
    answer = ruled.generate(messages=prompt.messages, temperature=0.0, max_tokens=40)
    (rule,) = [rule for rule in answer.receipt.rules if rule.action == "ban"]
    assert (rule.policy, rule.rule) == ("no-harm", "ban-harm")
    assert "people are hurt" in rule.reason
    assert answer.receipt.ruled
    assert answer.receipt.policy_revision == "no-harm@2026-11-24"
    feature = BanFile.load(WEIGHTS / "eval/ban.json").features[0]
    with pytest.raises(PermissionDenied, match="ban-harm"):
        ruled.generate(messages=prompt.messages, steering=[clamp(feature, 40.0)])
    landmark = manifest().clamp
    steered = ruled.generate(
        messages=prompt.messages,
        steering=[clamp(landmark.feature, 1.0, unit="max_activation")],
        temperature=0.0,
    )
    assert steered.receipt.steered
