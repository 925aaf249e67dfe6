"""The commands of a client against a running server."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from saegis_lab.cli.app import app
from tests.directions.files import safetensors, vector
from tests.e2e.serving import SITE, Serving

GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(autouse=True)
def _target(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands find the server as a user's would: by the environment."""
    monkeypatch.setenv("SAEGIS_SERVER", server.target)
    monkeypatch.setenv("COLUMNS", "160")


def run(*arguments: str, input: str | None = None, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    result = CliRunner().invoke(app, arguments, input=input)
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json")[0])


def test_generate_prints_the_text_and_the_receipt_apart() -> None:
    out, err = run("generate", "The bridge", *GREEDY)
    told = run_json("generate", "The bridge", *GREEDY)
    assert out.strip() == told["choices"][0]["text"].strip()
    assert "unsteered" in err
    assert not told["receipt"]["steered"]
    assert told["usage"]["completion_tokens"] == 12
    assert told["choices"][0]["finish_reason"] == "length"


def test_generate_steers_by_index_label_and_maximum() -> None:
    plain = run_json("generate", "The bridge", *GREEDY)
    by_index = run_json("generate", "The bridge", *GREEDY, "--clamp", "3=8")
    by_label = run_json("generate", "The bridge", *GREEDY, "--clamp", "the red bridge=2max")
    assert by_index["choices"] == by_label["choices"]
    assert by_index["choices"] != plain["choices"]
    (site,) = by_index["receipt"]["sites"]
    assert (site["site"], site["edits"], site["tokens_edited"]) == (
        SITE,
        1,
        by_index["usage"]["steered_tokens"],
    )


def test_generate_bans_by_words_and_says_which_features() -> None:
    out, err = run("generate", "The bridge", *GREEDY, "--ban-matching", "poison=2", "--json")
    assert "banned: 7  poison" in err
    assert json.loads(out)["receipt"]["sites"][0]["bans"] == 1
    nothing = run("generate", "The bridge", "--ban-matching", "unicorns", code=2)
    assert "unicorns" in nothing[1]


def test_generate_reports_watches_and_the_whole_receipt() -> None:
    _, err = run("generate", "The bridge", *GREEDY, "--watch", "a river", "--clamp", "5=2.5", "--receipt")
    assert "a river" in err
    assert "mean set to" in err
    assert SITE in err
    told = run_json("generate", "The bridge", *GREEDY, "--watch", "5", "--clamp", "5=2.5")
    (watched,) = told["choices"][0]["watched"]
    assert len(watched["before"]) == len(watched["after"]) == 12
    assert watched["set_to"] == [2.5] * 12
    unset = run("generate", "The bridge", *GREEDY, "--watch", "a river")[1]
    assert "set to" not in unset
    # Where the feature was inactive its pre-activation was below 0, and a clamp does not make up for that.
    active = [after for before, after in zip(watched["before"], watched["after"], strict=True) if before > 0]
    assert len(active) > 6
    assert active == pytest.approx([2.5] * len(active), abs=1e-3)


def test_a_stream_gives_the_same_text_and_one_line_of_json_a_chunk() -> None:
    whole = run_json("generate", "The bridge", *GREEDY)
    out, _ = run("generate", "The bridge", *GREEDY, "--stream")
    assert out.strip() == whole["choices"][0]["text"].strip()
    lines = [
        json.loads(line)
        for line in run("generate", "The bridge", *GREEDY, "--stream", "--json")[0].splitlines()
    ]
    assert lines[-1]["generation"]["choices"] == whole["choices"]
    assert "".join(line["chunk"]["text"] for line in lines[:-1]) == whole["choices"][0]["text"]


def test_the_prompt_may_come_from_standard_input_and_be_a_conversation() -> None:
    raw = json.loads(run("generate", "-", *GREEDY, "--json", input="The bridge")[0])
    assert raw["choices"] == run_json("generate", "The bridge", *GREEDY)["choices"]
    alone = run_json("generate", "The bridge", "--chat", *GREEDY)
    told = run_json("generate", "The bridge", "--system", "Be brief.", *GREEDY)
    assert told["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"] > raw["usage"]["prompt_tokens"]


def test_a_wrong_feature_names_the_field_and_what_to_do() -> None:
    _, err = run("generate", "The bridge", "--clamp", "4000=1", code=1)
    assert "steering.edits[0].feature" in err
    assert "saegis features search" in err


def test_inspect_shows_the_strongest_features_of_each_token() -> None:
    told = run_json("inspect", "The red bridge", "--top", "3")
    assert (told["sae"], told["site"]) == ("tiny-sae", SITE)
    for token in told["tokens"]:
        values = [feature["activation"] for feature in token["features"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
    out, _ = run("inspect", "The red bridge", "--top", "3")
    assert f"{told['tokens'][-1]['features'][0]['activation']:.2f}" in out
    chat = run_json("inspect", "The red bridge", "--chat")
    assert len(chat["tokens"]) > len(told["tokens"])


def test_inspect_writes_a_page(tmp_path: Path) -> None:
    file = tmp_path / "bridge.html"
    out, err = run("inspect", "The <b>red</b> bridge", "--html", str(file))
    assert (out, "wrote" in err) == ("", True)
    assert "&lt;" in file.read_text(encoding="utf-8")
    assert "cannot be written" in run("inspect", "x", "--html", str(tmp_path / "no" / "x.html"), code=1)[1]


def test_features_are_found_by_label_and_shown() -> None:
    told = run_json("features", "search", "bridge")
    assert [feature["index"] for feature in told["features"]] == [3]
    assert "the red bridge" in run("features", "search", "bridge")[0]
    assert run_json("features", "search")["total_size"] == 3
    assert len(run_json("features", "search", "--top", "2")["features"]) == 2
    assert "no label matches 'unicorn'" in run("features", "search", "unicorn")[1]
    assert run_json("features", "show", "poison")["harmful"] is True
    shown = run("features", "show", "3")[0]
    assert "4.000" in shown
    assert "de 0.70" in shown
    assert "features show" not in run("features", "show", "no such label", code=1)[0]


def test_contrast_reads_texts_from_options_and_files(tmp_path: Path) -> None:
    file = tmp_path / "without.txt"
    file.write_text("Birds sing.\n\nThe day is long.\n", encoding="utf-8")
    arguments = (
        "--with",
        "The red bridge.",
        "--with",
        "A bridge.",
        "--without-file",
        str(file),
        "--top",
        "4",
    )
    told = run_json("features", "contrast", *arguments)
    scores = [each["score"] for each in told["features"]]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert f"{scores[0]:.2f}" in run("features", "contrast", *arguments)[0]
    rule = run("features", "contrast", *arguments, "--as-rule", "ban-bridges")[0]
    assert '  - id: "ban-bridges"' in rule
    assert all(f"index: {each['feature']['index']}}}" in rule for each in told["features"])
    nothing = run("features", "contrast", *arguments, "--as-rule", "x", "--max-q", "0.01", code=1)[1]
    assert "no feature is left for a rule" in nothing


def test_a_chat_keeps_its_conversation_and_its_steering() -> None:
    steered = "Hello\n/clamp 3=8\n/watch 5\nHello again\n/clamp 4000=1\n/unset 5\nAnd now?\n"
    said = steered + "/reset\n/clear\nHello\n/quit\nnever\n"
    out, err = run("chat", *GREEDY, input=said)
    assert "in force: clamp 3=8, watch 5" in err
    assert "a river" in err or "watched" in err
    assert "steering.edits[1].feature" in err
    assert "nothing is in force" in err
    first, *_, last = [line for line in out.splitlines() if line]
    assert first == last
    receipts = [line for line in err.splitlines() if "program " in line]
    assert ["unsteered" in line for line in receipts] == [True, False, False, True]


def test_an_edit_in_a_chat_is_checked_when_it_is_given_and_the_former_ones_stay() -> None:
    said = "/clamp 3=8\n/ban no such label\n/clamp 5=1\n/unset 3\n/unset 3\n/quit\n"
    _, err = run("chat", *GREEDY, input=said)
    refused = err.index("'no such label'")
    assert err[refused:].index("in force: clamp 3=8\n") < err[refused:].index(
        "in force: clamp 3=8, clamp 5=1"
    )
    assert "in force: clamp 5=1\n" in err
    assert "nothing of '3' is in force" in err


def test_a_chat_that_starts_with_an_edit_that_the_server_refuses_does_not_start() -> None:
    out, err = run("chat", "--clamp", "4000=1", input="Hello\n", code=1)
    assert out == ""
    assert "steering.edits[0].feature" in err


def test_a_chat_ends_at_the_end_of_the_input() -> None:
    out, err = run("chat", *GREEDY, "--clamp", "3=8", "--system", "Be brief.", input="Hello\n")
    assert "in force: clamp 3=8" in err
    assert out.strip()


def test_directions_are_uploaded_listed_named_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "refusal.safetensors"
    path.write_bytes(safetensors(vector(), site=SITE))
    kept = run_json("directions", "upload", str(path))[0]
    assert (kept["name"], kept["site"], kept["shipped"]) == ("refusal", SITE, False)
    assert run_json("directions", "list") == [kept]
    out, _ = run("directions", "list")
    assert all(word in out for word in ("refusal", SITE, "your tenant's", kept["digest"]))
    plain = run_json("generate", "The bridge", *GREEDY)
    by_name, by_digest = (
        run_json("generate", "The bridge", *GREEDY, "--ablate", f"direction:{way}")
        for way in ("refusal", kept["digest"])
    )
    assert by_name["choices"] == by_digest["choices"]
    assert by_name["receipt"]["program_digest"] == by_digest["receipt"]["program_digest"]
    assert by_name["receipt"]["steered"]
    assert not plain["receipt"]["steered"]
    _, err = run("generate", "The bridge", *GREEDY, "--add", "direction:refusal=2", "--receipt")
    assert "direction refusal" in err
    refused = run("directions", "upload", str(path), "--name", "other", code=1)[1]
    assert "is kept already" in refused
    assert "deleted refusal" in run("directions", "delete", kept["digest"])[1]
    assert "no direction is kept" in run("directions", "list")[1]
    assert "no direction 'refusal'" in run("generate", "x", "--ablate", "direction:refusal", code=1)[1]
    assert "names no direction" in run("generate", "x", "--ablate", "direction:", code=2)[1]
