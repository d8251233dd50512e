"""Read the metadata beside the pixels: TIFF directories, the orientation and the colours of EXIF and XMP.

Sources: EXIF 3.0, DCF 2.0, TIFF 6.0, CIPA DC-007, ICC.1:2001-04, ITU-T H.273.
"""

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import SkinretWarning

MAX_PROFILE = 4_000_000  # bytes of an ICC profile; a printer's profile has two million
MAX_TAGS = 4096  # of a directory that are read; cameras write a hundred
_TYPES = dict(zip((*range(1, 14), 16, 17, 18), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8), strict=True))
_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_D65 = (0.3127, 0.3290)
PRIMARIES = {  # of H.273: x and y of red, green and blue, and of white
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
}
SRGB_PRIMARIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *_D65)
_ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, *_D65)
SRGB_LIKE_TRANSFERS = (1, 6, 13, 14, 15)  # of H.273; viewers show television's with the curve of sRGB
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}


class Tag(NamedTuple):
    """A tag of a directory: its type by TIFF 6.0, the number of its values, and their bytes."""

    type: int
    items: int
    value: memoryview
    order: str

    def numbers(self, most: int = 65536) -> npt.NDArray[np.uint64]:
        """Return its integers, at most the first `most`. Raises ValueError if it has none."""
        if self.type not in _NUMBERS or not self.items:
            raise ValueError("a tag without an integer")
        return np.frombuffer(self.value, self.order + _NUMBERS[self.type])[:most].astype(np.uint64)

    def number(self) -> int:
        """Return its first integer."""
        return int(self.numbers()[0])

    def rationals(self) -> list[float]:
        """Return its fractions. Raises ValueError for a tag of another type."""
        if self.type != 5:
            raise ValueError("a tag without a fraction")
        pairs = np.frombuffer(self.value[:512], self.order + "u4").reshape(-1, 2).astype(float)
        return [float(numerator / divisor) if divisor else 0.0 for numerator, divisor in pairs]


Tags = dict[int, Tag]


def directory(data: bytes, place: int, order: str, *, big: bool = False) -> tuple[Tags, int]:
    """Return the tags of the directory at an offset, and the offset of the next one, or 0.

    A tag that cannot be read has no items. If a number occurs twice, the first tag counts. Raises ValueError
    if the directory is missing or cut short.
    """
    view = memoryview(data)
    count_as, wide, size = ("Q", "Q", 20) if big else ("H", "L", 12)
    head, word = struct.calcsize(order + count_as), struct.calcsize(order + wide)
    if not 8 <= place <= len(data) - head:
        raise ValueError("a directory outside of the file")
    (count,) = struct.unpack_from(order + count_as, data, place)
    tags: Tags = {}
    for at in range(place + head, place + head + size * min(count, MAX_TAGS), size):
        if at + size > len(data):
            raise ValueError("a directory that is cut short")
        number, kind, items = struct.unpack_from(order + "HH" + wide, data, at)
        length, start = _TYPES.get(kind, 0) * items, at + size - word
        if length > word:
            (start,) = struct.unpack_from(order + wide, data, start)
        value = view[start : start + length]
        if not 0 < length == len(value):
            items, value = 0, view[:0]
        tags.setdefault(number, Tag(kind, items, value, order))
    end = place + head + size * count
    return tags, struct.unpack_from(order + wide, data, end)[0] if end + word <= len(data) else 0


def header(data: bytes) -> tuple[str, int, bool]:
    """Return the byte order of a TIFF or EXIF, the offset of its first directory, and whether it is BigTIFF.

    Raises ValueError for anything else.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    if not order or len(data) < 8 or sorted(data[2:4]) not in ([0, 42], [0, 43]):
        raise ValueError("no header of TIFF")
    if 43 not in data[2:4]:
        return order, int(struct.unpack_from(order + "L", data, 4)[0]), False
    if len(data) < 16:
        raise ValueError("no header of TIFF")
    return order, int(struct.unpack_from(order + "Q", data, 8)[0]), True


UNREADABLE_ORIENTATION = SkinretWarning(
    "the orientation of the picture cannot be read: it is taken as upright", "image-orientation"
)
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([0-9]+)")


def orientation(exif: bytes, xmp: bytes, warnings: list[SkinretWarning]) -> int:
    """Return the orientation by EXIF, else by XMP; 1, with a warning, if it is unclear."""
    values: list[int] = []
    unclear = False
    if exif:
        try:
            order, place, big = header(exif)
            tags, _ = directory(exif, place, order, big=big)
            unclear = not tags
            values += [tags[0x0112].number()] if 0x0112 in tags else []
        except ValueError:
            unclear = True
    if not values and (match := _XMP_ORIENTATION.search(xmp)):
        values.append(int(match[1][:4]))
    return _check_orientation(values, unclear, warnings)


def of_tag(tags: Tags, xmp: bytes, warnings: list[SkinretWarning]) -> int:
    """Return the orientation by the tags of a TIFF, else by XMP, like `orientation`."""
    try:
        values = [tags[0x0112].number()] if 0x0112 in tags else []
    except ValueError:
        return _check_orientation([], True, warnings)
    if not values and (match := _XMP_ORIENTATION.search(xmp)):
        values.append(int(match[1][:4]))
    return _check_orientation(values, False, warnings)


def _check_orientation(values: list[int], unclear: bool, warnings: list[SkinretWarning]) -> int:
    """Return the first value if it is an orientation; else 1, with a warning unless there is none."""
    if values and 1 <= values[0] <= 8:
        return values[0]
    if values or unclear:
        warnings.append(UNREADABLE_ORIENTATION)
    return 1


def exif_profile(exif: bytes, warnings: list[SkinretWarning]) -> bytes | None:
    """Return the ICC profile of the colours that EXIF names: Adobe RGB's, or None for sRGB."""
    try:
        order, place, big = header(exif)
        return tag_profile(exif, directory(exif, place, order, big=big)[0], warnings)
    except ValueError:
        return None


def tag_profile(data: bytes, tags: Tags, warnings: list[SkinretWarning]) -> bytes | None:
    """Return the ICC profile of the colours that the EXIF in TIFF tags names. DCF 2.0, section 3.4."""
    exif = _read_inner(data, tags, 0x8769)
    index = _read_inner(data, exif, 0xA005).get(1)
    try:
        space = exif[0xA001].number() if 0xA001 in exif else 1
    except ValueError:
        space = 0
    if space == 2 or (space != 1 and index and bytes(index.value[:3]) == b"R03"):
        return matrix_profile(_ADOBE, 563 / 256)
    if space != 1:
        warnings.append(unclear_colours("the EXIF says that the colours are not sRGB, but not which"))
    return None


def _read_inner(data: bytes, tags: Tags, pointer: int) -> Tags:
    """Return the tags of the directory that a tag points to, or none."""
    try:
        return directory(data, tags[pointer].number(), tags[pointer].order)[0]
    except (KeyError, ValueError):
        return {}


def unclear_colours(fault: str) -> SkinretWarning:
    return SkinretWarning(f"{fault}: they are taken as sRGB", "image-colour")


def matrix_profile(primaries: Sequence[float], gamma: float | None) -> bytes:
    """Return an ICC profile for x and y of red, green, blue and white, and a gamma; None is sRGB's curve."""
    columns = np.array([(x, y, 1 - x - y) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]).T
    if columns[1].min() <= 0:
        raise ValueError("primaries that are no colours")
    white = columns[:, 3] / columns[1, 3]
    rgb = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    rgb = np.linalg.inv(cone) @ np.diag((cone @ d50) / (cone @ white)) @ cone @ rgb  # Bradford
    if not np.abs(rgb).max() < 4:
        raise ValueError("primaries that are too close to each other")
    levels = np.linspace(0, 1, 4096)
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    curve = (linear if gamma is None else levels**gamma) * 65535
    table = b"curv\0\0\0\0" + struct.pack(">L", 4096) + curve.round().astype(">u2").tobytes()

    def xyz(values: npt.NDArray[np.float64]) -> bytes:
        return b"XYZ \0\0\0\0" + (values * 65536).round().astype(">i4").tobytes()

    profile_tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">L", 1) + bytes(79),
        b"cprt": b"text\0\0\0\0\0\0\0\0",
        b"wtpt": xyz(d50),
        **{c + b"XYZ": xyz(rgb[:, n]) for n, c in enumerate((b"r", b"g", b"b"))},
        **{c + b"TRC": table for c in (b"r", b"g", b"b")},
    }
    index, body, start = struct.pack(">L", len(profile_tags)), b"", 132 + 12 * len(profile_tags)
    for name, value in profile_tags.items():
        value += bytes(-len(value) % 4)
        index, body = index + struct.pack(">4sLL", name, start + len(body), len(value)), body + value
    size = start + len(body)
    head = struct.pack(">L4xL4s4s4s12x4s", size, 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return head.ljust(68, b"\0") + xyz(d50)[8:].ljust(60, b"\0") + index + body
