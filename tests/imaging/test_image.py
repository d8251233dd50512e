"""`decode`: the pixels of every kind of picture, and the refusal of everything else."""

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
    """Make a valid white PNG of 1 bit a pixel, without holding its pixels in memory."""
    packer, row = zlib.compressobj(1), b"\0" + b"\xff" * ((width + 7) // 8)
    data = b"".join(packer.compress(row * 1000) for _ in range(height // 1000)) + packer.flush()
    chunks = (b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


# -- sources that are refused --


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
    image_refusal(content, code, name="the bytes object")
    image_refusal(io.BytesIO(content), code, name="the image file object")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    image_refusal(tmp_path / "no such.jpg", "image-missing", name=str(tmp_path / "no such.jpg"))


def test_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    image_refusal(tmp_path, "image-missing", name=str(tmp_path))


def test_the_refusal_of_a_damaged_dicom_file_names_dicom() -> None:
    assert "DICOM" in image_refusal(bytes(128) + b"DICM" + bytes(400), "image-unreadable")


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_a_picture_cut_short_is_refused_rather_than_filled_up(
    format: str, fraction: float, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = saved_image(Image.fromarray(noise), format, **FORMATS[format])
    path = tmp_path / "cut"
    path.write_bytes(data[: int(fraction * len(data))])
    code = "image-truncated"
    if format == "TIFF" and int.from_bytes(data[4:8], "little") > fraction * len(data):
        code = None  # the directory, which stands last, is cut off
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


@pytest.mark.parametrize("side", [10_000, 30_000])  # for the second Pillow itself would warn
def test_a_picture_of_more_than_64_megapixels_is_refused_before_it_is_unpacked(
    side: int, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_one_bit_png(side, side))
    assert "64 megapixels" in image_refusal(path, "image-too-large", name=str(path))


def test_an_array_of_more_than_64_megapixels_is_refused() -> None:
    image_refusal(np.broadcast_to(np.uint8(0), (8001, 8001, 3)), "image-too-large", name="array")


@pytest.mark.parametrize("source", [PICTURE, Image.fromarray(PICTURE), SAVED["PNG"]], ids=type)
def test_the_limit_of_pixels_by_the_caller_holds_for_every_kind_of_source(source: Any) -> None:
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
    with path.open(encoding="utf-8") as file:  # its read() raises UnicodeDecodeError
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
def test_an_array_of_another_type_or_shape_is_refused_by_its_type(array: np.ndarray) -> None:
    assert str(array.dtype) in image_refusal(array, "image-type", name="array")


def test_an_array_without_pixels_is_too_small() -> None:
    image_refusal(np.zeros((0, 0, 3), np.uint8), "image-too-small")


@pytest.mark.parametrize("source", [None, 7, True, [1, 2], {"path": "a.jpg"}, object(), decode], ids=type)
def test_a_source_of_another_type_is_refused_with_the_types_that_are_read(source: Any) -> None:
    message = image_refusal(source, "image-required" if source is None else "image-type")
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


# -- files that take too long --


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
    clock = count(0, 0.1)  # each call takes a tenth of a second
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    rows = (b"\1\7" * 64 + b"\0\0") * 64  # runs of one pixel, each of which is read separately
    header = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 8, 1, len(rows), 0, 0, 256, 0)
    bmp = b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + header + bytes(1024) + rows
    image_refusal(bmp, "image-too-slow")
    assert 30 < next(clock) < 40
    assert decode(bmp, max_seconds=10_000).shape == (64, 64, 3)


def _scans(number: int, *, size: tuple[int, int] | None = None) -> bytes:
    """Make a progressive JPEG with this number of scans by repeating the last one."""
    jpeg = saved_image(Image.fromarray(PICTURE), "JPEG", progressive=True)
    if size:
        frame = jpeg.index(b"\xff\xc2")
        jpeg = jpeg[: frame + 5] + struct.pack(">HH", *size) + jpeg[frame + 9 :]
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * (number - jpeg.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode(_scans(100)).shape == PICTURE.shape

    def load(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", load)
    for number in (101, 5000):
        assert "100 scans" in image_refusal(_scans(number, size=(7000, 9000)), "image-scans")


def test_the_scans_of_a_jpeg_in_a_tiff_are_counted_too() -> None:
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


def test_bytes_that_only_look_like_scans_are_not_counted() -> None:
    markers = b"\xff\xda" * 500
    jpeg = saved_image(Image.fromarray(PICTURE), "JPEG", comment=markers, exif=b"Exif\0\0" + markers)
    np.testing.assert_array_equal(
        decode(jpeg + markers), decode(saved_image(Image.fromarray(PICTURE), "JPEG"))
    )


def test_too_little_memory_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(image_module, "to_rgb", exhaust_memory)
    for source in (SAVED["JPEG"], Image.fromarray(PICTURE)):
        image_refusal(source, "image-memory")


# -- sources that are read, and their pixels --


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "WEBP"])
def test_a_lossless_file_gives_its_exact_pixels(format: str) -> None:
    np.testing.assert_array_equal(decode(SAVED[format]), PICTURE)


def test_a_jpeg_gives_nearly_its_pixels() -> None:
    assert np.abs(decode(SAVED["JPEG"]).astype(int) - PICTURE).mean() < 3


def _warnings(data: bytes) -> list[tuple[str, str]]:
    """Decode a file whose first picture is PICTURE; return the warnings with their codes."""
    messages: list[Any] = []
    assert np.abs(decode(data, warnings=messages).astype(int) - PICTURE).mean() < 3
    return [(message, message.code) for message in messages]


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP"])
def test_the_first_of_several_pictures_is_taken_with_a_warning_of_their_number(format: str) -> None:
    first, *others = (Image.fromarray(x) for x in (PICTURE, PICTURE[::-1], PICTURE[:, ::-1]))
    assert _warnings(SAVED[format]) == []
    several = saved_image(first, format, save_all=True, append_images=others)
    assert _warnings(several) == [("the file holds 3 pictures: the first is taken", "image-several")]


def test_smaller_copies_and_damaged_pages_after_the_first_are_ignored() -> None:
    first, other = Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])
    other.encoderinfo = {"tiffinfo": {254: 1}}
    assert _warnings(saved_image(first, "TIFF", save_all=True, append_images=[other])) == []
    tiff = bytearray(SAVED["TIFF"])
    start = int.from_bytes(tiff[4:8], "little")
    place = start + 2 + 12 * int.from_bytes(tiff[start : start + 2], "little")
    tiff[place : place + 4] = (10**8).to_bytes(4, "little")
    assert _warnings(bytes(tiff)) == []


def test_a_tiff_of_very_many_pages_is_not_read_to_its_end() -> None:
    first, other = Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])
    pages = saved_image(first, "TIFF", save_all=True, append_images=[other] * 150)
    assert "100 or more" in _warnings(pages)[0][0]


def test_an_mpo_file_gives_its_first_picture_and_its_previews_are_not_counted() -> None:
    image = Image.fromarray(PICTURE)
    mpo = saved_image(image, "MPO", save_all=True, append_images=[image.rotate(180)], quality=92)
    np.testing.assert_array_equal(decode(mpo), decode(SAVED["JPEG"]))
    assert _warnings(mpo) == []
    entry = mpo.index(struct.pack("<LL", 0x030000, mpo.rindex(b"\xff\xd8\xff"))) + 16
    panorama = mpo[:entry] + struct.pack("<L", 0x020001) + mpo[entry + 4 :]
    assert "2 pictures" in _warnings(panorama)[0][0]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read_by_a_fresh_process(format: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(SAVED[format])
    code = "import sys; from skinret_infer.imaging.decode import decode; print(decode(sys.argv[1]).shape)"
    process = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert process.stdout == f"({HEIGHT}, {WIDTH}, 3)\n", process.stderr


@pytest.mark.parametrize("format", FORMATS)
def test_path_str_bytes_file_object_and_pil_image_give_the_same_pixels(format: str, tmp_path: Path) -> None:
    path = tmp_path / "lesion.anything"
    path.write_bytes(SAVED[format])
    expected = decode(SAVED[format])
    with path.open("rb") as file, Image.open(path) as image:
        for source in (path, str(path), file, io.BytesIO(SAVED[format]), image, expected):
            np.testing.assert_array_equal(decode(source), expected)


def test_the_source_is_not_changed() -> None:
    image, array = Image.fromarray(PICTURE).quantize(16), PICTURE.copy()
    before = image.mode, image.tobytes(), dict(image.info)
    decode(image), decode(array)
    assert (image.mode, image.tobytes(), dict(image.info)) == before
    np.testing.assert_array_equal(array, PICTURE)
    stream = io.BytesIO(SAVED["PNG"])
    decode(stream)
    assert not stream.closed


def _two_colours(mode: str, left: Any, right: Any, **info: Any) -> Image.Image:
    """Make a 64 x 40 image of two colours."""
    image = Image.new(mode, (64, 40), left)
    image.paste(right, (32, 0, 64, 40))
    image.info.update(info)
    return image


def _check_two_colours(source: Any, left: tuple[int, int, int], right: tuple[int, int, int]) -> None:
    pixels = decode(source)
    assert pixels.shape == (40, 64, 3) and pixels.dtype == np.uint8
    assert np.unique(pixels[:, :32].reshape(-1, 3), axis=0).tolist() == [list(left)]
    assert np.unique(pixels[:, 32:].reshape(-1, 3), axis=0).tolist() == [list(right)]


def _image_and_file(image: Image.Image, format: str, **options: Any) -> list[Any]:
    return [image, saved_image(image, format, **options)]


def test_cmyk_is_converted() -> None:
    for source in _image_and_file(_two_colours("CMYK", (255, 0, 0, 0), (0, 0, 0, 255)), "TIFF"):
        _check_two_colours(source, (0, 255, 255), (0, 0, 0))
    for source in _image_and_file(_two_colours("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "TIFF"):
        _check_two_colours(source, (255, 0, 0), (255, 255, 255))


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    pixels = decode(saved_image(_two_colours("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "JPEG", quality=100))
    assert np.abs(pixels[20, 10].astype(int) - (255, 0, 0)).max() <= 3
    assert np.abs(pixels[20, 54].astype(int) - (255, 255, 255)).max() <= 3


def _palette() -> Image.Image:
    image = _two_colours("P", 0, 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    return image


def test_a_palette_gives_its_colours() -> None:
    for source in _image_and_file(_palette(), "PNG"):
        _check_two_colours(source, (10, 20, 30), (200, 100, 50))


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    _check_two_colours(saved_image(_palette(), "PNG", transparency=0), (255, 255, 255), (200, 100, 50))


def test_a_palette_with_alpha_is_laid_over_white() -> None:
    saved = saved_image(_palette(), "PNG", transparency=bytes([51, 255]))  # 51 is a fifth
    _check_two_colours(saved, (206, 208, 210), (200, 100, 50))


def test_rgba_is_laid_over_white() -> None:
    image = _two_colours("RGBA", (0, 100, 200, 51), (0, 100, 200, 0))
    for format in ("PNG", "TIFF"):
        for source in _image_and_file(image, format):
            _check_two_colours(source, (204, 224, 244), (255, 255, 255))
    for source in _image_and_file(_two_colours("RGBA", (1, 2, 3, 255), (0, 0, 0, 204)), "PNG"):
        _check_two_colours(source, (1, 2, 3), (51, 51, 51))


def test_grey_with_alpha_is_laid_over_white() -> None:
    for source in _image_and_file(_two_colours("LA", (100, 51), (77, 255)), "PNG"):
        _check_two_colours(source, (224, 224, 224), (77, 77, 77))


@pytest.mark.parametrize(
    ("image", "transparent", "other"),
    [
        (_two_colours("RGB", (9, 99, 199), (1, 2, 3)), (9, 99, 199), (1, 2, 3)),
        (_two_colours("L", 9, 77), 9, (77, 77, 77)),
        (_two_colours("1", 0, 1), 0, (255, 255, 255)),
    ],
    ids=["RGB", "L", "1"],
)
def test_the_transparent_colour_of_a_png_is_white(
    image: Image.Image, transparent: Any, other: tuple[int, int, int]
) -> None:
    _check_two_colours(saved_image(image, "PNG", transparency=transparent), (255, 255, 255), other)


def test_16_bit_grey_is_scaled_to_8_bits() -> None:
    levels = np.repeat(np.array([[200 * 257, 3 * 257]], np.uint16), 32, axis=1).repeat(40, axis=0)
    image = Image.fromarray(levels)
    assert image.mode == "I;16"
    for source in (*_image_and_file(image, "PNG"), *_image_and_file(image, "TIFF"), image.convert("I")):
        _check_two_colours(source, (200, 200, 200), (3, 3, 3))


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
    for source in (
        *_image_and_file(_two_colours("1", 0, 1), "PNG"),
        *_image_and_file(_two_colours("1", 0, 1), "TIFF"),
    ):
        _check_two_colours(source, (0, 0, 0), (255, 255, 255))
    for source in (
        *_image_and_file(_two_colours("L", 9, 130), "PNG"),
        *_image_and_file(_two_colours("L", 9, 130), "BMP"),
    ):
        _check_two_colours(source, (9, 9, 9), (130, 130, 130))


# How a file stores an upright picture, by the sides that EXIF 2.32 gives its 0th row and 0th column
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
def test_every_exif_orientation_of_a_jpeg_is_applied(orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](PICTURE)))
    pixels = decode(saved_image(stored, "JPEG", exif=exif_bytes(orientation), quality=95))
    assert pixels.shape == PICTURE.shape
    assert np.abs(pixels.astype(int) - PICTURE).mean() < 3


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_exif_orientation_is_ignored(orientation: int) -> None:
    saved = saved_image(Image.fromarray(PICTURE), "PNG", exif=exif_bytes(orientation))
    np.testing.assert_array_equal(decode(saved), PICTURE)


# -- ICC profiles --


def _decode_png(**info: Any) -> np.ndarray:
    messages: list[str] = []
    pixels = decode(saved_image(Image.fromarray(PICTURE), "PNG", **info), warnings=messages)
    assert not messages
    return pixels


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_icc_profile_is_applied(format: str) -> None:
    plain = decode(SAVED[format])
    saved = saved_image(Image.fromarray(PICTURE), format, icc_profile=WIDE_PROFILE, **FORMATS[format])
    messages: list[str] = []
    pixels = decode(saved, warnings=messages)
    assert not messages
    assert np.abs(pixels.astype(int) - wide_to_srgb(plain)).max() <= 2
    assert np.abs(pixels.astype(int) - plain).max() > 9


def test_the_profile_of_srgb_changes_no_pixel() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(_decode_png(icc_profile=srgb), PICTURE)


def test_profile_and_orientation_are_both_applied() -> None:
    expected = _decode_png(icc_profile=WIDE_PROFILE)
    stored = Image.fromarray(np.ascontiguousarray(_STORED[6](PICTURE)))
    for format in ("PNG", "TIFF", "WEBP"):
        saved = saved_image(stored, format, exif=exif_bytes(6), icc_profile=WIDE_PROFILE, **FORMATS[format])
        np.testing.assert_array_equal(decode(saved), expected)


def test_the_profile_is_applied_to_colours_with_alpha_and_in_a_palette() -> None:
    colour = np.array([[[200, 100, 50]]], np.uint8)
    expected = tuple(wide_to_srgb(colour)[0, 0].tolist())
    clear = _two_colours("RGBA", (200, 100, 50, 255), (9, 9, 9, 0))
    for source in (
        _image_and_file(clear, "PNG", icc_profile=WIDE_PROFILE)[1],
        saved_image(_palette(), "PNG", icc_profile=WIDE_PROFILE),
    ):
        pixels = decode(source)
        place = (20, 10) if (pixels[20, 54] == 255).all() else (20, 54)
        assert np.abs(pixels[place].astype(int) - expected).max() <= 2
    assert (decode(saved_image(clear, "PNG", icc_profile=WIDE_PROFILE))[20, 54] == 255).all()


def test_a_profile_of_grey_or_of_rgb_is_applied_to_grey() -> None:
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
def test_a_profile_that_cannot_be_used_gives_a_warning(profile: bytes) -> None:
    for source in (
        saved_image(Image.fromarray(PICTURE), "PNG", icc_profile=profile),
        saved_image(Image.fromarray(PICTURE), "TIFF", icc_profile=profile),
    ):
        messages: list[str] = []
        np.testing.assert_array_equal(decode(source, warnings=messages), PICTURE)
        assert len(messages) == 1 and "ICC" in messages[0]


def test_a_profile_that_is_too_large_gives_a_warning() -> None:
    large = _profile(b"RGB ") + bytes(5_000_000)
    messages: list[str] = []
    decode(saved_image(Image.fromarray(PICTURE), "TIFF", icc_profile=large), warnings=messages)
    assert len(messages) == 1 and "ICC" in messages[0]


def test_damaged_profiles_give_a_picture() -> None:
    draw = np.random.default_rng(0)
    for n in range(200):
        profile = bytearray(WIDE_PROFILE if n % 2 else GREY_PROFILE)
        for place in draw.integers(0, len(profile), 1 + n % 4):
            profile[place] = draw.integers(256)
        source = Image.fromarray(PICTURE if n % 2 else PICTURE[..., 0])
        source.info["icc_profile"] = bytes(profile)
        assert decode(source).shape == PICTURE.shape


# -- pixel_sha256 --


def test_the_hash_depends_only_on_pixels() -> None:
    hashes = {pixel_sha256(decode(SAVED[name])) for name in ("PNG", "TIFF", "BMP", "WEBP")}
    assert hashes == {
        pixel_sha256(PICTURE),
        pixel_sha256(np.asfortranarray(PICTURE)),
        pixel_sha256(PICTURE[::-1][::-1]),
    }
    assert len(hashes) == 1


def test_the_hash_depends_on_every_pixel_and_on_the_shape() -> None:
    for place in ((0, 0, 0), (HEIGHT - 1, WIDTH - 1, 2), (20, 33, 1)):
        other = PICTURE.copy()
        other[place] ^= 1
        assert pixel_sha256(other) != pixel_sha256(PICTURE)
    assert pixel_sha256(PICTURE.reshape(WIDTH, HEIGHT, 3)) != pixel_sha256(PICTURE)
    assert pixel_sha256(PICTURE[..., ::-1]) != pixel_sha256(PICTURE)


# -- the input of the model --


@pytest.mark.parametrize("across", [True, False], ids=["wide", "tall"])
def test_crop_takes_the_central_square(across: bool) -> None:
    wide = np.zeros((60, 100, 3), np.uint8)
    wide[:, :20], wide[:, 80:] = (255, 0, 0), (0, 0, 255)  # outside the square
    wide[:, 20:80] = (10, 120, 30)
    square = preprocess(wide if across else wide.swapaxes(0, 1), ImageRecipe(size=48, fit="crop"))
    assert square.shape == (48, 48, 3)
    inner = square[2:-2, 2:-2]  # the filter may read beyond the edge
    assert np.unique(inner.reshape(-1, 3), axis=0).tolist() == [[10, 120, 30]]
    assert np.abs(square.astype(int) - (10, 120, 30)).max() < 40


def test_crop_without_resizing_keeps_the_square() -> None:
    wide = np.zeros((64, 100, 3), np.uint8)
    wide[:, 18:82] = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    np.testing.assert_array_equal(preprocess(wide, ImageRecipe(size=64)), wide[:, 18:82])


def test_squash_keeps_the_complete_picture() -> None:
    wide = np.zeros((60, 120, 3), np.uint8)
    wide[:, :40], wide[:, 40:80], wide[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    square = preprocess(wide, ImageRecipe(size=48, fit="squash"))
    assert square.shape == (48, 48, 3)
    assert [square[24, x].tolist() for x in (4, 24, 43)] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    height=st.integers(32, 90),
    width=st.integers(32, 90),
    size=st.integers(1, 96),
    fit=st.sampled_from(["crop", "squash"]),
    resample=st.sampled_from(["bicubic", "bilinear"]),
)
def test_preprocess_gives_the_same_square_every_time(
    height: int, width: int, size: int, fit: str, resample: str
) -> None:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    recipe = ImageRecipe(size=size, fit=fit, resample=resample)
    square = preprocess(pixels, recipe)
    assert square.shape == (size, size, 3) and square.dtype == np.uint8
    np.testing.assert_array_equal(preprocess(pixels.copy(), recipe), square)
    strided = np.asfortranarray(pixels)
    np.testing.assert_array_equal(preprocess(strided, recipe), square)


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
