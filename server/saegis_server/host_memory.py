"""The host's memory: how much more of it this process can have, by the kernel and by the limits of its
control groups, such as a container's."""

import os
from collections.abc import Iterator
from pathlib import Path

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
#: What of a group's memory the kernel takes back when it is wanted: file pages.
_RECLAIMED = ("inactive_file", "active_file")


def free_host_bytes(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """How many bytes this process can still take without the kernel ending it.

    Where there is no /proc (not on Linux), half of what the machine has. proc, groups: where the kernel's
    files lie.
    """
    available = _fields(proc / "meminfo").get("MemAvailable")
    if available is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    else:
        free = available * 1024
    return max(0, min([free, *_left_in_groups(proc, groups)]))


def _left_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What is left under each limit of the groups that the process is in and of those above them."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers == "":
            root, most, used, prefix = groups, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root = groups / "memory"
            most, used, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        inside = Path(path.lstrip("/"))
        for folder in (root / inside, *(root / parent for parent in inside.parents)):
            limit, now = _text(folder / most).strip(), _text(folder / used).strip()
            if limit.isdecimal() and now.isdecimal():
                held = _fields(folder / "memory.stat")
                yield int(limit) - int(now) + sum(held.get(f"{prefix}{kind}", 0) for kind in _RECLAIMED)


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of the kernel's whose lines are a name and a number."""
    words = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}


def _text(path: Path) -> str:
    """What a file says; nothing where there is none that can be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
