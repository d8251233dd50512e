"""What a neighbour in the process, a broken tag or a strange format does to a picture: nothing, or a word."""

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from test_image import FORMATS, PICTURE, SAVED, _exif, _refusal, _saved

from skinret_infer.errors import InputError
from skinret_infer.image import decode

# -- neighbours --


@pytest.fixture
def neighbour(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many training and web packages leave Pillow when they are imported."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    yield
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # it is theirs


def _half(format: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    data = _saved(Image.fromarray(noise), format, **FORMATS[format])
    return data[: len(data) * 6 // 10]


@pytest.mark.parametrize("format", FORMATS)
def test_half_a_picture_is_refused_whatever_a_neighbour_allows(
    format: str, neighbour: None, tmp_path: Path
) -> None:
    half = _half(format)
    (tmp_path / "half").write_bytes(half)
    for source in (half, tmp_path / "half", io.BytesIO(half)):
        assert _refusal(source) and decode(SAVED[format]).shape == PICTURE.shape
    try:
        picture = Image.open(io.BytesIO(half))  # not read yet
    except OSError:
        return
    _refusal(picture)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_half_a_frame_of_a_dicom_object_is_refused_whatever_a_neighbour_allows(
    kind: str, neighbour: None
) -> None:
    dicom = pytest.importorskip("test_dicom")
    options = {"quality": 90} if kind == "JPEG" else {"no_jp2": True, "mct": 1}
    frame = _saved(Image.fromarray(PICTURE), kind, **options)
    photometric, syntax = {
        "JPEG": ("YBR_FULL_422", dicom.uid.JPEGBaseline8Bit),
        "JPEG2000": ("YBR_RCT", dicom.uid.JPEG2000),
    }[kind]
    assert decode(dicom._object(frame, photometric, syntax)).shape == PICTURE.shape
    _refusal(dicom._object(frame[: len(frame) // 2], photometric, syntax), "image-truncated")


def test_a_neighbour_may_change_its_mind_while_pictures_are_read() -> None:
    half, stop = _half("JPEG"), threading.Event()

    def flicker() -> None:
        while not stop.is_set():
            ImageFile.LOAD_TRUNCATED_IMAGES = not ImageFile.LOAD_TRUNCATED_IMAGES

    thread = threading.Thread(target=flicker)
    thread.start()
    try:
        for _ in range(200):
            _refusal(half, "image-truncated")
            np.testing.assert_array_equal(decode(SAVED["PNG"]), PICTURE)
    finally:
        stop.set()
        thread.join()
        ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (Image, "MAX_IMAGE_PIXELS", 10),
        (Image, "MAX_IMAGE_PIXELS", None),
        (ImageFile, "MAXBLOCK", 16),
        (PngImagePlugin, "MAX_TEXT_CHUNK", 1),
        (PngImagePlugin, "MAX_TEXT_MEMORY", 1),
    ],
)
def test_other_settings_of_a_neighbour_change_no_picture(
    module: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {format: decode(data) for format, data in SAVED.items()}
    monkeypatch.setattr(module, name, value)
    for format, data in SAVED.items():
        if (format, value) == ("WEBP", 10):  # Pillow measures it before anybody else can
            assert "PIL.Image.MAX_IMAGE_PIXELS" in _refusal(data, "image-too-large")
        else:
            np.testing.assert_array_equal(decode(data), right[format])


# -- tags and chunks beside the pixels --


def _broken_exif(orientation: int) -> bytes:
    """EXIF with an orientation, a resolution that is a text, and a date that lies outside of it."""
    text = int.from_bytes(b"72\0\0", "little")
    entries = [(0x0112, 3, 1, orientation), (0x011A, 2, 3, text), (0x0132, 2, 20, 0xFFFFFF00)]
    body = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + body + bytes(4)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_broken_tag_costs_neither_the_picture_nor_its_orientation(format: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(PICTURE[::-1, ::-1]))  # orientation 3
    good, bad = (
        _saved(stored, format, exif=exif, **FORMATS[format])
        for exif in (_exif(3).tobytes(), b"Exif\0\0" + _broken_exif(3))
    )
    said: list[str] = []
    np.testing.assert_array_equal(decode(bad, warnings=said), decode(good))
    assert not said and np.abs(decode(bad).astype(int) - PICTURE).mean() < 3


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\xff"],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_cannot_be_read_is_a_warning(format: str, exif: bytes) -> None:
    said: list[Any] = []
    pixels = decode(_saved(Image.fromarray(PICTURE), format, exif=exif, **FORMATS[format]), warnings=said)
    assert np.abs(pixels.astype(int) - PICTURE).mean() < 3
    assert [remark.code for remark in said] == (["image-orientation"] if exif != b"Exif\0\0" else [])


def _png(*more: tuple[bytes, bytes], damage: bytes = b"", before: bytes = b"IDAT") -> bytes:
    """The picture as a PNG with more chunks; those of a kind get a wrong check sum."""
    data, out, place = SAVED["PNG"], b"\x89PNG\r\n\x1a\n", 8
    chunks = []
    while place < len(data):
        (length,) = struct.unpack_from(">L", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    at = next(n for n, (kind, _) in enumerate(chunks) if kind == before)
    for kind, body in [*chunks[:at], *more, *chunks[at:]]:
        check = zlib.crc32(kind + body) ^ (kind == damage)
        out += struct.pack(">L", len(body)) + kind + body + struct.pack(">L", check)
    return out


def test_a_wrong_check_sum_beside_the_pixels_is_a_warning() -> None:
    for before in (b"IDAT", b"IEND"):
        said: list[Any] = []
        data = _png((b"tEXt", b"Comment\0x"), damage=b"tEXt", before=before)
        np.testing.assert_array_equal(decode(data, warnings=said), PICTURE)
        assert [remark.code for remark in said] == ["image-metadata"] and "tEXt" in said[0]


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_wrong_check_sum_of_the_pixels_is_damage(kind: bytes) -> None:
    assert kind.decode() in _refusal(_png(damage=kind), "image-truncated")


def test_texts_that_unpack_without_end_are_no_matter() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    for body in (b"Comment\0\0" + bomb, b"Raw profile type exif\0\0" + bomb):
        np.testing.assert_array_equal(decode(_png((b"zTXt", body))), PICTURE)


# -- colours --


def _through(primaries: list[tuple[float, float]], pixels: np.ndarray) -> np.ndarray:
    """RGB of other primaries with the curve and the white of sRGB, as sRGB; by the formulas alone."""
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])

    def to_xyz(three: list[tuple[float, float]]) -> np.ndarray:
        columns = np.array([(x, y, 1 - x - y) for x, y in three]).T
        return columns * np.linalg.solve(columns, white)

    srgb = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]
    values = pixels / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = (linear @ (np.linalg.inv(to_xyz(srgb)) @ to_xyz(primaries)).T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


P3, BT2020 = (
    [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)],
    [(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)],
)


@pytest.mark.parametrize(("code", "primaries"), [(12, P3), (9, BT2020)])
def test_the_coded_colours_of_a_png_are_converted(code: int, primaries: list[tuple[float, float]]) -> None:
    said: list[str] = []
    pixels = decode(_png((b"cICP", bytes([code, 13, 0, 1])), before=b"IDAT"), warnings=said)
    assert not said
    assert np.abs(pixels - _through(primaries, PICTURE)).max() <= 3
    assert np.abs(pixels.astype(int) - PICTURE).max() > 10


@pytest.mark.parametrize("coded", [(1, 13, 0, 1), (1, 1, 0, 1), (2, 2, 0, 1)])
def test_colours_coded_as_srgb_are_left(coded: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(decode(_png((b"cICP", bytes(coded)))), PICTURE)


@pytest.mark.parametrize("coded", [(9, 16, 0, 1), (9, 18, 0, 1), (1, 13, 0, 0), (200, 13, 0, 1)])
def test_colours_that_cannot_be_converted_are_a_warning(coded: tuple[int, ...]) -> None:
    said: list[Any] = []
    np.testing.assert_array_equal(decode(_png((b"cICP", bytes(coded))), warnings=said), PICTURE)
    assert [remark.code for remark in said] == ["image-colour"]


def test_a_gamma_without_a_profile_is_heeded() -> None:
    linear = decode(_png((b"gAMA", struct.pack(">L", 100_000))))
    values = PICTURE / 255
    expected = 255 * np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    assert np.abs(linear - expected).max() <= 2
    np.testing.assert_array_equal(decode(_png((b"gAMA", struct.pack(">L", 45_455)))), PICTURE)


def test_adobe_rgb_by_exif_alone_is_converted() -> None:
    inner = struct.pack("<HHHLLL", 1, 0xA001, 3, 1, 2, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<LHHHLLL", 8, 1, 0x8769, 4, 1, 26, 0) + inner
    data = _saved(Image.fromarray(PICTURE), "PNG", exif=exif)
    assert np.abs(decode(data).astype(int) - PICTURE).max() > 10


# -- what is not read --


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GIF89a" + bytes(40), "a GIF file"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIF (HEIC) file"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "an AVIF file"),
        (b"\0\0\0\x18ftypmp42" + bytes(40), "a video"),
        (b"\xff\x0a" + bytes(40), "a JPEG XL file"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "a JPEG 2000 file"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"<?xml version='1.0'?><svg xmlns='x'></svg>", "an SVG drawing"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\x1f\x8b\x08" + bytes(40), "packed by gzip"),
        (b"PK\x03\x04" + bytes(40), "a ZIP archive"),
        (bytes(64), "zeros alone"),
        (b"hello, world", "not an image"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_read_is_called_what_it_is(data: bytes, said: str) -> None:
    message = _refusal(data, "image-unreadable")
    assert said in message and "To cure it" in message


def _frame(marker: int, bits: int = 8, channels: int = 3) -> bytes:
    """A JPEG whose frame says something else than the coder wrote."""
    data = bytearray(_saved(Image.fromarray(PICTURE), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 1], data[place + 4], data[place + 9] = marker, bits, channels
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_frame(0xC1, bits=12), "a JPEG of 12 bits a channel"),
        (_frame(0xC3), "a lossless JPEG"),
        (_frame(0xC5), "a hierarchical JPEG"),
        (_frame(0xC0, channels=2), "a JPEG of 2 channels"),
    ],
)
def test_a_jpeg_of_a_kind_that_is_not_read_is_called_what_it_is(data: bytes, said: str) -> None:
    message = _refusal(data)
    assert said in message and "To cure it" in message and "is not an image" not in message


def test_an_arithmetic_jpeg_has_a_cure_that_loses_nothing() -> None:
    assert "jpegtran" in _refusal(_frame(0xC9), "image-scans")


def test_every_refusal_is_an_input_error_within_the_limits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(
            _png((b"tEXt", b"a\0b"), (b"eXIf", _broken_exif(3)), (b"cICP", bytes([9, 16, 0, 1])))
        )
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(8, len(data)))] = int(rng.integers(256))
        try:
            assert decode(bytes(data)).shape[2] == 3
        except InputError:
            continue
