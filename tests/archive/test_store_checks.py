"""The checks for authors of stores: the archive passes, and a store that breaks a promise does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import LAYOUT, open_archive

from skinret_infer.archive.archive import Archive
from skinret_infer.archive.store import SearchResult
from skinret_infer.descriptor import Layout
from skinret_infer.testing import check_store, random_descriptors


@pytest.mark.parametrize("layout", [LAYOUT, Layout(local=(4, 6, 8), global_=(4, 6, 8))])
def test_the_archive_keeps_every_promise(layout: Layout, tmp_path: Path) -> None:
    check_store(lambda: open_archive(tmp_path / "a", layout=layout), layout)


class Broken(Archive):
    """An archive in which another function replaces one method."""

    def __init__(self, path: Path, method: str, other: Callable[..., Any]) -> None:
        super().__init__(path, "f" * 64, LAYOUT, "m 1")
        original = getattr(self, method)
        setattr(self, method, lambda *arguments, **options: other(original, *arguments, **options))


def rounded(search: Callable[..., SearchResult], *arguments: Any) -> SearchResult:
    """Return scores like those of a database that sums in float32."""
    found = search(*arguments)
    return found._replace(
        matches=[
            [replace(m, score=float(np.float32(m.score) + 1e-7)) for m in some] for some in found.matches
        ]
    )


def without_state(search: Callable[..., SearchResult], *arguments: Any) -> SearchResult:
    return search(*arguments)._replace(state="always the same")


def backwards(search: Callable[..., SearchResult], *arguments: Any) -> SearchResult:
    """Return equal scores in the wrong order of ids."""
    found = search(*arguments)
    return found._replace(
        matches=[
            sorted(some, key=lambda m: (m.score, m.record.case_id), reverse=True) for some in found.matches
        ]
    )


def one_by_one(write: Callable[..., None], records: Any, descriptors: Any) -> None:
    for n, record in enumerate(records):
        write([record], descriptors[n : n + 1])


def integers_only(get: Callable[..., Any], case_ids: Any) -> Any:
    return {
        case_id: replace(
            record,
            attributes={n: int(v) if isinstance(v, float) else v for n, v in record.attributes.items()},
        )
        for case_id, record in get(case_ids).items()
    }


@pytest.mark.parametrize(
    "promise, method, other",
    [
        ("sorted and complete", "case_ids", lambda case_ids: case_ids()[::-1]),
        ("keeps its facts and their types", "get", integers_only),
        ("remove returns how many", "remove", lambda remove, ids: remove(ids) + 1),
        ("update of an unknown case", "update", lambda update, record: update(record) or True),
        ("batch whole or not at all|cases that are there|counts the cases", "write", one_by_one),
        ("those excluded", "search", lambda search, q, w, k, where, exclude=(): search(q, w, k, where)),
        ("is true of", "search", lambda search, q, w, k, _=None, exclude=(): search(q, w, k, None, exclude)),
        ("5 at most", "search", lambda search, q, w, k, *more: search(q, w, k + (k == 5), *more)),
        ("order of the case ids", "search", backwards),
        ("with their scores", "search", rounded),
        ("state changes", "search", without_state),
    ],
)  # fmt: skip
def test_a_broken_promise_is_named(
    promise: str, method: str, other: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_store(lambda: Broken(tmp_path / "a", method, other), LAYOUT)


def test_a_store_that_loses_its_cases_is_not_durable(tmp_path: Path) -> None:
    places = iter(range(9))
    with pytest.raises(AssertionError, match="opened beside"):
        check_store(lambda: open_archive(tmp_path / f"{next(places)}"), LAYOUT)
    check_store(lambda: open_archive(tmp_path / f"{next(places)}"), LAYOUT, durable=False)


def test_a_store_in_float32_passes_with_a_stated_error(tmp_path: Path) -> None:
    check_store(lambda: Broken(tmp_path / "a", "search", rounded), LAYOUT, score_error=1e-6)


def test_random_descriptors_have_the_length_of_the_layout() -> None:
    assert random_descriptors(LAYOUT, 3).shape == (3, LAYOUT.length)
