"""The gate on ranks: lower precision may run only where it finds what fp32 finds.

The reference is fp32 on ONNX Runtime's CPU; its score is the true one. A precision is judged by what its
top-10 lists lose of it, not by how far its numbers are off: bf16 moves scores by a hundredth and loses a
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

from .._files import whole_file
from ..bundle import Bundle, Manifest
from ..cases import Case
from ..descriptor import COMPOSED, LEVELS, Vector, weigh
from ..engines.base import Array, Engine
from ..errors import InputError, RuntimeUnavailable
from ..imaging.decode import decode
from ..imaging.recipe import Pixels, prepare
from ..text import TextEncoderInput, Tokens
from ..text import describe as words_of
from .metrics import average_precision, found_by

BATCH = 8
TOP = 10
MIN_QUERIES = 200
MAX_QUERIES = 1000
MAX_LOSS = 1e-4  # of the score, a hit of the list, on average
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


def questions(manifest: Manifest, tokenizer: str | bytes, cases: Sequence[Case], source: str) -> Questions:
    """Make questions of cases that have an image and words: at most 1,000, evenly chosen.

    Raises InputError if they are too few.
    """
    said = [(case, words_of(case.attributes, manifest.text.phrases)) for case in cases]
    said = [(case, words) for case, words in said if words]
    if len(said) < MIN_QUERIES:
        raise InputError(
            "there are too few cases to measure ranks with",
            code="gate-cases",
            expected=f"at least {MIN_QUERIES} with attributes that the text recipe can say",
            found=str(len(said)),
        )
    said = (
        [said[i * len(said) // MAX_QUERIES] for i in range(MAX_QUERIES)] if len(said) > MAX_QUERIES else said
    )
    ids, mask, _ = TextEncoderInput(tokenizer, manifest.text)([words for _, words in said])
    groups = tuple(case.group for case, _ in said)
    return Questions(
        pixels=np.stack([prepare(decode(case.image), manifest.image) for case, _ in said]),
        ids=ids,
        mask=mask,
        source=source,
        groups=groups if all(groups) else (),
    )


def measure(
    bundle: Bundle,
    reference: Engine,
    candidate: Engine,
    questions: Questions,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Ask both engines with every image, by itself and with its words, among all the others; judge.

    Each kind of query is asked of two archives: of fp32, for queries may run in another precision than the
    archive was written in; and of the candidate's own, which is a harder test: an error of a query moves
    all its scores alike, errors of cases change their order. `passed` says that queries may run so,
    `archive_passed` that cases may be written so.
    """
    total = 2 * len(questions)
    true = _describe(reference, questions, lambda done: progress and progress(done, total))
    found = _describe(candidate, questions, lambda done: progress and progress(len(questions) + done, total))
    archives = {"fp32": true["image_alone"], candidate.precision: found["image_alone"]}
    rows = {
        f"{kind}, archive in {archive}": _compare(
            true[kind], true["image_alone"], found[kind], cases, questions.groups, bundle
        )
        for archive, cases in archives.items()
        for kind in KINDS
    }
    record: dict[str, Any] = {
        "runtime": candidate.name,
        "precision": candidate.precision,
        "on": dict(candidate.facts),
        "against": f"{reference.name} {reference.precision}",
        "queries": len(questions),
        "source": questions.source,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "limits": {"score_lost": MAX_LOSS, "overlap": MIN_OVERLAP, "moved": MAX_MOVE, "queries": MIN_QUERIES},
        "rows": rows,
    }
    faults = [*_few(questions), *_faults(rows, "fp32")]
    archive_faults = [*faults, *_faults(rows, candidate.precision)]
    return record | {
        "faults": faults,
        "archive_faults": archive_faults,
        "passed": not faults,
        "archive_passed": not archive_faults,
    }


def describe(record: Mapping[str, Any]) -> str:
    """Return a record as lines for a person."""
    lines = [
        f"{record['runtime']} {record['precision']} against {record['against']}, "
        f"{record['queries']} queries ({record['source']}):",
        f"{'':<34}{'score lost':>11}{'same top 10':>13}{'same first':>12}{'mAP moved':>11}{'Acc@1':>8}",
    ]
    for name, row in record["rows"].items():
        moved = [f"{row[f'{m}_moved']:+.2f}" if m in row else "-" for m in ("mAP", "Acc@1")]
        lines.append(
            f"{name:<34}{row['score_lost']:>11.1e}{row['overlap']:>13.4f}{row['same_first']:>12.4f}"
            f"{moved[0]:>11}{moved[1]:>8}"
        )
    for what, faults in (("queries", "faults"), ("writing an archive", "archive_faults")):
        lines.append(f"{what}: {'; '.join(['refused', *record[faults]]) if record[faults] else 'passed'}")
    return "\n".join(lines)


def allowed(bundle: Bundle, runtime: str, precision: str, cache: Path, *, to_write: bool = False) -> str:
    """Return "" if a precision may run, or the reason why not. fp32 always may.

    to_write : the descriptors are for an archive, not for a query.

    A record made on site goes before the bundle's own.
    """
    if precision == "fp32":
        return ""
    record = read_record(bundle, runtime, precision, cache)
    if record is None:
        return "its ranks were not measured with this bundle; `skinret gate` does that"
    prefix = "archive_" if to_write else ""
    if record.get(f"{prefix}passed") is True:
        return ""
    faults = record.get(f"{prefix}faults")
    return "refused by the gate: " + "; ".join(map(str, faults if isinstance(faults, list) else ()))


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


def _few(questions: Questions) -> list[str]:
    n = len(questions)
    return [f"only {n} queries; at least {MIN_QUERIES} are needed"] if n < MIN_QUERIES else []


def _faults(rows: Mapping[str, Mapping[str, float]], archive: str) -> list[str]:
    """Return, in words, what is beyond the limits in one archive.

    mAP and Acc@1 are judged over both kinds of query together: of a few hundred labels one alone is a tenth
    of a point and more.
    """
    found = []
    judged = {f"{kind}, archive in {archive}": rows[f"{kind}, archive in {archive}"] for kind in KINDS}
    for name, row in judged.items():
        if not row["score_lost"] <= MAX_LOSS:
            found.append(
                f"{name}: lists lose {row['score_lost']:.1e} of the score; {MAX_LOSS:.0e} is allowed"
            )
        if not row["overlap"] >= MIN_OVERLAP:
            found.append(f"{name}: {row['overlap']:.3f} of the hits are the same; {MIN_OVERLAP} is asked")
    for figure in ("mAP", "Acc@1"):
        moved = [row[f"{figure}_moved"] for row in judged.values() if figure in row]
        if moved and not abs(float(np.mean(moved))) <= MAX_MOVE:
            mean = float(np.mean(moved))
            found.append(f"archive in {archive}: {figure} moves by {mean:+.2f}; {MAX_MOVE} is allowed")
    return found


def _path(bundle: Bundle, runtime: str, precision: str, cache: Path) -> Path:
    return cache / "gates" / f"{runtime}-{precision}-{bundle.manifest.fingerprint[:16]}.json"


def _identity(bundle: Bundle) -> dict[str, str]:
    return dict(bundle.manifest.files)


def _describe(engine: Engine, questions: Questions, done: Callable[[int], object]) -> dict[str, Vector]:
    """Describe every image with its words and by itself, graph by graph: an image is encoded once."""

    def head(maps: Sequence[Array]) -> Array:
        return engine.run("similarity_head", dict(zip(LEVELS, maps, strict=True)), ["descriptor"])[0]

    parts: dict[str, list[Array]] = {kind: [] for kind in KINDS}
    for start in range(0, len(questions), BATCH):
        part = slice(start, start + BATCH)
        maps = engine.run("visual_encoder", {"pixels": questions.pixels[part]}, LEVELS)
        mask = questions.mask[part]
        words = {"tokens": engine.encode_text(questions.ids[part], mask), "attention_mask": mask}
        composed = engine.run("composer", dict(zip(LEVELS, maps, strict=True)) | words, COMPOSED)
        parts["image_words"].append(head(composed))
        parts["image_alone"].append(head(maps))
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
    true, found = _scores(true_queries, true_cases, bundle.manifest), _scores(queries, cases, bundle.manifest)
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
        "largest_change": float(np.abs(true - found)[~np.eye(len(true), dtype=bool)].max()),
    }
    if groups:
        figures = [_quality(scores, groups) for scores in (true, found)]
        for name, before, after in zip(("mAP", "Acc@1"), *figures, strict=True):
            row |= {name: after, f"{name}_moved": after - before}
    return row


def _scores(queries: Vector, cases: Vector, manifest: Manifest) -> npt.NDArray[np.float64]:
    """Return the score of each query with each case, float64 [N, N]; with itself -9, below all."""
    layout, beta, gamma = manifest.layout, manifest.beta, manifest.gamma
    weighed = np.stack([weigh(q, layout, beta, gamma) for q in queries]).astype(np.float64)
    scores: npt.NDArray[np.float64] = weighed @ cases.astype(np.float64).T
    np.fill_diagonal(scores, -9.0)
    return scores


def _ranked(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return for each query all cases but its own, best first; int64 [N, N - 1]."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :-1]


def _quality(scores: npt.NDArray[np.float64], groups: Sequence[str]) -> tuple[float, float]:
    """Return mAP and Acc@1, the means over all orders of equal scores: a table may be sorted by group."""
    label, ranked = np.array(groups), _ranked(scores)
    best_first = np.take_along_axis(scores, ranked, axis=1)
    ties = np.cumsum(np.diff(best_first, prepend=best_first[:, :1]) != 0, axis=1)
    pairs = list(zip(label[ranked] == label[:, None], ties, strict=True))
    return (
        100 * float(np.mean([average_precision(right, tied) for right, tied in pairs])),
        100 * float(np.mean([found_by(right, tied, 1) for right, tied in pairs])),
    )
