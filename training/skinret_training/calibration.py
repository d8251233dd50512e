"""What is usual: distances of pictures, and scores of first hits, of cases that a model has not seen."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from skinret_infer._files import atomic_write, file_sha256
from skinret_infer.bundle import QUERY_KINDS
from skinret_infer.descriptor import Vector, score_weights, state
from skinret_infer.errors import InputError
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, Pixels, preprocess

from .data import CaseTexts, Dataset, FrozenMaps, ImageMaps, Indices, encoder_key
from .model import Maps, Skinret
from .typicality import SHARE, OtherPicture, Typicality

_BATCH = 16


@torch.inference_mode()
def fit_typicality(
    model: Skinret,
    dataset: Dataset,
    frozen: FrozenMaps | None,
    cases: Indices,
    *,
    others: Sequence[OtherPicture],
    cache: Path,
    image: ImageRecipe,
    seed: int,
) -> None:
    """Fit the visual encoder's `typicality` to cases, and to pictures that are no dermoscopy.

    frozen : the maps of a frozen backbone; None computes them.
    others : the pictures that are no dermoscopy. Those of other cases of the dataset are left out.
    cache : the folder for their pooled maps.
    """
    model.eval()
    typicality = model.visual_encoder.typicality
    assert typicality is not None
    batches = np.array_split(cases, -(-len(cases) // _BATCH))
    lows = (
        frozen.get(batch, np.zeros(len(batch), np.int64))[0] if frozen else _low(model, dataset.pixels[batch])
        for batch in batches
    )
    pictures = _pool(lows)
    unlike = pictures[:0]
    if others:
        held_out = set(dataset.case_ids) - {dataset.case_ids[n] for n in cases}
        pooled = _pooled_files(model, [other.path for other in others], image, cache)
        unlike = pooled[[other.case_id not in held_out for other in others]]
    typicality.fit(pictures, unlike, seed)


@torch.inference_mode()
def first_hit_limits(
    model: Skinret, dataset: Dataset, maps: ImageMaps, texts: CaseTexts, archive: Indices, queries: Indices
) -> dict[str, float]:
    """Return by kind of query the score that all but SHARE of the first hits exceed.

    queries : cases that did not train the model. They search among `archive`, with all their findings.
    """
    model.eval()
    config, layout = model.config, model.similarity_head.layout
    cases = _embed(model, maps, texts, archive, QUERY_KINDS[1])
    weights = score_weights(layout, config.beta, config.gamma, config.group_weight).astype(np.float32)
    with_words = queries[~texts.blank[queries]]
    limits = {}
    for kind in QUERY_KINDS:
        asked = queries if kind == QUERY_KINDS[1] else with_words
        if not len(asked):
            continue
        descriptors = _embed(model, maps, texts, asked, kind)
        if kind != QUERY_KINDS[1]:
            allowed = ({name: (v,) for name, v in dataset.findings[n].items()} for n in asked)
            stated = zip(descriptors, allowed, strict=True)
            descriptors = np.stack([state(d, values, config.concepts, layout) for d, values in stated])
        best = ((descriptors * weights) @ cases.T).max(1)
        limits[kind] = float(np.quantile(best, SHARE, method="lower"))
    return limits


def _embed(model: Skinret, maps: ImageMaps, texts: CaseTexts, indices: Indices, kind: str) -> Vector:
    """Return descriptors [N, D] of cases as queries of a kind, in their first view and wording."""
    descriptors = []
    for batch in np.array_split(indices, -(-len(indices) // _BATCH)):
        first = np.zeros(len(batch), np.int64)
        x, words = maps(batch, first), None
        if kind != QUERY_KINDS[1]:
            if kind == QUERY_KINDS[2]:
                low, mid, high = (torch.zeros_like(m) for m in x)
                x = (low, mid, high)
            x = model.composer(*x, *texts.get(model, batch, first))
            words = torch.ones(len(batch), device=x[0].device)
        descriptors.append(model.similarity_head(*x, words)[0].cpu().numpy())
    return np.concatenate(descriptors)


def _low(model: Skinret, pixels: Pixels) -> torch.Tensor:
    """Return the low maps of the backbone, (B, h, w, d)."""
    device = next(model.parameters()).device
    maps: Maps = model.visual_encoder.backbone_maps(torch.from_numpy(pixels).to(device))
    return maps[0]


def _pool(lows: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([Typicality.pool(low).cpu() for low in lows])


def _pooled_files(model: Skinret, files: list[Path], image: ImageRecipe, cache: Path) -> torch.Tensor:
    """Return the pooled low maps of files, float32 [M, d], from the cache if it has them."""
    facts = (image, model.config.max_map_size, model.config.mean, model.config.std, *map(file_sha256, files))
    path = cache / f"others-{encoder_key(model.visual_encoder.backbone, repr(facts).encode())}.npy"
    if not path.is_file():
        groups = (files[start : start + _BATCH] for start in range(0, len(files), _BATCH))
        pooled = _pool(_low(model, np.stack([_read(file, image) for file in group])) for group in groups)
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, pooled.numpy())
    return torch.from_numpy(np.load(path))


def _read(path: Path, image: ImageRecipe) -> Pixels:
    try:
        return preprocess(decode(path), image)
    except InputError as error:
        error.add_note(f"This is the picture {path}, of those that are unlike dermoscopy.")
        raise
