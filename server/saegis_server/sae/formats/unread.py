"""What lies in a folder that holds no SAE in a layout that is read: named, with what to do about it."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saegis_server.json_text import parse_json

#: Names whose files torch unpickles.
PICKLES = ("*.pt", "*.pth", "*.bin", "*.ckpt", "*.pkl")
_MOST = 4096


@dataclass(frozen=True, slots=True)
class Unread:
    """A layout by the names of its files, patterns of which each must fit one; why it is not read."""

    name: str
    files: tuple[str, ...]
    reason: str


#: The first whose files are there is named.
UNREAD = (
    Unread("temporal SAEs", ("conf.yaml", "latest_ckpt.safetensors"), "a token is encoded from those before"),
    Unread(
        "cross-layer transcoders",
        ("W_enc_*.safetensors", "W_dec_*.safetensors"),
        "each writes at many layers",
    ),
)
_CONVERT = "a pickle of torch: a server opens none; convert it with: saegis sae convert"


def what_is_there(folder: Path, first_files: Sequence[str]) -> str | None:
    """In words: which layout a folder holds that is not read, or in which folders SAEs lie below it; None if
    nothing is recognised. first_files: the describing file of each layout that is read."""
    names = sorted(path.name for _, path in zip(range(_MOST), folder.iterdir(), strict=False))
    for unread in UNREAD:
        found = [fnmatch.filter(names, pattern) for pattern in unread.files]
        if all(found):
            return f"it holds {found[0][0]}, {unread.name}: {unread.reason}"
    if "config.json" in names and _is_dictionary_learnings(folder / "config.json"):
        return f"its config.json is dictionary_learning's, whose ae.pt is {_CONVERT}"
    if single := next(iter(fnmatch.filter(names, "layer_*.safetensors")), None):
        return f"it holds {single}, a transcoder in a file of its own; convert it with: saegis sae convert"
    if pickle := next((name for pattern in PICKLES for name in fnmatch.filter(names, pattern)), None):
        return f"it holds {pickle}, {_CONVERT}"
    below = [name for name in names if any((folder / name / file).is_file() for file in first_files)]
    if below:
        more = f" and {len(below) - 4} more" if len(below) > 4 else ""
        return f"it holds no SAE itself, but SAEs lie in its folders: {', '.join(below[:4])}{more}; name one"
    return None


def _is_dictionary_learnings(config: Path) -> bool:
    try:
        described = parse_json(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    trainer = described.get("trainer") if isinstance(described, dict) else None
    return isinstance(trainer, dict) and "dict_class" in trainer
