"""Read a PNG (third edition): its chunks are checked and read here, and only its pixels go to the decoder."""

import itertools
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import InputError, SkinretWarning
from . import codec
from .container import MAX_SEGMENTS, Check, Contents
from .identify import SAVE_AS_PNG, unread
from .limits import DeadlineReader
from .metadata import (
    GAMMAS,
    MAX_PROFILE,
    PRIMARIES,
    SRGB_LIKE_TRANSFERS,
    SRGB_PRIMARIES,
    UNREADABLE_ORIENTATION,
    exif_profile,
    matrix_profile,
    orientation,
    unclear_colours,
)

_PNG = b"\x89PNG\r\n\x1a\n"
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
_HELD = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # the pixels depend on them
_USED = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf", b"acTL", b"fcTL", b"iTXt", b"zTXt", b"tEXt")
_WHOLE_GAMMA = (0.43, 0.48)  # of gAMA: so near to the curve of sRGB that viewers take that


def _chunks(stream: "DeadlineReader", broken: set[str]) -> dict[bytes, list[memoryview]]:
    """Return the contents of the chunks of a PNG that are used; name in `broken` what else is damaged."""
    data, place = stream.getvalue(), len(_PNG)
    view, found = memoryview(data), dict[bytes, list[memoryview]]()
    for count in range(MAX_SEGMENTS + 1):
        if count % 4096 == 0:
            stream.check()
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 12 + length
        if kind == b"IEND":
            return found
        if end > len(data) or not kind.isalpha():
            if kind == b"IDAT" or b"IDAT" not in found or not all(64 < c < 123 for c in kind):
                raise ValueError("a chunk that goes beyond the end of the file, or has no name")
            broken.add("the end")
            return found
        given = int.from_bytes(data[end - 4 : end], "big")
        whole = zlib.crc32(view[place + 4 : end - 4]) == given
        if not whole and kind in _HELD:
            raise ValueError(f"a wrong check sum of the chunk {kind.decode()}")
        if not whole:
            broken.add(kind.decode())
        elif kind in _HELD or (kind in _USED and (kind != b"fcTL" or b"IDAT" not in found)):
            found.setdefault(kind, []).append(view[place + 8 : end - 4])
        elif kind == b"CgBI":
            raise unread(
                stream.name, "a PNG of Apple's own kind (CgBI)", "pixels in another order", SAVE_AS_PNG
            )
        elif kind[:1].isupper():
            raise unread(
                stream.name, "a PNG of a kind that is not read", f"a chunk {kind.decode()}", SAVE_AS_PNG
            )
        place = end
    raise InputError(
        f"{stream.name} takes too many steps to decode",
        code="image-scans",
        expected=f"at most {MAX_SEGMENTS:,} chunks",
        found="more",
        cure="open it in an image viewer and save it again",
    )


def _chunk(kind: bytes, body: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    sums = struct.pack(">L", zlib.crc32(body, zlib.crc32(kind)))
    return struct.pack(">L", len(body)) + kind, body, sums


def read_png(stream: "DeadlineReader", check: Check) -> Contents:
    """Read a PNG; the decoder gets only the chunks that the pixels need."""
    broken: set[str] = set()
    warnings: list[SkinretWarning] = []
    parts = _chunks(stream, broken)
    width, height, bits, colour = struct.unpack_from(">LLBB", parts[b"IHDR"][0])
    check(width, height)
    held = [kind for kind in _HELD if kind != b"tRNS" or colour == 3]  # else by _with_transparent
    given = [_chunk(kind, body) for kind in held for body in parts.get(kind, ())]
    data = b"".join([_PNG, *itertools.chain(*given), *_chunk(b"IEND", b"")])
    image: Image.Image = codec.Png(stream.within(data))
    codec.load(image)
    if colour in (0, 2) and b"tRNS" in parts:
        key = np.frombuffer(parts[b"tRNS"][0], ">u2", 1 if colour == 0 else 3).astype(int)
        image = _with_transparent(image, key, bits, stream.within(data))
    if broken:
        named = ", ".join(sorted(broken))
        said = f"parts of the file beside the pixels are damaged, and are not used: {named}"
        warnings.append(SkinretWarning(said, "image-metadata"))
    exif, xmp = _texts(parts)
    turned = orientation(exif, xmp, warnings)
    if turned == 1 and "eXIf" in broken:
        warnings.append(UNREADABLE_ORIENTATION)
    pictures = 1
    if b"acTL" in parts and len(parts[b"acTL"][0]) == 8:
        animated = int.from_bytes(parts[b"acTL"][0][:4], "big")
        pictures = max(1, animated + (b"fcTL" not in parts and animated > 0))
    told = any(kind in parts for kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"))
    icc = _png_profile(parts, warnings) if told else exif_profile(exif, warnings)
    return Contents(image=image, icc=icc, orientation=turned, pictures=pictures, warnings=warnings)


def _with_transparent(
    image: Image.Image, key: npt.NDArray[np.int_], bits: int, again: "DeadlineReader"
) -> Image.Image:
    """Return a picture with one colour transparent, which Pillow takes for a colour of 8 bits."""
    if bits == 16:
        pixels = np.asarray(image).astype(np.uint16)
        if image.mode == "RGB":  # the high bytes: the low ones are another way to read the same
            low = codec.Png(again)
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            codec.load(low)
            pixels = pixels << 8 | np.asarray(low)
        clear = (pixels.reshape(*pixels.shape[:2], -1) == key).all(axis=-1)
        grey = image.mode != "RGB"
        shown = Image.fromarray((pixels // 257).astype(np.uint8)).convert("LA") if grey else image.copy()
        shown.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
        return shown
    if (key < 1 << bits).all():
        levels = tuple(int(k) * 255 // ((1 << bits) - 1) for k in key)
        image.info["transparency"] = levels if image.mode == "RGB" else levels[0]
    return image


def _texts(parts: Mapping[bytes, Sequence[memoryview]]) -> tuple[bytes, bytes]:
    """Return the EXIF and the XMP of a PNG; older programs write EXIF as text."""
    texts = [bytes(body) for kind in (b"iTXt", b"zTXt", b"tEXt") for body in parts.get(kind, ())]
    exif, xmp = _only(parts, b"eXIf").removeprefix(b"Exif\0\0"), b""
    for body in [text for text in texts if text.startswith(_XMP + b"\0")][:1]:
        rest = body[len(_XMP) + 1 :]  # whether it is packed, how, language, translated key word, text
        xmp = rest[2:].split(b"\0", 2)[-1]
        xmp = _inflated(xmp) if rest[:1] == b"\1" else xmp
    for body in [text for text in texts if text.startswith(_RAW_EXIF + b"\0") and not exif][:1]:
        rest = body[len(_RAW_EXIF) + 1 :]
        rest = rest if rest[:1] == b"\n" else _inflated(rest[1:])
        try:  # a line of its name, one of its length, then lines of hexadecimal digits
            exif = bytes.fromhex("".join(rest.decode("ascii").split("\n")[3:])).removeprefix(b"Exif\0\0")
        except ValueError:
            exif = b"unclear"
    return exif, xmp


def _only(parts: Mapping[bytes, Sequence[memoryview]], kind: bytes) -> bytes:
    """Return the content of the first chunk of a kind, or none."""
    return bytes(parts[kind][0]) if kind in parts else b""


def _inflated(data: bytes) -> bytes:
    """Return unpacked bytes, as far as they can be unpacked and are not too many."""
    try:
        return zlib.decompressobj().decompress(data, MAX_PROFILE + 1)
    except zlib.error:
        return b""


def _png_profile(parts: Mapping[bytes, Sequence[memoryview]], warnings: list[SkinretWarning]) -> bytes | None:
    """Return the ICC profile of the colours of a PNG, by the first of cICP, iCCP, sRGB, gAMA with cHRM."""
    coded = _only(parts, b"cICP")
    if len(coded) == 4 and coded[0] != 2 and coded[1] != 2:  # 2: not said
        primaries, transfer, matrix, full = coded
        gamma = None if transfer in SRGB_LIKE_TRANSFERS else GAMMAS.get(transfer)
        if primaries == 1 and transfer in SRGB_LIKE_TRANSFERS and (matrix, full) == (0, 1):
            return None
        known = primaries == 1 or primaries in PRIMARIES
        if known and (transfer in SRGB_LIKE_TRANSFERS or gamma) and (matrix, full) == (0, 1):
            return matrix_profile(PRIMARIES.get(primaries, SRGB_PRIMARIES), gamma)
        names = {16: " (PQ, of high dynamic range)", 18: " (HLG, of high dynamic range)"}.get(transfer, "")
        warnings.append(
            unclear_colours(f"the colours of the picture, cICP {tuple(coded)}{names}, are not converted")
        )
        return None
    if b"iCCP" in parts:
        return _inflated(_only(parts, b"iCCP").partition(b"\0")[2][1:]) or b"damaged"
    if b"sRGB" in parts:
        return None
    wide, curve = _only(parts, b"cHRM"), _only(parts, b"gAMA")
    chromaticity = [n / 100_000 for n in struct.unpack(">8L", wide)] if len(wide) == 32 else []
    power = int.from_bytes(curve, "big") / 100_000 if len(curve) == 4 else 0
    return plain_profile(chromaticity, power, warnings)


def plain_profile(
    chromaticity: Sequence[float], power: float, warnings: list[SkinretWarning]
) -> bytes | None:
    """Return the ICC profile of PNG's cHRM (x and y of white, red, green, blue; or none) and gAMA (or 0)."""
    primaries = (*chromaticity[2:], *chromaticity[:2]) if len(chromaticity) == 8 else SRGB_PRIMARIES
    near = np.abs(np.subtract(primaries, SRGB_PRIMARIES)).max() < 0.005
    curve = not power or _WHOLE_GAMMA[0] < power < _WHOLE_GAMMA[1]
    if near and curve:
        return None
    try:
        if not (curve or 0.1 <= power <= 2):
            raise ValueError("no curve of a picture")
        profile = matrix_profile(SRGB_PRIMARIES if near else primaries, None if curve else 1 / power)
    except (ValueError, ArithmeticError, struct.error):
        warnings.append(
            unclear_colours("the colours of the picture cannot be made out from its gAMA and cHRM")
        )
        return None
    return profile
