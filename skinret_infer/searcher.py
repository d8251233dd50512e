"""The door of the package: open a bundle and an archive, add cases, ask for the most similar ones."""

import contextlib
import hashlib
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from . import _forks
from ._version import __version__
from .archive.archive import Archive
from .archive.store import Added, Match, Record, Store, check_on_duplicate, duplicate
from .bundle import Bundle
from .cases import AttributeValue, Case, can_be_stored, find_file, nfc
from .descriptor import (
    COMPOSED,
    COSINES,
    LEVELS,
    MASKS,
    Vector,
    check_levels,
    check_weight,
    part_weights,
    products,
)
from .engines import CARDS, Array, Engine, cache_folder, open_engine, usable_cpus
from .engines.base import Words
from .errors import ArchiveError, InputError, RuntimeUnavailable, SkinretError
from .evaluation import precision as gate
from .evidence import Evidence, Maps, split_score
from .imaging.decode import ImageSource, decode
from .imaging.recipe import Pixels, digest, prepare, seen_box
from .results import Hit, Results
from .statements import compare
from .text import TextEncoderInput, check_text
from .trust.audit import AuditLog

BATCH = 8  # images encoded at once, and cases written in one transaction
_STEP = 4  # tokens: texts are padded to a multiple of it
_TEXTS_KEPT = 128  # of the last texts, encoded: 25 MB at 64 tokens of 768 numbers
_ROUNDING = 0.05  # of a cosine: what bf16 may miss, and another picture or model exceeds
_READERS = 4  # pictures decoded at a time, of cases that are added
_WORKERS = 4  # texts encoded at a time, of queries from several threads

Progress = Callable[[int, int], None]
Where = Mapping[str, Any]
Context = Mapping[str, AttributeValue | None]


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
    key : a PEM file of the Ed25519 public keys of which one must have signed the bundle; None takes the file
        that SKINRET_BUNDLE_KEY names, and asks for no signature where that is not set either.
    audit : a file to which every query is recorded before its answer is returned, failed ones too: hashes of
        picture and words, never these themselves; who asked is what `context` says (audit.py).

    Safe to call from several threads. A process that is forked from this one may go on with it: it opens its
    own runtime and connections at the first use. A pickled Searcher, for a process that is spawned, is
    opened there from the same files. Raises BundleError, ArchiveError, AuditError, RuntimeUnavailable, and
    InputError for a key that cannot be read.
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
        key: str | Path | None = None,
        audit: str | Path | AuditLog | None = None,
    ) -> None:
        self._bundle = Bundle.load(bundle, key)
        self.manifest = manifest = self._bundle.manifest
        self._tokenize = TextEncoderInput(self._bundle.tokenizer(), manifest.text)
        self._model = f"{manifest.model} {manifest.version}"
        self._archive: Store = (
            Archive(archive, manifest.fingerprint, manifest.layout, self._model)
            if isinstance(archive, str | Path)
            else archive
        )
        self._opening: Mapping[str, Any] = {"threads": threads, "cache": cache}
        self._runtime = runtime, precision
        self._arguments = partial(
            Searcher,
            bundle,
            archive,
            runtime=runtime,
            precision=precision,
            key=key,
            audit=audit,
            **self._opening,
        )
        self._opened: Engine | None = open_engine(self._bundle, runtime, precision=precision, **self._opening)
        self._traits = self._bundle.traits()
        self._writing: Engine | None = None
        self._audit = AuditLog(audit) if isinstance(audit, str | Path) else audit
        self._seen: OrderedDict[bytes, Array] = OrderedDict()  # token ids -> tokens [n, d_T]
        self._renew()
        _forks.renew(self)

    def _renew(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS, "skinret-words")
        self._lock = threading.RLock()
        self._theirs = threading.Lock()  # an open file or image of the caller's may be that of two cases

    def after_fork(self) -> None:
        """Let go of the runtime of the parent, in a forked child; the first use opens another."""
        if self._opened and self._opened.name in CARDS:
            self._runtime = self._opened.name, self._opened.precision
        _forks.abandon(self._opened, self._writing)
        self._opened = self._writing = None
        self._renew()

    def __reduce__(self) -> tuple[Any, ...]:
        self._archive.check_open()
        return self._arguments, ()

    @property
    def _engine(self) -> Engine:
        with self._lock:
            if self._opened is None:
                runtime, precision = self._runtime
                if runtime in CARDS:
                    raise RuntimeUnavailable(
                        f"runtime {runtime} cannot be used in a process that was forked after it had begun",
                        code="runtime-forked",
                        expected="a process that opens the card itself",
                        cure='open the Searcher in the child, or start processes with "spawn"',
                    )
                self._opened = open_engine(self._bundle, runtime, precision=precision, **self._opening)
            return self._opened

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
        for engine in {self._opened, self._writing}:
            if engine:
                engine.close()

    def warmup(self) -> None:
        """Run every graph once, so that the first query is as fast as the next."""
        size = self.manifest.image.size
        with _forks.no_fork():
            self._describe([_Asked(self, np.zeros((size, size, 3), np.uint8), None, "lesion")], {})

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
        done = 0
        readers = ThreadPoolExecutor(min(_READERS, usable_cpus()), "skinret-read")
        try:
            for batch in self._reading(cases, on_duplicate, readers):
                self._add_batch(batch, report)
                done += len(batch)
                if progress:
                    progress(done, len(cases))
        except SkinretError as error:
            if kept := len(report.added) + len(report.replaced):
                error.add_note(f"{kept} cases before it were added and stay; the call can be made again.")
            raise
        finally:
            readers.shutdown(cancel_futures=True)
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
        context: Context | None = None,
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
        context : what the audit log shall say of the caller, such as {"user": "4711", "study": "..."}.

        Raises InputError, ArchiveError, AuditError.
        """
        return self.query_batch(
            [(image, text)],
            k=k,
            where=where,
            exclude=exclude,
            beta=beta,
            gamma=gamma,
            levels=levels,
            context=context,
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
        context: Context | None = None,
    ) -> list[Results]:
        """Answer many queries, encoding eight at a time. The scores are those of `query`, to rounding.

        If one fails, all do, and are recorded as failed.
        """
        asked = [_Asked(self, image, text) for image, text in queries]
        with self._recorded(asked, context) as answers:
            if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
                raise InputError(
                    "k cannot be used", code="k-range", expected="an int of at least 1", found=repr(k)
                )
            beta = self.manifest.beta if beta is None else beta
            how: dict[str, Any] = {
                "k": int(k),
                "beta": check_weight("beta", beta, "global alone", "local alone"),
                "gamma": self._gamma(gamma),
                "levels": check_levels(levels),
                "exclude": tuple(_checked_ids("exclude", exclude)),
                "where": _filter(where),
            }
            for each in asked:
                each.how = how
            for start in range(0, len(asked), BATCH):
                with _forks.no_fork():
                    answers += self._answer(asked[start : start + BATCH], where)
        return answers

    def _answer(self, asked: Sequence["_Asked"], where: Where | None) -> Iterator[Results]:
        """Return the results of at most BATCH queries."""
        began = time.perf_counter()
        layout, how = self.manifest.layout, asked[0].how
        weights = part_weights(layout, how["beta"], how["gamma"], how["levels"])
        share = part_weights(layout, 1.0, 0.0, how["levels"])[:3]  # of each level
        agreement = part_weights(layout, how["beta"], 1.0)[6:]  # of each trait
        for each in asked:
            each.weights, each.text = weights, check_text(each.words, self.manifest.text)
        timings: dict[str, float] = {}
        self._describe(asked, timings)
        timings["total"] = (time.perf_counter() - began) * 1e3
        searching = time.perf_counter()
        found = self._archive.search(
            np.stack([each.descriptor for each in asked]), weights, how["k"], where, how["exclude"]
        )
        timings["search"] = (time.perf_counter() - searching) * 1e3
        timings["total"] += timings["search"]
        spent = {name: round(ms / len(asked), 3) for name, ms in timings.items()}
        for each, matches in zip(asked, found.matches, strict=True):
            yield Results(
                hits=tuple(
                    _hit(rank, match, self.manifest.traits, agreement, share, each)
                    for rank, match in enumerate(matches, 1)
                ),
                text=each.text,
                searched=found.searched,
                runtime=self.runtime,
                precision=self.precision,
                model=self._model,
                request_id=each.request_id,
                time=each.time,
                hashes=each.hashes() | {"bundle": self._bundle.sha256, "archive": found.state},
                warnings=tuple(each.warnings),
                timings_ms=spent,
                _asked=each,
                **how,
            )

    @contextlib.contextmanager
    def _recorded(self, asked: Sequence["_Asked"], context: Context | None) -> Iterator[list[Results]]:
        """Record queries in the audit log, if there is one, whether they are answered or fail."""
        answers: list[Results] = []
        if self._audit is None:
            yield answers
            return
        said: dict[str, Any] = {}
        try:
            said = _checked_context(context)
            yield answers
        except BaseException as error:
            code = error.code if isinstance(error, SkinretError) else type(error).__name__
            self._audit.append([self._record(each, said, None, code) for each in asked])
            raise
        self._audit.append([self._record(a, said, answer) for a, answer in zip(asked, answers, strict=True)])

    def _record(
        self, asked: "_Asked", context: dict[str, Any], answer: Results | None, error: str | None = None
    ) -> dict[str, Any]:
        """Return what the audit log keeps of a query: hashes of what was asked, never the words."""
        hashes = {"image": None, "words": None, **asked.hashes(), "bundle": self._bundle.sha256}
        return {
            "time": asked.time,
            "request_id": asked.request_id,
            "context": context,
            "package": f"skinret-infer {__version__}",
            "model": self._model,
            "runtime": self.runtime,
            "precision": self.precision,
            "hashes": {**hashes, "archive": answer.hashes["archive"] if answer else None},
            **{name: asked.how.get(name) for name in ("k", "where", "exclude", "beta", "gamma", "levels")},
            "searched": answer.searched if answer else None,
            "hits": [[hit.case_id, hit.score] for hit in answer or ()],
            "timings_ms": answer.timings_ms if answer else {},
            "warnings": [getattr(warning, "code", warning) for warning in asked.warnings],
            "error": error,
        }

    def _stored(self, hit: Hit) -> tuple[Record, Vector]:
        try:
            return self._archive.stored([hit.case_id])[hit.case_id]
        except KeyError:
            raise _changed(hit.case_id, "no such case") from None

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
        asked = _Asked(self, image, text)
        asked.text = check_text(text, self.manifest.text)
        with _forks.no_fork():
            self._describe([asked], {})
        return asked.descriptor

    def _reading(
        self, cases: Sequence[Case], on_duplicate: str, readers: ThreadPoolExecutor
    ) -> Iterator[list[Future["_Read"]]]:
        """Give batches whose pictures are being read, those of the next one too."""
        begun: list[Future[_Read]] = []
        for start in range(0, len(cases), BATCH):
            batch = cases[start : start + BATCH]
            there = self._archive.find([case.case_id for case in batch])
            ahead = [
                readers.submit(self._read, case, there.get(case.case_id), on_duplicate) for case in batch
            ]
            if begun:
                yield begun
            begun = ahead
        if begun:
            yield begun

    def _read(self, case: Case, old: Record | None, on_duplicate: str) -> "_Read":
        """Read the picture of a case; its pixels are not needed where the case is there and stays."""
        warnings: list[str] = []
        ours = isinstance(case.image, str | Path | bytes | np.ndarray)
        with contextlib.nullcontext() if ours else self._theirs:
            try:
                picture = decode(case.image, warnings=warnings)
            except InputError as error:
                error.add_note(f"This is the image of case {case.case_id!r}.")
                raise
        record = Record.of(case, digest(picture))
        differs = old.differs(record) if old else []
        if old and differs and on_duplicate == "error":
            raise duplicate(case.case_id, differs)
        stays = old is not None and (not differs or on_duplicate == "skip")
        pixels = None if stays else prepare(picture, self.manifest.image)
        return _Read(record, pixels, old is not None, warnings)

    def _add_batch(self, batch: Iterable[Future["_Read"]], report: Indexed) -> None:
        new: list[_Read] = []
        pixels: list[Pixels] = []
        for read in [each.result() for each in batch]:
            if read.warnings:
                report.warnings[read.record.case_id] = read.warnings
            if read.pixels is None:
                report.unchanged.append(read.record.case_id)
            else:
                new.append(read)
                pixels.append(read.pixels)
        if new:
            with _forks.no_fork():
                descriptors = self._writer().describe(np.stack(pixels), None)
                self._archive.write([read.record for read in new], descriptors)
            for read in new:
                (report.replaced if read.there else report.added).append(read.record.case_id)

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

    def _describe(self, asked: Sequence["_Asked"], timings: dict[str, float]) -> None:
        """Give each query its pixels and descriptor; what has no words is described by its image alone.

        The words are encoded in a thread of their own while the images are decoded and encoded. `timings`
        gets milliseconds, which overlap: image, text, describe.
        """
        self._archive.check_open()  # the runtime is closed with it
        worded, alone = [a for a in asked if a.text], [a for a in asked if not a.text]
        said: Future[tuple[Array, Array, list[list[str]]]] | None = None
        if worded:
            said = self._pool.submit(self._words, [each.text for each in worded], timings)
        began = time.perf_counter()
        for each in asked:
            each.read()
        decoded = time.perf_counter()
        if said:
            words = said.result
            self._run(worded, lambda: words()[:2])
            for each, warned in zip(worded, words()[2], strict=True):
                each.warnings += warned
        if alone:
            self._run(alone, None)
        timings["image"] = (decoded - began) * 1e3
        timings["describe"] = (time.perf_counter() - decoded) * 1e3

    def _run(self, asked: Sequence["_Asked"], words: Words | None) -> None:
        found = self._engine.describe(np.stack([each.pixels for each in asked]), words)
        for each, descriptor in zip(asked, found, strict=True):
            each.descriptor = descriptor

    def _maps(self, engine: Engine, pixels: Pixels, text: str) -> Maps:
        """Return what the descriptor of a query or, without text, of a case is pooled from."""
        with _forks.no_fork():
            maps = engine.run("visual_encoder", {"pixels": pixels[None]}, LEVELS)
            if text:
                tokens, mask, _ = self._words([text], {})
                feeds = dict(zip(LEVELS, maps, strict=True)) | {"tokens": tokens, "attention_mask": mask}
                maps = engine.run("composer", feeds, COMPOSED)
            masks = engine.run("similarity_head", dict(zip(LEVELS, maps, strict=True)), MASKS)
        return Maps([m[0].astype(np.float64) for m in maps], [m[0].astype(np.float64) for m in masks])

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


@dataclass(frozen=True, slots=True)
class _Read:
    """A case whose picture was read; `there` says that the archive has one by its id."""

    record: Record
    pixels: Pixels | None  # [S, S, 3], or None where the case is there and stays
    there: bool
    warnings: list[str]


@dataclass(eq=False)
class _Asked:
    """A query on its way to its results, which keep it for the evidence."""

    searcher: Searcher = field(repr=False)
    image: ImageSource
    words: object
    text: str = ""
    how: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    sha256: str = ""  # of the decoded picture
    pixels: Pixels = field(init=False)  # [S, S, 3], what the encoder sees
    box: tuple[float, float, float, float] = field(init=False)
    weights: npt.NDArray[np.float64] = field(init=False)  # of the parts, [6 + C]
    descriptor: Vector = field(init=False)  # [D]

    def __post_init__(self) -> None:
        self.request_id = str(uuid.uuid4())
        self.time = datetime.now(UTC).isoformat(timespec="milliseconds")

    def read(self) -> None:
        """Decode the picture."""
        picture, recipe = decode(self.image, warnings=self.warnings), self.searcher.manifest.image
        self.sha256, self.pixels, self.box = (
            digest(picture),
            prepare(picture, recipe),
            seen_box(picture, recipe),
        )
        if not isinstance(self.image, str | Path):  # what the caller holds is not held here too
            self.image = b""

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of the picture and of the words, of what is known of them."""
        words = hashlib.sha256(self.text.encode()).hexdigest() if self.text else None
        return {name: sha for name, sha in (("image", self.sha256), ("words", words)) if sha}

    def picture(self, image: ImageSource | None) -> Pixels | None:
        """Return the picture of the query, or None if it cannot be had any more."""
        try:
            picture = decode(self.image if image is None else image)
        except InputError:
            if image is not None:
                raise
            return None
        if digest(picture) == self.sha256:
            return picture
        if image is not None:
            raise _another("the query", self.sha256, digest(picture))
        return None

    def square(self) -> Pixels:
        """Return the part of the picture that the model saw, as it saw it, [S, S, 3]."""
        return self.pixels

    @cached_property
    def maps(self) -> Maps:
        return self.searcher._maps(self.searcher._engine, self.pixels, self.text)

    def evidence(
        self, hit: Hit, image: ImageSource | None, images: str | Path | None, case: bool
    ) -> tuple[Evidence, Pixels | None]:
        """Return what a hit's score is made of, and the picture of the case if that is wanted."""
        searcher = self.searcher
        record, descriptor = searcher._stored(hit)
        found = products(self.descriptor, descriptor[None], searcher.manifest.layout)[0]
        if np.abs(found[:6] - list(hit.cosines.values())).max() > 1e-6:
            raise _changed(hit.case_id, "another descriptor")
        split = partial(
            split_score, manifest=searcher.manifest, reading=searcher._traits, weights=self.weights
        )
        with _forks.no_fork():  # a child would wait for the lock of the property, had another thread held it
            own = self.maps
        query, missed = split(own, self.descriptor, descriptor, box=self.box)
        side, picture = None, None
        if case:
            picture = _case_picture(hit, record, image, images)
            recipe = searcher.manifest.image
            maps = searcher._maps(searcher._writer(), prepare(picture, recipe), "")
            side, more = split(maps, descriptor, self.descriptor, box=seen_box(picture, recipe))
            missed = max(missed, more)
        if missed > _ROUNDING:
            raise ArchiveError(
                f"the maps of case {hit.case_id!r} do not add up to its score",
                code="evidence-sum",
                expected=f"each product to within {_ROUNDING}",
                found=f"one that is {missed:.3f} off",
                cure="index the case again with this bundle",
            )
        shared, differing = compare(self.text, record.attributes, searcher.manifest.text.phrases)
        parts = zip((*COSINES, *searcher.manifest.traits), self.weights * found, strict=True)
        evidence = Evidence(
            case_id=hit.case_id,
            score=hit.score,
            parts={name: float(part) for name, part in parts},
            query=query,
            case=side,
            rounding=missed,
            shared=shared,
            differing=differing,
        )
        return evidence, picture


def _case_picture(hit: Hit, record: Record, image: ImageSource | None, images: str | Path | None) -> Pixels:
    """Return the picture of a case, having proven that it is the one that was indexed."""
    if image is None:
        image = find_file(images, hit.image_ref) if images is not None else Path(hit.image_ref)
    try:
        picture = decode(image)
    except InputError as error:
        error.add_note(
            f"This is the image of case {hit.case_id!r}: name its folder with images=, or leave its maps out "
            "with case=False."
        )
        raise
    if (sha256 := digest(picture)) != record.image_sha256:
        raise _another(f"case {hit.case_id!r}", record.image_sha256, sha256)
    return picture


def _another(whose: str, expected: str, found: str) -> InputError:
    return InputError(
        f"the picture is not that of {whose}",
        code="evidence-image",
        expected=f"pixels with the SHA-256 {expected}",
        found=found,
        cure="give the very image that was asked with, or indexed",
    )


def _changed(case_id: str, found: str) -> ArchiveError:
    return ArchiveError(
        f"case {case_id!r} was removed or replaced since the query",
        code="evidence-changed",
        expected="the case as the query found it",
        found=found,
        cure="ask again",
    )


def _hit(
    rank: int,
    match: Match,
    traits: Iterable[str],
    weights: npt.NDArray[np.float64],
    share: npt.NDArray[np.float64],
    asked: _Asked,
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
        _asked=asked,
    )


def _filter(where: Where | None) -> dict[str, Any]:
    """Return a filter as plain values, a range as such."""
    if not isinstance(where, Mapping):
        return {}  # or nothing that can be used, which the search refuses

    def plain(value: Any) -> Any:
        if isinstance(value, tuple) and len(value) == 2:
            return {"from": plain(value[0]), "to": plain(value[1])}
        if isinstance(value, Collection) and not isinstance(value, str | bytes):
            return [plain(item) for item in value]
        value = value.item() if isinstance(value, np.generic) else value
        return value if value is None or isinstance(value, str | int | float) else f"{value!r:.80}"

    return {str(name): plain(value) for name, value in where.items()}


def _checked_context(context: Context | None) -> dict[str, Any]:
    given = dict(context) if isinstance(context, Mapping) else {}
    plain = all(
        isinstance(name, str)
        and (value is None or (isinstance(value, str | int | float) and can_be_stored(value)))
        for name, value in given.items()
    )
    if not plain or not (context is None or isinstance(context, Mapping)):
        raise InputError(
            "the context cannot be kept",
            code="context",
            expected='a mapping of text to text or numbers, such as {"user": "4711"}',
            found=f"{context!r:.80}",
        )
    return given


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
    return [nfc(str(i)) for i in ids]
