"""The seam between a Searcher and what holds its cases."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .cases import AttributeValue, Case
from .descriptor import Vector


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
        """Return what is kept of a case."""
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


@dataclass(frozen=True, slots=True)
class Match:
    """A record, its score, and its products [6 + C]: the six cosines, and the agreement of each trait."""

    record: Record
    score: float
    products: npt.NDArray[np.float64]


class Store(Protocol):
    """What a Searcher asks of an archive: `Archive`, a file, is one; a server's database can be another.

    A store is bound to one model: it holds descriptors of one Layout, and refuses another model's. Every call
    sees a state that was whole at one moment. Safe from several threads. All raise SkinretError alone.
    """

    def __len__(self) -> int:
        """Return how many cases there are; 0 for a store that is not made yet."""
        ...

    def find(self, case_ids: Collection[str]) -> dict[str, Record]:
        """Return the records of those of the case ids that are there."""
        ...

    def write(self, records: Sequence[Record], descriptors: Vector) -> None:
        """Write cases with their descriptors, float32 [N, D], all or none; an id that is there is replaced.

        What was written is durable when the call returns.
        """
        ...

    def remove(self, case_ids: Collection[str]) -> int:
        """Remove cases, so that none of their bytes stay; return how many were there."""
        ...

    def search(
        self,
        queries: Vector,
        weights: npt.NDArray[np.float64],
        k: int,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
    ) -> tuple[list[list[Match]], int]:
        """Return the k best cases of each query, and how many cases the filter let through.

        queries : the descriptors of the queries, float32 [Q, D].
        weights : what the product of each part counts, float64 [6 + C] (descriptor.part_weights).
        where, exclude : as `Searcher.query` has them; they are heeded before the ranking.

        The score of a case is weights . descriptor.products(query, case), in float64; the best come first,
        equal ones by case id. Raises ArchiveError where there are no cases, InputError for a bad filter.
        """
        ...

    def check_open(self) -> None:
        """Raise ArchiveError if the store was closed."""
        ...

    def close(self) -> None:
        """Give back what is held. A closed store cannot be used again."""
        ...
