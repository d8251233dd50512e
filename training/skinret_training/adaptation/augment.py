"""Augmentation of dermoscopy: where the dermoscope stood, its light, hair, and the dark rim of its lens."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from skinret_infer.imaging.recipe import ImageRecipe, Pixels, preprocess

Array = npt.NDArray[np.float32]
_MARGIN = 1.4  # of the square that is turned and scaled, to the side of the result
_SCALE = (0.75, 1.15)  # the part of the picture's side that the result shows
_HAIR, _RIM, _BLUR = 0.2, 0.15, 0.15  # how often


def augment(pixels: Pixels, recipe: ImageRecipe, rng: np.random.Generator) -> Pixels:
    """H x W x 3 uint8 -> S x S x 3 uint8: the picture of the recipe, in another position and light."""
    size = recipe.size
    work = round(size * _MARGIN)
    large = ImageRecipe(size=work, fit=recipe.fit, resample=recipe.resample)
    x = _move(preprocess(pixels, large), size, rng)
    if rng.random() < _BLUR:
        x = x.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)) * size / 224))
    if rng.random() < _HAIR:
        _draw_hair(x, rng)
    colours = _recolour(np.asarray(x, np.float32) / np.float32(255), rng)
    if rng.random() < _RIM:
        colours *= _rim(size, rng)[..., None]
    return (colours.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _move(pixels: Pixels, size: int, rng: np.random.Generator) -> Image.Image:
    """Turn by any angle, mirror, scale, stretch and shift. What lies outside mirrors the picture."""
    work = len(pixels)
    border = work * 2 // 5
    padded = np.pad(pixels, ((border, border), (border, border), (0, 0)), "reflect")
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(*_SCALE)
    stretch, slack = np.exp(rng.uniform(-0.1, 0.1)), 0.05 + max(0.0, 1 - scale) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    flip = np.diag([rng.choice([-1.0, 1.0]) * stretch, 1 / stretch])
    matrix = turn @ flip * scale * work / size  # from the result to the picture
    centre = work / 2 + border + rng.uniform(-slack, slack, 2) * work
    offset = centre - matrix @ [size / 2, size / 2]
    affine = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    return Image.fromarray(padded).transform(
        (size, size), Image.Transform.AFFINE, tuple(map(float, affine)), Image.Resampling.BICUBIC
    )


def _recolour(x: Array, rng: np.random.Generator) -> Array:
    """Change brightness, the tint of the light, contrast and saturation of RGB in [0, 1]."""
    x = x ** np.float32(np.exp(rng.uniform(-0.25, 0.25)))
    x = x * np.exp(rng.uniform(-0.15, 0.15) + rng.uniform(-0.08, 0.08, 3)).astype(np.float32)
    mean = x.mean((0, 1))
    x = (x - mean) * np.float32(np.exp(rng.uniform(-0.2, 0.2))) + mean
    grey = x.mean(-1, keepdims=True)
    saturation = np.float32(np.exp(rng.uniform(-0.3, 0.3)))
    return np.asarray(grey + (x - grey) * saturation, np.float32)


def _draw_hair(x: Image.Image, rng: np.random.Generator) -> None:
    """Draw some dark, bent lines, most of them in one direction."""
    size = x.size[0]
    draw = ImageDraw.Draw(x)
    direction = rng.uniform(0, 2 * np.pi)
    t = np.linspace(0, 1, 12)[:, None]
    for _ in range(int(rng.integers(2, 12))):
        angle = direction + rng.normal(0, 0.4)
        start = rng.uniform(0, size, 2)
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        length, bend = rng.uniform(0.3, 1.2) * size, rng.normal(0, 0.15) * size
        points = start + along * (t - 0.5) * length + across * bend * (2 * t - 1) ** 2
        colour = tuple(int(c) for c in rng.integers(10, 70) + rng.integers(0, 15, 3))
        draw.line([(float(a), float(b)) for a, b in points], fill=colour, width=int(rng.integers(1, 3)))


def _rim(size: int, rng: np.random.Generator) -> Array:
    """Return the light that the lens lets through: 1 inside a circle, less outside it."""
    centre = size * (0.5 + rng.uniform(-0.05, 0.05, 2))
    radius, width, dark = (
        size * rng.uniform(0.5, 0.68),
        size * rng.uniform(0.01, 0.12),
        rng.uniform(0.05, 0.7),
    )
    y, x = np.mgrid[:size, :size]
    outside = (np.hypot(x - centre[0], y - centre[1]) - radius) / width
    return np.asarray(1 - (1 - dark) * outside.clip(0, 1), np.float32)
