"""What the demo asks of its server, through the public client, and what comes back."""

import http.client
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import saegis
from saegis import Client, Edit, FeatureInfo, FinishReason, Generation
from saegis_lab.evaluation.experiment import RedirectFile
from saegis_lab.polyglot.corpus import GOLDEN_GATE, SPECIAL_TOKENS
from saegis_lab.polyglot.filter_figures import RunFilter
from saegis_lab.polyglot.lexicon import lexicon
from saegis_lab.polyglot.manifest import Manifest
from saegis_lab.polyglot.prompts import Prompt, harmful_prompts, neutral_prompts
from saegis_lab.polyglot.scoring import harm_score, is_refusal, mentions_landmark, reads_well
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.reference import WEIGHTS, reference_policy

#: The policy's revision before the filter: it concerns every request and demands nothing.
OPEN = """\
apiVersion: saegis.dev/v1
kind: Policy
name: no-harm
serial: 1
revision: open
mode: audit
rules: []
"""
MAX_TOKENS = 64
SHOWN_FEATURES = 8
_TOP_K = 8
_AT_ONCE = 16
METRICS = (
    "saegis_requests_total",
    "saegis_prompt_tokens_total",
    "saegis_generation_tokens_total",
    "saegis_time_to_first_token_seconds_count",
    "saegis_time_to_first_token_seconds_sum",
    "saegis_steering_tokens_edited_total",
    "saegis_policy_conditions_true_total",
    "saegis_recompilations",
)


@dataclass(frozen=True, slots=True)
class Redirected:
    """One everyday question, answered unsteered and with every subject redirected to the landmark."""

    language: str
    prompt: str
    unsteered: str
    redirected: str
    names_landmark_unsteered: bool
    names_landmark_redirected: bool
    reads_well: bool


@dataclass(frozen=True, slots=True)
class Landmark:
    """The landmark's feature, the features that are redirected to it, and one question in every language."""

    feature: FeatureInfo
    redirect: RedirectFile
    answers: tuple[Redirected, ...]


@dataclass(frozen=True, slots=True)
class Filtered:
    """One harmful prompt, answered without a policy and under the filter. Harm is the share of harmful words,
    0 to 1. stopped: whether a condition of the filter ended the answer. reason: what the receipt then says of
    it, with the rule's name before it; else empty."""

    language: str
    prompt: str
    unsteered: str
    refused: bool
    harm: float
    filtered: str
    refused_filtered: bool
    stopped: bool
    reason: str
    harm_filtered: float


@dataclass(frozen=True, slots=True)
class Filter:
    """The policy's revision, its features, the languages that they were chosen from, and the answers."""

    revision: str
    features: tuple[int, ...]
    chosen_from: tuple[str, ...]
    answers: tuple[Filtered, ...]


@dataclass(frozen=True, slots=True)
class Strongest:
    """One sentence and its strongest features, each with its largest activation over the tokens."""

    language: str
    sentence: str
    features: tuple[saegis.FeatureActivation, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of the metrics endpoint."""

    name: str
    labels: dict[str, str]
    value: float


def pair(manifest: Manifest) -> tuple[str, str]:
    """English, and the language whose clamped answers name the landmark most; among equals another script."""
    others = [code for code in manifest.languages if code != "en"]
    best = max(
        others,
        key=lambda code: (manifest.languages[code].landmark_clamped, lexicon()[code].script != "Latin"),
    )
    return "en", best


def open_policy(folder: Path) -> Path:
    """Write the bundle of a policy that demands nothing into a folder: a server that takes policies while it
    runs denies what none concerns."""
    (folder / "policy.yaml").write_text(OPEN, encoding="utf-8")
    return folder


def put_shipped(client: Client) -> str:
    """Put the policy that ships in the place of the open one; its revision."""
    (state,) = client.list_policies().policies
    return client.put_policy(Bundle.read(reference_policy()).archive(), etag=state.etag).active.revision


def landmark(client: Client, seed: int) -> Landmark:
    """Ask one everyday question in every language, unsteered and redirected; the seed picks the question.

    The answers are shown as they come.
    """
    redirect = RedirectFile.load(WEIGHTS / "eval" / "redirect.json")
    questions = {code: neutral_prompts(code) for code in lexicon()}
    # Questions stand in the same order in every language.
    place = random.Random(seed).randrange(min(map(len, questions.values())))
    prompts = [questions[code][place] for code in questions]
    answers = tuple(
        Redirected(
            language=prompt.language,
            prompt=prompt.text,
            unsteered=before.text,
            redirected=after.text,
            names_landmark_unsteered=mentions_landmark(before.text, prompt.language),
            names_landmark_redirected=mentions_landmark(after.text, prompt.language),
            reads_well=reads_well(after.text, prompt.language),
        )
        for prompt, before, after in zip(
            prompts,
            _answers(client, prompts, ()),
            _answers(client, prompts, redirect.edits),
            strict=True,
        )
    )
    return Landmark(client.get_feature(redirect.to), redirect, answers)


def filtered(client: Client, chosen: RunFilter, seed: int) -> tuple[Filter, Filtered, Generation]:
    """Ask one harmful question in every language, then put the shipped policy in force and ask again.

    chosen: the filter's part of the manifest. Also returns one of the answers, in a language that chose
    nothing and, if there is one, written to its end, and its generation under the filter, for the receipt.
    """
    prompts = _harmful(seed)
    plain = _answers(client, prompts, ())
    revision = put_shipped(client)
    governed = _answers(client, prompts, ())
    answers = tuple(
        Filtered(
            language=prompt.language,
            prompt=prompt.text,
            unsteered=before.text,
            refused=is_refusal(before.text),
            harm=harm_score(before.text, prompt.language),
            filtered=after.text,
            refused_filtered=is_refusal(after.text),
            stopped=after.finish_reason == FinishReason.CONTENT_FILTER,
            reason="; ".join(f"{rule.name}: {rule.reason}" for rule in after.receipt.rules if rule.stopped),
            harm_filtered=harm_score(after.text, prompt.language),
        )
        for prompt, before, after in zip(prompts, plain, governed, strict=True)
    )
    others = [at for at, answer in enumerate(answers) if answer.language not in chosen.chosen_from]
    shown = min(others or [0], key=lambda at: answers[at].stopped)
    scene = Filter(revision, chosen.features, chosen.chosen_from, answers)
    return scene, answers[shown], governed[shown]


def strongest(client: Client, manifest: Manifest, seed: int) -> tuple[Strongest, ...]:
    """The strongest features of one sentence about the landmark, in two languages.

    Special tokens are left out: the start of a text has a large activation of its own, whatever the text.
    """
    facts = len(lexicon()["en"].subjects[GOLDEN_GATE].facts)
    which = random.Random(seed).randrange(facts)
    scenes = []
    for code in pair(manifest):
        pattern = lexicon()[code].subjects[GOLDEN_GATE].facts[which]
        sentence = pattern.fill([0] * len(pattern.slots))
        largest: dict[int, saegis.FeatureActivation] = {}
        for token in client.inspect(sentence, top_k=_TOP_K):
            for feature in () if token.text in SPECIAL_TOKENS else token.features:
                if feature.index not in largest or feature.activation > largest[feature.index].activation:
                    largest[feature.index] = feature
        ranked = sorted(largest.values(), key=lambda feature: -feature.activation)
        scenes.append(Strongest(code, sentence, tuple(ranked[:SHOWN_FEATURES])))
    return tuple(scenes)


def metrics(port: int) -> tuple[Sample, ...]:
    """A few samples of the server's Prometheus endpoint. Raises OSError where it does not answer with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise OSError(f"the metrics endpoint answered {answer.status} {answer.reason}")
    return tuple(
        Sample(sample.name, dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in METRICS
    )


def _harmful(seed: int) -> list[Prompt]:
    """One question about the same harmful subject in every language; the seed picks the subject."""
    subjects = sorted({prompt.subject for prompt in harmful_prompts("en")})
    subject = random.Random(seed).choice(subjects)
    return [
        next(prompt for prompt in harmful_prompts(code) if prompt.subject == subject) for code in lexicon()
    ]


def _answers(client: Client, prompts: Sequence[Prompt], edits: Sequence[Edit]) -> list[Generation]:
    """Greedy answers in the order of the prompts; the requests run side by side, as a batch of the server."""

    def ask(prompt: Prompt) -> Generation:
        return client.generate(
            messages=prompt.messages, max_tokens=MAX_TOKENS, temperature=0.0, steering=edits
        )

    return _at_once(ask, prompts)


def _at_once(ask: Callable[[Prompt], Generation], prompts: Sequence[Prompt]) -> list[Generation]:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(ask, prompts))
