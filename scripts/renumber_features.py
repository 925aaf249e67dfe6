"""Rename the features that documents, examples and helps name by number, once other weights ship.

    python scripts/renumber_features.py OLD_WEIGHTS

OLD_WEIGHTS is a copy of server/saegis_server/weights as it was. What was its landmark's feature, say, becomes
that of the weights that are there now; the whole redirect to the landmark too, where a command has it.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from saegis_lab.evaluation.experiment import RedirectFile
from saegis_lab.polyglot.manifest import MANIFEST_NAME, Manifest
from saegis_server.reference import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    *("README.md", "clients/python", "deploy/POLICIES.md", "docs", "examples"),
    *("lab/saegis_lab/cli", "server/saegis_server/cli", "tests/sweep/test_examples.py"),
)
#: What stands before the number of a feature: a small one may mean anything elsewhere.
BEFORE = r"(?:clamp|ban|watch|unset|show|index|indices|features?|BRIDGE|bridge's)[\"'\])}]*[\s:=(,\[]{1,4}"
REDIRECT = re.compile(r"--redirect [\d,]+=\d+:[\d.]+:[\d.]+")


def roles(weights: Path) -> dict[str, int]:
    """The features that documents name, by what they are there."""
    told = Manifest.load(weights / MANIFEST_NAME)
    lines = (weights / "sae" / "features.jsonl").read_text(encoding="utf-8").splitlines()
    poison = {label["feature"] for label in map(json.loads, lines) if label["subjects"] == ["poison"]}
    banned = told.ban.features
    return {
        "the clamped landmark": told.clamp.feature,
        "what is redirected to": redirect(weights).to,
        "banned, of poison": next((feature for feature in banned if feature in poison), banned[0]),
        "ruled by the shipped policy": (banned if told.filter is None else told.filter.features)[0],
    }


def redirect(weights: Path) -> RedirectFile:
    """The redirect to the landmark."""
    return RedirectFile.load(weights / "eval" / "redirect.json")


def files() -> Iterator[Path]:
    """The files that may name features."""
    for place in PLACES:
        yield from [ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("old", type=Path, metavar="OLD_WEIGHTS")
    weights: Path = parser.parse_args().old
    old, new, made = roles(weights), roles(WEIGHTS), redirect(WEIGHTS)
    for role in old:
        print(f"{role}: {old[role]} -> {new[role]}")
    # Where one feature had several roles, the first counts.
    numbers = {str(old[role]): str(new[role]) for role in reversed(old)}
    number = re.compile(rf"({BEFORE})({'|'.join(numbers)})(?![\w%]|\.\d)")
    features = ",".join(map(str, made.features))
    command = f"--redirect {features}={made.to}:{made.factor:g}:{made.strength:g}"
    for path in files():
        if path.suffix not in {".md", ".py"}:
            continue
        before = path.read_text(encoding="utf-8")
        after = number.sub(lambda found: found[1] + numbers[found[2]], REDIRECT.sub(command, before))
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
