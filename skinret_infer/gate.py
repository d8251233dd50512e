"""The gate on ranks: lower precision may run only where it finds what fp32 finds.

The reference is fp32 on ONNX Runtime's CPU; S is its true score. A precision is judged by what its top-10
lists lose of S, not by how far its numbers are off: bf16 moves scores by a hundredth and loses a
hundred-thousandth.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .bundle import Bundle
from .descriptor import Layout, Vector, weigh
from .engines.base import Array, Engine
from .errors import RuntimeUnavailable
from .files import whole_file
from .image import Pixels
from .metrics import average_precision
from .text import Tokens

BATCH = 8
TOP = 10
MIN_QUERIES = 200
MAX_LOSS = 1e-4  # of S/3, a hit of the list, on average
MIN_OVERLAP = 0.97
MAX_MOVE = 0.2  # percentage points of mAP and Acc@1
KINDS = ("image_words", "image_alone")


@dataclass(frozen=True, slots=True)
class Questions:
    """What both sides are asked: N prepared images, each with words, and the groups where they are known."""

    pixels: Pixels  # [N, S, S, 3]
    ids: Tokens  # [N, n]
    mask: Tokens  # [N, n]
    source: str  # where they came from, in words
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


def measure(
    bundle: Bundle,
    reference: Engine,
    candidate: Engine,
    questions: Questions,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Ask both engines with every image, by itself and with its words, among all the others; judge.

    Each kind of query is judged twice: in an archive that the candidate wrote, and in one of fp32, because
    an archive outlives the machine that wrote it. The worse figure counts.
    """
    total = 2 * len(questions)
    true = _describe(reference, questions, lambda done: progress and progress(done, total))
    found = _describe(candidate, questions, lambda done: progress and progress(len(questions) + done, total))
    rows = {
        f"{kind}, archive in {archive}": _compare(
            true[kind], true["image_alone"], found[kind], cases, questions.groups, bundle
        )
        for kind in KINDS
        for archive, cases in (
            (candidate.precision, found["image_alone"]),
            ("fp32", true["image_alone"]),
        )
    }
    record: dict[str, Any] = {
        "runtime": candidate.name,
        "precision": candidate.precision,
        "on": dict(candidate.facts),
        "against": f"{reference.name} {reference.precision}",
        "queries": len(questions),
        "labelled": bool(questions.groups),
        "source": questions.source,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "limits": {"score_lost": MAX_LOSS, "overlap": MIN_OVERLAP, "moved": MAX_MOVE, "queries": MIN_QUERIES},
        "rows": rows,
    }
    record["faults"] = faults(record)
    return record | {"passed": not record["faults"]}


def faults(record: Mapping[str, Any]) -> list[str]:
    """Return, in words, what keeps a precision from being allowed; empty if nothing does."""
    found = []
    if record["queries"] < MIN_QUERIES:
        found.append(f"only {record['queries']} queries; at least {MIN_QUERIES} are needed")
    for name, row in record["rows"].items():
        if not row["score_lost"] <= MAX_LOSS:
            found.append(
                f"{name}: the lists lose {row['score_lost']:.1e} of the score; {MAX_LOSS:.0e} is allowed"
            )
        if not row["overlap"] >= MIN_OVERLAP:
            found.append(f"{name}: {row['overlap']:.3f} of the hits are the same; {MIN_OVERLAP} is asked")
        for figure in ("mAP", "Acc@1"):
            if figure in row and not abs(row[f"{figure}_moved"]) <= MAX_MOVE:
                found.append(
                    f"{name}: {figure} moves by {row[f'{figure}_moved']:+.2f}; {MAX_MOVE} is allowed"
                )
    return found


def describe(record: Mapping[str, Any]) -> str:
    """Return a record as lines for a person."""
    lines = [
        f"{record['runtime']} {record['precision']} against {record['against']}, {record['queries']} queries "
        f"({record['source']}):",
        f"{'':<34}{'score lost':>11}{'same top 10':>13}{'same first':>12}{'mAP moved':>11}{'Acc@1':>8}",
    ]
    for name, row in record["rows"].items():
        moved = [f"{row[f'{m}_moved']:+.2f}" if m in row else "-" for m in ("mAP", "Acc@1")]
        lines.append(
            f"{name:<34}{row['score_lost']:>11.1e}{row['overlap']:>13.4f}{row['same_first']:>12.4f}"
            f"{moved[0]:>11}{moved[1]:>8}"
        )
    verdict = "passed: it may run" if record["passed"] else "refused: " + "; ".join(record["faults"])
    return "\n".join([*lines, verdict])


def allowed(bundle: Bundle, runtime: str, precision: str, cache: Path) -> str:
    """Return "" if a precision may run, or the reason why not. fp32 always may.

    A record made on site goes before the bundle's own.
    """
    if precision == "fp32":
        return ""
    record = read_record(bundle, runtime, precision, cache)
    if record is None:
        return "its ranks were not measured with this bundle; `skinret gate` does that"
    return (
        "" if record.get("passed") is True else "refused by the gate: " + "; ".join(record.get("faults", []))
    )


def read_record(bundle: Bundle, runtime: str, precision: str, cache: Path) -> dict[str, Any] | None:
    """Return what was measured of a runtime and a precision, on site or where the bundle was made."""
    try:
        record = json.loads(_path(bundle, runtime, precision, cache).read_text("utf-8"))
        if isinstance(record, dict) and record.get("bundle") == _identity(bundle):
            return record
    except (OSError, ValueError):
        pass
    said = bundle.manifest.gates.get(f"{runtime}/{precision}")
    return said if isinstance(said, dict) else None


def keep_record(bundle: Bundle, record: Mapping[str, Any], cache: Path) -> Path:
    """Keep a record made on site, for this bundle alone. Raises RuntimeUnavailable."""
    path = _path(bundle, record["runtime"], record["precision"], cache)
    try:
        with whole_file(path) as temporary:
            text = json.dumps({**record, "bundle": _identity(bundle)}, indent=2)
            temporary.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise RuntimeUnavailable(
            f"{path} cannot be written",
            code="engine-cache",
            expected="a folder that can be written",
            found=str(error),
            cure="set SKINRET_CACHE to one",
        ) from None
    return path


def _path(bundle: Bundle, runtime: str, precision: str, cache: Path) -> Path:
    return cache / "gates" / f"{runtime}-{precision}-{bundle.manifest.fingerprint[:16]}.json"


def _identity(bundle: Bundle) -> dict[str, str]:
    return dict(bundle.manifest.files)


def _describe(engine: Engine, questions: Questions, done: Callable[[int], object]) -> dict[str, Vector]:
    parts: dict[str, list[Array]] = {kind: [] for kind in KINDS}
    for start in range(0, len(questions), BATCH):
        part = slice(start, start + BATCH)
        ids, mask = questions.ids[part], questions.mask[part]
        tokens = engine.encode_text(ids, mask)
        parts["image_words"].append(engine.describe(questions.pixels[part], lambda t=tokens, m=mask: (t, m)))  # type: ignore[misc]
        parts["image_alone"].append(engine.describe(questions.pixels[part], None))
        done(min(start + BATCH, len(questions)))
    return {kind: np.concatenate(rows) for kind, rows in parts.items()}


def _compare(
    true_queries: Vector,
    true_cases: Vector,
    queries: Vector,
    cases: Vector,
    groups: Sequence[str],
    bundle: Bundle,
) -> dict[str, float]:
    layout, beta = bundle.manifest.layout, bundle.manifest.beta
    true, found = _scores(true_queries, true_cases, layout, beta), _scores(queries, cases, layout, beta)
    lost, same, first = [], [], []
    for s, best, given in zip(true, _ranked(true), _ranked(found), strict=True):
        best, given = best[:TOP], given[:TOP]
        lost.append(float((s[best] - s[given]).mean()))
        same.append(len(set(best) & set(given)) / len(best))
        first.append(best[0] == given[0])
    row = {
        "score_lost": float(np.mean(lost)),
        "overlap": float(np.mean(same)),
        "same_first": float(np.mean(first)),
        "largest_change": float(np.abs(np.where(np.isfinite(true), true - found, 0)).max()),
    }
    if groups:
        figures = [_quality(_ranked(scores), groups) for scores in (true, found)]
        for name, before, after in zip(("mAP", "Acc@1"), *figures, strict=True):
            row |= {name: after, f"{name}_moved": after - before}
    return row


def _scores(queries: Vector, cases: Vector, layout: Layout, beta: float) -> npt.NDArray[np.float64]:
    """Return S/3 of each query with each case, float64 [N, N]; of an image with itself, minus infinity."""
    weighed = np.stack([weigh(q, layout, beta) for q in queries]).astype(np.float64)
    scores: npt.NDArray[np.float64] = weighed @ cases.astype(np.float64).T / 3
    np.fill_diagonal(scores, -np.inf)
    return scores


def _ranked(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return for each query all cases but its own, best first; int64 [N, N - 1]."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :-1]


def _quality(ranked: npt.NDArray[np.int64], groups: Sequence[str]) -> tuple[float, float]:
    label = np.array(groups)
    relevant = label[ranked] == label[:, None]
    return 100 * float(np.mean([average_precision(r) for r in relevant])), 100 * float(relevant[:, 0].mean())
