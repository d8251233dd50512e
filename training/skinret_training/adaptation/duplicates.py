"""The search for copies of the evaluation's pictures, whatever their size, format and orientation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from skinret_infer.imaging.recipe import ImageRecipe, Pixels, pixel_sha256, preprocess

Array = npt.NDArray[np.float32]
_COARSE, _FINE = 16, 64  # sides of the thumbnails
COARSE_LEAST, FINE_LEAST = 0.9, 0.8  # correlations of a pair that is taken for one picture
_NOISE = 4.0  # grey levels; less contrast in a cell is no detail
_CROPS = ("squash", "crop")
_CHUNK = 1000  # pictures whose orientations are in memory at once, about 300 MB
_LIKELIEST = 32


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """What N pictures are compared by."""

    sha256: list[str]  # of the decoded pixels
    thumbnails: npt.NDArray[np.uint8]  # [N, 2, 64, 64], grey, of the whole picture and of its central square


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures that show the same: their indices, and correlations of their thumbnails (1: equal).

    coarse : of thumbnails of 16 x 16.
    fine : of the details of thumbnails of 64 x 64.
    """

    first: int
    second: int
    equal: bool  # pixel by pixel
    coarse: float
    fine: float


def fingerprints(pictures: Iterable[Pixels]) -> Fingerprints:
    """Return what decoded pictures are compared by."""
    hashes, thumbnails = [], []
    for pixels in pictures:
        hashes.append(pixel_sha256(pixels))
        thumbnails.append([_thumbnail(pixels, fit) for fit in _CROPS])
    return Fingerprints(hashes, np.array(thumbnails, np.uint8).reshape(-1, len(_CROPS), _FINE, _FINE))


def _thumbnail(pixels: Pixels, fit: str) -> npt.NDArray[np.uint8]:
    square = preprocess(pixels, ImageRecipe(size=_FINE, fit=fit, resample="bilinear"))
    return np.asarray(Image.fromarray(square).convert("L"))


def find_pairs(first: Fingerprints, second: Fingerprints) -> list[Pair]:
    """Return the pairs of pictures that show the same, the best pair of each picture of `first`."""
    wanted = {sha: n for n, sha in enumerate(second.sha256)}
    nearest = [(0, -1.0, -1.0)] * len(first.sha256)  # index, coarse and fine correlation
    for start in range(0, len(second.sha256), _CHUNK):
        found = _nearest(first.thumbnails, second.thumbnails[start : start + _CHUNK])
        for n, (index, coarse, fine) in enumerate(found):
            if fine > nearest[n][2]:
                nearest[n] = (start + index, coarse, fine)
    pairs = []
    for n, (index, coarse, fine) in enumerate(nearest):
        if (twin := wanted.get(first.sha256[n])) is not None:
            pairs.append(Pair(n, twin, True, 1.0, 1.0))
        elif coarse >= COARSE_LEAST and fine >= FINE_LEAST:
            pairs.append(Pair(n, index, False, round(coarse, 3), round(fine, 3)))
    return pairs


def _nearest(
    first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]
) -> Iterator[tuple[int, float, float]]:
    """Yield the nearest of `second` for each picture of `first`, in any orientation and either crop.

    The coarse thumbnails of two lesions can be very alike, so the details of the likeliest few decide.
    """
    turned = np.stack([_turn(second, view) for view in range(8)])  # [8, M, 2, 64, 64]
    views = 8 * len(second) * len(_CROPS)
    keys, details = _unit(_shrink(turned)).reshape(views, -1), _details(turned).reshape(views, -1)
    for picture in first:
        scores = (_unit(_shrink(picture)).reshape(len(_CROPS), -1) @ keys.T).ravel()  # [2 * views]
        own = _details(picture).reshape(len(_CROPS), -1)
        likeliest = np.argpartition(-scores, min(_LIKELIEST, scores.size - 1))[:_LIKELIEST]
        fine = [float(own[i // views] @ details[i % views]) for i in likeliest]
        best = int(np.argmax(fine))
        index = likeliest[best] % views // len(_CROPS) % len(second)
        yield int(index), float(scores[likeliest[best]]), fine[best]


def _turn(x: npt.NDArray[np.uint8], view: int) -> npt.NDArray[np.uint8]:
    turned = np.rot90(x, view % 4, axes=(-2, -1))
    return turned[..., ::-1] if view >= 4 else turned


def _shrink(x: npt.NDArray[np.uint8]) -> Array:
    step = _FINE // _COARSE
    cells = x.reshape(*x.shape[:-2], _COARSE, step, _COARSE, step)
    return np.asarray(cells.mean((-3, -1)), np.float32)


def _details(x: npt.NDArray[np.uint8]) -> Array:
    """Return thumbnails without what the coarse ones show, as unit vectors.

    A cell of strong contrast, such as the rim of the picture, counts little more than any other.
    """
    step = _FINE // _COARSE
    cells = x.reshape(*x.shape[:-2], _COARSE, step, _COARSE, step).astype(np.float32)
    cells -= cells.mean((-3, -1), keepdims=True)
    cells /= cells.std((-3, -1), keepdims=True) + np.float32(_NOISE)
    return _unit(cells.reshape(x.shape))


def _unit(x: Array) -> Array:
    """Return images [..., h, w] with mean zero and length one."""
    x = x - x.mean((-2, -1), keepdims=True)
    length = np.sqrt((x * x).sum((-2, -1), keepdims=True))
    return np.asarray(x / np.maximum(length, 1e-6), np.float32)
