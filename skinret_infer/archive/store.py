"""The interface between a Searcher and the store of its cases."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .._values import AttributeValue
from ..cases import Case
from ..descriptor import Vector
from ..errors import ArchiveError, InputError, SkinretError


@dataclass(frozen=True, slots=True)
class Record:
    """A case as an archive keeps it, without its descriptor."""

    case_id: str
    diagnosis: str
    group: str
    confirmed_by: str
    attributes: Mapping[str, AttributeValue]
    image_ref: str
    image_sha256: str

    @classmethod
    def of(cls, case: Case, image_sha256: str) -> "Record":
        """Return the record of a case."""
        return cls(
            case.case_id,
            case.diagnosis,
            case.group,
            case.confirmed_by,
            dict(case.attributes),
            case.image_ref,
            image_sha256,
        )

    def row(self) -> tuple[str, ...]:
        """Return the record as text columns."""
        attributes = json.dumps(dict(self.attributes), sort_keys=True, ensure_ascii=False)
        return (
            self.case_id,
            self.diagnosis,
            self.group,
            self.confirmed_by,
            attributes,
            self.image_ref,
            self.image_sha256,
        )

    def differences(self, other: "Record") -> list[str]:
        """Return the names of the facts in which another record differs; 1 is not 1.0, and not true."""
        pairs = zip(self.__dataclass_fields__, self.row(), other.row(), strict=True)
        return [name for name, ours, theirs in pairs if ours != theirs]


@dataclass(frozen=True, slots=True)
class Match:
    """A record, its score, and its products [6 + C]: six cosines, and the similarity of each concept."""

    record: Record
    score: float
    products: npt.NDArray[np.float64]


@dataclass(slots=True)
class AddReport:
    """The outcome of adding or importing cases, by case id.

    Attributes
    ----------
    added :
        Cases that are new in the archive.
    replaced :
        Cases that took the place of a case with the same id.
    unchanged :
        Cases that were in the archive already.
    failed :
        Cases that were not added, each with its error; only where errors are skipped.
    warnings :
        Warnings about the pictures of cases, such as of writing burned into one.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, SkinretError] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        added, replaced, unchanged = map(len, (self.added, self.replaced, self.unchanged))
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{added} cases added, {replaced} replaced, {unchanged} there already{failed}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "added": self.added,
            "replaced": self.replaced,
            "unchanged": self.unchanged,
            "failed": {case_id: error.to_dict() for case_id, error in self.failed.items()},
            "warnings": self.warnings,
        }

    def warning_lines(self) -> list[str]:
        """Return each warning once, with the first of its cases."""
        ids: dict[str, list[str]] = {}
        for case_id, warnings in self.warnings.items():
            for warning in warnings:
                ids.setdefault(warning, []).append(case_id)
        return [f"{_list_first(case_ids)}: {warning}" for warning, case_ids in ids.items()]


def _list_first(case_ids: Sequence[str], count: int = 5) -> str:
    more = len(case_ids) - count
    return ", ".join(case_ids[:count]) + (f" and {more} more" if more > 0 else "")


def check_on_duplicate(on_duplicate: str) -> None:
    """Raise InputError unless the value is "error", "skip" or "replace"."""
    if on_duplicate not in ("error", "skip", "replace"):
        raise InputError(
            "on_duplicate cannot be used",
            code="option",
            expected="error, skip or replace",
            found=repr(on_duplicate),
        )


def keeps_old(case_id: str, differences: Sequence[str], on_duplicate: str) -> bool:
    """Return whether the case in the archive stays when a new one differs from it in these facts.

    Raises ArchiveError if there are differences and on_duplicate is "error".
    """
    if not differences or on_duplicate == "skip":
        return True
    if on_duplicate == "replace":
        return False
    raise ArchiveError(
        f"case {case_id!r:.80} is in the archive already, with other facts",
        code="case-duplicate",
        expected="a new case id, or the same facts",
        found=f"different {', '.join(differences)}",
        cure='pass on_duplicate="replace" (--replace) to replace it, or "skip" (--skip) to keep the old one',
        case_id=case_id,
    )


class SearchResult(NamedTuple):
    """The k best cases of each query, the number of cases that match the filter, the archive's state."""

    matches: list[list[Match]]
    searched: int
    state: str  # identifies the content of the archive at that moment, for an audit


class Store(Protocol):
    """The methods of an archive that a Searcher needs. `Archive` (a file) has them; a database server can.

    A store is bound to one model: it holds descriptors of one Layout and refuses those of another model.
    Every call sees the content of one moment. Calls are safe in several threads and raise only SkinretError.
    """

    def __len__(self) -> int:
        """Return the number of cases; 0 for a store that does not exist yet."""
        ...

    def case_ids(self) -> list[str]:
        """Return the ids of all cases, sorted."""
        ...

    def get(self, case_ids: Collection[str]) -> dict[str, Record]:
        """Return the records of the case ids that are in the store, by case id."""
        ...

    def get_with_descriptors(self, case_ids: Collection[str]) -> dict[str, tuple[Record, Vector]]:
        """Return record and descriptor [D] of the case ids that are in the store, by case id."""
        ...

    def write(self, records: Sequence[Record], descriptors: Vector) -> None:
        """Write cases with their descriptors, float32 [N, D], all or none. A case replaces one with its id.

        The cases are durable when the call returns.
        """
        ...

    def update(self, record: Record) -> bool:
        """Change the facts of a case and keep its descriptor; return False if there is no such case."""
        ...

    def remove(self, case_ids: Collection[str]) -> int:
        """Remove cases, so that none of their bytes stay; return how many cases were removed."""
        ...

    def search(
        self,
        queries: Vector,
        weights: npt.NDArray[np.float64],
        k: int,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
    ) -> SearchResult:
        """Return the k best cases of each query, the number of cases that match the filter, and the state.

        Parameters
        ----------
        queries :
            The descriptors of the queries, float32 [Q, D].
        weights :
            The weight of each product, float64 [6 + C] (descriptor.part_weights).
        where, exclude :
            As in `Searcher.query`. They apply before the ranking.

        Notes
        -----
        The score of a case is weights . descriptor.products(query, case), in float64. The best cases come
        first, equal ones by case id. Raises ArchiveError if there are no cases, InputError for a bad filter.
        """
        ...

    def check_open(self) -> None:
        """Raise ArchiveError if the store was closed."""
        ...

    def close(self) -> None:
        """Release files and connections. A closed store cannot be used again."""
        ...
