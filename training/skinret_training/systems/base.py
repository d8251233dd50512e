"""What a compared system is: its source, how close to it the code is, what it looks at, and how it scores."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from skinret_infer.errors import InputError

from ..data import Indices, Split
from ..train import TrainConfig
from .inputs import Inputs

Array = npt.NDArray[np.float32]
Scores = Mapping[str, Array]  # kind of query -> scores of each query with each case of an archive [Q, A]
Ranker = Callable[[Indices], Scores]  # called with the cases of an archive

IMAGE_WORDS, IMAGE_ONLY, WORDS_ALONE = "image_words", "image_only", "words_alone"
BOTH_SIDES = "image_words_both"  # the archive's words are read too, so it shares no column with IMAGE_WORDS

AS_PUBLISHED = "as published"
HEAD = "head as published on a frozen backbone"
RECONSTRUCTION = "reconstruction"
STAND_IN = "stand-in"
OWN = "our own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """What a system looks at, beside the pictures of the training folds, of the query and of the archive."""

    labels: bool = False  # of the training folds, in training
    archive_labels: bool = False  # at search
    archive_words: bool = False  # at search
    other_queries: bool = False  # at search


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the results say of a row of the table.

    source : the publication.
    fidelity : how close to it the code is, one of the constants above.
    deviations : sentences on what is different.
    """

    source: str
    fidelity: str
    deviations: tuple[str, ...] = ()
    uses: Uses

    def facts(self) -> dict[str, Any]:
        """Return the row's facts as plain values."""
        return {
            "source": self.source,
            "fidelity": self.fidelity,
            "deviations": list(self.deviations),
            "uses": asdict(self.uses),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class System(Row):
    """A row that scores by itself.

    name : of the row, and of the command's option. One that only resembles a publication says so.
    needs_words : whether it compares nothing if no case has a finding.
    least_archive : the fewest cases that an archive must have.
    ready : raises MissingExtra if a package of the system is missing.
    fit : fits on `Split.archive` and returns the ranker of the queries `Split.test`.
    """

    name: str
    needs_words: bool = False
    least_archive: int = 1
    ready: Callable[[], object] = lambda: None
    fit: Callable[[Inputs, Split, TrainConfig], Ranker]

    def check(self, archive: int, has_words: bool) -> None:
        """Raise InputError for data that the system cannot compare, and MissingExtra.

        archive : the cases of the smallest archive, without the query's own.
        """
        self.ready()
        if self.needs_words and not has_words:
            raise InputError(
                f"the system {self.name} compares words, and no case has any",
                code="system-data",
                expected="cases with findings of the checklist",
                found="none",
                cure="add columns of findings, or leave this system out",
            )
        if archive < self.least_archive:
            raise InputError(
                f"the system {self.name} compares a case with more neighbours than there are",
                code="system-data",
                expected=f"at least {self.least_archive} cases in each archive, the held-out fold among them",
                found=str(archive),
                cure="give more cases or fewer folds, or leave this system out",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Row):
    """A row that is trained as the model is, with other settings.

    settings : fields of TrainConfig.
    """

    uses: Uses = Uses(labels=True)
    settings: Mapping[str, Any]


def fixed(scores: Scores) -> Ranker:
    """Return a ranker of scores with all cases [Q, N], which are the same in any archive."""
    return lambda archive: {kind: of_kind[:, archive] for kind, of_kind in scores.items()}


def products(queries: Array, cases: Array) -> Array:
    """Return the dot product of each query [Q, d] with each case [N, d]; equal cases get equal bits."""
    return cast(Array, np.einsum("qd,nd->qn", queries, cases))
