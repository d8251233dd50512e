"""What `decode` gives for every kind of picture, and what it says to everything else."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import (
    FORMATS,
    GREY_PROFILE,
    HEIGHT,
    PICTURE,
    SAVED,
    WIDE_PROFILE,
    WIDTH,
    _profile,
    exif_bytes,
    gamma_curve,
    image_refusal,
    saved_image,
    wide_to_srgb,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, JpegImagePlugin

from skinret_infer.errors import InputError
from skinret_infer.imaging import decode as image_module
from skinret_infer.imaging import limits
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, pixel_sha256, preprocess


def _one_bit_png(width: int, height: int) -> bytes:
    """An honest white PNG of 1 bit a pixel, without ever holding its pixels."""
    packer, row = zlib.compressobj(1), b"\0" + b"\xff" * ((width + 7) // 8)
    data = b"".join(packer.compress(row * 1000) for _ in range(height // 1000)) + packer.flush()
    chunks = (b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


# -- what is refused --


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"", "image-empty", id="empty"),
        pytest.param(np.random.default_rng(0).bytes(5000), "image-unreadable", id="random bytes"),
        pytest.param(b"case_id,image,diagnosis\n1,a.jpg,nevus\n" * 20, "image-unreadable", id="text"),
        pytest.param(bytes(128) + b"DICM" + bytes(400), "image-unreadable", id="dicom"),
        pytest.param(
            saved_image(Image.fromarray(PICTURE), "GIF"), "image-unreadable", id="a format not listed"
        ),
        pytest.param(saved_image(Image.new("RGB", (1, 1)), "PNG"), "image-too-small", id="1 x 1"),
        pytest.param(saved_image(Image.new("RGB", (400, 31)), "PNG"), "image-too-small", id="31 high"),
        pytest.param(saved_image(Image.new("RGB", (31, 400)), "BMP"), "image-too-small", id="31 wide"),
    ],
)
def test_a_file_that_is_no_usable_image_is_refused_by_name(content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "lesion 07.jpg"
    path.write_bytes(content)
    image_refusal(path, code, name=str(path))
    image_refusal(str(path), code, name=str(path))
    image_refusal(content, code, name="the image bytes")
    image_refusal(io.BytesIO(content), code, name="the image file object")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    image_refusal(tmp_path / "no such.jpg", "image-missing", name=str(tmp_path / "no such.jpg"))


def test_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    image_refusal(tmp_path, "image-missing", name=str(tmp_path))


def test_a_dicom_file_is_recognised_in_the_message() -> None:
    assert "DICOM" in image_refusal(bytes(128) + b"DICM" + bytes(400), "image-unreadable")


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_a_picture_cut_short_is_refused_rather_than_filled_up(
    format: str, part: float, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = saved_image(Image.fromarray(noise), format, **FORMATS[format])
    path = tmp_path / "cut"
    path.write_bytes(whole[: int(part * len(whole))])
    code = "image-truncated"
    if format == "TIFF" and int.from_bytes(whole[4:8], "little") > part * len(whole):
        code = None  # its directory, which stands last, is cut off
    image_refusal(path, code, name=str(path))


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_cut_within_its_header_is_refused(format: str) -> None:
    for length in (2, 3, 8, 12, 20, 30):
        image_refusal(SAVED[format][:length])


def test_31_pixels_a_side_are_too_few_and_32_are_enough() -> None:
    assert decode(np.zeros((32, 32, 3), np.uint8)).shape == (32, 32, 3)
    assert decode(Image.new("L", (32, 40))).shape == (40, 32, 3)
    assert "31 x 32" in image_refusal(np.zeros((32, 31, 3), np.uint8), "image-too-small")
    assert "32 x 31" in image_refusal(Image.new("RGB", (32, 31)), "image-too-small")


@pytest.mark.parametrize("side", [10_000, 30_000])  # the second trips Pillow's own guard
def test_a_picture_of_more_than_64_megapixels_is_refused_before_it_is_unpacked(
    side: int, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_one_bit_png(side, side))
    assert "64 megapixels" in image_refusal(path, "image-too-large", name=str(path))


def test_an_array_of_more_than_64_megapixels_is_refused() -> None:
    image_refusal(np.broadcast_to(np.uint8(0), (8001, 8001, 3)), "image-too-large", name="array")


@pytest.mark.parametrize("source", [PICTURE, Image.fromarray(PICTURE), SAVED["PNG"]], ids=type)
def test_the_callers_own_limit_of_pixels_holds_for_every_kind_of_source(source: Any) -> None:
    assert decode(source, max_pixels=HEIGHT * WIDTH).shape == PICTURE.shape
    with pytest.raises(InputError) as caught:
        decode(source, max_pixels=HEIGHT * WIDTH - 1)
    assert caught.value.code == "image-too-large"


def test_a_file_opened_as_text_is_refused_with_the_mode_to_use(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(SAVED["JPEG"])
    with path.open(encoding="latin-1") as file:
        assert '"rb"' in image_refusal(file, "image-type")
    assert '"rb"' in image_refusal(io.StringIO("text"), "image-type")


def test_a_file_opened_as_utf8_text_is_refused_with_the_mode_to_use(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(SAVED["JPEG"])
    with path.open(encoding="utf-8") as file:  # its read() does not even give text
        assert '"rb"' in image_refusal(file, "image-type")


def test_a_file_object_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        image_refusal(file)
    image_refusal(file)  # closed


def test_a_path_with_a_nul_is_refused() -> None:
    image_refusal("lesion\0.jpg")


def test_a_file_name_too_long_for_the_system_is_refused(tmp_path: Path) -> None:
    image_refusal(tmp_path / ("x" * 300), "image-missing")


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(PICTURE.astype(np.float32) / 255, id="float"),
        pytest.param(PICTURE.astype(np.int64), id="int64"),
        pytest.param(PICTURE.astype(np.uint16), id="uint16"),
        pytest.param(PICTURE > 99, id="bool"),
        pytest.param(PICTURE[..., 0], id="H x W"),
        pytest.param(PICTURE[..., :1], id="one channel"),
        pytest.param(np.concatenate([PICTURE, PICTURE[..., :1]], axis=2), id="four channels"),
        pytest.param(PICTURE.transpose(2, 0, 1), id="channels first"),
        pytest.param(PICTURE[None], id="a batch"),
        pytest.param(np.zeros((), np.uint8), id="a scalar"),
        pytest.param(np.array([PICTURE, None], object), id="objects"),
    ],
)
def test_an_array_of_another_type_or_shape_is_refused_with_what_it_is(array: np.ndarray) -> None:
    assert str(array.dtype) in image_refusal(array, "image-type", name="array")


def test_an_array_without_pixels_is_too_small() -> None:
    image_refusal(np.zeros((0, 0, 3), np.uint8), "image-too-small")


@pytest.mark.parametrize("source", [None, 7, True, [1, 2], {"path": "a.jpg"}, object(), decode], ids=type)
def test_what_cannot_hold_an_image_is_refused_with_what_can(source: Any) -> None:
    message = image_refusal(source, "image-type")
    assert "path" in message and type(source).__name__ in message


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_that_are_neither_8_nor_16_bits_are_refused(mode: str) -> None:
    image_refusal(Image.new(mode, (40, 40), 70_000), "image-mode")
    image_refusal(saved_image(Image.new(mode, (40, 40), 70_000), "TIFF"), "image-mode")


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "RGBX", "LAB", "HSV", "YCbCr", "I;16L", "I;16B"])
def test_a_pil_image_of_any_mode_is_converted_or_refused(mode: str) -> None:
    try:
        assert decode(Image.new(mode, (40, 50))).shape == (50, 40, 3)
    except InputError as error:
        assert error.code == "image-mode"


def test_a_pil_image_whose_file_is_closed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(SAVED["PNG"])
    with Image.open(path) as image:
        pass
    image_refusal(image)


_CHANGES = st.lists(st.tuples(st.one_of(st.integers(0, 120), st.integers(0, 2**14)), st.integers(1, 255)))


@pytest.mark.parametrize("format", FORMATS)
@settings(
    max_examples=110, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
@given(changes=_CHANGES, cut=st.none() | st.integers(0, 2**14))
def test_damaged_bytes_give_an_input_error_or_a_picture(
    format: str, changes: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(SAVED[format])
    for place, flip in changes:
        data[place % len(data)] ^= flip
    if cut is not None:
        del data[cut % len(data) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = decode(bytes(data))
        except InputError as error:
            assert error.code.startswith("image-")
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


# -- what takes all the time there is --


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_takes_too_long_is_refused(format: str, tmp_path: Path) -> None:
    path = tmp_path / "slow"
    path.write_bytes(SAVED[format])
    for source in (path, SAVED[format], io.BytesIO(SAVED[format])):
        with pytest.raises(InputError, match="too long") as caught:
            decode(source, max_seconds=0)
        assert caught.value.code == "image-too-slow"
    assert decode(path, max_seconds=1000).shape == PICTURE.shape


def test_the_time_may_run_out_within_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(0, 0.1)  # each look at it takes a tenth of a second
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    rows = (b"\1\7" * 64 + b"\0\0") * 64  # of runs of one pixel, each of them read by itself
    header = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 8, 1, len(rows), 0, 0, 256, 0)
    bmp = b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + header + bytes(1024) + rows
    image_refusal(bmp, "image-too-slow")
    assert 30 < next(clock) < 40
    assert decode(bmp, max_seconds=10_000).shape == (64, 64, 3)


def _scans(number: int, *, size: tuple[int, int] | None = None) -> bytes:
    """A progressive JPEG of so many scans: its last one again and again."""
    jpeg = saved_image(Image.fromarray(PICTURE), "JPEG", progressive=True)
    if size:
        frame = jpeg.index(b"\xff\xc2")
        jpeg = jpeg[: frame + 5] + struct.pack(">HH", *size) + jpeg[frame + 9 :]
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * (number - jpeg.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode(_scans(100)).shape == PICTURE.shape

    def decoded(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", decoded)
    for many in (101, 5000):
        assert "100 scans" in image_refusal(_scans(many, size=(7000, 9000)), "image-scans")


def test_a_tiff_of_jpeg_is_looked_through_for_scans_too() -> None:
    jpeg = _scans(101)
    values = {256: 72, 257: 48, 258: 8, 259: 7, 262: 6, 273: 8, 277: 3, 278: 48, 279: len(jpeg)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    tiff = struct.pack("<2sHI", b"II", 42, 8 + len(jpeg)) + jpeg + struct.pack("<H", 9) + entries + bytes(4)
    image_refusal(tiff, "image-scans")


def test_a_jpeg_in_arithmetic_coding_is_refused() -> None:
    jpeg = saved_image(Image.fromarray(PICTURE), "JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1)
    assert "arithmetic" in image_refusal(jpeg, "image-scans")


def test_a_jpeg_of_very_many_segments_is_refused() -> None:
    jpeg = SAVED["JPEG"]
    image_refusal(jpeg[:2] + b"\xff\xe5\0\2" * 200_000 + jpeg[2:], "image-scans")
    assert decode(jpeg[:2] + b"\xff\xe5\0\2" * 2000 + jpeg[2:]).shape == PICTURE.shape


def test_what_only_looks_like_a_scan_is_none() -> None:
    looks = b"\xff\xda" * 500
    jpeg = saved_image(Image.fromarray(PICTURE), "JPEG", comment=looks, exif=b"Exif\0\0" + looks)
    np.testing.assert_array_equal(decode(jpeg + looks), decode(saved_image(Image.fromarray(PICTURE), "JPEG")))


def test_too_little_memory_is_an_error_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(image_module, "to_rgb", full)
    for source in (SAVED["JPEG"], Image.fromarray(PICTURE)):
        image_refusal(source, "image-memory")


# -- what is read, and as which pixels --


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "WEBP"])
def test_a_lossless_file_gives_its_very_pixels(format: str) -> None:
    np.testing.assert_array_equal(decode(SAVED[format]), PICTURE)


def test_a_jpeg_gives_nearly_its_pixels() -> None:
    assert np.abs(decode(SAVED["JPEG"]).astype(int) - PICTURE).mean() < 3


def _said(data: bytes) -> list[tuple[str, str]]:
    """Decode a file of several pictures, of which the first is PICTURE, and return what is said of it."""
    found: list[Any] = []
    assert np.abs(decode(data, warnings=found).astype(int) - PICTURE).mean() < 3
    return [(remark, remark.code) for remark in found]


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP"])
def test_of_several_pictures_the_first_is_taken_and_their_number_said(format: str) -> None:
    first, *others = (Image.fromarray(x) for x in (PICTURE, PICTURE[::-1], PICTURE[:, ::-1]))
    assert _said(SAVED[format]) == []
    several = saved_image(first, format, save_all=True, append_images=others)
    assert _said(several) == [("the file holds 3 pictures: the first is taken", "image-several")]


def test_smaller_copies_and_damaged_pages_behind_the_first_are_no_matter() -> None:
    first, other = Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])
    other.encoderinfo = {"tiffinfo": {254: 1}}
    assert _said(saved_image(first, "TIFF", save_all=True, append_images=[other])) == []
    tiff = bytearray(SAVED["TIFF"])
    start = int.from_bytes(tiff[4:8], "little")
    place = start + 2 + 12 * int.from_bytes(tiff[start : start + 2], "little")
    tiff[place : place + 4] = (10**8).to_bytes(4, "little")
    assert _said(bytes(tiff)) == []


def test_a_tiff_of_very_many_pages_is_not_read_to_its_end() -> None:
    first, other = Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])
    assert (
        "100 or more" in _said(saved_image(first, "TIFF", save_all=True, append_images=[other] * 150))[0][0]
    )


def test_an_mpo_file_gives_its_first_picture_and_its_previews_are_not_counted() -> None:
    image = Image.fromarray(PICTURE)
    mpo = saved_image(image, "MPO", save_all=True, append_images=[image.rotate(180)], quality=92)
    np.testing.assert_array_equal(decode(mpo), decode(SAVED["JPEG"]))
    assert _said(mpo) == []
    entry = mpo.index(struct.pack("<LL", 0x030000, mpo.rindex(b"\xff\xd8\xff"))) + 16
    panorama = mpo[:entry] + struct.pack("<L", 0x020001) + mpo[entry + 4 :]
    assert "2 pictures" in _said(panorama)[0][0]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read_by_a_fresh_process(format: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(SAVED[format])
    code = "import sys; from skinret_infer.imaging.decode import decode; print(decode(sys.argv[1]).shape)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.stdout == f"({HEIGHT}, {WIDTH}, 3)\n", done.stderr


@pytest.mark.parametrize("format", FORMATS)
def test_path_str_bytes_file_object_and_pil_image_give_the_same_pixels(format: str, tmp_path: Path) -> None:
    path = tmp_path / "lesion.anything"
    path.write_bytes(SAVED[format])
    expected = decode(SAVED[format])
    with path.open("rb") as file, Image.open(path) as image:
        for source in (path, str(path), file, io.BytesIO(SAVED[format]), image, expected):
            np.testing.assert_array_equal(decode(source), expected)


def test_what_the_caller_gave_is_left_as_it_was() -> None:
    image, array = Image.fromarray(PICTURE).quantize(16), PICTURE.copy()
    before = image.mode, image.tobytes(), dict(image.info)
    decode(image), decode(array)
    assert (image.mode, image.tobytes(), dict(image.info)) == before
    np.testing.assert_array_equal(array, PICTURE)
    stream = io.BytesIO(SAVED["PNG"])
    decode(stream)
    assert not stream.closed


def _halves(mode: str, left: Any, right: Any, **info: Any) -> Image.Image:
    """A 64 x 40 image of two colours."""
    image = Image.new(mode, (64, 40), left)
    image.paste(right, (32, 0, 64, 40))
    image.info.update(info)
    return image


def _expect_halves(source: Any, left: tuple[int, int, int], right: tuple[int, int, int]) -> None:
    pixels = decode(source)
    assert pixels.shape == (40, 64, 3) and pixels.dtype == np.uint8
    assert np.unique(pixels[:, :32].reshape(-1, 3), axis=0).tolist() == [list(left)]
    assert np.unique(pixels[:, 32:].reshape(-1, 3), axis=0).tolist() == [list(right)]


def _both(image: Image.Image, format: str, **options: Any) -> list[Any]:
    return [image, saved_image(image, format, **options)]


def test_cmyk_is_converted() -> None:
    for source in _both(_halves("CMYK", (255, 0, 0, 0), (0, 0, 0, 255)), "TIFF"):
        _expect_halves(source, (0, 255, 255), (0, 0, 0))
    for source in _both(_halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "TIFF"):
        _expect_halves(source, (255, 0, 0), (255, 255, 255))


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    pixels = decode(saved_image(_halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "JPEG", quality=100))
    assert np.abs(pixels[20, 10].astype(int) - (255, 0, 0)).max() <= 3
    assert np.abs(pixels[20, 54].astype(int) - (255, 255, 255)).max() <= 3


def _palette() -> Image.Image:
    image = _halves("P", 0, 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    return image


def test_a_palette_gives_its_colours() -> None:
    for source in _both(_palette(), "PNG"):
        _expect_halves(source, (10, 20, 30), (200, 100, 50))


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    _expect_halves(saved_image(_palette(), "PNG", transparency=0), (255, 255, 255), (200, 100, 50))


def test_a_palette_with_alpha_is_laid_over_white() -> None:
    saved = saved_image(_palette(), "PNG", transparency=bytes([51, 255]))  # 51 is a fifth
    _expect_halves(saved, (206, 208, 210), (200, 100, 50))


def test_rgba_is_laid_over_white() -> None:
    image = _halves("RGBA", (0, 100, 200, 51), (0, 100, 200, 0))
    for format in ("PNG", "TIFF"):
        for source in _both(image, format):
            _expect_halves(source, (204, 224, 244), (255, 255, 255))
    for source in _both(_halves("RGBA", (1, 2, 3, 255), (0, 0, 0, 204)), "PNG"):
        _expect_halves(source, (1, 2, 3), (51, 51, 51))


def test_grey_with_alpha_is_laid_over_white() -> None:
    for source in _both(_halves("LA", (100, 51), (77, 255)), "PNG"):
        _expect_halves(source, (224, 224, 224), (77, 77, 77))


@pytest.mark.parametrize(
    ("image", "transparent", "other"),
    [
        (_halves("RGB", (9, 99, 199), (1, 2, 3)), (9, 99, 199), (1, 2, 3)),
        (_halves("L", 9, 77), 9, (77, 77, 77)),
        (_halves("1", 0, 1), 0, (255, 255, 255)),
    ],
    ids=["RGB", "L", "1"],
)
def test_the_transparent_colour_of_a_png_is_white(
    image: Image.Image, transparent: Any, other: tuple[int, int, int]
) -> None:
    _expect_halves(saved_image(image, "PNG", transparency=transparent), (255, 255, 255), other)


def test_16_bit_grey_is_scaled_to_8_bits() -> None:
    levels = np.repeat(np.array([[200 * 257, 3 * 257]], np.uint16), 32, axis=1).repeat(40, axis=0)
    image = Image.fromarray(levels)
    assert image.mode == "I;16"
    for source in (*_both(image, "PNG"), *_both(image, "TIFF"), image.convert("I")):
        _expect_halves(source, (200, 200, 200), (3, 3, 3))


def test_16_bit_grey_keeps_black_white_and_order() -> None:
    levels = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)
    grey = decode(saved_image(Image.fromarray(levels), "PNG"))
    assert (grey == grey[..., :1]).all()
    np.testing.assert_allclose(grey[..., 0], levels / 257, atol=1)
    assert (np.diff(grey[..., 0].ravel().astype(int)) >= 0).all()
    white = Image.fromarray(np.full((40, 40), 65535, np.uint16))
    assert decode(saved_image(white, "PNG")).min() == 255


def test_16_bit_grey_of_either_byte_order_is_the_same() -> None:
    levels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    little = Image.frombytes("I;16", (64, 64), levels.astype("<u2").tobytes())
    big = Image.frombytes("I;16B", (64, 64), levels.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(little), decode(big))


def test_one_bit_and_grey_become_rgb() -> None:
    for source in (*_both(_halves("1", 0, 1), "PNG"), *_both(_halves("1", 0, 1), "TIFF")):
        _expect_halves(source, (0, 0, 0), (255, 255, 255))
    for source in (*_both(_halves("L", 9, 130), "PNG"), *_both(_halves("L", 9, 130), "BMP")):
        _expect_halves(source, (9, 9, 9), (130, 130, 130))


# What a file holds of an upright picture, by what EXIF 2.32 says of where its 0th row and 0th column are.
_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,  # row: top, column: left
    2: lambda p: p[:, ::-1],  # top, right
    3: lambda p: p[::-1, ::-1],  # bottom, right
    4: lambda p: p[::-1],  # bottom, left
    5: lambda p: p.swapaxes(0, 1),  # left, top
    6: lambda p: p[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda p: p[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("orientation", _STORED)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_gives_the_upright_pixels(format: str, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](PICTURE)))
    saved = saved_image(stored, format, exif=exif_bytes(orientation), **FORMATS[format])
    np.testing.assert_array_equal(decode(saved), PICTURE)
    assert pixel_sha256(decode(saved)) == pixel_sha256(PICTURE)
    with Image.open(io.BytesIO(saved)) as image:
        np.testing.assert_array_equal(decode(image), PICTURE)


@pytest.mark.parametrize("orientation", _STORED)
def test_every_exif_orientation_of_a_jpeg_is_honoured(orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](PICTURE)))
    pixels = decode(saved_image(stored, "JPEG", exif=exif_bytes(orientation), quality=95))
    assert pixels.shape == PICTURE.shape
    assert np.abs(pixels.astype(int) - PICTURE).mean() < 3


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_exif_orientation_that_means_nothing_is_ignored(orientation: int) -> None:
    saved = saved_image(Image.fromarray(PICTURE), "PNG", exif=exif_bytes(orientation))
    np.testing.assert_array_equal(decode(saved), PICTURE)


# -- ICC profiles --


def _by_icc(**info: Any) -> np.ndarray:
    said: list[str] = []
    pixels = decode(saved_image(Image.fromarray(PICTURE), "PNG", **info), warnings=said)
    assert not said
    return pixels


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_icc_profile_is_applied(format: str) -> None:
    plain = decode(SAVED[format])
    said: list[str] = []
    pixels = decode(
        saved_image(Image.fromarray(PICTURE), format, icc_profile=WIDE_PROFILE, **FORMATS[format]),
        warnings=said,
    )
    assert not said
    assert np.abs(pixels.astype(int) - wide_to_srgb(plain)).max() <= 2
    assert np.abs(pixels.astype(int) - plain).max() > 9


def test_the_profile_of_srgb_changes_no_pixel() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(_by_icc(icc_profile=srgb), PICTURE)


def test_profile_and_orientation_are_both_applied() -> None:
    expected = _by_icc(icc_profile=WIDE_PROFILE)
    stored = Image.fromarray(np.ascontiguousarray(_STORED[6](PICTURE)))
    for format in ("PNG", "TIFF", "WEBP"):
        saved = saved_image(stored, format, exif=exif_bytes(6), icc_profile=WIDE_PROFILE, **FORMATS[format])
        np.testing.assert_array_equal(decode(saved), expected)


def test_colours_under_a_transparency_and_in_a_palette_are_by_the_profile() -> None:
    colour = np.array([[[200, 100, 50]]], np.uint8)
    managed = tuple(wide_to_srgb(colour)[0, 0].tolist())
    clear = _halves("RGBA", (200, 100, 50, 255), (9, 9, 9, 0))
    for source in (
        _both(clear, "PNG", icc_profile=WIDE_PROFILE)[1],
        saved_image(_palette(), "PNG", icc_profile=WIDE_PROFILE),
    ):
        pixels = decode(source)
        place = (20, 10) if (pixels[20, 54] == 255).all() else (20, 54)
        assert np.abs(pixels[place].astype(int) - managed).max() <= 2
    assert (decode(saved_image(clear, "PNG", icc_profile=WIDE_PROFILE))[20, 54] == 255).all()


def test_grey_is_by_the_profile_of_grey_or_of_rgb() -> None:
    levels = np.repeat(np.arange(0, 256, 4, np.uint8)[None], 40, axis=0)
    grey = Image.fromarray(levels)
    expected = (gamma_curve((levels / 255) ** 1.75) * 255).round()[..., None]
    for image in (grey, Image.fromarray(levels.astype(np.uint16) * 257)):
        pixels = decode(saved_image(image, "PNG", icc_profile=GREY_PROFILE))
        assert np.abs(pixels.astype(int) - expected).max() <= 2
    pixels = decode(saved_image(grey, "PNG", icc_profile=WIDE_PROFILE))
    assert np.abs(pixels.astype(int) - wide_to_srgb(np.stack([levels] * 3, axis=-1))).max() <= 2


@pytest.mark.parametrize(
    "profile",
    [b"nonsense", WIDE_PROFILE[:200], bytes(128), GREY_PROFILE, WIDE_PROFILE.replace(b"RGB ", b"CMYK")],
    ids=["nonsense", "cut", "zeros", "of grey", "of another kind"],
)
def test_a_profile_that_cannot_be_used_is_a_warning(profile: bytes) -> None:
    for source in (
        saved_image(Image.fromarray(PICTURE), "PNG", icc_profile=profile),
        saved_image(Image.fromarray(PICTURE), "TIFF", icc_profile=profile),
    ):
        said: list[str] = []
        np.testing.assert_array_equal(decode(source, warnings=said), PICTURE)
        assert len(said) == 1 and "ICC" in said[0]


def test_a_profile_that_is_too_large_is_a_warning() -> None:
    large = _profile(b"RGB ") + bytes(5_000_000)
    said: list[str] = []
    decode(saved_image(Image.fromarray(PICTURE), "TIFF", icc_profile=large), warnings=said)
    assert len(said) == 1 and "ICC" in said[0]


def test_damaged_profiles_give_a_picture() -> None:
    draw = np.random.default_rng(0)
    for n in range(200):
        profile = bytearray(WIDE_PROFILE if n % 2 else GREY_PROFILE)
        for place in draw.integers(0, len(profile), 1 + n % 4):
            profile[place] = draw.integers(256)
        source = Image.fromarray(PICTURE if n % 2 else PICTURE[..., 0])
        source.info["icc_profile"] = bytes(profile)
        assert decode(source).shape == PICTURE.shape


# -- the digest --


def test_the_digest_depends_on_pixels_alone() -> None:
    digests = {pixel_sha256(decode(SAVED[name])) for name in ("PNG", "TIFF", "BMP", "WEBP")}
    assert digests == {
        pixel_sha256(PICTURE),
        pixel_sha256(np.asfortranarray(PICTURE)),
        pixel_sha256(PICTURE[::-1][::-1]),
    }
    assert len(digests) == 1


def test_the_digest_depends_on_every_pixel_and_on_the_shape() -> None:
    for place in ((0, 0, 0), (HEIGHT - 1, WIDTH - 1, 2), (20, 33, 1)):
        other = PICTURE.copy()
        other[place] ^= 1
        assert pixel_sha256(other) != pixel_sha256(PICTURE)
    assert pixel_sha256(PICTURE.reshape(WIDTH, HEIGHT, 3)) != pixel_sha256(PICTURE)
    assert pixel_sha256(PICTURE[..., ::-1]) != pixel_sha256(PICTURE)


# -- what the model sees --


@pytest.mark.parametrize("across", [True, False], ids=["wide", "tall"])
def test_crop_takes_the_central_square(across: bool) -> None:
    wide = np.zeros((60, 100, 3), np.uint8)
    wide[:, :20], wide[:, 80:] = (255, 0, 0), (0, 0, 255)  # outside the square
    wide[:, 20:80] = (10, 120, 30)
    seen = preprocess(wide if across else wide.swapaxes(0, 1), ImageRecipe(size=48, fit="crop"))
    assert seen.shape == (48, 48, 3)
    inner = seen[2:-2, 2:-2]  # the filter may look over the edge
    assert np.unique(inner.reshape(-1, 3), axis=0).tolist() == [[10, 120, 30]]
    assert np.abs(seen.astype(int) - (10, 120, 30)).max() < 40


def test_crop_keeps_the_square_whole() -> None:
    wide = np.zeros((64, 100, 3), np.uint8)
    wide[:, 18:82] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    np.testing.assert_array_equal(preprocess(wide, ImageRecipe(size=64)), wide[:, 18:82])


def test_squash_keeps_all_of_the_picture() -> None:
    wide = np.zeros((60, 120, 3), np.uint8)
    wide[:, :40], wide[:, 40:80], wide[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    seen = preprocess(wide, ImageRecipe(size=48, fit="squash"))
    assert seen.shape == (48, 48, 3)
    assert [seen[24, x].tolist() for x in (4, 24, 43)] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    height=st.integers(32, 90),
    width=st.integers(32, 90),
    size=st.integers(1, 96),
    fit=st.sampled_from(["crop", "squash"]),
    resample=st.sampled_from(["bicubic", "bilinear"]),
)
def test_prepare_gives_the_same_square_every_time(
    height: int, width: int, size: int, fit: str, resample: str
) -> None:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    recipe = ImageRecipe(size=size, fit=fit, resample=resample)
    seen = preprocess(pixels, recipe)
    assert seen.shape == (size, size, 3) and seen.dtype == np.uint8
    np.testing.assert_array_equal(preprocess(pixels.copy(), recipe), seen)
    strided = np.asfortranarray(pixels)
    np.testing.assert_array_equal(preprocess(strided, recipe), seen)


@pytest.mark.parametrize(
    "option",
    [
        {"fit": "pad"},
        {"fit": ["crop"]},
        {"fit": None},
        {"resample": "nearest"},
        {"resample": "BICUBIC"},
        {"orientation": "none"},
        {"decode": "rgb16"},
    ],
    ids=str,
)
def test_an_unknown_value_in_the_recipe_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        ImageRecipe(**option)
    assert caught.value.code == "recipe-unknown"
    assert next(iter(option)) in str(caught.value) and repr(next(iter(option.values()))) in str(caught.value)


@pytest.mark.parametrize("size", [0, -1, 1.5, "224", None, True])
def test_a_size_that_is_not_a_number_of_pixels_is_refused(size: Any) -> None:
    with pytest.raises(InputError):
        ImageRecipe(size=size)
