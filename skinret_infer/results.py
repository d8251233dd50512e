"""What a query gives back: hits, best first, and what ran to find them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .cases import AttributeValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One case of the archive, and how it compares with the query.

    score : in [-1, 1], a similarity, never a probability:
        (1 - gamma) * (beta * local + (1 - beta) * global_) + gamma * agreement.
    local, global_ : the means of the three local and of the three global cosines, weighted by the levels.
    cosines : all six, such as {"local_low": 0.81, ...}.
    agreement : on how much of group and criteria the two are expected to agree, by what the model reads off
        both, 0 to 1; None if it reads nothing.
    traits : the same of each, such as {"group": 0.93, "pigment_network": 0.71, ...}.
    """

    rank: int
    case_id: str
    score: float
    local: float
    global_: float
    cosines: Mapping[str, float]
    agreement: float | None
    traits: Mapping[str, float]
    diagnosis: str
    group: str
    confirmed_by: str
    attributes: Mapping[str, AttributeValue]
    image_ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The hits of one query, best first, ties by case id."""

    hits: tuple[Hit, ...]
    text: str  # the words as they were read; "" for a query by image alone
    k: int
    beta: float
    gamma: float
    levels: Mapping[str, float]  # the weights of low, mid and high among the cosines
    searched: int  # cases that the filter let through
    runtime: str  # what ran, such as "onnxruntime-cpu"
    precision: str  # in which it ran, such as "fp32"
    model: str
    timings_ms: Mapping[str, float]  # image, text, describe, search, and in all; the first three overlap
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __getitem__(self, index: int) -> Hit:
        return self.hits[index]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values only, ready for json.dumps."""
        return asdict(self)

    def __str__(self) -> str:
        read = any(h.agreement is not None for h in self.hits)
        parts = ["local", "global", *["agreement"] * read]
        rows = [["rank", "case", "score", *parts, "diagnosis", "confirmed by"]]
        for h in self.hits:
            numbers = [h.score, h.local, h.global_, *([h.agreement or 0.0] * read)]
            rows.append([str(h.rank), h.case_id, *(f"{x:.4f}" for x in numbers), h.diagnosis, h.confirmed_by])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines += [f"warning: {w}" for w in self.warnings]
        total = self.timings_ms.get("total", 0.0)
        lines.append(
            f"{len(self)} of {self.searched} cases, {total:.0f} ms on {self.runtime} in {self.precision}. "
            "Score: similarity, not probability."
        )
        return "\n".join(lines)
