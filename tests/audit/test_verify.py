"""Verifying an audit log: any one thing done to its files is found, and told with its place."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.audit import AuditError
from saegis_server.audit.chain import Link, seal
from saegis_server.audit.files import ACTIVE, log_files
from saegis_server.audit.records import payload
from saegis_server.audit.verify import Verification, verify
from tests.audit import logs
from tests.tiers import sized

Files = dict[str, bytes]
Edit = Callable[[list[bytes]], object]


@dataclass(frozen=True)
class Mutation:
    """One thing done to the files of a log."""

    name: str
    apply: Callable[[Files, st.DataObject], Files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of a log of 48 records in several files, by name in their order."""
    directory = tmp_path_factory.mktemp("whole")
    logs.write(logs.settings(directory, max_bytes=4096), 46)
    files = {path.name: path.read_bytes() for path in log_files(directory)}
    assert len(files) > 2
    assert files[ACTIVE].count(b"\n") > 3
    return files


def checked(files: Files, expect_head: str | None = None, key: bytes | None = None) -> Verification:
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        return verify(Path(name), key, expect_head)


def head_of(files: Files) -> str:
    return str(json.loads(files[ACTIVE].splitlines()[-1])["hash"])


def _flip(files: Files, data: st.DataObject) -> Files:
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    return files | {name: bytes(content)}


def _truncate(files: Files, data: st.DataObject) -> Files:
    name = data.draw(st.sampled_from(sorted(files)))
    return files | {name: files[name][: data.draw(st.integers(0, len(files[name]) - 1))]}


def _on_lines(edit: Callable[[list[bytes], st.DataObject], None]) -> Callable[[Files, st.DataObject], Files]:
    """Edit the lines of the whole log, the files' lengths in lines kept where they can be."""

    def apply(files: Files, data: st.DataObject) -> Files:
        name = data.draw(st.sampled_from(sorted(files)))
        lines = files[name].splitlines(keepends=True)
        edit(lines, data)
        return files | {name: b"".join(lines)}

    return apply


def _delete(lines: list[bytes], data: st.DataObject) -> None:
    lines.pop(data.draw(st.integers(0, len(lines) - 1)))


def _duplicate(lines: list[bytes], data: st.DataObject) -> None:
    line = lines[data.draw(st.integers(0, len(lines) - 1))]
    lines.insert(data.draw(st.integers(0, len(lines))), line)


def _swap(lines: list[bytes], data: st.DataObject) -> None:
    first, second = data.draw(
        st.lists(st.integers(0, len(lines) - 1), min_size=2, max_size=2, unique=True).map(tuple)
    )
    lines[first], lines[second] = lines[second], lines[first]


def _drop_file(files: Files, data: st.DataObject) -> Files:
    name = data.draw(st.sampled_from(sorted(files)))
    return {each: content for each, content in files.items() if each != name}


def _rewrite(files: Files, data: st.DataObject) -> Files:
    """Change one record's content and work its own hash out again, as anybody can without a key."""
    name = data.draw(st.sampled_from(sorted(files)))
    lines = files[name].splitlines(keepends=True)
    index = data.draw(st.integers(0, len(lines) - 1))
    record = json.loads(lines[index])
    before = Link(record.pop("seq") - 1, record.pop("prev"))
    record.pop("hash")
    lines[index], _ = seal(record | {"request_id": "another"}, before, None)
    return files | {name: b"".join(lines)}


MUTATIONS = (
    Mutation("flip", _flip),
    Mutation("truncate", _truncate),
    Mutation("delete", _on_lines(_delete)),
    Mutation("duplicate", _on_lines(_duplicate)),
    Mutation("swap", _on_lines(_swap)),
    Mutation("drop_file", _drop_file),
    Mutation("rewrite", _rewrite),
)


def is_cut_at_the_end(files: Files, whole: Files) -> bool:
    """Whether nothing but the last records of the last file are missing, each of them wholly."""
    rest = files.get(ACTIVE, b"")
    same = all(files.get(name) == content for name, content in whole.items() if name != ACTIVE)
    return same and whole[ACTIVE].startswith(rest) and (not rest or rest.endswith(b"\n"))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
@settings(max_examples=sized(120, 30), deadline=None)
@given(data=st.data())
def test_whatever_is_done_to_the_files_is_found(
    whole: Files, mutation: Mutation, data: st.DataObject
) -> None:
    files = mutation.apply(whole, data)
    found = checked(files, expect_head=head_of(whole))
    assert found.problems
    is_rewritten_end = mutation.name == "rewrite" and is_only_the_last_other(files, whole)
    if not is_rewritten_end and not is_cut_at_the_end(files, whole):
        assert checked(files).problems


def is_only_the_last_other(files: Files, whole: Files) -> bool:
    """Whether only the very last record differs: nothing follows that would hold its hash."""
    return (
        all(files[name] == content for name, content in whole.items() if name != ACTIVE)
        and files[ACTIVE].splitlines()[:-1] == whole[ACTIVE].splitlines()[:-1]
    )


@settings(max_examples=sized(60, 20), deadline=None)
@given(cut=st.integers(1, 12))
def test_records_cut_off_at_the_end_show_only_by_the_head(whole: Files, cut: int) -> None:
    lines = whole[ACTIVE].splitlines(keepends=True)
    files = whole | {ACTIVE: b"".join(lines[:-cut])}
    assert checked(files).problems == ()
    (problem,) = checked(files, head_of(whole)).problems
    assert "the end was cut off" in str(problem)


def test_a_whole_log_has_no_problems(whole: Files) -> None:
    found = checked(whole, head_of(whole))
    assert found.problems == ()
    assert found.notes == ()
    assert found.records == 48
    assert found.first is not None
    assert found.last is not None
    assert (found.first.seq, found.last.seq, found.head) == (1, 48, head_of(whole))


def test_a_head_noted_earlier_is_found_further_back(whole: Files) -> None:
    earlier = json.loads(next(iter(whole.values())).splitlines()[2])["hash"]
    found = checked(whole, earlier)
    assert found.problems == ()
    assert found.notes == ("the expected record is 3; later ones follow it",)


def _set(index: int, line: bytes) -> Edit:
    return lambda lines: lines.__setitem__(index, line)


@pytest.mark.parametrize(
    ("edit", "line", "message"),
    [
        (lambda lines: lines.pop(2), 3, "record 4 follows record 2: record 3 is missing here"),
        (lambda lines: lines.insert(3, lines[2]), 4, "record 3 is there twice"),
        (lambda lines: lines.insert(4, lines.pop(2)), 3, "record 4 follows record 2"),
        (_set(1, b"nothing\n"), 2, "the line is no JSON"),
        (_set(1, b'{"a":NaN}\n'), 2, "lacks its seq"),
        (_set(1, b"[" * 100_000 + b"\n"), 2, "the line is no JSON"),
        (_set(1, b"[]\n"), 2, "no JSON object"),
        (lambda lines: _set(1, lines[1].replace(b"bob", b"eve"))(lines), 2, "record 2 was changed"),
        (lambda lines: _set(1, lines[1].replace(b":", b": ", 1))(lines), 2, "not in the form"),
        (lambda lines: _set(-1, lines[-1][:-9])(lines), 0, "the line is cut off"),
    ],
)
def test_a_problem_is_told_with_its_place(whole: Files, edit: Edit, line: int, message: str) -> None:
    first = next(iter(whole))
    name = first if line else ACTIVE
    lines = whole[name].splitlines(keepends=True)
    edit(lines)
    problem = checked(whole | {name: b"".join(lines)}).problems[0]
    assert (problem.file, problem.line) == (name, line or len(lines))
    assert message in problem.message


def test_closed_files_must_hold_what_their_names_say(whole: Files) -> None:
    name = next(iter(whole))
    moved = {"audit-000000000001-000000000099.jsonl" if each == name else each: whole[each] for each in whole}
    (problem,) = checked(moved).problems
    assert "not 1 to 99" in problem.message


def test_single_files_say_what_was_not_looked_at(tmp_path: Path, whole: Files) -> None:
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    found = verify(tmp_path / ACTIVE)
    assert found.problems == ()
    assert "was not looked at" in found.notes[0]
    assert verify(log_files(tmp_path)).notes == ()


def test_there_must_be_a_log(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="holds no audit log"):
        verify(tmp_path)
    (tmp_path / ACTIVE).touch()
    assert verify(tmp_path).notes == ("there is no record",)
    assert verify(tmp_path, expect_head="a" * 64).problems


def test_records_of_an_older_version_verify_and_are_gone_on_from(tmp_path: Path) -> None:
    """Those of answers before it was recorded what each rule did."""
    before, written = Link(0, "0" * 64), b""
    for number in range(1, 4):
        told = payload(logs.answer(number))
        for name in ("rules", "own_edits"):
            del told[name]
        line, before = seal({**told, "time": "2026-01-01T00:00:00Z"}, before, None)
        written += line
    (tmp_path / ACTIVE).write_bytes(written)
    assert verify(tmp_path).records == 3
    logs.write(logs.settings(tmp_path), 2)
    found = verify(tmp_path)
    assert (found.problems, found.records) == ((), 7)
