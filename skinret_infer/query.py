"""The options of a query, checked once and frozen, and the query in progress."""

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ._values import AttributeValue, is_storable, nfc
from .archive.filters import Filter, Range, check_filter
from .bundle import Manifest
from .descriptor import check_levels, check_weight
from .encoder import Picture
from .errors import InputError
from .imaging.decode import ImageSource
from .words.reading import Reading

DEFAULT_K = 10

Where = Mapping[str, Any]
Context = Mapping[str, AttributeValue | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryOptions:
    """The options of a query, as `Searcher.query` documents them, checked and with the model's defaults."""

    k: int
    where: Mapping[str, Filter]
    exclude: tuple[str, ...]
    beta: float
    gamma: float
    levels: Mapping[str, float]

    @classmethod
    def checked(
        cls,
        manifest: Manifest,
        *,
        k: int = DEFAULT_K,
        where: Where | None = None,
        exclude: Collection[str] = (),
        beta: float | None = None,
        gamma: float | None = None,
        levels: Mapping[str, float] | None = None,
    ) -> "QueryOptions":
        """Return the options for a model; None takes its defaults. Raises InputError."""
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise InputError(
                "k cannot be used", code="k-range", expected="an int of at least 1", found=repr(k)
            )
        beta = manifest.beta if beta is None else beta
        return cls(
            k=int(k),
            beta=check_weight("beta", beta, "global similarity alone", "local similarity alone"),
            gamma=_check_gamma(manifest, gamma),
            levels=check_levels(levels),
            exclude=tuple(check_ids("exclude", exclude)),
            where=check_filter(where),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for json.dumps."""
        where = {n: w.to_dict() if isinstance(w, Range) else w for n, w in self.where.items()}
        return {
            "k": self.k,
            "where": where,
            "exclude": list(self.exclude),
            "beta": self.beta,
            "gamma": self.gamma,
            "levels": dict(self.levels),
        }


@dataclass(slots=True, kw_only=True, eq=False)
class Query:
    """A query in progress. `text` is set after its check, `picture` after the image is decoded.

    image : None for a query by words alone.
    reading : what was understood of the text.
    """

    image: ImageSource | None
    raw_text: object
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    text: str = ""
    reading: Reading | None = None
    picture: Picture | None = None


def check_context(context: Context | None) -> dict[str, Any]:
    """Return the context of an audit record as a dict. Raises InputError."""
    items = dict(context) if isinstance(context, Mapping) else {}
    storable = all(
        isinstance(name, str)
        and (value is None or (isinstance(value, str | int | float) and is_storable(value)))
        for name, value in items.items()
    )
    if not storable or not (context is None or isinstance(context, Mapping)):
        raise InputError(
            "the context cannot be recorded",
            code="context",
            expected='a mapping of text to text or numbers, such as {"user": "4711"}',
            found=f"{context!r:.80}",
        )
    return items


def check_ids(name: str, case_ids: Collection[str]) -> list[str]:
    """Return case ids as a list. Raises InputError for a single str or an int, which would match nothing."""
    is_list = isinstance(case_ids, Iterable) and not isinstance(case_ids, str)
    ids = list(case_ids) if is_list else [None]
    if not all(isinstance(i, str) for i in ids):
        raise InputError(
            f"{name} cannot be used",
            code="option",
            expected="a list of case ids, each a str",
            found=f"{case_ids!r:.80}",
        )
    return [nfc(str(i)) for i in ids]


def _check_gamma(manifest: Manifest, gamma: float | None) -> float:
    if gamma is None:
        return manifest.gamma
    gamma = check_weight("gamma", gamma, "visual similarity alone", "concept similarity alone")
    if gamma and not manifest.concepts:
        raise InputError(
            "gamma cannot be used",
            code="gamma-range",
            expected="0: this model predicts no concepts",
            found=repr(gamma),
            cure="leave gamma out, or train a model that predicts concepts",
        )
    return gamma
