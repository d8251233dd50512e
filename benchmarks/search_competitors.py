"""Run one competitor of the search benchmark in its own process. Requests and answers are lines of JSON.

python benchmarks/search_competitors.py '{"kind": "skinret", "folder": "/tmp/x", "cases": 10000}'

The folder has cases.skinret, queries.npy, and masks.npz with the allowed cases of each filter.
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
VECTOR_WEIGHTS = np.repeat(WEIGHTS, LAYOUT.lengths)  # of each number of a descriptor
OURS, NUMPY, FLAT, SQ8, IVF = KINDS = ("skinret", "numpy fp32", "faiss Flat", "faiss SQ8", "faiss IVF")
MODEL = {"fingerprint": "0" * 64, "model": "learned-like 0"}
WHERE = {"attribute": {"location": "acral"}, "range": {"age": Range(80, None)}}  # each allows 5 %
K, STEP, NEAR, PROBES = 10, 2048, 200, 8  # NEAR: cases that are scored again in float64
Lists = list[list[int]]


class Skinret:
    """The archive, opened as a Searcher opens it."""

    def __init__(self, folder: Path, cases: int, masks: dict[str, np.ndarray]) -> None:
        began = time.perf_counter()
        self._archive = Archive(folder / "cases.skinret", layout=LAYOUT, **MODEL)
        self.search(np.load(folder / "queries.npy", "r")[-1:], "all")
        self.seconds = time.perf_counter() - began  # until the first answer
        self._excluded = [f"{n:07}" for n in np.flatnonzero(~masks["exclude"])]

    def search(self, queries: np.ndarray, filter_name: str) -> Lists:
        excluded = self._excluded if filter_name == "exclude" else ()
        result = self._archive.search(queries, WEIGHTS, K, WHERE.get(filter_name), excluded)
        return [[int(match.record.case_id) for match in matches] for matches in result.matches]


class Numpy:
    """A plain search with numpy: all descriptors are in memory."""

    def __init__(self, folder: Path, cases: int, masks: dict[str, np.ndarray]) -> None:
        self._masks, self._matrix = masks, np.empty((cases, LAYOUT.length), np.float32)
        self.seconds, n = 0.0, 0
        for rows in read_descriptors(folder):
            self._matrix[n : n + len(rows)] = rows
            n += len(rows)

    def search(self, queries: np.ndarray, filter_name: str) -> Lists:
        mask = self._masks.get(filter_name)
        weighed = queries * VECTOR_WEIGHTS.astype(np.float32)
        if mask is not None and 2 * mask.sum() < len(mask):  # few cases: copy their rows
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

    def exact(self, queries: np.ndarray, filter_name: str) -> tuple[Lists, Lists]:
        """Return the lists by scores in float64, equal ones by case id, and the lists by scores in float32.

        The 200 best cases in float32 are scored in float64. An assertion checks that these are enough.
        """
        exact_lists, fp32_lists = [], []
        for start in range(0, len(queries), 25):
            batch = queries[start : start + 25]
            scores = batch * VECTOR_WEIGHTS.astype(np.float32) @ self._matrix.T
            if (mask := self._masks.get(filter_name)) is not None:
                scores[:, ~mask] = -np.inf
            for query, row in zip(batch, scores, strict=True):
                near = np.sort(np.argpartition(row, -NEAR)[-NEAR:])
                near = near[row[near] > -np.inf]  # a filter may leave fewer
                true = (
                    self._matrix[near].astype(np.float64) * (VECTOR_WEIGHTS * query.astype(np.float64))
                ).sum(1)
                best = np.lexsort((near, -true))[:K]
                assert len(near) < NEAR or row[near].min() + 1e-5 < true[best[-1]], "200 are too few"
                exact_lists.append(near[best].tolist())
                fp32_lists.append(near[np.argsort(-row[near], kind="stable")[:K]].tolist())
        return exact_lists, fp32_lists


class Faiss:
    """An index of faiss: Flat, SQ8, or IVF, which has SQ8 for 500,000 cases or more, and Flat for fewer."""

    def __init__(self, kind: str, folder: Path, cases: int, masks: dict[str, np.ndarray]) -> None:
        import faiss

        lists = 2 ** int(np.log2(min(max(cases / 39, 1), 1024)))  # 39 samples for each, as faiss recommends
        ivf = f"IVF{lists},{'SQ8' if cases >= 500_000 else 'Flat'}"
        self.what = {FLAT: "Flat", SQ8: "SQ8", IVF: ivf}[kind]
        self._index = faiss.index_factory(LAYOUT.length, self.what, faiss.METRIC_INNER_PRODUCT)
        options: dict[str, Any] = {"nprobe": PROBES} if kind == IVF else {}
        make = faiss.SearchParametersIVF if kind == IVF else faiss.SearchParameters
        self._bits = {
            filter_name: np.packbits(mask, bitorder="little") for filter_name, mask in masks.items()
        }
        selectors = {filter_name: faiss.IDSelectorBitmap(bits) for filter_name, bits in self._bits.items()}
        self._options = {
            filter_name: make(sel=selector, **options) for filter_name, selector in selectors.items()
        }
        self._options["all"] = make(**options)
        pending, need = [], 40 * lists if kind == IVF else 10_000
        self.seconds = 0.0
        batches = read_descriptors(folder)
        for rows in batches:
            pending.append(rows)
            if sum(map(len, pending)) < min(need, cases):
                continue
            sample, pending = np.concatenate(pending), []
            began = time.perf_counter()
            if not self._index.is_trained:
                self._index.train(sample)
            self._index.add(sample)
            self.seconds += time.perf_counter() - began
            need = 1
        assert self._index.ntotal == cases

    def search(self, queries: np.ndarray, filter_name: str) -> Lists:
        weighed = queries * VECTOR_WEIGHTS.astype(np.float32)
        ids = self._index.search(weighed, K, params=self._options[filter_name])[1]
        return ids.tolist()


def read_descriptors(folder: Path) -> Iterator[np.ndarray]:
    """Yield the descriptors of the archive in batches, in the order of the case ids."""
    db = sqlite3.connect(f"file:{folder / 'cases.skinret'}?mode=ro", uri=True)
    cursor = db.execute("SELECT descriptor FROM cases ORDER BY id")
    while rows := cursor.fetchmany(STEP):
        yield np.frombuffer(b"".join(blob for (blob,) in rows), "<f4").reshape(len(rows), -1)
    db.close()


def main(kind: str, folder: Path, cases: int) -> None:
    def send(**answer: Any) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    queries = np.load(folder / "queries.npy")
    with np.load(folder / "masks.npz") as file:
        masks = dict(file)
    makers: dict[str, Any] = {OURS: Skinret, NUMPY: Numpy}
    competitor = makers[kind](folder, cases, masks) if kind in makers else Faiss(kind, folder, cases, masks)
    send(seconds=competitor.seconds, what=getattr(competitor, "what", kind), **memory())
    for line in sys.stdin:
        request = json.loads(line)
        first, end = request.get("first", 0), request.get("end", 0)
        if request["do"] == "memory":
            send(**memory())
        elif request["do"] == "exact":
            exact, fp32 = competitor.exact(queries[first:end], request["filter_name"])
            send(exact=exact, fp32=fp32)
        else:
            times, lists = [], []
            for start in range(first, end, request["batch"]):
                batch = queries[start : min(start + request["batch"], end)]
                began = time.perf_counter()
                lists += competitor.search(batch, request["filter_name"])
                times.append((time.perf_counter() - began) * 1e3 / len(batch))
            send(ms=times, lists=lists)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(arguments["kind"], Path(arguments["folder"]), arguments["cases"])
