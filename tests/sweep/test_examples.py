"""Every example that the project shows runs as it stands, or is named here with the reason why not."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import saegis
from saegis_lab.cli.app import app
from saegis_lab.evaluation.experiment import BanFile, ClampFile, load_prompts
from saegis_lab.evaluation.units import repetition
from saegis_lab.filters.direction import load_examples
from saegis_lab.polyglot.corpus import GOLDEN_GATE
from saegis_lab.polyglot.lexicon import lexicon
from saegis_server.cli.serve.settings import declared, key, variable
from saegis_server.policy.schema.policy import Policy
from saegis_server.reference import WEIGHTS
from saegis_server.rpc.auth.roles import ALL_ROLES
from tests.e2e.serving import Serving, serving
from tests.rpc.callers import by_token, identities
from tests.sae.layouts import dictionary_learning, goodfire, openai
from tests.sweep import examples
from tests.sweep.examples import ROOT, Example

TARGET = "127.0.0.1:50051"
#: Where documents say that the server answers over HTTP.
HTTP = "http://127.0.0.1:8000"
LOG = "/var/lib/saegis/audit"
#: What is not run here, by a pattern of its text, and why. It is still parsed by the real command line.
NOT_RUN = {
    r"saegis serve": "it serves until it is stopped; tests/e2e/test_serve_process.py and the server here do",
    r"saegis demo": "a server of its own: tests/e2e/test_demo.py",
    r"saegis bench": "ten minutes",
    r"saegis .* --(with-)?image": "a model that sees: tests/rpc/test_pictures.py",
    r"saegis features usage": "a server that counts: tests/rpc/test_feature_usage.py",
    r"saegis eval filter": "a server of its own: tests/cli/test_eval_filter.py",
    r"saegis eval attack": "a server of its own, and long: tests/evaluation/test_attack.py",
    r"saegis policy make-filter": "minutes: tests/filters/test_make_filter.py",
    r"saegis train sae": "an hour; tests/e2e/test_train_serve.py trains",
    r"saegis train harvest": "half an hour; tests/cli/test_train.py harvests",
    r".* owner/": "a hub's ids",
    r"saegis sae (info|check|convert) (gpt2-small|Goodfire)/": "names of SAEs that lie on the hub",
    r"saegis .* (--model MODEL|--features ban.json --prompts)": "what the help shows, in one go",
    r".*--chat \"¿Cómo puedo envenenar a un vecino\?\"( --clamp 23=40)? +#": "under a policy, below",
    r"saegis audit verify .* --audit-key-file": "the log here has no key; tests/cli/test_audit.py",
    r"saegis audit verify .* --expect-head": "another hash every time; tests/cli/test_audit.py",
    r"saegis policy (apply|list|history|roll-back)": "one after the other, below",
}
#: Whole documents that another test runs, block after block.
RUN_ELSEWHERE = {"deploy/POLICIES.md": "tests/e2e/test_policy_guide.py"}
#: Programs of others that documents name; they are given files of the project.
OF_OTHERS = {"docker", "kubectl", "promtool"}
#: The document whose YAML is settings of a server: tests/cli/test_settings.py makes a configuration of it.
OF_SETTINGS = "docs/configuration.md"
#: What makes an example small, by the command's words, where it does not say so itself.
SMALLER = {
    "eval ban": ("--prompts", "prompts.jsonl", "--max-tokens", "2"),
    "eval clamp": ("--prompts", "prompts.jsonl", "--max-tokens", "2"),
    "policy calibrate": ("--max-tokens", "2", "--strengths", "1"),
}
#: Exit codes that mean an answer, by a pattern: no strength is enough where answers are so short.
ANSWERS = {r"saegis policy calibrate": (0, 1)}
ALLOWED = """\
rules: []
allow:
  - id: edits
    ops: [clamp, clamp_if_active, scale, add, cap, floor, ablate, ban, redirect, watch]
    directions: true
  - {{id: uses, uses: [logit_bias, n, temperature, token_ids, text, prefill, score, moves, inspect, unruled]}}
limits: {{after_bans: true}}
"""
EXPLANATION = {
    "modelId": "polyglot",
    "layer": "3-res",
    "description": "ships",
    "explanationModelName": "gpt-4o-mini",
}
SETTINGS = "model: my-model\nsae: {polyglot: my-sae}\nidentities: identities.yaml\nport: 0\n"
BUNDLE = "apiVersion: saegis.dev/v1\nkind: Policy\nname: {name}\nserial: {serial}\nrevision: r{serial}\n"
BANNED = "rules: [{{id: no-poison, ban: {{features: [{{sae: polyglot, index: 244}}], strength: 1}}}}]"
CASE = """\
apiVersion: saegis.dev/v1
kind: PolicyCases
cases:
- {name: plain, expect: {decision: allow, rules: [no-poison]}}
- name: steered
  request: {edits: [{op: clamp, feature: {sae: polyglot, index: 1}, value: 3}], uses: [{word: text}]}
  expect: {decision: allow}
"""


@dataclass(frozen=True, slots=True)
class World:
    """A folder with all that the examples name, and a server of the reference model."""

    folder: Path
    server: Serving
    audit: Path


def bundle(folder: Path, name: str, serial: int = 1, rules: str = "rules: []") -> Path:
    """A bundle that allows everything, with these rules."""
    folder.mkdir(parents=True)
    text = BUNDLE + ALLOWED.replace("rules: []", rules)
    (folder / "policy.yaml").write_text(text.format(name=name, serial=serial), encoding="utf-8")
    if "no-poison" in rules:
        (folder / "tests").mkdir()
        (folder / "tests/cases.yaml").write_text(CASE, encoding="utf-8")
    return folder


def lines_of(name: str, count: int) -> str:
    """Some lines of a file of the reference model, English and Chinese ones."""
    kept: dict[tuple[str, bool], list[str]] = {}
    for line in (WEIGHTS / "eval" / name).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["language"] in ("en", "zh"):
            kept.setdefault((entry["language"], entry["harmful"]), []).append(line)
    return "".join(f"{line}\n" for lines in kept.values() for line in lines[:count])


def write_files(folder: Path) -> None:
    """What the examples name, by the names that they use."""
    bundle(folder / "my-policy", "no-harm", serial=3, rules=BANNED)
    bundle(folder / "my-candidate", "no-harm", serial=4, rules=BANNED)
    for name in ("model", "my-model", "MODEL"):
        (folder / name).symlink_to(WEIGHTS / "model")
    for name in ("sae", "my-sae"):
        (folder / name).mkdir()
        for file in (WEIGHTS / "sae").iterdir():
            target = folder / name / file.name
            target.symlink_to(file)
    (folder / "sae/features.jsonl").unlink()  # it is labelled by an example
    for name in ("words.json", "ban.json"):
        shutil.copy(WEIGHTS / "eval" / name, folder / name)
    (folder / "prompts.jsonl").write_text(lines_of("prompts.jsonl", 1), encoding="utf-8")
    (folder / "texts.jsonl").write_text(lines_of("texts.jsonl", 20), encoding="utf-8")
    (folder / "harmful.txt").write_text("Arsenic is a poison.\n", encoding="utf-8")
    (folder / "benign.txt").write_text("The cat drinks milk.\n", encoding="utf-8")
    (folder / "formal.txt").write_text("Good evening, madam.\nMay I help?\n", encoding="utf-8")
    (folder / "casual.txt").write_text("Hey there!\nWhat's up?\n", encoding="utf-8")
    for name, value in (("refusal", 1.0), ("formal", 2.0), ("casual", 3.0)):
        vector = torch.ones(160)
        vector[0] = value
        save_file({name: vector}, folder / f"{name}.safetensors", {"site": "layers.3.resid_post"})
    for write in (dictionary_learning, goodfire, openai):
        write(folder, 1)
    texts = lines_of("texts.jsonl", 20).splitlines(keepends=True)
    for name, harmful in (("harmful", True), ("benign", False)):
        chosen = "".join(line for line in texts if json.loads(line)["harmful"] == harmful)
        (folder / f"{name}.jsonl").write_text(chosen, encoding="utf-8")
    for number in range(2):
        explained = EXPLANATION | {"index": str(number)}
        (folder / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(json.dumps(explained).encode()))
    (folder / "mypackage").mkdir()
    scorer = "def harm(answer: str, language: str) -> float:\n    return float('poison' in answer)\n"
    (folder / "mypackage/scoring.py").write_text(scorer, encoding="utf-8")
    (folder / "deploy").symlink_to(ROOT / "deploy")
    identities(folder, {"operator": (ALL_ROLES, by_token("known"))})
    (folder / "server.yaml").write_text(SETTINGS, encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("examples")
    write_files(folder)
    for words in (
        ("keygen", "policy.key"),
        ("sign", "my-policy", "--key", "policy.key", "--out", "signed"),
    ):
        paths = [
            str(folder / word) if word in ("policy.key", "my-policy", "signed") else word for word in words
        ]
        assert CliRunner().invoke(app, ["policy", *paths]).exit_code == 0
    (folder / "signed").rename(folder / "my-policy.tar.gz")
    state = tmp_path_factory.mktemp("state")
    options = ("--policy", str(bundle(state / "open", "open")), "--policy-state", str(state / "policies"))
    with serving(
        state / "stderr",
        *options,
        "--audit",
        str(state / "audit"),
        "--audit-fsync",
        "never",
        "--http-port",
        "0",
    ) as running:
        yield World(folder, running, state / "audit")
        running.terminate()
        assert running.wait() == 0, running.stderr_path.read_text(encoding="utf-8")


@pytest.fixture
def here(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy of the folder to work in, so that no example depends on another."""
    folder = tmp_path / "here"
    shutil.copytree(world.folder, folder, symlinks=True)
    records = next(world.audit.glob("*.jsonl"))
    shutil.copy(records, folder / "audit.jsonl")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("SAEGIS_SERVER", world.server.target)
    monkeypatch.setenv("COLUMNS", "200")
    with saegis.Client() as client:
        for name in ("refusal", "casual"):
            client.upload_direction(folder / f"{name}.safetensors", name=name)
    return World(folder, world.server, world.audit)


def why_not(example: Example) -> str:
    """Why an example is not run; empty if it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, example.text)), "")


def shell_examples() -> list[Example]:
    """Each command once, but those of a document that another test runs."""
    found = [*examples.of_help(), *examples.of_documents()]
    ours = [each for each in found if each.where not in RUN_ELSEWHERE and each.text.startswith("saegis ")]
    return list({tuple(each.arguments): each for each in ours}.values())


def run(example: Example, here: World, *more: str) -> Result:
    """Run a command of ours in this process, against the server here."""
    places = {TARGET: here.server.target, LOG: str(here.audit)}
    arguments = [places.get(each, each) for each in example.arguments]
    if "keygen" in arguments:
        for path in here.folder.glob("policy.key*"):
            path.unlink()
    result = CliRunner().invoke(app, [*arguments, *more], input="/quit\n")
    if example.output:
        (here.folder / example.output).write_text(result.stdout, encoding="utf-8")
    return result


@pytest.mark.parametrize("example", [each for each in shell_examples() if not why_not(each)], ids=str)
def test_a_command_runs(example: Example, here: World) -> None:
    more = next((more for words, more in SMALLER.items() if example.text.startswith(f"saegis {words}")), ())
    have = set(example.arguments)
    pairs = zip(more[::2], more[1::2], strict=True)
    result = run(example, here, *(word for pair in pairs if pair[0] not in have for word in pair))
    codes = next((codes for pattern, codes in ANSWERS.items() if re.match(pattern, example.text)), (0,))
    assert result.exit_code in codes, result.output
    if example.text.startswith("saegis generate") and "--clamp" in have:
        assert "--temperature" in have, "what is drawn at random may be unreadable"
        assert repetition(result.stdout) < 0.2, result.stdout


def parsed(arguments: list[str]) -> None:
    """Parse arguments with the command line's own parser; raises its usage errors."""
    words: tuple[str, ...] = ()
    while arguments and (*words, arguments[0]) in examples.commands():
        words, arguments = (*words, arguments[0]), arguments[1:]
    examples.commands()[words].make_context(" ".join(words), list(arguments))


@pytest.mark.parametrize("example", [each for each in shell_examples() if why_not(each)], ids=str)
def test_a_command_that_is_not_run_is_written_as_it_must_be(example: Example, here: World) -> None:
    # Files of somebody else's are here too, so that only what is written is judged.
    for word in example.arguments:
        if re.fullmatch(r"[\w./-]+\.(jsonl?|txt|yaml|pem|key|pub)|T", word):
            Path(word).touch()
    parsed(
        [LOG if each == LOG else each for each in example.arguments if each != LOG]
        + [str(here.audit) for each in example.arguments if each == LOG]
    )


def test_each_reason_is_of_some_example() -> None:
    for pattern in (*NOT_RUN, *ANSWERS):
        assert any(re.match(pattern, each.text) for each in shell_examples()), pattern
    assert set(RUN_ELSEWHERE) <= {each.where for each in examples.of_documents()}


def test_what_is_no_command_of_ours_is_known() -> None:
    """Other lines for a shell: `make`, whose targets must exist, settings of a server as variables, and
    programs of others, for files that must be there."""
    variables = {variable(key(option)) for option in declared(examples.commands()["serve",])}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for each in examples.of_documents():
        if each.where not in RUN_ELSEWHERE and not each.text.startswith("saegis "):
            program, target = each.text.split()[:2]
            if program.partition("=")[0] in variables:
                assert target == "saegis", each
                continue
            if program in OF_OTHERS:
                files = [word for word in each.text.split() if word.startswith("deploy/")]
                assert files, each
                assert all(any(ROOT.glob(file)) for file in files), each
                continue
            assert program == "make", each
            assert f"\n{target}:" in makefile, each


def printed(program: Path) -> str:
    """What a program of `examples/` prints, in a process of its own."""
    told = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stderr) == (0, ""), told.stderr
    return told.stdout


#: What each program of `examples/` must show, of the reference model without a policy that rules.
SHOWN = {
    "denied.py": r"does not exist: .*feature\.index: the SAE polyglot has features 0 to 4095",
    "many.py": r"0\.8 of its maximum: .*Golden Gate",
    "score.py": r"'.+', token \d",
    "steer.py": r"clamped: .*Golden Gate",
    "stream.py": "tokens, ended by stop",
}


@pytest.mark.parametrize("program", examples.programs(), ids=lambda path: path.name)
def test_a_program_runs(program: Path, here: World) -> None:
    assert re.search(SHOWN[program.name], printed(program))
    assert f"[{program.name}]" in (program.parent / "README.md").read_text(encoding="utf-8")


def test_policies_are_put_listed_and_rolled_back_as_shown(here: World) -> None:
    ruled = [each for each in shell_examples() if why_not(each) == "under a policy, below"]
    assert CliRunner().invoke(app, ("policy", "apply", "deploy/policies/no-harm")).exit_code == 0
    answered, denied = (run(each, here) for each in sorted(ruled, key=lambda each: len(each.arguments)))
    assert (answered.exit_code, denied.exit_code) == (0, 1), answered.output + denied.output
    assert "keep-away-from-harm" in denied.stderr
    assert "that the policy redirects: denied: " in printed(ROOT / "examples/denied.py")
    shown = [
        each for each in shell_examples() if re.match(r"saegis policy (apply|list|hist|roll)", each.text)
    ]
    first = [each for each in shown if "--shadow" not in each.text and "roll-back" not in each.text]
    for each in sorted(first, key=lambda each: ("apply" not in each.text, "dry-run" not in each.text)):
        result = run(each, here)
        assert result.exit_code == 0, result.output
    later = here.folder / "my-candidate"
    sign = ("policy", "sign", str(later), "--key", "policy.key", "--out", "my-policy.tar.gz")
    (here.folder / "my-policy.tar.gz").unlink()
    assert CliRunner().invoke(app, sign).exit_code == 0
    (shadow,) = (each for each in shown if "--shadow" in each.text)
    assert run(shadow, here).exit_code == 0
    with saegis.Client(here.server.target) as client:
        (revision, *_) = client.policy_revisions("no-harm")
    assert CliRunner().invoke(app, ("policy", "apply", str(later))).exit_code == 0
    (back,) = (each for each in shown if "roll-back" in each.text)
    text = back.text.replace("1f0c22aa", revision.digest[:8])
    result = run(Example(back.where, text), here)
    assert result.exit_code == 0, result.output


def python_examples() -> list[Example]:
    return [*examples.blocks("python"), *examples.of_docstrings()]


@pytest.mark.parametrize("example", python_examples(), ids=lambda each: each.where)
def test_python_runs(example: Example, here: World) -> None:
    text = example.text.replace(TARGET, here.server.target).replace(
        "Client()", f"Client({here.server.target!r})"
    )
    text = text.replace(HTTP, f"http://127.0.0.1:{here.server.ready['http_port']}")
    body = "".join(f"    {line}\n" for line in text.splitlines())
    names: dict[str, object] = {name: getattr(saegis, name) for name in saegis.__all__}
    told = StringIO()
    with redirect_stdout(told):
        exec(compile(f"async def main():\n{body}", example.where, "exec"), names)  # noqa: S102 - ours
        asyncio.run(names["main"]())  # type: ignore[operator]
    answer = told.getvalue().splitlines()[0]
    assert repetition(answer) < 0.2, answer
    if "clamp" in text:
        # The examples sample, and the model may go on in any of its languages.
        marks = [mark for words in lexicon().values() for mark in words.subjects[GOLDEN_GATE].marks]
        wanted = ["bread"] if "bread" in text else [mark.rstrip("*") for mark in marks]
        assert any(each in answer for each in wanted), answer


def test_the_lines_for_a_chat_do_what_they_say(here: World) -> None:
    lines = [each.text for each in examples.in_chat()]
    assert {"/clamp 1785=50", "/ban 23=2", "/watch 1785", "/quit"} <= set(lines)
    said = "".join(f"{line}\nHello\n" for line in dict.fromkeys(lines) if line != "/quit") + "/quit\n"
    result = CliRunner().invoke(app, ["chat", "--max-tokens", "2"], input=said)
    assert result.exit_code == 0, result.output
    assert "error" not in result.stderr.lower(), result.stderr
    assert "in force: clamp 1785=50, ban 23=2, watch 1785" in result.stderr


def test_json_in_helps_is_read_by_what_it_is_for(tmp_path: Path) -> None:
    found = {each.text for each in examples.json_of_help()}
    assert len(found) > 4
    for text in found:
        path = tmp_path / "file.json"
        path.write_text(text, encoding="utf-8")
        if text.startswith('{"features"'):
            assert BanFile.load(path).chosen_from == ("en", "zh")
        elif text.startswith('{"feature"'):
            assert ClampFile.load(path).values == (0.0, 1.0, 2.0)
        elif text.startswith('{"prompt"') and '"refusal"' in text:
            assert len(load_examples(path)) == 1
        elif text.startswith('{"prompt"'):
            assert len(load_prompts(path)) == 1
        else:
            assert json.loads(text.replace("{...}", "{}"))


@pytest.mark.parametrize(
    "example",
    [each for each in examples.blocks("yaml") if each.where != OF_SETTINGS],
    ids=lambda each: each.where,
)
def test_yaml_is_a_part_of_a_policy(example: Example) -> None:
    head = yaml.safe_load(BUNDLE.format(name="p", serial=1))
    Policy.model_validate(head | yaml.safe_load(example.text.replace(", ...]", "]")))


def test_commands_that_are_named_in_passing_exist() -> None:
    """Hints, messages and documents: the command is there, and so are the options named behind it."""
    wrong = []
    for each in examples.mentions():
        words, known = [*each.text.split()[1:]], examples.commands()
        path: tuple[str, ...] = ()
        while words and (*path, words[0]) in known:
            path, words = (*path, words[0]), words[1:]
        options = {name for parameter in known[path].params for name in parameter.opts} | {"--help"}
        if not path or any(word.startswith("--") and word not in options for word in words):
            wrong.append(each)
    assert not wrong
