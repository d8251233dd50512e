"""Other sources of cases, whose pictures query a model that was trained on all of the data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skinret_infer.cases import Case
from skinret_infer.errors import InputError
from skinret_infer.evaluation.evaluate import ALONE, WORDS, evaluate_parts
from skinret_infer.evaluation.metrics import LESION
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.searcher import Searcher
from skinret_infer.tables import CaseTable

from .data import Dataset, Split, load_dataset
from .origin import Adaptation
from .systems.base import System
from .systems.evaluate import evaluate_scores
from .systems.inputs import Inputs, join
from .train import TrainConfig

DATA, OWN = "training_data", "own_cases"
ARCHIVES: Mapping[str, str] = {
    DATA: "all of the training data",
    OWN: "the source's own cases without the query's lesion",
}


@dataclass(frozen=True, slots=True)
class Source:
    """The cases of another source that are of a group that the training data has too.

    name : it stands before each case id and lesion, so that none is that of a case of the training data.
    archive : the ids of the training data's cases of these groups.
    notes : what was left out.
    """

    name: str
    cases: list[Case]
    dataset: Dataset
    archive: frozenset[str]
    notes: list[str]

    def facts(self) -> dict[str, Any]:
        """Return what the results say about the source."""
        return {
            "cases": dict(sorted(Counter(self.dataset.groups).items())),
            "lesions": len({case.attributes[LESION] for case in self.cases}),
            "with_words": sum(map(bool, self.dataset.findings)),
            "notes": self.notes,
        }

    def evaluate(self, searcher: Searcher) -> dict[str, dict[str, Any]]:
        """Query an archive of the training data and of this source; return the figures of both ARCHIVES."""
        own = {case.case_id for case in self.cases}
        return self._said(evaluate_parts(searcher, self.cases, {DATA: self.archive, OWN: own}))

    def evaluate_system(
        self,
        system: System,
        config: TrainConfig,
        table: CaseTable,
        dataset: Dataset,
        inputs: Inputs,
        own: Inputs,
    ) -> dict[str, dict[str, Any]]:
        """Fit a system on all of the training data; return the figures of both ARCHIVES.

        table, dataset, inputs : of the training data.
        own : the inputs of this source.
        """
        everything = CaseTable([*table.cases, *self.cases], [])
        training, queries = np.split(np.arange(len(everything.cases)), [len(table.cases)])
        groups = dataset.concepts["group"]
        labels = np.array([groups.index(group) for group in self.dataset.groups])
        joined = join(inputs, own, labels, everything, dataset.checklist)
        ranker = system.fit(joined, Split(training, training[:0], queries), config)
        pictures = [*dataset.pictures, *self.dataset.pictures]
        searched = np.array([n for n in training if table.cases[n].case_id in self.archive])
        return self._said(
            {
                name: evaluate_scores(
                    ranker(archive), everything, dataset.checklist, queries, archive, pictures
                )
                for name, archive in ((DATA, searched), (OWN, queries))
            }
        )

    def _said(self, reports: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Keep the queries by words only if the source has words."""
        unsaid = () if any(self.dataset.findings) else (WORDS, ALONE)
        return {name: {k: v for k, v in r.items() if k not in unsaid} for name, r in reports.items()}


def load_source(
    name: str,
    found: CaseTable,
    table: CaseTable,
    dataset: Dataset,
    image: ImageRecipe,
    adaptation: Adaptation | None,
    *,
    quiet: bool = False,
) -> Source:
    """Load the cases of another source; groups that only one side has are left out on both.

    found : the cases of the source.
    table, dataset : the training data.

    Raises InputError for images and values that cannot be used, for fewer than two common groups, and for
    pictures that trained the model or adapted its backbone.
    """
    common = {case.group for case in found.cases} & set(dataset.groups) - {""}
    if len(common) < 2:
        raise InputError(
            f"the external source {name} has fewer than two groups of the training data",
            code="external-groups",
            expected=f"cases of at least two of {', '.join(dataset.concepts['group'])}",
            found=_count(found.cases),
            cure="name the groups as the training data does, in a column group",
        )
    cases = [_renamed(case, name) for case in found.cases if case.group in common]
    archive = frozenset(case.case_id for case in table.cases if case.group in common)
    notes = []
    for whose, all_cases in ((name, found.cases), ("the training data", table.cases)):
        if others := [case for case in all_cases if case.group not in common]:
            notes.append(f"Groups that only {whose} has are left out: {_count(others)}")
    try:
        own = load_dataset(CaseTable(cases, []), image, dataset.checklist, quiet=quiet)
    except InputError as error:
        error.add_note(f"This is about the external source {name}.")
        raise
    _check_new(name, own, dataset)
    if adaptation:
        adaptation.check_unseen(f"the external source {name}", own.case_ids, own.pictures)
    return Source(name, cases, own, archive, notes)


def _renamed(case: Case, source: str) -> Case:
    """Return a case whose id and lesion begin with its source. Without a lesion, the case is one."""
    lesion = case.attributes.get(LESION, case.case_id)
    return replace(
        case,
        case_id=f"{source}/{case.case_id}",
        attributes={**case.attributes, LESION: f"{source}/{lesion}"},
    )


def _check_new(name: str, own: Dataset, dataset: Dataset) -> None:
    trained = dict(zip(dataset.pictures, dataset.case_ids, strict=True))
    pairs = [(i, trained[p]) for i, p in zip(own.case_ids, own.pictures, strict=True) if p in trained]
    if pairs:
        raise InputError(
            f"the external source {name} has pictures of the training data",
            code="external-seen",
            expected="pictures that do not train the model",
            found=f"{len(pairs)} of them: "
            + ", ".join(f"{i} is case {t}" for i, t in pairs[:5])
            + (" ..." if len(pairs) > 5 else ""),
            cure="leave them out of the table",
        )


def _count(cases: Sequence[Case]) -> str:
    counts = Counter(case.group or "without a group" for case in cases)
    return ", ".join(f"{group} {n}" for group, n in sorted(counts.items()))
