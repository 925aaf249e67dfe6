"""Bundles: a policy as its author hands it over, with cases and directions, read and checked as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self, TypeVar

from torch import Tensor

from saegis.bundles import (
    CALIBRATION_FILE,
    DIRECTIONS,
    POLICY_FILE,
    RULES,
    SIGNATURE_FILE,
    TESTS,
    write_archive,
)
from saegis_server.directions.files import DirectionFileError, as_direction, read_safetensors
from saegis_server.json_text import parse_json
from saegis_server.policy.bundle.files import (
    MOST_TAR_BYTES,
    check_files,
    in_folder,
    read_archive,
    read_folder,
)
from saegis_server.policy.bundle.signing import Signature
from saegis_server.policy.errors import BundleError, SchemaError, SyntaxProblem
from saegis_server.policy.schema.cases import Case, Cases
from saegis_server.policy.schema.policy import Match, Part, Policy, entries
from saegis_server.policy.schema.validation import validated
from saegis_server.policy.schema.yaml_text import Document, path_of, read_yaml
from saegis_server.problem import Problem

Content = TypeVar("Content", Policy, Part, Cases)

#: Most problems that are reported of one bundle.
MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Source:
    """The place of an entry in a bundle: its file and line."""

    file: str
    line: int


@dataclass(frozen=True)
class Bundle:
    """A bundle. Two are equal if their files and signatures are.

    policy: policy.yaml with the parts in rules/ merged in, all entries sorted by id: the order in which they
    were written has no meaning. cases: those in tests/. directions: the vectors by file and name, float32
    [d]. files: every file except the signature, by its path inside. digest: see `digest_of`. signature: None
    for a bundle that is not signed; `signing.verify` checks it. sources: where each rule, allowance and
    protection stands, by id. case_sources: the same for each case, by name. match_sources: the same for the
    match as a whole and for each name in it, by path, such as "match.models[0]".
    """

    policy: Policy = field(compare=False)
    cases: tuple[Case, ...] = field(compare=False)
    directions: Mapping[str, Mapping[str, Tensor]] = field(compare=False, repr=False)
    files: Mapping[str, bytes] = field(compare=False, repr=False)
    digest: str
    signature: Signature | None = None
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False, repr=False)
    case_sources: Mapping[str, Source] = field(default_factory=dict, compare=False, repr=False)
    match_sources: Mapping[str, Source] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The bundle in a directory, or in a .tar or .tar.gz file.

        Raises BundleError, or the subclass for the kind of fault, with every problem found; SignatureError
        for a signature.json that is no signature.
        """
        if path.is_dir():
            return cls.from_files(read_folder(path))
        try:
            with path.open("rb") as file:
                data = file.read(MOST_TAR_BYTES + 1)
        except OSError as error:
            raise BundleError([Problem(f"cannot be read: {error.strerror}", file=str(path))]) from error
        return cls.from_archive(data)

    @classmethod
    def from_archive(cls, data: bytes) -> Self:
        """The bundle in the bytes of a tar or tar.gz. Raises the same as `read`."""
        return cls.from_files(read_archive(data))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """The bundle of these files, by path inside. Raises the same as `read`."""
        check_files(files)
        signed = files.get(SIGNATURE_FILE)
        content = {path: bytes(files[path]) for path in sorted(files) if path != SIGNATURE_FILE}
        reading = _Reading()
        policy = reading.policy(content)
        cases = reading.cases(content)
        directions = reading.directions(content)
        reading.calibration(content)
        reading.check()
        assert policy is not None  # noqa: S101 - where it is None, check() has raised
        return cls(
            policy=policy,
            cases=cases,
            directions=MappingProxyType(directions),
            files=MappingProxyType(content),
            digest=digest_of(content),
            signature=None if signed is None else Signature.from_json(signed),
            sources=MappingProxyType(reading.sources),
            case_sources=MappingProxyType(reading.case_sources),
            match_sources=MappingProxyType(reading.match_sources),
        )

    def archive(self) -> bytes:
        """A tar.gz of all files and the signature. Equal bundles give the same bytes."""
        files = dict(self.files)
        if self.signature is not None:
            files[SIGNATURE_FILE] = self.signature.to_json()
        return write_archive(files)

    @property
    def revision_name(self) -> str:
        """ "name@revision", as receipts name it."""
        return f"{self.policy.name}@{self.policy.revision}"


def digest_of(files: Mapping[str, bytes]) -> str:
    """Hex SHA-256 over a line "<hex SHA-256>  <path>" for each file, sorted, as sha256sum writes them."""
    lines = sorted(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in files.items())
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


class _Reading:
    """Reads the files of a bundle, and gathers the problems of all of them."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.case_sources: dict[str, Source] = {}
        self.match_sources: dict[str, Source] = {}
        self._errors: list[BundleError] = []

    def check(self) -> None:
        """Raise one error with all problems; its kind is syntax before schema before any other."""
        if not self._errors:
            return
        problems = [problem for error in self._errors for problem in error.problems]
        if len(problems) > MOST_PROBLEMS:
            problems[MOST_PROBLEMS:] = [Problem(f"and {len(problems) - MOST_PROBLEMS} more problems")]
        kinds = [type(error) for error in self._errors]
        kind = next((kind for kind in (SyntaxProblem, SchemaError) if kind in kinds), BundleError)
        raise kind(problems)

    def policy(self, files: Mapping[str, bytes]) -> Policy | None:
        """policy.yaml with the parts merged in; None if any of these files is wrong."""
        whole = self._read(Policy, {POLICY_FILE: files[POLICY_FILE]})
        parts = self._read(Part, in_folder(files, RULES))
        if self._errors:
            return None
        merged = {}
        for key in ("rules", "allow", "protect"):
            group = [entry for part in (*whole, *parts) for entry in getattr(part, key)]
            merged[key] = tuple(sorted(group, key=lambda entry: entry.id))
        return whole[0].model_copy(update=merged)

    def cases(self, files: Mapping[str, bytes]) -> tuple[Case, ...]:
        """The cases of all files, file by file."""
        case_files = self._read(Cases, in_folder(files, TESTS))
        return tuple(case for part in case_files for case in part.cases)

    def directions(self, files: Mapping[str, bytes]) -> dict[str, Mapping[str, Tensor]]:
        """The vectors of all files, by file and name."""
        directions = {}
        for file, data in in_folder(files, DIRECTIONS).items():
            try:
                directions[file] = read_directions(data, file)
            except BundleError as error:
                self._errors.append(error)
        return directions

    def calibration(self, files: Mapping[str, bytes]) -> None:
        """Check the calibration file: it may hold any JSON object."""
        if CALIBRATION_FILE not in files:
            return
        try:
            if not isinstance(parse_json(files[CALIBRATION_FILE].decode("utf-8")), dict):
                raise ValueError("an object is wanted")
        except (ValueError, RecursionError) as error:
            message = f"is no JSON object: {error}"
            self._errors.append(SyntaxProblem([Problem(message, file=CALIBRATION_FILE)]))

    def _read(self, model: type[Content], files: Mapping[str, bytes]) -> list[Content]:
        """The files as `model`, without those that are wrong."""
        contents = []
        for file, data in files.items():
            try:
                document = read_yaml(data, file)
                content = validated(model, document, file)
                self._note(content, document, file)
            except BundleError as error:
                self._errors.append(error)
            else:
                contents.append(content)
        return contents

    def _note(self, part: Policy | Part | Cases, document: Document, file: str) -> None:
        """Note where each id and name stands. Raises SchemaError for any that stands somewhere else too."""
        problems = []
        if isinstance(part, Policy):
            places = [
                (key, index) for key in Match.model_fields for index in range(len(getattr(part.match, key)))
            ]
            for place in (("match",), *(("match", *place) for place in places)):
                self.match_sources[path_of(place)] = Source(file, document.line(place))
        for known, place, name in self._names(part):
            line = document.line((*place, "name" if known is self.case_sources else "id"))
            first = known.setdefault(name, source := Source(file, line))
            if first is not source:
                message = f"{name!r} stands in {first.file}:{first.line} already; ids and names must differ"
                problems.append(Problem(message, f"{place[0]}[{place[1]}]", file, line))
        if problems:
            raise SchemaError(problems)

    def _names(self, part: Policy | Part | Cases) -> Iterator[tuple[dict[str, Source], tuple[str, int], str]]:
        """For each id or name in a file: the dict that notes it, its place, and the id or name itself."""
        if isinstance(part, Cases):
            for number, case in enumerate(part.cases):
                yield self.case_sources, ("cases", number), case.name
        else:
            for place, name in entries(part):
                yield self.sources, place, name


def read_directions(data: bytes, file: str) -> Mapping[str, Tensor]:
    """The vectors of a file by name, float32 [d], finite and not zero.

    Raises BundleError with every tensor that is no direction, and for a file that is no safetensors file.
    """
    try:
        tensors = read_safetensors(data)
    except DirectionFileError as error:
        raise BundleError([Problem(str(error), file=file)]) from error
    vectors, problems = {}, []
    for name, tensor in sorted(tensors.items()):
        try:
            vectors[name] = as_direction(tensor)
        except DirectionFileError as error:
            problems.append(Problem(str(error), name, file))
    if not tensors:
        problems.append(Problem("holds no tensor", file=file))
    if problems:
        raise BundleError(problems)
    return MappingProxyType(vectors)
