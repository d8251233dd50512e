"""The results of a query: hits, best first, and what ran to find them."""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, overload

from ._values import AttributeValue
from .archive.filters import Filter, Range
from .errors import InputError, printable
from .evidence import Evidence
from .imaging.decode import ImageSource
from .imaging.recipe import Pixels
from .words.reading import Finding


class HitExplainer(Protocol):
    """Makes the evidence of a query's hits while the Searcher is open."""

    def query_picture(self, image: ImageSource | None) -> Pixels | None:
        """Return the picture of the query, or None if it cannot be read any more."""
        ...

    def model_input(self) -> Pixels | None:
        """Return the picture as the model saw it, [S, S, 3], or None for a query by words alone."""
        ...

    def explain(
        self, hit: "Hit", case_image: ImageSource | None, image_folder: str | Path | None, with_case: bool
    ) -> tuple[Evidence, Pixels | None]:
        """Return the evidence of a hit, and the picture of the case, or None without with_case."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One case of the archive, and its similarity to the query.

    Attributes
    ----------
    score :
        a similarity in [-1, 1], never a probability: (1 - gamma) * visual + gamma * concept_similarity,
        where visual = beta * local_similarity + (1 - beta) * global_similarity.
    local_similarity, global_similarity :
        the means of the three local and of the three global cosines,
        weighted by the levels.
    cosines :
        all six, such as {"local_low": 0.81, ...}.
    concept_similarity :
        the probability that the predicted concepts of query and case coincide, averaged over
        the concepts, 0 to 1; None if the model predicts none.
    concepts :
        the same for each concept, such as {"group": 0.93, "pigment_network": 0.71, ...}.
    diagnosis, group, confirmed_by, attributes, image_ref :
        the facts of the case in the archive.
    image_sha256 :
        the SHA-256 of the decoded pixels of its picture.
    """

    rank: int
    case_id: str
    score: float
    local_similarity: float
    global_similarity: float
    cosines: Mapping[str, float]
    concept_similarity: float | None
    concepts: Mapping[str, float]
    diagnosis: str
    group: str
    confirmed_by: str
    attributes: Mapping[str, AttributeValue]
    image_ref: str
    image_sha256: str
    explainer: HitExplainer | None = field(default=None, repr=False, compare=False)

    def evidence(
        self,
        case_image: ImageSource | None = None,
        *,
        image_folder: str | Path | None = None,
        with_case: bool = True,
    ) -> Evidence:
        """Return the terms of the score, with maps over the query and over the case that add up to it.

        Parameters
        ----------
        case_image :
            the case's picture; None reads `image_ref`.
        image_folder :
            the folder to which `image_ref` is relative; the picture must lie below it.
        with_case :
            False leaves out the case's maps; then its picture is not needed.

        Notes
        -----
        Raises InputError for a picture that is missing or is not the case's. Raises ArchiveError if the
        case was removed or replaced after the query, or if the Searcher is closed.
        """
        if self.explainer is None:
            raise InputError(
                "the evidence of this hit cannot be made",
                code="evidence-gone",
                expected="a hit that Searcher.query returned",
                found="a copy of a hit",
            )
        return self.explainer.explain(self, case_image, image_folder, with_case)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for json.dumps."""
        return {name: _plain_value(value) for name, value in _lasting_fields(self).items()}

    def __repr__(self) -> str:
        return f"Hit(rank {self.rank}, case {self.case_id!r}, score {self.score:.4f})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The hits of one query, best first, ties by case id.

    Attributes
    ----------
    text :
        the text after its check; "" for a query by image alone.
    has_image :
        False for a query by words alone.
    findings :
        what was understood of the text: criteria, their values, and the place of the words in it.
    recorded_findings :
        whether the archive's records of the criteria take part in the score.
    k, beta, gamma, levels, where, exclude :
        the options that were used; another query accepts this `where`.
    searched :
        how many cases passed the filter.
    runtime, precision, model :
        what ran, such as "onnxruntime-cpu", "fp32" and the model's name and version.
    timings_ms :
        image (decode), text and encode, which overlap, then search, and total. In a batch, each is
        divided by the size of the batch.
    request_id, time :
        the id and the time (UTC) of the query, as in the audit log.
    hashes :
        SHA-256 of image (decoded pixels), text, findings (their canonical words), bundle, and of the
        archive's history.
    warnings :
        texts for a person, each with a stable `code`.
    """

    hits: tuple[Hit, ...]
    text: str
    has_image: bool
    findings: tuple[Finding, ...]
    recorded_findings: bool
    k: int
    beta: float
    gamma: float
    levels: Mapping[str, float]
    searched: int
    runtime: str
    precision: str
    model: str
    timings_ms: Mapping[str, float]
    request_id: str
    time: str
    where: Mapping[str, Filter]
    exclude: tuple[str, ...]
    hashes: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    explainer: HitExplainer | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> "Results": ...
    def __getitem__(self, index: int | slice) -> "Hit | Results":
        if isinstance(index, slice):
            return replace(self, hits=self.hits[index])
        return self.hits[index]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for json.dumps."""
        return {name: _plain_value(value) for name, value in _lasting_fields(self).items()}

    def to_records(self) -> list[dict[str, Any]]:
        """Return one flat dict for each hit, such as pandas.DataFrame takes; attributes are columns too."""
        flat = ("cosines", "concepts", "attributes")
        return [
            {
                **{name: value for name, value in hit.to_dict().items() if name not in flat},
                **hit.cosines,
                **{f"concept_{name}": value for name, value in hit.concepts.items()},
                **{f"attribute_{name}": value for name, value in hit.attributes.items()},
            }
            for hit in self.hits
        ]

    def to_html(
        self,
        path: str | Path,
        *,
        image: ImageSource | None = None,
        image_folder: str | Path | None = None,
    ) -> list[str]:
        """Write one self-contained HTML page: the query, the hits, and the evidence of each.

        Parameters
        ----------
        image :
            the query's picture again, if the query got it in another form than a path. Without it, the page
            shows only the square that the model saw.
        image_folder :
            the folder to which the archive's image references are relative. A case is shown without
            its picture if that is missing or has changed.

        Returns
        -------
        for each case without its picture, its id and the reason.

        Notes
        -----
        Needs the extra `report` and an open Searcher. Raises InputError, ArchiveError.
        """
        from .report.html import write_report

        return write_report(self, path, image, image_folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)

    def __repr__(self) -> str:
        best = f", best {self.hits[0].case_id!r} {self.hits[0].score:.4f}" if self.hits else ""
        return f"Results({len(self)} of {self.searched} cases{best})"

    def __str__(self) -> str:
        rows = self._table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines += [*self._understood(), *(f"warning: {printable(warning)}" for warning in self.warnings)]
        return "\n".join([*lines, self._summary()])

    def _repr_html_(self) -> str:
        """Return the table for a notebook, without pictures."""
        head, *rows = [[html.escape(cell) for cell in row] for row in self._table()]
        lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
        lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
        notes = [*self._understood(), *(f"warning: {warning}" for warning in self.warnings), self._summary()]
        return f"<table>{''.join(lines)}</table>" + "".join(f"<p>{html.escape(note)}</p>" for note in notes)

    def _table(self) -> list[list[str]]:
        """Return a header and a row of cells for each hit."""
        has_concepts = any(hit.concept_similarity is not None for hit in self.hits)
        columns = ["local", "global", "concepts"] if has_concepts else ["local", "global"]
        rows = [["rank", "case", "score", *columns, "diagnosis", "confirmed by"]]
        for hit in self.hits:
            numbers = [hit.score, hit.local_similarity, hit.global_similarity]
            if has_concepts:
                numbers.append(hit.concept_similarity or 0.0)
            case_id, diagnosis, confirmed_by = map(printable, (hit.case_id, hit.diagnosis, hit.confirmed_by))
            rows.append([str(hit.rank), case_id, *(f"{x:.4f}" for x in numbers), diagnosis, confirmed_by])
        return rows

    def _understood(self) -> list[str]:
        """Return a line of what was understood of the text, if there is any."""
        return [f"understood: {'; '.join(map(str, self.findings))}"] if self.findings else []

    def _summary(self) -> str:
        total = self.timings_ms.get("total", 0.0)
        return (
            f"{len(self)} of {self.searched} cases, {total:.0f} ms on {self.runtime} in {self.precision}. "
            "Score: similarity, not probability."
        )


def _plain_value(value: Any) -> Any:
    if isinstance(value, Hit | Range | Finding):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(name): _plain_value(item) for name, item in value.items()}
    return [_plain_value(item) for item in value] if isinstance(value, list | tuple) else value


def _lasting_fields(result: Any) -> dict[str, Any]:
    """Return the fields of a result that are still valid without its Searcher: all but the explainer."""
    return {f.name: getattr(result, f.name) for f in fields(result) if f.name != "explainer"}


def _reduce(result: Any) -> tuple[Any, ...]:
    kind: Any = type(result)
    return partial(kind, **_lasting_fields(result)), ()
