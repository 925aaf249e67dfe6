"""`saegis policy calibrate` on a tiny server: what it chooses, what it writes, and what it refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from saegis_lab.cli.app import app
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.signing import load_private_key, sign, write_new_key
from tests.policy.bundles import direction, write_files
from tests.rpc import tiny
from tests.rpc.harness import running
from tests.tiers import few

PROMPTS = (
    ("the red bridge", "en", True),
    ("birds sing", "en", False),
    ("the day", "zh", True),
    ("a warm river", "zh", False),
    ("the warm day", "fr", False),
)
POLICY = """\
# Features 3 and 7, in whatever language.
apiVersion: saegis.dev/v1
kind: Policy
name: p
serial: 1
revision: r1
"""
RULES = """\
apiVersion: saegis.dev/v1
kind: PolicyPart
rules:
  - id: watched   # strength: 9
    watch: {features: [{sae: first, index: 5}]}

  - id: no-bridge
    when:
      if: {feature: {sae: first, index: 5}, above: 1}
    ban:
      # 3, and what is harmful: 7
      features: [{sae: first, label: the red bridge}, {sae: first, where: {harmful: true}}, {index: 3}]
      strength:  4.0   # to be calibrated
"""
#: Of these 1 is the least that meets TARGET and MAX_KL: see the test that searches naively.
STRENGTHS, TARGET, MAX_KL = (0.0, 0.5, 1.0, 2.0), 0.7, 0.3
HARM = f"{__name__}:vowels"


def vowels(text: str, language: str) -> float:
    """What stands for harm here."""
    return sum(char in "aeiou" for char in text) / max(1, len(text))


def none_in_english(text: str, language: str) -> float:
    """A model that refuses in English."""
    return 0.0 if language == "en" else vowels(text, language)


def nothing(text: str, language: str) -> float:
    """No harm anywhere."""
    return 0.0


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with running(max_num_seqs=4, queue_limit=64) as server:
        yield server.target


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle; prompts.jsonl and words.json lie in the working directory."""
    lines = [
        json.dumps({"prompt": text, "language": code, "harmful": harmful}) for text, code, harmful in PROMPTS
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = {code: {"harm": ["the*", "s*", "e*"]} for code in ("en", "zh", "fr")}
    (tmp_path / "words.json").write_text(json.dumps(words), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return write_files(
        tmp_path / "policy", {"policy.yaml": POLICY.encode(), "rules/all.yaml": RULES.encode()}
    )


def invoke(folder: Path, *arguments: str, harm: str = HARM) -> Result:
    given = ["policy", "calibrate", str(folder), "--prompts", "prompts.jsonl", "--scorer", harm, *arguments]
    return CliRunner().invoke(app, given, env={"COLUMNS": "200"})


def calibrate(folder: Path, target: str, *arguments: str, harm: str = HARM, code: int = 0) -> Result:
    """A run on the tiny server with the strengths and bounds above, unless others are given."""
    known = {
        "--strengths": ",".join(f"{each:g}" for each in STRENGTHS),
        "--target": str(TARGET),
        "--max-kl": str(MAX_KL),
        "--max-tokens": "24",
        "--server": target,
    }
    rest = [each for name, value in known.items() if name not in arguments for each in (name, value)]
    result = invoke(folder, *arguments, *rest, harm=harm)
    assert result.exit_code == code, result.output
    return result


def measured(target: str) -> Any:
    """What `saegis eval ban` measures of the same ban."""
    result = CliRunner().invoke(
        app,
        [
            *("eval", "ban", "--features", "3,7", "--sae-id", "first", "--prompts", "prompts.jsonl"),
            *("--scorer", HARM, "--strengths", ",".join(map(str, STRENGTHS)), "--max-tokens", "24"),
            *("--json", "--server", target),
        ],
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["result"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_least_strength_that_is_enough_is_written_and_nothing_else_changes(
    folder: Path, target: str
) -> None:
    before = contents(folder)
    told = json.loads(calibrate(folder, target, "--json").stdout)
    figures = {(row["language"], row["strength"]): row for row in measured(target)["rows"]}
    enough = [
        each
        for each in STRENGTHS
        if all(
            figures[code, each]["harmful"]["harm"] <= TARGET * figures[code, None]["harmful"]["harm"]
            and figures[code, each]["kl"] < MAX_KL
            for code in ("en", "zh")
        )
    ]
    # The least of all would be no test of choosing.
    assert min(STRENGTHS) < min(enough)
    assert told["strength"] == min(enough) == 1.0
    after = contents(folder)
    written = after.pop("calibration.json")
    assert after == {**before, "rules/all.yaml": RULES.replace(" 4.0 ", " 1.0 ").encode()}
    (rule,) = (each for each in Bundle.read(folder).policy.rules if each.id == "no-bridge")
    assert rule.ban is not None
    assert rule.ban.strength == 1.0
    entry = json.loads(written)["rules"]["no-bridge"]
    assert entry["features"] == [3, 7]
    assert (entry["sae"], entry["ruled"], entry["languages"]) == ("first", False, ["en", "zh"])
    assert entry["coverage"] == told["coverage"]
    assert [(row["language"], row["judged"]) for row in entry["coverage"]] == [
        ("en", True),
        ("zh", True),
        ("fr", False),
    ]
    for row in entry["coverage"]:
        plain, banned = (figures[row["language"], each] for each in (None, 1.0))
        assert row["kl"] == banned["kl"]
        assert row["benign_perplexity"] == banned["benign"]["text"]["perplexity_ratio"]
        if row["judged"]:
            assert row["harm_before"] == plain["harmful"]["harm"]
            assert row["harm_after"] == banned["harmful"]["harm"]
            assert (row["harmful_prompts"], row["benign_prompts"]) == (1, 1)
    *judged, french = entry["coverage"]
    for row in judged:
        assert row["factor"] == pytest.approx(row["harm_before"] / row["harm_after"])
    assert (french["harm_before"], french["harm_after"], french["harmful_prompts"]) == (None, None, 0)


def test_the_tables_and_what_is_left_to_do_are_told(folder: Path, target: str) -> None:
    write_new_key(folder.parent / "key")
    signature = sign(Bundle.read(folder), load_private_key(folder.parent / "key")).signature
    assert signature is not None
    (folder / "signature.json").write_bytes(signature.to_json())
    kept = {"by": "hand", "rules": {"other": {"strength": 3}, "no-bridge": {"strength": 9}}}
    (folder / "calibration.json").write_text(json.dumps(kept), encoding="utf-8")
    result = calibrate(folder, target, "--rule", "no-bridge", "--strengths", "0,1")
    assert "rule no-bridge, strength 1" in result.stdout
    assert "strength 1 is the least that meets the target" in result.stdout
    assert "harm 0.107 falls to 0.083" in result.stdout
    for column in ("judged", "falls by", "KL", "× perplexity, harmful", "prompts, harmful"):
        assert column in result.stdout
    assert "all" in result.stdout
    errors = " ".join(result.stderr.split())
    assert "wrote" in errors
    assert "raise its serial, 1," in errors
    assert "sign it again" in errors
    stored = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    assert (stored["by"], stored["rules"]["other"]) == ("hand", {"strength": 3})
    assert stored["rules"]["no-bridge"]["strength"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "harm", "why"),
    few(
        [
            (("--max-kl", "0.1"), HARM, "en: KL is 0.2640, not under 0.1"),
            (("--target", "0"), HARM, "en: harm 0.107 falls to 0.071, not to 0.000"),
            ((), f"{__name__}:nothing", "without the ban there is no harm in any of the languages"),
        ],
        1,
    ),
)
def test_that_no_strength_is_enough_is_said_and_nothing_written(
    folder: Path, target: str, arguments: tuple[str, ...], harm: str, why: str
) -> None:
    before = contents(folder)
    told = calibrate(folder, target, "--strengths", "1,2", *arguments, harm=harm, code=1).stdout
    assert "no strength meets the target" in told
    assert f"strength 1: {why}" in told
    assert contents(folder) == before


def test_no_strength_is_null_in_json(folder: Path, target: str) -> None:
    given = ("--strengths", "2,1", "--max-kl", "0.01", "--json")
    told = json.loads(calibrate(folder, target, *given, harm="words.json", code=1).stdout)
    assert (told["strength"], told["written"], told["coverage"]) == (None, [], [])
    assert [each["strength"] for each in told["calibration"]["verdicts"]] == [1.0, 2.0]
    assert not (folder / "calibration.json").exists()


def test_a_language_that_shows_no_harm_neither_vetoes_nor_vouches(folder: Path, target: str) -> None:
    harm = f"{__name__}:none_in_english"
    given = ("--strengths", "0,1", "--target", "0.75", "--json")
    told = json.loads(calibrate(folder, target, *given, harm=harm).stdout)
    # Chinese alone is content with less.
    assert (told["strength"], told["calibration"]["languages"]) == (0.0, ["en", "zh"])
    english = told["coverage"][0]
    assert (english["harm_before"], english["harm_after"], english["factor"]) == (0.0, 0.0, None)
    calibrate(folder, target, "--strengths", "1", "--calibrate-on", "en", harm=harm, code=1)


def test_only_the_named_languages_are_judged(folder: Path, target: str) -> None:
    given = ("--strengths", "0", "--target", "0.75", "--calibrate-on", "zh", "--json")
    told = json.loads(calibrate(folder, target, *given).stdout)
    assert (told["strength"], told["calibration"]["languages"]) == (0.0, ["zh"])
    assert [row["judged"] for row in told["coverage"]] == [False, True, False]


def test_a_language_that_was_not_asked_for_and_misses_a_bar_is_named_everywhere(
    folder: Path, target: str
) -> None:
    """English, at a strength that is enough for Chinese: the table, a sentence, the JSON and the bundle."""
    given = ("--strengths", "0,1", "--target", "0.75", "--calibrate-on", "zh", "--max-kl", "0.1")
    told = json.loads(calibrate(folder, target, *given, "--json").stdout)
    figures = {(row["language"], row["strength"]): row for row in told["result"]["rows"]}
    assert told["strength"] == 0.0
    assert figures["zh", 0.0]["kl"] < 0.1 <= figures["en", 0.0]["kl"]
    kl = [each for each in told["misses"] if (each["figure"], each["strength"]) == ("kl", 0.0)]
    assert [(each["language"], each["judged"], each["bar"]) for each in kl if each["language"] == "en"] == [
        ("en", False, 0.1)
    ]
    value = figures["en", 0.0]["kl"]
    sentence = f"en: KL is {value:.4f}, not under 0.1"
    assert kl[0]["value"] == value
    assert kl[0]["told"] == sentence
    stored = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))["rules"]["no-bridge"]
    assert stored["misses"] == [each for each in told["misses"] if each["strength"] == 0.0]
    shown = calibrate(folder, target, *given).stdout
    assert f"{sentence} (a language not judged)" in shown
    assert shown.count(f"{value:.4f} !") == 2


def test_every_language_that_misses_a_bar_is_named_by_figure(folder: Path, target: str) -> None:
    """The bar of perplexity decides nothing, can be set, and is told of every language that misses it."""
    given = ("--strengths", "0", "--target", "0.75", "--calibrate-on", "zh", "--max-kl", "0.1")
    bars = ("--max-perplexity", "0.01")
    told = json.loads(calibrate(folder, target, *given, *bars, "--json").stdout)
    assert told["strength"] == 0.0
    rows = [row for row in told["result"]["rows"] if row["strength"] == 0.0]
    beyond = [
        row["language"]
        for row in rows
        if row["harmful"] and (row["harmful"]["text"]["perplexity_ratio"] or 0.0) > 0.01
    ]
    missed = [each for each in told["misses"] if each["figure"] == "perplexity"]
    assert [each["language"] for each in missed] == beyond != []
    assert {each["bar"] for each in missed} == {0.01}
    noted = [code if code == "zh" else f"{code} (not judged)" for code in beyond]
    shown = " ".join(calibrate(folder, target, *given, *bars).stdout.split())
    assert "under strength 0 bars are missed: " in shown
    assert f"perplexity in {', '.join(noted)}" in shown


def test_a_missing_strength_gets_a_line_of_its_own(folder: Path, target: str) -> None:
    part = folder / "rules" / "all.yaml"
    without = RULES.replace("      strength:  4.0   # to be calibrated\n", "")
    part.write_text(without, encoding="utf-8")
    calibrate(folder, target, "--strengths", "1")
    assert part.read_text(encoding="utf-8") == without.replace(
        "    ban:\n", "    ban:\n      strength: 1.0\n"
    )


def test_a_server_that_rules_already_is_warned_of(folder: Path, tmp_path: Path) -> None:
    free = """\
allow: [{id: all, ops: [ban]}, {id: measured, uses: [score, text, unruled]}]
rules: [{id: cap, cap: {features: [{sae: first, index: 5}], value: 9}}]
"""
    other = write_files(
        tmp_path / "other", {"policy.yaml": POLICY.replace("name: p", "name: q").encode() + free.encode()}
    )
    with running(max_num_seqs=4, queue_limit=64, policies={"bundles": [str(other)]}) as server:
        result = calibrate(folder, server.target, "--strengths", "1")
    assert "the server steers by policies of its own (q/cap)" in " ".join(result.stderr.split())
    stored = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    assert stored["rules"]["no-bridge"]["ruled"] is True


@pytest.mark.parametrize(
    ("rules", "arguments", "complaint"),
    [
        (RULES, ("--rule", "watched"), "'watched' is no ban of the bundle; its bans: no-bridge"),
        (RULES[: RULES.index("  - id: no-bridge")], (), "name one of the bundle's bans: none"),
        (RULES + "      phase: prompt\n", (), "only bans of all tokens are measured"),
        (RULES.replace("{index: 3}]", "{sae: second, index: 3}]"), (), "is about the SAEs first, second"),
        (
            RULES + "      directions: [{file: directions/v.safetensors, site: layers.0.resid_post}]\n",
            (),
            "bans directions; only bans of features are measured",
        ),
        (RULES, ("--strengths", "1,x"), "--strengths: 'x' is no number"),
        (RULES, ("--strengths", "1,-1"), "must be finite and at least 0"),
        (RULES, ("--strengths", "1,nan"), "must be finite and at least 0"),
        (RULES, ("--strengths", "1,1.0"), "one stands there twice"),
        (
            RULES,
            ("--calibrate-on", "fr"),
            "'fr' has no harmful prompts; there are some in en, zh",
        ),
        (RULES.replace("ban:\n", "bann:\n"), (), "is no bundle"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_asked(
    folder: Path, rules: str, arguments: tuple[str, ...], complaint: str
) -> None:
    extra = {"directions/v.safetensors": direction(tiny.WIDTH)} if "directions/" in rules else {}
    write_files(folder, {"rules/all.yaml": rules.encode(), **extra})
    before = contents(folder)
    result = invoke(folder, *arguments, "--server", "127.0.0.1:1", "--timeout", "2")
    assert result.exit_code in (1, 2)
    assert complaint in " ".join(result.stderr.split())
    assert contents(folder) == before


def test_features_that_the_server_does_not_have_are_told(folder: Path, target: str) -> None:
    for old, new, complaint in (
        ("label: the red bridge", "label: a blue bridge", "no feature labelled 'a blue bridge'"),
        ("where: {harmful: true}", "where: {subject: tea}", "no feature of first fits its `where`"),
        ("index: 3}]", "index: 480}]", "first has features 0 to 47"),
        ("sae: first, ", "", "name the sae; the server has first, second, explosive"),
    ):
        write_files(folder, {"rules/all.yaml": RULES.replace(old, new).encode()})
        result = invoke(folder, "--server", target)
        assert result.exit_code in (1, 2)
        assert complaint in " ".join(result.stderr.split())


def test_an_archive_is_no_directory(folder: Path) -> None:
    shutil.make_archive("bundle", "tar", folder)
    result = invoke(Path("bundle.tar"))
    assert result.exit_code == 2
