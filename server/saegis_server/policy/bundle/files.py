"""The files of a bundle as a server takes them: how many, how large, and with its own errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from saegis import bundles
from saegis.bundles import MOST_BYTES, MOST_FILES, POLICY_FILE, belongs
from saegis.policies import PolicyProblem
from saegis_server.policy.errors import BundleError, Problem

#: Most bytes of all YAML files, which are slow to read.
MOST_YAML_BYTES = 512 * 1024


def in_folder(files: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    """The files of one folder, by path, in order."""
    return {path: files[path] for path in sorted(files) if path.startswith(f"{folder}/")}


def check_files(files: Mapping[str, bytes]) -> None:
    """Raise BundleError for a missing policy.yaml, files that do not belong, too many or too large ones."""
    problems = [stray(path) for path in sorted(files) if not belongs(path)]
    if POLICY_FILE not in files:
        problems.append(_told(bundles.MISSING))
    if len(files) > MOST_FILES:
        problems.append(Problem(f"{len(files)} files; a bundle may have {MOST_FILES}"))
    total = sum(map(len, files.values()))
    if total > MOST_BYTES:
        problems.append(Problem(f"{total} bytes; a bundle may have {MOST_BYTES}"))
    texts = sum(len(data) for path, data in files.items() if path.endswith(".yaml"))
    if texts > MOST_YAML_BYTES:
        problems.append(Problem(f"{texts} bytes of YAML; a bundle may have {MOST_YAML_BYTES}"))
    if problems:
        raise BundleError(problems)


def stray(path: str) -> Problem:
    """The problem of a file that does not belong."""
    return _told(bundles.stray(path))


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a bundle's directory by its path inside. Links are not followed.

    Raises BundleError for what is no plain file, does not belong, is too much or cannot be read.
    """
    try:
        return bundles.read_folder(folder)
    except bundles.BundleFilesError as error:
        raise BundleError([_told(each) for each in error.problems]) from error


def _told(problem: PolicyProblem) -> Problem:
    return Problem(problem.message, problem.path, problem.file, problem.line)
