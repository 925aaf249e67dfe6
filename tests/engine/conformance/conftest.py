"""The engines that are held to the suite; another one is an entry here, and nothing else."""

from typing import cast

import pytest
from transformers import PreTrainedModel

from saegis_server.engine.api import FirstToken, Limits
from tests.engine import tiny
from tests.engine.serving import Asked, Serving


def embedded(
    model: PreTrainedModel,
    max_running: int = 8,
    limits: Limits | None = None,
    first_token: FirstToken | None = None,
    eos: int = tiny.EOS,
) -> Asked:
    """The embedded engine, eagerly."""
    step = tiny.step(model, slots=max(2, max_running))
    return tiny.RunningEngine(step, max_running, limits, first_token, eos)


ENGINES: dict[str, Serving] = {"torch": embedded}


@pytest.fixture(params=tuple(ENGINES.values()), ids=tuple(ENGINES))
def serving(request: pytest.FixtureRequest) -> Serving:
    """Makes an engine, each of those there are in turn."""
    return cast(Serving, request.param)
