"""There are at most 1,500 series, as many after a thousand requests as after ten thousand."""

import random

import grpc

import saegis
from saegis.v1 import audit_pb2, feature_pb2, generation_pb2, model_pb2, policy_pb2
from saegis_server.engine.api import FinishReason, RequestFinished
from saegis_server.engine.counts import STRENGTHS, Acted, Fired
from saegis_server.engine.receipts import Receipt, SiteReceipt, Timings, Usage
from saegis_server.telemetry.features import MOST_FEATURES, FeatureName
from saegis_server.telemetry.metrics import Metrics
from saegis_server.telemetry.rules import RuleEffect, RuleName
from saegis_server.telemetry.tenants import MOST_CLASSES, TenantClasses
from tests.rpc import tiny
from tests.rpc.harness import running, send_bytes
from tests.telemetry.scrape import scrape

MOST_SERIES = 1_500
FILES = (audit_pb2, generation_pb2, feature_pb2, model_pb2, policy_pb2)
METHODS = [
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
#: Of what the server says, the statuses that most methods can end with.
CODES = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
SITES = ("layers.0.resid_post", "layers.1.resid_post")


class Traffic:
    """Random requests on metrics that have all the features, rules and classes that there may be."""

    def __init__(self) -> None:
        self.chance = random.Random(1)
        classes = {f"class-{number}": (f"tenant-{number}",) for number in range(MOST_CLASSES)}
        self.metrics = Metrics(TenantClasses(classes))
        self.metrics.show_build(version="1", python="3", torch="2")
        self.metrics.show_model(model="m", dtype="float32", device="cpu")
        names = [FeatureName(SITES[number % 2], "sae", str(number)) for number in range(MOST_FEATURES)]
        others = [FeatureName(site, "sae", "_other") for site in SITES]
        self.metrics.features.show(dict.fromkeys(names, True), others, left_out=7)
        rules = [RuleName(f"p{number % 5}", f"r{number}", "enforce", "ban") for number in range(300)]
        self.metrics.rules.show(dict.fromkeys(rules, True))

    def request(self) -> None:
        """Anybody asks for anything."""
        chance, metrics = self.chance, self.metrics
        tenant = (
            f"tenant-{chance.randrange(10**6)}" if chance.random() < 0.5 else f"tenant-{chance.randrange(9)}"
        )
        metrics.count_rpc(chance.choice(METHODS), chance.choice(CODES), chance.expovariate(1.0))
        site = SiteReceipt(chance.choice(SITES), 1, 2, 3, 4, 5, 6, chance.random())  # type: ignore[arg-type]
        receipt = Receipt("", True, (site,))
        ended = RequestFinished(
            Usage(9, 9, 0, 5), receipt, Timings(0.1, 0.1, 0.1), (FinishReason.STOP,), (9,), 9
        )
        metrics.count_generation(ended, tenant)
        metrics.count_answers([chance.choice(("stop", "cancelled", f"Error{chance.randrange(10**6)}"))])
        feature = FeatureName(chance.choice(SITES), "sae", str(chance.randrange(10**6)))
        fired = Fired(3, (3, 2, 1, 0, 0, 0)[: len(STRENGTHS)], 1.0)
        metrics.features.fired({feature: (fired, fired)}, tenant)
        metrics.features.acted(chance.choice(("banned", "edited")), feature, Acted(1, 2), tenant)
        rule = RuleName(f"p{chance.randrange(9)}", f"r{chance.randrange(10**6)}", "enforce", "ban")
        metrics.rules.count(rule, RuleEffect(1, 1, True), tenant)
        metrics.rules.deny([rule])
        metrics.policy_decisions.labels(f"p{chance.randrange(5)}", "deny", "enforce").inc()
        metrics.observe_sae("sae", chance.choice(SITES), [3.0], [0.2])

    def series(self) -> int:
        """How many there are."""
        return sum(len(family.samples) for family in self.metrics.registry.collect())


def test_random_traffic_makes_no_more_series() -> None:
    traffic = Traffic()
    for _ in range(1_000):
        traffic.request()
    after_a_thousand = traffic.series()
    for _ in range(9_000):
        traffic.request()
    assert after_a_thousand == traffic.series() <= MOST_SERIES


def test_a_server_that_is_asked_for_anything_has_as_many_series_as_before() -> None:
    chance, counts = random.Random(3), []
    with (
        running(watch_features=[f"first:{index}" for index in range(8)]) as server,
        grpc.insecure_channel(server.target) as channel,
        saegis.Client(server.target) as client,
    ):
        for _ in range(2):
            for _ in range(12):
                feature = saegis.feature(
                    chance.randrange(tiny.FEATURES), sae=chance.choice(("first", "second"))
                )
                client.generate("the river", max_tokens=2, steering=[saegis.scale(feature, chance.random())])
            for method in (f"/no.such/Method{chance.randrange(10**6)}", "/saegis.v1.Nothing/AtAll"):
                assert send_bytes(channel, method, b"").code is grpc.StatusCode.UNIMPLEMENTED
            counts.append(len(scrape(server).series))
    assert counts[0] == counts[1] <= MOST_SERIES
