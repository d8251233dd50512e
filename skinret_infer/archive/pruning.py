"""The pruning index: exact search that reads few descriptors. It is derived from the archive.

Let w be the weights of the products (descriptor.py), y = w * d_q, and P an orthonormal projection [D, r] onto
the directions in which the archive varies most. P splits y and each d_t into z = P^T y and z_t = P^T d_t, and
a rest:

    score = z . z_t + rest,    |rest| <= rho * rho_t,    rho_t = |d_t - P z_t|       (Cauchy-Schwarz)

So r + 1 numbers for each case give a lower and an upper bound of every score. A case whose upper bound is
below the k-th lower bound is pruned. The others are scored from the stored descriptors, best bound first,
until no remaining bound reaches the k-th score (Seidl & Kriegel 1998). The list is exact for any P; a P that
fits badly only costs time. P does not depend on the query, so weights may change from query to query.

A segment is SEGMENT consecutive row ids of the archive. The index of a full segment is a memory-mapped file,
whose name has the projection, the segment and the generation of the segment in the archive.
"""

import contextlib
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._files import atomic_write
from ..descriptor import Layout, Vector, products
from .filters import Column, Columns, Condition

SEGMENT = 1 << 14  # row ids: 8 MB of the index, and the most that is read again when a case is removed
SAMPLE = 4096  # descriptors to fit a projection to; an archive of fewer cases needs none
_RANKS = (32, 64, 128, 256)
_CHUNK = 256  # descriptors projected at once: their float64 copy fits into the cache
_MAGIC = b"skinret segment 1\n"
_WORDS = {"<f4": 1, "<i4": 1, "<i8": 2}  # the size of a number in units of four bytes
_BLOCK = 64  # the number of cases in the first block that is scored from descriptors
_FETCH = 80_000.0  # numbers that a scan reads in the time in which the archive reads one descriptor
_LEAST = float(np.finfo(np.float32).min)  # above minus infinity only

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class Stale(Exception):
    """A file is not the complete index of a segment of this archive."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Orthonormal vectors float64 [D, r], or None: then the index holds the descriptors themselves."""

    vectors: Floats | None
    key: str

    @classmethod
    def of(cls, vectors: Floats | None) -> "Projection":
        """Return a projection with its key."""
        content = b"" if vectors is None else np.ascontiguousarray(vectors, "<f8").tobytes()
        return cls(vectors, hashlib.sha256(content).hexdigest()[:16])

    def rank(self, layout: Layout) -> int:
        """Return r, or D where there are no vectors."""
        return layout.length if self.vectors is None else self.vectors.shape[1]

    @classmethod
    def fit(cls, descriptors: Vector, layout: Layout) -> "Projection":
        """Fit the projection to a sample of the descriptors.

        The concepts are few numbers with large weights and stay as they are; the visual part is projected.
        The sample gives an estimate of the cost of each rank: the numbers to scan, and the descriptors that
        the bounds do not prune. If no rank saves time (descriptors without structure), there are no vectors.
        """
        visual = layout.visual_length
        sample = descriptors[:, :visual]
        rng = np.random.default_rng(0)
        ranks = [r for r in _RANKS if r < min(sample.shape) // 2]
        if not ranks:
            return cls.of(None)
        x = sample.astype(np.float64)
        vectors = _principal_vectors(sample, x, ranks[-1] + 16, rng)
        costs = {visual: float(visual)} | _costs(x, vectors, ranks, rng)
        best = min(costs, key=lambda r: costs[r])
        if best == visual:
            return cls.of(None)
        both = np.zeros((layout.length, best + layout.length - visual))
        both[:visual, :best] = vectors[:, :best]
        both[visual:, best:] = np.eye(layout.length - visual)
        return cls.of(both)

    def cases(self, descriptors: Vector) -> tuple[Vector, Vector]:
        """Return z_t float32 [N, r] of descriptors [N, D], and rho_t float32 [N], rounded up."""
        if self.vectors is None:
            return descriptors, np.zeros(len(descriptors), np.float32)
        starts = range(0, max(len(descriptors), 1), _CHUNK)
        chunks = [self._split(descriptors[n : n + _CHUNK]) for n in starts]
        z, rho = (np.concatenate(column) for column in zip(*chunks, strict=True))
        return z, np.nextafter(rho, np.float32(np.inf))

    def query(self, y: Floats) -> tuple[Vector, float, float]:
        """Return z float32 [r] of y = w * d_q [D], its rho, and the largest rounding error of a score."""
        if self.vectors is None:
            z, rho = y.astype(np.float32), 0.0
        else:
            zs, rhos = self._split(y[None])
            z, rho = zs[0], float(np.nextafter(rhos[0], np.float32(np.inf)))
        # |fl(x.y) - x.y| <= r u |x||y| in any order of summation (Higham 2002, 3.5), x and y rounded before.
        return z, rho, (len(z) + 16) * 2.0**-24 * float(np.linalg.norm(y))

    def _split(self, x: npt.NDArray[Any]) -> tuple[Vector, Vector]:
        """Return z and rho of vectors [N, D], computed in float64."""
        x = x.astype(np.float64)
        z = x @ self.vectors
        squared = (x**2).sum(1)
        # The error of the difference of two float64 sums is far below 1e-11 of the sum (D < 10,000).
        rho = np.sqrt(np.maximum(squared - (z**2).sum(1), 0) + 1e-11 * squared)
        return z.astype(np.float32), rho.astype(np.float32)


def _principal_vectors(sample: Vector, x: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Return orthonormal vectors [D, count] along which a sample varies most, the strongest first.

    x : the sample in float64. Subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4).
    """
    space = rng.standard_normal((sample.shape[1], count), np.float32)
    for _ in range(3):
        space, _ = np.linalg.qr(sample.T @ (sample @ space))
    exact, _ = np.linalg.qr(space.astype(np.float64))
    coordinates = x @ exact
    _, rotation = np.linalg.eigh(coordinates.T @ coordinates)
    vectors: Floats = exact @ rotation[:, ::-1]
    return vectors


def _costs(x: Floats, vectors: Floats, ranks: Sequence[int], rng: np.random.Generator) -> dict[int, float]:
    """Estimate on a sample what a case costs at each rank, in numbers that a scan reads."""
    z, squared = x @ vectors, (x**2).sum(1)
    queries = rng.choice(len(x), min(len(x), 64), replace=False)
    exact = x[queries] @ x.T
    exact[np.arange(len(queries)), queries] = -np.inf
    best = exact.max(1, keepdims=True)  # of the sample; the k-th best of many more cases is higher
    costs = {}
    for r in ranks:
        rho = np.sqrt(np.maximum(squared - (z[:, :r] ** 2).sum(1), 0))
        bound = z[queries, :r] @ z[:, :r].T + rho[queries, None] * rho
        pruned = (bound < best).mean()
        costs[r] = r + (1 - pruned) * _FETCH
    return costs


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """The index of n cases of one segment, in the order of their row ids."""

    ids: Ids  # [n]
    z: Vector  # [n, r]
    rho: Vector  # [n]
    columns: Columns

    def __len__(self) -> int:
        return len(self.ids)

    def concat(self, more: "SegmentIndex") -> "SegmentIndex":
        """Return the index of these cases followed by `more`."""
        if not len(more):
            return self
        return SegmentIndex(
            np.concatenate([self.ids, more.ids]),
            np.concatenate([self.z, more.z]),
            np.concatenate([self.rho, more.rho]),
            self.columns.concat(more.columns, len(self), len(more)),
        )

    def rows(self, start: int, end: int) -> "SegmentIndex":
        """Return the index of the cases with start <= row id < end."""
        span = slice(*np.searchsorted(self.ids, (start, end)))
        return SegmentIndex(self.ids[span], self.z[span], self.rho[span], self.columns.rows(span))

    def allowed(self, conditions: Sequence[Condition], exclude: Ids) -> npt.NDArray[np.bool_] | None:
        """Return which cases match a filter and are not excluded, bool [n]; None: all."""
        mask = self.columns.matches(conditions, len(self)) if conditions else None
        if len(exclude):
            places = np.searchsorted(self.ids, exclude)
            inside = places < len(self)
            excluded = places[inside][self.ids[places[inside]] == exclude[inside]]
            if len(excluded):
                mask = np.ones(len(self), bool) if mask is None else mask
                mask[excluded] = False
        return mask

    def save(self, path: Path) -> None:
        """Write the index to a file, atomically."""
        arrays: dict[str, npt.NDArray[Any]] = {"ids": self.ids, "z": self.z, "rho": self.rho}
        arrays |= {f"codes{n}": c.codes for n, c in enumerate(self.columns.values())}
        columns = [[name, list(column.values)] for name, column in self.columns.items()]
        spans, start = {}, 0
        for name, array in arrays.items():
            spans[name] = [array.dtype.str, array.shape, start]
            start += -(-array.nbytes // 64) * 64
        header = json.dumps(
            {"name": path.name, "arrays": spans, "columns": columns, "length": start}
        ).encode()
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            checksum = 0
            for piece in _pieces(header, arrays.values()):
                checksum = zlib.crc32(piece, checksum)
                file.write(piece)
            file.write(checksum.to_bytes(4, "little"))

    @classmethod
    def load(cls, path: Path, rank: int) -> "SegmentIndex":
        """Map a file of `save` into memory. Raises Stale for a damaged file, OSError if there is none."""
        try:
            content = np.memmap(path, np.uint8, "r").view(np.ndarray)
            if zlib.crc32(content[:-4].data).to_bytes(4, "little") != content[-4:].tobytes():
                raise Stale(f"{path.name} has another checksum")
            begin = len(_MAGIC) + 8
            length = int.from_bytes(content[len(_MAGIC) : begin].tobytes(), "little")
            header = json.loads(content[begin : begin + length].tobytes())
            if header["name"] != path.name:
                raise Stale(f"{path.name} was written as {header['name']}")
            data = content[_round_up(begin + length) :]
            cases = header["arrays"]["ids"][1][0]

            def array(name: str, kind: str, *shape: int) -> npt.NDArray[Any]:
                stored_kind, stored_shape, start = header["arrays"][name]
                if (stored_kind, stored_shape) != (kind, list(shape)):
                    raise Stale(f"{path.name} has {name} of another kind or rank")
                numbers: npt.NDArray[Any] = data[start : start + 4 * math.prod(shape) * _WORDS[kind]]
                return numbers.view(kind).reshape(shape)

            columns = Columns(
                {
                    name: Column(values, array(f"codes{n}", "<i4", cases))
                    for n, (name, values) in enumerate(header["columns"])
                }
            )
            ids = array("ids", "<i8", cases)
            if (np.diff(ids) <= 0).any() or not all(map(_is_valid, columns.values())):
                raise Stale(f"{path.name} has rows or values that no archive has")
            return cls(ids, array("z", "<f4", cases, rank), array("rho", "<f4", cases), columns)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise Stale(f"{path.name}: {error}") from None


def _is_valid(column: Column) -> bool:
    """Return whether the values of a column from a file can be in an archive, and its codes have values."""
    kinds = set(map(type, column.values))
    integers = (v for v in column.values if type(v) is int) if int in kinds else ()
    return (
        kinds <= {str, int, float, bool}
        and all(-(2**63) <= v < 2**63 for v in integers)
        and bool(((column.codes >= -1) & (column.codes < len(column.values))).all())
    )


def _pieces(header: bytes, arrays: Iterable[npt.NDArray[Any]]) -> Iterator[bytes | memoryview]:
    """Yield the content of a file before its checksum: header and arrays, each padded to 64 bytes."""
    begin = _MAGIC + len(header).to_bytes(8, "little") + header
    yield begin.ljust(_round_up(len(begin)), b"\0")
    for array in arrays:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        yield bytes(-array.nbytes % 64)


def _round_up(length: int) -> int:
    return -(-length // 64) * 64


def index_cases(
    ids: Sequence[int], descriptors: Vector, facts: Sequence[Mapping[str, Any]], projection: Projection
) -> SegmentIndex:
    """Return the index of cases with these row ids, descriptors [n, D] and facts."""
    return SegmentIndex(np.array(ids, np.int64), *projection.cases(descriptors), Columns.of(facts))


def candidates(
    segments: Sequence[SegmentIndex],
    masks: Sequence[npt.NDArray[np.bool_] | None],
    projection: Projection,
    ys: Sequence[Floats],
    k: int,
    max_norm: float,
) -> list[tuple[Ids, Vector]]:
    """Return for each query the row ids that may be among its k best, and their upper bounds, best first.

    masks : the allowed cases of each segment, bool [n]; None: all.
    ys : y = w * d_q of each query, float64 [D].
    max_norm : an upper bound of the norm of a descriptor.
    """
    queries = [projection.query(y) for y in ys]
    zs = np.stack([z for z, _, _ in queries])
    prunings = [_Pruning(k) for _ in queries]
    for segment, mask in zip(segments, masks, strict=True):
        z, rho, ids, excluded = _allowed_rows(segment, mask)
        if not len(ids):
            continue
        # Not BLAS for few queries: its threads spin for 20 ms more, on the cores that the next query needs.
        estimates = zs @ z.T if len(zs) > 3 else [np.einsum("ij,j->i", z, query_z) for query_z in zs]
        for (_, query_rho, rounding), estimate, pruning in zip(queries, estimates, prunings, strict=True):
            slack = np.float32(query_rho) * rho + np.float32(rounding * max_norm)
            lower, upper = estimate - slack, estimate + slack
            if excluded is not None:
                lower[excluded] = upper[excluded] = -np.inf
            pruning.add(ids, lower, upper)
    return [pruning.candidates() for pruning in prunings]


def _allowed_rows(
    segment: SegmentIndex, mask: npt.NDArray[np.bool_] | None
) -> tuple[Vector, Vector, Ids, npt.NDArray[np.bool_] | None]:
    """Return z, rho and row ids of the allowed cases, or of all cases with a mask of the excluded ones."""
    if mask is None:
        return segment.z, segment.rho, segment.ids, None
    if 2 * np.count_nonzero(mask) > len(mask):  # a copy of so many cases would take longer
        return segment.z, segment.rho, segment.ids, ~mask
    rows = np.flatnonzero(mask)
    return segment.z.take(rows, 0), segment.rho.take(rows), segment.ids.take(rows), None


class _Pruning:
    """The bounds of one query: the k greatest lower bounds so far, and the cases that they do not prune."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._best = np.empty(0, np.float32)
        self._kth = _LEAST  # the k-th greatest lower bound, once there are k; until then it prunes nothing
        self._batches: list[tuple[Ids, Vector]] = []

    def add(self, ids: Ids, lower: Vector, upper: Vector) -> None:
        """Add the cases of a segment with their bounds.

        k cases score at least the k-th greatest lower bound: a case whose upper bound is below it is not
        among the k best.
        """
        if len(greater := lower[lower > self._kth]):
            self._best = np.concatenate([self._best, greater])
            if len(self._best) >= self._k:
                self._best = np.partition(self._best, len(self._best) - self._k)[-self._k :]
                self._kth = float(self._best[0])
        rows = np.flatnonzero(upper >= self._kth)
        self._batches.append((ids[rows], upper[rows]))

    def candidates(self) -> tuple[Ids, Vector]:
        """Return the row ids that are not pruned, and their upper bounds, best first."""
        ids = np.concatenate([i for i, _ in self._batches] or [np.empty(0, np.int64)])
        upper = np.concatenate([u for _, u in self._batches] or [np.empty(0, np.float32)])
        rows = np.flatnonzero(upper >= self._kth)
        rows = rows[np.argsort(-upper[rows], kind="stable")]
        return ids[rows], upper[rows]


def rescore(
    query: Vector,
    ids: Ids,
    upper: Vector,
    weights: Floats,
    layout: Layout,
    k: int,
    fetch: Callable[[Ids], Vector],
) -> tuple[Ids, Floats, Floats]:
    """Score candidates from their descriptors; return row ids, scores and products [n, 6 + C] of the k best.

    The result has more than k cases if several have the k-th score.
    """
    ranking = np.empty(0, np.int64), np.empty(0), np.empty((0, len(layout.lengths)))
    done, step, kth = 0, max(_BLOCK, k), -np.inf
    while done < len(ids) and upper[done] >= kth:
        block = ids[done : done + step]
        block = block[upper[done : done + step] >= kth]
        terms = products(query, fetch(block), layout)
        score = (terms * weights).sum(axis=1)  # not BLAS: the bits of a score must not depend on other cases
        pairs = zip(ranking, (block, score, terms), strict=True)
        ranking = tuple(np.concatenate(pair) for pair in pairs)  # type: ignore[assignment]
        if len(ranking[0]) >= k:
            kth = np.partition(ranking[1], len(ranking[1]) - k)[-k]
        done, step = done + step, 2 * step
    best = ranking[1] >= kth
    return ranking[0][best], ranking[1][best], ranking[2][best]


def segment_file(projection: Projection, number: int, generation: int) -> str:
    """Return the file name of a segment's index."""
    return f"{projection.key}-{number:06}-{generation}.segment"


def remove_stale(folder: Path, current: Collection[str]) -> None:
    """Remove every file of an index folder but the current ones: a stale file may hold a removed case."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            if path.name not in current and path.suffix in (".segment", ".partial"):
                with contextlib.suppress(OSError):  # Windows keeps a mapped file; the next call removes it
                    path.unlink()
