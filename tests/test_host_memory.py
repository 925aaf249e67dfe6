"""The host's memory: the kernel's own number, lessened by the limits of control groups, old and new."""

import re
from pathlib import Path

import pytest

from saegis_server.host_memory import free_host_bytes

GIB = 2**30


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return written(tmp_path / "proc", {"meminfo": f"MemTotal: 999 kB\nMemAvailable: {8 * 2**20} kB\n"})


def test_this_machine_has_some() -> None:
    (available,) = re.findall(r"MemAvailable: *([0-9]+) kB", Path("/proc/meminfo").read_text())
    assert 0 < free_host_bytes() <= 1.1 * int(available) * 1024


def test_without_groups_the_kernel_is_believed(proc: Path, tmp_path: Path) -> None:
    assert free_host_bytes(proc, tmp_path / "none") == 8 * GIB


@pytest.mark.parametrize("inside", ["/", "/pods/one"])
def test_a_limit_of_the_group_or_of_one_above_counts(proc: Path, tmp_path: Path, inside: str) -> None:
    written(proc, {"self/cgroup": f"0::{inside}\n"})
    folder = inside.lstrip("/")
    groups = written(
        tmp_path / "groups",
        {
            f"{folder}/memory.max": "max\n",
            f"{folder}/memory.current": "5\n",
            "memory.max": f"{4 * GIB}\n",
            "memory.current": f"{3 * GIB}\n",
            "memory.stat": f"anon 7\ninactive_file {GIB}\nactive_file 10\n",
        },
    )
    assert free_host_bytes(proc, groups) == 2 * GIB + 10


def test_the_older_groups_count_too(proc: Path, tmp_path: Path) -> None:
    written(proc, {"self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/box\n0::/\n"})
    limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
    groups = written(
        tmp_path / "groups/memory",
        {limit: f"{2**63 - 4096}", used: "5", f"box/{limit}": f"{GIB}", f"box/{used}": f"{2 * GIB}"},
    ).parent
    assert free_host_bytes(proc, groups) == 0


def test_without_proc_it_is_half_of_what_the_machine_has(tmp_path: Path) -> None:
    assert free_host_bytes(tmp_path / "proc", tmp_path) > 2**20
