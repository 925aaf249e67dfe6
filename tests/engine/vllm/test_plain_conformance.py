"""What every engine must do, asked of that of vLLM with a plain core in its place; at night, as it is long.

The suite itself runs on vLLM in the environment that has it: `make test-vllm`.
"""

from importlib import import_module
from pathlib import Path

import pytest

from tests.engine import conformance
from tests.engine.on_plain_core import on_plain_core
from tests.engine.serving import Serving

pytestmark = pytest.mark.nightly
#: Tests of what vLLM's own code does, or of a model whose code the plain core does not call.
NOT_RUN: set[str] = set()


@pytest.fixture
def serving() -> Serving:
    """Makes the engine."""
    return on_plain_core


def _suite() -> dict[str, object]:
    """The tests of the suite, by names of their own."""
    found: dict[str, object] = {}
    for file in sorted(Path(conformance.__file__).parent.glob("test_*.py")):
        module = import_module(f"{conformance.__name__}.{file.stem}")
        for name, value in vars(module).items():
            if name.startswith("test_") and callable(value) and name not in NOT_RUN:
                found[f"{name}_of_{file.stem.removeprefix('test_')}"] = value
    return found


globals().update(_suite())
