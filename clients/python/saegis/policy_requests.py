"""Writing requests about policies: arguments of the clients become messages of the contract."""

from collections.abc import Mapping, Sequence

from saegis.requests import steering_message
from saegis.steering import Edit
from saegis.v1 import policy_pb2 as pb


def evaluate(
    steering: Sequence[Edit],
    *,
    tenant: str,
    roles: Sequence[str],
    bundle: bytes,
    uses: Mapping[str, float | None],
) -> pb.EvaluatePolicyRequest:
    """The request of `evaluate_policy`. Raises TypeError where one role is given instead of several."""
    if isinstance(roles, str):
        raise TypeError(f"roles: expected several, not the single string {roles!r}")
    request = pb.EvaluatePolicyRequest(tenant=tenant, roles=roles, bundle=bundle)
    for word, value in uses.items():
        request.uses.add(word=word, value=value)
    if steering:
        request.steering.CopyFrom(steering_message(steering))
    return request
