"""The door of the package: open a bundle and an archive, add cases, ask for the most similar ones."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from . import gate
from .archive import Archive
from .bundle import Bundle
from .cases import Case
from .descriptor import COSINES, Vector, check_levels, check_weight, part_weights
from .engines import Array, Engine, cache_folder, open_engine
from .errors import InputError, SkinretError
from .image import ImageSource, Pixels, decode, digest, prepare
from .results import Hit, Results
from .store import Added, Match, Record, Store, check_on_duplicate, duplicate
from .text import TextEncoderInput, check_text

BATCH = 8  # images encoded at once, and cases written in one transaction
_STEP = 16  # tokens: texts are padded to a multiple of it
_TEXTS_KEPT = 128  # of the last texts, encoded: 25 MB at 64 tokens of 768 numbers
_WORKERS = 4  # texts encoded at a time, of queries from several threads

Progress = Callable[[int, int], None]
Where = Mapping[str, Any]


@dataclass(slots=True)
class Indexed(Added):
    """What adding did; `warnings` are what a person should know of the pictures, by case id."""

    warnings: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return case ids and warnings as plain values, for JSON."""
        return Added.to_dict(self) | {"warnings": self.warnings}

    def remarks(self) -> list[str]:
        """Return each warning once, with the first of the cases that it was given for."""
        ids: dict[str, list[str]] = {}
        for case_id, warnings in self.warnings.items():
            for warning in warnings:
                ids.setdefault(warning, []).append(case_id)
        more = {warning: f" and {len(found) - 5} more" * (len(found) > 5) for warning, found in ids.items()}
        return [f"{', '.join(found[:5])}{more[warning]}: {warning}" for warning, found in ids.items()]


class Searcher:
    """Find the most similar confirmed cases of an archive for an image and a few words.

    bundle : the folder that skinret-export made; every file is checked against its hash.
    archive : the path of the archive; the first `add` makes it. Or another Store of this model's cases.
    runtime : "auto", or one by name, which is then used or refused, never exchanged.
    precision : "auto" takes the fastest that the gate on ranks has passed for this bundle; or one by name.
        Cases are added in fp32 unless the gate has passed it for archives too.
    threads : for the runtime; None takes as many as the process may use.
    cache : a folder for what a runtime builds; None takes SKINRET_CACHE or the user's cache folder.

    Safe to call from several threads. Raises BundleError, ArchiveError, RuntimeUnavailable.
    """

    def __init__(
        self,
        bundle: str | Path,
        archive: str | Path | Store,
        *,
        runtime: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self._bundle = Bundle.load(bundle)
        self.manifest = manifest = self._bundle.manifest
        self._tokenize = TextEncoderInput(self._bundle.tokenizer(), manifest.text)
        self._model = f"{manifest.model} {manifest.version}"
        self._archive: Store = (
            Archive(archive, manifest.fingerprint, manifest.layout, self._model)
            if isinstance(archive, str | Path)
            else archive
        )
        self._opening: Mapping[str, Any] = {"threads": threads, "cache": cache}
        self._engine = open_engine(self._bundle, runtime, precision=precision, **self._opening)
        self._writing: Engine | None = None
        self._pool = ThreadPoolExecutor(_WORKERS, "skinret-words")
        self._seen: OrderedDict[bytes, Array] = OrderedDict()  # token ids -> tokens [n, d_T]
        self._lock = threading.Lock()

    @property
    def runtime(self) -> str:
        """The runtime that runs, such as "onnxruntime-cpu"."""
        return self._engine.name

    @property
    def precision(self) -> str:
        """The precision that runs, such as "bf16"."""
        return self._engine.precision

    def __len__(self) -> int:
        return len(self._archive)

    def __repr__(self) -> str:
        return f"Searcher({self._model}, {self._archive}, {self.runtime} {self.precision})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive and give back what the runtime holds."""
        self._pool.shutdown()
        self._archive.close()
        self._engine.close()
        if self._writing not in (None, self._engine):
            self._writing.close()

    def warmup(self) -> None:
        """Run every graph once, so that the first query is as fast as the next."""
        size = self.manifest.image.size
        self._describe([np.zeros((size, size, 3), np.uint8)], ["lesion"], {})

    def add(
        self, cases: Iterable[Case], *, on_duplicate: str = "error", progress: Progress | None = None
    ) -> Indexed:
        """Encode cases and write them to the archive, all or none of a batch of eight at a time.

        A case that is there already with the same picture and facts is left as it is, so that a call that was
        interrupted can simply be made again. One that is there with others follows `on_duplicate`: "error",
        "skip" or "replace". `progress(done, total)` is called after each batch. What is returned also has
        `warnings` of the pictures, such as of writing burned into one.

        Raises InputError for an unusable image, ArchiveError for a case that is there with other facts; what
        was added before it stays added.
        """
        check_on_duplicate(on_duplicate)
        cases = _checked(cases)
        report = Indexed()
        for start in range(0, len(cases), BATCH):
            batch = cases[start : start + BATCH]
            try:
                self._add_batch(batch, on_duplicate, report)
            except SkinretError as error:
                if done := len(report.added) + len(report.replaced):
                    error.add_note(f"{done} cases before it were added and stay; the call can be made again.")
                raise
            if progress:
                progress(start + len(batch), len(cases))
        return report

    def remove(self, case_ids: Collection[str]) -> int:
        """Remove cases from the archive, their bytes with them; return how many were there."""
        return self._archive.remove(_checked_ids("case_ids", case_ids))

    def query(
        self,
        image: ImageSource,
        text: str | None = None,
        *,
        k: int = 10,
        where: Where | None = None,
        exclude: Collection[str] = (),
        beta: float | None = None,
        gamma: float | None = None,
        levels: Mapping[str, float] | None = None,
    ) -> Results:
        """Return the k most similar cases for a dermoscopy image and, if given, a few words.

        image : a path, bytes, a binary file object, a PIL image or an H x W x 3 uint8 array.
        text : findings in English, such as "atypical pigment network"; None or "" searches by image alone.
        k : how many hits; fewer come back if the archive or the filter has fewer.
        where : only cases whose field or attribute has this value, one of these, or a number from one to the
            other, such as {"sex": "female", "diagnosis": ["melanoma", "nevus"], "age": (40, 60)}.
        exclude : case ids that may not come back, such as the patient's own.
        beta : the weight of the local term (Eq. 9), 0 to 1; None takes the model's.
        gamma : the weight of the agreement of traits: 0 ranks by the looks alone, 1 by what is read off
            them alone; None takes the model's.
        levels : the weights of the levels among the looks, such as {"low": 2, "high": 0.5}; those not given
            are 1.

        Raises InputError, ArchiveError.
        """
        return self.query_batch(
            [(image, text)], k=k, where=where, exclude=exclude, beta=beta, gamma=gamma, levels=levels
        )[0]

    def query_batch(
        self,
        queries: Sequence[tuple[ImageSource, str | None]],
        *,
        k: int = 10,
        where: Where | None = None,
        exclude: Collection[str] = (),
        beta: float | None = None,
        gamma: float | None = None,
        levels: Mapping[str, float] | None = None,
    ) -> list[Results]:
        """Answer many queries, encoding eight at a time. The scores are those of `query`, to rounding."""
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise InputError(
                "k cannot be used", code="k-range", expected="an int of at least 1", found=repr(k)
            )
        excluded = _checked_ids("exclude", exclude)
        beta = (
            self.manifest.beta if beta is None else check_weight("beta", beta, "global alone", "local alone")
        )
        gamma = self._gamma(gamma)
        levels = check_levels(levels)
        weights = part_weights(self.manifest.layout, beta, gamma, levels)
        share = part_weights(self.manifest.layout, 1.0, 0.0, levels)[:3]  # of each level
        agreement = part_weights(self.manifest.layout, beta, 1.0)[6:]  # of each trait
        results: list[Results] = []
        for start in range(0, len(queries), BATCH):
            chunk = queries[start : start + BATCH]
            began = time.perf_counter()
            texts = [check_text(text, self.manifest.text) for _, text in chunk]
            timings: dict[str, float] = {}
            descriptors, warnings = self._describe([image for image, _ in chunk], texts, timings)
            timings["total"] = (time.perf_counter() - began) * 1e3
            searching = time.perf_counter()
            found, searched = self._archive.search(descriptors, weights, int(k), where, excluded)
            timings["search"] = (time.perf_counter() - searching) * 1e3
            timings["total"] += timings["search"]
            spent = {name: round(ms / len(chunk), 3) for name, ms in timings.items()}
            for text, matches, warned in zip(texts, found, warnings, strict=True):
                results.append(
                    Results(
                        hits=tuple(
                            _hit(rank, match, self.manifest.traits, agreement, share)
                            for rank, match in enumerate(matches, 1)
                        ),
                        text=text,
                        k=int(k),
                        beta=beta,
                        gamma=gamma,
                        levels=levels,
                        searched=searched,
                        runtime=self.runtime,
                        precision=self.precision,
                        model=self._model,
                        warnings=tuple(warned),
                        timings_ms=spent,
                    )
                )
        return results

    def _gamma(self, gamma: float | None) -> float:
        if gamma is None:
            return self.manifest.gamma
        gamma = check_weight("gamma", gamma, "the looks alone", "the traits alone")
        if gamma and not self.manifest.traits:
            raise InputError(
                "gamma cannot be used",
                code="gamma-range",
                expected="0: this model reads no traits",
                found=repr(gamma),
                cure="leave gamma out, or train a model that reads them",
            )
        return gamma

    def describe(self, image: ImageSource, text: str | None = None) -> Vector:
        """Return the descriptor of a query, or without text of a case: float32 [D], as its Layout says."""
        descriptors, _ = self._describe([image], [check_text(text, self.manifest.text)], {})
        row: Vector = descriptors[0]
        return row

    def _add_batch(self, batch: Sequence[Case], on_duplicate: str, report: Indexed) -> None:
        there = self._archive.find([case.case_id for case in batch])
        records: list[Record] = []
        pixels: list[Pixels] = []
        for case in batch:
            warnings: list[str] = []
            try:
                picture = decode(case.image, warnings=warnings)
            except InputError as error:
                error.add_note(f"This is the image of case {case.case_id!r}.")
                raise
            if warnings:
                report.warnings[case.case_id] = warnings
            record = Record.of(case, digest(picture))
            old = there.get(case.case_id)
            differs = old.differs(record) if old else []
            if old and (not differs or on_duplicate == "skip"):
                report.unchanged.append(case.case_id)
                continue
            if old and on_duplicate == "error":
                raise duplicate(case.case_id, differs)
            records.append(record)
            pixels.append(prepare(picture, self.manifest.image))
        if records:
            self._archive.write(records, self._writer().describe(np.stack(pixels), None))
            for record in records:
                (report.replaced if record.case_id in there else report.added).append(record.case_id)

    def _writer(self) -> Engine:
        """Return the engine that describes cases: the queries' own if it may write an archive, or fp32."""
        with self._lock:
            if self._writing is None:
                name, precision = self._engine.name, self._engine.precision
                folder = cache_folder(self._opening["cache"])
                if gate.allowed(self._bundle, name, precision, folder, to_write=True):
                    self._writing = open_engine(self._bundle, name, precision="fp32", **self._opening)
                else:
                    self._writing = self._engine
            return self._writing

    def _describe(
        self, images: Sequence[ImageSource], texts: Sequence[str], timings: dict[str, float]
    ) -> tuple[Vector, list[list[str]]]:
        """Return descriptors [B, D] and warnings; what has no words is described by its image alone.

        The words are encoded in a thread of their own while the images are decoded and encoded. `timings`
        gets milliseconds, which overlap: image, text, describe.
        """
        self._archive.check_open()  # the runtime is closed with it
        worded = [n for n, text in enumerate(texts) if text]
        alone = [n for n, text in enumerate(texts) if not text]
        said: Future[tuple[Array, Array, list[list[str]]]] | None = None
        if worded:
            said = self._pool.submit(self._words, [texts[n] for n in worded], timings)
        began = time.perf_counter()
        warnings: list[list[str]] = [[] for _ in texts]
        recipe, both = self.manifest.image, zip(images, warnings, strict=True)
        pixels = np.stack([prepare(decode(image, warnings=warned), recipe) for image, warned in both])
        decoded = time.perf_counter()
        descriptors = np.empty((len(texts), self.manifest.layout.length), np.float32)
        if said is not None:
            words = said.result
            descriptors[worded] = self._engine.describe(pixels[worded], lambda: words()[:2])
            for n, warned in zip(worded, words()[2], strict=True):
                warnings[n] += warned
        if alone:
            descriptors[alone] = self._engine.describe(pixels[alone], None)
        timings["image"] = (decoded - began) * 1e3
        timings["describe"] = (time.perf_counter() - decoded) * 1e3
        return descriptors, warnings

    def _words(self, texts: Sequence[str], timings: dict[str, float]) -> tuple[Array, Array, list[list[str]]]:
        """Return tokens [B, n, d_T], attention_mask [B, n], warnings; words seen before are not encoded."""
        began = time.perf_counter()
        ids, mask, warnings = self._tokenize(texts)
        # No longer than the words: what is masked adds nothing. In steps, so that few shapes occur.
        lengths = [min(-(-int(n) // _STEP) * _STEP, ids.shape[1]) for n in mask.sum(axis=1)]
        keys = [row[:n].tobytes() for row, n in zip(ids, lengths, strict=True)]
        with self._lock:
            known = {key: self._seen[key] for key in keys if key in self._seen}
            for key in known:
                self._seen.move_to_end(key)
        if new := {key: i for i, key in enumerate(keys) if key not in known}:
            rows, n = list(new.values()), max(lengths[i] for i in new.values())
            encoded = self._engine.encode_text(ids[rows, :n], mask[rows, :n])
            for (key, i), row in zip(new.items(), encoded, strict=True):
                known[key] = row[: lengths[i]].copy()
            with self._lock:
                self._seen |= {key: known[key] for key in new}
                while len(self._seen) > _TEXTS_KEPT:
                    self._seen.popitem(last=False)
        n = max(lengths)
        tokens = np.zeros((len(texts), n, known[keys[0]].shape[1]), np.float32)
        for row, key in zip(tokens, keys, strict=True):
            row[: len(known[key])] = known[key]
        timings["text"] = (time.perf_counter() - began) * 1e3
        return tokens, mask[:, :n], warnings


def _hit(
    rank: int,
    match: Match,
    traits: Iterable[str],
    weights: npt.NDArray[np.float64],
    share: npt.NDArray[np.float64],
) -> Hit:
    record, six, agreed = match.record, match.products[:6], match.products[6:]
    return Hit(
        rank=rank,
        case_id=record.case_id,
        score=match.score,
        local=float(six[:3] @ share),
        global_=float(six[3:] @ share),
        cosines=dict(zip(COSINES, map(float, six), strict=True)),
        agreement=float(agreed @ weights) if len(agreed) else None,
        traits=dict(zip(traits, map(float, agreed), strict=True)),
        diagnosis=record.diagnosis,
        group=record.group,
        confirmed_by=record.confirmed_by,
        attributes=record.attributes,
        image_ref=record.image_ref,
    )


def _checked(given: Iterable[Case]) -> list[Case]:
    cases = list(given) if isinstance(given, Iterable) else []
    if not isinstance(given, Iterable) or not all(isinstance(case, Case) for case in cases):
        raise InputError(
            "the cases cannot be used", code="option", expected="a list of Case", found=f"{given!r:.80}"
        )
    seen: set[str] = set()
    for case in cases:
        if case.case_id in seen:
            raise InputError(
                f"case id {case.case_id!r:.80} is given twice",
                code="case-duplicate",
                expected="each case once",
                cure="remove or rename one; nothing was added",
            )
        seen.add(case.case_id)
    return cases


def _checked_ids(name: str, given: Collection[str]) -> list[str]:
    """Return case ids as a list; a single str, or an id that is no str, would quietly match nothing."""
    ids = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [None]
    if not all(isinstance(i, str) for i in ids):
        raise InputError(
            f"{name} cannot be used",
            code="option",
            expected="a list of case ids, each a str",
            found=f"{given!r:.80}",
        )
    return [str(i) for i in ids]
