"""The pruning index: exact search that reads few descriptors. It is derived from the archive.

With w the weights of the products (descriptor.py), y = w * d_q and P an orthonormal projection [D, r] onto
the directions in which the archive varies most, split y and each d_t into z = P^T y and z_t = P^T d_t, and a
rest:

    score = z . z_t + rest,    |rest| <= rho * rho_t,    rho_t = |d_t - P z_t|       (Cauchy-Schwarz)

So r numbers a case and one more bound every score from both sides. A case whose upper bound is below the k-th
lower bound is pruned. The others are scored from the stored descriptors, best bound first, until no bound
that is left reaches the k-th score (Seidl & Kriegel 1998). The list is exact for any P; a P that fits badly
only costs time. P does not depend on the query, so weights may change from query to query.

A segment is SEGMENT consecutive row ids of the archive. The index of a full segment is a memory-mapped file,
named after the projection, the segment and the generation that the archive gives the segment.
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
SAMPLE = 4096  # descriptors from which a projection is taken; an archive of fewer cases needs none
_RANKS = (32, 64, 128, 256)
_CHUNK = 256  # descriptors projected at once: in float64, within a cache
_MAGIC = b"skinret segment 1\n"
_WORDS = {"<f4": 1, "<i4": 1, "<i8": 2}  # of four bytes
_BLOCK = 64  # cases first scored from their descriptors
_FETCH = 80_000.0  # numbers that are scanned in the time that one descriptor is read from the archive
_LEAST = float(np.finfo(np.float32).min)  # but for minus infinity

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class Stale(Exception):
    """A file that is not the whole index of a segment of this archive."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Orthonormal vectors float64 [D, r], or none of them: then a scan holds the descriptors themselves."""

    vectors: Floats | None
    key: str

    @classmethod
    def of(cls, vectors: Floats | None) -> "Projection":
        """Return a projection with its key."""
        said = b"" if vectors is None else np.ascontiguousarray(vectors, "<f8").tobytes()
        return cls(vectors, hashlib.sha256(said).hexdigest()[:16])

    def rank(self, layout: Layout) -> int:
        """Return r, or D where there are no vectors."""
        return layout.length if self.vectors is None else self.vectors.shape[1]

    @classmethod
    def fit(cls, descriptors: Vector, layout: Layout) -> "Projection":
        """Fit the projection to a sample of the descriptors.

        The concepts are few numbers that weigh much, and are kept as they are; the visual part is projected.
        Each rank's cost is estimated on the sample: the numbers that are scanned, and the descriptors that
        its bounds do not prune. If no rank pays (descriptors without structure), there are no vectors.
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
        """Return z_t float32 [N, r] of descriptors [N, D], and rho_t float32 [N], never below what it is."""
        if self.vectors is None:
            return descriptors, np.zeros(len(descriptors), np.float32)
        starts = range(0, max(len(descriptors), 1), _CHUNK)
        chunks = [self._split(descriptors[n : n + _CHUNK]) for n in starts]
        z, rho = (np.concatenate(column) for column in zip(*chunks, strict=True))
        return z, np.nextafter(rho, np.float32(np.inf))

    def query(self, weighed: Floats) -> tuple[Vector, float, float]:
        """Return z float32 [r] of w * d_q [D], its rho, and what rounding may add to any score."""
        if self.vectors is None:
            z, rho = weighed.astype(np.float32), 0.0
        else:
            seen, dropped = self._split(weighed[None])
            z, rho = seen[0], float(np.nextafter(dropped[0], np.float32(np.inf)))
        # |fl(x.y) - x.y| <= r u |x||y| in any order of summation (Higham 2002, 3.5), x and y rounded before.
        return z, rho, (len(z) + 16) * 2.0**-24 * float(np.linalg.norm(weighed))

    def _split(self, x: npt.NDArray[Any]) -> tuple[Vector, Vector]:
        """Return z and rho of vectors [N, D], computed in float64."""
        x = x.astype(np.float64)
        z = x @ self.vectors
        squared = (x**2).sum(1)
        # The difference of two sums of float64 has an error far below 1e-11 of the sum (D < 10,000).
        rho = np.sqrt(np.maximum(squared - (z**2).sum(1), 0) + 1e-11 * squared)
        return z.astype(np.float32), rho.astype(np.float32)


def _principal_vectors(sample: Vector, x: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Return orthonormal vectors [D, count] along which a sample varies most, the strongest first.

    x : the sample in float64. By subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4).
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
    """Return what a case costs at each rank, in numbers that are scanned, estimated on a sample."""
    z, squared = x @ vectors, (x**2).sum(1)
    queries = rng.choice(len(x), min(len(x), 64), replace=False)
    exact = x[queries] @ x.T
    exact[np.arange(len(queries)), queries] = -np.inf
    best = exact.max(1, keepdims=True)  # of the sample: lower than the k-th of many more cases
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
        """Return the index of these cases and of those after them."""
        if not len(more):
            return self
        return SegmentIndex(
            np.concatenate([self.ids, more.ids]),
            np.concatenate([self.z, more.z]),
            np.concatenate([self.rho, more.rho]),
            self.columns.concat(more.columns, len(self), len(more)),
        )

    def rows(self, start: int, end: int) -> "SegmentIndex":
        """Return the index of the cases with row ids from start to before end."""
        at = slice(*np.searchsorted(self.ids, (start, end)))
        return SegmentIndex(self.ids[at], self.z[at], self.rho[at], self.columns.rows(at))

    def allowed(self, conditions: Sequence[Condition], exclude: Ids) -> npt.NDArray[np.bool_] | None:
        """Say which cases a filter lets through, bool [n]; None: all."""
        keep = self.columns.matches(conditions, len(self)) if conditions else None
        if len(exclude):
            places = np.searchsorted(self.ids, exclude)
            inside = places < len(self)
            there = places[inside][self.ids[places[inside]] == exclude[inside]]
            if len(there):
                keep = np.ones(len(self), bool) if keep is None else keep
                keep[there] = False
        return keep

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
        """Map what `save` wrote. Raises Stale for a file that is not whole, OSError for none."""
        try:
            content = np.memmap(path, np.uint8, "r").view(np.ndarray)
            if zlib.crc32(content[:-4].data).to_bytes(4, "little") != content[-4:].tobytes():
                raise Stale(f"{path.name} has another checksum")
            begin = len(_MAGIC) + 8
            length = int.from_bytes(content[len(_MAGIC) : begin].tobytes(), "little")
            header = json.loads(content[begin : begin + length].tobytes())
            if header["name"] != path.name:
                raise Stale(f"{path.name} was written as {header['name']}")
            data = content[_padded(begin + length) :]
            cases = header["arrays"]["ids"][1][0]

            def array(name: str, kind: str, *shape: int) -> npt.NDArray[Any]:
                *said, start = header["arrays"][name]
                if said != [kind, list(shape)]:
                    raise Stale(f"{path.name} has {name} of another kind or rank")
                found: npt.NDArray[Any] = data[start : start + 4 * math.prod(shape) * _WORDS[kind]]
                return found.view(kind).reshape(shape)

            columns = Columns(
                {
                    name: Column(values, array(f"codes{n}", "<i4", cases))
                    for n, (name, values) in enumerate(header["columns"])
                }
            )
            ids = array("ids", "<i8", cases)
            if (np.diff(ids) <= 0).any() or not all(map(_sound, columns.values())):
                raise Stale(f"{path.name} has rows or values that no archive gives")
            return cls(ids, array("z", "<f4", cases, rank), array("rho", "<f4", cases), columns)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise Stale(f"{path.name}: {error}") from None


def _sound(column: Column) -> bool:
    """Say whether a column that was read has values as they are stored, and a place for each case."""
    kinds = set(map(type, column.values))
    numbers = (v for v in column.values if type(v) is int) if int in kinds else ()
    return (
        kinds <= {str, int, float, bool}
        and all(-(2**63) <= v < 2**63 for v in numbers)
        and bool(((column.codes >= -1) & (column.codes < len(column.values))).all())
    )


def _pieces(header: bytes, arrays: Iterable[npt.NDArray[Any]]) -> Iterator[bytes | memoryview]:
    begin = _MAGIC + len(header).to_bytes(8, "little") + header
    yield begin.ljust(_padded(len(begin)), b"\0")
    for array in arrays:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        yield bytes(-array.nbytes % 64)


def _padded(length: int) -> int:
    return -(-length // 64) * 64


def index_cases(
    ids: Sequence[int], descriptors: Vector, facts: Sequence[Mapping[str, Any]], projection: Projection
) -> SegmentIndex:
    """Make the scan of cases: their row ids, descriptors [n, D] and facts."""
    return SegmentIndex(np.array(ids, np.int64), *projection.cases(descriptors), Columns.of(facts))


def candidates(
    segments: Sequence[SegmentIndex],
    keeps: Sequence[npt.NDArray[np.bool_] | None],
    projection: Projection,
    weighed: Sequence[Floats],
    k: int,
    longest: float,
) -> list[tuple[Ids, Vector]]:
    """Return for each query the row ids that may be among its k best, and their upper bounds, best first.

    weighed : w * d_q of each query, float64 [D]. longest : no descriptor is.
    """
    asked = [projection.query(y) for y in weighed]
    zs = np.stack([z for z, _, _ in asked])
    best = [np.empty(0, np.float32) for _ in asked]  # the k greatest lower bounds so far
    least = [_LEAST] * len(asked)  # the k-th of them, once there are k
    left: list[list[tuple[Ids, Vector]]] = [[] for _ in asked]
    for segment, keep in zip(segments, keeps, strict=True):
        z, rho, ids, out = segment.z, segment.rho, segment.ids, None
        if keep is not None and 2 * np.count_nonzero(keep) > len(keep):
            out = ~keep  # few: to copy the others would take longer
        elif keep is not None:
            rows = np.flatnonzero(keep)
            z, rho, ids = z.take(rows, 0), rho.take(rows), ids.take(rows)
        if not len(ids):
            continue
        # Few are not left to BLAS: its threads spin on for 20 ms, on the cores that the next query needs.
        rough = zs @ z.T if len(zs) > 3 else [np.einsum("ij,j->i", z, one) for one in zs]
        for n, (_, dropped, rounding) in enumerate(asked):
            slack = np.float32(dropped) * rho + np.float32(rounding * longest)
            lower, upper = rough[n] - slack, rough[n] + slack
            if out is not None:
                lower[out] = upper[out] = -np.inf
            # k cases score at least the k-th greatest lower bound: a case whose upper bound is below it is
            # not among the k best. Before there are k lower bounds, `least` prunes nothing.
            if len(raised := lower[lower > least[n]]):
                best[n] = np.concatenate([best[n], raised])
                if len(best[n]) >= k:
                    best[n] = np.partition(best[n], len(best[n]) - k)[-k:]
                    least[n] = float(best[n][0])
            rows = np.flatnonzero(upper >= least[n])
            left[n].append((ids[rows], upper[rows]))
    found = []
    for n, pieces in enumerate(left):
        ids = np.concatenate([i for i, _ in pieces] or [np.empty(0, np.int64)])
        upper = np.concatenate([u for _, u in pieces] or [np.empty(0, np.float32)])
        rows = np.flatnonzero(upper >= least[n])
        rows = rows[np.argsort(-upper[rows], kind="stable")]
        found.append((ids[rows], upper[rows]))
    return found


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

    More than k come back where scores are equal to the k-th.
    """
    known = np.empty(0, np.int64), np.empty(0), np.empty((0, len(layout.lengths)))
    done, step, kth = 0, max(_BLOCK, k), -np.inf
    while done < len(ids) and upper[done] >= kth:
        block = ids[done : done + step]
        block = block[upper[done : done + step] >= kth]
        terms = products(query, fetch(block), layout)
        score = (terms * weights).sum(axis=1)  # not BLAS: the same bits whatever stands beside
        known = tuple(np.concatenate(pair) for pair in zip(known, (block, score, terms), strict=True))  # type: ignore[assignment]
        if len(known[0]) >= k:
            kth = np.partition(known[1], len(known[1]) - k)[-k]
        done, step = done + step, 2 * step
    best = known[1] >= kth
    return known[0][best], known[1][best], known[2][best]


def segment_file(projection: Projection, number: int, generation: int) -> str:
    """Return the name of the file of a segment's index."""
    return f"{projection.key}-{number:06}-{generation}.segment"


def remove_stale(folder: Path, current: Collection[str]) -> None:
    """Remove every file of a scan folder but the current ones: what is stale may hold a removed case."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            if path.name not in current and path.suffix in (".segment", ".partial"):
                with contextlib.suppress(OSError):  # Windows keeps what is mapped; the next sweep takes it
                    path.unlink()
