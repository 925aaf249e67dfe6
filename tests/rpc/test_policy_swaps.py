"""Policy swaps under traffic: each answer comes under one revision, which was in force for it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from saegis.v1 import generation_pb2, generation_pb2_grpc, policy_pb2, policy_pb2_grpc, prompt_pb2
from saegis_server.policy.decide.decision import RequestFacts
from saegis_server.rpc.auth.identity import ANONYMOUS
from tests.policy import made
from tests.rpc.harness import Running, running
from tests.tiers import sized

SWAPS, BROKEN_EVERY = sized(1000, 40), sized(50, 20)


def archive(serial: int) -> bytes:
    """A revision whose ban tells its serial: the feature and the strength are its own."""
    return made.archive(serial, target=f"{{sae: first, index: {serial % 40}}}")


@dataclass
class Traffic:
    """Clients that ask all the time, and what came: when each asked and had its answer, and its receipt."""

    target: str
    seen: list[tuple[float, float, generation_pb2.Receipt]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with grpc.insecure_channel(self.target) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            sampling = generation_pb2.SamplingParams(temperature=0.0, max_tokens=3)
            chat = prompt_pb2.Chat(messages=[prompt_pb2.ChatMessage(role="user", content="the river")])
            request = generation_pb2.GenerateRequest(chat=chat, sampling=sampling)
            while not self.over.is_set():
                asked = time.monotonic()
                try:
                    answer = stub.Generate(request)
                except grpc.RpcError as error:
                    self.errors.append(str(error))
                    return
                self.seen.append((asked, time.monotonic(), answer.receipt))


def digest_in_force(server: Running) -> str:
    """The program that a plain request gets now."""
    store = server.services.policies
    assert store is not None
    facts = RequestFacts(ANONYMOUS.tenant, ANONYMOUS.roles, server.services.model.name)
    return store.active.decide(facts).program.digest


@pytest.mark.timeout(900)
def test_swaps_under_traffic(tmp_path: Path) -> None:
    first = tmp_path / "first.tar.gz"
    first.write_bytes(archive(1))
    digests: dict[str, str] = {}
    began: dict[str, float] = {"harm@r1": 0.0}
    ended: dict[str, float] = {}
    with running(max_num_seqs=4, policies={"bundles": [str(first)]}) as server:
        digests["harm@r1"] = digest_in_force(server)
        traffic = Traffic(server.target)
        clients = [threading.Thread(target=traffic.run) for _ in range(3)]
        for client in clients:
            client.start()
        with grpc.insecure_channel(server.target) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            etag = stub.GetPolicy(policy_pb2.GetPolicyRequest(name=made.NAME)).policy.etag
            rejected = 0
            for serial in range(2, SWAPS + 2):
                name, before = f"harm@r{serial}", f"harm@r{serial - 1}"
                began[name] = time.monotonic()
                put = policy_pb2.PutPolicyRequest(bundle=archive(serial), etag=etag)
                etag = stub.PutPolicy(put).policy.etag
                ended[before] = time.monotonic()
                digests[name] = digest_in_force(server)
                if serial % BROKEN_EVERY == 0:
                    for _, make, _ in made.BROKEN:
                        with pytest.raises(grpc.RpcError):
                            stub.PutPolicy(policy_pb2.PutPolicyRequest(bundle=make(serial + 1), etag=etag))
                        rejected += 1
                    told = stub.ListPolicies(policy_pb2.ListPoliciesRequest())
                    assert (told.policy_revision, told.policies[0].etag) == (name, etag)
        traffic.over.set()
        for client in clients:
            client.join()
        failures = server.services.metrics.registry
        counted = sum(
            sample.value
            for metric in failures.collect()
            if metric.name == "saegis_policy_reload_failures"
            for sample in metric.samples
            if sample.name.endswith("_total")
        )
    assert not traffic.errors
    assert counted == rejected == 7 * (SWAPS // BROKEN_EVERY)
    assert len({receipt.policy_revision for _, _, receipt in traffic.seen}) > SWAPS // 20
    for asked, answered, receipt in traffic.seen:
        revision = receipt.policy_revision
        assert receipt.ruled
        assert receipt.sites[0].bans == 1
        assert receipt.program_digest == digests[revision], "mixed with another revision"
        assert began[revision] <= answered
        assert asked <= ended.get(revision, answered), "it was out of force before it was asked"
