"""Reports: ratios with their spread, as a table, as Markdown and as JSON."""

from dataclasses import asdict, dataclass
from math import comb
from statistics import median

from rich.table import Table


@dataclass(frozen=True)
class Ratio:
    """What was compared, the median of both sides, and the ratio over the paired rounds.

    `unit` is that of both sides: tokens a second, of which more is better, or milliseconds. `bar` is what the
    ratio should reach, or our side where it names a unit; `low` and `high` are the interval of the ratio, see
    `interval`.
    """

    subject: str
    what: str
    against: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    bar: str
    unit: str = "tok/s"

    @classmethod
    def of(
        cls,
        subject: str,
        what: str,
        against: str,
        ours: list[float],
        theirs: list[float],
        bar: str,
        unit: str = "tok/s",
    ) -> "Ratio":
        """The median of the ratios of rounds that ran one after the other."""
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        middle, (low, high) = median(ratios), interval(ratios)
        return cls(subject, what, against, median(ours), median(theirs), middle, low, high, bar, unit)

    def cells(self) -> tuple[str, ...]:
        """One row of the table."""
        return (
            self.subject,
            self.what,
            self.against,
            self._told(self.ours),
            self._told(self.theirs),
            f"{self.ratio:.2f}",
            f"{self.low:.2f}–{self.high:.2f}",
            self.bar,
        )

    def _told(self, value: float) -> str:
        return f"{value:,.1f} ms" if self.unit == "ms" else f"{value:,.0f} {self.unit}"


#: How sure an interval holds the median.
SURE = 0.9
HEADINGS = ("model", "what", "against", "ours", "theirs", "ratio", f"{SURE:.0%}", "bar")


def interval(values: list[float]) -> tuple[float, float]:
    """Between which of n values their true median lies, with the chance SURE at least, however they scatter.

    The k-th least and the k-th greatest have it between them unless fewer than k values lie on one side of
    it, whose number is binomial (n, ½). Of fewer than five values, the least and the greatest.
    """
    ordered, count, missed, k = sorted(values), len(values), 2.0 / 2 ** len(values), 1
    while (missed := missed + 2.0 * comb(count, k) / 2**count) <= 1.0 - SURE:
        k += 1
    return ordered[k - 1], ordered[-k]


def rich_table(ratios: list[Ratio], title: str) -> Table:
    """The ratios as a table for the terminal."""
    table = Table(title=title)
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if 3 <= index <= 6 else "left", no_wrap=index >= 3)
    for ratio in ratios:
        table.add_row(*ratio.cells())
    return table


def markdown(ratios: list[Ratio]) -> str:
    """The ratios as a Markdown table."""
    lines = [HEADINGS, tuple("---:" if 3 <= index <= 6 else "---" for index in range(len(HEADINGS)))]
    lines += [ratio.cells() for ratio in ratios]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def as_json(ratios: list[Ratio]) -> list[dict[str, object]]:
    """The ratios for a program to read."""
    return [asdict(ratio) for ratio in ratios]
