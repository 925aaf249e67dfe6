"""The part of the configuration that is about policies: bundles, where they survive a restart, and keys."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from saegis_server.policy.errors import Unmatched


class PolicySettings(BaseModel):
    """Which policies govern requests. With it, a request that no policy matches is denied.

    bundles: directories or tar files to put in force at the start. state: the directory where the policies in
    force and their history are kept; without it those that PutPolicy brought end with the server. keys: PEM
    files of public keys, one of which must have signed a bundle; without any, bundles need no signature.
    unmatched: whether a policy that can match no model, tenant or role of this server is refused, also at the
    start, or only warned about.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundles: tuple[Path, ...] = ()
    state: Path | None = None
    keys: tuple[Path, ...] = ()
    unmatched: Unmatched = Unmatched.REFUSE
