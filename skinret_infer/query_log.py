"""The audit record of a query: hashes, options and hits, but never the text, a file name or a picture."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._version import __version__
from .errors import SkinretError
from .query import Context, Query, QueryOptions, check_context
from .results import Results
from .trust.audit import AuditLog


@dataclass(slots=True)
class Batch:
    """Queries that are answered together, and the answers so far.

    answers : in the order of the queries: results, or the error of a query that failed alone.
    """

    queries: Sequence[Query]
    options: QueryOptions | None = None
    answers: list[Results | SkinretError] = field(default_factory=list)


@contextlib.contextmanager
def record_queries(
    batch: Batch, log: AuditLog | None, context: Context | None, facts: Mapping[str, Any]
) -> Iterator[None]:
    """Record queries when the body ends, with its answers or its error.

    facts : the Searcher's model, runtime and precision, and the bundle's hash.
    """
    if log is None:
        yield
        return
    checked: dict[str, Any] = {}
    try:
        checked = check_context(context)
        yield
    except BaseException as error:
        log.append([_record(query, batch.options, error, checked, facts) for query in batch.queries])
        raise
    log.append(
        [
            _record(query, batch.options, answer, checked, facts)
            for query, answer in zip(batch.queries, batch.answers, strict=True)
        ]
    )


def query_hashes(query: Query) -> dict[str, str]:
    """Return the SHA-256 of the picture, the text, and the canonical words of its findings, if any."""
    texts = {"text": query.text, "findings": query.reading.canonical if query.reading else ""}
    hashes = {"image": query.picture.sha256} if query.picture else {}
    return hashes | {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items() if text}


def _record(
    query: Query,
    options: QueryOptions | None,
    outcome: Results | BaseException,
    context: dict[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    answer = outcome if isinstance(outcome, Results) else None
    error = None
    if isinstance(outcome, SkinretError):
        error = outcome.code
    elif isinstance(outcome, BaseException):
        error = type(outcome).__name__
    warnings = query.picture.warnings if query.picture else ()
    if answer:
        warnings = answer.warnings
    return {
        "time": query.time,
        "request_id": query.request_id,
        "context": context,
        "package": f"skinret-infer {__version__}",
        "model": facts["model"],
        "runtime": facts["runtime"],
        "precision": facts["precision"],
        "hashes": {
            "image": None,
            "text": None,
            "findings": None,
            **query_hashes(query),
            "bundle": facts["bundle"],
            "archive": answer.hashes["archive"] if answer else None,
        },
        **(options.to_dict() if options else dict.fromkeys(QueryOptions.__dataclass_fields__)),
        "searched": answer.searched if answer else None,
        "hits": [[hit.case_id, hit.score] for hit in answer or ()],
        "timings_ms": answer.timings_ms if answer else {},
        "warnings": [getattr(warning, "code", warning) for warning in warnings],
        "error": error,
    }
