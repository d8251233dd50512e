"""Checks for the author of a Store: does it keep the promises that a Searcher relies on?

A test of a store calls `check_store` once. The oracle of a search is `descriptor.products` over all cases.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .archive.filters import Range
from .archive.store import Match, Record, SearchResult, Store
from .descriptor import Layout, Vector, part_weights, products
from .errors import ArchiveError, InputError, SkinretError

_COUNT = 40
_TIED = ("tie-b", "tie-a", "tie-c")  # cases with one descriptor


def check_store(
    open_store: Callable[[], Store],
    layout: Layout,
    *,
    durable: bool = True,
    filters: bool = True,
    score_error: float = 1e-12,
) -> None:
    """Raise AssertionError, which names the promise, unless a store keeps the promises of `Store`.

    Parameters
    ----------
    open_store :
        opens the store at one place; it is called several times. Before the first call the store is empty.
    layout :
        the layout of the descriptors that the store takes.
    durable :
        whether cases outlive `close`, and a second open store sees them; False for a store in memory.
    filters :
        whether the store supports `where`.
    score_error :
        how far a score may be from the sum in float64. A store that sums in float32 needs about 1e-6; its
        cases may change places only where their scores are nearer than twice that.
    """
    with contextlib.closing(open_store()) as store:
        checks = _Checks(store, layout, score_error)
        checks.empty()
        checks.writing()
        checks.searching()
        if filters:
            checks.filtering()
        checks.changing()
        checks.refusing()
        checks.several_threads()
        if durable:
            checks.two_stores(open_store)
        remaining = {case_id: store.get([case_id])[case_id] for case_id in store.case_ids()}
    _promise("a closed store says so", _raises(ArchiveError, store.check_open))
    if durable:
        with contextlib.closing(open_store()) as store:
            _promise("cases outlive close()", store.get(list(remaining)) == remaining)


class _Checks:
    """One method for each group of promises, on a store whose cases are known."""

    def __init__(self, store: Store, layout: Layout, score_error: float) -> None:
        self.store, self.layout, self.score_error = store, layout, score_error
        self.cases = _cases(layout)

    def empty(self) -> None:
        store = self.store
        _promise("a new store has no case", len(store) == 0 and store.case_ids() == [])
        _promise("an unknown case is left out by get", store.get(["unknown"]) == {})
        _promise("a search in an empty store raises ArchiveError", _raises(ArchiveError, self._search))

    def writing(self) -> None:
        records = [record for record, _ in self.cases.values()]
        vectors = np.stack([vector for _, vector in self.cases.values()])
        self.store.write(records[:7], vectors[:7])
        self.store.write(records[7:], vectors[7:])
        self._holds_the_cases()

    def searching(self) -> None:
        for beta, gamma, levels in (
            (0.6, 0.5, None),
            (0.0, 0.0, None),
            (1.0, 0.2, {"low": 2.0, "high": 0.0}),
        ):
            levels = levels and {"low": 1.0, "mid": 1.0, "high": 1.0} | levels
            weights = part_weights(self.layout, beta, gamma if self.layout.concepts else 0.0, levels)
            for k in (1, 5, _COUNT + 10):
                self._finds("the best cases", weights, k)
        self._finds("the best cases but those excluded", exclude=["case-07", "tie-a", "unknown"])
        _, tied = self.cases[_TIED[0]]
        first = [
            match.record.case_id for match in self.store.search(tied[None], self._weights(), 3).matches[0]
        ]
        _promise("equal scores are in the order of the case ids", first == sorted(_TIED), first)

    def filtering(self) -> None:
        filters: list[tuple[dict[str, Any], Callable[[Record], bool]]] = [
            ({"sex": "female"}, lambda case: case.attributes.get("sex") == "female"),
            ({"diagnosis": ["melanoma", "nevus"]}, lambda case: case.diagnosis in ("melanoma", "nevus")),
            ({"age": Range(20, 40)}, lambda case: 20 <= _age(case) <= 40),
            (
                {"age": Range(None, 30.5), "sex": "male"},
                lambda case: _age(case) <= 30.5 and case.attributes["sex"] == "male",
            ),
            ({"age": 25}, lambda case: _age(case) == 25),
            ({"biopsied": True}, lambda case: case.attributes["biopsied"] is True),
            ({"site": "Rücken 😀"}, lambda case: case.attributes.get("site") == "Rücken 😀"),
            ({"group": "no such group"}, lambda case: False),
        ]
        for where, is_true in filters:
            self._finds(f"the cases that {where} is true of", where=where, is_true=is_true)
        _promise(
            "a filter on an attribute that no case has raises InputError",
            _raises(InputError, lambda: self._search(where={"no such attribute": 1})),
        )

    def changing(self) -> None:
        store, states = self.store, [self._search().state]
        record, vector = self.cases["case-05"]
        changed = replace(
            record, diagnosis="blue nevus", attributes={"age": 33, "sex": "male", "biopsied": False}
        )
        _promise("update says that it found the case", store.update(changed) is True)
        self.cases["case-05"] = changed, vector
        states.append(self._search().state)
        _promise("update of an unknown case returns False", store.update(_record("unknown", 0)) is False)
        self._holds_the_cases()

        new_vector = random_descriptors(self.layout, 1, seed=9)
        store.write([changed], new_vector)
        self.cases["case-05"] = changed, new_vector[0]
        states.append(self._search().state)
        self._holds_the_cases()

        _promise("remove returns how many cases were there", store.remove(["case-06", "unknown"]) == 1)
        del self.cases["case-06"]
        states.append(self._search().state)
        self._holds_the_cases()
        self._finds("the best cases after changes", k=len(self.cases) + 1)
        _promise("the state changes with each change of the cases", len(set(states)) == len(states))
        _promise("the state stays while the cases stay", self._search().state == states[-1])

    def refusing(self) -> None:
        record, vector = _record("refused", 0), random_descriptors(self.layout, 1)
        for descriptors in (vector[:, :-1], vector * np.float32(2), np.full_like(vector, np.nan)):
            _promise(
                "descriptors of another layout, of another length or with NaN raise SkinretError",
                _raises(SkinretError, partial(self.store.write, [record], descriptors)),
            )
        bad_batch = np.concatenate([vector, np.full_like(vector, np.nan)])
        with contextlib.suppress(SkinretError):
            self.store.write([record, _record("refused too", 1)], bad_batch)
        self._holds_the_cases()

    def several_threads(self) -> None:
        """Write and remove batches of four in one thread while others search: each sees whole batches."""
        batch = [_record(f"batch-{n}", n) for n in range(4)]
        vectors = random_descriptors(self.layout, 4, seed=4)

        def write_and_remove() -> None:
            for _ in range(8):
                self.store.write(batch, vectors)
                self.store.remove([record.case_id for record in batch])

        def search() -> set[int]:
            return {self._search().searched - len(self.cases) for _ in range(20)}

        with ThreadPoolExecutor(4) as pool:
            writer, *readers = pool.submit(write_and_remove), *(pool.submit(search) for _ in range(3))
            writer.result()
            counts = set[int]().union(*(reader.result() for reader in readers))
        _promise("a search sees a batch whole or not at all", counts <= {0, 4}, sorted(counts))
        self._holds_the_cases()

    def two_stores(self, open_store: Callable[[], Store]) -> None:
        """Open a second store: each sees the changes of the other."""
        with contextlib.closing(open_store()) as other:
            _promise("a store opened beside another has its cases", other.case_ids() == sorted(self.cases))
            self.cases["beside"] = _record("beside", 3), random_descriptors(self.layout, 1, seed=5)[0]
            other.write([self.cases["beside"][0]], self.cases["beside"][1][None])
            self._holds_the_cases()
            self._finds("the cases that another process wrote", k=len(self.cases))

    def _holds_the_cases(self) -> None:
        store, ids = self.store, sorted(self.cases)
        _promise("len() counts the cases", len(store) == len(ids), f"{len(store)}, not {len(ids)}")
        _promise("case_ids() are sorted and complete", store.case_ids() == ids, store.case_ids())
        records, stored = store.get([*ids, "unknown"]), store.get_with_descriptors([*ids, "unknown"])
        _promise("get returns the cases that are there", sorted(records) == ids == sorted(stored))
        for case_id, (record, vector) in self.cases.items():
            differences = {*record.differences(records[case_id]), *record.differences(stored[case_id][0])}
            _promise("a record keeps its facts and their types", not differences, (case_id, differences))
            _promise("a descriptor keeps its bits", _same_bits(stored[case_id][1], vector), case_id)

    def _weights(self) -> npt.NDArray[np.float64]:
        return part_weights(self.layout, 0.6, 0.5 if self.layout.concepts else 0.0)

    def _search(self, where: Mapping[str, Any] | None = None) -> SearchResult:
        return self.store.search(random_descriptors(self.layout, 2, seed=7), self._weights(), 5, where)

    def _finds(
        self,
        what: str,
        weights: npt.NDArray[np.float64] | None = None,
        k: int = 5,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
        is_true: Callable[[Record], bool] = lambda record: True,
    ) -> None:
        """Compare a search for two queries with the scores of all cases; `is_true` stands for `where`."""
        weights = self._weights() if weights is None else weights
        queries = random_descriptors(self.layout, 2, seed=7)
        result = self.store.search(queries, weights, k, where, exclude)
        allowed = {
            case_id: case
            for case_id, case in self.cases.items()
            if case_id not in exclude and is_true(case[0])
        }
        promise = f"search finds {what}"
        _promise(f"{promise}, and counts what it searched", result.searched == len(allowed), result.searched)
        for query, matches in zip(queries, result.matches, strict=True):
            _promise(f"{promise}, {k} at most", len(matches) == min(k, len(allowed)), len(matches))
            if allowed:
                self._compare(promise, query, weights, allowed, matches)

    def _compare(
        self,
        promise: str,
        query: Vector,
        weights: npt.NDArray[np.float64],
        allowed: dict[str, tuple[Record, Vector]],
        matches: Sequence[Match],
    ) -> None:
        ids = list(allowed)
        terms = products(query, np.stack([allowed[case_id][1] for case_id in ids]), self.layout)
        scores = dict(zip(ids, terms @ weights, strict=True))
        best = sorted(scores.values(), reverse=True)
        for match, score in zip(matches, best, strict=False):
            case_id = match.record.case_id
            _promise(f"{promise} and no other", case_id in scores, case_id)
            _promise(
                f"{promise} with their scores, the best first",
                abs(match.score - scores[case_id]) <= self.score_error
                and abs(match.score - score) <= 2 * self.score_error,
                (case_id, match.score, scores[case_id], score),
            )
            _promise(
                f"{promise} with the products of their parts",
                np.allclose(match.products, terms[ids.index(case_id)], rtol=0, atol=self.score_error + 1e-12),
                case_id,
            )
            _promise(f"{promise} with their facts", match.record == allowed[case_id][0], case_id)
        _promise(f"{promise} once each", len({match.record.case_id for match in matches}) == len(matches))


def random_descriptors(layout: Layout, count: int, seed: int = 0) -> Vector:
    """Return descriptors of random cases, float32 [count, D]: six unit vectors, then distributions."""
    rng = np.random.default_rng(seed)
    vectors = [rng.standard_normal((count, length)) for length in layout.local + layout.global_]
    unit = [vector / np.linalg.norm(vector, axis=1, keepdims=True) for vector in vectors]
    concepts = [rng.dirichlet(np.ones(length), count) for length in layout.concepts]
    return np.concatenate(unit + concepts, axis=1).astype(np.float32)


def _cases(layout: Layout) -> dict[str, tuple[Record, Vector]]:
    vectors = random_descriptors(layout, _COUNT)
    ids = [
        *_TIED,
        'case of "quotes", 100%_\'; --',
        "Fall Größe 😀",
        *(f"case-{n:02d}" for n in range(5, _COUNT)),
    ]
    vectors[1 : len(_TIED)] = vectors[0]
    return {case_id: (_record(case_id, n), vectors[n]) for n, case_id in enumerate(ids)}


def _record(case_id: str, n: int) -> Record:
    """Return a record with values of every type; some attributes are missing in some cases."""
    attributes: dict[str, Any] = {"sex": ("female", "male")[n % 2], "biopsied": n % 3 == 0}
    if n % 4:
        attributes["age"] = 20 + n if n % 5 else 20.5 + n
    if n % 7 == 1:
        attributes["site"] = "Rücken 😀"
    return Record(
        case_id=case_id,
        diagnosis=("melanoma", "nevus", "seborrheic keratosis")[n % 3],
        group=("mel", "nevus", "bkl")[n % 3],
        confirmed_by="histopathology" if n % 2 else "",
        attributes=attributes,
        image_ref=f"images/{n}.png",
        image_sha256=f"{n:064x}",
    )


def _age(case: Record) -> float:
    return float(case.attributes.get("age", "nan"))


def _promise(promise: str, is_kept: bool, found: object = "") -> None:
    if not is_kept:
        raise AssertionError(
            f"the store does not keep a promise: {promise}" + (f"; found {found}" if found != "" else "")
        )


def _raises(kind: type[SkinretError], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def _same_bits(a: Vector, b: Vector) -> bool:
    return a.dtype == b.dtype == np.float32 and a.tobytes() == b.tobytes()
