"""Checks of a bundle before it comes in force: signature, serial, fit to the server, conflicts and cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.signing import verify
from saegis_server.policy.decide.cases import CaseResult, run_cases
from saegis_server.policy.decide.compiled import CompiledPolicy, compile_policy
from saegis_server.policy.decide.conflicts import conflicts
from saegis_server.policy.decide.reach import reach, revealed_by_allowances
from saegis_server.policy.decide.world import World
from saegis_server.policy.errors import (
    CasesError,
    ConflictError,
    PolicyError,
    SerialError,
    Unmatched,
    UnmatchedError,
)
from saegis_server.policy.store.history import Standing
from saegis_server.problem import Problem

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CheckedBundle:
    """A bundle that may come in force. signed_by: the id of the key; empty if none is required.

    warnings: probable mistakes in it.
    """

    bundle: Bundle
    compiled: CompiledPolicy
    signed_by: str
    cases: tuple[CaseResult, ...]
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything found about a bundle, whether it is good or not. cases: empty if it does not compile."""

    bundle: Bundle
    signed_by: str
    cases: tuple[CaseResult, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()


class Checker:
    """Checks bundles for a world. keys: those that the operator trusts; if none, bundles need no signature.

    unmatched: what is done with a policy that can match nothing in the world.
    """

    def __init__(
        self,
        world: World,
        keys: Sequence[Ed25519PublicKey] = (),
        unmatched: Unmatched = Unmatched.REFUSE,
    ) -> None:
        self.world = world
        self.keys = tuple(keys)
        self.unmatched = unmatched

    def check(
        self, bundle: Bundle, standing: Standing | None = None, beside: Iterable[CompiledPolicy] = ()
    ) -> CheckedBundle:
        """The bundle, ready to come in force in place of `standing` and `beside` other policies.

        Raises SignatureError, SerialError, CompileError, CasesError, ConflictError or UnmatchedError,
        whichever comes first.
        """
        signed_by, compiled, cases, warnings = self._looked_at(bundle, standing, beside)
        assert compiled is not None  # noqa: S101 - where it is None, an error was raised
        return CheckedBundle(bundle, compiled, signed_by, cases, warnings)

    def examine(
        self,
        bundle: Bundle,
        standing: Standing | None,
        beside: Iterable[CompiledPolicy] = (),
        *,
        tells_callers: bool = True,
    ) -> Examination:
        """Everything that `check` would find, and not only the first problem.

        tells_callers: whether the result may reveal who may call.
        """
        problems: list[Problem] = []
        signed_by, _, cases, warnings = self._looked_at(bundle, standing, beside, problems, tells_callers)
        return Examination(bundle, signed_by, cases, tuple(problems), warnings)

    def _looked_at(
        self,
        bundle: Bundle,
        standing: Standing | None,
        beside: Iterable[CompiledPolicy],
        problems: list[Problem] | None = None,
        tells_callers: bool = True,
    ) -> tuple[str, CompiledPolicy | None, tuple[CaseResult, ...], tuple[Problem, ...]]:
        """Who signed it, what it compiles to, how its cases went, and warnings.

        problems: a list that gathers the problems of all steps; without it the first error is raised.
        """

        def attempt(step: Callable[[], T]) -> T | None:
            try:
                return step()
            except PolicyError as error:
                if problems is None:
                    raise
                problems.extend(error.problems)
                return None

        signed_by = attempt(lambda: self.signed_by(bundle)) or ""
        if standing is not None:
            attempt(lambda: check_serial(bundle, standing))
        compiled = attempt(lambda: compile_policy(bundle, self.world))
        cases = run_cases(compiled) if compiled is not None else ()
        attempt(lambda: _check_cases(bundle, cases))
        if compiled is not None:
            attempt(lambda: check_conflicts(bundle, compiled, beside))
        warnings = attempt(lambda: self._check_reach(bundle, tells_callers)) or ()
        if compiled is not None:
            warnings = (*warnings, *revealed_by_allowances(bundle, compiled))
        return signed_by, compiled, cases, warnings

    def _check_reach(self, bundle: Bundle, tells_callers: bool = True) -> tuple[Problem, ...]:
        """Warnings about names in the match that reach nothing. Raises UnmatchedError if they are refused."""
        ask = self.world.callers if tells_callers else None
        result = reach(bundle, self.world, ask() if ask is not None else None)
        if result.unmatched and self.unmatched is Unmatched.REFUSE:
            raise UnmatchedError(result.unmatched)
        return (*result.unmatched, *result.stray)

    def signed_by(self, bundle: Bundle) -> str:
        """The id of the key that signed it; empty if none is required. Raises SignatureError."""
        return verify(bundle, self.keys) if self.keys else ""


def check_serial(bundle: Bundle, standing: Standing) -> None:
    """Raise SerialError unless the serial is above all taken so far, or the bundle is in place already."""
    serial, highest = bundle.policy.serial, standing.highest
    if serial > highest or bundle.digest in (standing.active, standing.shadow):
        return
    same = standing.of_serial(serial)
    if same is None:
        fault = f"{serial} is a step back from {highest}; give at least {highest + 1}"
    elif same.digest == bundle.digest:
        fault = f"{serial} was taken before; roll back to {bundle.digest[:12]} to have it again"
    else:
        fault = f"{serial} was taken before with other content; give at least {highest + 1}"
    raise SerialError([Problem(fault, "serial", "policy.yaml")])


def check_conflicts(bundle: Bundle, compiled: CompiledPolicy, beside: Iterable[CompiledPolicy]) -> None:
    """Raise ConflictError if the bundle's rules cannot hold beside those of other policies."""
    if problems := list(conflicts(bundle, compiled, beside)):
        raise ConflictError(problems)


def _check_cases(bundle: Bundle, cases: Sequence[CaseResult]) -> None:
    problems = []
    for case in cases:
        source = bundle.case_sources.get(case.name)
        file, line = (source.file, source.line) if source is not None else ("", 0)
        problems += [Problem(failure, f"case {case.name!r}", file, line) for failure in case.failures]
    if problems:
        raise CasesError(problems)
