"""Bundles: what one holds, what makes two equal, and what is refused with the file that is at fault."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from saegis.bundles import MOST_BYTES, MOST_FILES, BundleFilesError, read_plain
from saegis_server.policy.bundle.bundle import MOST_PROBLEMS, Bundle
from saegis_server.policy.bundle.files import MOST_YAML_BYTES, read_folder
from saegis_server.policy.errors import BundleError, PolicyError, SchemaError, SyntaxProblem
from tests.policy.bundles import CASES, PART, POLICY, bundle_files, write_files


def refused(files: dict[str, bytes], kind: type[BundleError] = BundleError) -> BundleError:
    with pytest.raises(kind) as caught:
        Bundle.from_files(files)
    assert type(caught.value) is kind, caught.value
    return caught.value


def test_a_bundle_holds_all_its_files_say() -> None:
    bundle = Bundle.from_files(bundle_files())
    assert bundle.revision_name == "acme.base@2026.1"
    assert [rule.id for rule in bundle.policy.rules] == ["less-river", "no-poison", "stop-poison"]
    assert [each.id for each in bundle.policy.protect] == ["keep"]
    assert [case.name for case in bundle.cases] == ["no edits", "another tenant"]
    assert torch.equal(bundle.directions["directions/calm.safetensors"]["v"], torch.ones(32))
    assert (bundle.sources["less-river"].file, bundle.sources["less-river"].line) == ("rules/part.yaml", 4)
    assert POLICY.splitlines()[bundle.sources["stop-poison"].line - 1] == "  - id: stop-poison"
    assert bundle.case_sources["another tenant"].line == 7
    assert bundle.signature is None


def test_the_digest_is_that_of_sha256sum() -> None:
    """The same by hand: sha256sum of all files, sorted, sha256sum of that."""
    files = bundle_files()
    lines = sorted(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in files.items())
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert Bundle.from_files(files).digest == expected


def test_a_directory_its_archive_and_its_files_are_one_bundle(tmp_path: Path) -> None:
    files = bundle_files()
    folder = write_files(tmp_path / "policy", files)
    from_files, from_folder = Bundle.from_files(files), Bundle.read(folder)
    (tmp_path / "policy.tar.gz").write_bytes(from_folder.archive())
    from_archive = Bundle.read(tmp_path / "policy.tar.gz")
    assert from_files == from_folder == from_archive
    assert from_folder.policy == from_archive.policy == from_files.policy
    assert from_folder.files == from_archive.files == files
    assert from_archive.archive() == from_folder.archive()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_the_order_of_files_and_rules_has_no_meaning(seed: int) -> None:
    draw = random.Random(seed)
    whole, part = yaml.safe_load(POLICY), yaml.safe_load(PART)
    rules = [*whole["rules"], *part["rules"]]
    draw.shuffle(rules)
    names = [f"rules/{letter}.yaml" for letter in draw.sample("abcdef", 3)]
    groups: dict[str, list[object]] = {name: [] for name in names}
    kept: list[object] = []
    for rule in rules:
        draw.choice((kept, *groups.values())).append(rule)
    head = {"apiVersion": part["apiVersion"], "kind": "PolicyPart"}
    files = bundle_files() | {"policy.yaml": yaml.safe_dump({**whole, "rules": kept}).encode()}
    del files["rules/part.yaml"]
    for name, group in groups.items():
        files[name] = yaml.safe_dump({**head, "rules": group}).encode()
    files["rules/z.yaml"] = yaml.safe_dump({**head, "protect": part["protect"]}).encode()
    order = list(files.items())
    draw.shuffle(order)
    assert Bundle.from_files(dict(order)).policy == Bundle.from_files(bundle_files()).policy


@pytest.mark.parametrize(
    "path",
    [
        "policy.yml",
        "Policy.yaml",
        "rules/a.yml",
        "rules/b/c.yaml",
        "rules/.a.yaml",
        "rules/a b.yaml",
        "rules/ä.yaml",
        "tests/a.json",
        "directions/x.pt",
        "directions/x.bin",
        "more/a.yaml",
        "../policy.yaml",
        "/policy.yaml",
        "rules/../policy.yaml",
        "rules//a.yaml",
        "./policy.yaml",
        "rules/a.yaml\n",
        ".git",
        "",
    ],
)
def test_a_file_that_does_not_belong_is_named(path: str) -> None:
    (problem,) = refused({**bundle_files(), path: PART.encode()}).problems
    assert problem.file in (path, repr(path))
    assert "rules/*.yaml" in problem.message


def test_a_bundle_without_its_policy_is_refused() -> None:
    files = bundle_files()
    del files["policy.yaml"]
    (problem,) = refused(files).problems
    assert (problem.file, "is missing" in problem.message) == ("policy.yaml", True)


def test_faults_of_all_files_are_told_at_once() -> None:
    files = bundle_files()
    files["policy.yaml"] = POLICY.replace("serial: 3", "serial: x").encode()
    files["rules/part.yaml"] = PART.replace("features:", "feature:").encode()
    files["tests/cases.yaml"] = CASES.replace("allow}", "alow}").encode()
    files["directions/calm.safetensors"] = b"no"
    files["calibration.json"] = b"[]"
    error = refused(files, SyntaxProblem)
    told = [(problem.file, problem.line) for problem in error.problems]
    assert [place for place in told if place[0] == "rules/part.yaml"] == [
        ("rules/part.yaml", 5),
        ("rules/part.yaml", 8),
    ]
    assert {("policy.yaml", 4), ("tests/cases.yaml", 6)} < set(told)
    assert {"directions/calm.safetensors", "calibration.json"} < {file for file, _ in told}
    del files["calibration.json"]
    assert refused(files, SchemaError).kind == "schema"


def test_problems_without_number_are_cut_and_counted() -> None:
    wrong = "apiVersion: saegis.dev/v1\nkind: PolicyPart\nrules:\n" + "- {}\n" * 300
    problems = refused({**bundle_files(), "rules/a.yaml": wrong.encode()}, SchemaError).problems
    assert len(problems) == MOST_PROBLEMS + 1
    assert str(problems[-1]) == "and 200 more problems"


def test_an_id_or_a_name_in_two_files_names_both() -> None:
    twice = PART.replace("less-river", "no-poison").replace("id: keep", "id: style")
    problems = refused({**bundle_files(), "rules/part.yaml": twice.encode()}, SchemaError).problems
    assert [(each.file, each.line) for each in problems] == [("rules/part.yaml", 4), ("rules/part.yaml", 7)]
    assert f"policy.yaml:{POLICY.splitlines().index('  - id: no-poison') + 1}" in problems[0].message
    (name,) = refused({**bundle_files(), "tests/more.yaml": CASES.encode()}, SchemaError).problems[:1]
    assert "tests/cases.yaml:4" in name.message


@pytest.mark.parametrize(
    ("tensors", "path", "told"),
    [
        ({"v": torch.zeros(4)}, "v", "zero everywhere"),
        ({"v": torch.ones(2, 2)}, "v", "has the shape [2, 2]"),
        ({"v": torch.ones(0)}, "v", "has the shape [0]"),
        ({"v": torch.tensor(1.0)}, "v", "has the shape []"),
        ({"v": torch.tensor([1.0, float("nan")])}, "v", "not finite"),
        ({"v": torch.tensor([1e300], dtype=torch.float64)}, "v", "not finite in float32"),
        ({"v": torch.ones(3, dtype=torch.int64)}, "v", "is of type int64"),
        ({}, "", "holds no tensor"),
    ],
)
def test_tensors_that_are_no_directions_are_refused(
    tensors: dict[str, torch.Tensor], path: str, told: str
) -> None:
    (problem,) = refused({**bundle_files(), "directions/x.safetensors": save(tensors)}).problems
    assert (problem.file, problem.path, told in problem.message) == ("directions/x.safetensors", path, True)


def test_directions_of_other_floats_become_float32() -> None:
    data = save({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.full((3,), 0.5, dtype=torch.float64)})
    found = Bundle.from_files({**bundle_files(), "directions/x.safetensors": data}).directions
    vectors = found["directions/x.safetensors"]
    assert {name: vector.dtype for name, vector in vectors.items()} == dict.fromkeys("ab", torch.float32)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_directions_are_read_or_refused_with_their_file(seed: int) -> None:
    draw = random.Random(seed)
    data = bytearray(save({"v": torch.ones(8), "w": torch.arange(1.0, 5.0)}))
    for _ in range(draw.randrange(1, 6)):
        data[draw.randrange(min(len(data), 200))] = draw.randrange(256)
    data = data[: draw.choice((len(data), draw.randrange(len(data))))]
    try:
        found = Bundle.from_files({**bundle_files(), "directions/x.safetensors": bytes(data)})
    except BundleError as error:
        files = {problem.file for problem in error.problems}
        assert files == {"directions/x.safetensors"}, error.problems  # noqa: PT017 - it may also be read
    else:
        for vector in found.directions["directions/x.safetensors"].values():
            assert vector.dtype == torch.float32
            assert bool(torch.isfinite(vector).all())


def test_the_number_and_the_size_of_files_are_bounded() -> None:
    files = bundle_files()
    many = {f"directions/d{number}.safetensors": b"" for number in range(MOST_FILES)}
    assert f"may have {MOST_FILES}" in str(refused(files | many))
    assert f"may have {MOST_BYTES}" in str(refused(files | {"README.md": bytes(MOST_BYTES)}))
    assert f"may have {MOST_YAML_BYTES}" in str(refused(files | {"rules/a.yaml": b"#" * MOST_YAML_BYTES}))


def test_a_calibration_may_hold_anything_that_is_json() -> None:
    files = bundle_files()
    Bundle.from_files(files | {"calibration.json": b'{"a": [1, {"b": null}]}'})
    for wrong in (b"", b"{", b"5", b"\xff", b"[" * 100_000):
        (problem,) = refused(files | {"calibration.json": wrong}, SyntaxProblem).problems
        assert problem.file == "calibration.json"


def test_links_devices_and_strangers_in_a_directory_are_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "policy", bundle_files())
    secret = tmp_path / "secret.yaml"
    secret.write_text(PART, encoding="utf-8")
    (folder / "rules" / "link.yaml").symlink_to(secret)
    os.mkfifo(folder / "rules" / "pipe.yaml")
    (folder / "rules" / "inner").mkdir()
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    (folder / ".git").mkdir()
    with pytest.raises(BundleError) as caught:
        Bundle.read(folder)
    files = {problem.file for problem in caught.value.problems}
    assert files == {"rules/link.yaml", "rules/pipe.yaml", "rules/inner", "notes.txt", ".git"}


def test_a_linked_folder_inside_is_not_followed(tmp_path: Path) -> None:
    files = bundle_files()
    del files["rules/part.yaml"]
    folder = write_files(tmp_path / "policy", files)
    (folder / "rules").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="rules"):
        Bundle.read(folder)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere: cannot be read: No such file"):
        Bundle.read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"policy\.yaml: is missing"):
        Bundle.read(tmp_path / "empty")
    (tmp_path / "text").write_text(POLICY, encoding="utf-8")
    with pytest.raises(BundleError, match="is no tar"):
        Bundle.read(tmp_path / "text")


def test_a_file_that_is_replaced_while_the_folder_is_read_is_not_followed(tmp_path: Path) -> None:
    """What was a plain file when it was listed may be a link or a pipe when it is opened."""
    (tmp_path / "link.yaml").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text(PART, encoding="utf-8")
    with pytest.raises(BundleFilesError, match=r"rules/a\.yaml: cannot be read"):
        read_plain(tmp_path / "link.yaml", "rules/a.yaml", 1000)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(BundleFilesError, match=r"rules/a\.yaml: is no plain file"):
        read_plain(tmp_path / "pipe.yaml", "rules/a.yaml", 1000)
    with pytest.raises(BundleError, match="gone: cannot be read"):
        read_folder(tmp_path / "gone")


def test_a_folder_of_too_many_files_is_not_read_to_its_end(tmp_path: Path) -> None:
    many = {f"directions/d{number}.safetensors": b"" for number in range(MOST_FILES + 1)}
    with pytest.raises(BundleError, match=f"more than {MOST_FILES} files"):
        Bundle.read(write_files(tmp_path / "policy", many))


def test_a_folder_larger_than_allowed_is_not_read_to_its_end(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "policy", bundle_files())
    with (folder / "README.md").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PolicyError, match=r"README\.md: with this file the bundle has more than"):
        Bundle.read(folder)
