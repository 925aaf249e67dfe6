"""PolicyService: which policies are in force, what they decide, and how they change."""

from collections.abc import Iterator, Sequence
from functools import partial

from saegis.v1 import policy_pb2 as pb
from saegis.v1 import policy_pb2_grpc, steering_pb2
from saegis_server.engine.api import FieldError
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.difference import by_entry
from saegis_server.policy.decide.compiled import compile_policy
from saegis_server.policy.decide.decide import PolicySet, revision_of
from saegis_server.policy.decide.decision import Decision, RequestFacts
from saegis_server.policy.decide.disclosure import Audience
from saegis_server.policy.decide.uses import ORDINARY, Use, UseOfRequest, beyond
from saegis_server.policy.errors import PolicyError, UnknownPolicyError
from saegis_server.policy.store.history import FEWEST_DIGITS
from saegis_server.policy.store.store import PolicyStore
from saegis_server.rpc.auth.identity import Identity, current_identity
from saegis_server.rpc.auth.roles import Role, needs, serves
from saegis_server.rpc.services.shared import Context, Servicer, Services
from saegis_server.rpc.wire import convert
from saegis_server.rpc.wire.problems import PreconditionError
from saegis_server.rpc.wire.programs import request_steering

#: Why every method fails on a server without policies.
NO_POLICIES = "NO_POLICIES"


@serves(pb.DESCRIPTOR.services_by_name["PolicyService"])
class PolicyServicer(Servicer, policy_pb2_grpc.PolicyServiceServicer):
    """Shows and changes the policies in force."""

    @needs(Role.INSPECT)
    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.GetPolicyResponse:
        """One policy in force, with its bundle if asked for."""
        _need("name", request.name)
        if request.digest and not request.include_bundle:
            raise FieldError("digest", "is for include_bundle")
        caller = current_identity()
        state, bundle = self._store().get(request.name, caller.audience)
        reads = caller.audience.reads(bundle.policy)
        if request.include_bundle and not reads:
            caller.require(Role.ADMINISTER, field="include_bundle")
        if request.digest:
            archived, audience = self._store().archived, caller.audience
            bundle = await self.services.in_thread(archived, request.name, request.digest, audience)
            if not audience.reads(bundle.policy):
                caller.require(Role.ADMINISTER, field="digest")
        sent = await self.services.in_thread(bundle.archive) if request.include_bundle else b""
        return pb.GetPolicyResponse(policy=convert.state(state, reads), bundle=sent)

    @needs(Role.INSPECT)
    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: Context
    ) -> pb.ListPoliciesResponse:
        """The policies in force that the caller may know."""
        audience = current_identity().audience
        entries = self._store().all_for(audience)
        return pb.ListPoliciesResponse(
            policies=[
                convert.state(entry.state, audience.reads(entry.active.bundle.policy)) for entry in entries
            ],
            policy_revision=revision_of([entry.active.compiled for entry in entries]),
        )

    @needs(Role.INSPECT, large=True)
    async def ValidatePolicy(
        self, request: pb.ValidatePolicyRequest, context: Context
    ) -> pb.ValidatePolicyResponse:
        """The problems that PutPolicy would find in a bundle."""
        _need("bundle", request.bundle)
        audience = current_identity().audience
        return await self.services.in_thread(_validate, self._store(), request.bundle, audience)

    @needs(Role.INSPECT, large=True)
    async def EvaluatePolicy(
        self, request: pb.EvaluatePolicyRequest, context: Context
    ) -> pb.EvaluatePolicyResponse:
        """What would be decided on a request."""
        store, caller = self._store(), current_identity()
        facts = facts_of(request, caller, self.services)
        if request.bundle:
            decision = await self.services.in_thread(_evaluate, store, request.bundle, facts)
        else:
            decision = await self.services.in_thread(store.active.decide, facts)
        return pb.EvaluatePolicyResponse(decision=convert.decided(decision, caller.audience))

    @needs(Role.ADMINISTER, large=True)
    async def PutPolicy(self, request: pb.PutPolicyRequest, context: Context) -> pb.PutPolicyResponse:
        """Put a bundle in force or, as a shadow, beside the revision in force."""
        _need("bundle", request.bundle)
        put = partial(self._store().put, shadow=request.shadow)
        by = current_identity().name
        state = await self.services.in_thread(put, request.bundle, request.etag, by)
        return pb.PutPolicyResponse(policy=convert.state(state))

    @needs(Role.ADMINISTER)
    async def RollBackPolicy(
        self, request: pb.RollBackPolicyRequest, context: Context
    ) -> pb.RollBackPolicyResponse:
        """Put an earlier revision in force again."""
        for field in ("name", "digest", "etag"):
            _need(field, getattr(request, field))
        if len(request.digest) < FEWEST_DIGITS:
            raise FieldError("digest", f"give at least {FEWEST_DIGITS} digits, not {len(request.digest)}")
        roll_back, by = self._store().roll_back, current_identity().name
        state = await self.services.in_thread(roll_back, request.name, request.digest, request.etag, by)
        return pb.RollBackPolicyResponse(policy=convert.state(state))

    @needs(Role.INSPECT)
    async def ListPolicyRevisions(
        self, request: pb.ListPolicyRevisionsRequest, context: Context
    ) -> pb.ListPolicyRevisionsResponse:
        """The revisions that a policy had, newest first."""
        _need("name", request.name)
        state, revisions = self._store().history(request.name, current_identity().audience)
        return pb.ListPolicyRevisionsResponse(
            revisions=[convert.revision(revision, state) for revision in revisions]
        )

    def _store(self) -> PolicyStore:
        store = self.services.policies
        if store is None:
            raise PreconditionError(
                NO_POLICIES,
                "policies",
                "this server governs no requests: start it with saegis serve --policy BUNDLE, or with "
                "--policy-state DIRECTORY to put bundles later",
            )
        return store


def facts_of(request: pb.EvaluatePolicyRequest, caller: Identity, services: Services) -> RequestFacts:
    """What the policies judge of a request. Without a tenant or roles, it has the caller's.

    Raises RoleMissingError if the caller may not ask for others; FieldError and the catalog's errors for
    steering that no request could have.
    """
    if request.tenant not in ("", caller.tenant):
        caller.require(Role.ADMINISTER, field="tenant")
    if not caller.roles.issuperset(request.roles):
        caller.require(Role.ADMINISTER, field="roles")
    message: steering_pb2.Steering = request.steering
    steering = request_steering(message, services.own_targets(), services.engine.capacity)
    steering.require_room(services.engine.capacity)
    return RequestFacts(
        tenant=request.tenant or caller.tenant,
        roles=frozenset(request.roles) or frozenset(map(str, caller.roles)),
        model=services.model.name,
        edits=steering.edits,
        uses=tuple(_uses(request.uses)),
    )


def _uses(messages: Sequence[pb.RequestedUse]) -> Iterator[UseOfRequest]:
    for place, message in enumerate(messages):
        path = f"uses[{place}]"
        if message.word not in list(Use):
            raise FieldError(f"{path}.word", f"{message.word!r} is no use; there are {', '.join(Use)}")
        use, value = Use(message.word), message.value if message.HasField("value") else None
        if (use in ORDINARY) != (value is not None):
            requirement = "must be given" if use in ORDINARY else "takes no value"
            raise FieldError(f"{path}.value", f"{use.value}: {requirement}")
        use_of_request = beyond(use, value, path)
        if use_of_request is not None:
            yield use_of_request


def _validate(store: PolicyStore, archive: bytes, audience: Audience) -> pb.ValidatePolicyResponse:
    try:
        examined = store.examine(Bundle.from_archive(archive), audience)
    except PolicyError as error:
        return pb.ValidatePolicyResponse(problems=map(convert.problem, error.problems))
    policy = examined.bundle.policy
    replaces, changed = _replaced(store, examined.bundle, audience)
    return pb.ValidatePolicyResponse(
        valid=not examined.problems,
        problems=map(convert.problem, examined.problems),
        revision=pb.PolicyRevision(
            name=policy.name,
            serial=policy.serial,
            revision=policy.revision,
            digest=examined.bundle.digest,
            signed_by=examined.signed_by,
        ),
        cases=map(convert.case_outcome, examined.cases),
        warnings=map(convert.problem, examined.warnings),
        replaces=replaces,
        changes=changed,
    )


def _replaced(
    store: PolicyStore, new: Bundle, audience: Audience
) -> tuple[pb.PolicyState | None, pb.PolicyChanges | None]:
    """The policy that the bundle would replace and what it changes, as far as the audience may know."""
    try:
        state, bundle = store.get(new.policy.name, audience)
    except UnknownPolicyError:
        return None, convert.changes(by_entry(None, new))
    replaced = convert.state(state, reads := audience.reads(bundle.policy))
    if not reads:
        return replaced, None
    return replaced, convert.changes(by_entry(bundle, new))


def _evaluate(store: PolicyStore, archive: bytes, facts: RequestFacts) -> Decision:
    """What a bundle alone would decide; its signature and serial do not matter."""
    compiled = compile_policy(Bundle.from_archive(archive), store.world)
    return PolicySet((compiled,)).decide(facts)


def _need(field: str, value: str | bytes) -> None:
    if not value:
        raise FieldError(field, "must be given")
