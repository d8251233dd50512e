"""Make the evidence of a hit: fetch the case, its picture and its feature maps, and split the score."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _forks
from ._files import find_file
from .archive.store import Record, Store
from .bundle import Manifest
from .descriptor import COSINES, Vector, products
from .encoder import Encoded, Encoder
from .errors import ArchiveError, InputError
from .evidence import Box, Evidence, EvidenceMap, Maps, split_score
from .imaging.decode import ImageSource, decode
from .imaging.recipe import Pixels, crop_box, pixel_sha256, preprocess
from .results import Hit
from .words.reading import compare

_MAX_RESIDUAL = 0.05  # of a product: bf16 stays below it, another picture or model exceeds it


@dataclass(frozen=True, slots=True, kw_only=True)
class Explainer:
    """Explains the hits of all queries of a Searcher."""

    encoder: Encoder
    store: Store
    manifest: Manifest
    concept_head: Vector | None  # [W b], of Bundle.concept_head

    def stored(self, hit: Hit) -> tuple[Record, Vector]:
        """Return the record and descriptor of a hit as they are now. Raises ArchiveError."""
        stored = self.store.get_with_descriptors([hit.case_id])
        if hit.case_id not in stored:
            raise _case_changed(hit.case_id, "no such case")
        return stored[hit.case_id]

    def split(
        self, maps: Maps, descriptor: Vector, compared: Vector, weights: npt.NDArray[np.float64], box: Box
    ) -> tuple[EvidenceMap, float]:
        """Split a score over one picture, as `split_score` does."""
        return split_score(
            maps,
            descriptor,
            compared,
            manifest=self.manifest,
            concept_head=self.concept_head,
            weights=weights,
            box=box,
        )


@dataclass(slots=True, kw_only=True, eq=False)
class QueryExplainer:
    """Explains the hits of one query. Its feature maps are made when the first hit is explained.

    source : the path of the query's image, or None if it was no path: the caller's image is not kept here.
    weights : of the products in the score, [6 + C].
    """

    explainer: Explainer
    encoded: Encoded
    source: str | Path | None
    weights: npt.NDArray[np.float64]
    _maps: Maps | None = field(default=None, init=False, repr=False)

    def query_picture(self, image: ImageSource | None) -> Pixels | None:
        """Return the picture of the query, or None if it cannot be read any more."""
        if self.encoded.picture is None:
            return None
        sha256 = self.encoded.picture.sha256
        if image is not None:
            picture = decode(image)
            if pixel_sha256(picture) != sha256:
                raise _wrong_picture("the query", sha256, pixel_sha256(picture))
            return picture
        if self.source is None:
            return None
        try:
            picture = decode(self.source)
        except InputError:
            return None
        return picture if pixel_sha256(picture) == sha256 else None

    def model_input(self) -> Pixels | None:
        """Return the picture as the model saw it, [S, S, 3], or None for a query by words alone."""
        return self.encoded.picture.pixels if self.encoded.picture else None

    def explain(
        self, hit: Hit, case_image: ImageSource | None, image_folder: str | Path | None, with_case: bool
    ) -> tuple[Evidence, Pixels | None]:
        """Return the evidence of a hit, and the picture of the case, or None without with_case."""
        explainer, manifest = self.explainer, self.explainer.manifest
        record, descriptor = explainer.stored(hit)
        terms = products(self.encoded.descriptor, descriptor[None], manifest.layout)[0]
        if np.abs(terms[:6] - list(hit.cosines.values())).max() > 1e-6:
            raise _case_changed(hit.case_id, "another descriptor")
        query, residual = None, 0.0
        if self.encoded.picture:
            query, residual = explainer.split(
                self._query_maps(self.encoded.picture.pixels),
                self.encoded.descriptor,
                descriptor,
                self.weights,
                self.encoded.picture.box,
            )
        case, picture = None, None
        if with_case:
            picture = _case_picture(hit, record, case_image, image_folder)
            maps = explainer.encoder.case_maps(preprocess(picture, manifest.image))
            box = crop_box(picture, manifest.image)
            case, case_residual = explainer.split(
                maps, descriptor, self.encoded.descriptor, self.weights, box
            )
            residual = max(residual, case_residual)
        if residual > _MAX_RESIDUAL:
            raise ArchiveError(
                f"the maps of case {hit.case_id!r} do not add up to its score",
                code="evidence-sum",
                expected=f"each product with an error of at most {_MAX_RESIDUAL}",
                found=f"an error of {residual:.3f}",
                cure="index the case again with this bundle",
                case_id=hit.case_id,
            )
        return self._evidence(hit, record.attributes, terms, query, case, residual), picture

    def _evidence(
        self,
        hit: Hit,
        attributes: Mapping[str, Any],
        terms: npt.NDArray[np.float64],
        query: EvidenceMap | None,
        case: EvidenceMap | None,
        residual: float,
    ) -> Evidence:
        manifest = self.explainer.manifest
        matching, conflicting = compare(self.encoded.reading.allowed, attributes, manifest.checklist)
        parts = zip((*COSINES, *manifest.concepts), self.weights * terms, strict=True)
        return Evidence(
            case_id=hit.case_id,
            score=hit.score,
            parts={name: float(part) for name, part in parts},
            query=query,
            case=case,
            residual=residual,
            matching_criteria=matching,
            conflicting_criteria=conflicting,
        )

    def _query_maps(self, pixels: Pixels) -> Maps:
        if self._maps is None:
            with _forks.no_fork():
                self._maps = self.explainer.encoder.query_maps(pixels, self.encoded.reading)
        return self._maps


def _case_picture(hit: Hit, record: Record, image: ImageSource | None, folder: str | Path | None) -> Pixels:
    """Return the picture of a case, after a check that it is the one that was indexed."""
    if image is None:
        image = find_file(folder, hit.image_ref) if folder is not None else Path(hit.image_ref)
    try:
        picture = decode(image)
    except InputError as error:
        error.case_id = hit.case_id
        error.add_note(
            f"This is the image of case {hit.case_id!r}: name its folder with image_folder=, or leave out "
            "its maps with with_case=False."
        )
        raise
    if (sha256 := pixel_sha256(picture)) != record.image_sha256:
        raise _wrong_picture(f"case {hit.case_id!r}", record.image_sha256, sha256, hit.case_id)
    return picture


def _wrong_picture(whose: str, expected: str, found: str, case_id: str | None = None) -> InputError:
    return InputError(
        f"the picture is not that of {whose}",
        code="evidence-image",
        expected=f"pixels with the SHA-256 {expected}",
        found=found,
        cure="give the image of the query, or the image that was indexed",
        case_id=case_id,
    )


def _case_changed(case_id: str, found: str) -> ArchiveError:
    return ArchiveError(
        f"case {case_id!r} was removed or replaced since the query",
        code="evidence-changed",
        expected="the case as it was when the query found it",
        found=found,
        cure="query again",
        case_id=case_id,
    )
