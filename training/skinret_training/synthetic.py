"""Synthetic Derm7pt-style cases: lesions drawn by a program.

The picture of a table row shows every criterion of the row, so that training, search and export run end to
end where Derm7pt is not allowed. The pictures are stylised: they do not replace dermoscopy.
"""

import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["draw_lesion", "random_lesions", "write_dataset"]

Array = NDArray[np.floating[Any]]
Point = tuple[float, float]
Colour = tuple[int, int, int]

_HEADER = (
    "case_num,diagnosis,seven_point_score,pigment_network,streaks,pigmentation,regression_structures,"
    "dots_and_globules,blue_whitish_veil,vascular_structures,level_of_diagnostic_difficulty,elevation,location,"
    "sex,management,clinic,derm,case_id,notes"
)
_GROUPS = ("mel", "nevus", "bkl")
_BLOCK = np.repeat(np.arange(3), (7, 9, 4))  # of every 20 cases: 35 % mel, 45 % nevus, 20 % bkl
_DIAGNOSES = {
    "mel": {"melanoma (in situ)": 0.3, "melanoma (less than 0.76 mm)": 0.4, "melanoma (0.76 to 1.5 mm)": 0.3},
    "nevus": {"clark nevus": 0.65, "reed or spitz nevus": 0.2, "dermal nevus": 0.15},
    "bkl": {"seborrheic keratosis": 0.8, "melanosis": 0.2},
}
# Chance in percent of each word in (mel, nevus, bkl). A criterion's first word is its default. The groups
# overlap on purpose: the words alone identify the group of about 85 % of the cases. Pictures overlap too.
_CRITERIA: dict[str, dict[str, tuple[int, int, int]]] = {
    "pigment_network": {"absent": (22, 20, 82), "typical": (18, 66, 12), "atypical": (60, 14, 6)},
    "streaks": {"absent": (38, 70, 92), "regular": (12, 22, 3), "irregular": (50, 8, 5)},
    "pigmentation": {
        "absent": (14, 24, 42), "diffuse regular": (14, 50, 42),
        "diffuse irregular": (44, 15, 10), "localized irregular": (28, 11, 6),
    },
    "regression_structures": {
        "absent": (52, 86, 84), "blue areas": (18, 6, 6),
        "white areas": (14, 5, 7), "combinations": (16, 3, 3),
    },
    "dots_and_globules": {"absent": (26, 24, 76), "regular": (14, 60, 14), "irregular": (60, 16, 10)},
    "blue_whitish_veil": {"absent": (54, 94, 95), "present": (46, 6, 5)},
    "vascular_structures": {
        "absent": (64, 76, 56), "dotted": (22, 7, 3), "comma": (4, 12, 3), "hairpin": (7, 3, 34),
        "arborizing": (3, 2, 4),
    },
    "elevation": {"flat": (36, 46, 22), "palpable": (42, 36, 54), "nodular": (22, 18, 24)},
}  # fmt: skip
# The checklist's weights. Vessels score 0 here, though Derm7pt scores "dotted" ones 2.
_SCORES = {
    "pigment_network": (2, ("atypical",)),
    "blue_whitish_veil": (2, ("present",)),
    "streaks": (1, ("irregular",)),
    "dots_and_globules": (1, ("irregular",)),
    "pigmentation": (1, ("diffuse irregular", "localized irregular")),
    "regression_structures": (1, ("blue areas", "white areas", "combinations")),
}
_LOCATIONS = ("back", "lower limbs", "abdomen", "upper limbs", "chest", "head neck", "acral")

# Appearance of a diagnosis beyond the criteria: outline asymmetry, width of the border, strength of further
# colours, chance of a waxy stuck-on surface. Each case varies around them: cues, not labels.
_LOOKS = {
    "melanoma": (0.75, 0.05, 0.65, 0.04),
    "melanosis": (0.45, 0.03, 0.10, 0.0),
    "seborrheic keratosis": (0.34, 0.02, 0.22, 0.85),
    "": (0.15, 0.07, 0.12, 0.04),  # a nevus
}
_OVERSAMPLING = 2  # draw larger and average down, for smooth edges
_TAN, _BROWN, _DARK, _BLACK = (196, 146, 106), (156, 102, 66), (84, 50, 32), (44, 30, 26)
_YELLOW, _PINK, _RED, _WHITE = (190, 148, 88), (224, 150, 138), (186, 28, 38), (240, 226, 220)
_BLUE, _HAZE, _GREY = (86, 104, 142), (184, 194, 210), (94, 106, 126)


def draw_lesion(
    attributes: Mapping[str, str], rng: np.random.Generator, size: tuple[int, int] = (192, 128)
) -> Image.Image:
    """Draw one lesion, as an RGB picture, that shows the criteria named in `attributes`.

    Parameters
    ----------
    attributes
        Derm7pt columns and their exact words. A missing criterion is absent (elevation: flat). A word that
        cannot be drawn raises ValueError. `diagnosis` only sets the appearance; the default is a nevus.
    rng
        It gives each layer its own stream: with the same seed, another word changes only its feature.
    size
        (width, height) in pixels. Less than 32 raises ValueError.
    """
    if min(size) < 32:
        raise ValueError(f"size {size} is too small to show the criteria: give at least 32 pixels a side")
    words = {column: attributes.get(column, next(iter(known))) for column, known in _CRITERIA.items()}
    for column, word in words.items():
        if word not in _CRITERIA[column]:
            raise ValueError(f"{column} {word!r} cannot be drawn. Known words: {list(_CRITERIA[column])}")
    streams = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=11))  # one for each layer
    lesion = _lay_out(attributes.get("diagnosis", ""), size, next(streams))
    picture = _draw_skin(lesion, next(streams))
    _draw_pigmentation(picture, lesion, words["pigmentation"], next(streams))
    _draw_network(picture, lesion, words["pigment_network"], next(streams))
    _draw_waxy_surface(picture, lesion, next(streams))
    _draw_regression(picture, lesion, words["regression_structures"], next(streams))
    _draw_veil(picture, lesion, words["blue_whitish_veil"], next(streams))
    _draw_globules(picture, lesion, words["dots_and_globules"], next(streams))
    _draw_streaks(picture, lesion, words["streaks"], next(streams))
    _draw_vessels(picture, lesion, words["vascular_structures"], next(streams))
    _shade(picture, lesion, words["elevation"])
    _draw_hairs(picture, lesion, next(streams))
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).reduce(_OVERSAMPLING)


def random_lesions(
    n: int, seed: int, size: tuple[int, int] = (192, 128)
) -> Iterator[tuple[dict[str, str], Image.Image]]:
    """Yield `n` rows of a Derm7pt table, each with its picture.

    A case depends on `seed` and its number only: a longer run begins with the cases of a shorter one.
    """
    for index in range(n):
        block, turn = divmod(index, len(_BLOCK))
        group = int(np.random.default_rng([seed, 0, block]).permutation(_BLOCK)[turn])
        rng = np.random.default_rng([seed, 1, index])
        row = _random_row(index + 1, group, rng)
        yield row, draw_lesion(row, rng, size)


def write_dataset(folder: Path, cases: int = 300, seed: int = 0, size: tuple[int, int] = (192, 128)) -> Path:
    """Write `meta/meta.csv` and `images/SYN/syn0001.jpg ...` in Derm7pt's layout; return `folder`.

    The folder appears complete or not at all. Raises FileExistsError if `folder` is a file or is not empty,
    ValueError if `cases` is less than 1 or `size` is too small.
    """
    if cases < 1:
        raise ValueError(f"cases must be at least 1, got {cases}")
    target = folder.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder: name another, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        build = Path(scratch) / "build"
        (build / "images" / "SYN").mkdir(parents=True)
        (build / "meta").mkdir()
        with (build / "meta" / "meta.csv").open("w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, _HEADER.split(","))
            writer.writeheader()
            for row, picture in random_lesions(cases, seed, size):
                picture.save(build / "images" / row["derm"], quality=92)
                writer.writerow(row)
        if target.exists():
            target.rmdir()  # outside POSIX a rename does not replace even an empty folder
        build.replace(target)
    return folder


def _random_row(number: int, group: int, rng: np.random.Generator) -> dict[str, str]:
    row = dict.fromkeys(_HEADER.split(","), "") | {"case_num": str(number)}
    names = _DIAGNOSES[_GROUPS[group]]
    row["diagnosis"] = str(rng.choice(list(names), p=list(names.values())))
    for column, words in _CRITERIA.items():
        row[column] = str(rng.choice(list(words), p=[chances[group] / 100 for chances in words.values()]))
    score = sum(weight for column, (weight, words) in _SCORES.items() if row[column] in words)
    row["seven_point_score"] = str(score)
    row["level_of_diagnostic_difficulty"] = str(rng.choice(["low", "medium", "high"]))
    row["location"], row["sex"] = str(rng.choice(_LOCATIONS)), str(rng.choice(["female", "male"]))
    no_excision = "clinical follow up" if score else "no further examination"
    row["management"] = "excision" if group == 0 or score >= 3 else no_excision
    row["clinic"] = row["derm"] = f"SYN/syn{number:04d}.jpg"
    row["notes"] = "synthetic: drawn by a program; clinic repeats derm"
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lesion:
    """The places of a lesion. Unit: half of the picture's short side; origin: the lesion's centre."""

    scale: float  # canvas pixels in one unit
    x: Array  # (h, w)
    y: Array  # (h, w)
    outline: Array  # (361,) radius at each degree
    depth: Array  # (h, w) outline's radius minus distance from the centre: positive inside
    body: Array  # (h, w) coverage in [0, 1], soft at the border
    turn: float  # direction in radians of the first place of a local feature
    colours: float  # strength of patches of further colours, 0 to 1
    waxy: bool  # the stuck-on surface of a seborrheic keratosis

    def at(self, angle: float, fraction: float) -> Point:
        """Return the point at `fraction` of the radius in a direction."""
        radius = fraction * float(np.interp(np.degrees(angle) % 360, np.arange(361), self.outline))
        return radius * float(np.cos(angle)), radius * float(np.sin(angle))

    def place(self, index: int) -> Point:
        """Return one of five places, far enough apart that local features do not hide each other."""
        return self.at(self.turn + index * 2 * np.pi / 5, 0.5)


def _lay_out(diagnosis: str, size: tuple[int, int], rng: np.random.Generator) -> _Lesion:
    asymmetry, softness, colours, waxy = next(v for name, v in _LOOKS.items() if diagnosis.startswith(name))
    asymmetry, colours = np.clip(rng.normal([asymmetry, colours], 0.2), 0, 1)
    softness = np.clip(softness * rng.lognormal(0, 0.45), 0.012, 0.14)
    width, height = (side * _OVERSAMPLING for side in size)
    scale = min(width, height) / 2
    rows, columns = np.indices((height, width), np.float32)
    x_shift, y_shift = rng.uniform(-0.07, 0.07, 2)
    x, y = (columns - width / 2) / scale - x_shift, (rows - height / 2) / scale - y_shift

    angle = np.radians(np.arange(361))
    wave = rng.uniform(0.02, 0.08) * np.cos(2 * (angle - rng.uniform(0, np.pi)))
    for order in range(1, 9):  # low orders bend the outline, high orders notch it
        strength = rng.normal() * (0.02 + 0.34 * asymmetry) / (order + 1.5)
        wave += strength * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    outline = np.clip(rng.uniform(0.6, 0.7) * (1 + wave), 0.4, 0.82)
    degree = np.degrees(np.arctan2(y, x)) % 360
    depth = np.interp(degree, np.arange(361), outline).astype(np.float32) - np.hypot(x, y)
    body, turn, waxy = _ramp(depth, -softness, softness), rng.uniform(0, 2 * np.pi), rng.random() < waxy
    return _Lesion(
        scale=scale, x=x, y=y, outline=outline, depth=depth, body=body, turn=turn, colours=colours, waxy=waxy
    )


def _ramp(values: Array, start: float, end: float) -> Array:
    """Return a smooth step: 0 where `values` is `start`, 1 where it is `end`."""
    t: Array = np.clip((values - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _noise(lesion: _Lesion, cell: float, rng: np.random.Generator) -> Array:
    """Return smooth noise of zero mean and unit variance with bumps about `cell` units wide."""
    height, width = lesion.x.shape
    grid = rng.standard_normal([max(4, round(3 * side / (cell * lesion.scale))) for side in (height, width)])
    for axis in (0, 1, 0, 1):  # a round kernel: bumps without the grid's corners
        grid = 2 * grid + np.roll(grid, 1, axis) + np.roll(grid, -1, axis)
    coarse = Image.fromarray(((grid - grid.mean()) / grid.std()).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _paint(picture: Array, colour: Colour, coverage: Array) -> None:
    picture += coverage[..., None] * (np.asarray(colour, np.float32) - picture)


def _patch(lesion: _Lesion, centre: Point, radius: float, rng: np.random.Generator) -> Array:
    """Return the coverage of a soft ragged area of the lesion."""
    distance = np.hypot(lesion.x - centre[0], lesion.y - centre[1]) + 0.06 * _noise(lesion, 0.2, rng)
    return _ramp(distance, radius + 0.08, radius - 0.07) * _ramp(lesion.depth, -0.03, 0.07)


def _stamp(lesion: _Lesion, discs: Array) -> Array:
    """Return the coverage of discs, which are rows of x, y, radius."""
    mask = Image.new("L", lesion.x.shape[::-1])
    pen = ImageDraw.Draw(mask)
    for x, y, radius in (discs - np.array([lesion.x[0, 0], lesion.y[0, 0], 0])) * lesion.scale:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    blurred = mask.filter(ImageFilter.GaussianBlur(0.013 * lesion.scale))
    return np.asarray(blurred, np.float32) / 255


def _stroke(points: Sequence[Point], start: float, end: float, steps: int = 24) -> Array:
    """Return discs along a quadratic Bezier curve, with a radius from `start` to `end`."""
    t = np.linspace(0, 1, steps)[:, None]
    a, b, c = np.asarray(points, float)
    path: Array = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    return np.hstack([path, start + (end - start) * t])


def _move(discs: Array, centre: Array, turn: float) -> Array:
    """Rotate discs about the origin, then shift them to `centre`."""
    x, y, radius = discs.T
    across, down = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
    return np.column_stack([across + centre[0], down + centre[1], radius])


def _draw_skin(lesion: _Lesion, rng: np.random.Generator) -> Array:
    mix = rng.uniform()
    tone = mix * np.array([240, 200, 182]) + (1 - mix) * np.array([218, 170, 140])
    grain = 9 * _noise(lesion, 0.8, rng) + 4 * _noise(lesion, 0.07, rng) + 2 * _noise(lesion, 0.02, rng)
    picture: Array = (tone + grain[..., None] * np.array([0.7, 1, 1])).astype(np.float32)
    return picture


def _draw_pigmentation(picture: Array, lesion: _Lesion, word: str, rng: np.random.Generator) -> None:
    opacity = {"absent": 0.55, "localized irregular": 0.72}.get(word, 0.9)
    brown = _TAN if opacity < 0.9 else _BROWN
    _paint(picture, _YELLOW if lesion.waxy else brown, opacity * lesion.body)
    for colour, cell in ((_DARK, 0.5), (_PINK, 0.6), (_YELLOW, 0.5)):
        shade = 0.7 * lesion.colours * _ramp(_noise(lesion, cell, rng), 0.1, 1.3)
        _paint(picture, colour, shade * lesion.body)
    if word == "diffuse regular":  # an even brown, darker towards the middle
        _paint(picture, _DARK, 0.4 * _ramp(np.hypot(lesion.x, lesion.y), 0.6, 0.0) * lesion.body)
    elif word == "diffuse irregular":
        blotches = _noise(lesion, 0.3, rng)
        light, dark = np.quantile(blotches[lesion.depth > 0], (0.3, 0.68))
        _paint(picture, _TAN, 0.7 * _ramp(blotches, light + 0.2, light - 0.2) * lesion.body)
        _paint(picture, _BLACK, 0.85 * _ramp(blotches, dark - 0.25, dark + 0.25) * lesion.body)
    elif word == "localized irregular":
        _paint(picture, _BLACK, 0.95 * _patch(lesion, lesion.place(4), 0.26, rng))


def _draw_network(picture: Array, lesion: _Lesion, word: str, rng: np.random.Generator) -> None:
    if word == "absent":
        return
    pitch, warp = (0.13, 0.012) if word == "typical" else (0.17, 0.05)
    x, y = lesion.x + warp * _noise(lesion, 0.25, rng), lesion.y + warp * _noise(lesion, 0.25, rng)
    # Three plane waves 120 degrees apart peak in the holes of a honeycomb and are lowest along its walls.
    wave_number = np.float32(4 * np.pi / (np.sqrt(3) * pitch))
    waves = np.zeros_like(x)
    for angle in rng.uniform(0, np.pi) + np.arange(3) * 2 * np.pi / 3:
        waves += np.cos(wave_number * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y))
    if word == "typical":  # even thin walls that fade at the border
        _paint(picture, (94, 56, 36), 0.85 * _ramp(waves, -0.55, -1.0) * _ramp(lesion.depth, 0.0, 0.25))
    else:  # walls of changing width, dark, in patches, cut off at the border
        walls = _ramp(waves - 0.35 * _noise(lesion, 0.3, rng), -0.3, -0.7)
        patchy = 0.3 + 0.7 * _ramp(_noise(lesion, 0.5, rng), -0.6, 0.1)
        _paint(picture, _BLACK, 0.92 * walls * patchy * _ramp(lesion.depth, 0.0, 0.05))


def _scatter(lesion: _Lesion, count: int, smallest: float, largest: float, rng: np.random.Generator) -> Array:
    """Place discs of different sizes anywhere in the lesion."""
    angles, fractions = rng.uniform(0, 2 * np.pi, count), 0.85 * np.sqrt(rng.uniform(0, 1, count))
    points = [lesion.at(angle, fraction) for angle, fraction in zip(angles, fractions, strict=True)]
    return np.column_stack([points, rng.uniform(smallest, largest, count)])


def _draw_waxy_surface(picture: Array, lesion: _Lesion, rng: np.random.Generator) -> None:
    """Add milia-like cysts and ringed comedo-like openings on an uneven ground, if the lesion is waxy."""
    if not lesion.waxy:
        return
    _paint(picture, (224, 190, 130), 0.4 * _ramp(_noise(lesion, 0.13, rng), 0.1, 1.2) * lesion.body)
    _paint(picture, (250, 240, 205), 0.95 * _stamp(lesion, _scatter(lesion, 12, 0.028, 0.045, rng)))
    openings = _scatter(lesion, 4, 0.055, 0.08, rng)
    _paint(picture, (218, 170, 96), 0.8 * _stamp(lesion, openings * np.array([1, 1, 1.45])))
    _paint(picture, (136, 82, 24), 0.9 * _stamp(lesion, openings))


def _draw_globules(picture: Array, lesion: _Lesion, word: str, rng: np.random.Generator) -> None:
    if word == "regular":  # equal brown dots on a lattice
        rows, columns = np.mgrid[-5:6, -5:6]
        lattice = 0.26 * np.stack([columns + rows % 2 / 2, rows * np.sqrt(0.75), 0.24 + 0 * rows], axis=-1)
        discs = _move(lattice.reshape(-1, 3), rng.uniform(-0.05, 0.05, 2), rng.uniform(0, np.pi))
        degree = np.degrees(np.arctan2(discs[:, 1], discs[:, 0])) % 360
        inside = np.hypot(discs[:, 0], discs[:, 1]) < np.interp(degree, np.arange(361), lesion.outline) - 0.08
        _paint(picture, (70, 36, 22), 0.97 * _stamp(lesion, discs[inside]))
    elif word == "irregular":  # dark, of all sizes, crowded on one side
        discs = _scatter(lesion, 26, 0.02, 0.085, rng)
        discs[:16, :2] = lesion.at(lesion.turn + 3.8, 0.5) + rng.normal(0, 0.17, (16, 2))
        _paint(picture, _BLACK, 0.95 * _stamp(lesion, discs) * _ramp(lesion.depth, -0.05, 0.02))


def _draw_streaks(picture: Array, lesion: _Lesion, word: str, rng: np.random.Generator) -> None:
    if word == "absent":
        return
    if word == "regular":  # equal, all around the border
        angles, colour = np.arange(32) * 2 * np.pi / 32 + rng.normal(0, 0.015, 32), _DARK
        lengths, bends, knobs = np.full(32, 1.18), np.zeros(32), np.full(32, 0.012)
    else:  # on one side of the border, unequal, bent, with swollen ends
        angles, colour = rng.uniform(0, 6) + np.linspace(-0.8, 0.8, 11) + rng.normal(0, 0.04, 11), _BLACK
        lengths, bends = rng.uniform(1.12, 1.35, 11), rng.normal(0, 0.07, 11)
        knobs = rng.uniform(0.02, 0.045, 11)
    strokes = []
    for angle, length, bend, knob in zip(angles, lengths, bends, knobs, strict=True):
        points = lesion.at(angle, 0.8), lesion.at(angle + bend, 1.0), lesion.at(angle + bend, length)
        strokes += [_stroke(points, 0.032, 0.014), np.array([[*points[2], knob]])]
    _paint(picture, colour, 0.9 * _stamp(lesion, np.vstack(strokes)))


def _draw_veil(picture: Array, lesion: _Lesion, word: str, rng: np.random.Generator) -> None:
    if word == "present":  # one confluent blue area under a whitish haze
        veil = _patch(lesion, lesion.place(0), 0.34, rng)
        _paint(picture, _BLUE, 0.88 * veil)
        _paint(picture, _HAZE, 0.65 * veil * _ramp(_noise(lesion, 0.2, rng), -1.0, 1.6))


def _draw_regression(picture: Array, lesion: _Lesion, word: str, rng: np.random.Generator) -> None:
    if word in ("white areas", "combinations"):  # a scar
        _paint(picture, _WHITE, 0.93 * _patch(lesion, lesion.place(1), 0.28, rng))
    if word in ("blue areas", "combinations"):  # grains of blue-grey pepper on a faded ground
        _paint(picture, (206, 184, 172), 0.8 * _patch(lesion, lesion.place(2), 0.28, rng))
        pepper = np.column_stack([_spread(lesion.place(2), 45, rng, 0.035), rng.uniform(0.014, 0.028, 45)])
        _paint(picture, _GREY, 0.95 * _stamp(lesion, pepper) * lesion.body)


def _spread(centre: Point, count: int, rng: np.random.Generator, jitter: float = 0.012) -> Array:
    """Return points around a place, spaced like the seeds of a sunflower."""
    index = np.arange(count) + 0.5
    radius, angle = 0.27 * np.sqrt(index / count), index * 2.39996 + rng.uniform(0, 6)
    points: Array = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    points += np.asarray(centre) + rng.normal(0, jitter, points.shape)
    return points


def _vessel(word: str) -> Array:
    """Return the discs of one vessel about the origin."""
    if word == "dotted":
        return np.array([[0, 0, 0.028]])
    if word == "comma":  # bent, thick at one end
        return _stroke([(-0.08, -0.04), (0, 0.09), (0.08, -0.04)], 0.038, 0.012)
    if word == "hairpin":  # turned back on itself
        side = _stroke([(-0.09, 0.04), (0.0, 0.05), (0.06, 0.03)], 0.014, 0.014)
        tip = _stroke([(0.06, -0.03), (0.1, 0), (0.06, 0.03)], 0.014, 0.014)
        return np.vstack([side, tip, side * np.array([1, -1, 1])])
    stem = _stroke([(-0.28, 0), (-0.1, 0.06), (0.08, 0)], 0.034, 0.022)
    branches = [
        _stroke([(-0.13, 0.02), (-0.02, 0.1), (0.04, 0.24)], 0.022, 0.012),
        _stroke([(0.0, 0.02), (0.08, -0.06), (0.08, -0.24)], 0.022, 0.012),
        _stroke([(0.08, 0), (0.17, 0.02), (0.26, 0.12)], 0.02, 0.011),
        _stroke([(0.08, 0), (0.16, -0.02), (0.26, -0.1)], 0.02, 0.011),
    ]
    return np.vstack([stem, *branches])


def _draw_vessels(picture: Array, lesion: _Lesion, word: str, rng: np.random.Generator) -> None:
    if word == "absent":
        return
    # Vessels are visible where there is little pigment, so they get a pink ground.
    _paint(picture, _PINK, 0.8 * _patch(lesion, lesion.place(3), 0.32, rng))
    count = {"dotted": 20, "arborizing": 1}.get(word, 5)
    points = _spread(lesion.place(3), count, rng) if count > 1 else np.array([lesion.place(3)])
    discs = np.vstack([_move(_vessel(word), point, rng.uniform(0, 2 * np.pi)) for point in points])
    within = _ramp(lesion.depth, -0.06, 0.0)
    if word == "hairpin":  # each loop has a milky halo
        _paint(picture, _WHITE, 0.7 * _stamp(lesion, discs + np.array([0, 0, 0.03])) * within)
    _paint(picture, _RED, 0.95 * _stamp(lesion, discs) * within)


def _shade(picture: Array, lesion: _Lesion, elevation: str) -> None:
    """Light a raised lesion from the upper left, and darken the corners as a dermatoscope does."""
    height = {"flat": 0.0, "palpable": 0.2, "nodular": 0.36}[elevation]
    distance = 1.05 * (lesion.x + lesion.y)  # from the light
    light = 1 - 0.16 * _ramp(np.hypot(lesion.x, lesion.y), 0.9, 1.8) - height * distance * lesion.body
    light -= (
        height * _ramp(lesion.depth, -0.2, 0) * (1 - lesion.body) * _ramp(distance, 0.1, 0.8)
    )  # its shadow
    picture *= light[..., None]
    if elevation == "nodular":  # a wet highlight
        glint = np.exp(-60 * ((lesion.x + 0.24) ** 2 + 2 * (lesion.y + 0.26) ** 2))
        _paint(picture, (255, 246, 240), 0.6 * glint)


def _draw_hairs(picture: Array, lesion: _Lesion, rng: np.random.Generator) -> None:
    hair = _stroke([(-1, 0), (0, rng.uniform(-0.4, 0.4)), (1, 0)], 0.01, 0.006, 300)
    for _ in range(int(rng.integers(0, 4))):
        middle, turn = rng.uniform(-0.9, 0.9, 2), rng.uniform(0, 2 * np.pi)
        _paint(picture, (56, 42, 34), 0.7 * _stamp(lesion, _move(hair, middle, turn)))
