"""schemathesis, which makes requests of the OpenAPI description, finds none that the server fails at."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.http.conftest import url_of
from tests.rpc.harness import Running
from tests.tools import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
#: What is tried, how often with each path at most, and how many requests that must be at least. The first
#: takes seconds; the second goes over all of what a field may and may not be.
SIZES = [
    ("fuzzing", 8, 100),
    pytest.param("examples,coverage,fuzzing", 60, 1000, marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("phases", "most", "least"), SIZES, ids=["some", "all"])
def test_no_request_of_the_description_is_the_servers_fault(
    served: Running, phases: str, most: int, least: int, tmp_path: Path
) -> None:
    command = [program("schemathesis"), "run", f"{url_of(served)}/openapi.json", "--seed", "1"]
    command += ["--checks", "not_a_server_error", "--phases", phases, "--max-examples", str(most)]
    # A chat without a bound goes on to the end of the context, two thousand tokens.
    command += ["--request-timeout", "300"]
    command += ["--suppress-health-check", "all", "--generation-database", "none", "--no-color"]
    # The variable of this checkout's packages is not for a program with packages of its own.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # It leaves a folder where it runs.
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    cases = re.search(r"(\d+) generated", told)
    assert cases is not None, told
    assert int(cases[1]) >= least, told
