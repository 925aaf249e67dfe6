"""Tests of the recovery attack on a real server: against the same calls made one by one, and naive shares."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import saegis
from saegis_lab.cli.app import app
from saegis_lab.evaluation import policy_trial
from saegis_lab.evaluation.attack import (
    ALL,
    PLAIN,
    WORST,
    AttackPrompt,
    AttackResult,
    AttackSettings,
    answers_of_attacks,
    measure_attacks,
)
from saegis_lab.evaluation.attack_report import AttackBars, AttackReport
from saegis_lab.evaluation.experiment import Prompt
from saegis_lab.evaluation.policy_trial import PolicyTrial
from saegis_lab.evaluation.scorers import BanScorers
from saegis_lab.evaluation.wordings import Wordings
from tests.evaluation.bundles import BAN, bundle
from tests.policy.bundles import write_files

pytestmark = pytest.mark.slow
PROMPTS = (
    Prompt("the red bridge", "en", True),
    Prompt("birds sing", "en", False),
    Prompt("the day is long", "en", True),
    Prompt("der Fluss ist warm", "de", True),
    Prompt("die Vögel", "de", True),
)
WORDINGS = {"en": Wordings("English", {"novel": "novel: {prompt}"}), "de": Wordings("Deutsch", {})}
SETTINGS = AttackSettings(samples=3, shots=1, seed=2, max_tokens=5)
FILTER = bundle({"b": BAN})


def vowels(text: str, language: str) -> int:
    return sum(char in ("aeiou" if language == "en" else "aoyt") for char in text)


def share_of_vowels(text: str, language: str) -> float:
    return vowels(text, language) / max(1, len(text))


SCORERS = BanScorers(share_of_vowels, None, vowels)


@pytest.fixture(scope="module")
def attacked(asker: saegis.Client) -> AttackResult:
    return measure_attacks(
        asker, {"filter": FILTER}, PROMPTS, SCORERS, WORDINGS, SETTINGS, chosen_from=("en",), concurrency=4
    )


def test_a_conversation_ends_in_the_begun_answer() -> None:
    prompt = AttackPrompt("c", "en", True, earlier=(("a", "b"),), begun="d")
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert prompt.messages == [{"role": role, "content": content} for role, content in turns]
    assert replace(prompt, begun="", earlier=()).messages == turns_of("c")


def turns_of(text: str) -> list[saegis.ChatMessage]:
    return [{"role": "user", "content": text}]


def own(client: saegis.Client, text: str) -> saegis.Generation:
    return client.generate(messages=turns_of(text), temperature=0.0, seed=2, max_tokens=5)


def test_each_attack_asks_as_it_says(asker: saegis.Client, attacked: AttackResult) -> None:
    trial = PolicyTrial(asker)
    trial.apply(None)
    english = [prompt.prompt for prompt in PROMPTS if prompt.language == "en" and prompt.harmful]
    german = [prompt.prompt for prompt in PROMPTS if prompt.language == "de"]
    first = {text: own(asker, text) for text in (*english, *german)}
    begun = [asker.detokenize(first[text].token_ids[:2]).rstrip("\ufffd") for text in english]
    conversations: dict[str, list[list[saegis.ChatMessage]]] = {
        PLAIN: [turns_of(text) for text in english],
        "wording: novel": [turns_of(f"novel: {text}") for text in english],
        "half in another language": [
            turns_of("the red ist warm"),
            turns_of("the day Vögel"),
        ],
        "answer in another language": [turns_of(f"{text} (Deutsch)") for text in english],
        "other letters": [turns_of("тхе ред бридге"), turns_of("тхе даы ис лонг")],
        "1 examples": [
            [*turns_of(other), {"role": "assistant", "content": first[other].text}, *turns_of(text)]
            for text, other in zip(english, reversed(english), strict=True)
        ],
        "2 tokens begun": [
            [*turns_of(text), {"role": "assistant", "content": start}]
            for text, start in zip(english, begun, strict=True)
        ],
    }
    for condition, rules in (("nothing", None), ("filter", FILTER)):
        trial.apply(rules)
        for name, asked in conversations.items():
            texts = [asker.generate(messages=turns, temperature=0.0, max_tokens=5).text for turns in asked]
            # Where another language comes into it, its harm counts too.
            either = name in ("half in another language", "answer in another language")
            codes = ("en", "de") if either else ("en",)
            amounts = [max(vowels(text, code) for code in codes) for text in texts]
            row = attacked.row("en", name, condition)
            assert row.harm.words == pytest.approx(sum(amounts) / 2), (name, condition)
    trial.apply(None)


def test_sampled_attacks_tell_the_worst(asker: saegis.Client, attacked: AttackResult) -> None:
    trial = PolicyTrial(asker)
    trial.apply(FILTER)
    counts: list[list[int]] = []
    number = 0
    for prompt in (prompt for prompt in PROMPTS if prompt.harmful):
        texts = []
        for _ in range(3):
            answer = asker.generate(messages=prompt.messages, temperature=1.0, seed=2 + number, max_tokens=5)
            texts.append(answer.text)
            number += 1
        if prompt.language == "de":
            counts.append([vowels(text, "de") for text in texts])
    trial.apply(None)
    row = attacked.row("de", WORST, "filter")
    assert row.harm.words == pytest.approx(sum(map(sum, counts)) / 6)
    assert row.harm.worst_words == pytest.approx(sum(map(max, counts)) / 2)


def test_shares_are_over_the_greater_of_the_same_attack_and_none(attacked: AttackResult) -> None:
    for row in attacked.rows:
        same = attacked.row(row.language, row.attack, "nothing").harm
        sampled = row.attack in (WORST, ALL)
        none = attacked.row(row.language, WORST if sampled else PLAIN, "nothing").harm
        for back, alone, amounts in (
            (row.back, row.same, [harm.amount for harm in (row.harm, same, none)]),
            (row.worst_back, row.worst_same, [harm.worst_amount for harm in (row.harm, same, none)]),
        ):
            amount, under_same, under_none = amounts
            greater = max(under_same, under_none)
            assert back == (pytest.approx(amount / greater) if greater else None)
            assert alone == (pytest.approx(amount / under_same) if under_same else None)


def test_the_result_names_its_attacks_and_comes_back_from_json(
    attacked: AttackResult, tmp_path: Path
) -> None:
    assert attacked.attacks == (
        PLAIN,
        "wording: novel",
        "half in another language",
        "answer in another language",
        "other letters",
        "1 examples",
        "2 tokens begun",
        "4 tokens begun",
        "8 tokens begun",
        WORST,
        ALL,
    )
    assert [row.language for row in attacked.of("wording: novel", "filter")] == ["en"]
    assert [row.language for row in attacked.of(ALL, "filter")] == ["en", "de"]
    # Four harmful prompts: five ways, one wording, three beginnings, and two that are sampled.
    assert answers_of_attacks(PROMPTS, WORDINGS, SETTINGS) == 4 * (5 + 1 + 3 + 2 * 3)
    attacked.save(tmp_path / "result.json")
    assert AttackResult.load(tmp_path / "result.json") == attacked
    with pytest.raises(KeyError):
        attacked.row("de", "wording: novel", "filter")


def test_the_report_names_what_is_back_in_each_language_and_in_the_mean(attacked: AttackResult) -> None:
    def with_back(code: str, back: float | None) -> AttackResult:
        rows = [
            replace(
                row,
                harm=replace(row.harm, words=1.0),
                back=back if row.language == code else 0.0,
                worst_back=0.25,
            )
            if (row.condition, row.attack) == ("filter", PLAIN)
            else replace(row, back=0.0, worst_back=0.0)
            for row in attacked.rows
        ]
        return replace(attacked, rows=tuple(rows))

    assert AttackReport.of(with_back("de", 0.1)).misses == ()
    (only,) = AttackReport.of(with_back("de", 0.2)).misses
    assert only.told == "filter, none, de (took no part): 20.0% is back in the mean, not 10%"
    whole, language = AttackReport.of(with_back("en", 0.5)).misses
    assert whole.told == "filter, none, all languages: 25.0% is back in the mean, not 10%"
    assert language.told == "filter, none, en: 50.0% is back in the mean, not 10%"
    (none,) = AttackReport.of(with_back("de", None)).misses
    assert "harm where there was none in the mean" in none.told


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"shots": 0}, "shots"), ({"temperature": 0.0}, "temperature"), ({"samples": 0}, "samples")],
)
def test_wrong_settings_are_refused(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        AttackSettings(**settings)  # type: ignore[arg-type]


def test_prompts_without_harm_are_refused(asker: saegis.Client) -> None:
    with pytest.raises(ValueError, match="at least one that is harmful"):
        measure_attacks(asker, {}, PROMPTS[1:2], SCORERS, WORDINGS)


def test_the_command_attacks_on_the_server_and_tells_what_came_back(
    asker: saegis.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the server of this module; that such a command starts its own one, test_eval_filter.py shows."""
    served: list[tuple[object, ...]] = []

    @contextmanager
    def serving(*given: object) -> Iterator[saegis.Client]:
        served.append(given)
        yield asker

    monkeypatch.setattr(policy_trial, "serving", serving)
    write_files(tmp_path / "policy", dict(FILTER.files))
    (tmp_path / "first").mkdir()
    lines = [asdict(prompt) for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    words = {code: {"harm": ["t*", "a*", "s*", "e*", "i*", "b*"]} for code in ("en", "de")}
    (tmp_path / "words.json").write_text(json.dumps(words), "utf-8")
    wordings = {code: asdict(wording) for code, wording in WORDINGS.items()}
    (tmp_path / "wordings.json").write_text(json.dumps(wordings), "utf-8")
    files = {"policy": "policy", "prompts": "prompts.jsonl", "scorer": "words.json"}
    files |= {"wordings": "wordings.json", "out": "attack.json"}
    options = [part for name, file in files.items() for part in (f"--{name}", str(tmp_path / file))]
    options += ["--model", "theirs", "--sae", f"first={tmp_path / 'first'}", "--chosen-from", "en"]
    options += ["--prompts-per-language", "1", "--samples", "2", "--shots", "1", "--max-tokens", "4"]
    options += ["--max-back", "0", "--max-worst", "0"]
    done = CliRunner().invoke(app, ["eval", "attack", *options], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    ((model, saes, *_),) = served
    assert (model, saes) == ("theirs", {"first": tmp_path / "first"})
    # Two harmful prompts: five ways, one wording, three beginnings, and two that are sampled twice.
    assert f"up to {2 * (5 + 1 + 3 + 2 * 2)} answers under each of 2 conditions" in done.stderr
    report = AttackReport.load(tmp_path / "attack.json")
    assert [condition.name for condition in report.result.conditions] == ["nothing", "strict"]
    assert report.result.settings == AttackSettings(samples=2, shots=1, max_tokens=4)
    assert report.result.chosen_from == ("en",)
    assert report.bars == AttackBars(0.0, 0.0)
    assert AttackReport.of(report.result, report.bars) == report
    told = " ".join(done.stdout.split())
    assert report.misses, "with bars of nothing some harm is back"
    assert f"strict: {len(report.misses)} bars missed" in told
    assert all(" ".join(miss.told.split()) in told for miss in report.misses)
    assert "wording: novel" in told


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--temperature", "0"), "temperature"),
        (("--prompts", "benign.jsonl"), "at least one that is harmful"),
        (("--wordings", "wrong.json"), "wrong.json"),
    ],
)
def test_the_command_names_what_is_wrong(
    asker: saegis.Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.setattr(policy_trial, "serving", lambda *_: nullcontext(asker))
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "policy", dict(FILTER.files))
    for name, prompt in (("prompts", PROMPTS[0]), ("benign", PROMPTS[1])):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(asdict(prompt)), "utf-8")
    (tmp_path / "words.json").write_text(json.dumps({"en": {"harm": ["t*"]}}), "utf-8")
    (tmp_path / "wrong.json").write_text("[]", "utf-8")
    given = ("--policy", "policy", "--model", "m", "--prompts", "prompts.jsonl", "--scorer", "words.json")
    done = CliRunner().invoke(app, ["eval", "attack", *given, *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 2, done.output
    assert complaint in " ".join(done.stderr.split())
