"""The series by feature: a recount of random traffic on a server, and how many there may be."""

import random
from pathlib import Path

import pytest
import torch

from saegis_server.engine.counts import STRENGTHS, Acted, Fired
from saegis_server.telemetry.features import MOST_FEATURES, ROOM, FeatureName, FeatureSeries
from saegis_server.telemetry.tenants import TenantClasses
from tests.rpc import tiny
from tests.rpc.harness import Running, running
from tests.rpc.test_governor import ask, edit, ruled, write
from tests.telemetry.promtool import check_metrics
from tests.telemetry.scrape import Scrape, scrape

RULES = """
rules:
- {id: ban, ban: {features: [{sae: first, indices: [3, 7]}]}}
- {id: seen, mode: audit, when: {if: {feature: {sae: second, index: 2}, above: 0}, over: token}, record: {}}
allow: [{id: any, ops: [clamp], features: [{sae: first, indices: [20, 21]}]}]
limits: {after_bans: true}
"""


def values(server: Running, tokens: list[int], features: list[int]) -> torch.Tensor:
    """What features of the first SAE, at the first site, read at each token but the text's first: float64."""
    loaded = server.services.catalog.sae("first", "")
    x = server.services.engine.capture(tokens).result()[loaded.site].to(torch.float64)
    own, wide = loaded.sae, torch.float64
    assert own.b_enc is not None
    assert own.threshold is not None
    read = (x - own.b_dec.to(wide)) @ own.W_enc.to(wide) + own.b_enc.to(wide)
    value = torch.where(read > own.threshold.to(wide), read.clamp(min=0.0), 0.0)[:, features]
    return value[int(tokens[0] == server.services.engine.first_token.bos) :]


def buckets(found: Scrape, **labels: str) -> list[float]:
    """The buckets of a histogram, cumulated, in the order of their bounds."""
    bounds = [*(f"{bound:g}" for bound in STRENGTHS), "+Inf"]
    named = {
        each["le"]: value for each, value in found.samples("saegis_feature_strength_ratio_bucket", **labels)
    }
    by_bound = {float(bound): value for bound, value in named.items()}
    return [by_bound[float(bound)] for bound in bounds]


def test_watched_features_are_counted_as_a_recount_has_them(tmp_path: Path) -> None:
    """Features 3 and 7 are banned by a rule and 5 is the operator's own; a request edits 20, which nobody
    watches."""
    chance, features = random.Random(2), [3, 5, 7]
    counted = {phase: torch.zeros(3) for phase in ("prompt", "completion")}
    strengths: list[torch.Tensor] = []
    with ruled(
        write(tmp_path, RULES), watch_features=["first:5"], tenant_classes={"own": ("anonymous",)}
    ) as (server, stub):
        for number in range(6):
            text = " ".join(chance.choices(tiny.TEXT.split(), k=chance.randint(1, 12)))
            answer = stub.Generate(ask(text, chance.randint(2, 8), n=1 + number % 2))
            prompt = list(server.services.prompts.text(text))
            left_out = int(prompt[0] == server.services.engine.first_token.bos)
            for place, choice in enumerate(answer.choices):
                value = values(server, [*prompt, *list(choice.token_ids)[:-1]], features)
                at = len(prompt) - left_out
                for phase, part in (("prompt", value[:at]), ("completion", value[at:])):
                    if place == 0 or phase == "completion":
                        counted[phase] += (part > 0.0).sum(0)
                        strengths.append(part[:, 1] / 2.0)
        found = scrape(server)
        stub.Generate(ask("the river", 5, edit(20, 1.0)))
        edited = {"prompt": len(server.services.prompts.text("the river")) - left_out, "completion": 4}
        after = scrape(server)
    for phase, counts in counted.items():
        for place, feature in enumerate(features):
            named = {"sae": "first", "feature": str(feature), "phase": phase}
            assert found.total("saegis_feature_fired_tokens_total", **named) == counts[place]
            banned = 0.0 if feature == 5 else counts[place]
            assert found.total("saegis_feature_banned_tokens_total", **named) == banned
        other = {"sae": "first", "feature": "_other", "phase": phase}
        # A clamp changes the value at every token, unless it was that already.
        assert after.total("saegis_feature_edited_tokens_total", **other) == edited[phase]
        assert found.total("saegis_feature_edited_tokens_total", **other) == 0.0
    # Feature 5 has a recorded maximum of 2.
    every = torch.cat(strengths)
    every = every[every > 0.0]
    together = [
        sum(pair)
        for pair in zip(
            *(buckets(found, feature="5", phase=phase) for phase in ("prompt", "completion")), strict=True
        )
    ]
    assert together == [float((every <= bound).sum()) for bound in (*STRENGTHS, float("inf"))]
    total = found.total("saegis_feature_strength_ratio_sum", feature="5")
    assert total == pytest.approx(float(every.sum()), rel=1e-4)
    assert min(int(counts.min()) for counts in counted.values()) > 0
    # What a condition reads is watched too.
    assert list(found.samples("saegis_feature_fired_tokens_total", sae="second", feature="2"))
    check_metrics(found.text)


def test_a_name_that_means_no_feature_keeps_the_server_from_starting() -> None:
    for name, fault in (
        ("first:999", "has features 0 to 47"),
        ("7", "name one of the"),
        ("first", "SAE:INDEX"),
    ):
        with pytest.raises(ValueError, match=fault), running(watch_features=[name]):
            pass


def series_of(features: int, classes: int) -> FeatureSeries:
    """The series of a set of features, half of them with a maximum, after a lot has happened."""
    tenants = TenantClasses({f"class-{number}": (f"tenant-{number}",) for number in range(classes)})
    made = FeatureSeries(tenants)
    named = {
        FeatureName("layers.0.resid_post", "s", str(number)): number % 2 == 0 for number in range(features)
    }
    made.show(named, [FeatureName("layers.0.resid_post", "s", "_other")], left_out=3)
    fired = Fired(4, (3, 2, 1, 1, 0, 0), 1.25)
    for number in range(2 * features):
        name = FeatureName("layers.0.resid_post", "s", str(number))
        made.fired({name: (fired, fired)}, f"tenant-{number % 9}")
        for event in ("banned", "edited"):
            made.acted(event, name, Acted(1, 2), f"tenant-{number % 9}")
    return made


@pytest.mark.parametrize("features", [0, 1, 20, 70, 140, MOST_FEATURES])
@pytest.mark.parametrize("classes", [0, 1, 8])
def test_sums_are_right_however_little_is_told_apart(features: int, classes: int) -> None:
    samples = [sample for family in series_of(features, classes).collect() for sample in family.samples]
    assert len(samples) <= ROOM

    def total(name: str) -> float:
        return sum(sample.value for sample in samples if sample.name == f"saegis_feature_{name}")

    assert total("fired_tokens_total") == 8 * features
    # Those that are not watched are counted together.
    assert total("banned_tokens_total") == total("edited_tokens_total") == 3 * 2 * features
    with_maximum = (features + 1) // 2
    assert total("strength_ratio_count") == 8 * with_maximum
    assert total("strength_ratio_sum") == 2.5 * with_maximum
    for place, bound in enumerate(("0.1", "0.25", "0.5", "0.75", "1.0", "1.5")):
        at_most = [sample.value for sample in samples if sample.labels.get("le") == f"{float(bound):g}"]
        assert sum(at_most) == 2 * (4 - (3, 2, 1, 1, 0, 0)[place]) * with_maximum


def test_the_series_of_a_replaced_set_go_away_and_those_that_stay_go_on() -> None:
    made = series_of(3, 0)
    stays, comes = (FeatureName("layers.0.resid_post", "s", index) for index in ("1", "9"))
    made.show({stays: False, comes: False}, [stays.rest], left_out=0)
    samples = [sample for family in made.collect() for sample in family.samples]
    fired = [sample for sample in samples if sample.name == "saegis_feature_fired_tokens_total"]
    assert {sample.labels["feature"] for sample in fired} == {"1", "9"}
    assert sum(sample.value for sample in fired if sample.labels["feature"] == "1") == 8.0
    assert sum(sample.value for sample in fired) == 8.0
