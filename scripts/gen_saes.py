"""Write the tables of SAE files into docs/saes.md, or with --check tell if they are current.

The layouts are those of `saegis_server.sae.formats`, the releases those of SAELens's own table.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

from saegis_server.sae.coverage import Standing, coverage
from saegis_server.sae.formats import LAYOUTS, PICKLED, mwhanna
from saegis_server.sae.formats.unread import UNREAD
from saegis_server.sae.releases import Entry, release, release_names

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/saes.md"
_BEGIN, _END = "<!-- tables: written by scripts/gen_saes.py -->\n", "<!-- end of tables -->"
#: What is told of a release of which the SAEs stand differently: the best.
_ORDER = (Standing.SERVED, Standing.CONVERTED, Standing.NOT_READ)


def current(text: str) -> str:
    """The document with the tables as they are now. Raises ValueError if it has no place for them."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT} has no place for the tables")
    return f"{before}{begin}\n{_layouts()}\n{_releases()}\n{end}{after}"


def _layouts() -> str:
    rows = [f"| {each.name} | {_files(each.files)} | {each.origin} | a server |" for each in LAYOUTS]
    rows += [f"| {each.name} | a pickle | {each.origin} | `saegis sae convert` |" for each in PICKLED]
    rows += [f"| {mwhanna.NAME} | {_files(mwhanna.FILES)} | {mwhanna.ORIGIN} | `saegis sae convert` |"]
    named = [f"| {each.name} | {_files(each.files)} | {each.reason} | nothing |" for each in UNREAD]
    head = ["### Layouts", "", "| layout | files | what | read by |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, *named]) + "\n"


def _files(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _releases() -> str:
    entries = {name: release(name) for name in release_names()}
    best = Counter(_best(each) for each in entries.values())
    total = sum(map(len, entries.values()))
    each = Counter(coverage(entry).standing for found in entries.values() for entry in found)
    told = ["### SAELens's releases", ""]
    told += [f"SAELens's table has {len(entries)} releases with {total:,} SAEs.", ""]
    told += ["| | releases | SAEs |", "|---|---|---|"]
    told += [f"| {standing} | {best[standing]} | {each[standing]:,} |" for standing in _ORDER]
    told += ["", "A release counts where the best of its SAEs stand. Why SAEs are not served:", ""]
    told += ["| reason | releases | SAEs | such as |", "|---|---|---|---|"]
    reasons: dict[str, list[Entry]] = defaultdict(list)
    for found in entries.values():
        for entry in found:
            if reason := coverage(entry).reason:
                reasons[reason].append(entry)
    for reason, listed in sorted(reasons.items(), key=lambda item: -len(item[1])):
        names = sorted({entry.release for entry in listed})
        told.append(f"| {reason} | {len(names)} | {len(listed):,} | `{names[0]}` |")
    return "\n".join(told) + "\n"


def _best(entries: tuple[Entry, ...]) -> Standing:
    standings = {coverage(entry).standing for entry in entries}
    return next(standing for standing in _ORDER if standing in standings)


def main() -> int:
    """Write the document, or with --check return 1 if it is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the tables are not current")
    text = DOCUMENT.read_text(encoding="utf-8")
    made = current(text)
    if parser.parse_args().check:
        if made != text:
            print(f"{DOCUMENT} is not current: run scripts/gen_saes.py", file=sys.stderr)
        return int(made != text)
    DOCUMENT.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
