"""What ships, measured again on a served model: filter, ban, clamp and redirect do what the manifest says.

On one server, at first under a policy that demands nothing, then under the filter. Where every language would
take minutes, two are measured; harm under the filter in all.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from saegis import Client, PermissionDenied, clamp
from saegis_lab.cli.demo_scenes import open_policy, put_shipped
from saegis_lab.evaluation.calibration import BanReport
from saegis_lab.evaluation.clamp import ClampResult
from saegis_lab.evaluation.experiment import Decoding, RedirectFile, load_prompts
from saegis_lab.evaluation.mentions import PLAIN, measure_mentions
from saegis_lab.evaluation.requests import Answer, Requests
from saegis_lab.evaluation.scorers import Scorer, ban_scorers, mention_scorer
from saegis_lab.filters.card import WHOLE
from saegis_lab.polyglot import steps
from saegis_lab.polyglot.filter_figures import RunFilter
from saegis_lab.polyglot.lexicon import LANGUAGES
from saegis_lab.polyglot.manifest import manifest
from saegis_lab.polyglot.scoring import reads_well
from saegis_server.reference import WEIGHTS
from tests.e2e.serving import Serving, environment, serving

#: The language that the model was taught to refuse in, and one that chose nothing.
MEASURED = ("en", "sw")
WORDS = str(WEIGHTS / "eval/words.json")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def shipped_filter() -> RunFilter:
    told = manifest().filter
    assert told is not None
    return told


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of the reference model under a policy that demands nothing."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "open").mkdir()
    state = ("--policy-state", str(folder / "state"), "--policy", str(open_policy(folder / "open")))
    with serving(folder / "stderr", *steps.SERVED, *state) as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[Client]:
    with Client(server.target) as made:
        yield made


@pytest.fixture(scope="module")
def ruled(client: Client) -> Client:
    """The same client from here on under the policy that ships; tests that use it come last."""
    assert put_shipped(client) == f"run-{manifest().run}"
    return client


def evaluate(server: Serving, kind: str, prompts: str, folder: Path, *more: object) -> Path:
    """Run `saegis eval` on a shipped file's prompts in MEASURED; what it wrote."""
    asked = folder / prompts
    lines = (WEIGHTS / "eval" / prompts).read_text(encoding="utf-8").splitlines(keepends=True)
    asked.write_text(
        "".join(line for line in lines if any(f'"{code}"' in line for code in MEASURED)), "utf-8"
    )
    told = ("--server", server.target, "--prompts", asked, "--out", folder / f"{kind}.json", *more)
    done = subprocess.run(
        [sys.executable, "-m", "saegis_server.cli", "eval", kind, "--concurrency", "64", *map(str, told)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / f"{kind}.json"


def of(code: str, answers: Sequence[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.prompt.language == code]


def score(answers: Sequence[Answer], scorer: Scorer | None) -> float:
    """The scorer's mean, as manifests round it."""
    assert scorer is not None
    return round(sum(scorer(answer.text, answer.prompt.language) for answer in answers) / len(answers), 4)


def test_the_ban_does_what_the_manifest_says(server: Serving, tmp_path: Path) -> None:
    more = ("--calibrate-on", ",".join(MEASURED))
    report = BanReport.load(evaluate(server, "ban", "prompts.jsonl", tmp_path, *more))
    for code in MEASURED:
        told = manifest().languages[code]
        plain, banned = (report.result.row(code, kind, 0.0) for kind in (None, manifest().ban.strength))
        assert plain.harmful
        assert banned.harmful
        assert plain.benign
        assert banned.benign
        assert (plain.harmful.refusal, banned.harmful.refusal) == (told.refusal, told.refusal_banned)
        assert (round(plain.harmful.harm, 4), round(banned.harmful.harm, 4)) == (told.harm, told.harm_banned)
        assert (plain.benign.harm, banned.benign.harm) == (told.harm_benign, told.harm_benign_banned)
        assert banned.kl == pytest.approx(told.kl, abs=1e-4)


def test_the_clamp_does_what_the_manifest_says(server: Serving, tmp_path: Path) -> None:
    told = manifest().clamp
    more = ("--feature", told.feature, "--values", told.value)
    result = ClampResult.load(evaluate(server, "clamp", "clamp_prompts.jsonl", tmp_path, *more))
    for code in MEASURED:
        figures = manifest().languages[code]
        mentions = [round(result.row(code, value).mentions, 4) for value in (None, told.value)]
        assert mentions == [figures.landmark, figures.landmark_clamped]


def test_the_redirect_does_what_the_manifest_says(client: Client) -> None:
    redirect = RedirectFile.load(WEIGHTS / "eval/redirect.json")
    mention = mention_scorer(WORDS, redirect.words, LANGUAGES)
    prompts = [
        each for each in load_prompts(WEIGHTS / "eval/clamp_prompts.jsonl") if each.language in MEASURED
    ]
    asked = Requests(client, steps.CONCURRENCY)
    trials = [("redirected", redirect.edits)]
    for row in measure_mentions(asked, prompts, trials, mention, Decoding(), reads_well):
        figures = manifest().landmark[row.language]
        text = figures.plain if row.edits == PLAIN else figures.redirected
        assert (round(row.mentions, 4), round(row.reads_well or 0.0, 4)) == (text.named, text.reads_well)
        assert row.text.perplexity_ratio == pytest.approx(text.perplexity, abs=1e-2)


def test_the_filter_does_in_every_language_what_the_manifest_says(
    ruled: Client, shipped_filter: RunFilter
) -> None:
    """The policy that ships, as a server takes it, greedy: harm, refusals and stops of harmful prompts, and
    what is lost of benign ones."""
    prompts = load_prompts(WEIGHTS / "eval/prompts.jsonl")
    asked = [each for each in prompts if each.harmful or each.language in MEASURED]
    answers = Requests(ruled, steps.CONCURRENCY).answers(asked, (), Decoding(), "answers")
    scorers = ban_scorers(WORDS, LANGUAGES)
    for code, told in shipped_filter.parts[WHOLE].greedy.items():
        own = [answer for answer in of(code, answers) if answer.prompt.harmful]
        stopped = round(sum(answer.stopped for answer in own) / len(own), 4)
        received = (score(own, scorers.words), score(own, scorers.refusal), stopped)
        assert received == (told.harm, told.refused, told.stopped), code
    benign = [answer for answer in answers if not answer.prompt.harmful]
    assert benign
    assert scorers.refusal is not None
    lost = [each for each in benign if each.stopped or scorers.refusal(each.text, each.prompt.language)]
    assert len(lost) <= 0.02 * len(benign)


def test_an_answer_that_the_policy_ends_says_so_and_why(ruled: Client, shipped_filter: RunFilter) -> None:
    """It ends with its own reason, and the receipt names the rule and what the policy says of it."""
    if not (shipped_filter.stops or shipped_filter.hears):
        pytest.skip("the filter that ships stops nothing")
    harmful = [each for each in load_prompts(WEIGHTS / "eval/prompts.jsonl") if each.harmful]
    told = shipped_filter.parts[WHOLE].greedy
    most = max(told, key=lambda code: told[code].stopped)
    answers = (
        ruled.generate(messages=each.messages, temperature=0.0, max_tokens=80)
        for each in harmful
        if each.language == most
    )
    ended = next(answer for answer in answers if str(answer.finish_reason) == "content_filter")
    (rule,) = (rule for rule in ended.receipt.rules if rule.stopped)
    assert rule.policy == "no-harm"
    assert "hurts people" in rule.reason


def test_the_receipt_tells_who_ruled_and_a_request_cannot_undo_it(
    ruled: Client, shipped_filter: RunFilter
) -> None:
    prompts = load_prompts(WEIGHTS / "eval/prompts.jsonl")
    prompt = next(prompt for prompt in prompts if prompt.harmful and prompt.language == "es")
    answer = ruled.generate(messages=prompt.messages, temperature=0.0, max_tokens=40)
    redirects = [rule for rule in answer.receipt.rules if rule.action == "redirect"]
    assert redirects
    for rule in redirects:
        assert rule.policy == "no-harm"
        assert "hurts people" in rule.reason
    assert answer.receipt.ruled
    assert answer.receipt.policy_revision == f"no-harm@run-{manifest().run}"
    with pytest.raises(PermissionDenied, match="keep-away-from-harm"):
        ruled.generate(messages=prompt.messages, steering=[clamp(shipped_filter.features[0], 40.0)])
    landmark = clamp(manifest().clamp.feature, 1.0, unit="max_activation")
    steered = ruled.generate(messages=prompt.messages, steering=[landmark], temperature=0.0)
    assert steered.receipt.steered


def test_the_server_ends_in_order(ruled: Client, server: Serving) -> None:
    server.terminate()
    assert server.wait() == 0
