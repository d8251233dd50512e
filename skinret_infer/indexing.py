"""Add cases to an archive: read pictures ahead, compare with the archive, encode and write in batches."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from . import _forks
from .archive.store import AddReport, Record, Store, check_on_duplicate, keeps_old
from .bundle import Manifest
from .cases import Case
from .descriptor import Vector, state
from .encoder import Encoder
from .engines.cpus import available_cpus
from .errors import InputError, SkinretError
from .imaging.decode import decode
from .imaging.recipe import ImageRecipe, Pixels, pixel_sha256, preprocess

BATCH = 8  # cases that are written in one transaction
_READERS = 4  # pictures decoded at a time
RECORDED = "+recorded"  # behind the fingerprint of an archive whose descriptors have recorded findings

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class _Read:
    """A case whose picture was read."""

    record: Record
    pixels: Pixels | None  # [S, S, 3], or None if the case is in the archive and stays
    is_known: bool  # the archive has a case with its id
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class RecordedFindings:
    """Puts the recorded criteria of a case into its descriptor, in place of what its picture shows."""

    manifest: Manifest

    def state(self, descriptor: Vector, record: Record) -> Vector:
        """Return a descriptor [D] with the recorded criteria that the checklist has; others stay."""
        return state(descriptor, self._allowed(record), self.manifest.concepts, self.manifest.layout)

    def restate(self, descriptor: Vector, record: Record, old: Record) -> Vector:
        """Return a stored descriptor [D] with the criteria of a new record in place of the old one's.

        Raises InputError if the new record leaves a criterion open that the old one had: the descriptor has
        lost what the picture shows of it.
        """
        opened = set(self._allowed(old)) & set(self.manifest.concepts) - set(self._allowed(record))
        if opened:
            raise InputError(
                f"the recorded findings of case {record.case_id!r} cannot be taken back without its picture",
                code="recorded-open",
                expected="a value of each criterion that the archive has for the case",
                found=f"no value of {', '.join(sorted(opened))}",
                cure='add the case again with its picture and on_duplicate="replace"',
                case_id=record.case_id,
            )
        return self.state(descriptor, record)

    def _allowed(self, record: Record) -> dict[str, tuple[str]]:
        criteria = self.manifest.checklist.criteria
        return {
            name: (value,)
            for name, value in self.manifest.checklist.values_of(record.attributes).items()
            if value in criteria[name].values
        }


class Indexer:
    """Writes cases to a store."""

    def __init__(
        self, encoder: Encoder, store: Store, recipe: ImageRecipe, recorded: RecordedFindings | None = None
    ) -> None:
        self._encoder, self._store, self._recipe, self._recorded = encoder, store, recipe, recorded
        self.after_fork()
        _forks.renew(self)

    def after_fork(self) -> None:
        """Take a new lock, in a forked child."""
        self._shared = threading.Lock()  # two cases may share an open file or image of the caller

    def add(
        self,
        cases: Iterable[Case],
        on_duplicate: str,
        on_error: str,
        progress: Progress | None,
    ) -> AddReport:
        """Do what `Searcher.add` documents."""
        check_on_duplicate(on_duplicate)
        if on_error not in ("raise", "skip"):
            raise InputError(
                "on_error cannot be used", code="option", expected="raise or skip", found=repr(on_error)
            )
        total = len(cases) if isinstance(cases, Sized) else None
        report, done = AddReport(), 0
        readers = ThreadPoolExecutor(min(_READERS, available_cpus()), "skinret-read")
        try:
            for batch in self._read_ahead(_check_cases(cases), on_duplicate, readers):
                self._write(batch, on_error == "skip", report)
                done += len(batch)
                if progress:
                    progress(done, total)
        except SkinretError as error:
            if written := len(report.added) + len(report.replaced):
                error.add_note(f"{written} cases before it were added and stay; the call can be made again.")
            raise
        finally:
            readers.shutdown(cancel_futures=True)
        return report

    def _read_ahead(
        self, cases: Iterable[Case], on_duplicate: str, readers: ThreadPoolExecutor
    ) -> Iterator[list[tuple[str, "Future[_Read]"]]]:
        """Yield batches of case ids and pictures that are being read; the next batch is read meanwhile."""
        current: list[tuple[str, Future[_Read]]] = []
        remaining = iter(cases)
        while batch := list(islice(remaining, BATCH)):
            known = self._store.get([case.case_id for case in batch])
            ahead = [
                (case.case_id, readers.submit(self._read, case, known.get(case.case_id), on_duplicate))
                for case in batch
            ]
            if current:
                yield current
            current = ahead
        if current:
            yield current

    def _read(self, case: Case, old: Record | None, on_duplicate: str) -> _Read:
        """Read the picture of a case; its pixels are not needed if the case is in the archive and stays."""
        warnings: list[str] = []
        thread_safe = isinstance(case.image, str | Path | bytes | np.ndarray)
        with contextlib.nullcontext() if thread_safe else self._shared:
            try:
                picture = decode(case.image, warnings=warnings)
            except InputError as error:
                error.case_id = case.case_id
                error.add_note(f"This is the image of case {case.case_id!r}.")
                raise
        record = Record.of(case, pixel_sha256(picture))
        stays = old is not None and keeps_old(case.case_id, old.differences(record), on_duplicate)
        pixels = None if stays else preprocess(picture, self._recipe)
        return _Read(record, pixels, old is not None, warnings)

    def _write(self, batch: list[tuple[str, "Future[_Read]"]], skip: bool, report: AddReport) -> None:
        """Encode and write the new cases of a batch in one transaction."""
        new: list[_Read] = []
        pixels: list[Pixels] = []
        failed: dict[str, SkinretError] = {}
        reads: list[_Read] = []
        for case_id, future in batch:
            try:
                reads.append(future.result())
            except InputError as error:
                if not skip:
                    raise
                failed[case_id] = error
        for read in reads:
            if read.warnings:
                report.warnings[read.record.case_id] = read.warnings
            if read.pixels is None:
                report.unchanged.append(read.record.case_id)
            else:
                new.append(read)
                pixels.append(read.pixels)
        if new:
            with _forks.no_fork():
                descriptors = self._encoder.embed_cases(pixels)
                if self._recorded:
                    pairs = zip(descriptors, new, strict=True)
                    descriptors = np.stack([self._recorded.state(d, read.record) for d, read in pairs])
                self._store.write([read.record for read in new], descriptors)
            for read in new:
                (report.replaced if read.is_known else report.added).append(read.record.case_id)
        report.failed |= failed


def _check_cases(cases: Iterable[Case]) -> Iterator[Case]:
    """Yield cases, after a check of their types and ids; a list is checked before the first is yielded."""
    if not isinstance(cases, Iterable) or isinstance(cases, str | bytes):
        raise _not_cases(cases)
    checked = _check_each(cases)
    return iter(list(checked)) if isinstance(cases, Sized) else checked


def _check_each(cases: Iterable[Case]) -> Iterator[Case]:
    known: set[str] = set()
    for case in cases:
        if not isinstance(case, Case):
            raise _not_cases(case)
        if case.case_id in known:
            raise InputError(
                f"case id {case.case_id!r:.80} appears twice",
                code="case-duplicate",
                expected="each case once",
                cure="remove or rename one",
                case_id=case.case_id,
            )
        known.add(case.case_id)
        yield case


def _not_cases(found: object) -> InputError:
    return InputError(
        "the cases cannot be used", code="option", expected="an iterable of Case", found=f"{found!r:.80}"
    )
