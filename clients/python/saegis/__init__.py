"""Saegis: a client for servers that steer language models through sparse-autoencoder features.

    import saegis

    with saegis.Client("127.0.0.1:50051") as client:
        wall = client.search_features("great wall").features[0]
        answer = client.generate(
            messages=[{"role": "user", "content": "How do I visit the Golden Gate Bridge?"}],
            max_tokens=64,
            temperature=0.0,
            steering=[saegis.clamp(wall, 1.0, unit="max_activation")],
        )
        print(answer.text)
        print(answer.receipt)

`AsyncClient` has the same methods for asyncio. Errors are subclasses of `SaegisError`; the tree is in
`saegis.errors`.
"""

from saegis.async_client import AsyncClient
from saegis.channel import TLS
from saegis.client import Client
from saegis.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InternalError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SaegisError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from saegis.feature_results import (
    Contrast,
    ContrastSide,
    FeatureActivation,
    FeatureContrast,
    FeatureInfo,
    FeaturePage,
    Inspection,
    TokenFeatures,
)
from saegis.model_results import Limits, Load, ModelInfo, SaeInfo, ServerInfo, SiteInfo, TokenizedText
from saegis.policy_results import (
    AppliedRule,
    CaseOutcome,
    Decision,
    Denial,
    Policy,
    PolicyList,
    PolicyProblem,
    PolicyRevision,
    PolicyState,
    RuleMode,
    Validation,
)
from saegis.requests import ChatMessage, GenerationOptions
from saegis.results import (
    Alternative,
    Choice,
    Chunk,
    Final,
    FinishReason,
    Generation,
    LogProbs,
    Outcome,
    Receipt,
    SiteReceipt,
    Timings,
    Usage,
    Watched,
)
from saegis.score_results import Score
from saegis.steering import (
    Direction,
    Edit,
    FeatureRef,
    Operation,
    Phase,
    Target,
    Unit,
    Watch,
    ablate,
    add,
    ban,
    cap,
    clamp,
    direction,
    feature,
    floor,
    scale,
    watch,
)
from saegis.streams import AsyncStream, Stream
from saegis.unreached import Unreached
from saegis.version import __version__

__all__ = [
    "TLS",
    "Aborted",
    "AlreadyExists",
    "Alternative",
    "AppliedRule",
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "CaseOutcome",
    "ChatMessage",
    "Choice",
    "Chunk",
    "Client",
    "Contrast",
    "ContrastSide",
    "DeadlineExceeded",
    "Decision",
    "Denial",
    "Direction",
    "Edit",
    "FailedPrecondition",
    "FeatureActivation",
    "FeatureContrast",
    "FeatureInfo",
    "FeaturePage",
    "FeatureRef",
    "FieldViolation",
    "Final",
    "FinishReason",
    "Generation",
    "GenerationOptions",
    "Inspection",
    "InternalError",
    "InvalidArgument",
    "Limits",
    "Load",
    "LogProbs",
    "ModelInfo",
    "NotFound",
    "Operation",
    "Outcome",
    "PermissionDenied",
    "Phase",
    "Policy",
    "PolicyList",
    "PolicyProblem",
    "PolicyRevision",
    "PolicyState",
    "Receipt",
    "ResourceExhausted",
    "RuleMode",
    "SaeInfo",
    "SaegisError",
    "Score",
    "ServerInfo",
    "SiteInfo",
    "SiteReceipt",
    "Stream",
    "Target",
    "Timings",
    "TokenFeatures",
    "TokenizedText",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unit",
    "Unreached",
    "Usage",
    "Validation",
    "Watch",
    "Watched",
    "__version__",
    "ablate",
    "add",
    "ban",
    "cap",
    "clamp",
    "direction",
    "feature",
    "floor",
    "scale",
    "watch",
]
