"""What a query gives back: hits, best first, and what ran to find them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from .cases import AttributeValue
from .errors import InputError, printable
from .evidence import Evidence
from .imaging.decode import ImageSource
from .imaging.recipe import Pixels


class Asked(Protocol):
    """What a query was, as its results remember it while the Searcher is open."""

    def picture(self, image: ImageSource | None) -> Pixels | None:
        """Return the picture of the query, or None if it cannot be had any more."""
        ...

    def square(self) -> Pixels:
        """Return the part of the picture that the model saw, as it saw it, [S, S, 3]."""
        ...

    def evidence(
        self, hit: "Hit", image: ImageSource | None, images: str | Path | None, case: bool
    ) -> tuple[Evidence, Pixels | None]:
        """Return what a hit's score is made of, and the picture of the case."""
        ...


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
    _asked: Asked | None = field(default=None, repr=False, compare=False)

    def evidence(
        self, image: ImageSource | None = None, *, images: str | Path | None = None, case: bool = True
    ) -> Evidence:
        """Say what the score is made of, with maps over the query and over the case that add up to it.

        image : the case's picture; None reads `image_ref`.
        images : the folder to which `image_ref` is relative; the picture must lie below it.
        case : False leaves the case's maps out, for which its picture is needed.

        Raises InputError for a picture that is missing or not the case's, ArchiveError where the case was
        removed or replaced since, or the Searcher closed.
        """
        if self._asked is None:
            raise InputError(
                "the evidence of this hit cannot be made",
                code="evidence-gone",
                expected="a hit as Searcher.query returned it",
                found="a copy of one",
            )
        return self._asked.evidence(self, image, images, case)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values only, ready for json.dumps."""
        return {name: _plain(value) for name, value in _kept(self).items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduced(self)


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
    request_id: str  # one for each query, as the audit log has it
    time: str  # when it was asked, UTC
    where: Mapping[str, Any]  # the filter
    exclude: tuple[str, ...]
    hashes: Mapping[str, str]  # SHA-256: image (its decoded pixels), words, bundle, archive (its state)
    warnings: tuple[str, ...] = ()
    _asked: Asked | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __getitem__(self, index: int) -> Hit:
        return self.hits[index]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values only, ready for json.dumps."""
        return {name: _plain(value) for name, value in _kept(self).items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduced(self)

    def save(
        self, path: str | Path, *, image: ImageSource | None = None, images: str | Path | None = None
    ) -> None:
        """Write one page of HTML that needs nothing else: the query, the hits, and the evidence of each.

        image : the query's picture once more, where the query was given no path; without, the page shows the
            square that the model saw.
        images : the folder to which the archive's image references are relative; a case whose picture is not
            there, or is another by now, is shown without.

        Needs the extra `report`, and the Searcher still open. Raises InputError, ArchiveError.
        """
        from .report.html import write_report

        write_report(self, path, image, images)

    def __str__(self) -> str:
        read = any(h.agreement is not None for h in self.hits)
        parts = ["local", "global", *["agreement"] * read]
        rows = [["rank", "case", "score", *parts, "diagnosis", "confirmed by"]]
        for h in self.hits:
            numbers = [h.score, h.local, h.global_, *([h.agreement or 0.0] * read)]
            case_id, diagnosis, confirmed_by = map(printable, (h.case_id, h.diagnosis, h.confirmed_by))
            rows.append([str(h.rank), case_id, *(f"{x:.4f}" for x in numbers), diagnosis, confirmed_by])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines += [f"warning: {printable(w)}" for w in self.warnings]
        total = self.timings_ms.get("total", 0.0)
        lines.append(
            f"{len(self)} of {self.searched} cases, {total:.0f} ms on {self.runtime} in {self.precision}. "
            "Score: similarity, not probability."
        )
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, Hit):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _kept(result: Any) -> dict[str, Any]:
    """Return the fields of a result that outlive its Searcher: all but the question, which holds it."""
    return {f.name: getattr(result, f.name) for f in fields(result) if f.name != "_asked"}


def _reduced(result: Any) -> tuple[Any, ...]:
    made: Any = type(result)
    return partial(made, **_kept(result)), ()
