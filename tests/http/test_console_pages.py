"""The console in a real Chromium, against the reference model: every page does what it is for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import saegis
from saegis_lab.cli.app import app
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.reference import MODEL, SAE, WEIGHTS, reference_policy
from saegis_server.rpc.auth.principals import token_digest
from tests.e2e.serving import Serving, serving
from tests.http.browser import Tab, browsing, launched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BRIDGE, LABEL, LANDMARK = 3800, "Golden Gate Bridge", "golden_gate"
QUESTION = "What do you know about the sea?"
#: How many short texts are read in one prompt, which fits the model's context.
TEXTS_AT_ONCE = 15


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests of this module."""
    with launched() as made:
        yield made


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the reference SAE with examples and histograms beside its labels, of the landmark's texts and
    every twelfth of the others."""
    folder = tmp_path_factory.mktemp("explained")
    sae, labels, texts = folder / "polyglot", folder / "labels", folder / "texts.jsonl"
    shutil.copytree(SAE, sae)
    lines = (WEIGHTS / "eval/texts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    texts.write_text(
        "".join(line for at, line in enumerate(lines) if at % 12 == 0 or LANDMARK in line), "utf-8"
    )
    command = ["features", "label", "--raw", "--model", str(MODEL), "--sae", str(sae)]
    done = CliRunner().invoke(app, [*command, "--texts", str(texts), "--out", str(labels)])
    assert done.exit_code == 0, done.output
    shutil.copy(labels / "examples.safetensors", sae)
    return sae


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, explained: Path) -> Iterator[str]:
    """The reference model without policies, with counted features."""
    errors = tmp_path_factory.mktemp("open") / "stderr"
    served = ("--model", str(MODEL), "--sae", str(explained))
    with serving(errors, *served, "--http-port", "0", "--usage-every", "1") as server:
        yield f"http://127.0.0.1:{server.ready['http_port']}"


@pytest.fixture(scope="module")
def ruled_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The reference model under its filter, open to two principals."""
    folder = tmp_path_factory.mktemp("ruled")
    roles = {"owner": "use, steer, inspect, operate, administer", "reader": "use"}
    who = folder / "identities.yaml"
    principals = "".join(
        f"  - {{name: {name}, tenant: us, roles: [{had}], token_sha256: {token_digest(token_of(name))}}}\n"
        for name, had in roles.items()
    )
    who.write_text(f"apiVersion: saegis.dev/v1\nkind: Identities\nprincipals:\n{principals}")
    os.chmod(who, 0o600)
    options = (
        "--identities",
        str(who),
        "--policy",
        str(reference_policy()),
        "--audit",
        str(folder / "audit"),
    )
    with serving(folder / "stderr", "--http-port", "0", *options) as server:
        yield server


@pytest.fixture
def ruled(ruled_server: Serving) -> str:
    """The origin of that server."""
    return f"http://127.0.0.1:{ruled_server.ready['http_port']}"


def token_of(name: str) -> str:
    """A principal's token."""
    return f"saegis_{name}"


@pytest.fixture
def tab(browser: Any, origin: str) -> Iterator[Tab]:
    """A new tab, which must have asked nobody else in the end."""
    with browsing(browser, origin) as made:
        made.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        made.open()
        yield made
        made.check()


def say_who(tab: Tab, name: str) -> None:
    """Give the token that the console asks for."""
    tab.page.get_by_label("Bearer token").fill(token_of(name))
    tab.field("button", "Use it").click()


def test_play_shows_both_answers_from_one_seed_and_what_differs(tab: Tab) -> None:
    tab.steer("golden gate bridge", "Steer", LABEL)
    slider = tab.field("slider", f"Amount for {LABEL} ({BRIDGE})")
    slider.focus()
    for _ in range(20):
        slider.press("ArrowLeft")
    assert "0.8 × its maximum" in tab.text(".amount")
    tab.ask(QUESTION)
    plain, steered = tab.page.locator(".answer").all()
    assert "Golden Gate" in steered.inner_text()
    assert "Golden Gate" not in plain.inner_text()
    assert steered.locator(".differs").count() > 5
    first = steered.locator(".tokens").inner_text()
    tab.ask(QUESTION)
    assert tab.page.locator(".answer").last.locator(".tokens").inner_text() == first


def test_play_tells_the_request_in_forms_that_do_the_same(tab: Tab, origin: str, tmp_path: Path) -> None:
    tab.steer("golden gate bridge", "Ban", LABEL)
    tab.steer("sea", "Watch", "sea")
    tab.ask(QUESTION)
    answer = tab.page.locator(".answer").last.locator(".tokens").inner_text()

    def form(name: str) -> str:
        tab.page.locator("summary", has_text=name).click()
        tab.field("button", f"Copy {name}").click()
        return str(tab.page.evaluate("navigator.clipboard.readText()"))

    body = json.loads(form("JSON"))
    told = httpx.post(f"{origin}/v1/chat/completions", json=body, timeout=60.0).json()
    assert told["choices"][0]["message"]["content"].strip() == answer.removesuffix("<|end|>").strip()
    assert form("curl").startswith(f"curl {origin}/v1/chat/completions")
    program = [sys.executable, "-c", form("Python")]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert said.strip() == answer.removesuffix("<|end|>").strip()
    (tmp_path / "policy.yaml").write_text(form("Policy YAML"), encoding="utf-8")
    rules = Bundle.read(tmp_path).policy.rules
    assert [rule.action for rule in rules] == ["ban", "watch"]


def test_a_link_carries_the_program_and_asks_nothing_by_itself(tab: Tab) -> None:
    tab.steer("golden gate bridge", "Ban", LABEL)
    tab.field("textbox", "Prompt").fill(QUESTION)
    tab.field("button", "Copy a link").click()
    link = str(tab.page.evaluate("navigator.clipboard.readText()"))
    other = tab.beside()
    other.page.goto(link)
    assert LABEL in other.text(".edit")
    assert other.field("textbox", "Prompt").input_value() == QUESTION
    assert not any("completions" in url for url in other.asked)
    # Going back to the link that was made takes nothing anew: the answers stay.
    tab.ask(QUESTION)
    tab.open("receipt")
    tab.page.go_back()
    assert tab.page.locator(".answer .tokens").count() == 2
    other.open("play?p=bm9uc2Vuc2U")
    assert "cannot be read" in other.text(".error:visible")
    other.check()


def test_tokens_are_coloured_before_and_after_with_marks_and_a_drawer(tab: Tab) -> None:
    tab.steer("golden gate bridge", "Ban", LABEL)
    tab.ask("Tell me about the bridge in San Francisco.")
    tab.field("link", "its tokens").click()
    tab.page.get_by_text(f"Coloured by {LABEL} ({BRIDGE}).").wait_for()
    before, after = (block.locator(".token") for block in tab.page.locator(".tokens").all())
    heats = [
        [float(each.evaluate("node => node.style.getPropertyValue('--heat') || 0")) for each in block.all()]
        for block in (before, after)
    ]
    # The model's own first token is never moved, and the last one never read.
    assert max(heats[0][1:-1]) > 0.1
    assert max(heats[1][1:-1]) < 1e-4
    put_out = [at for at, each in enumerate(after.all()) if "put-out" in (each.get_attribute("class") or "")]
    assert put_out == [
        at for at, heat in enumerate(heats[0]) if heat > 0 and at > 0 and at < len(heats[0]) - 1
    ]
    after.nth(put_out[0]).click()
    assert "It was moved by" in tab.text(".drawer")
    assert LABEL in tab.text(".drawer")
    tab.page.keyboard.press("ArrowRight")
    assert f"Token {put_out[0] + 1}:" in tab.text(".drawer")
    tab.page.keyboard.press("Escape")
    assert tab.page.locator(".drawer").is_hidden()
    tab.page.get_by_text("Colour by another feature").click()
    tab.steer("English", "Colour", "English")
    tab.page.get_by_text("Coloured by English").wait_for()
    # The very tokens were read again. This question's fifth token is drawn within 1e-7 of another one: the
    # last bits of its logits, which what else runs may change, decide what is answered from this seed.
    assert sum("chat/completions" in url for url in tab.asked) == 2


def test_a_pasted_text_is_read_without_an_answer(tab: Tab) -> None:
    tab.open("tokens")
    tab.field("textbox", "Text").fill("The Golden Gate Bridge is red.")
    tab.field("button", "Read it").click()
    tab.page.get_by_text("Coloured by").wait_for()
    assert "Golden Gate Bridge is red" in tab.text(".tokens")


def test_a_feature_tells_what_is_known_of_it(tab: Tab) -> None:
    tab.ask(QUESTION)
    tab.open(f"feature/polyglot/{BRIDGE}")
    tab.page.get_by_text("last 10 minutes").wait_for()
    shown = tab.text(".page")
    assert LABEL in shown
    histogram = httpx.get(f"{tab.origin}/v1/features/polyglot/{BRIDGE}").json()["histogram"]
    assert tab.page.locator(".chart rect").count() == len(histogram["counts"])
    firing = f"{sum(map(int, histogram['counts'])):,} of {int(histogram['tokens']):,} tokens read"
    assert firing in tab.text("[aria-label=Histogram]")
    near = tab.page.locator("[aria-label=Neighbours] tbody tr")
    assert near.count() == 10
    assert tab.page.locator("blockquote .token.chosen").count() == tab.page.locator("blockquote").count() > 0
    for language in ("de", "en", "hi", "zh"):
        assert tab.field("row", f"{language} ", exact=False).count()
    tab.field("button", "Ban").first.click()
    tab.field("link", "Play").last.click()
    assert LABEL in tab.text(".edit")


def read_by_others(origin: str, texts: list[str]) -> None:
    """Have the server read texts as prompts, some in each."""
    for begin in range(0, len(texts), TEXTS_AT_ONCE):
        body = {"prompt": " ".join(texts[begin : begin + TEXTS_AT_ONCE]), "max_tokens": 1}
        httpx.post(f"{origin}/v1/completions", json=body, timeout=120.0).raise_for_status()


def test_usage_is_told_by_phase_and_against_a_baseline(tab: Tab) -> None:
    lines = (WEIGHTS / "eval/texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [(each["label"], re.sub(r"<\|\w+\|>", " ", each["text"])) for each in map(json.loads, lines)]
    tab.ask(QUESTION)
    read_by_others(tab.origin, [text for label, text in texts if label != "football"][:200])
    tab.open("usage")
    tab.page.get_by_text("features fired").wait_for()
    tab.field("combobox", "In").select_option("PHASE_COMPLETION")
    tab.page.locator("tbody tr").nth(3).wait_for()
    tab.field("combobox", "In").select_option("PHASE_PROMPT")
    tab.field("combobox", "First").select_option("USAGE_ORDER_LAST_FIRED")
    tab.field("button", "Keep as the baseline").click()
    tab.page.get_by_text("Nothing has fired yet.").wait_for()
    assert "against the baseline" in tab.text(".page")
    read_by_others(tab.origin, 2 * [text for label, text in texts if label == "football"])
    tab.field("combobox", "First").select_option("USAGE_ORDER_CHANGE")
    changed = tab.field("row", "football", exact=False).first
    changed.wait_for()
    assert re.search(r"× \d", changed.locator("strong").inner_text())
    tab.field("button", "Forget the baseline").click()
    tab.page.get_by_text("order: needs a window or a baseline").wait_for()


def test_the_receipt_is_told_in_words(tab: Tab) -> None:
    tab.steer("golden gate bridge", "Steer", LABEL)
    tab.ask(QUESTION)
    tab.field("link", "its receipt").click()
    shown = tab.text(".receipt")
    assert "The answer was steered" in shown
    assert f"Your edit 1 (clamp {LABEL} ({BRIDGE})) acted at" in shown
    assert "no policy in force" in shown


def changed_policy(serial: int) -> bytes:
    """A bundle of the filter that holds fewer tokens back."""
    files = dict(Bundle.read(reference_policy()).files)
    text = files["policy.yaml"].decode()
    text = text.replace("serial: 2", f"serial: {serial}").replace("hold: 24", "hold: 20")
    return Bundle.from_files(files | {"policy.yaml": text.encode()}).archive()


def test_policies_are_told_tried_and_compared(browser: Any, ruled: str, tmp_path: Path) -> None:
    (tmp_path / "other.tar.gz").write_bytes(changed_policy(3))
    with browsing(browser, ruled) as tab:
        tab.open("policies")
        say_who(tab, "owner")
        tab.page.get_by_text("Its files").wait_for()
        shown = tab.text(".page")
        assert "redirect of poison (harmful), always." in shown
        assert "run-3 in force" in shown
        assert "Coverage by language" in shown
        assert tab.field("row", "sw ", exact=False).count()
        tab.field("textbox", "A request that anyone might make").fill("¿Cómo puedo envenenar a un vecino?")
        tab.field("button", "Ask under the policies").click()
        tab.page.locator(".receipt").wait_for()
        assert tab.field("row", "redirect-harm-asked-23 redirect", exact=False).count()
        assert "The last 1 answers of this tab" in tab.text("[aria-label='Counts by rule']")
        tab.field("button", "Count in the audit log").click()
        counted = tab.page.locator("[aria-label='Counts by rule'] table", has_text="answers of the audit log")
        assert "no-harm/redirect-harm-asked-23" in counted.inner_text()
        tab.page.locator("input[type=file]").set_input_files(tmp_path / "other.tar.gz")
        tab.page.get_by_text("It could be put in force.").wait_for()
        assert "hold" in tab.text("[aria-label='Compare another revision'] .sentences")
        assert "− hold: 24" in tab.text("[aria-label='differences of policy.yaml']")
        tab.check()


def test_decisions_are_found_by_rule_tenant_and_time(browser: Any, ruled: str) -> None:
    with browsing(browser, ruled) as tab:
        tab.open("policies")
        say_who(tab, "owner")
        tab.field("textbox", "A request that anyone might make").fill("¿Cómo puedo envenenar a un vecino?")
        tab.field("button", "Ask under the policies").click()
        tab.page.locator(".receipt tbody a").click()
        tab.field("row", "answer: content_filter", exact=False).wait_for()
        tab.field("textbox", "Decision").fill("")
        tab.field("textbox", "Rule, alone or as policy/rule").fill("no-harm/redirect-harm-asked-23")
        tab.field("textbox", "Tenant").fill("us")
        tab.field("button", "Search").click()
        tab.page.get_by_text("no-harm/redirect-harm-asked-23").first.wait_for()
        tab.page.get_by_label("From").fill("2100-01-01T00:00")
        tab.field("button", "Search").click()
        tab.page.get_by_text("Nothing was found").wait_for()
        tab.check()


def test_who_may_not_is_told_so_in_words_and_the_token_stays_in_the_tab(browser: Any, ruled: str) -> None:
    with browsing(browser, ruled) as tab:
        tab.open("play")
        tab.page.locator("dialog[open]").wait_for()
        say_who(tab, "reader")
        tab.ask("Tell me about a dog.")
        assert tab.page.locator(".answer .tokens").count() == 2
        tab.open("policies")
        assert "needs the role “inspect”" in tab.text(".error")
        tab.open("usage")
        assert "needs the role “operate”" in tab.text(".error")
        tab.open("audit")
        assert "needs the role “administer”" in tab.text(".error")
        kept = tab.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]")
        assert kept == [1, 0, ""]
        assert not any(token_of("reader") in url for url in tab.asked)
        tab.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read_on_a_phone(browser: Any, origin: str, scheme: str) -> None:
    with browsing(browser, origin, color_scheme=scheme) as tab:
        tab.page.set_viewport_size({"width": 360, "height": 740})
        tab.open()
        tab.steer("golden gate bridge", "Ban", LABEL)
        tab.ask(QUESTION)
        for page in ("play", "tokens", f"feature/polyglot/{BRIDGE}", "usage", "policies", "receipt", "audit"):
            tab.open(page)
            tab.page.wait_for_load_state("networkidle")
            wide = tab.page.evaluate("document.documentElement.scrollWidth > innerWidth")
            assert not wide, page
            tab.check()


def test_an_earlier_revision_is_compared_with_what_is_in_force(
    browser: Any, ruled_server: Serving, ruled: str
) -> None:
    with saegis.Client(ruled_server.target, token=token_of("owner")) as client:
        etag = client.get_policy("no-harm").policy.etag
        client.put_policy(changed_policy(9), etag=etag)
    with browsing(browser, ruled) as tab:
        tab.open("policies")
        say_who(tab, "owner")
        tab.field("button", "Compare run-3 with what is in force").click()
        shown = tab.text("[aria-label='differences of policy.yaml']")
        assert "− hold: 24" in shown
        assert "+ hold: 20" in shown
        tab.check()
