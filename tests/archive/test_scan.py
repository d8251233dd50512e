"""The pruning index is derived from the cases, its bounds hold, and it never changes an answer."""

import contextlib
import itertools
import random
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers import (
    GAMMA,
    QUERY,
    QUICK,
    make_archive,
    make_record,
    open_archive,
    random_descriptors,
    refusal_of,
    search_archive,
)
from hypothesis import given
from hypothesis import strategies as st

from skinret_infer import Case, InputError, Searcher
from skinret_infer.archive import maintenance, pruning, segments, table
from skinret_infer.archive.archive import Archive
from skinret_infer.archive.filters import Columns, Range, parse_filter
from skinret_infer.archive.pruning import Projection, SegmentIndex, candidates, index_cases, rescore
from skinret_infer.archive.store import Match, Record, SearchResult
from skinret_infer.descriptor import Layout, Vector, part_weights, products

LAYOUT = Layout(local=(24, 24, 24), global_=(24, 24, 24), concepts=(3, 2))
WEIGHTS = part_weights(LAYOUT, 0.6, GAMMA)


def _low_rank(count: int, seed: int, noise: float = 0.01) -> Vector:
    """Return descriptors of LAYOUT near a space of twelve dimensions, like those of a trained model."""
    model_rng, rng = np.random.default_rng(5), np.random.default_rng(seed)
    mixing = model_rng.standard_normal((12, LAYOUT.length))
    x = rng.standard_normal((count, 12)) * np.arange(1, 13) ** -0.9 @ mixing
    x += noise * rng.standard_normal(x.shape)
    six = LAYOUT.visual_length
    x[:, six:] = np.exp(x[:, six:])
    sums = np.add.reduceat(np.hstack([x[:, :six] ** 2, x[:, six:]]), LAYOUT.starts, axis=1)
    sums[:, :6] = np.sqrt(sums[:, :6])
    return (x / np.repeat(sums, LAYOUT.lengths, axis=1)).astype(np.float32)


QUERY_OF = _low_rank(1, 77)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 64 row ids, and ranks that suit them."""
    for module in (pruning, table, segments, maintenance):
        monkeypatch.setattr(module, "SEGMENT", 64)
    for module in (pruning, segments, maintenance):
        monkeypatch.setattr(module, "SAMPLE", 64)
    monkeypatch.setattr(pruning, "_RANKS", (4, 8, 16))
    monkeypatch.setattr(pruning, "_FETCH", 500.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cases.skinret"


def _scores(query: Vector, cases: Vector, weights: npt.NDArray[np.float64] = WEIGHTS) -> npt.NDArray[Any]:
    return (products(query, cases, LAYOUT) * weights).sum(1)


# -- the projection and its bounds --


@QUICK
@given(
    seed=st.integers(0, 2**16),
    rank=st.integers(1, 100),
    noise=st.sampled_from([0.0, 1e-4, 0.1, 3.0]),
    beta=st.floats(0, 1),
    gamma=st.floats(0, 1),
    fits=st.booleans(),
)
def test_the_bounds_hold_for_any_projection_and_any_weights(
    seed: int, rank: int, noise: float, beta: float, gamma: float, fits: bool
) -> None:
    cases, [query] = _low_rank(40, seed, noise), _low_rank(1, seed + 1, noise)
    sample = cases if fits else np.random.default_rng(seed).standard_normal((200, LAYOUT.length))
    vectors = np.linalg.svd(sample.astype(np.float64), full_matrices=False)[2][:rank].T
    projection, weights = Projection.of(vectors), part_weights(LAYOUT, beta, gamma)
    z_t, rho_t = projection.cases(cases)
    z, rho, rounding = projection.query(np.repeat(weights, LAYOUT.lengths) * query.astype(np.float64))
    exact = _scores(query, cases, weights)
    estimates = np.einsum("ij,j->i", z_t, z).astype(np.float64)
    slack = rho * rho_t.astype(np.float64) + rounding * len(LAYOUT.lengths) ** 0.5
    assert (np.abs(exact - estimates) <= slack).all()


def test_only_descriptors_with_structure_get_a_projection() -> None:
    layout = Layout(local=(64, 64, 64), global_=(64, 64, 64))
    chance = random_descriptors(1000, 1, layout)
    assert Projection.fit(chance, layout).vectors is None
    rng = np.random.default_rng(0)
    structured = rng.standard_normal((1000, 20)) @ rng.standard_normal((20, 384))
    structured += 0.01 * rng.standard_normal(structured.shape)
    vectors = Projection.fit(structured.astype(np.float32), layout).vectors
    assert vectors is not None and vectors.shape == (384, 32)
    assert np.abs(vectors.T @ vectors - np.eye(32)).max() < 1e-12
    assert Projection.fit(chance[:3], layout).vectors is None


def test_a_projection_keeps_the_concepts_so_their_bounds_are_exact() -> None:
    layout = Layout(local=(64, 64, 64), global_=(64, 64, 64), concepts=(3, 5))
    rng = np.random.default_rng(0)
    visual = rng.standard_normal((1000, 20)) @ rng.standard_normal((20, 384))
    visual += 0.01 * rng.standard_normal(visual.shape)
    cases = np.hstack([visual, rng.dirichlet(np.ones(3), 1000), rng.dirichlet(np.ones(5), 1000)])
    projection = Projection.fit(cases.astype(np.float32), layout)
    assert projection.vectors is not None and projection.rank(layout) == 32 + 8
    assert np.abs(projection.vectors.T @ projection.vectors - np.eye(40)).max() < 1e-12
    concepts_alone = np.hstack([np.zeros(384), rng.random(8)])
    z, rho, _ = projection.query(concepts_alone)
    assert rho < 1e-4
    assert np.abs(projection.cases(cases.astype(np.float32))[0] @ z - cases @ concepts_alone).max() < 1e-5


@QUICK
@given(seed=st.integers(0, 2**16), k=st.integers(1, 30), count=st.integers(1, 6), segments=st.integers(1, 5))
def test_pruning_drops_most_cases_and_none_of_the_best(seed: int, k: int, count: int, segments: int) -> None:
    cases, queries = _low_rank(400, seed), _low_rank(count, seed + 1)
    projection = Projection.of(np.linalg.svd(cases.astype(np.float64), full_matrices=False)[2][:12].T)
    row_ids = np.array_split(np.arange(400), segments)
    indexes = [index_cases([*map(int, rows)], cases[rows], [{}] * len(rows), projection) for rows in row_ids]
    rng = np.random.default_rng(seed)
    masks = [None if rng.random() < 0.5 else rng.random(len(rows)) < 0.3 for rows in row_ids]
    allowed = np.concatenate([r if mask is None else r[mask] for r, mask in zip(row_ids, masks, strict=True)])
    repeated = np.repeat(WEIGHTS, LAYOUT.lengths)
    found = candidates(
        indexes, masks, projection, [repeated * q.astype(np.float64) for q in queries], k, 8**0.5
    )
    for query, (ids, upper) in zip(queries, found, strict=True):
        exact = _scores(query, cases)
        best = sorted(allowed, key=lambda n: (-exact[n], n))[:k]
        assert set(best) <= set(ids) <= set(allowed)
        assert (np.diff(upper) <= 0).all() and (upper >= exact[ids] - 1e-9).all()
        best_ids, scores, terms = rescore(query, ids, upper, WEIGHTS, LAYOUT, k, lambda i: cases[i])
        assert set(best) <= set(best_ids.tolist())
        assert (scores == exact[best_ids]).all() and terms.shape == (len(best_ids), 8)
        if len(allowed) > 100 and k < 3:
            assert len(ids) < len(allowed) / 2


# -- an archive with segments --


def _fill(path: Path, count: int, seed: int = 0) -> tuple[list[str], Vector]:
    ids, cases = [f"c{n:04}" for n in range(count)], _low_rank(count, seed)
    with contextlib.closing(open_archive(path, layout=LAYOUT)) as archive:
        for start in range(0, count, 50):
            records = [
                make_record(
                    i, attributes={"sex": "female" if int(i[1:]) % 3 else "male", "age": int(i[1:]) % 90}
                )
                for i in ids[start : start + 50]
            ]
            archive.write(records, cases[start : start + 50])
    return ids, cases


def _check_answers(archive: Archive, expected: Mapping[str, Vector], seed: int, k: int = 7) -> None:
    """Compare answers with the scores of all cases that the archive should have."""
    ids, cases = sorted(expected), np.stack([expected[i] for i in sorted(expected)])
    for query in _low_rank(3, seed):
        for beta, gamma in ((0.6, GAMMA), (1.0, 0.0), (0.0, 1.0)):
            exact = _scores(query, cases, part_weights(LAYOUT, beta, gamma))
            best = sorted(range(len(ids)), key=lambda n: (-exact[n], ids[n]))[:k]
            matches, searched = search_archive(archive, query, k, beta, gamma)
            assert [m.record.case_id for m in matches] == [ids[n] for n in best]
            assert [m.score for m in matches] == [exact[n] for n in best] and searched == len(ids)


@pytest.mark.usefixtures("small_segments")
def test_full_segments_are_mapped_from_files_that_follow_the_archive(path: Path) -> None:
    ids, cases = _fill(path, 300)
    expected = dict(zip(ids, cases, strict=True))
    with contextlib.closing(open_archive(path, layout=LAYOUT)) as archive:
        _check_answers(archive, expected, 1)
        assert archive.index.view is not None and archive.index.view.projection.vectors is not None
        files = {p.name for p in archive.index.folder.iterdir()}
        assert len(files) == 4  # the full segments of 300 / 64
        mapped = [not index.z.flags.writeable for _, index in archive.index.view.segments.values()]
        assert mapped == [True] * 4 + [False]
        assert archive.remove(["c0070", "c0299"]) == 2
        del expected["c0070"], expected["c0299"]
        assert len(files & {p.name for p in archive.index.folder.iterdir()}) == 3
        _check_answers(archive, expected, 2)
        assert len({p.name for p in archive.index.folder.iterdir()}) == 4
        assert maintenance.check(archive) == []
        maintenance.compact(archive)
        _check_answers(archive, expected, 3)
        assert maintenance.check(archive) == []


@pytest.mark.usefixtures("small_segments")
def test_after_any_history_an_archive_answers_from_its_cases(tmp_path: Path) -> None:
    for seed in range(4):
        chance, path = random.Random(seed), tmp_path / f"{seed}.skinret"
        expected: dict[str, Vector] = {}
        archives = [open_archive(path, layout=LAYOUT) for _ in range(2)]
        for turn in range(40):
            archive = chance.choice(archives)
            what = chance.random()
            if what < 0.6 or not expected:
                new = [f"{seed}-{turn}-{n}" for n in range(chance.randint(1, 40))]
                new += chance.sample(sorted(expected), min(len(expected), chance.choice([0, 0, 0, 3])))
                descriptors = _low_rank(len(new), 100 * seed + turn)
                archive.write([make_record(i) for i in new], descriptors)
                expected |= dict(zip(new, descriptors, strict=True))
            elif what < 0.75:
                removed = chance.sample(sorted(expected), min(len(expected), chance.randint(1, 30)))
                assert archive.remove([*removed, "none"]) == len(removed)
                for i in removed:
                    del expected[i]
            elif what < 0.8:
                maintenance.compact(archive)
            elif what < 0.85:
                archive.close()
                archives[archives.index(archive)] = archive = open_archive(path, layout=LAYOUT)
            elif expected:
                _check_answers(archive, expected, turn, chance.choice([1, 5, 50]))
            assert len(archive) == len(expected)
        for archive in archives:
            _check_answers(archive, expected, 99)
            assert maintenance.check(archive) == []
            archive.close()


@pytest.mark.usefixtures("small_segments")
def test_a_writer_indexes_its_own_cases_without_reading_them_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, cases = _fill(path, 130)
    expected = dict(zip(ids, cases, strict=True))
    with contextlib.closing(open_archive(path, layout=LAYOUT)) as archive:
        _check_answers(archive, expected, 1)
        with monkeypatch.context() as patch:
            patch.setattr(archive.index, "from_cases", lambda *_: pytest.fail("cases were read again"))
            for start in range(0, 210, 70):  # over the ends of segments
                new = [f"n{n:03}" for n in range(start, start + 70)]
                descriptors = _low_rank(70, start + 7)
                archive.write([make_record(i, attributes={"note": f"of {i}"}) for i in new], descriptors)
                expected |= dict(zip(new, descriptors, strict=True))
                _check_answers(archive, expected, start)
                [match] = search_archive(archive, QUERY_OF[0], 5, 0.6, GAMMA, {"note": f"of {new[3]}"})[0]
                assert match.record.case_id == new[3]
        assert maintenance.check(archive) == [] and len([*archive.index.folder.iterdir()]) == 5
        for file in archive.index.folder.iterdir():  # a file has the facts of its own cases only
            index = (
                SegmentIndex.load(file, archive.index.view.projection.rank(LAYOUT))
                if archive.index.view
                else pytest.fail()
            )
            if "note" in index.columns:
                assert len(index.columns["note"].values) == (index.columns["note"].codes >= 0).sum()
        with contextlib.closing(
            open_archive(path, layout=LAYOUT)
        ) as other:  # the cases of another writer are read
            other.write([make_record("x")], _low_rank(1, 5))
            expected["x"] = _low_rank(1, 5)[0]
        archive.write([make_record("y")], _low_rank(1, 6))
        expected["y"] = _low_rank(1, 6)[0]
        _check_answers(archive, expected, 3)


@pytest.mark.usefixtures("small_segments")
def test_the_pruning_index_can_be_deleted(path: Path) -> None:
    ids, cases = _fill(path, 200)
    expected = dict(zip(ids, cases, strict=True))
    with contextlib.closing(open_archive(path, layout=LAYOUT)) as archive:
        folder = archive.index.folder
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with contextlib.closing(open_archive(path, layout=LAYOUT)) as archive:
        _check_answers(archive, expected, 1)
        assert len([*folder.iterdir()]) == 3
        maintenance.repair(archive)
        _check_answers(archive, expected, 2)
        assert maintenance.check(archive) == []


def test_a_file_that_replaces_an_open_archive_is_noticed(path: Path) -> None:
    make_archive(path, 5)
    with contextlib.closing(open_archive(path)) as archive:
        assert len(search_archive(archive, QUERY, 9, 0.6, GAMMA)[0]) == 5
        make_archive(path.with_name("backup.skinret"), 8, seed=1).replace(path)
        assert len(archive) == 8 and len(search_archive(archive, QUERY, 9, 0.6, GAMMA)[0]) == 8
        archive.write([make_record("new")], random_descriptors(1))
        with contextlib.closing(open_archive(path)) as again:
            assert len(again) == 9
        other = open_archive(path.with_name("other.skinret"), fingerprint="e" * 64)
        other.write([make_record("x")], random_descriptors(1))
        other.close()
        other.path.replace(path)
        with refusal_of("archive-model"):
            len(archive)


def test_an_archive_names_its_model(path: Path) -> None:
    with refusal_of("archive-empty", path):
        Archive.open(path)
    make_archive(path)
    with contextlib.closing(Archive.open(path)) as archive:
        assert (archive.model, archive.fingerprint, len(archive)) == ("m 1", "f" * 64, 12)
        assert len(search_archive(archive, QUERY, 3, 0.6, GAMMA)[0]) == 3
    path.write_bytes(b"SQLite format 3\0 and no more")
    with refusal_of(None, path):
        Archive.open(path)


def test_a_backup_is_a_complete_archive_and_never_overwrites_a_file(path: Path) -> None:
    make_archive(path, 30)
    target = path.with_name("copy.skinret")
    with contextlib.closing(open_archive(path)) as archive:
        maintenance.backup(archive, target)
        with refusal_of("archive-exists", target):
            maintenance.backup(archive, target)
        with contextlib.closing(Archive.open(target)) as copy:
            assert maintenance.check(copy) == [] and len(copy) == 30
            one, two = (search_archive(a, QUERY, 30, 0.6, GAMMA)[0] for a in (archive, copy))
            assert [(m.record, m.score) for m in one] == [(m.record, m.score) for m in two]
    assert sorted(p.name for p in path.parent.iterdir()) == ["cases.skinret", "copy.skinret"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE segments SET cases = cases + 1", "accounted for"),
        ("UPDATE meta SET value = '3' WHERE name = 'next_id'", "next row id"),
        ("UPDATE cases SET descriptor = zeroblob(164) WHERE id = 3", "c03"),
        ("UPDATE cases SET attributes = '{' WHERE id = 3", "c03"),
    ],
)
def test_check_names_the_fault_and_repair_computes_it_again_from_the_cases(
    change: str, message: str, path: Path
) -> None:
    make_archive(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(change)
    with contextlib.closing(open_archive(path)) as archive:
        faults = maintenance.check(archive)
        assert any(message in fault for fault in faults), faults
        if "cases SET" not in change:
            maintenance.repair(archive)
            assert maintenance.check(archive) == []
            assert len(search_archive(archive, QUERY, 20, 0.6, GAMMA)[0]) == 12


# -- filters --

FACTS: list[dict[str, Any]] = [
    {"diagnosis": "melanoma", "age": 63, "sex": "female", "seen": True},
    {"diagnosis": "melanoma", "age": 63.0, "sex": "male", "seen": False},
    {"diagnosis": "clark nevus", "age": "41", "size": -4.5},
    {"diagnosis": "", "age": 5e-324, "sex": "1"},
    {"diagnosis": "x", "age": "unknown", "sex": "nan"},
    {"diagnosis": "x"},
]


def _matching_rows(where: Any, facts: Sequence[Mapping[str, Any]] = FACTS) -> list[int]:
    columns = Columns.of(facts)
    return np.flatnonzero(columns.matches(parse_filter(where, [columns]), len(facts))).tolist()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"age": Range(40, 63)}, [0, 1, 2]),
        ({"age": Range(41, 41)}, [2]),
        ({"age": Range(41.5, None)}, [0, 1]),
        ({"age": {"from": None, "to": 41}}, [2, 3]),
        ({"age": Range(None, None)}, [0, 1, 2, 3]),
        ({"age": (63, 41)}, [0, 1, 2]),
        ({"age": [41, 63]}, [0, 1, 2]),
        ({"age": "63"}, []),
        ({"age": "41"}, [2]),
        ({"age": 41}, [2]),
        ({"age": ("unknown", "41")}, [2, 4]),
        ({"size": Range(-5, -4)}, [2]),
        ({"age": Range(60, 70), "sex": "female"}, [0]),
        ({"seen": True}, [0]),
        ({"seen": [True, False]}, [0, 1]),
        ({"diagnosis": {"melanoma"}}, [0, 1]),
    ],
    ids=repr,
)
def test_a_filter_matches_values_lists_and_ranges(where: Any, expected: list[int]) -> None:
    assert _matching_rows(where) == expected


@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ({"seen": Range(0, 1)}, "filter-type", "true or false"),
        ({"diagnosis": Range(1, 2)}, "filter-type", "text"),
        ({"diagnosis": 5}, "filter-type", "text"),
        ({"size": "large"}, "filter-type", "a number"),
        ({"seen": "yes"}, "filter-type", "true or false"),
        ({"Age": Range(1, 2)}, "filter-unknown", "age"),
        ({"age": {"from": 1, "to": float("nan")}}, "filter-type", "range"),
        ({"age": {"from": 9, "to": 1}}, "filter-type", "range"),
        ({"age": (1, None, 2)}, "filter-type", "Range"),
    ],
    ids=repr,
)
def test_a_filter_that_no_case_can_match_is_refused_with_the_possible_values(
    where: Any, code: str, message: str
) -> None:
    with refusal_of(code, message, kind=InputError):
        _matching_rows(where)


_values = st.sampled_from(["a", "b", "7", "7.0", "007", "1e1", "-3", "", 7, 7.0, -3, 0.5, True, False])
_facts = st.lists(st.dictionaries(st.sampled_from(["p", "q", "diagnosis"]), _values, max_size=3), max_size=12)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value in ("007", "1e1"):  # these are names
        return None
    try:
        return float(value)
    except ValueError:
        return None


@QUICK
@given(one=_facts, two=_facts, low=st.sampled_from([-3, 0, 7]), high=st.sampled_from([0.5, 7, 9]))
def test_joined_columns_filter_like_plain_python(
    one: list[dict[str, Any]], two: list[dict[str, Any]], low: float, high: float
) -> None:
    facts = [*one, *two]
    joined = Columns.of(one).concat(Columns.of(two), len(one), len(two))
    for rows in (slice(0, len(one)), slice(len(one), None), slice(2, 2)):
        some, again = joined.rows(rows), Columns.of(facts[rows])
        assert {n: {(type(v) is bool, v) for v in c.values} for n, c in some.items()} == {
            n: {(type(v) is bool, v) for v in c.values} for n, c in again.items()
        }
        assert [[c.values[k] for k in c.codes if k >= 0] for c in some.values()] == [
            [row[name] for row in facts[rows] if name in row] for name in some
        ]
    for name in {name for row in facts for name in row}:
        values = [row.get(name) for row in facts]
        with contextlib.suppress(InputError):
            mask = joined.matches(parse_filter({name: Range(low, high)}, [joined]), len(facts))
            assert mask.tolist() == [
                (x := _number(v)) is not None and low <= x <= high if v is not None else False for v in values
            ]
        for key in {(type(v), v) for v in values if v is not None}:
            mask = joined.matches(parse_filter({name: key[1]}, [joined]), len(facts))
            same = [
                v is not None
                and (
                    (isinstance(v, bool) == isinstance(key[1], bool) and v == key[1])
                    or (
                        not isinstance(key[1], str) and (x := _number(v)) is not None and x == _number(key[1])
                    )
                )
                for v in values
            ]
            assert mask.tolist() == same


# -- another store --


class _MemoryStore:
    """A store in memory: another implementation of Store."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.cases = layout, dict[str, tuple[Record, Vector]]()

    def __len__(self) -> int:
        return len(self.cases)

    def case_ids(self) -> list[str]:
        return sorted(self.cases)

    def get(self, case_ids: Collection[str]) -> dict[str, Record]:
        return {i: self.cases[i][0] for i in case_ids if i in self.cases}

    def get_with_descriptors(self, case_ids: Collection[str]) -> dict[str, tuple[Record, Vector]]:
        return {i: self.cases[i] for i in case_ids if i in self.cases}

    def write(self, records: Sequence[Record], descriptors: Vector) -> None:
        self.cases |= {r.case_id: (r, d) for r, d in zip(records, descriptors, strict=True)}

    def update(self, record: Record) -> bool:
        known = record.case_id in self.cases
        if known:
            self.cases[record.case_id] = record, self.cases[record.case_id][1]
        return known

    def remove(self, case_ids: Collection[str]) -> int:
        return sum(self.cases.pop(i, None) is not None for i in case_ids)

    def search(
        self,
        queries: Vector,
        weights: npt.NDArray[np.float64],
        k: int,
        where: Mapping[str, Any] | None = None,
        exclude: Collection[str] = (),
    ) -> SearchResult:
        cases = [(r, d) for i, (r, d) in sorted(self.cases.items()) if i not in exclude]
        columns = Columns.of([{**r.attributes, "diagnosis": r.diagnosis} for r, _ in cases])
        mask = columns.matches(parse_filter(where, [columns]), len(cases))
        cases = [pair for pair, matches_filter in zip(cases, mask, strict=True) if matches_filter]
        lists = []
        for query in queries:
            terms = products(query, np.stack([d for _, d in cases]), self.layout)
            matches = [
                Match(r, float(s), p) for (r, _), s, p in zip(cases, terms @ weights, terms, strict=True)
            ]
            lists.append(sorted(matches, key=lambda m: (-m.score, m.record.case_id))[:k])
        return SearchResult(lists, len(cases), f"{len(self)} cases")

    def check_open(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def both(bundle: Path, cases: list[Case], path: Path) -> Iterator[list[Searcher]]:
    with Searcher(bundle, path) as one, Searcher(bundle, _MemoryStore(one.manifest.layout)) as two:
        for searcher in (one, two):
            searcher.add(cases[:30])
            assert searcher.remove([cases[3].case_id, "none"]) == 1
        yield [one, two]


def test_another_store_gives_the_same_answers(both: list[Searcher], cases: list[Case]) -> None:
    queries = [
        (case.image, words) for case, words in zip(cases[40:46], [None, "irregular streaks"] * 3, strict=True)
    ]
    for options in ({}, {"where": {"sex": "female"}, "exclude": ["5"], "levels": {"low": 0}}, {"gamma": 0}):
        one, two = ([list(r.hits) for r in s.query_batch(queries, k=5, **options)] for s in both)  # type: ignore[arg-type]
        assert [[h.case_id for h in hits] for hits in one] == [[h.case_id for h in hits] for hits in two]
        for a, b in zip(itertools.chain(*one), itertools.chain(*two), strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-6)
            assert a.evidence(with_case=False).parts == pytest.approx(
                b.evidence(with_case=False).parts, abs=1e-6
            )


def test_the_levels_weigh_the_cosines_and_the_score_adds_up(both: list[Searcher], cases: list[Case]) -> None:
    searcher = both[0]
    for levels in ({"low": 2.0, "high": 0.5}, {"mid": 0, "low": 0}, {}, None):
        results = searcher.query(cases[45].image, "irregular streaks", k=5, levels=levels, gamma=0.3)
        weights = {"low": 1.0, "mid": 1.0, "high": 1.0} | (levels or {})
        assert results.levels == weights and results.to_dict()["levels"] == weights
        share = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        for hit in results:
            local, global_ = (
                sum(share[n] * hit.cosines[f"{term}_{n}"] for n in share) for term in ("local", "global")
            )
            visual = results.beta * local + (1 - results.beta) * global_
            assert hit.local_similarity == pytest.approx(local) and hit.global_similarity == pytest.approx(
                global_
            )
            assert hit.concept_similarity is not None
            assert hit.score == pytest.approx(0.7 * visual + 0.3 * hit.concept_similarity, abs=1e-9)


@pytest.mark.parametrize(
    "levels",
    [
        {"top": 1},
        {"low": -1},
        {"low": float("nan")},
        {"low": True},
        {"low": "1"},
        dict.fromkeys(("low", "mid", "high"), 0),
        [1, 1, 1],
        2,
    ],
    ids=repr,
)
def test_unusable_levels_are_refused(levels: Any, both: list[Searcher], cases: list[Case]) -> None:
    with refusal_of("levels-range", "low, mid, high", kind=InputError):
        both[0].query(cases[0].image, levels=levels)


def test_an_index_that_is_saved_and_mapped_is_the_same(tmp_path: Path) -> None:
    projection = Projection.of(
        np.linalg.svd(_low_rank(50, 0).astype(np.float64), full_matrices=False)[2][:5].T
    )
    facts = [{"age": n % 7, "sex": "ä😀" if n % 2 else "", 'o"d\n': n % 3 == 0} for n in range(50)]
    index = index_cases([3 * n for n in range(50)], _low_rank(50, 0), facts, projection)
    index.save(tmp_path / "x.segment")
    mapped = SegmentIndex.load(tmp_path / "x.segment", 5)
    for name in ("ids", "z", "rho"):
        assert (getattr(index, name) == getattr(mapped, name)).all()
    for name, column in index.columns.items():
        assert list(mapped.columns[name].values) == list(column.values)
        assert (mapped.columns[name].codes == column.codes).all()
    with pytest.raises(pruning.Stale, match="rank"):
        SegmentIndex.load(tmp_path / "x.segment", 6)
    content = (tmp_path / "x.segment").read_bytes()
    for damaged in (
        b"",
        content[:10],
        content[:-1],
        content[:200] + b"\x01" + content[201:],
        content + b"\0",
    ):
        (tmp_path / "x.segment").write_bytes(damaged)
        with pytest.raises(pruning.Stale):
            SegmentIndex.load(tmp_path / "x.segment", 5)
