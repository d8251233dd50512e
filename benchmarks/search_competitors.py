"""One competitor of the search benchmark in a process of its own; asked in lines of JSON, it answers in such.

python benchmarks/search_competitors.py '{"kind": "skinret", "folder": "/tmp/x", "cases": 10000}'

In the folder: cases.skinret, queries.npy, and masks.npz, which says what each filter lets through.
"""

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cold_start import memory

from skinret_infer.archive.archive import Archive
from skinret_infer.archive.filters import Range
from skinret_infer.descriptor import Layout, part_weights

DEFAULT = os.environ.get("SKINRET_SEARCH") == "default"
LAYOUT = (
    Layout(local=(64, 64, 64), global_=(64, 64, 64), concepts=(3, 3, 3, 5, 4, 3, 2, 7))  # 414 numbers
    if DEFAULT
    else Layout(local=(192, 384, 768), global_=(192, 384, 768))  # of Swin-T: 2,688 numbers
)
WEIGHTS = part_weights(LAYOUT, beta=0.6, gamma=0.7 if DEFAULT else 0.0)
WIDE = np.repeat(WEIGHTS, LAYOUT.lengths)
OURS, NUMPY, FLAT, SQ8, IVF = KINDS = ("skinret", "numpy fp32", "faiss Flat", "faiss SQ8", "faiss IVF")
MODEL = {"fingerprint": "0" * 64, "model": "learned-like 0"}
WHERE = {"attribute": {"location": "acral"}, "range": {"age": Range(80, None)}}  # each lets 5 % through
K, STEP, NEAR, PROBES = 10, 2048, 200, 8
Lists = list[list[int]]


class Skinret:
    """The archive, opened as a Searcher opens it."""

    def __init__(self, folder: Path, cases: int, masks: dict[str, np.ndarray]) -> None:
        began = time.perf_counter()
        self._archive = Archive(folder / "cases.skinret", layout=LAYOUT, **MODEL)
        self.ask(np.load(folder / "queries.npy", "r")[-1:], "all")
        self.seconds = time.perf_counter() - began  # to its first answer
        self._excluded = [f"{n:07}" for n in np.flatnonzero(~masks["exclude"])]

    def ask(self, queries: np.ndarray, way: str) -> Lists:
        excluded = self._excluded if way == "exclude" else ()
        found, *_ = self._archive.search(queries, WEIGHTS, K, WHERE.get(way), excluded)
        return [[int(match.record.case_id) for match in matches] for matches in found]


class Numpy:
    """The descriptors in memory, as one would write it."""

    def __init__(self, folder: Path, cases: int, masks: dict[str, np.ndarray]) -> None:
        self._masks, self._matrix = masks, np.empty((cases, LAYOUT.length), np.float32)
        self.seconds, n = 0.0, 0
        for rows in stored(folder):
            self._matrix[n : n + len(rows)] = rows
            n += len(rows)

    def ask(self, queries: np.ndarray, way: str) -> Lists:
        mask = self._masks.get(way)
        weighed = queries * WIDE.astype(np.float32)
        if mask is not None and 2 * mask.sum() < len(mask):  # few: copied together
            rows = np.flatnonzero(mask)
            return [rows[best].tolist() for best in self._best(self._scores(weighed, self._matrix[rows]))]
        scores = self._scores(weighed, self._matrix)
        if mask is not None:
            scores[:, ~mask] = -np.inf
        return [best.tolist() for best in self._best(scores)]

    @staticmethod
    def _scores(weighed: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        return (matrix @ weighed[0])[None] if len(weighed) == 1 else weighed @ matrix.T

    @staticmethod
    def _best(scores: np.ndarray) -> Iterator[np.ndarray]:
        for row in scores:
            best = np.argpartition(row, -K)[-K:]
            yield best[np.argsort(-row[best])]

    def exact(self, queries: np.ndarray, way: str) -> tuple[Lists, Lists]:
        """Return the lists by scores in float64, equal ones by case id, and those by scores in float32.

        What float32 leaves behind the nearest 200 cannot be among the ten best, which is asserted.
        """
        exact, plain = [], []
        for start in range(0, len(queries), 25):
            some = queries[start : start + 25]
            scores = some * WIDE.astype(np.float32) @ self._matrix.T
            if (mask := self._masks.get(way)) is not None:
                scores[:, ~mask] = -np.inf
            for query, row in zip(some, scores, strict=True):
                near = np.sort(np.argpartition(row, -NEAR)[-NEAR:])
                near = near[row[near] > -np.inf]  # a filter may leave fewer
                true = (self._matrix[near].astype(np.float64) * (WIDE * query.astype(np.float64))).sum(1)
                best = np.lexsort((near, -true))[:K]
                assert len(near) < NEAR or row[near].min() + 1e-5 < true[best[-1]], "200 are too few"
                exact.append(near[best].tolist())
                plain.append(near[np.argsort(-row[near], kind="stable")[:K]].tolist())
        return exact, plain


class Faiss:
    """An index of faiss: Flat, SQ8, or from 500,000 cases on IVF with SQ8, below with Flat."""

    def __init__(self, kind: str, folder: Path, cases: int, masks: dict[str, np.ndarray]) -> None:
        import faiss

        lists = 2 ** int(np.log2(min(max(cases / 39, 1), 1024)))  # 39 samples for each, as faiss asks
        ivf = f"IVF{lists},{'SQ8' if cases >= 500_000 else 'Flat'}"
        self.what = {FLAT: "Flat", SQ8: "SQ8", IVF: ivf}[kind]
        self._index = faiss.index_factory(LAYOUT.length, self.what, faiss.METRIC_INNER_PRODUCT)
        options: dict[str, Any] = {"nprobe": PROBES} if kind == IVF else {}
        make = faiss.SearchParametersIVF if kind == IVF else faiss.SearchParameters
        self._kept = {way: np.packbits(mask, bitorder="little") for way, mask in masks.items()}
        selectors = {way: faiss.IDSelectorBitmap(bits) for way, bits in self._kept.items()}
        self._options = {way: make(sel=selector, **options) for way, selector in selectors.items()}
        self._options["all"] = make(**options)
        waiting, need = [], 40 * lists if kind == IVF else 10_000
        self.seconds = 0.0
        batches = stored(folder)
        for rows in batches:
            waiting.append(rows)
            if sum(map(len, waiting)) < min(need, cases):
                continue
            sample, waiting = np.concatenate(waiting), []
            began = time.perf_counter()
            if not self._index.is_trained:
                self._index.train(sample)
            self._index.add(sample)
            self.seconds += time.perf_counter() - began
            need = 1
        assert self._index.ntotal == cases

    def ask(self, queries: np.ndarray, way: str) -> Lists:
        weighed = queries * WIDE.astype(np.float32)
        ids = self._index.search(weighed, K, params=self._options[way])[1]
        return ids.tolist()


def stored(folder: Path) -> Iterator[np.ndarray]:
    """Give the descriptors in the order of the case ids, as they are in the archive."""
    db = sqlite3.connect(f"file:{folder / 'cases.skinret'}?mode=ro", uri=True)
    cursor = db.execute("SELECT descriptor FROM cases ORDER BY id")
    while rows := cursor.fetchmany(STEP):
        yield np.frombuffer(b"".join(blob for (blob,) in rows), "<f4").reshape(len(rows), -1)
    db.close()


def main(kind: str, folder: Path, cases: int) -> None:
    def notify(**answer: Any) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    queries = np.load(folder / "queries.npy")
    with np.load(folder / "masks.npz") as file:
        masks = dict(file)
    makers: dict[str, Any] = {OURS: Skinret, NUMPY: Numpy}
    made = makers[kind](folder, cases, masks) if kind in makers else Faiss(kind, folder, cases, masks)
    notify(seconds=made.seconds, what=getattr(made, "what", kind), **memory())
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "memory":
            notify(**memory())
        elif asked["do"] == "exact":
            exact, plain = made.exact(queries[asked["first"] : asked["end"]], asked["way"])
            notify(exact=exact, plain=plain)
        else:
            took, lists = [], []
            for start in range(asked["first"], asked["end"], asked["batch"]):
                some = queries[start : min(start + asked["batch"], asked["end"])]
                began = time.perf_counter()
                lists += made.ask(some, asked["way"])
                took.append((time.perf_counter() - began) * 1e3 / len(some))
            notify(ms=took, lists=lists)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    main(given["kind"], Path(given["folder"]), given["cases"])
