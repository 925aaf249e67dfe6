"""Amounts of memory, as settings write them and as people are told them."""

import re
from dataclasses import dataclass
from typing import Self

_UNITS = {"B": 1} | {
    f"{letter}{infix}B": base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, letter in enumerate("KMGTP", 1)
}
_WRITTEN = re.compile(r"(?P<number>[0-9]{1,15}(\.[0-9]{1,15})?) ?(?P<unit>[A-Za-z]{1,3})?")
_FORMS = "write bytes with a unit, such as 4GiB or 512MB, or a share of what is free, such as 0.5"


@dataclass(frozen=True, slots=True)
class Portion:
    """How much may be taken of the memory that is free: `size` bytes or, where that is None, a `share` of it,
    above 0 and below 1."""

    size: int | None = None
    share: float = 0.5

    @classmethod
    def parse(cls, text: str) -> Self:
        """A portion as settings write it: 4GiB, 512MB, 0.5. Raises ValueError."""
        written = _WRITTEN.fullmatch(text.strip())
        if written is None:
            raise ValueError(f"{text!r} is no amount of memory; {_FORMS}")
        number, unit = float(written["number"]), written["unit"]
        if unit is None:
            if not 0.0 < number < 1.0:
                raise ValueError(f"{text!r} has no unit and is no share between 0 and 1; {_FORMS}")
            return cls(share=number)
        units = {name.lower(): size for name, size in _UNITS.items()}
        if unit.lower() not in units:
            raise ValueError(f"{text!r} has a unit that is none; {_FORMS}")
        if (size := round(number * units[unit.lower()])) < 1:
            raise ValueError(f"{text!r} is nothing; {_FORMS}")
        return cls(size=size)

    def of(self, free: int) -> int:
        """How many bytes it is of `free` ones; may be more than there are."""
        return int(free * self.share) if self.size is None else self.size


def in_units(size: int) -> str:
    """Bytes as people read them: 4.0 GiB."""
    number, name = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if number < 1024.0:
            break
        number, name = number / 1024.0, larger
    return f"{size} B" if name == "B" else f"{number:.1f} {name}"
