"""DICOM objects: each transfer syntax and colour that is read, each refusal, and that no name leaks."""

import io
import json
import logging
import re
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_objects import (
    _PALETTE,
    DAY,
    HEIGHT,
    NAME,
    NUMBER,
    PICTURE,
    WIDTH,
    YBR,
    _smooth,
    _written,
    dicom_object,
    palette_object,
    plant_names,
    run_lengths,
    saved_image,
)
from helpers import WIDE_PROFILE, wide_to_srgb
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.sequence import Sequence

from skinret_infer import Case, Searcher, SkinretError
from skinret_infer.errors import InputError
from skinret_infer.imaging import decode as image_module
from skinret_infer.imaging.decode import decode
from skinret_infer.tables import read_cases

CLASSES = {
    "dermoscopic": uid.DermoscopicPhotographyImageStorage,
    "photographic": uid.VLPhotographicImageStorage,
    "capture": uid.SecondaryCaptureImageStorage,
}
NATIVE = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
}


def _subsampled(ybr: np.ndarray) -> bytes:
    """YBR_FULL_422 as an object stores it: Y Y Cb Cr for two pixels of a row."""
    pairs = ybr.reshape(len(ybr), -1, 2, 3)
    colour = pairs[..., 1:].mean(axis=2).round().astype(np.uint8)
    return np.concatenate([pairs[..., 0], colour], axis=-1).tobytes()


def _close(data: bytes, expected: np.ndarray, levels: int = 2) -> None:
    pixels = decode(data)
    assert pixels.shape == expected.shape and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= levels


def _refusal(data: bytes, code: str) -> str:
    with pytest.raises(InputError) as caught:
        decode(data)
    message = str(caught.value)
    assert caught.value.code == code, message
    assert message.startswith("the bytes object")
    assert re.search(r"\. To cure it: .+\.$", message), f"no cure: {message}"
    return message


# -- objects that are read, and their pixels --


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_uncompressed_pixels_come_back(photometric: str, planar: int, syntax: str) -> None:
    stored = PICTURE if photometric == "RGB" else YBR
    pixels = (stored.transpose(2, 0, 1) if planar else stored).tobytes()
    data = dicom_object(pixels, photometric, NATIVE[syntax], PlanarConfiguration=planar)
    _close(data, PICTURE, 0 if photometric == "RGB" else 2)


@pytest.mark.parametrize("syntax", NATIVE)
def test_uncompressed_subsampled_pixels_come_back(syntax: str) -> None:
    data = dicom_object(_subsampled(YBR), "YBR_FULL_422", NATIVE[syntax])
    ds = pydicom.dcmread(io.BytesIO(data))
    _close(data, convert_color_space(pydicom.pixels.pixel_array(ds, raw=True), "YBR_FULL", "RGB"))


def test_pixels_that_are_named_subsampled_but_are_not_come_back() -> None:
    _close(dicom_object(YBR.tobytes(), "YBR_FULL_422"), PICTURE)


def test_big_endian_words_are_swapped() -> None:
    def words(ds: Dataset) -> None:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
        ds["PixelData"].VR = "OW"

    _close(dicom_object(PICTURE.tobytes(), syntax=uid.ExplicitVRBigEndian, change=words), PICTURE, 0)


@pytest.mark.parametrize("sop_class", CLASSES)
def test_the_classes_of_dermoscopy_are_read(sop_class: str) -> None:
    _close(dicom_object(PICTURE.tobytes(), SOPClassUID=CLASSES[sop_class]), PICTURE, 0)
    colour = uid.MultiFrameTrueColorSecondaryCaptureImageStorage
    _close(dicom_object(PICTURE.tobytes(), SOPClassUID=colour, NumberOfFrames=1), PICTURE, 0)


_INDEX = (np.mgrid[:HEIGHT, :WIDTH].sum(axis=0) * 1.4 + 20).astype(np.uint8)


@pytest.mark.parametrize("syntax", [*NATIVE.values(), uid.RLELossless, uid.JPEG2000Lossless], ids=str)
@pytest.mark.parametrize("wide", ["", "high", "low", "both"])
def test_a_palette_gives_its_colours(syntax: str, wide: str) -> None:
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    pixels = _INDEX.tobytes()
    if syntax == uid.RLELossless:
        pixels = run_lengths(_INDEX[..., None])
    elif syntax == uid.JPEG2000Lossless:
        pixels = saved_image(_INDEX, "JPEG2000", no_jp2=True)
    data = dicom_object(pixels, "PALETTE COLOR", syntax, change=palette_object(wide=wide, order=order))
    _close(data, _PALETTE[_INDEX], 0)


def test_a_palette_that_starts_later_gives_its_first_and_last_colour_outside() -> None:
    data = dicom_object(_INDEX.tobytes(), "PALETTE COLOR", change=palette_object(first=30))
    _close(data, _PALETTE[np.clip(_INDEX.astype(int) - 30, 0, 199)], 0)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_run_lengths_come_back(photometric: str) -> None:
    stored = PICTURE if photometric == "RGB" else YBR
    _close(
        dicom_object(run_lengths(stored), photometric, uid.RLELossless),
        PICTURE,
        0 if stored is PICTURE else 2,
    )


def test_runs_over_the_end_of_a_row_come_back() -> None:
    runs = b"\x81\x09" * (HEIGHT * WIDTH // 128)  # 128 pixels each, in rows of 72
    segments = runs + runs + runs
    header = struct.pack("<16L", 3, *(64 + n * len(runs) for n in range(3)), *[0] * 12)
    _close(dicom_object(header + segments, syntax=uid.RLELossless), np.full_like(PICTURE, 9), 0)


_LOSSLESS, _LOSSY = {"irreversible": False}, {"irreversible": True}


@pytest.mark.parametrize(
    ("photometric", "syntax", "options"),
    [
        ("RGB", uid.JPEG2000Lossless, {**_LOSSLESS, "mct": 0}),
        ("YBR_RCT", uid.JPEG2000Lossless, {**_LOSSLESS, "mct": 1}),
        ("YBR_FULL", uid.JPEG2000Lossless, {**_LOSSLESS, "mct": 0}),
        ("RGB", uid.JPEG2000, {**_LOSSY, "mct": 0}),
        ("YBR_ICT", uid.JPEG2000, {**_LOSSY, "mct": 1}),
        ("YBR_RCT", uid.JPEG2000, {**_LOSSLESS, "mct": 1}),
    ],
)
def test_jpeg_2000_comes_back(photometric: str, syntax: str, options: dict[str, Any]) -> None:
    stored = YBR if photometric == "YBR_FULL" else PICTURE
    frame = saved_image(stored, "JPEG2000", no_jp2=True, **options)
    assert frame.startswith(b"\xff\x4f\xff\x51")  # the codestream alone
    _close(dicom_object(frame, photometric, syntax), PICTURE)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL", "RGB"])  # RGB is wrong, but frequent
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_baseline_is_as_pillow_decodes_it(photometric: str, subsampling: int) -> None:
    frame = saved_image(PICTURE, "JPEG", quality=90, subsampling=subsampling)
    _close(dicom_object(frame, photometric, uid.JPEGBaseline8Bit), decode(frame), 0)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
def test_jpeg_baseline_of_rgb_is_not_converted_again(photometric: str) -> None:
    frame = saved_image(PICTURE, "JPEG", quality=97, keep_rgb=True)
    assert b"Adobe" in frame
    _close(dicom_object(frame, photometric, uid.JPEGBaseline8Bit), decode(frame), 0)
    assert np.abs(decode(frame).astype(int) - PICTURE).mean() < 2


def _unmarked(jpeg: bytes) -> bytes:
    """Remove the colour marks of a JPEG: the JFIF and Adobe segments, and letters as component ids."""
    place, pieces = 2, [jpeg[:2]]
    while jpeg[place + 1] != 0xDA:
        length = 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        if jpeg[place + 1] not in (0xE0, 0xEE):
            pieces.append(jpeg[place : place + length])
        place += length
    jpeg = b"".join(pieces) + jpeg[place:]
    for n, letter in enumerate(b"RGB", 1):
        jpeg = re.sub(b"(?s)(\xff\xc0.{%d})%c" % (5 + 3 * n, letter), rb"\g<1>%c" % n, jpeg, count=1)
        jpeg = re.sub(b"(?s)(\xff\xda.{%d})%c" % (1 + 2 * n, letter), rb"\g<1>%c" % n, jpeg, count=1)
    return jpeg


def _codes(data: bytes, expected: np.ndarray, levels: int = 2) -> list[str]:
    messages: list[Any] = []
    pixels = decode(data, warnings=messages)
    assert np.abs(pixels.astype(int) - expected).max() <= levels
    return [warning.code for warning in messages]


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("label", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"])
def test_the_colour_transformation_of_jpeg_2000_overrides_the_object(label: str, lossless: bool) -> None:
    syntax = uid.JPEG2000Lossless if lossless else uid.JPEG2000

    def coded(pixels: np.ndarray, **options: Any) -> bytes:
        frame = saved_image(pixels, "JPEG2000", irreversible=not lossless, **options)
        return dicom_object(frame, label, syntax)

    def contradiction(contradicts: bool) -> list[str]:
        return ["image-colour"] if contradicts else []

    transformed = coded(PICTURE, no_jp2=True, mct=1)
    assert _codes(transformed, PICTURE) == contradiction(label in ("YBR_FULL", "YBR_FULL_422"))
    if label.startswith("YBR_FULL"):
        assert _codes(coded(YBR, no_jp2=True, mct=0), PICTURE, 4) == []
    else:  # no transformation, although the object says RCT or ICT
        assert _codes(coded(PICTURE, no_jp2=True, mct=0), PICTURE) == contradiction(label != "RGB")
    for mct in (0, 1):  # a box says sRGB
        assert _codes(coded(PICTURE, mct=mct), PICTURE) == contradiction(label.startswith("YBR_FULL"))


@pytest.mark.parametrize("label", ["RGB", "YBR_FULL", "YBR_FULL_422"])
def test_a_jpeg_that_contradicts_its_object_overrides_it_with_a_warning(label: str) -> None:
    jfif, adobe = (
        saved_image(PICTURE, "JPEG", quality=97),
        saved_image(PICTURE, "JPEG", quality=97, keep_rgb=True),
    )
    assert b"JFIF" in jfif and b"Adobe" in adobe
    for frame, says_rgb in ((jfif, False), (adobe, True)):
        codes = _codes(dicom_object(frame, label, uid.JPEGBaseline8Bit), decode(frame), 0)
        assert codes == (["image-colour"] if says_rgb != (label == "RGB") else [])


def _skin() -> np.ndarray:
    """A dark lesion on skin, with noise: the channels rise and fall together."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    dark = np.exp(-(((x - 36) / 14) ** 2 + ((y - 24) / 10) ** 2))[..., None]
    noise = np.random.default_rng(1).normal(0, 3, (HEIGHT, WIDTH, 1))
    return (np.array([205, 160, 140]) - dark * np.array([120, 110, 95]) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("syntax", [*NATIVE.values(), uid.RLELossless, uid.JPEG2000Lossless], ids=str)
def test_colours_that_do_not_look_like_those_of_the_object_give_a_warning(syntax: str) -> None:
    skin = _skin()
    coded = convert_color_space(skin, "RGB", "YBR_FULL")

    def written(pixels: np.ndarray, label: str) -> bytes:
        if syntax == uid.RLELossless:
            return dicom_object(run_lengths(pixels), label, syntax)
        if syntax == uid.JPEG2000Lossless:
            return dicom_object(saved_image(pixels, "JPEG2000", no_jp2=True, mct=0), label, syntax)
        return dicom_object(pixels.tobytes(), label, syntax)

    assert _codes(written(skin, "RGB"), skin) == []
    assert _codes(written(coded, "YBR_FULL"), skin) == []
    for pixels, label in ((skin, "YBR_FULL"), (coded, "RGB")):
        assert _codes(written(pixels, label), skin, 255) == ["image-colour"]


def test_a_jpeg_without_marks_has_the_colours_that_the_object_names() -> None:
    rgb, ybr = (saved_image(p, "JPEG", quality=97, keep_rgb=True) for p in (PICTURE, YBR))
    expected = decode(rgb)
    for jpeg in (rgb, ybr):
        assert b"Adobe" not in _unmarked(jpeg) and b"JFIF" not in _unmarked(jpeg)
    _close(dicom_object(_unmarked(rgb), "RGB", uid.JPEGBaseline8Bit), expected, 0)
    back = decode(dicom_object(_unmarked(ybr), "YBR_FULL", uid.JPEGBaseline8Bit))
    assert np.abs(back.astype(int) - PICTURE).mean() < 2


def test_a_frame_in_several_fragments_is_joined() -> None:
    frame = saved_image(PICTURE, "JPEG", quality=90)
    frame += b"\0" * (len(frame) % 2)

    def split(table: bool) -> Callable[[Dataset], None]:
        def change(ds: Dataset) -> None:
            ds.PixelData = encapsulate([frame], fragments_per_frame=5, has_bot=table)

        return change

    for table in (True, False):
        data = dicom_object(frame, "YBR_FULL_422", uid.JPEGBaseline8Bit, change=split(table))
        _close(data, decode(frame), 0)


def _frames_of_each_kind() -> dict[str, tuple[bytes, str, str]]:
    jpeg = saved_image(PICTURE, "JPEG", quality=90)
    jpeg_2000 = saved_image(PICTURE, "JPEG2000", no_jp2=True, mct=1)
    return {
        "jpeg": (jpeg + b"\0" * (len(jpeg) % 2), "YBR_FULL_422", uid.JPEGBaseline8Bit),
        "jpeg 2000": (jpeg_2000 + b"\0" * (len(jpeg_2000) % 2), "YBR_RCT", uid.JPEG2000Lossless),
        "rle": (run_lengths(PICTURE), "RGB", uid.RLELossless),
    }


def _item(content: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
_TABLES = {
    "none": b"",
    "right": struct.pack("<L", 0),
    "too far": struct.pack("<L", 4),
    "beyond the end": struct.pack("<L", 0x7FFFFFF0),
    "of more frames": struct.pack("<3L", 0, 100, 200),
    "of noise": b"\x55" * 8,
    "of no whole number": b"\0\0\0\0\0\0",
    "of zeros": bytes(32),
}


@pytest.mark.parametrize("table", _TABLES)
@pytest.mark.parametrize("kind", _frames_of_each_kind())
def test_all_fragments_are_joined_to_one_frame_whatever_the_table_says(kind: str, table: str) -> None:
    frame, label, syntax = _frames_of_each_kind()[kind]
    expected = decode(dicom_object(frame, label, syntax))
    half = len(frame) // 4 * 2
    for fragments in (
        [frame],
        [frame[:half], frame[half:]],
        [b"", frame],
        [frame[:half], b"", frame[half:], b""],
    ):
        for end in (_END, b"", _END + struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, 2) + b"\0\0"):
            items = b"".join(map(_item, (_TABLES[table], *fragments))) + end
            _close(_with_items(frame, label, syntax, items), expected, 0)


def _with_items(frame: bytes, label: str, syntax: str, items: bytes) -> bytes:
    data = dicom_object(frame, label, syntax)
    return data[: data.rindex(b"\xe0\x7f\x10\0OB") + 12] + items


@pytest.mark.parametrize("kind", _frames_of_each_kind())
def test_fragments_without_any_table_are_read(kind: str) -> None:
    frame, label, syntax = _frames_of_each_kind()[kind]
    expected = decode(dicom_object(frame, label, syntax))
    _close(_with_items(frame, label, syntax, _item(frame) + _END), expected, 0)
    if kind != "rle":
        items = _item(frame[:100]) + _item(frame[100:]) + _END
        _close(_with_items(frame, label, syntax, items), expected, 0)


def test_an_extended_table_of_offsets_is_ignored() -> None:
    frame, label, syntax = _frames_of_each_kind()["jpeg"]

    def wrong(ds: Dataset) -> None:
        ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = struct.pack("<Q", 777), struct.pack("<Q", 3)

    _close(dicom_object(frame, label, syntax, change=wrong), decode(frame), 0)


@pytest.mark.parametrize("kind", _frames_of_each_kind())
def test_fragments_that_are_damaged_or_of_several_frames_are_refused(kind: str) -> None:
    frame, label, syntax = _frames_of_each_kind()[kind]
    table = _item(b"")
    if kind != "rle":
        several = table + _item(frame) + _item(frame) + _END
        _refusal(_with_items(frame, label, syntax, several), "image-dicom-frames")
    for items in (
        table + _item(frame[:200]) + b"noise, noise" + _item(frame[200:]) + _END,
        table + _item(frame)[:-300],
        table + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + frame + _END,
    ):
        _refusal(_with_items(frame, label, syntax, items), "image-truncated")
    for items in (b"", table, _END, table + _END, table + _item(b"") + _END):
        _refusal(_with_items(frame, label, syntax, items), "image-dicom-pixels")


def test_fragments_that_stand_as_words_or_without_a_type_are_read() -> None:
    frame = saved_image(PICTURE, "JPEG", quality=90)
    data = dicom_object(frame, "YBR_FULL_422", uid.JPEGBaseline8Bit)
    tag, undefined = b"\xe0\x7f\x10\x00", b"\xff\xff\xff\xff"
    assert data.count(tag + b"OB\0\0" + undefined) == 1
    for written in (tag + b"OW\0\0" + undefined, tag + undefined):
        _close(data.replace(tag + b"OB\0\0" + undefined, written), decode(frame), 0)


def test_the_orientation_within_a_jpeg_does_not_count_in_an_object() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = (saved_image(PICTURE, "JPEG", quality=90, **o) for o in ({}, {"exif": exif}))
    assert decode(turned).shape != PICTURE.shape
    _close(dicom_object(turned, "YBR_FULL_422", uid.JPEGBaseline8Bit), decode(plain), 0)


@pytest.mark.parametrize("size", [(72, 48), (73, 49), (33, 47)])
def test_odd_sizes_come_back(size: tuple[int, int]) -> None:
    picture = _smooth(size[1], size[0])
    _close(dicom_object(picture.tobytes(), size=size), picture, 0)
    _close(
        dicom_object(saved_image(picture, "JPEG2000", no_jp2=True), syntax=uid.JPEG2000Lossless, size=size),
        picture,
        0,
    )


def test_the_icc_profile_of_an_object_is_applied() -> None:
    data = dicom_object(PICTURE.tobytes(), ICCProfile=WIDE_PROFILE)
    _close(data, wide_to_srgb(PICTURE))
    assert np.abs(decode(data).astype(int) - PICTURE).max() > 9
    png = saved_image(PICTURE, "PNG", icc_profile=WIDE_PROFILE)
    np.testing.assert_array_equal(decode(data), decode(png))


def test_a_damaged_profile_gives_a_warning() -> None:
    messages: list[str] = []
    data = dicom_object(PICTURE.tobytes(), ICCProfile=b"no profile")
    np.testing.assert_array_equal(decode(data, warnings=messages), PICTURE)
    assert len(messages) == 1 and "ICC" in messages[0]


@pytest.mark.parametrize("element", ["BurnedInAnnotation", "RecognizableVisualFeatures"])
def test_a_picture_that_may_show_who_the_patient_is_gives_a_warning(element: str) -> None:
    for value, count in (("YES", 1), ("NO", 0), ("", 0)):
        messages: list[str] = []
        decode(dicom_object(PICTURE.tobytes(), **{element: value}), warnings=messages)
        assert len(messages) == count
        assert all(re.sub("(?<!^)([A-Z])", r" \1", element) in text for text in messages)


def test_sequences_of_every_kind_are_skipped() -> None:
    def nest(ds: Dataset) -> None:
        inner, item = Dataset(), Dataset()
        inner.Rows = 7
        inner.PixelData = b"\1" * 8
        inner["PixelData"].VR = "OB"
        item.IconImageSequence = Sequence([inner])
        item.Columns = 5
        for n, name in enumerate(("ReferencedStudySequence", "ProcedureCodeSequence", "IconImageSequence")):
            setattr(ds, name, Sequence([item, inner] if n else []))
            ds[name].is_undefined_length = n != 1
            inner.is_undefined_length_sequence_item = n == 2
        item["IconImageSequence"].is_undefined_length = True
        ds.SpecificCharacterSet = "ISO_IR 192"

    for syntax in NATIVE.values():
        _close(dicom_object(PICTURE.tobytes(), syntax=syntax, change=nest), PICTURE, 0)


def test_deep_nesting_is_no_recursion() -> None:
    data = dicom_object(PICTURE.tobytes())
    tag = data.index(struct.pack("<HH", 0x0028, 0x0002))
    deep = struct.pack("<HH2sHL", 0x0028, 0x0001, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    ends = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    _close(data[:tag] + (deep + item) * 20_000 + ends * 20_000 + data[tag:], PICTURE, 0)
    _refusal(data[:tag] + (deep + item) * 20_000 + data[tag:], "image-truncated")


def test_the_samples_of_pydicom_are_read_as_pydicom_reads_them() -> None:
    count = 0
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("SC_*.dcm")):
        try:
            pixels = decode(path)
        except InputError as error:
            assert error.code != "image-truncated", path
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = pydicom.pixels.pixel_array(pydicom.dcmread(path))
        assert np.abs(pixels.astype(int) - expected).max() <= 2, path
        count += 1
    assert count >= 12


# -- objects that are refused --


@pytest.mark.parametrize(
    ("found", "change"),
    [
        ("3 frames", {"NumberOfFrames": 3}),
        ("0 frames", {"NumberOfFrames": 0}),
    ],
)
def test_another_number_of_frames_is_refused(found: str, change: dict[str, Any]) -> None:
    assert found in _refusal(dicom_object(PICTURE.tobytes() * 3, **change), "image-dicom-frames")


def test_pixels_of_a_second_frame_are_refused() -> None:
    _refusal(dicom_object(PICTURE.tobytes() * 2), "image-dicom-frames")


def _every_syntax() -> dict[str, bytes]:
    frame, stream = saved_image(PICTURE, "JPEG"), saved_image(PICTURE, "JPEG2000", no_jp2=True, mct=1)
    return {
        "explicit": dicom_object(PICTURE.tobytes()),
        "jpeg": dicom_object(frame, "YBR_FULL_422", uid.JPEGBaseline8Bit),
        "jpeg 2000": dicom_object(stream, "YBR_RCT", uid.JPEG2000Lossless),
        "rle": dicom_object(run_lengths(PICTURE), "RGB", uid.RLELossless),
    }


@pytest.mark.parametrize("syntax", _every_syntax())
def test_an_object_that_takes_too_long_is_refused(syntax: str) -> None:
    data = _every_syntax()[syntax]
    with pytest.raises(InputError) as caught:
        decode(data, max_seconds=0)
    assert caught.value.code == "image-too-slow"
    assert decode(data).shape == PICTURE.shape


def test_a_jpeg_of_very_many_scans_within_an_object_is_refused() -> None:
    jpeg = saved_image(PICTURE, "JPEG", progressive=True)
    jpeg = jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * 100 + b"\xff\xd9"
    _refusal(dicom_object(jpeg, "YBR_FULL_422", uid.JPEGBaseline8Bit), "image-scans")


def test_jpeg_2000_of_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skinret_infer.imaging.dicom.MAX_JPEG_2000", 100)
    _refusal(_every_syntax()["jpeg 2000"], "image-too-large")


def test_an_object_without_pixels_is_refused() -> None:
    assert "no pixels" in _refusal(dicom_object(None), "image-dicom-pixels")
    _refusal(dicom_object(b""), "image-dicom-pixels")
    floats = dicom_object(None, change=lambda ds: ds.add_new(0x7FE00008, "OF", bytes(400)))
    _refusal(floats, "image-dicom-pixels")


@pytest.mark.parametrize(
    "bits",
    [
        {"BitsAllocated": 16, "BitsStored": 16},
        {"BitsAllocated": 16, "BitsStored": 12},
        {"BitsAllocated": 8, "BitsStored": 7},
        {"PixelRepresentation": 1},
        {"BitsAllocated": 1, "BitsStored": 1},
    ],
    ids=str,
)
def test_another_depth_than_8_bits_is_refused(bits: dict[str, int]) -> None:
    pixels = np.repeat(PICTURE, 2, axis=1).tobytes()
    assert "8 bits" in _refusal(dicom_object(pixels, **bits), "image-dicom-depth")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "HSV", "CMYK", "YBR_ICT", "", "rgb"])
def test_other_colours_are_refused(photometric: str) -> None:
    message = _refusal(dicom_object(PICTURE.tobytes(), photometric), "image-dicom-colour")
    assert "RGB" in message and "YBR_FULL_422" in message
    if photometric.isupper():
        assert f"found {photometric}" in message


def test_a_palette_that_is_missing_or_in_segments_is_refused() -> None:
    _refusal(dicom_object(_INDEX.tobytes(), "PALETTE COLOR"), "image-dicom-colour")
    _refusal(
        dicom_object(saved_image(_INDEX, "JPEG"), "PALETTE COLOR", uid.JPEGBaseline8Bit), "image-dicom-colour"
    )


@pytest.mark.parametrize(
    "sop_class", [uid.CTImageStorage, uid.EncapsulatedPDFStorage, uid.VideoPhotographicImageStorage], ids=str
)
def test_objects_of_another_class_are_refused_by_name(sop_class: uid.UID) -> None:
    message = _refusal(dicom_object(PICTURE.tobytes(), SOPClassUID=sop_class), "image-dicom-class")
    assert sop_class.name in message and "Dermoscopic Photography" in message


def test_an_unknown_class_is_refused() -> None:
    for unknown in ("1.2.840.113619.4.2", "1.2.840.10008.99.1", "nonsense", ""):
        message = _refusal(dicom_object(PICTURE.tobytes(), SOPClassUID=unknown), "image-dicom-class")
        assert unknown == "" or unknown not in message


@pytest.mark.parametrize(
    "syntax",
    [uid.DeflatedExplicitVRLittleEndian, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.HTJ2K, uid.MPEG2MPML],
    ids=str,
)
def test_other_transfer_syntaxes_are_refused_by_name(syntax: uid.UID) -> None:
    data = dicom_object(PICTURE.tobytes(), syntax=syntax)
    assert syntax.name in _refusal(data, "image-dicom-syntax")


_CODERS = {
    "JPEG Lossless": ("dcmcjpeg", "+e1"),
    "JPEG Lossless, other": ("dcmcjpeg", "+el"),
    "JPEG Extended": ("dcmcjpeg", "+ee"),
    "JPEG Spectral Selection": ("dcmcjpeg", "+es"),
    "JPEG Full Progression": ("dcmcjpeg", "+ep"),
    "JPEG-LS Lossless": ("dcmcjpls", "+el"),
    "JPEG-LS Lossy": ("dcmcjpls", "+en"),
    "Deflated": ("dcmconv", "+td"),
}


@pytest.mark.skipif(not shutil.which("dcmcjpls"), reason="DCMTK is not installed")
@pytest.mark.parametrize("syntax", _CODERS)
def test_the_cure_of_an_object_with_another_transfer_syntax_works(syntax: str, tmp_path: Path) -> None:
    path, coded, cured = (tmp_path / name for name in ("plain.dcm", "coded.dcm", "cured.dcm"))
    path.write_bytes(
        dicom_object(PICTURE.tobytes(), change=lambda ds: setattr(ds, "SOPInstanceUID", "1.2.3.4"))
    )
    subprocess.run([*_CODERS[syntax], path, coded], check=True, capture_output=True)
    cure = re.search(r"DCMTK: (.+) IN OUT\.$", _refusal(coded.read_bytes(), "image-dicom-syntax"))
    assert cure
    subprocess.run([*cure[1].split(), coded, cured], check=True, capture_output=True)
    assert np.abs(decode(cured).astype(int) - PICTURE).mean() < 3


@pytest.mark.skipif(not shutil.which("dcmconv"), reason="DCMTK is not installed")
def test_the_cure_of_an_object_without_its_beginning_works(tmp_path: Path) -> None:
    bare, cured = tmp_path / "bare.dcm", tmp_path / "cured.dcm"
    bare.write_bytes(dicom_object(PICTURE.tobytes())[132:])
    cure = re.search(r"DCMTK: (.+) IN OUT\.$", _refusal(bare.read_bytes(), "image-unreadable"))
    assert cure
    subprocess.run([*cure[1].split(), bare, cured], check=True, capture_output=True)
    _close(cured.read_bytes(), PICTURE, 0)


@pytest.mark.parametrize("syntax", uid.AllTransferSyntaxes, ids=str)
def test_no_cure_names_a_program_that_does_not_take_the_object(syntax: uid.UID) -> None:
    try:
        decode(dicom_object(PICTURE.tobytes(), syntax=syntax))
    except InputError as error:
        assert "gdcmconv" not in str(error)


def test_a_file_that_names_no_transfer_syntax_is_refused() -> None:
    assert "DICOM" in _refusal(bytes(128) + b"DICM" + bytes(400), "image-unreadable")
    _refusal(bytes(128) + b"DICM", "image-unreadable")


def test_sizes_are_checked_before_pixels_are_decoded() -> None:
    small, frame = PICTURE.tobytes(), saved_image(PICTURE, "JPEG2000", no_jp2=True)
    for size in ((65535, 65535), (65535, 1000)):
        _refusal(dicom_object(small, size=size), "image-too-large")
        _refusal(dicom_object(frame, syntax=uid.JPEG2000, size=size), "image-too-large")
    _refusal(dicom_object(small, size=(31, 400)), "image-too-small")
    _refusal(dicom_object(small, size=(0, 400)), "image-too-small")
    with pytest.raises(InputError) as caught:
        decode(dicom_object(small), max_pixels=HEIGHT * WIDTH - 1)
    assert caught.value.code == "image-too-large"
    assert decode(dicom_object(small), max_pixels=HEIGHT * WIDTH).shape == PICTURE.shape


def test_a_frame_of_another_size_than_the_object_says_is_refused() -> None:
    for format, syntax in (("JPEG", uid.JPEGBaseline8Bit), ("JPEG2000", uid.JPEG2000)):
        frame = saved_image(_smooth(400, 600), format, **({"no_jp2": True} if format == "JPEG2000" else {}))
        assert "600 x 400" in _refusal(dicom_object(frame, "RGB", syntax), "image-truncated")


def test_run_lengths_beyond_the_picture_are_not_unpacked() -> None:
    runs = b"\x81\x09" * 1_000_000  # 128 MB a channel; the picture needs 3 KB
    header = struct.pack("<16L", 3, *(64 + n * len(runs) for n in range(3)), *[0] * 12)
    _close(dicom_object(header + runs * 3, syntax=uid.RLELossless), np.full_like(PICTURE, 9), 0)


@pytest.mark.parametrize("kind", ["path", "bytes", "file object"])
def test_more_bytes_than_a_picture_needs_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dicom_object(PICTURE.tobytes())
    path = tmp_path / "a"
    path.write_bytes(data + bytes(10_000_000))
    monkeypatch.setattr(image_module, "MAX_BYTES", len(data))
    with path.open("rb") as file:
        source: Any = {"path": path, "bytes": path.read_bytes(), "file object": file}[kind]
        with pytest.raises(InputError) as caught:
            decode(source)
        assert kind != "file object" or file.tell() <= len(data) + 1
    assert caught.value.code == "image-too-large"
    assert decode(data).shape == PICTURE.shape


def _kinds() -> dict[str, bytes]:
    """One object of each way of reading."""
    return {
        "explicit": dicom_object(PICTURE.tobytes(), BurnedInAnnotation="YES", PatientName="A^B"),
        "implicit": dicom_object(PICTURE.tobytes(), syntax=uid.ImplicitVRLittleEndian, PatientName="A^B"),
        "big endian": dicom_object(PICTURE.tobytes(), syntax=uid.ExplicitVRBigEndian),
        "half": dicom_object(_subsampled(YBR), "YBR_FULL_422"),
        "palette": dicom_object(_INDEX.tobytes(), "PALETTE COLOR", change=palette_object()),
        "rle": dicom_object(run_lengths(PICTURE), "RGB", uid.RLELossless),
        "jpeg": dicom_object(saved_image(PICTURE, "JPEG"), "YBR_FULL_422", uid.JPEGBaseline8Bit),
        "jpeg 2000": dicom_object(
            saved_image(PICTURE, "JPEG2000", no_jp2=True, mct=1), "YBR_RCT", uid.JPEG2000Lossless
        ),
    }


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("kind", _kinds())
def test_an_object_cut_short_is_refused(kind: str, fraction: float) -> None:
    data = _kinds()[kind]
    with pytest.raises(InputError) as caught:
        decode(data[: int(fraction * len(data))])
    assert caught.value.code in ("image-truncated", "image-dicom-pixels", "image-dicom-class")


@pytest.mark.parametrize("kind", ["jpeg", "jpeg 2000", "rle"])
def test_a_frame_cut_short_within_a_complete_object_is_refused(kind: str) -> None:
    ds = pydicom.dcmread(io.BytesIO(_kinds()[kind]))
    frame = pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)
    for fraction in (0.3, 0.6, 0.9):
        ds.PixelData = encapsulate([frame[: int(fraction * len(frame))]])
        _refusal(_written(ds), "image-truncated")


@pytest.mark.parametrize("kind", _kinds())
def test_damaged_objects_give_an_input_error_or_a_picture_without_logs_or_warnings(
    kind: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    original = _kinds()[kind]
    draw = np.random.default_rng(list(kind.encode()))
    head = original.rindex(b"\xe0\x7f\x10\x00" if kind != "big endian" else b"\x7f\xe0\x00\x10") + 40
    with caplog.at_level(logging.INFO):
        for n in range(150):
            data = bytearray(original)
            for place in draw.integers(128 if n % 3 else head - 40, head if n % 3 else len(data), 1 + n % 5):
                data[place] = draw.choice([0, 255, 127, 128, int(draw.integers(256)), data[place] ^ 1])
            if n % 10 == 0:
                del data[int(draw.integers(132, len(data))) :]
            if n % 10 == 1:  # a piece twice
                start, length = draw.integers(132, head), draw.integers(1, 300)
                data[start:start] = data[start : start + length]
            try:
                pixels = decode(bytes(data))
            except InputError as error:
                assert error.code.startswith("image-")
            else:
                assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert not caplog.records
    assert not list(recwarn)


# -- no data of the patient leak --


def _object_with_names(syntax: str = uid.JPEGBaseline8Bit, **elements: Any) -> bytes:
    exif = Image.Exif()
    exif[0x013B] = exif[0x010E] = f"{NAME} {DAY}"
    frame = saved_image(PICTURE, "JPEG", exif=exif, comment=NAME.encode())
    if syntax == uid.JPEGBaseline8Bit:
        data = dicom_object(frame, "YBR_FULL_422", syntax, change=plant_names, **elements)
    else:
        data = dicom_object(PICTURE.tobytes(), "RGB", syntax, change=plant_names, **elements)
    data = data.replace(b"ISO_IR 192", NAME.encode().ljust(10))  # unknown: pydicom would quote it
    assert data.count(NAME.encode()) > 300 and data.count(DAY.encode()) > 50
    return NAME.encode().ljust(128, b"\0") + data[128:]


def _names(content: str | bytes) -> list[str]:
    """Return the planted words that a text or file contains."""
    text = content.decode("latin-1") if isinstance(content, bytes) else content
    return [w for w in (NAME, DAY, NUMBER) if w.casefold() in text.casefold()]


def test_no_name_id_or_date_reaches_result_log_or_archive(
    bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    path = tmp_path / "lesion.dcm"
    path.write_bytes(_object_with_names(BurnedInAnnotation="YES", RecognizableVisualFeatures="YES"))
    caplog.clear(), recwarn.clear()  # pydicom logs when it writes
    with caplog.at_level(logging.DEBUG), Searcher(bundle, folder / "cases.skinret") as searcher:
        report = searcher.add(
            [case := Case("1", path, diagnosis="nevus"), Case("2", PICTURE, diagnosis="nevus")]
        )
        results = searcher.query(path, "irregular streaks", k=2)
        texts = [repr(searcher), repr(report), str(report), repr(case), *report.warning_lines()]
    assert sorted(hit.case_id for hit in results) == ["1", "2"]
    texts += [str(results), repr(results), json.dumps(results.to_dict()), json.dumps(report.to_dict())]
    texts += [record.getMessage() + repr(record.args) for record in caplog.records]
    texts += [str(w.message) for w in recwarn]
    texts += capfd.readouterr()
    assert not [text for text in texts if _names(text)]
    assert not [file for file in folder.rglob("*") if file.is_file() and _names(file.read_bytes())]
    assert len(results.warnings) == 2 and list(report.warnings) == ["1"]


@pytest.mark.parametrize(
    "elements",
    [
        {"PhotometricInterpretation": NAME.upper()},
        {"SOPClassUID": f"1.2.840.10008.{NUMBER}"},
        {"SOPClassUID": NAME},
        {"Rows": 20},
        {"BitsAllocated": 16},
        {"ICCProfile": NAME.encode()},
        {"SamplesPerPixel": 1},
    ],
    ids=str,
)
def test_no_name_reaches_an_error(
    elements: dict[str, Any], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    data, texts = _object_with_names(**elements), list[str]()
    caplog.clear(), recwarn.clear()
    with caplog.at_level(logging.DEBUG):
        for cut in (len(data), len(data) - 100, len(data) // 2, 2000, 600, 400, 300, 200):
            try:
                decode(data[:cut], warnings=texts)
            except InputError as error:
                texts += [str(error), repr(error), *getattr(error, "__notes__", [])]
    texts += [record.getMessage() + repr(record.args) for record in caplog.records]
    texts += [str(w.message) for w in recwarn]
    assert texts and not [text for text in texts if _names(text)]


@pytest.mark.parametrize("syntax", NATIVE)
def test_an_object_full_of_text_is_read_without_logs_or_warnings(
    syntax: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    data = _object_with_names(NATIVE[syntax])
    caplog.clear(), recwarn.clear()
    _close(data, PICTURE, 0)
    assert not caplog.records and not list(recwarn)


def test_a_name_in_the_place_of_a_number_or_syntax_reaches_no_error() -> None:
    data = dicom_object(PICTURE.tobytes(), NumberOfFrames=12345678)
    for old, new in (
        (b"12345678", NAME.encode()),
        (b"1.2.840.10008.1.2.1", b"1.2.840.10008.99999"),
        (b"1.2.840.10008.1.2.1", NAME.encode().ljust(19)),
    ):
        with pytest.raises(InputError) as caught:
            decode(data.replace(old, new))
        assert not _names(str(caught.value)) and "99999" not in str(caught.value)


# -- in use --


def test_a_query_by_dicom_is_the_query_by_the_same_pixels_as_png(searcher: Searcher, tmp_path: Path) -> None:
    picture = _smooth(90, 120)
    (tmp_path / "a.png").write_bytes(saved_image(picture, "PNG"))
    (tmp_path / "a").write_bytes(dicom_object(picture.tobytes(), size=(120, 90)))  # no extension
    lossless = saved_image(picture, "JPEG2000", no_jp2=True, mct=1)
    (tmp_path / "b.dcm").write_bytes(dicom_object(lossless, "YBR_RCT", uid.JPEG2000Lossless, size=(120, 90)))
    answers = [searcher.query(tmp_path / n, "irregular streaks").to_dict() for n in ("a.png", "a", "b.dcm")]
    for answer in answers:
        for key in ("timings_ms", "time", "request_id"):
            answer.pop(key, None)
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["hits"]


def test_warnings_of_a_batch_stay_with_their_pictures(searcher: Searcher) -> None:
    marked = dicom_object(PICTURE.tobytes(), BurnedInAnnotation="YES")
    plain = dicom_object(PICTURE.tobytes())
    several = searcher.query_batch(
        [(plain, "streaks"), (marked, "xylophones"), (marked, None), (plain, None)]
    )
    assert ["Burned In" in " ".join(r.warnings) for r in several] == [False, True, True, False]
    assert "xylophones" in " ".join(several[1].warnings)
    assert "warning: the DICOM object says" in str(several[2])


def test_a_table_may_name_dicom_objects(bundle: Path, tmp_path: Path) -> None:
    for n, name in enumerate(("a.dcm", "b", "1.2.840.77")):
        data = dicom_object(
            _smooth(40 + n).tobytes(), size=(WIDTH, 40 + n), BurnedInAnnotation="YES" if n else "NO"
        )
        (tmp_path / name).write_bytes(data)
    table = tmp_path / "cases.csv"
    table.write_text("case_id,image,diagnosis\n1,a.dcm,nevus\n2,b,nevus\n3,1.2.840.77,nevus\n")
    assert len(read_cases(table).cases) == 3
    command = [sys.executable, "-m", "skinret_infer.cli.main", "index"]
    process = subprocess.run(
        [*command, bundle, tmp_path / "c.skinret", table, "--json"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    assert report["added"] == ["1", "2", "3"] and list(report["warnings"]) == ["2", "3"]
    assert "warning: 2, 3: the DICOM object says that writing" in process.stderr


def test_without_pydicom_the_refusal_names_the_extra_and_other_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom_object(PICTURE.tobytes()))
    (tmp_path / "a.png").write_bytes(saved_image(PICTURE, "PNG"))
    code = """
import sys
sys.modules["pydicom"] = None
from skinret_infer.imaging.decode import decode
from skinret_infer.errors import InputError
print(decode("a.png").shape)
try:
    decode("a.dcm")
except InputError as error:
    print(error.code, error)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    shape, refusal = process.stdout.splitlines()
    assert shape == f"({HEIGHT}, {WIDTH}, 3)"
    assert refusal.startswith("extra-missing") and 'pip install "skinret-infer[dicom]"' in refusal


def test_pydicom_is_not_imported_for_other_files() -> None:
    code = "import sys, skinret_infer; print('pydicom' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"


def test_every_refusal_is_a_skinret_error() -> None:
    assert issubclass(InputError, SkinretError)
