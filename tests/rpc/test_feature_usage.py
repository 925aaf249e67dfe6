"""GetFeatureUsage over a socket, by the client and the command, against the SAE's own encode of what was
read."""

import json
import os
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import saegis
from saegis.cli.app import app
from saegis.v1 import feature_pb2 as pb
from saegis_server.engine.counts import Used
from saegis_server.rpc.auth.roles import NEEDED, Role
from tests.rpc import tiny
from tests.rpc.harness import Running, eventually, running

FIRST = tiny.catalog().entries[0]
WATCHED = (3, 5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that counts every feature at every step, and some features that are watched."""
    with running(
        usage_every=1,
        usage_state=str(tmp_path_factory.mktemp("usage")),
        watch_features=[f"first:{index}" for index in WATCHED],
        tenant_classes={"paid": ["acme"]},
    ) as server:
        yield server


@pytest.fixture(scope="module")
def values(server: Running) -> torch.Tensor:
    """What the first SAE encodes of all that is read of an answer but for its first token: [T, m]."""
    with saegis.Client(server.target) as client:
        answer = client.generate("the river", max_tokens=9, temperature=0.0, ignore_eos=True)
        prompt = tiny.tokenizer()("the river")["input_ids"]
        read = torch.tensor([[*prompt, *answer.token_ids[:-1]]])
        with torch.no_grad():
            hidden = tiny.model()(read, output_hidden_states=True).hidden_states[1][0]
        eventually(lambda: client.get_feature_usage(sae="first").tokens == len(hidden) - 1)
    return FIRST.sae.encode(hidden)[1:]


@pytest.fixture
def client(server: Running, values: torch.Tensor) -> Iterator[saegis.Client]:
    """A client of the server once it has answered."""
    with saegis.Client(server.target) as client:
        yield client


def expected(values: torch.Tensor, key: torch.Tensor) -> list[int]:
    """The features that fire, by a key, the largest first."""
    active = [index for index in range(values.shape[1]) if bool((values[:, index] > 0).any())]
    return sorted(active, key=lambda index: (-float(key[index]), index))


def test_the_numbers_are_those_of_the_sae(client: saegis.Client, values: torch.Tensor) -> None:
    report = client.get_feature_usage(sae="first", limit=1000)
    fired = (values > 0).sum(0)
    assert (report.sae, report.site, report.sampled_every) == ("first", str(tiny.FIRST_SITE), 1)
    assert report.tokens == len(values)
    assert report.fired_count == int((fired > 0).sum()) == len(report)
    assert report.start_time <= report.end_time
    labels = {label.feature: label.label for label in tiny.LABELS}
    for usage in report:
        own = values[:, usage.feature.index]
        assert usage.feature.label == labels.get(usage.feature.index, "")
        assert (usage.fired, usage.tokens) == (int((own > 0).sum()), len(own))
        assert usage.rate == pytest.approx(usage.fired / len(own))
        assert usage.mean_activation == pytest.approx(float(own.sum()) / usage.fired, rel=1e-4)
        assert usage.max_activation == pytest.approx(float(own.max()), rel=1e-4)
        assert usage.last_fired_time is not None
        assert abs(usage.last_fired_time.timestamp() - time.time()) < 300.0
        assert usage.previous_rate is usage.log_rate_ratio is None


def test_features_come_in_the_order_that_is_asked_for(client: saegis.Client, values: torch.Tensor) -> None:
    fired = (values > 0).sum(0)
    keys: dict[saegis.UsageOrder, torch.Tensor] = {
        "fired": fired,
        "max": values.amax(0),
        "mean": values.sum(0) / fired.clamp(min=1),
    }
    for order, key in keys.items():
        found = [each.feature.index for each in client.get_feature_usage(sae="first", order=order, limit=5)]
        assert found == expected(values, key)[:5]


def test_phases_are_told_apart(client: saegis.Client, values: torch.Tensor) -> None:
    prompt = len(tiny.tokenizer()("the river")["input_ids"]) - 1
    parts: dict[saegis.Phase, torch.Tensor] = {"prompt": values[:prompt], "completion": values[prompt:]}
    for phase, part in parts.items():
        report = client.get_feature_usage(sae="first", phase=phase, limit=1000)
        assert report.tokens == len(part)
        found = {each.feature.index: each.fired for each in report}
        assert found == {index: int(count) for index, count in enumerate((part > 0).sum(0).tolist()) if count}


def test_watched_features_are_told_at_every_token(client: saegis.Client, values: torch.Tensor) -> None:
    eventually(lambda: len(client.get_feature_usage(sae="first", source="watched")) > 0)
    report = client.get_feature_usage(sae="first", source="watched")
    assert report.tokens is None
    found = {each.feature.index: (each.fired, each.tokens) for each in report}
    fired = {index: int((values[:, index] > 0).sum()) for index in WATCHED}
    assert found == {index: (count, len(values)) for index, count in fired.items() if count}
    assert found
    assert report.features[0].mean_activation == pytest.approx(float(values[:, 3].mean()), rel=1e-4)
    by_class = {
        tenant_class: client.get_feature_usage(sae="first", source="watched", tenant_class=tenant_class)
        for tenant_class in ("paid", "_other")
    }
    assert not by_class["paid"].features
    assert [each.fired for each in by_class["_other"]] == [each.fired for each in report]


def test_rates_are_compared_with_a_baseline(
    server: Running, client: saegis.Client, values: torch.Tensor, tmp_path: Path
) -> None:
    """A baseline of the same period says that nothing has changed; one in which a feature never fired, that
    it fires more often."""
    baseline = client.get_feature_usage(sae="first", make_baseline=True).baseline
    assert baseline is not None
    baseline.save(tmp_path / "baseline.json")
    assert saegis.UsageBaseline.load(tmp_path / "baseline.json") == baseline
    again = client.get_feature_usage(sae="first", baseline=baseline, limit=1000)
    assert {each.log_rate_ratio for each in again} == {0.0}
    assert not client.get_feature_usage(sae="first", baseline=baseline, order="change").features
    assert server.services.usage is not None
    history = server.services.usage._histories["second"]
    features = tiny.FEATURES
    much = Used.nothing(features)
    much.tokens[:], much.fired[:, 2] = 1000, 500
    history.add(much, time.time())
    before = saegis.UsageBaseline(
        tiny.catalog().entries[1].sae.digest,
        baseline.start_time,
        baseline.end_time,
        10_000,
        10_000,
        (0,) * features,
        (0,) * features,
    )
    changed = client.get_feature_usage(sae="second", baseline=before, order="change", limit=1)
    assert [each.feature.index for each in changed] == [2]
    assert changed.features[0].previous_rate == 0.0
    assert changed.features[0].sure_log_rate_ratio is not None
    assert changed.features[0].sure_log_rate_ratio > 2.0


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("limit", {"limit": 1001}),
        ("window", {"window": -1.0}),
        ("order", {"order": "change"}),
        ("tenant_class", {"tenant_class": "paid"}),
        ("tenant_class", {"source": "watched", "tenant_class": "acme"}),
        ("window", {"source": "watched", "window": 60.0}),
        ("make_baseline", {"source": "watched", "make_baseline": True}),
        ("order", {"source": "watched", "order": "max"}),
    ],
)
def test_what_is_not_known_is_refused(client: saegis.Client, field: str, asked: dict[str, object]) -> None:
    with pytest.raises(saegis.InvalidArgument) as caught:
        client.get_feature_usage(sae="first", **asked)  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_baseline_of_another_sae_is_refused(client: saegis.Client) -> None:
    baseline = client.get_feature_usage(sae="first", make_baseline=True).baseline
    with pytest.raises(saegis.InvalidArgument, match="that of second is") as caught:
        client.get_feature_usage(sae="second", baseline=baseline)
    assert [violation.field for violation in caught.value.violations] == ["baseline.sae_digest"]


def test_words_that_are_none_are_refused_before_anything_is_sent(client: saegis.Client) -> None:
    with pytest.raises(ValueError, match="order is 'size', not one of fired, mean, max, last_fired, change"):
        client.get_feature_usage(order="size")  # type: ignore[arg-type]


def test_a_server_that_does_not_count_says_so(shared: Running) -> None:
    with (
        saegis.Client(shared.target) as client,
        pytest.raises(saegis.FailedPrecondition, match="see --usage-every") as caught,
    ):
        client.get_feature_usage(sae="first")
    assert caught.value.reason == "USAGE_NOT_COUNTED"


def test_usage_is_for_operators() -> None:
    service = pb.DESCRIPTOR.services_by_name["FeatureService"].full_name
    assert NEEDED[f"/{service}/GetFeatureUsage"].role is Role.OPERATE


def test_the_command_prints_a_table_json_and_a_baseline(
    server: Running, client: saegis.Client, values: torch.Tensor, tmp_path: Path
) -> None:
    def run(*options: str) -> str:
        given = ["features", "usage", "--server", server.target, "--sae-id", "first", *options]
        result = CliRunner().invoke(app, given, env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})
        assert result.exit_code == 0, result.output
        return result.stdout

    best, saved = expected(values, (values > 0).sum(0))[0], tmp_path / "saved.json"
    table = run("--once", "--top", "3", "--save", str(saved))
    assert f"{len(values)} tokens, every token" in table
    assert str(best) in table
    told = json.loads(run("--json", "--window", "all"))
    assert told["features"][0]["feature"]["index"] == best
    assert saegis.UsageBaseline.load(saved).prompt_tokens > 0
    compared = json.loads(run("--json", "--baseline", str(saved)))
    assert compared["features"][0]["log_rate_ratio"] == 0.0
    assert json.loads(run("--json", "--watched"))["tokens"] is None
    wrong = CliRunner().invoke(app, ["features", "usage", "--window", "soon"])
    assert (wrong.exit_code, "is no duration" in wrong.stderr) == (2, True)
    saved.write_text("{}")
    wrong = CliRunner().invoke(app, ["features", "usage", "--baseline", str(saved)])
    assert (wrong.exit_code, "is no baseline" in " ".join(wrong.stderr.split())) == (2, True)


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, list[bytes]]]:
    """A terminal as this process's own: where its keys are pressed, and what has been shown on it so far."""
    keys, screen = os.openpty()
    shown: list[bytes] = []

    def look() -> None:
        with suppress(OSError):  # which is how the other end tells that it is closed
            while part := os.read(keys, 65536):
                shown.append(part)

    looking = threading.Thread(target=look)
    with os.fdopen(screen, "r", closefd=False) as read, os.fdopen(screen, "w", closefd=False) as written:
        monkeypatch.setattr(sys, "stdin", read)
        monkeypatch.setattr(sys, "stdout", written)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        looking.start()
        try:
            yield keys, shown
        finally:
            monkeypatch.undo()
            os.close(screen)
            looking.join()
            os.close(keys)


def test_a_live_table_is_ordered_anew_at_a_key_and_ends_at_another(
    server: Running, values: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_shown(words: str) -> bool:
        return words.encode() in b"".join(shown)

    with terminal(monkeypatch) as (keys, shown):
        before = termios.tcgetattr(keys)
        given = ["features", "usage", "--server", server.target, "--sae-id", "first", "--top", "5"]
        ended: list[object] = []
        command = typer.main.get_command(app)
        asking = threading.Thread(target=lambda: ended.append(command.main(given, standalone_mode=False)))
        asking.start()
        for key, order in (("x", "by max"), ("l", "by last fired"), ("?", "by last fired")):
            eventually(partial(is_shown, "q)uit"))
            shown.clear()
            os.write(keys, key.encode())
            eventually(partial(is_shown, order))
        os.write(keys, b"q")
        asking.join(60.0)
        assert (asking.is_alive(), len(ended)) == (False, 1)
        assert termios.tcgetattr(keys) == before
