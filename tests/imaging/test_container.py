"""Metadata beside the pixels: damage there costs no picture, colours are converted, formats are named."""

import gzip
import io
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    _SIX,
    EXIFS,
    GREY_PROFILE,
    PICTURE,
    SAVED,
    WIDE_PROFILE,
    _chunk,
    _tags,
    gamma_curve,
    image_refusal,
    jpeg,
    png,
    saved_image,
    wide_to_srgb,
)
from PIL import Image, JpegImagePlugin

from skinret_infer.imaging import metadata
from skinret_infer.imaging.decode import decode

HEIGHT, WIDTH, _ = PICTURE.shape
BAD = b"\xee" * 30


def _codes(source: Any, expected: np.ndarray | None = None, levels: float = 0) -> list[str]:
    """Decode a file that shows PICTURE, or another, and return the codes of its warnings."""
    warnings: list[Any] = []
    pixels = decode(source, warnings=warnings).astype(int)
    expected = PICTURE if expected is None else expected
    assert pixels.shape == expected.shape and np.abs(pixels - expected).mean() <= levels
    return [warning.code for warning in warnings]


TURNED = np.ascontiguousarray(np.rot90(PICTURE))  # orientation 6 makes it upright


def _carrying(stored: np.ndarray, exif: bytes) -> dict[str, bytes]:
    """Files of every format that carries EXIF, with these bytes as EXIF."""
    image = Image.fromarray(stored)
    webp = saved_image(image, "WEBP", lossless=True, exif=b"Exif\0\0" + _tags(_SIX))
    place = webp.index(b"EXIF")
    length = 8 + int.from_bytes(webp[place + 4 : place + 8], "little")
    chunk = b"EXIF" + len(exif).to_bytes(4, "little") + exif + bytes(len(exif) % 2)
    webp = webp[:place] + chunk + webp[place + length + length % 2 :]
    return {
        "JPEG": jpeg((0xE1, b"Exif\0\0" + exif), whole=saved_image(image, "JPEG", quality=98, subsampling=0)),
        "PNG": png(_chunk(b"eXIf", exif), pixels=stored),
        "PNG with EXIF last": png(pixels=stored, after=_chunk(b"eXIf", exif)),
        "WEBP": webp[:4] + (len(webp) - 8).to_bytes(4, "little") + webp[8:],
    }


# -- orientation --


@pytest.mark.parametrize("fault", EXIFS)
def test_a_picture_is_upright_whatever_else_is_broken_in_its_exif(
    fault: str, recwarn: pytest.WarningsRecorder
) -> None:
    files = _carrying(TURNED, EXIFS[fault])
    for name, data in files.items():
        assert _codes(data, PICTURE, 1.5) == [], name
    assert not list(recwarn)
    for name, data in files.items():
        with Image.open(io.BytesIO(data)) as image:
            assert np.abs(decode(image).astype(int) - PICTURE).mean() < 1.5, name


@pytest.mark.filterwarnings("ignore")  # Pillow's, where the test opens a file
@pytest.mark.parametrize("fault", EXIFS)
def test_a_loaded_pil_image_is_upright_too(fault: str) -> None:
    with Image.open(io.BytesIO(_carrying(TURNED, EXIFS[fault])["JPEG"])) as image:
        image.load()
        assert np.abs(decode(image).astype(int) - PICTURE).mean() < 1.5


@pytest.mark.parametrize(
    "exif",
    [
        _tags((0x0112, 2, 2, b"6\0\0\0")),
        _tags((0x0112, 5, 1, b"\x08\0\0\0")),
        _tags((0x0112, 3, 1, b"\x09\0\0\0")),
        _tags((0x0112, 3, 1, b"\0\0\0\0")),
        _tags((0x0112, 3, 1, b"\xff\xff\0\0")),
        _tags(_SIX)[:12],
        _tags(_SIX)[:4] + b"\xff\xff\xff\x7f" + _tags(_SIX)[8:],
        b"XX" + _tags(_SIX)[2:],
        b"II",
        BAD,
    ],
    ids=["text", "a fraction", "9", "0", "65535", "cut", "outside", "no order", "two bytes", "noise"],
)
def test_an_orientation_that_cannot_be_read_is_a_warning_and_the_picture_is_given(exif: bytes) -> None:
    for name, data in _carrying(PICTURE, exif).items():
        assert _codes(data, PICTURE, 1.5) == ["image-orientation"], name


def test_exif_without_an_orientation_gives_no_warning() -> None:
    for data in _carrying(PICTURE, _tags((0x010F, 2, 4, b"abc\0"))).values():
        assert _codes(data, PICTURE, 1.5) == []


@pytest.mark.parametrize("element", [b'tiff:Orientation="6"', b"<tiff:Orientation>6</tiff:Orientation>"])
def test_the_orientation_of_xmp_counts_where_exif_has_none(element: bytes) -> None:
    xmp = b"<x:xmpmeta>" + element + b"</x:xmpmeta>"
    for exif in (None, _tags((0x010F, 2, 4, b"abc\0"))):
        files = _carrying(TURNED, exif) if exif else {}
        plain = saved_image(Image.fromarray(TURNED), "JPEG", quality=98, subsampling=0)
        segment = (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
        assert _codes(jpeg(segment, whole=files.get("JPEG", plain)), PICTURE, 1.5) == []
        for packed in (False, True):
            body = (
                b"XML:com.adobe.xmp\0"
                + bytes([packed, 0])
                + b"\0\0"
                + (zlib.compress(xmp) if packed else xmp)
            )
            chunks = [_chunk(b"iTXt", body)] + ([_chunk(b"eXIf", exif)] if exif else [])
            assert _codes(png(*chunks, pixels=TURNED)) == []


def test_exif_that_an_older_program_wrote_as_text_is_read() -> None:
    text = f"\nexif\n{6 + len(_tags(_SIX)):8}\n{(b'Exif' + bytes(2) + _tags(_SIX)).hex()}\n".encode()
    for chunk in (
        _chunk(b"tEXt", b"Raw profile type exif\0" + text),
        _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
    ):
        assert _codes(png(chunk, pixels=TURNED)) == []


# -- damage beside the pixels --


@pytest.mark.parametrize(
    "kind", [b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"tIME", b"eXIf", b"iCCP", b"gAMA", b"prVt"]
)
def test_a_wrong_checksum_beside_the_pixels_of_a_png_is_a_warning(kind: bytes) -> None:
    for place in ("before", "after"):
        chunk = _chunk(kind, b"Comment\0\0" + BAD, damage=1)
        data = png(chunk) if place == "before" else png(after=chunk)
        warnings: list[Any] = []
        np.testing.assert_array_equal(decode(data, warnings=warnings), PICTURE)
        assert warnings[0].code == "image-metadata" and kind.decode() in warnings[0]
        more = ["image-orientation"] if kind == b"eXIf" else []
        assert [warning.code for warning in warnings[1:]] == more


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_a_wrong_checksum_of_the_pixels_of_a_png_is_damage(kind: bytes) -> None:
    image = Image.fromarray(PICTURE).quantize(16)
    data = bytearray(saved_image(image, "PNG", transparency=3))
    place = data.index(kind)
    data[place + 4 + int.from_bytes(data[place - 4 : place], "big")] ^= 1
    assert kind.decode() in image_refusal(bytes(data), "image-truncated")


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"zTXt", b"Comment\0\7" + BAD),
        _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(70_000_000))),
        _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(9_000_000))),
        _chunk(b"tEXt", b"Comment\0" + bytes(3_000_000)),
        _chunk(b"pHYs", b"\1"),
        _chunk(b"cHRM", b"\1"),
        _chunk(b"gAMA", b"\1"),
        _chunk(b"sRGB", b""),
        _chunk(b"acTL", b"\0"),
        _chunk(b"acTL", bytes(8)),
        _chunk(b"fcTL", b"\0" * 26),
        _chunk(b"prVt", BAD),
    ],
    ids=lambda chunk: f"{chunk[4:8].decode()} {len(chunk)}",
)
def test_a_chunk_without_usable_content_costs_no_picture(
    chunk: bytes, recwarn: pytest.WarningsRecorder
) -> None:
    for data in (png(chunk), png(after=chunk)):
        assert _codes(data) == []
    assert not list(recwarn)


def test_a_png_without_its_end_is_read_if_its_pixels_are_complete() -> None:
    data = png(after=_chunk(b"tEXt", b"Comment\0here"))
    for cut in (len(data) - 12, len(data) - 4, len(data) - 20):
        assert _codes(data[:cut]) in (["image-metadata"], [])
    assert _codes(data[:-12]) == ["image-metadata"]


def test_a_png_of_very_many_chunks_is_refused() -> None:
    image_refusal(png(_chunk(b"tIME", b"") * 100_001), "image-scans")


def test_a_png_with_thousands_of_compressed_texts_is_read_in_time() -> None:
    bomb = _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(4_000_000))) * 2000
    np.testing.assert_array_equal(decode(png(bomb), max_seconds=5), PICTURE)


def test_a_png_of_a_kind_that_is_not_read_is_named() -> None:
    assert "Apple" in image_refusal(png(_chunk(b"CgBI", bytes(4))), "image-unreadable")
    assert "ABCD" in image_refusal(png(_chunk(b"ABCD", bytes(4))), "image-unreadable")


@pytest.mark.parametrize(
    "segment",
    [
        (0xE2, b"MPF\0" + BAD),
        (0xE2, b"MPF\0"),
        (0xED, b"Photoshop 3.0\0" + BAD),
        (0xED, b"Photoshop 3.0\x008BIM\4\4\xff\xff\xff\xff\xff\xff"),
        (0xE0, b"JFIF\0"),
        (0xE0, b"JFXX\0\x10" + BAD),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>"),
        (0xE2, b"FPXR\0" + BAD),
        (0xE2, b"ICC_PROFILE\0"),
        (0xEB, b"JP" + BAD),
        (0xFE, BAD),
        (0xFE, b""),
    ],
    ids=str,
)
def test_a_broken_segment_beside_the_pixels_of_a_jpeg_costs_no_picture(segment: tuple[int, bytes]) -> None:
    assert _codes(jpeg(segment), decode(SAVED["JPEG"])) == []


def test_an_icc_profile_in_pieces_is_joined_or_gives_a_warning() -> None:
    half = len(WIDE_PROFILE) // 2
    one, two = (b"ICC_PROFILE\0\1\2" + WIDE_PROFILE[:half]), (b"ICC_PROFILE\0\2\2" + WIDE_PROFILE[half:])
    expected = wide_to_srgb(decode(SAVED["JPEG"]))
    assert _codes(jpeg((0xE2, one), (0xE2, two)), expected, 1) == []
    assert _codes(jpeg((0xE2, two), (0xE2, one)), expected, 1) == []
    assert _codes(jpeg((0xE2, one)), decode(SAVED["JPEG"])) == ["image-profile"]


# -- transparency and depth of PNG --


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_white_at_every_depth(bits: int) -> None:
    top = (1 << bits) - 1
    levels = np.arange(64 * 64).reshape(64, 64) % (1 << min(bits, 12)) * (16 if bits == 16 else 1)
    packed = levels
    if bits < 8:
        digits = (levels[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(digits.reshape(64, -1).astype(np.uint8), axis=1)
    key = 1 if bits < 16 else 0x0110
    data = png(
        _chunk(b"tRNS", struct.pack(">H", key)),
        pixels=packed[..., None] if bits > 4 else packed,
        bits=bits,
        colour=0,
    )
    grey = levels // 257 if bits == 16 else levels * 255 // top
    assert _codes(data, np.where(levels == key, 255, grey)[..., None].repeat(3, axis=2)) == []
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(image), decode(data))
        assert (levels == key).any()
    if bits == 16:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            np.testing.assert_array_equal(decode(image), decode(data))


def test_the_transparent_colour_of_a_png_of_16_bits_is_white_and_its_neighbour_is_not() -> None:
    pixels = np.full((40, 60, 3), (0x1234, 0x5678, 0x9ABC), np.int64)
    pixels[:, 30:] += 1  # equal in 8 bits
    data = png(_chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)), pixels=pixels, bits=16)
    expected = np.full((40, 60, 3), (0x12, 0x56, 0x9A))
    expected[:, :30] = 255
    assert _codes(data, expected) == []


def test_png_of_16_bits_is_read_in_every_colour_type() -> None:
    deep, alpha = PICTURE.astype(int) * 257, np.full((HEIGHT, WIDTH, 1), 65535)
    grey = PICTURE[..., 1:2].repeat(3, axis=2)
    assert _codes(png(pixels=deep, bits=16)) == []
    assert _codes(png(pixels=np.concatenate([deep, alpha], axis=2), bits=16, colour=6)) == []
    assert _codes(png(pixels=np.concatenate([deep[..., 1:2], alpha], axis=2), bits=16, colour=4), grey) == []
    assert _codes(png(pixels=deep[..., 1:2], bits=16, colour=0), grey) == []


# -- PIL images --


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_a_pil_image_of_every_mode_gives_its_pixels(mode: str) -> None:
    rgb = Image.fromarray(PICTURE)
    image = {
        "PA": lambda: rgb.quantize(256).convert("PA"),
        "La": lambda: rgb.convert("LA").convert("La"),
        "RGBa": lambda: rgb.convert("RGBA").convert("RGBa"),
        "P": lambda: rgb.quantize(256),
        "LAB": lambda: _lab(rgb),
    }.get(mode, lambda: rgb.convert(mode))()
    assert image.mode == mode
    if mode in ("1", "L", "LA", "La"):
        expected = np.asarray(rgb.convert("1" if mode == "1" else "L").convert("RGB"))
    elif mode in ("P", "PA"):
        expected = np.asarray(rgb.quantize(256).convert("RGB"))
    else:
        expected = PICTURE
    assert _codes(image, expected, 3) == []


def _lab(rgb: Image.Image) -> Image.Image:
    from PIL import ImageCms

    spaces = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(rgb, ImageCms.buildTransform(*spaces, "RGB", "LAB"))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_a_pil_image_of_16_bits_in_any_order_is_scaled(mode: str) -> None:
    deep = PICTURE[..., 1].astype(int) * 257
    stored = deep.astype({"I;16B": ">u2", "I": "=i4"}.get(mode, "<u2")).tobytes()
    image = Image.frombytes(mode, (WIDTH, HEIGHT), stored)
    assert _codes(image, PICTURE[..., 1:2].repeat(3, axis=2)) == []


# -- colours --


def _matrix(xy: Sequence[float]) -> np.ndarray:
    """Linear RGB to XYZ by x and y of red, green, blue and white."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in zip(xy[::2], xy[1::2], strict=True)]).T
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])


_SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
_P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.3127, 0.3290)
_2020 = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, 0.3127, 0.3290)
_ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290)


def _in_srgb(pixels: np.ndarray, xy: Sequence[float], gamma: float | None) -> np.ndarray:
    """Convert pixels of other primaries with the same white, and of a gamma or sRGB's curve, to sRGB."""
    levels = pixels / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    linear = linear if gamma is None else levels**gamma
    return (gamma_curve((linear @ (np.linalg.inv(_matrix(_SRGB)) @ _matrix(xy)).T).clip(0, 1)) * 255).round()


def _cicp(*values: int) -> bytes:
    return _chunk(b"cICP", bytes(values))


@pytest.mark.parametrize(
    ("values", "xy", "gamma"),
    [
        ((12, 13, 0, 1), _P3, None),
        ((12, 1, 0, 1), _P3, None),
        ((9, 14, 0, 1), _2020, None),
        ((9, 13, 0, 1), _2020, None),
        ((1, 4, 0, 1), _SRGB, 2.2),
        ((1, 8, 0, 1), _SRGB, 1.0),
        ((12, 8, 0, 1), _P3, 1.0),
    ],
    ids=str,
)
def test_colours_that_a_png_names_by_cicp_are_converted(
    values: tuple[int, ...], xy: Sequence[float], gamma: float | None
) -> None:
    expected = _in_srgb(PICTURE, xy, gamma)
    assert _codes(png(_cicp(*values)), expected, 1) == []
    assert np.abs(decode(png(_cicp(*values))) - expected).max() <= 4
    assert np.abs(expected - PICTURE).max() > 4
    ignored = _chunk(b"iCCP", b"a\0\0" + zlib.compress(GREY_PROFILE))  # cICP comes first
    assert (
        _codes(png(_cicp(*values), ignored, _chunk(b"gAMA", struct.pack(">L", 100_000))), expected, 1) == []
    )


@pytest.mark.parametrize("values", [(1, 13, 0, 1), (1, 1, 0, 1), (2, 2, 0, 1)], ids=str)
def test_colours_of_srgb_are_not_changed(values: tuple[int, ...]) -> None:
    assert _codes(png(_cicp(*values))) == []


@pytest.mark.parametrize(
    "values",
    [(9, 16, 0, 1), (9, 18, 0, 1), (1, 13, 0, 0), (1, 13, 1, 1), (22, 13, 0, 1), (1, 77, 0, 1)],
    ids=str,
)
def test_colours_that_are_not_converted_give_a_warning(values: tuple[int, ...]) -> None:
    assert _codes(png(_cicp(*values))) == ["image-colour"]


def _chrm(xy: Sequence[float]) -> bytes:
    return _chunk(b"cHRM", struct.pack(">8L", *(round(n * 100_000) for n in (*xy[6:], *xy[:6]))))


def _gama(value: float) -> bytes:
    return _chunk(b"gAMA", struct.pack(">L", round(value * 100_000)))


def test_the_colours_of_gama_and_chrm_are_converted() -> None:
    for chunks, xy, gamma in (
        ((_gama(1.0),), _SRGB, 1.0),
        ((_gama(1 / 1.8),), _SRGB, 1.8),
        ((_chrm(_P3),), _P3, None),
        ((_gama(0.45455), _chrm(_2020)), _2020, None),
        ((_gama(1.0), _chrm(_ADOBE)), _ADOBE, 1.0),
    ):
        data, expected = png(*chunks), _in_srgb(PICTURE, xy, gamma)
        assert _codes(data, expected, 1) == []
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert _codes(image, expected, 1) == []


def test_gama_and_chrm_of_srgb_or_beside_srgb_change_nothing() -> None:
    for chunks in (
        (_gama(0.45455),),
        (_gama(0.45455), _chrm(_SRGB)),
        (_chunk(b"sRGB", b"\0"), _gama(1.0), _chrm(_P3)),
    ):
        assert _codes(png(*chunks)) == []
    profile = _chunk(b"iCCP", b"a\0\0" + zlib.compress(WIDE_PROFILE))
    assert _codes(png(profile, _gama(1.0)), wide_to_srgb(PICTURE), 1) == []


def test_gama_and_chrm_without_a_meaning_give_a_warning() -> None:
    for chunks in ((_gama(0.00001),), (_gama(40_000),), (_chrm((0,) * 8),), (_chrm((0.5,) * 8),)):
        assert _codes(png(*chunks)) == ["image-colour"]


def _exif_of_colours(space: int, index: bytes = b"") -> bytes:
    inner = 8 + 2 + 12 + 4
    entries = [(0xA001, 3, 1, struct.pack("<HH", space, 0))]
    entries += [(0xA005, 4, 1, struct.pack("<L", inner + 2 + 24 + 4))] if index else []
    second = (
        struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHL", *e[:3]) + e[3] for e in entries)
        + bytes(4)
    )
    third = struct.pack("<HHHL4sL", 1, 1, 2, 4, index, 0) if index else b""
    return _tags((0x8769, 4, 1, struct.pack("<L", inner)), after=second + third)


@pytest.mark.parametrize(("space", "index"), [(2, b""), (2, b"R03\0"), (65535, b"R03\0")])
def test_adobe_rgb_that_exif_names_is_converted(space: int, index: bytes) -> None:
    for name, data in _carrying(PICTURE, _exif_of_colours(space, index)).items():
        assert _codes(data, _in_srgb(PICTURE, _ADOBE, 563 / 256), 2) == [], name


def test_colours_that_exif_does_not_name_give_a_warning_unless_a_profile_does() -> None:
    for name, data in _carrying(PICTURE, _exif_of_colours(65535)).items():
        assert _codes(data, PICTURE, 1.5) == ["image-colour"], name
    for name, data in _carrying(PICTURE, _exif_of_colours(1, b"R98\0")).items():
        assert _codes(data, PICTURE, 1.5) == [], name
    for marked in (_chunk(b"iCCP", b"a\0\0" + zlib.compress(WIDE_PROFILE)), _chunk(b"sRGB", b"\0")):
        warnings: list[Any] = []
        decode(png(marked, _chunk(b"eXIf", _exif_of_colours(65535))), warnings=warnings)
        assert not warnings


def test_matrix_profile_gives_a_profile_of_its_colours() -> None:
    profile = metadata.matrix_profile(_ADOBE, 563 / 256)
    pixels = decode(png(_chunk(b"iCCP", b"a\0\0" + zlib.compress(profile))))
    assert np.abs(pixels.astype(int) - wide_to_srgb(PICTURE)).max() <= 2


def test_the_profile_and_the_colours_of_a_bmp_are_applied() -> None:
    plain = SAVED["BMP"]
    start, pixels = int.from_bytes(plain[10:14], "little"), plain[int.from_bytes(plain[10:14], "little") :]

    def version_5(space: bytes, endpoints: bytes = bytes(48), profile: bytes = b"") -> bytes:
        head = (
            plain[18:54]
            + bytes(16)
            + space
            + endpoints
            + struct.pack("<4L", 4, 124 + len(pixels), len(profile), 0)
        )
        body = struct.pack("<L", 124) + head + pixels + profile
        return b"BM" + struct.pack("<LLL", 14 + len(body), 0, 138) + body

    assert start == 54
    assert _codes(version_5(b"BGRs")) == []
    assert _codes(version_5(b"DEBM", profile=WIDE_PROFILE), wide_to_srgb(PICTURE), 1) == []
    assert _codes(version_5(b"DEBM", profile=BAD)) == ["image-profile"]
    assert _codes(version_5(b"KNIL")) == ["image-colour"]
    assert _codes(version_5(bytes(4))) == []
    assert _codes(version_5(bytes(4), endpoints=b"\1" * 48)) == ["image-colour"]


def test_a_jpeg_with_missing_or_contradicting_colour_marks_gives_a_warning() -> None:
    adobe = (0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 0]))  # of RGB, beside JFIF, which is YCbCr
    assert _codes(jpeg(adobe), decode(SAVED["JPEG"])) == ["image-colour"]
    cmyk = saved_image(Image.fromarray(PICTURE).convert("CMYK"), "JPEG")
    place = cmyk.index(b"\xff\xee")
    bare = cmyk[:place] + cmyk[place + 2 + int.from_bytes(cmyk[place + 2 : place + 4], "big") :]
    assert b"Adobe" not in bare and _codes(cmyk, decode(cmyk)) == []
    assert _codes(bare, decode(cmyk), 255) == ["image-colour"]


# -- files that are not read --


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("a GIF file", b"GIF89a"),
        ("a HEIF (HEIC) file", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("an AVIF file", b"\0\0\0\x18ftypavif"),
        ("a video", b"\0\0\0\x18ftypmp42"),
        ("a camera raw file", b"\0\0\0\x18ftypcrx "),
        ("a JPEG XL file", b"\xff\x0a\xfa\x7f"),
        ("a JPEG XL file", b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a"),
        ("a JPEG 2000 file", b"\0\0\0\x0cjP  \x0d\x0a\x87\x0a"),
        ("a JPEG 2000 file", b"\xff\x4f\xff\x51\0\x2f"),
        ("a Photoshop file", b"8BPS\0\1"),
        ("a PDF document", b"%PDF-1.7\n"),
        ("an SVG drawing", b"<svg xmlns='http://www.w3.org/2000/svg'>"),
        ("an SVG drawing", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a -->\n<svg>"),
        ("a web page", b"\n<!DOCTYPE html><html><title>502 Bad Gateway</title>"),
        ("a web page", b"<HTML><body>log in"),
        ("an XML document", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
        ("perhaps JSON", json.dumps({"error": "no"}).encode()),
        ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:00"),
        ("packed by gzip", gzip.compress(SAVED["JPEG"], mtime=0)),
        ("a ZIP archive", b"PK\3\4\x14\0"),
        ("a camera raw file", b"FUJIFILMCCD-RAW 0201"),
        ("a camera raw file", b"IIRO\x08\0\0\0"),
        ("a NumPy array", b"\x93NUMPY\1\0"),
        ("a PNM file", b"P6 72 48 255\n"),
        ("only zeros", bytes(20)),
        ("a DICOM object without its first", b"\x08\0\x16\0UI\x1e\0" + b"1.2.840.10008"),
        ("a DICOM object without its first", b"\x02\0\0\0UL\4\0\x9a\0\0\0"),
    ],
)
def test_the_refusal_of_a_file_names_its_format_and_a_cure(kind: str, start: bytes) -> None:
    message = image_refusal(start + bytes(500), "image-unreadable")
    assert kind in message and (kind == "only zeros" or "is not an image" not in message)


def test_comments_without_end_take_no_time() -> None:
    image_refusal(b"<!---->" * 500 + b"<b", "image-unreadable")


def test_a_file_that_only_starts_like_a_bmp_is_no_bmp() -> None:
    assert "is not an image" in image_refusal(b"BMI and age of the patients\n" * 30, "image-unreadable")
    header = struct.pack("<LllHHLLllLL", 40, 64, 64, 1, 24, 5, 0, 0, 0, 0, 0)  # holds a PNG
    bmp = b"BM" + struct.pack("<LLL", 900, 0, 54) + header + bytes(900)
    assert "a BMP" in image_refusal(bmp, "image-unreadable")


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("of 12 bits", b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
        ("hierarchical", b"\xff\xc0", b"\xff\xc5"),
        ("JPEG-LS", b"\xff\xc0", b"\xff\xf7"),
    ],
)
def test_a_jpeg_of_a_kind_that_is_not_read_is_named(kind: str, old: bytes, new: bytes) -> None:
    assert kind in image_refusal(SAVED["JPEG"].replace(old, new, 1), "image-unreadable")


def test_a_jpeg_of_two_channels_is_named() -> None:
    data = SAVED["JPEG"].replace(b"\xff\xc0\0\x11\x08\0\x30\0\x48\3", b"\xff\xc0\0\x11\x08\0\x30\0\x48\2", 1)
    assert "2 channels" in image_refusal(data, "image-unreadable")


@pytest.mark.skipif(not shutil.which("jpegtran"), reason="jpegtran is not installed")
def test_the_cure_of_an_arithmetic_jpeg_works(tmp_path: Path) -> None:
    plain, coded, cured = (tmp_path / name for name in ("plain.jpg", "coded.jpg", "cured.jpg"))
    plain.write_bytes(SAVED["JPEG"])
    subprocess.run(["jpegtran", "-arithmetic", "-outfile", coded, plain], check=True)
    cure = re.search(r"libjpeg-turbo: (.+) OUT IN\.$", image_refusal(coded, "image-scans"))
    assert cure
    subprocess.run([*cure[1].split(), cured, coded], check=True)
    np.testing.assert_array_equal(decode(cured), decode(plain))


def test_the_jpeg_decoder_gets_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[bytes] = []
    original = JpegImagePlugin.JpegImageFile._open

    def record_input(self: Any) -> None:
        inputs.append(self.fp.getvalue())
        original(self)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "_open", record_input)
    name = b"Zzyzxova"
    decode(
        jpeg(
            (0xE1, b"Exif\0\0" + _tags(_SIX) + name),
            (0xFE, name),
            (0xED, name),
            (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + name),
        )
    )
    assert len(inputs) == 1 and name not in inputs[0] and b"Exif" not in inputs[0]
