"""Reports: ratios with their spread, as a table, as Markdown and as JSON."""

from dataclasses import asdict, dataclass
from statistics import median

from rich.table import Table


@dataclass(frozen=True)
class Ratio:
    """What was compared, the median tokens a second of both sides, and the ratio over the paired rounds.

    `bar` is what the ratio should reach; `low` and `high` are the least and the greatest of the rounds.
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

    @classmethod
    def of(
        cls, subject: str, what: str, against: str, ours: list[float], theirs: list[float], bar: str
    ) -> "Ratio":
        """The median of the ratios of rounds that ran one after the other."""
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        return cls(
            subject,
            what,
            against,
            median(ours),
            median(theirs),
            median(ratios),
            min(ratios),
            max(ratios),
            bar,
        )

    def cells(self) -> tuple[str, ...]:
        """One row of the table."""
        return (
            self.subject,
            self.what,
            self.against,
            f"{self.ours:,.0f}",
            f"{self.theirs:,.0f}",
            f"{self.ratio:.2f}",
            f"{self.low:.2f}–{self.high:.2f}",
            self.bar,
        )


HEADINGS = ("model", "what", "against", "tok/s", "tok/s", "ratio", "rounds", "bar")


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
