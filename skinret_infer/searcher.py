"""The facade of the package: open a bundle and an archive, add cases, query for the most similar ones."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
import numpy.typing as npt

from . import _forks
from ._values import AttributeValue, nfc
from .archive.archive import Archive
from .archive.store import AddReport, Match, Record, SearchResult, Store
from .bundle import QUERY_KINDS, Bundle
from .cases import Case
from .descriptor import COSINES, Vector, check_levels, part_weights
from .encoder import BATCH, Encoded, Encoder, Picture
from .errors import InputError, SkinretError, SkinretWarning
from .explain import Explainer, QueryExplainer
from .imaging.decode import ImageSource
from .indexing import RECORDED, Indexer, Progress, RecordedFindings
from .query import DEFAULT_K, Context, Query, QueryOptions, Where, check_ids
from .query_log import Batch, query_hashes, record_queries
from .results import Hit, Results
from .text import check_text
from .trust.audit import AuditLog
from .words.reading import Reading, reader_of

_NOTHING_ALIKE = SkinretWarning(
    "the archive has nothing alike: the first hit is less similar than 99 % of the first hits of cases that "
    "the model had not seen",
    "archive-unlike",
)


class Searcher:
    """Find the most similar confirmed cases of an archive for an image and a few words.

    Parameters
    ----------
    bundle :
        the folder that skinret-export made; every file is checked against its hash.
    archive :
        the path of the archive; the first `add` makes it. Or another Store of this model's cases.
    runtime :
        "auto", or a name; a runtime that is named is used or refused, never replaced by another.
    precision :
        "auto" takes the fastest that has passed the precision check for this bundle; or a name.
        Cases are added in fp32 unless the precision has passed the check for archives too.
    threads :
        for the runtime; None takes as many as the process may use.
    cache :
        a folder for what a runtime builds; None takes SKINRET_CACHE or the user's cache folder.
    trusted_keys :
        a PEM file of Ed25519 public keys, of which one must have signed the bundle; None takes the
        file that SKINRET_BUNDLE_KEY names, and requires no signature if that is not set either.
    audit :
        a file in which every query is recorded before its answer is returned, also if it fails. It has
        hashes of picture and text, never the picture or the text; `context` says who queried.
    recorded_findings :
        True lets the recorded criteria of a case replace what the model reads off its picture, as far as the
        checklist has them; never its diagnosis. An archive is made with it or without it.

    Notes
    -----
    `manifest` describes the bundle: the model, its metrics, its intended use.

    Safe to call from several threads. A forked process may use it too: it opens its own runtime and
    connections at the first use. A pickled Searcher, for a process that is spawned, is opened there from the
    same files. Raises BundleError, ArchiveError, AuditError, RuntimeUnavailable, and InputError for keys that
    cannot be read.
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
        trusted_keys: str | Path | None = None,
        audit: str | Path | AuditLog | None = None,
        recorded_findings: bool = False,
    ) -> None:
        self._arguments = partial(
            Searcher, bundle, archive, runtime=runtime, precision=precision, threads=threads, cache=cache,
            trusted_keys=trusted_keys, audit=audit, recorded_findings=recorded_findings,
        )  # fmt: skip
        opened = Bundle.load(bundle, trusted_keys)
        self.manifest = manifest = opened.manifest
        self._bundle_sha256 = opened.sha256
        self._model = f"{manifest.model} {manifest.version}"
        self._store: Store = (
            Archive(
                archive,
                manifest.fingerprint + (RECORDED if recorded_findings else ""),
                manifest.layout,
                self._model + (" with recorded findings" if recorded_findings else ""),
            )
            if isinstance(archive, str | Path)
            else archive
        )
        self._encoder = Encoder(opened, runtime, precision, threads, cache)
        self._reader = reader_of(manifest.checklist)
        concept_head = opened.concept_head()
        self._recorded = RecordedFindings(manifest) if recorded_findings else None
        self._indexer = Indexer(self._encoder, self._store, manifest.image, self._recorded)
        self._explainer = Explainer(
            encoder=self._encoder,
            store=self._store,
            manifest=manifest,
            concept_head=concept_head,
        )
        self._audit = AuditLog(audit) if isinstance(audit, str | Path) else audit

    def __reduce__(self) -> tuple[Any, ...]:
        self._store.check_open()
        return self._arguments, ()

    @property
    def runtime(self) -> str:
        """The runtime in use, such as "onnxruntime-cpu"."""
        return self._encoder.engine.name

    @property
    def precision(self) -> str:
        """The precision of queries, such as "bf16"."""
        return self._encoder.engine.precision

    def __len__(self) -> int:
        return len(self._store)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, case_id: object) -> bool:
        return isinstance(case_id, str) and self.get(case_id) is not None

    def __repr__(self) -> str:
        return f"Searcher({self._model}, {self._store}, {self.runtime} {self.precision})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive and release what the runtime holds."""
        self._store.close()
        self._encoder.close()

    def warmup(self) -> None:
        """Run every graph once, so that the first query is as fast as later ones."""
        size = self.manifest.image.size
        self.embed(np.zeros((max(size, 32), max(size, 32), 3), np.uint8), "lesion")

    def add(
        self,
        cases: Iterable[Case],
        *,
        on_duplicate: str = "error",
        on_error: str = "raise",
        progress: Progress | None = None,
    ) -> AddReport:
        """Encode cases and write them to the archive, eight in one transaction.

        A case that the archive has with the same picture and facts stays as it is, so an interrupted call can
        simply be made again. `on_duplicate` decides about a case that the archive has with another picture or
        other facts: "error", "skip" or "replace". With on_error="skip" a case whose image cannot be used is
        left out, and is in the report's `failed`.

        Parameters
        ----------
        cases :
            read lazily, a batch ahead; all cases of a list are checked before the first is added.
        progress :
            called with (done, total) after each batch; total is None for an iterable without a length.

        Notes
        -----
        Raises InputError for an unusable image, ArchiveError for a case that the archive has with another
        picture or other facts. Both have the `case_id`; the batches before it stay added.
        """
        return self._indexer.add(cases, on_duplicate, on_error, progress)

    def get(self, case_id: str) -> Record | None:
        """Return the record of a case in the archive, or None if there is no such case."""
        [checked] = check_ids("case_id", [case_id])
        return self._store.get([checked]).get(checked)

    def case_ids(self) -> list[str]:
        """Return the ids of all cases, sorted."""
        return self._store.case_ids()

    def update(
        self,
        case_id: str,
        *,
        diagnosis: str | None = None,
        group: str | None = None,
        confirmed_by: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> Record:
        """Change facts of a case without its picture, as when pathology arrives; return the new record.

        A fact that is None stays as it is; `attributes` replaces all attributes. Raises InputError for values
        that cannot be stored, and with the code case-unknown if the archive has no such case.
        """
        old = self.get(case_id)
        new = {
            "diagnosis": diagnosis, "group": group, "confirmed_by": confirmed_by, "attributes": attributes,
        }  # fmt: skip
        if old is not None:
            changes = {name: value for name, value in new.items() if value is not None}
            facts = {name: value for name, value in asdict(old).items() if name != "image_sha256"}
            if old.group == old.diagnosis:  # the group was the diagnosis, and becomes the new one
                facts["group"] = ""
            case = Case(image=b"", **facts | changes)  # checks and normalises the values
            record = Record.of(case, old.image_sha256)
            if self._recorded:
                stored = self._store.get_with_descriptors([record.case_id]).get(record.case_id)
                if stored is not None:
                    self._store.write([record], self._recorded.restate(stored[1], record, old)[None])
                    return record
            elif self._store.update(record):
                return record
        raise InputError(
            f"there is no case {case_id!r:.80} to update",
            code="case-unknown",
            expected="the id of a case in the archive",
            cure="see Searcher.case_ids(), or add the case",
            case_id=nfc(case_id),
        )

    def remove(self, case_ids: Collection[str]) -> int:
        """Remove cases from the archive and overwrite their bytes; return how many it had."""
        return self._store.remove(check_ids("case_ids", case_ids))

    def query(
        self,
        image: ImageSource | None,
        text: str | None = None,
        *,
        k: int = DEFAULT_K,
        where: Where | None = None,
        exclude: Collection[str] = (),
        beta: float | None = None,
        gamma: float | None = None,
        levels: Mapping[str, float] | None = None,
        context: Context | None = None,
    ) -> Results:
        """Return the k most similar cases for a dermoscopy image, for words, or for both.

        Parameters
        ----------
        image :
            a path, bytes, a binary file object, a PIL image or an H x W x 3 uint8 array; None searches by
            words alone.
        text :
            findings in the clinician's own words, such as "atypical network, no streaks", in a language of
            the checklist; None or "" searches by image alone. `Results.findings` has what was understood.
        k :
            how many hits; fewer if the archive has fewer cases, or fewer pass the filter.
        where :
            only cases whose field or attribute has this value, one of these, or a number in a range, such
            as {"sex": "female", "diagnosis": ["melanoma", "nevus"], "age": Range(40, 60)}.
        exclude :
            ids of cases to leave out, such as the patient's own.
        beta :
            the weight of local against global similarity (Eq. 9), 0 to 1; None takes the model's.
        gamma :
            the weight of concept against visual similarity, 0 to 1; None takes the model's.
        levels :
            the weights of the levels in the visual similarity, such as {"low": 2, "high": 0.5}; a level
            that is left out has the weight 1.
        context :
            facts about the caller for the audit log, such as {"user": "4711", "study": "..."}.

        Notes
        -----
        If no case passes `where` and `exclude`, there are no hits, and a warning has the code filter-empty.
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

    @overload
    def query_batch(
        self,
        queries: Sequence[tuple[ImageSource | None, str | None]],
        *,
        on_error: Literal["raise"] = "raise",
        k: int = DEFAULT_K,
        where: Where | None = None,
        exclude: Collection[str] = (),
        beta: float | None = None,
        gamma: float | None = None,
        levels: Mapping[str, float] | None = None,
        context: Context | None = None,
    ) -> list[Results]: ...
    @overload
    def query_batch(
        self,
        queries: Sequence[tuple[ImageSource | None, str | None]],
        *,
        on_error: Literal["return"],
        k: int = DEFAULT_K,
        where: Where | None = None,
        exclude: Collection[str] = (),
        beta: float | None = None,
        gamma: float | None = None,
        levels: Mapping[str, float] | None = None,
        context: Context | None = None,
    ) -> list[Results | SkinretError]: ...
    def query_batch(
        self,
        queries: Sequence[tuple[ImageSource | None, str | None]],
        *,
        on_error: str = "raise",
        k: int = DEFAULT_K,
        where: Where | None = None,
        exclude: Collection[str] = (),
        beta: float | None = None,
        gamma: float | None = None,
        levels: Mapping[str, float] | None = None,
        context: Context | None = None,
    ) -> Any:
        """Answer many queries, eight at a time. The scores are those of `query`, up to rounding.

        Parameters
        ----------
        on_error :
            "raise" fails all queries if one has an unusable image or text; "return" returns its
            SkinretError in its place.

        Notes
        -----
        The other arguments are those of `query`.
        """
        if on_error not in ("raise", "return"):
            raise InputError(
                "on_error cannot be used", code="option", expected="raise or return", found=repr(on_error)
            )
        batch = Batch([Query(image=image, raw_text=text) for image, text in queries])
        facts = {
            "model": self._model,
            "runtime": self.runtime,
            "precision": self.precision,
            "bundle": self._bundle_sha256,
        }
        with record_queries(batch, self._audit, context, facts):
            batch.options = QueryOptions.checked(
                self.manifest, k=k, where=where, exclude=exclude, beta=beta, gamma=gamma, levels=levels
            )
            for start in range(0, len(batch.queries), BATCH):
                with _forks.no_fork():
                    chunk = batch.queries[start : start + BATCH]
                    batch.answers += self._answer(chunk, batch.options, on_error == "return")
        return batch.answers

    def read(self, text: str) -> Reading:
        """Return what would be understood of a text, without a search. Raises InputError."""
        return self._reader.read(check_text(text, self.manifest.text))

    def embed(self, image: ImageSource | None, text: str | None = None) -> Vector:
        """Return a descriptor, float32 [D] (see Layout): of a query, or without text also of a case."""
        query = Query(image=image, raw_text=text)
        with _forks.no_fork():
            encoded, _, _ = self._encode([query], skip_failed=False)
        return encoded[0].descriptor

    def _answer(
        self, queries: Sequence[Query], options: QueryOptions, skip_failed: bool
    ) -> list[Results | SkinretError]:
        """Return the results of at most BATCH queries, or the error of a query that failed alone."""
        began = time.perf_counter()
        encoded, failed, timings = self._encode(queries, skip_failed)
        usable = [query for n, query in enumerate(queries) if n not in failed]
        answers: list[Results] = []
        if usable:
            weights = part_weights(
                self.manifest.layout, options.beta, options.gamma, options.levels, self.manifest.group_weight
            )
            search_began = time.perf_counter()
            result = self._store.search(
                np.stack([query.descriptor for query in encoded]),
                weights,
                options.k,
                options.where,
                options.exclude,
            )
            timings["search"] = (time.perf_counter() - search_began) * 1e3
            timings["total"] = (time.perf_counter() - began) * 1e3
            timings_ms = {name: round(ms / len(usable), 3) for name, ms in timings.items()}
            answers = [
                self._results(query, query_encoded, options, matches, result, weights, timings_ms)
                for query, query_encoded, matches in zip(usable, encoded, result.matches, strict=True)
            ]
        remaining = iter(answers)
        return [failed[n] if n in failed else next(remaining) for n in range(len(queries))]

    def _encode(
        self, queries: Sequence[Query], skip_failed: bool
    ) -> tuple[list[Encoded], dict[int, SkinretError], dict[str, float]]:
        """Encode queries; return the usable ones, the errors of the others by number, and milliseconds.

        The texts are encoded in another thread while the images are decoded.
        """
        self._store.check_open()  # the runtime is closed with the store
        failed: dict[int, SkinretError] = {}

        def note_failure(n: int, error: InputError) -> None:
            if not skip_failed:
                raise error
            failed[n] = error

        for n, query in enumerate(queries):
            try:
                query.text = check_text(query.raw_text, self.manifest.text)
                query.reading = self._reader.read(query.text)
                if query.image is None and not query.reading.canonical:
                    raise _no_query(query)
            except InputError as error:
                note_failure(n, error)
        pending_texts = None
        if not skip_failed:
            pending_texts = self._encoder.start_texts([query.reading for query in queries if query.reading])
        began = time.perf_counter()
        for n, query in enumerate(queries):
            if n not in failed and query.image is not None:
                try:
                    query.picture = Picture.read(query.image, self.manifest.image)
                except InputError as error:
                    note_failure(n, error)
        decode_ms = (time.perf_counter() - began) * 1e3
        usable = [query for n, query in enumerate(queries) if n not in failed]
        if not usable:
            return [], failed, {}
        readings = [query.reading for query in usable if query.reading]
        encoded, timings = self._encoder.encode(
            [query.picture for query in usable],
            readings,
            pending_texts or self._encoder.start_texts(readings),
        )
        return encoded, failed, {"image": decode_ms, **timings}

    def _results(
        self,
        query: Query,
        encoded: Encoded,
        options: QueryOptions,
        matches: Sequence[Match],
        result: SearchResult,
        weights: npt.NDArray[np.float64],
        timings_ms: Mapping[str, float],
    ) -> Results:
        explainer = QueryExplainer(
            explainer=self._explainer,
            encoded=encoded,
            source=query.image if isinstance(query.image, str | Path) else None,
            weights=weights,
        )
        hashes = query_hashes(query) | {"bundle": self._bundle_sha256, "archive": result.state}
        warnings = encoded.warnings
        if query.text and not encoded.reading.findings:
            warnings += (SkinretWarning("no finding was understood: searched by image alone", "words-none"),)
        if self._has_nothing_alike(encoded, options, matches):
            warnings += (_NOTHING_ALIKE,)
        if not result.searched and (options.where or options.exclude):
            warnings += (SkinretWarning("no case passes the filter", "filter-empty"),)
        return Results(
            hits=tuple(self._hits(matches, options, explainer)),
            text=query.text,
            has_image=encoded.picture is not None,
            findings=encoded.reading.findings,
            recorded_findings=self._recorded is not None,
            k=options.k,
            beta=options.beta,
            gamma=options.gamma,
            levels=options.levels,
            where=options.where,
            exclude=options.exclude,
            searched=result.searched,
            runtime=self.runtime,
            precision=self.precision,
            model=self._model,
            timings_ms=timings_ms,
            request_id=query.request_id,
            time=query.time,
            hashes=hashes,
            warnings=warnings,
            explainer=explainer,
        )

    def _has_nothing_alike(self, encoded: Encoded, options: QueryOptions, matches: Sequence[Match]) -> bool:
        """Say whether the first hit is less similar than is usual, if the limit holds for these options."""
        manifest = self.manifest
        model_weights = (manifest.beta, manifest.gamma, check_levels(None))
        if not manifest.calibration or not matches or self._recorded:
            return False
        if (options.beta, options.gamma, options.levels) != model_weights:
            return False
        words, image, alone = QUERY_KINDS
        kind = image if not encoded.reading.canonical else words if encoded.picture else alone
        return matches[0].score < manifest.calibration.first_hits.get(kind, -1.0)

    def _hits(
        self, matches: Sequence[Match], options: QueryOptions, explainer: QueryExplainer
    ) -> Iterator[Hit]:
        layout = self.manifest.layout
        by_level = part_weights(layout, 1.0, 0.0, options.levels)[:3]
        by_concept = part_weights(layout, options.beta, 1.0, group=self.manifest.group_weight)[6:]
        for rank, match in enumerate(matches, 1):
            cosines, concepts = match.products[:6], match.products[6:]
            yield Hit(
                rank=rank,
                score=match.score,
                local_similarity=float(cosines[:3] @ by_level),
                global_similarity=float(cosines[3:] @ by_level),
                cosines=dict(zip(COSINES, map(float, cosines), strict=True)),
                concept_similarity=float(concepts @ by_concept) if len(concepts) else None,
                concepts=dict(zip(self.manifest.concepts, map(float, concepts), strict=True)),
                explainer=explainer,
                **{name: getattr(match.record, name) for name in match.record.__dataclass_fields__},
            )


def _no_query(query: Query) -> InputError:
    return InputError(
        "the query has no image, and no finding",
        code="query-empty",
        expected="an image, or words of which a finding is understood",
        found="words of which none is a finding" if query.text else "neither",
        cure="give an image, or name findings such as: atypical network, blue-white veil",
    )
