"""Mask and texture: handcrafted features of the lesion, and a frozen map averaged inside its mask.

After Iqbal et al., IEEE Access 11, 2023, which fuses a Mask R-CNN's features with a global-local pyramid
pattern (GLPP), Zernike moments and Haralick's features. Here the mask is Otsu's threshold, and GLPP is read
as local binary patterns of the picture and of its quarters at three sizes. Each block of features has mean 0
and variance 1 over the training folds, divided by the root of its length, so that blocks count alike. The
score is their cosine.
"""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from skinret_infer._extras import missing_extra
from skinret_infer.imaging.recipe import Pixels

from ..data import Indices, Split
from ..train import TrainConfig
from .base import IMAGE_ONLY, RECONSTRUCTION, Array, Ranker, System, Uses, fixed
from .heads import by_cosine
from .inputs import Inputs, in_batches

_SMALLEST = 400 / 224**2  # of a mask, as a share of the picture; a smaller one is the whole disc
_DEGREE, _RADIUS = 8, 1.3  # of Zernike's polynomials; radius relative to a disc of the lesion's area
_POINTS, _SIZES = 8, 3  # of a local binary pattern
_BATCH = 64


def lesion_mask(pixels: Pixels) -> npt.NDArray[np.bool_]:
    """Return where the lesion is in a picture [S, S, 3]: the most central dark part, or the whole disc."""
    size = len(pixels)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = np.hypot(y, x) <= size / 2
    light = ndimage.gaussian_filter(pixels[..., :2].mean(-1), size / 112)
    levels = np.clip(light[disc], 0, 255).astype(np.uint8)
    dark = disc & (light <= _mahotas().otsu(levels))
    dark = ndimage.binary_fill_holes(ndimage.binary_opening(dark, iterations=2))
    parts, count = ndimage.label(dark)
    if count:
        distance = np.hypot(y, x)
        # By the mean distance of its pixels from the centre; a large part in the middle beats a speck there.
        sizes = ndimage.sum_labels(dark, parts, range(1, count + 1))
        means = ndimage.mean(distance, parts, range(1, count + 1))
        best = int(np.argmin(np.where(sizes < _SMALLEST * size**2, np.inf, means))) + 1
        if sizes[best - 1] >= _SMALLEST * size**2:
            return np.asarray(parts == best)
    return np.asarray(disc)


def textures(pixels: Pixels, mask: npt.NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Return Haralick's 13 features, Zernike's 25 moments, and 540 numbers of local binary patterns."""
    features = _mahotas().features
    grey = np.rint(pixels.mean(-1)).astype(np.uint8)
    rows, columns = (slice(int(v.min()), int(v.max()) + 1) for v in np.nonzero(mask))
    haralick = features.haralick(grey[rows, columns]).mean(0)
    radius = _RADIUS * np.sqrt(mask.sum() / np.pi)
    zernike = features.zernike_moments(grey * mask, radius, _DEGREE, cm=ndimage.center_of_mass(mask))
    patterns = []
    for n in range(_SIZES):
        small = grey[:: 2**n, :: 2**n]
        half = len(small) // 2
        parts = [small, *(small[i : i + half, j : j + half] for i in (0, half) for j in (0, half))]
        for part in parts:
            histogram = features.lbp(np.ascontiguousarray(part), 1, _POINTS)
            patterns.append(histogram / max(histogram.sum(), 1))
    first, second, third = (np.asarray(x, np.float32) for x in (haralick, zernike, np.concatenate(patterns)))
    return first, second, third


def _mahotas() -> Any:
    """Return mahotas. Raises MissingExtra if it cannot be imported."""
    try:
        import mahotas
    except ImportError as error:
        raise missing_extra("textures cannot be computed", error, "compare") from None
    return mahotas


def _blocks(inputs: Inputs) -> list[Array]:
    """Return the textures of all cases, and the mean of the last map inside the mask and whole."""
    masks = [lesion_mask(picture) for picture in inputs.pixels]
    rows = [textures(picture, mask) for picture, mask in zip(inputs.pixels, masks, strict=True)]
    inside, whole = [], []
    for part in in_batches(np.arange(len(masks)), _BATCH):
        high = inputs.maps(part, np.zeros(len(part), np.int64))[2].cpu().numpy()
        for x, mask in zip(high, (masks[n] for n in part), strict=True):
            weight = _on_grid(mask, len(x))
            inside.append((x * weight[..., None]).sum((0, 1)) / weight.sum())
            whole.append(x.mean((0, 1)))
    return [*(np.stack(column) for column in zip(*rows, strict=True)), np.stack(inside), np.stack(whole)]


def _on_grid(mask: npt.NDArray[np.bool_], side: int) -> Array:
    """Return the share of the mask in each cell of a grid."""
    edge = len(mask) // side * side
    cells = mask[:edge, :edge].reshape(side, edge // side, side, edge // side)
    share: Array = cells.mean((1, 3), dtype=np.float32)
    return share if share.any() else np.ones_like(share)


def _fit(visual: bool, inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
    blocks = inputs.stored("textures", lambda: _blocks(inputs))
    chosen = blocks if visual else blocks[:3]
    scaled = [_scaled(block, subsets.archive) for block in chosen]
    features = np.concatenate(scaled, 1)
    return fixed({IMAGE_ONLY: by_cosine(features[subsets.test], features)})


def _scaled(block: Array, archive: Indices) -> Array:
    training = block[archive]
    scaled: Array = (block - training.mean(0)) / (training.std(0) + np.float32(1e-6))
    return np.clip(scaled, -5, 5) / np.float32(block.shape[1] ** 0.5)


_SOURCE = "Iqbal et al., fusion of textural and visual features, IEEE Access 11, 2023"
_DEVIATIONS = (
    "Otsu's threshold in place of Mask R-CNN; local binary patterns in three sizes in place of GLPP.",
    "The rule of fusion is not known: here blocks of equal weight and the cosine.",
)
TEXTURE = System(
    name="texture",
    source=_SOURCE,
    fidelity=RECONSTRUCTION,
    deviations=("The handcrafted features alone.", *_DEVIATIONS),
    uses=Uses(),
    ready=_mahotas,
    fit=partial(_fit, False),
)
MASK_TEXTURE = System(
    name="mask-texture",
    source=_SOURCE,
    fidelity=RECONSTRUCTION,
    deviations=_DEVIATIONS,
    uses=Uses(),
    ready=_mahotas,
    fit=partial(_fit, True),
)
