"""The image recipe: how the pixels of a picture become the input of the visual encoder."""

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import InputError

Pixels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """How pixels become the input of the visual encoder. The manifest holds it; training uses it too."""

    size: int = 224  # the side of the square that the encoder sees, in pixels
    fit: str = "crop"  # "crop": the central square; "squash": the whole picture, scaled to a square
    resample: str = "bicubic"  # Pillow's antialiased filter of that name
    orientation: str = "exif"  # the EXIF orientation is applied
    decode: str = "rgb8"  # 8-bit sRGB; alpha over white; 16 bits, CMYK, palettes and ICC profiles converted

    def __post_init__(self) -> None:
        allowed = {
            "fit": ("crop", "squash"),
            "resample": ("bicubic", "bilinear"),
            "orientation": ("exif",),
            "decode": ("rgb8",),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise InputError(
                    f"image recipe: {name} cannot be used",
                    code="recipe-unknown",
                    expected=" or ".join(values),
                    found=repr(getattr(self, name)),
                    cure="update skinret-infer",
                )
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise InputError(
                "image recipe: size cannot be used",
                code="recipe-unknown",
                expected="an int of at least 1",
                found=repr(self.size),
            )


def preprocess(pixels: Pixels, recipe: ImageRecipe) -> Pixels:
    """Resize H x W x 3 uint8 pixels to the S x S x 3 square of the recipe."""
    resample = Image.Resampling[recipe.resample.upper()]
    box = crop_box(pixels, recipe)
    return np.asarray(Image.fromarray(pixels).resize((recipe.size, recipe.size), resample, box=box))


def crop_box(pixels: Pixels, recipe: ImageRecipe) -> tuple[float, float, float, float]:
    """Return the part of a picture that the encoder sees: left, top, right, bottom in pixels."""
    height, width, _ = pixels.shape
    if recipe.fit == "squash":
        return 0, 0, width, height
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def pixel_sha256(pixels: Pixels) -> str:
    """Return the SHA-256 of the shape and the RGB bytes of a picture, whatever its file format."""
    sha = hashlib.sha256(np.asarray(pixels.shape, np.int64).tobytes())
    sha.update(np.ascontiguousarray(pixels).data)
    return sha.hexdigest()
