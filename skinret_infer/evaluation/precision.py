"""The precision check: whether a precision below fp32 finds the hits that fp32 finds.

The reference is fp32 on ONNX Runtime's CPU; its score is the true score. A precision is judged by the true
score that its top-10 lists lose, not by its numerical error: bf16 changes scores by 0.01, but loses 0.00001.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import QUERY_KINDS, Bundle, Manifest
from ..cases import Case
from ..descriptor import COMPOSED, LEVELS, Vector, weigh
from ..engines.base import Array, Engine, as_levels, head_inputs
from ..errors import InputError
from ..imaging.decode import decode
from ..imaging.recipe import Pixels, preprocess
from ..text import TextEncoderInput, Tokens
from .metrics import average_precision, found_by

BATCH = 8
TOP = 10
MIN_QUERIES = 200
MAX_QUERIES = 1000
MAX_REGRET = 1e-4  # true score lost per hit of a list, on average
MIN_OVERLAP = 0.97
MAX_CHANGE = 0.2  # percentage points of mAP and Acc@1
KINDS = QUERY_KINDS[:2]  # those with an image


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """The queries of both engines: N preprocessed images, a text for each, and the groups if known."""

    pixels: Pixels  # [N, S, S, 3]
    ids: Tokens  # [N, n]
    mask: Tokens  # [N, n]
    source: str  # for a person: where the cases came from
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


def make_validation_set(
    manifest: Manifest, tokenizer: str | bytes, cases: Sequence[Case], source: str
) -> ValidationSet:
    """Make a validation set of the cases that have a text: at most 1,000, evenly spaced.

    Raises InputError if there are too few.
    """
    texts = [(case, manifest.checklist.text_of(case.attributes)) for case in cases]
    texts = [(case, text) for case, text in texts if text]
    if len(texts) < MIN_QUERIES:
        raise InputError(
            "there are too few cases to compare ranks",
            code="precision-cases",
            expected=f"at least {MIN_QUERIES} with attributes of which the checklist has the criterion",
            found=str(len(texts)),
        )
    if len(texts) > MAX_QUERIES:
        texts = [texts[i * len(texts) // MAX_QUERIES] for i in range(MAX_QUERIES)]
    ids, mask, _ = TextEncoderInput(tokenizer, manifest.text)([text for _, text in texts])
    groups = tuple(case.group for case, _ in texts)
    return ValidationSet(
        pixels=np.stack([preprocess(decode(case.image), manifest.image) for case, _ in texts]),
        ids=ids,
        mask=mask,
        source=source,
        groups=groups if all(groups) else (),
    )


def validate_precision(
    bundle: Bundle,
    reference: Engine,
    candidate: Engine,
    queries: ValidationSet,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Query two engines with every image, alone and with its text, against all others; return a verdict.

    Each kind of query searches two archives. One is in fp32, because a query may run in another precision
    than that of the archive. The other is in the candidate's precision, which is the harder test: an error in
    a query moves all its scores alike, while errors in cases change their order. `passed` allows the
    precision for queries, `archive_passed` for writing an archive.
    """
    total, has_concepts = 2 * len(queries), bool(bundle.manifest.concepts)
    reference_descriptors = _embed(
        reference, queries, has_concepts, lambda done: progress and progress(done, total)
    )
    descriptors = _embed(
        candidate, queries, has_concepts, lambda done: progress and progress(len(queries) + done, total)
    )
    archives = {"fp32": reference_descriptors["image_only"], candidate.precision: descriptors["image_only"]}
    rows = {
        f"{kind}, archive in {archive}": _compare(
            reference_descriptors[kind], archives["fp32"], descriptors[kind], cases, queries.groups, bundle
        )
        for archive, cases in archives.items()
        for kind in KINDS
    }
    record: dict[str, Any] = {
        "runtime": candidate.name,
        "precision": candidate.precision,
        "on": dict(candidate.facts),
        "against": f"{reference.name} {reference.precision}",
        "queries": len(queries),
        "source": queries.source,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "limits": {
            "score_regret": MAX_REGRET,
            "top10_overlap": MIN_OVERLAP,
            "change": MAX_CHANGE,
            "queries": MIN_QUERIES,
        },
        "rows": rows,
    }
    faults = []
    if len(queries) < MIN_QUERIES:
        faults.append(f"only {len(queries)} queries; at least {MIN_QUERIES} are needed")
    faults += _faults(rows, "fp32")
    archive_faults = [*faults, *_faults(rows, candidate.precision)]
    return record | {
        "faults": faults,
        "archive_faults": archive_faults,
        "passed": not faults,
        "archive_passed": not archive_faults,
    }


def format_record(record: Mapping[str, Any]) -> str:
    """Return a record as text for a person."""
    columns = ("score regret", "top 10 overlap", "top 1 match", "mAP change", "Acc@1")
    lines = [
        f"{record['runtime']} {record['precision']} against {record['against']}, "
        f"{record['queries']} queries ({record['source']}):",
        f"{'':<34}" + "".join(f"{column:>15}" for column in columns),
    ]
    for name, row in record["rows"].items():
        changes = [f"{row[f'{m}_change']:+.2f}" if m in row else "-" for m in ("mAP", "Acc@1")]
        cells = [
            f"{row['score_regret']:.1e}", f"{row['top10_overlap']:.4f}", f"{row['top1_match']:.4f}", *changes,
        ]  # fmt: skip
        lines.append(f"{name:<34}" + "".join(f"{cell:>15}" for cell in cells))
    for what, faults in (("queries", "faults"), ("writing an archive", "archive_faults")):
        verdict = "; ".join(["refused", *record[faults]]) if record[faults] else "passed"
        lines.append(f"{what}: {verdict}")
    return "\n".join(lines)


def _faults(rows: Mapping[str, Mapping[str, float]], archive: str) -> list[str]:
    """Return, in words, what exceeds the limits in one archive.

    mAP and Acc@1 are judged by the mean over both kinds of query: among a few hundred queries, a single one
    is a tenth of a point or more.
    """
    faults = []
    by_kind = {f"{kind}, archive in {archive}": rows[f"{kind}, archive in {archive}"] for kind in KINDS}
    for name, row in by_kind.items():
        if not row["score_regret"] <= MAX_REGRET:
            faults.append(
                f"{name}: the hits score {row['score_regret']:.1e} less than those of fp32; "
                f"{MAX_REGRET:.0e} is allowed"
            )
        if not row["top10_overlap"] >= MIN_OVERLAP:
            faults.append(
                f"{name}: {row['top10_overlap']:.3f} of the hits are the same; {MIN_OVERLAP} is required"
            )
    for figure in ("mAP", "Acc@1"):
        changes = [row[f"{figure}_change"] for row in by_kind.values() if figure in row]
        mean = float(np.mean(changes)) if changes else 0.0
        if not abs(mean) <= MAX_CHANGE:
            faults.append(
                f"archive in {archive}: {figure} changes by {mean:+.2f}, the mean of both kinds of query; "
                f"{MAX_CHANGE} is allowed"
            )
    return faults


def _embed(
    engine: Engine, queries: ValidationSet, has_concepts: bool, done: Callable[[int], object]
) -> dict[str, Vector]:
    """Return the descriptors of every image, with its text and alone; each image is encoded once."""

    def head(maps: Mapping[str, Array], words: float) -> Array:
        weights = np.full(len(maps[LEVELS[0]]), words, np.float32)
        inputs = head_inputs(maps, weights, has_concepts)
        return engine.run("similarity_head", inputs, ["descriptor"])["descriptor"]

    descriptors: dict[str, list[Array]] = {kind: [] for kind in KINDS}
    for start in range(0, len(queries), BATCH):
        batch = slice(start, start + BATCH)
        maps = engine.run("visual_encoder", {"pixels": queries.pixels[batch]}, LEVELS)
        mask = queries.mask[batch]
        text = {"tokens": engine.encode_text(queries.ids[batch], mask), "attention_mask": mask}
        composed = as_levels(engine.run("composer", {**maps, **text}, COMPOSED))
        descriptors["image_words"].append(head(composed, 1.0))
        descriptors["image_only"].append(head(maps, 0.0))
        done(min(start + BATCH, len(queries)))
    return {kind: np.concatenate(batches) for kind, batches in descriptors.items()}


def _compare(
    true_queries: Vector,
    true_cases: Vector,
    queries: Vector,
    cases: Vector,
    groups: Sequence[str],
    bundle: Bundle,
) -> dict[str, float]:
    """Compare the ranks of a candidate's descriptors with those of the reference, the true ones."""
    true_scores = _scores(true_queries, true_cases, bundle.manifest)
    candidate_scores = _scores(queries, cases, bundle.manifest)
    regret, overlap, top1_match = [], [], []
    for scores, best, top in zip(true_scores, _rank(true_scores), _rank(candidate_scores), strict=True):
        best, top = best[:TOP], top[:TOP]
        regret.append(float((scores[best] - scores[top]).mean()))
        overlap.append(len(set(best) & set(top)) / len(best))
        top1_match.append(best[0] == top[0])
    changes = np.abs(true_scores - candidate_scores)[~np.eye(len(true_scores), dtype=bool)]
    row = {
        "score_regret": float(np.mean(regret)),
        "top10_overlap": float(np.mean(overlap)),
        "top1_match": float(np.mean(top1_match)),
        "largest_change": float(changes.max()),
    }
    if groups:
        figures = [_quality(scores, groups) for scores in (true_scores, candidate_scores)]
        for name, before, after in zip(("mAP", "Acc@1"), *figures, strict=True):
            row |= {name: after, f"{name}_change": after - before}
    return row


def _scores(queries: Vector, cases: Vector, manifest: Manifest) -> npt.NDArray[np.float64]:
    """Return the score of each query with each case, float64 [N, N]; with itself -9, below all others."""
    weights = manifest.layout, manifest.beta, manifest.gamma, manifest.group_weight
    weighted = np.stack([weigh(q, *weights) for q in queries]).astype(np.float64)
    scores: npt.NDArray[np.float64] = weighted @ cases.astype(np.float64).T
    np.fill_diagonal(scores, -9.0)
    return scores


def _rank(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return for each query all other cases, best first; int64 [N, N - 1]."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :-1]


def _quality(scores: npt.NDArray[np.float64], groups: Sequence[str]) -> tuple[float, float]:
    """Return mAP and Acc@1, the means over all orders of equal scores: a table may be sorted by group."""
    label, order = np.array(groups), _rank(scores)
    best_first = np.take_along_axis(scores, order, axis=1)
    ties = np.cumsum(np.diff(best_first, prepend=best_first[:, :1]) != 0, axis=1)
    pairs = list(zip(label[order] == label[:, None], ties, strict=True))
    return (
        100 * float(np.mean([average_precision(right, tied) for right, tied in pairs])),
        100 * float(np.mean([found_by(right, tied, 1) for right, tied in pairs])),
    )
