"""Read a PNG (third edition): this module checks and reads the chunks; the decoder gets only the pixels."""

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
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # the pixels depend on these
_METADATA_CHUNKS = (
    b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf", b"acTL", b"fcTL", b"iTXt", b"zTXt", b"tEXt",
)  # fmt: skip
_SRGB_GAMMA = (0.43, 0.48)  # range of gAMA in which viewers use the curve of sRGB


def _read_chunks(stream: "DeadlineReader", damaged_names: set[str]) -> dict[bytes, list[memoryview]]:
    """Return the contents of the chunks that are used; add damaged metadata to `damaged_names`."""
    data, place = stream.getvalue(), len(_PNG)
    view, chunks = memoryview(data), dict[bytes, list[memoryview]]()
    for count in range(MAX_SEGMENTS + 1):
        if count % 4096 == 0:
            stream.check()
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 12 + length
        if kind == b"IEND":
            return chunks
        if end > len(data) or not kind.isalpha():
            if kind == b"IDAT" or b"IDAT" not in chunks or not all(64 < c < 123 for c in kind):
                raise ValueError("a chunk that reaches beyond the end of the file, or has no name")
            damaged_names.add("the end")
            return chunks
        checksum = int.from_bytes(data[end - 4 : end], "big")
        is_damaged = zlib.crc32(view[place + 4 : end - 4]) != checksum
        if is_damaged and kind in _PIXEL_CHUNKS:
            raise ValueError(f"a wrong checksum of the chunk {kind.decode()}")
        if is_damaged:
            damaged_names.add(kind.decode())
        elif kind in _PIXEL_CHUNKS or (
            kind in _METADATA_CHUNKS and (kind != b"fcTL" or b"IDAT" not in chunks)
        ):
            chunks.setdefault(kind, []).append(view[place + 8 : end - 4])
        elif kind == b"CgBI":
            raise unread(
                stream.name, "a PNG in Apple's format (CgBI)", "pixels in another order", SAVE_AS_PNG
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
    checksum = struct.pack(">L", zlib.crc32(body, zlib.crc32(kind)))
    return struct.pack(">L", len(body)) + kind, body, checksum


def read_png(stream: "DeadlineReader", check: Check) -> Contents:
    """Read a PNG. The decoder gets only the chunks that the pixels need."""
    damaged_names: set[str] = set()
    warnings: list[SkinretWarning] = []
    chunks = _read_chunks(stream, damaged_names)
    width, height, bits, colour = struct.unpack_from(">LLBB", chunks[b"IHDR"][0])
    check(width, height)
    kinds = [kind for kind in _PIXEL_CHUNKS if kind != b"tRNS" or colour == 3]  # else see _make_transparent
    pixel_chunks = [_chunk(kind, body) for kind in kinds for body in chunks.get(kind, ())]
    data = b"".join([_PNG, *itertools.chain(*pixel_chunks), *_chunk(b"IEND", b"")])
    image: Image.Image = codec.Png(stream.within(data))
    codec.load(image)
    if colour in (0, 2) and b"tRNS" in chunks:
        key = np.frombuffer(chunks[b"tRNS"][0], ">u2", 1 if colour == 0 else 3).astype(int)
        image = _make_transparent(image, key, bits, stream.within(data))
    if damaged_names:
        names = ", ".join(sorted(damaged_names))
        text = f"data beside the pixels are damaged and not used: {names}"
        warnings.append(SkinretWarning(text, "image-metadata"))
    exif, xmp = _find_exif_and_xmp(chunks)
    turn = orientation(exif, xmp, warnings)
    if turn == 1 and "eXIf" in damaged_names:
        warnings.append(UNREADABLE_ORIENTATION)
    pictures = 1
    if b"acTL" in chunks and len(chunks[b"acTL"][0]) == 8:
        frames = int.from_bytes(chunks[b"acTL"][0][:4], "big")
        if frames and b"fcTL" not in chunks:
            frames += 1  # the still picture is not a frame of the animation
        pictures = max(1, frames)
    has_colours = any(kind in chunks for kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"))
    icc = _png_profile(chunks, warnings) if has_colours else exif_profile(exif, warnings)
    return Contents(image=image, icc=icc, orientation=turn, pictures=pictures, warnings=warnings)


def _make_transparent(
    image: Image.Image, key: npt.NDArray[np.int_], bits: int, again: "DeadlineReader"
) -> Image.Image:
    """Make one colour of a picture transparent. Pillow would compare only 8 bits of it."""
    if bits == 16:
        pixels = np.asarray(image).astype(np.uint16)
        if image.mode == "RGB":  # Pillow keeps only the high bytes: decode again for the low ones
            low = codec.Png(again)
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            codec.load(low)
            pixels = pixels << 8 | np.asarray(low)
        is_transparent = (pixels.reshape(*pixels.shape[:2], -1) == key).all(axis=-1)
        grey = image.mode != "RGB"
        result = Image.fromarray((pixels // 257).astype(np.uint8)).convert("LA") if grey else image.copy()
        result.putalpha(Image.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8)))
        return result
    if (key < 1 << bits).all():
        levels = tuple(int(k) * 255 // ((1 << bits) - 1) for k in key)
        image.info["transparency"] = levels if image.mode == "RGB" else levels[0]
    return image


def _find_exif_and_xmp(chunks: Mapping[bytes, Sequence[memoryview]]) -> tuple[bytes, bytes]:
    """Return the EXIF and the XMP of a PNG. Older programs write EXIF as text."""
    texts = [bytes(body) for kind in (b"iTXt", b"zTXt", b"tEXt") for body in chunks.get(kind, ())]
    exif, xmp = _first(chunks, b"eXIf").removeprefix(b"Exif\0\0"), b""
    for body in [text for text in texts if text.startswith(_XMP + b"\0")][:1]:
        rest = body[len(_XMP) + 1 :]  # compression flag, method, language, translated keyword, text
        xmp = rest[2:].split(b"\0", 2)[-1]
        xmp = _inflate(xmp) if rest[:1] == b"\1" else xmp
    for body in [text for text in texts if text.startswith(_RAW_EXIF + b"\0") and not exif][:1]:
        rest = body[len(_RAW_EXIF) + 1 :]
        rest = rest if rest[:1] == b"\n" else _inflate(rest[1:])
        try:  # an empty line, the name, the length, then lines of hexadecimal digits
            exif = bytes.fromhex("".join(rest.decode("ascii").split("\n")[3:])).removeprefix(b"Exif\0\0")
        except ValueError:
            exif = b"unclear"
    return exif, xmp


def _first(chunks: Mapping[bytes, Sequence[memoryview]], kind: bytes) -> bytes:
    """Return the content of the first chunk of a kind, or b"" if there is none."""
    return bytes(chunks[kind][0]) if kind in chunks else b""


def _inflate(data: bytes) -> bytes:
    """Decompress data, up to MAX_PROFILE + 1 bytes; return b"" if they are damaged."""
    try:
        return zlib.decompressobj().decompress(data, MAX_PROFILE + 1)
    except zlib.error:
        return b""


def _png_profile(
    chunks: Mapping[bytes, Sequence[memoryview]], warnings: list[SkinretWarning]
) -> bytes | None:
    """Return the ICC profile of a PNG by its first chunk of cICP, iCCP, sRGB, or gAMA with cHRM."""
    cicp = _first(chunks, b"cICP")
    if len(cicp) == 4 and cicp[0] != 2 and cicp[1] != 2:  # 2: unspecified
        primaries, transfer, matrix, full = cicp
        gamma = None if transfer in SRGB_LIKE_TRANSFERS else GAMMAS.get(transfer)
        if primaries == 1 and transfer in SRGB_LIKE_TRANSFERS and (matrix, full) == (0, 1):
            return None
        known = primaries == 1 or primaries in PRIMARIES
        if known and (transfer in SRGB_LIKE_TRANSFERS or gamma) and (matrix, full) == (0, 1):
            return matrix_profile(PRIMARIES.get(primaries, SRGB_PRIMARIES), gamma)
        names = {16: " (PQ, of high dynamic range)", 18: " (HLG, of high dynamic range)"}.get(transfer, "")
        warnings.append(
            unclear_colours(f"the colours of the picture, cICP {tuple(cicp)}{names}, are not converted")
        )
        return None
    if b"iCCP" in chunks:
        return _inflate(_first(chunks, b"iCCP").partition(b"\0")[2][1:]) or b"damaged"
    if b"sRGB" in chunks:
        return None
    chrm, gama = _first(chunks, b"cHRM"), _first(chunks, b"gAMA")
    chromaticity = [n / 100_000 for n in struct.unpack(">8L", chrm)] if len(chrm) == 32 else []
    power = int.from_bytes(gama, "big") / 100_000 if len(gama) == 4 else 0
    return plain_profile(chromaticity, power, warnings)


def plain_profile(
    chromaticity: Sequence[float], power: float, warnings: list[SkinretWarning]
) -> bytes | None:
    """Return the ICC profile of PNG's cHRM (x and y of white, red, green, blue, or empty) and gAMA (or 0)."""
    primaries = (*chromaticity[2:], *chromaticity[:2]) if len(chromaticity) == 8 else SRGB_PRIMARIES
    srgb_primaries = np.abs(np.subtract(primaries, SRGB_PRIMARIES)).max() < 0.005
    srgb_curve = not power or _SRGB_GAMMA[0] < power < _SRGB_GAMMA[1]
    if srgb_primaries and srgb_curve:
        return None
    try:
        if not (srgb_curve or 0.1 <= power <= 2):
            raise ValueError("a gamma that no picture has")
        gamma = None if srgb_curve else 1 / power
        profile = matrix_profile(SRGB_PRIMARIES if srgb_primaries else primaries, gamma)
    except (ValueError, ArithmeticError, struct.error):
        text = "the colours of the picture cannot be computed from its gAMA and cHRM"
        warnings.append(unclear_colours(text))
        return None
    return profile
