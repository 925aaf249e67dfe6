"""A server on which bundles are tried: each is put in force in turn, through the public client."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.evaluation.bundle_copies import MEASURED, measured_copy
from saegis_lab.evaluation.requests import Progress
from saegis_server.rpc.server.process import ServerProcess

if TYPE_CHECKING:
    from saegis import Client
    from saegis_server.policy.bundle.bundle import Bundle


@contextmanager
def serving(
    model: Path | str | None,
    saes: Mapping[str, Path],
    progress: Progress,
    options: Sequence[str] = ("--compile", "never"),
) -> Iterator[Client]:
    """A client of a new server that takes policies, for this block.

    model: the reference model where it is None. saes: by the ids that bundles call them by. options: more of
    `saegis serve`. Raises ServerProcessError if the server does not start, or does not stop at the end.
    """
    from saegis import Client

    with tempfile.TemporaryDirectory(prefix="saegis-trial-") as folder:
        state = ["--policy-state", str(Path(folder) / "state")]
        served = [] if model is None else ["--model", str(model)]
        for name, path in saes.items():
            served += ["--sae", f"{name}={path}"]
        with ServerProcess([*served, *state, *options], progress) as server:
            with Client(server.target) as client:
                yield client
            server.stop()


class PolicyTrial:
    """Puts one bundle after another in force on a server that takes policies from this client.

    No other policy may be in force there, since policies add up, and nobody else may change them meanwhile.
    """

    def __init__(self, client: Client) -> None:
        """Raises ValueError where policies are in force; SaegisError if the server takes none."""
        names = [state.active.name for state in client.list_policies().policies]
        others = ", ".join(name for name in names if name != MEASURED)
        if others:
            raise ValueError(f"other policies are in force: {others}; measure on a server of its own")
        self._client = client

    def apply(self, bundle: Bundle | None) -> None:
        """Put a bundle in force as `measured_copy` makes it, or no rules, in place of the one before.

        Raises ValueError for a bundle that cannot be measured, with every problem if the server refuses it;
        SaegisError for a call that fails.
        """
        in_force = {state.active.name: state for state in self._client.list_policies().policies}.get(MEASURED)
        serial = 1 if in_force is None else in_force.active.serial + 1
        archive = measured_copy(bundle, serial).archive()
        validation = self._client.validate_policy(archive)
        if not validation.valid:
            raise ValueError("; ".join(map(str, validation.problems)))
        self._client.put_policy(archive, etag="" if in_force is None else in_force.etag)
