"""The report of the search benchmark: competitors by sizes and batches, then the table of `Report`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from report import THIRD_PARTY, Report, Row

ONE, MANY, FILTERED = "one query", "32 queries at once, each", "one query, filter on a value"
UNSTRUCTURED = "20,000 cases without structure (isotropic), where nothing can be pruned"
_COLUMNS = {ONE: "1", MANY: "32", FILTERED: "1, 5 %"}


def section_of(cases: int) -> str:
    return f"{cases:,} cases"


@dataclass
class SearchReport(Report):
    """Rows by the number of cases, with numpy fp32 as the baseline."""

    name: str = "search"
    title: str = "Search; of faiss, only Flat is exact. Time beside numpy fp32"
    sections: Sequence[str] = ()
    left: Collection[str] = ()

    def plan(self, sizes: Sequence[int]) -> None:
        """Set the sections from the sizes."""
        self.sections = [*map(section_of, sizes), UNSTRUCTURED]
        self.left = self.sections[: (len(sizes) + 1) // 2]

    def text(self) -> str:
        lines = [[cell.replace("**", "") for cell in line] for line in self._compact()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = (
            "  ".join(
                c.rjust(w) if n else c.ljust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )
        return "\n".join([*table, "", super().text()])

    def markdown(self) -> str:
        header, *lines = [f"| {' | '.join(line)} |" for line in self._compact()]
        rule = f"|---|{'---:|' * (header.count('|') - 2)}"
        return "\n".join([header, rule, *lines, "", super().markdown()])

    def _compact(self) -> list[list[str]]:
        """Return the table of competitors by sizes and batches, in ms a query."""
        rows = [row for row in self.rows if row.name in _COLUMNS]
        header = ["ms a query", *(f"{_short_size(row)}, {_COLUMNS[row.name]}" for row in rows)]
        ours = [c for c in self.competitors if c not in THIRD_PARTY]
        order = [c for c in self.competitors if c in THIRD_PARTY] + ours
        return [header, *([f"**{c}**" if c in ours else c, *(self._cell(r, c) for r in rows)] for c in order)]


def _short_size(row: Row) -> str:
    if row.section == UNSTRUCTURED:
        return "isotropic"
    cases = int(row.section.split()[0].replace(",", ""))
    return f"{cases // 1000:,}k" if cases < 10**6 else f"{cases / 10**6:g}M"
