"""Measure retrieval through the product: every figure comes from a Searcher's rankings."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import QUERY_KINDS
from ..cases import Case
from ..encoder import BATCH
from ..errors import InputError, printable
from ..results import Hit, Results
from ..searcher import Searcher
from ..words.checklist import Allowed
from .metrics import (
    ACC_AT,
    NDCG,
    SHARED,
    Indices,
    Labels,
    Ranking,
    own_cases,
    retrieval_metrics,
    without_own,
)
from .precision import KINDS
from .ways import Way

WORDS, IMAGE, ALONE = QUERY_KINDS
# The parts of the score that also rank alone, with their names in tables.
PARTS = {"visual_alone": "S alone", "concepts_alone": "concepts alone"}
_SCORE = "score"


def evaluate(
    searcher: Searcher,
    cases: Sequence[Case],
    *,
    ways: Sequence[Way] = (),
    beta: float | None = None,
    gamma: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Query with each case (image with words, image alone, words alone) and say how good the hits are.

    Each query ranks the whole archive. The query's own case is left out: the case with its id, and any case
    with the same picture ("same_picture" counts those under another id) or with the same attribute lesion_id
    ("same_lesion" counts those in another picture). A hit is right if its group is the query's. The words are
    the case's attributes in the canonical phrases of the bundle's checklist. For the figures of each kind of
    query, and for equal scores, see `retrieval_metrics`. With an image, "visual_alone" has those of the
    ranking by S alone (gamma 0), and "concepts_alone" those by the concepts alone (gamma 1).

    ways : other ways of writing the same findings. The figures of each are in "ways", with "gain_kept": how
        much of what the canonical words add to the shared criteria of the image alone it adds, in per cent;
        "read_precision" and "read_recall" of what was understood of it, in per cent; and "agree" and
        "agree_image": with how many of the stated findings the records of the first five hits agree, with
        these words and by the image alone.
    """
    return evaluate_parts(searcher, cases, {"": None}, ways=ways, beta=beta, gamma=gamma, progress=progress)[
        ""
    ]


def evaluate_parts(
    searcher: Searcher,
    cases: Sequence[Case],
    parts: Mapping[str, Collection[str] | None],
    *,
    ways: Sequence[Way] = (),
    beta: float | None = None,
    gamma: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate several parts of an archive, each as if it were a separate archive; query only once.

    The search is exact, so the ranking of a part is the full ranking without the other cases.

    parts : for the name of each part, its case ids; None is the whole archive.
    """
    if not cases:
        raise InputError(
            "there is nothing to evaluate", code="table-empty", expected="cases to query with", found="none"
        )
    checklist = searcher.manifest.checklist
    kinds = {
        WORDS: _Kind([checklist.text_of(case.attributes) for case in cases]),
        IMAGE: _Kind([""] * len(cases)),
        ALONE: _Kind([checklist.text_of(case.attributes) for case in cases], with_image=False),
    }
    for way in ways:
        written = [way.write(case, checklist) for case in cases]
        kinds[_key(way)] = _Kind([text for text, _ in written], said=[said for _, said in written])
    ranked = _rank_archive(searcher, cases, kinds, beta, gamma, progress)
    reports = {}
    for name, ids in parts.items():
        members = [n for n, hit in enumerate(ranked.archive) if ids is None or hit.case_id in ids]
        index = np.full(len(ranked.archive), -1)
        index[members] = np.arange(len(members))
        hits = [ranked.archive[n] for n in members]
        archive = Labels.of(hits, checklist.from_image, [hit.image_sha256 for hit in hits])

        def measure(
            kind: str, said: Sequence[Mapping[str, Allowed]] = (), by: str = _SCORE
        ) -> dict[str, Any]:
            """Return the figures of a kind of query; `said` takes the place of the queries' own findings."""
            asked = [n for n, ranking in enumerate(ranked.rankings[kind]) if ranking is not None]
            labels = Labels.of(
                [cases[n] for n in asked], checklist.from_image, [ranked.pictures[n] for n in asked]
            )
            if said:
                findings = [{c: v[0] for c, v in said[n].items() if c in checklist.from_image} for n in asked]
                labels = replace(labels, criteria=findings)
            rankings = [r[by] for r in ranked.rankings[kind] if r is not None]
            rankings = without_own(_restrict(rankings, index), labels, archive)  # noqa: B023
            return retrieval_metrics(rankings, labels, archive)  # noqa: B023

        figures: dict[str, Any] = {kind: measure(kind) for kind in (WORDS, IMAGE)}
        for kind, part in itertools.product((WORDS, IMAGE), PARTS if searcher.manifest.concepts else ()):
            figures[kind][part] = measure(kind, by=part)
            del figures[kind][part]["random_order"]  # the same as that of the score
        if any(ranking is not None for ranking in ranked.rankings[ALONE]):
            figures[ALONE] = measure(ALONE)
        if ways:
            figures["ways"] = {
                way.name: measure(_key(way)) | _reading(searcher, kinds[_key(way)]) for way in ways
            }
            for way in ways:
                said, of_way = kinds[_key(way)].said, figures["ways"][way.name]
                of_way["gain_kept"] = _gain_kept(of_way, figures[WORDS], figures[IMAGE])
                if any(said):
                    of_way["agree"] = measure(_key(way), said).get(SHARED)
                    of_way["agree_image"] = measure(IMAGE, said).get(SHARED)
        reports[name] = {
            "queries": len(cases),
            "archive": len(searcher) if ids is None else len(members),
            **own_cases(Labels.of(cases, (), ranked.pictures), archive),
            "beta": searcher.manifest.beta if beta is None else beta,
            "gamma": searcher.manifest.gamma if gamma is None else gamma,
            "runtime": searcher.runtime,
            "precision": searcher.precision,
            "model": f"{searcher.manifest.model} {searcher.manifest.version}",
            **figures,
        }
    return reports


def _key(way: Way) -> str:
    return f"way {way.name}"


def _gain_kept(way: Mapping[str, Any], words: Mapping[str, Any], image: Mapping[str, Any]) -> float | None:
    """Return what a way keeps of the gain of the canonical words in shared criteria, in per cent."""
    if not all(SHARED in figures for figures in (way, words, image)) or words[SHARED] == image[SHARED]:
        return None
    return float(round(100 * (way[SHARED] - image[SHARED]) / (words[SHARED] - image[SHARED]), 1))


def _reading(searcher: Searcher, kind: "_Kind") -> dict[str, float]:
    """Return how precise and how complete the reader is on the texts of a way, in per cent."""
    right = read = said = 0
    for text, findings in zip(kind.texts, kind.said, strict=True):
        allowed = searcher.read(text).allowed if text else {}
        right += sum(allowed.get(name) == values for name, values in findings.items())
        read, said = read + len(allowed), said + len(findings)
    return {
        "read_precision": round(100 * right / read, 2) if read else 100.0,
        "read_recall": round(100 * right / said, 2) if said else 100.0,
    }


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of query: a text for each case, with its image or without.

    said : the values that each text states, if it is a way of writing.
    """

    texts: list[str]
    with_image: bool = True
    said: list[dict[str, Allowed]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """The whole archive as every query ranks it.

    pictures : the SHA-256 of each query's picture.
    archive : each case once, as a hit.
    rankings : for each kind of query, one per query by the score and by each of PARTS, None for a case
        without words. Its indices are those of `archive`.
    """

    pictures: list[str]
    archive: list[Hit]
    rankings: dict[str, list[dict[str, Ranking] | None]]


def _rank_archive(
    searcher: Searcher,
    cases: Sequence[Case],
    kinds: Mapping[str, _Kind],
    beta: float | None,
    gamma: float | None,
    progress: Callable[[int, int], None] | None,
) -> _Ranked:
    """Query with every case in every kind of query. Texts with the same findings make one query."""
    ranked = _Ranked([""] * len(cases), [], {kind: [None] * len(cases) for kind in kinds})
    numbers: dict[str, int] = {}  # case id -> index in the archive
    for start in range(0, len(cases), BATCH):
        batch = range(start, min(start + BATCH, len(cases)))
        known: dict[tuple[int, bool, str], dict[str, Ranking]] = {}  # case, with its image, findings
        for name, kind in kinds.items():
            keys = {n: (n, kind.with_image, searcher.read(kind.texts[n]).canonical) for n in batch}
            for n in batch:
                ranked.rankings[name][n] = known.get(keys[n])
            asked = [n for n in batch if ranked.rankings[name][n] is None and (kind.with_image or keys[n][2])]
            queries = [(cases[n].image if kind.with_image else None, kind.texts[n]) for n in asked]
            answers = searcher.query_batch(queries, k=max(len(searcher), 1), beta=beta, gamma=gamma)
            for n, results in zip(asked, answers, strict=True):
                for hit in results:
                    if hit.case_id not in numbers:
                        numbers[hit.case_id] = len(ranked.archive)
                        ranked.archive.append(hit)
                order = np.array([numbers[hit.case_id] for hit in results], np.int64)
                scores = _scores(results, name in KINDS and bool(searcher.manifest.concepts))
                known[keys[n]] = {by: _sorted(order, values) for by, values in scores.items()}
                ranked.rankings[name][n] = known[keys[n]]
                if kind.with_image:
                    ranked.pictures[n] = results.hashes["image"]
        if progress:
            progress(batch.stop, len(cases))
    return ranked


def _scores(results: Results, with_parts: bool) -> dict[str, npt.NDArray[np.float64]]:
    """Return the score of each hit, and the parts that rank alone."""
    scores = {_SCORE: np.array([hit.score for hit in results])}
    if with_parts:
        beta = results.beta
        visual = [beta * hit.local_similarity + (1 - beta) * hit.global_similarity for hit in results]
        concepts = [hit.concept_similarity or 0.0 for hit in results]
        scores |= zip(PARTS, (np.array(visual), np.array(concepts)), strict=True)
    return scores


def _sorted(cases: Indices, scores: npt.NDArray[np.float64]) -> Ranking:
    order = np.argsort(-scores, kind="stable")
    return Ranking(cases[order], scores[order])


def _restrict(rankings: Sequence[Ranking], index: Indices) -> list[Ranking]:
    """Restrict rankings to a part: `index` holds each case's number in the part, -1 if it has none."""
    numbered = [(index[ranking.cases], ranking.scores) for ranking in rankings]
    return [Ranking(cases[cases >= 0], scores[cases >= 0]) for cases, scores in numbered]


def table(report: dict[str, Any]) -> str:
    """Return the report as text for a person."""
    columns = [n for n in ("mAP", *(f"Acc@{k}" for k in ACC_AT), NDCG, SHARED) if n in report[KINDS[0]]]
    # A random order ignores the query: it is the same for every kind.
    kinds = [kind for kind in (*KINDS, ALONE) if kind in report]
    blocks = {kind: report[kind] for kind in kinds} | {"random_order": report[KINDS[0]]["random_order"]}
    rows = {kind: _rows(kind, figures) for kind, figures in blocks.items()}
    width = max(len(label) for block in rows.values() for label, _ in block) + 2
    lines = [
        f"{report['queries']} queries, archive of {report['archive']} cases, "
        f"{report['runtime']} in {report['precision']}",
        " " * width + "".join(f"{name:>9}" for name in columns),
    ]
    for kind, block in rows.items():
        for label, figures in block:
            lines.append(f"{label:<{width}}" + "".join(f"{_cell(name, figures):>9}" for name in columns))
        if SHARED in (beyond := blocks[kind].get("beyond_group", {})):
            lines.append("  " + _chance_line(beyond[SHARED]))
        if tied := blocks[kind].get("tied"):
            lines.append(
                f"  in {tied} queries a right and a wrong hit have equal scores: means over their orders"
            )
    if "ways" in report:
        lines += ["", *_ways_table(report["ways"])]
    if twins := report.get("same_picture"):
        lines.append(f"left out: {twins} hits with the query's own picture under another case id")
    if others := report.get("same_lesion"):
        lines.append(f"left out: {others} hits with another picture of the query's own lesion")
    return "\n".join(lines)


def _ways_table(ways: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each way of writing."""
    width = max(16, max(len(printable(name)) for name in ways) + 2)
    lines = [
        f"{'way of writing':<{width}}{'mAP':>8}{'Acc@1':>8}{SHARED:>10}"
        f"{'gain kept':>11}{'read':>8}{'agree':>15}"
    ]
    for name, of_way in ways.items():
        kept = "-" if of_way["gain_kept"] is None else f"{of_way['gain_kept']:.0f} %"
        agree = f"{of_way['agree']:.2f} ({of_way['agree_image']:.2f})" if of_way.get("agree") else "-"
        lines.append(
            f"{printable(name):<{width}}{of_way['mAP']:>8.1f}{of_way['Acc@1']:>8.1f}"
            f"{_cell(SHARED, dict(of_way)):>10}"
            f"{kept:>11}{of_way['read_recall']:>6.0f} %{agree:>15}"
        )
    return [*lines, "agree: with the stated findings, in brackets by the image alone"]


def _rows(kind: str, figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a kind of query: the mean over the groups, all queries, each group, the parts."""
    return [
        (f"{kind.replace('_', ' ')}, balanced", figures["balanced"]),
        (f"  all ({figures['queries']})", figures),
        *((f"  {printable(group)} ({f['queries']})", f) for group, f in figures["by_group"].items()),
        *(
            row
            for part, name in PARTS.items()
            if part in figures
            for row in ((f"  {name}, balanced", figures[part]["balanced"]), (f"  {name}, all", figures[part]))
        ),
    ]


def _cell(name: str, figures: dict[str, Any]) -> str:
    if name not in figures:
        return "-"
    return f"{figures[name]:.2f}" if name == SHARED else f"{figures[name]:.1f}"


def _chance_line(shared: dict[str, Any]) -> str:
    line = (
        f"shared criteria of the first five: {shared['measured']:.2f}, "
        f"by chance within the groups {shared['shuffled']:.2f}"
    )
    return line if shared["z"] is None else f"{line} ({shared['z']:.1f} standard errors)"
