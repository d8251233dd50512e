"""Read a TIFF: this module reads the directory and the samples; Pillow decodes the strips or tiles.

Pillow misreads some layouts. Except for plain pictures of 8 bits it therefore gets a new directory that
describes only bytes. This module interprets the bytes: bits, byte order, planes, differences, palettes, white
as zero. Source: TIFF 6.0 and its supplements.
"""

import functools
import io
import math
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import InputError, SkinretWarning
from . import codec
from .container import Check, Contents
from .identify import unread
from .jpeg import segments
from .limits import DeadlineReader
from .metadata import Tag, Tags, directory, header, of_tag, tag_profile

MAX_PAGES = 100  # that are counted
MAX_SAMPLES = 16  # of a pixel
MAX_UNPACKED = 512_000_000  # bytes: 64 megapixels of RGB and alpha with 16 bits
MAX_TILES = 300_000  # or strips; 64 megapixels in tiles of 16 x 16 have 250,000

Samples = npt.NDArray[Any]  # [H, W, samples] of whole numbers

_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # lossless compressions
_DIFFERENCES = (5, 8, 32946, 34925, 50000)  # compressions that may store differences
_FAX, _JPEG, _WEBP = (2, 3, 4), 7, 50001
_OPTIONAL = {34925: "LZMA", 50000: "Zstandard", _WEBP: "WebP"}
_SAMPLE_PIXELS = {  # a black pixel in each of these compressions
    34925: bytes.fromhex(
        "fd377a585a000000ff12d9410200210116000000742fe5a301000200000000000001130303a560d806729e7a010000000000595a"
    ),
    50000: bytes.fromhex("28b52ffd2003190000000000"),
    _WEBP: bytes.fromhex("524946461a000000574542505650384c0e0000002f00000000071011fd0f4444ff03"),
}
_UNPACK = "save it without compression, or as PNG, in a program that shows it"
_PICTURES = (*_FAX, 6, _JPEG, _WEBP)  # compressions whose decoders give pixels, not bytes
_UNREAD_COMPRESSIONS = {
    32809: "ThunderScan", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34661: "JBIG",
    34676: "SGI LogLuv", 34677: "SGI LogLuv", 34712: "JPEG 2000", 34887: "LERC", 34892: "a raw file's JPEG",
    34933: "PNG", 34934: "JPEG XR", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB, _ICC_LAB = 0, 1, 2, 3, 5, 6, 8, 9
_CHANNELS = {_WHITE_IS_ZERO: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3, _ICC_LAB: 3}
_BITS = {
    _WHITE_IS_ZERO: (1, 2, 4, 8, 12, 16, 32), _GREY: (1, 2, 4, 8, 12, 16, 32), _RGB: (1, 2, 4, 8, 12, 16),
    _PALETTE: (1, 2, 4, 8), _CMYK: (8, 16), _YCBCR: (8,), _LAB: (8, 16), _ICC_LAB: (8, 16),
}  # fmt: skip
_RAW = "a camera's raw pixels"
_UNREAD_COLOURS = {4: "a mask", 10: "ITU Lab", 32803: _RAW, 32844: "LogL", 32845: "LogLuv", 34892: _RAW}
_POINTERS = {513, 519, 520, 521}  # the tags of _NEEDED that hold offsets in the file: of old-style JPEG
# Tags that decoders of pixels need beside the size: fax coding, JPEG tables, subsampling
_NEEDED = (258, 266, 292, 293, 317, *range(512, 522), 338, 347, 529, 530, 532)


@dataclass(slots=True, kw_only=True)
class _Page:
    """What the directory of a picture says about its pixels. A strip is a tile as wide as the picture."""

    name: str
    data: bytes
    order: str
    tags: Tags
    size: tuple[int, int]  # width and height
    tile: tuple[int, int]
    samples: int
    bits: int
    photometric: int
    compression: int

    def number(self, tag: int, default: int) -> int:
        return self.tags[tag].number() if tag in self.tags else default

    @property
    def planes(self) -> int:
        return self.samples if self.number(284, 1) == 2 else 1


class _Layout(NamedTuple):
    """The size, tile size and tags under which Pillow decodes a page: in pixels, or in bytes."""

    size: tuple[int, int]
    tile: tuple[int, int]
    tags: Tags


def read(stream: DeadlineReader, check: Check) -> Contents:
    """Read the first picture of a TIFF that is no smaller copy of another.

    Raises InputError for pixels that are not read and for a size that `check` refuses, ValueError for damage.
    """
    data, warnings = stream.getvalue(), list[SkinretWarning]()
    order, tags, pictures = _find_first(stream)
    page = _page(stream.name, data, order, tags, warnings)
    check(*page.size)
    if page.size[0] * page.size[1] * page.samples * page.bits > 8 * MAX_UNPACKED:
        raise InputError(
            f"{page.name} has too many bytes",
            code="image-too-large",
            expected=f"at most {MAX_UNPACKED / 1e6:g} MB without compression",
            found=f"{page.samples} samples of {page.bits} bits a pixel",
            cure="give it as RGB of 8 bits, or scaled down",
        )
    simple = (page.photometric, page.samples) in ((_GREY, 1), (_RGB, 3), (_CMYK, 4)) and page.bits == 8
    if page.planes == 1 and (simple or page.compression in _PICTURES):
        needed = {tag: tags[tag] for tag in _NEEDED if tag in tags}
        needed[262], needed[277] = _integers(order, [page.photometric]), _integers(order, [page.samples])
        [image] = _decode(stream, page, _Layout(page.size, page.tile, needed))
    elif page.photometric == _YCBCR:
        image = Image.frombytes("YCbCr", page.size, _ycbcr(stream, page).data).convert("RGB")
    else:
        image = _image(page, _samples(stream, page), warnings)
    icc = bytes(tags[34675].value) or b"damaged" if 34675 in tags else None
    if image.mode == "LAB":
        icc = None  # it has its own white
    elif icc is None:
        icc = tag_profile(data, tags, warnings)
        _check_primaries(tags, warnings)
    turn = of_tag(tags, bytes(tags[700].value) if 700 in tags else b"", warnings)
    return Contents(image=image, icc=icc, orientation=turn, pictures=pictures, warnings=warnings)


def misread(image: Image.Image) -> str:
    """Return the property of a loaded TIFF that Pillow misreads, in a few words, or ""."""
    if not isinstance(image, TiffImageFile):
        return ""
    bits, sample_formats = max(image.tag_v2.get(258, (1,))), image.tag_v2.get(339, (1,))
    if bits > 8 and image.tag_v2.get(284, 1) == 2:
        return f"{bits} bits a channel, in planes"
    if bits > 8 and image.tag_v2.get(262, 0) == 0:
        return f"{bits} bits a channel, with 0 as white"
    if bits == 12:
        return "12 bits a channel"
    return f"signed pixels of {bits} bits a channel" if 2 in sample_formats and bits <= 16 else ""


def _is_main_picture(tags: Tags) -> bool:
    """Return whether a picture is neither a smaller copy of another nor a mask."""
    kind = tags.get(254)
    return not (kind and kind.items and kind.number() & 5)


def _find_first(stream: DeadlineReader) -> tuple[str, Tags, int]:
    """Return the byte order, the tags of the first picture, and the number of pictures but smaller copies."""
    data = stream.getvalue()
    order, place, big = header(data)
    pages: list[Tags] = []
    places: set[int] = set()  # directories may form a circle
    while place and place not in places and len(places) < MAX_PAGES:
        stream.check()
        places.add(place)
        try:
            tags, place = directory(data, place, order, big=big)
            if not pages or _is_main_picture(tags):
                pages.append(tags)
        except ValueError:
            if not pages:
                raise
            break  # a later directory is damaged, but not the first
    if len(pages) > 1 and not _is_main_picture(pages[0]):
        del pages[0]
    if data[8:10] == b"CR" or 50706 in pages[0] or (330 in pages[0] and not _is_main_picture(pages[0])):
        cure = "develop it in the camera's program, and save it there as JPEG or PNG"
        raise unread(stream.name, "a camera raw file", "a TIFF whose first picture is a preview", cure)
    return order, pages[0], len(pages)


def _page(name: str, data: bytes, order: str, tags: Tags, warnings: list[SkinretWarning]) -> _Page:
    """Return what the tags say about the pixels. Raises InputError for pixels that are not read."""
    if 256 not in tags or 257 not in tags:
        raise ValueError("no size of its picture")
    size = tags[256].number(), tags[257].number()
    tiled = 322 in tags and 323 in tags
    tile = (tags[322].number(), tags[323].number()) if tiled else (size[0], size[1])
    if not tiled and 278 in tags:
        tile = size[0], min(size[1], tags[278].number())
    if not all(size + tile) or tile[0] * tile[1] > max(1 << 22, 4 * size[0] * size[1]):
        raise ValueError("a size of 0, or tiles far larger than the picture")
    compression = tags[259].number() if 259 in tags else 1
    if compression not in _LOSSLESS + _PICTURES:
        raise _compression_error(name, f"{_UNREAD_COMPRESSIONS.get(compression, compression)}")
    bits = tags[258].numbers()[:MAX_SAMPLES].tolist() if 258 in tags else [1]
    samples = 3 if compression == 6 else len(bits)
    if 277 in tags:
        samples = tags[277].number()
    if 262 in tags:
        photometric = _YCBCR if compression == 6 else tags[262].number()
    else:
        photometric = _RGB if samples > 2 else _WHITE_IS_ZERO if compression in _FAX else _GREY
        text = "the TIFF does not name its colours: they are taken as RGB or grey"
        warnings.append(SkinretWarning(text, "image-colour"))
    page = _Page(
        name=name, data=data, order=order, tags=tags, size=size, tile=tile, samples=samples, bits=bits[0],
        photometric=photometric, compression=compression,
    )  # fmt: skip
    if not 1 <= samples <= MAX_SAMPLES:
        raise _pixel_error(page, f"{samples} samples a pixel")
    if photometric not in _CHANNELS:
        kind = _UNREAD_COLOURS.get(photometric, f"the photometric interpretation {photometric}")
        raise _pixel_error(page, f"pixels of {kind}")
    if samples < _CHANNELS[photometric]:
        raise ValueError(f"{samples} samples a pixel of colours that have {_CHANNELS[photometric]}")
    sample_formats = {int(value) for value in tags[339].numbers()[:samples]} if 339 in tags else {1}
    if sample_formats & {3, 5, 6}:
        raise _pixel_error(page, "floating-point pixels")
    if page.bits not in _BITS[photometric] or set(bits[:samples]) != {page.bits}:
        raise _pixel_error(page, f"pixels of {', '.join(map(str, bits[:samples]))} bits a channel")
    if 2 in sample_formats and page.bits < 32 and photometric not in (_LAB, _ICC_LAB):
        raise _pixel_error(page, f"signed pixels of {page.bits} bits a channel")
    return page


def _compression_error(name: str, compression: str) -> InputError:
    kind = "a TIFF with a compression that is not read"
    return unread(name, kind, f"the compression {compression}", _UNPACK)


def _pixel_error(page: _Page, found: str) -> InputError:
    return InputError(
        f"{page.name} is a TIFF with pixels that are not read",
        code="image-mode",
        expected="grey, RGB, palette, CMYK, YCbCr or Lab, unsigned, of 1 to 16 bits a channel",
        found=found,
        cure="save it with 8 bits a channel",
    )


def _check_primaries(tags: Tags, warnings: list[SkinretWarning]) -> None:
    """Add a warning if a TIFF names a white point or primaries other than those of sRGB."""
    for tag, usual in ((318, (0.3127, 0.3290)), (319, (0.64, 0.33, 0.30, 0.60, 0.15, 0.06))):
        try:
            values = tags[tag].rationals() if tag in tags else [*usual]
        except ValueError:
            values = []
        if len(values) != len(usual) or np.abs(np.subtract(values, usual)).max() > 0.005:
            text = "the white point or primaries of the TIFF name other colours: they are taken as sRGB"
            warnings.append(SkinretWarning(text, "image-colour"))
            return


def _decode(stream: DeadlineReader, page: _Page, layout: _Layout) -> list[Image.Image]:
    """Have Pillow decode the strips or tiles of each plane of a page, under a new directory."""
    order, tags = page.order, page.tags
    across, down = (math.ceil(side / step) for side, step in zip(page.size, page.tile, strict=True))
    count = across * down * page.planes
    offsets = tags.get(324) or tags.get(273)
    lengths = tags.get(325) or tags.get(279)
    if count > MAX_TILES:
        raise InputError(
            f"{page.name} takes too many steps to decode",
            code="image-scans",
            expected=f"at most {MAX_TILES:,} strips or tiles",
            found=f"{count:,}",
            cure="open it in an image viewer and save it again",
        )
    places = offsets.numbers(count) if offsets else np.zeros(0, np.uint64)
    if len(places) < count:
        raise ValueError(f"{len(places)} strips or tiles where its size needs {count}")
    if page.compression == _JPEG:
        for place in places.tolist():
            segments(stream, place)
    if not places.all():
        raise ValueError("a strip or tile that is missing")
    # The new directories stand before the file, so that a file that is cut short still ends too soon
    shift = 8 + len(_directories(page, layout, places, lengths, 0))
    head = struct.pack(order + "2sHL", b"II" if order == "<" else b"MM", 42, 8)
    file = stream.within(head + _directories(page, layout, places, lengths, shift) + page.data)
    try:
        image = codec.Tiff(file)
    except SyntaxError:
        found = f"{page.samples} samples of {page.bits} bits a pixel in this compression"
        raise _pixel_error(page, found) from None
    images = []
    for plane in range(page.planes):
        image.seek(plane)
        try:
            codec.load(image)
        except OSError:
            if is_configured(page.compression):
                raise
            compression = f"{_OPTIONAL[page.compression]}, which Pillow here was built without"
            raise _compression_error(page.name, compression) from None
        images.append(image.copy() if page.planes > 1 else image)
    return images


def _directories(
    page: _Page, layout: _Layout, places: npt.NDArray[np.uint64], lengths: Tag | None, shift: int
) -> bytes:
    """Return a directory for each plane, to stand from byte 8 on, before a file that moves by `shift`."""
    order, tiled, per_plane = page.order, 322 in page.tags and 323 in page.tags, len(places) // page.planes
    numbers = {256: layout.size[0], 257: layout.size[1], 259: page.compression, 284: 1}
    numbers |= {322: layout.tile[0], 323: layout.tile[1]} if tiled else {278: layout.tile[1]}
    tags = layout.tags | {tag: _integers(order, [number]) for tag, number in numbers.items()}
    for tag in _POINTERS & tags.keys():
        tags[tag] = _integers(order, tags[tag].numbers() + np.uint64(shift))
    result = b""
    for plane in range(page.planes):
        tiles = slice(plane * per_plane, (plane + 1) * per_plane)
        tags[324 if tiled else 273] = _integers(order, places[tiles] + np.uint64(shift))
        if lengths and lengths.items >= tiles.stop:
            tags[325 if tiled else 279] = _integers(order, lengths.numbers(tiles.stop)[tiles])
        result += _write_directory(order, tags, 8 + len(result), last=plane == page.planes - 1)
    return result


@functools.cache
def is_configured(compression: int) -> bool:
    """Return whether Pillow was built with a compression: try to read a pixel in it."""
    pixel = _SAMPLE_PIXELS.get(compression)
    if pixel is None:
        return True
    numbers = {256: 1, 257: 1, 258: 8, 259: compression, 262: _RGB, 273: 8, 277: 3, 278: 1, 279: len(pixel)}
    tags = {tag: _integers("<", [number]) for tag, number in numbers.items()}
    place = 8 + len(pixel)
    file = struct.pack("<2sHL", b"II", 42, place) + pixel + _write_directory("<", tags, place, last=True)
    try:
        codec.load(codec.Tiff(io.BytesIO(file)))
    except OSError:
        return False
    return True


def _integers(order: str, values: npt.ArrayLike) -> Tag:
    """Return a tag of integers. In a file within MAX_BYTES none of them needs more than 32 bits."""
    array = np.asarray(values).astype(np.uint64)
    if len(array) and array.max() >= 1 << 32:
        raise ValueError("an offset or size beyond 32 bits")
    return Tag(4, len(array), memoryview(array.astype(order + "u4").tobytes()), order)


def _write_directory(order: str, tags: Tags, start: int, *, last: bool) -> bytes:
    """Return a directory that will stand at an offset, right before the next one unless it is the last."""
    place = start + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for number, tag in sorted(tags.items()):
        if not tag.items:
            raise ValueError(f"tag {number} cannot be read")
        value = bytes(tag.value).ljust(4, b"\0")
        entries += struct.pack(order + "HHL", number, tag.type, tag.items)
        if len(value) == 4:
            entries += value
        else:
            entries += struct.pack(order + "L", place + len(values))
            values += value + bytes(len(value) % 2)
    following = 0 if last else place + len(values)
    return struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "L", following) + values


def _grey_tags(order: str) -> Tags:
    return {258: _integers(order, [8]), 262: _integers(order, [_GREY]), 277: _integers(order, [1])}


def _rows(stream: DeadlineReader, page: _Page, layout: _Layout) -> list[npt.NDArray[np.uint8]]:
    """Return the bytes of each plane, [rows, bytes]. The sizes of `layout` are in bytes."""
    tags = {tag: page.tags[tag] for tag in (266,) if tag in page.tags} | _grey_tags(page.order)
    return [np.asarray(image) for image in _decode(stream, page, layout._replace(tags=tags))]


def _samples(stream: DeadlineReader, page: _Page) -> Samples:
    """Return the samples of a page, without differences between samples and without padding bits."""
    (width, height), per_pixel = page.size, page.samples if page.planes == 1 else 1
    if page.compression in _PICTURES:  # in planes: each plane is a picture in grey
        tags = {tag: page.tags[tag] for tag in (266, 347) if tag in page.tags} | _grey_tags(page.order)
        images = _decode(stream, page, _Layout(page.size, page.tile, tags))
        return np.stack([np.asarray(image) for image in images], axis=-1)
    if page.tile[0] * per_pixel * page.bits % 8 and page.tile[0] != width:
        raise ValueError("tiles that end within a byte")
    row_bytes, tile_bytes = (math.ceil(n * per_pixel * page.bits / 8) for n in (width, page.tile[0]))
    planes = []
    for rows in _rows(stream, page, _Layout((row_bytes, height), (tile_bytes, page.tile[1]), {})):
        samples = _unpack(rows, page)[:, : width * per_pixel]
        if page.compression in _DIFFERENCES and page.number(317, 1) != 1:
            samples = _sum_differences(samples.reshape(height, width, per_pixel), page)
        planes.append(samples.reshape(height, width, per_pixel))
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)


def _unpack(rows: npt.NDArray[np.uint8], page: _Page) -> Samples:
    """Return the integers that are packed in rows of bytes."""
    if page.bits in (16, 32):
        kind = ("i" if page.number(339, 1) == 2 else "u") + str(page.bits // 8)
        return rows.view(np.dtype(page.order + kind)).astype(np.dtype(kind), copy=False)
    if page.bits == 8:
        return rows
    if page.bits == 12:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 3))).astype(np.uint16)
        first, middle, last = rows[:, 0::3], rows[:, 1::3], rows[:, 2::3]
        return np.stack([first << 4 | middle >> 4, (middle & 15) << 8 | last], axis=-1).reshape(len(rows), -1)
    columns = [rows >> shift & (1 << page.bits) - 1 for shift in range(8 - page.bits, -1, -page.bits)]
    return np.stack(columns, axis=-1).reshape(len(rows), -1)


def _sum_differences(samples: Samples, page: _Page) -> Samples:
    """Compute samples from their differences along each row of a tile. TIFF 6.0, 14."""
    if page.number(317, 1) != 2 or page.bits not in (8, 16, 32):
        raise _pixel_error(page, f"differences of kind {page.number(317, 1)} of {page.bits} bits")
    samples, step = samples.copy(), page.tile[0]
    for left in range(0, samples.shape[1], step):
        tile = samples[:, left : left + step]
        np.add.accumulate(tile, axis=1, dtype=samples.dtype, out=tile)
    return samples


def _image(page: _Page, samples: Samples, warnings: list[SkinretWarning]) -> Image.Image:
    """Make a picture of samples, in grey, RGB, CMYK or Lab, with or without alpha."""
    channels, photometric = _CHANNELS[page.photometric], page.photometric
    alpha, premultiplied = _alpha(page, samples, warnings)
    colours = samples[..., :channels]
    if photometric in (_WHITE_IS_ZERO, _GREY) and page.bits == 32:
        if colours.min() < 0 or colours.max() > 65535:
            raise _pixel_error(page, f"values of {colours.min()} to {colours.max()} of 32 bits")
        text = "the picture has 32 bits a channel, but its values fit in 16: they are taken as 16 bits"
        warnings.append(SkinretWarning(text, "image-depth"))
        colours = colours.astype(np.uint16)
    if photometric == _PALETTE:
        colours = _colour_map(page)[colours[..., 0]]
    elif photometric in (_LAB, _ICC_LAB):
        lab = (colours >> 8 if page.bits == 16 else colours).astype(np.uint8)
        lab = lab ^ np.array([0, 128, 128], np.uint8) if photometric == _ICC_LAB else lab
        return Image.frombytes("LAB", page.size, np.ascontiguousarray(lab).data)
    else:
        colours = _to_8_bits(colours, page.bits, grey=channels == 1)
        colours = 255 - colours if photometric == _WHITE_IS_ZERO else colours
    if photometric == _CMYK:
        if alpha is not None:
            raise _pixel_error(page, "CMYK with transparency")
        return Image.frombytes("CMYK", page.size, np.ascontiguousarray(colours).data)
    if alpha is None:
        return Image.fromarray(colours[..., 0] if colours.shape[-1] == 1 else np.ascontiguousarray(colours))
    rgb = np.broadcast_to(colours, (*colours.shape[:2], 3))
    rgba = np.concatenate([rgb, _to_8_bits(alpha, page.bits, grey=False)], axis=-1)
    return Image.frombytes("RGBA", page.size, rgba.data, "raw", "RGBa" if premultiplied else "RGBA")


def _to_8_bits(samples: Samples, bits: int, *, grey: bool) -> npt.NDArray[np.uint8]:
    """Scale samples to 8 bits; black stays black, and white stays white."""
    if bits < 8:
        return (samples * (255 // ((1 << bits) - 1))).astype(np.uint8)
    if bits == 8:
        return samples.astype(np.uint8, copy=False)
    if bits == 12:
        return (samples >> 4).astype(np.uint8)
    return (samples // 257 if grey else samples >> 8).astype(np.uint8)  # as Pillow does for RGB


def _alpha(page: _Page, samples: Samples, warnings: list[SkinretWarning]) -> tuple[Samples | None, bool]:
    """Return the alpha samples, if any, and whether the colours are multiplied by them."""
    channels = _CHANNELS[page.photometric]
    kinds = page.tags[338].numbers().tolist() if 338 in page.tags else []
    for n, kind in enumerate(kinds[: page.samples - channels]):
        if kind in (1, 2, 999):  # 999 is CorelDRAW's
            return samples[..., channels + n : channels + n + 1], kind == 1
    if kinds or page.samples == channels:
        return None, False
    text = "the TIFF does not say what its extra channel means: it is taken as transparency"
    if page.samples == channels + 1 and page.photometric != _CMYK and samples[..., -1].any():
        warnings.append(SkinretWarning(text, "image-colour"))
        return samples[..., -1:], False
    return None, False


def _colour_map(page: _Page) -> npt.NDArray[np.uint8]:
    entries = 1 << page.bits
    table = page.tags[320].numbers(3 * entries) if 320 in page.tags else np.zeros(0, np.uint64)
    if len(table) < 3 * entries:
        raise ValueError("no palette, or an incomplete one")
    colours = table[: 3 * entries].reshape(3, entries).T
    shift = 8 if colours.max() > 255 else 0  # some writers keep 8 bits in a word
    return (colours >> shift).astype(np.uint8)


def _ycbcr(stream: DeadlineReader, page: _Page) -> npt.NDArray[np.uint8]:
    """Return Y, Cb and Cr [H, W, 3] of a page; a block of pixels may share Cb and Cr. TIFF 6.0, 21."""
    red, green, blue = page.tags[529].rationals() if 529 in page.tags else (0.299, 0.587, 0.114)
    span = page.tags[532].rationals() if 532 in page.tags else [0, 255, 128, 255, 128, 255]
    if np.abs(np.subtract((red, green, blue), (0.299, 0.587, 0.114))).max() > 0.001 or page.samples != 3:
        raise _pixel_error(page, "YCbCr with other coefficients than ITU-R BT.601, or with other channels")
    if np.abs(np.subtract(span, [0, 255, 128, 255, 128, 255])).max() > 0:
        raise _pixel_error(page, "YCbCr with other levels of black and white than 0 and 255")
    across, down = page.tags[530].numbers()[:2].tolist() if 530 in page.tags else (2, 2)
    if across not in (1, 2, 4) or down not in (1, 2, 4):
        raise ValueError(f"subsampling by {across} x {down} pixels")
    if (across, down) == (1, 1):
        return np.ascontiguousarray(_samples(stream, page))
    splits_blocks = page.tile[0] % across != 0 and page.tile[0] != page.size[0]
    if page.planes > 1 or page.number(317, 1) != 1 or page.compression in _PICTURES or splits_blocks:
        raise _pixel_error(
            page, "subsampled YCbCr in planes, as differences, or in tiles that split its blocks"
        )
    size, tile = (
        (math.ceil(width / across) * (across * down + 2), math.ceil(height / down))
        for width, height in (page.size, page.tile)
    )
    [rows] = _rows(stream, page, _Layout(size, tile, {}))
    blocks = rows.reshape(size[1], -1, across * down + 2)
    luma = (
        blocks[..., :-2].reshape(*blocks.shape[:2], down, across).swapaxes(1, 2).reshape(size[1] * down, -1)
    )
    colour = blocks[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
    return np.ascontiguousarray(
        np.concatenate([luma[..., None], colour], axis=-1)[: page.size[1], : page.size[0]]
    )
