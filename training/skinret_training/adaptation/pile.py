"""The pictures that a backbone is adapted with: labels, lesions, parts, and none of the evaluation."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from skinret_infer.cases import Case
from skinret_infer.errors import InputError
from skinret_infer.imaging.decode import decode
from skinret_infer.tables import CaseTable
from skinret_infer.words.checklist import Checklist

from ..data import Indices, lesions_of
from ..loss import UNKNOWN
from .duplicates import Fingerprints, find_pairs, fingerprints

log = logging.getLogger(__name__)
_PARTS = ("train", "validation")


@dataclass(frozen=True, slots=True)
class Pile:
    """N pictures of L lesions, and the values that they are labelled with."""

    cases: list[Case]
    concepts: dict[str, list[str]]  # the values of each label, the group first if there is one
    targets: Indices  # [N, C], the index of each label's value; UNKNOWN if a picture has none
    lesions: list[Indices]  # [L], the pictures of each lesion
    parts: list[str]  # [L], "train" or "validation"
    sha256: list[str]  # [N], of the decoded pixels
    excluded: dict[str, int]  # the tables of the evaluation, and how many pictures each has
    duplicates: list[dict[str, Any]]  # pictures that were left out, because the evaluation has them too

    @property
    def digest(self) -> str:
        """SHA-256 of the pictures, their labels, their lesions and their parts."""
        facts = (self.sha256, self.concepts, [p.tolist() for p in self.lesions], self.parts)
        return hashlib.sha256(repr(facts).encode() + self.targets.tobytes()).hexdigest()

    def counts(self) -> dict[str, Any]:
        """Return how many pictures and lesions there are, by part and by value of each label."""
        labels = {
            name: {value: int((self.targets[:, n] == i).sum()) for i, value in enumerate(values)}
            for n, (name, values) in enumerate(self.concepts.items())
        }
        return {"pictures": len(self.cases), "lesions": dict(Counter(self.parts)), "labels": labels}


def read_pile(
    tables: Sequence[CaseTable],
    exclude: Mapping[str, CaseTable] | None = None,
    *,
    findings: Sequence[str] | None = None,
    validation: float = 0.1,
    seed: int = 0,
    drop_duplicates: bool = False,
    quiet: bool = False,
) -> Pile:
    """Decode all pictures of some tables, compare them with the evaluation's, and split them by lesion.

    exclude : the evaluation's tables by name. A picture that one of them has too is an error, or is left out
        with `drop_duplicates`.
    findings : the columns that are labels beside the group; if None, the criteria of the seven-point
        checklist that are columns.
    validation : the share of lesions to measure with, if no case has a value in the column `split`.

    Pictures of a table with the same value in the column `lesion_id`, and equal pictures, are of one lesion.
    Raises InputError for pictures and labels that cannot be used.
    """
    cases = [case for table in tables for case in table.cases]
    names = [str(n) for n, table in enumerate(tables) for _ in table.cases]
    concepts, targets = _labels(cases, findings)
    prints = _fingerprints(cases, "pictures", quiet)
    duplicates = _duplicates(cases, prints, exclude or {}, drop_duplicates, quiet)
    left_out = {found.pop("index") for found in duplicates}
    kept = np.array([n for n in range(len(cases)) if n not in left_out], np.int64)
    cases, targets = [cases[n] for n in kept], targets[kept]
    hashes = [prints.sha256[n] for n in kept]
    lesions = lesions_of(cases, hashes, [names[n] for n in kept])
    parts = _given_parts(cases, lesions) or _parts(lesions, targets[:, 0], validation, seed)
    excluded = {name: len(table.cases) for name, table in (exclude or {}).items()}
    return Pile(cases, concepts, targets, lesions, parts, hashes, excluded, duplicates)


def _labels(cases: list[Case], findings: Sequence[str] | None) -> tuple[dict[str, list[str]], Indices]:
    """Return the values of the group and of each finding, and `Pile.targets`.

    The group may have no value, and each finding has at least two.
    """
    columns = {"group": [case.group for case in cases]}
    for name in Checklist.seven_point().from_image if findings is None else findings:
        facts = [case.diagnosis if name == "diagnosis" else case.attributes.get(name, "") for case in cases]
        columns[name] = list(map(str, facts))
    concepts = {name: sorted(set(column) - {""}) for name, column in columns.items()}
    if scarce := [name for name in findings or () if len(concepts[name]) < 2]:
        raise InputError(
            f"the findings {', '.join(scarce)} cannot be labels",
            code="option",
            expected="columns of at least two values",
            found="; ".join(f"{name}: {', '.join(concepts[name]) or 'no value'}" for name in scarce),
        )
    concepts = {name: values for name, values in concepts.items() if name == "group" or len(values) > 1}
    if len(concepts["group"]) == 1:
        raise InputError(
            "the pictures are of one group only",
            code="data-groups",
            expected="at least two groups, or none at all",
            found=concepts["group"][0],
            cure="add pictures of other groups, or leave the column group empty",
        )
    targets = [
        [values.index(v) if (v := columns[c][n]) else UNKNOWN for c, values in concepts.items()]
        for n in range(len(cases))
    ]
    return concepts, np.array(targets, np.int64)


def _fingerprints(cases: list[Case], label: str, quiet: bool) -> Fingerprints:
    def pictures() -> Any:
        for case in tqdm(cases, label, unit="picture", disable=True if quiet else None, leave=False):
            try:
                yield decode(case.image)
            except InputError as error:
                error.add_note(f"This is the image of case {case.case_id!r}.")
                raise

    return fingerprints(pictures())


def _duplicates(
    cases: list[Case],
    prints: Fingerprints,
    exclude: Mapping[str, CaseTable],
    drop: bool,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Return the pictures that the evaluation has too. Raises InputError for any, unless they are dropped."""
    found = []
    for name, table in exclude.items():
        others = _fingerprints(table.cases, f"pictures of {name}", quiet)
        for pair in find_pairs(prints, others):
            case, other = cases[pair.first], table.cases[pair.second]
            facts = {"case_id": case.case_id, "image": case.image_ref, "of": name, "same_as": other.case_id}
            measures = {k: v for k, v in asdict(pair).items() if k not in ("first", "second")}
            found.append({"index": pair.first, **facts, **measures})
    if found and not drop:
        raise InputError(
            f"the evaluation has {len(found)} of the pictures too",
            code="data-overlap",
            expected="no picture of the evaluation among those that the backbone is adapted with",
            found=", ".join(f"{d['case_id']} (as {d['same_as']} of {d['of']})" for d in found[:10])
            + (f" and {len(found) - 10} more" if len(found) > 10 else ""),
            cure="leave them out with --drop-duplicates",
        )
    return found


def _given_parts(cases: list[Case], lesions: list[Indices]) -> list[str]:
    """Return the parts that the column `split` gives, or none. Raises InputError if it divides a lesion."""
    given = [str(case.attributes.get("split", "")) for case in cases]
    if not any(given):
        return []
    if unknown := sorted(set(given) - {*_PARTS, ""}):
        raise InputError(
            "the column split has unknown values",
            code="table-value",
            expected=" or ".join(_PARTS),
            found=", ".join(unknown),
            cure="leave other pictures out",
        )
    divided = [p for p in lesions if len({given[n] or "train" for n in p}) > 1]
    if divided:
        raise InputError(
            f"the column split puts {len(divided)} lesions into both parts",
            code="data-split",
            expected="all pictures of a lesion in one part",
            found="; ".join(", ".join(cases[n].case_id for n in p) for p in divided[:5]),
        )
    return [given[p[0]] or "train" for p in lesions]


def _parts(lesions: list[Indices], labels: Indices, share: float, seed: int) -> list[str]:
    """Return a random part of each lesion; validation gets `share` of every group."""
    parts = np.full(len(lesions), "train", object)
    groups = np.array([labels[p[0]] for p in lesions])
    rng = np.random.default_rng(seed)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        parts[members[: round(share * len(members))]] = "validation"
    return [str(part) for part in parts]
