"""Settings of Pillow that other packages change: half a picture is still refused, pixels stay the same."""

import io
import itertools
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import FORMATS, PICTURE, SAVED, image_refusal, saved_image, tiff
from PIL import BmpImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from skinret_infer.errors import InputError
from skinret_infer.imaging.decode import decode

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def _complete_files() -> dict[str, bytes]:
    """Complete files of many kinds of picture."""
    image = Image.fromarray(NOISE)
    files = {name: saved_image(image, name, **options) for name, options in FORMATS.items()}
    files["progressive JPEG"] = saved_image(image, "JPEG", progressive=True)
    files["CMYK JPEG"] = saved_image(image.convert("CMYK"), "JPEG")
    files["MPO"] = saved_image(image, "MPO", save_all=True, append_images=[image])
    files["PNG of 16 bits"] = saved_image(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG")
    files["animated PNG"] = saved_image(image, "PNG", save_all=True, append_images=[image.rotate(90)])
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"TIFF {name}"] = saved_image(image, "TIFF", compression=name)
    files["TIFF in planes"] = tiff(PICTURE.astype(np.int64) * 257, 16, 2, planar=True, ahead=True)
    return files


COMPLETE = _complete_files()


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What many packages do when they are imported."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


def _sources(data: bytes, path: Path) -> dict[str, Callable[[], Any]]:
    path.write_bytes(data)
    return {
        "bytes": lambda: data,
        "path": lambda: path,
        "file object": lambda: io.BytesIO(data),
        "PIL image": lambda: Image.open(io.BytesIO(data)),
        "PIL image of a path": lambda: Image.open(path),
    }


@pytest.mark.filterwarnings("ignore")  # Pillow's, where the test opens a file
@pytest.mark.parametrize("kind", COMPLETE)
def test_half_a_picture_is_refused_whatever_another_package_sets(
    kind: str, lenient: None, tmp_path: Path
) -> None:
    data = COMPLETE[kind]
    if second := {"MPO": b"\xff\xd8\xff\xe0", "animated PNG": b"fcTL"}.get(kind):
        data = data[: data.rindex(second) - 4]  # the first of several pictures
    for fraction in (0.4, 0.6, 0.9):
        for source in _sources(data[: int(fraction * len(data))], tmp_path / "half").values():
            try:
                opened = source()
            except OSError:
                continue  # Pillow cannot open a TIFF without its directory, which stands last
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(InputError) as caught:
                    decode(opened)
            assert caught.value.code in ("image-truncated", "image-unreadable")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("format", ["GIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI"])
def test_half_a_pil_image_of_any_format_is_refused(format: str, lenient: None) -> None:
    data = saved_image(Image.fromarray(NOISE), format)
    decode(Image.open(io.BytesIO(data)))
    image_refusal(Image.open(io.BytesIO(data[: len(data) // 2])), "image-truncated")


def test_a_pil_image_keeps_its_class_and_is_loaded() -> None:
    image = Image.open(io.BytesIO(saved_image(Image.fromarray(NOISE), "GIF")))
    before = type(image)
    decode(image)
    assert type(image) is before and image.size == (64, 64)


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("format", ["JPEG", "JPEG2000", "rle"])
def test_half_a_frame_of_a_dicom_object_is_refused(format: str, fraction: float, lenient: None) -> None:
    uid = pytest.importorskip("pydicom").uid
    from dicom_objects import dicom_object, run_lengths

    if format == "rle":
        frame, syntax = run_lengths(PICTURE), uid.RLELossless
    else:
        options = {"no_jp2": True} if format == "JPEG2000" else {}
        frame = saved_image(Image.fromarray(PICTURE), format, **options)
        syntax = uid.JPEG2000Lossless if options else uid.JPEGBaseline8Bit
    photometric = "YBR_FULL_422" if format == "JPEG" else "RGB"
    assert decode(dicom_object(frame, photometric, syntax)).shape == PICTURE.shape
    image_refusal(dicom_object(frame[: int(fraction * len(frame))], photometric, syntax), "image-truncated")


def test_decoding_in_threads_is_right_while_another_package_toggles_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    data, half = COMPLETE["JPEG"], COMPLETE["JPEG"][: len(COMPLETE["JPEG"]) // 2]
    end, expected = threading.Event(), decode(data)

    def toggle() -> None:
        for value in itertools.cycle((True, False)):
            if end.is_set():
                return
            ImageFile.LOAD_TRUNCATED_IMAGES = value

    def refuses_half(_: int) -> bool:
        np.testing.assert_array_equal(decode(data), expected)
        try:
            decode(half)
        except InputError as error:
            return error.code == "image-truncated"
        return False

    neighbour = threading.Thread(target=toggle)
    neighbour.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(refuses_half, range(300))) == 300
    finally:
        end.set()
        neighbour.join()
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    Image.open(io.BytesIO(half)).load()  # the other package can still load its own half picture


_SETTINGS: dict[str, tuple[Any, str, Any]] = {
    "lenient": (ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    "few pixels": (Image, "MAX_IMAGE_PIXELS", 1000),
    "small blocks": (ImageFile, "MAXBLOCK", 7),
    "large blocks": (ImageFile, "MAXBLOCK", 1 << 30),
    "small texts": (PngImagePlugin, "MAX_TEXT_CHUNK", 5),
    "few texts": (PngImagePlugin, "MAX_TEXT_MEMORY", 5),
    "libtiff": (TiffImagePlugin, "READ_LIBTIFF", True),
    "raw alpha": (BmpImagePlugin, "USE_RAW_ALPHA", True),
    "no plugins": (Image, "ID", []),
    "no openers": (Image, "OPEN", {}),
}


def _with_texts() -> dict[str, bytes]:
    """Files with what the settings concern: texts, a fourth byte in a BMP, two bytes a sample."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "long " * 100, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", "<x/>" * 100, zip=True)
    bmp = bytearray(saved_image(Image.fromarray(PICTURE).convert("RGBA"), "BMP"))
    size, plain = int.from_bytes(bmp[10:14], "little"), 14 + 40
    bmp = bmp[:14] + b"\x28\0\0\0" + bmp[18:30] + bytes(24) + bytes(bmp[size:])
    bmp[10:14] = plain.to_bytes(4, "little")
    bmp[plain + 3 :: 4] = bytes(len(bmp[plain + 3 :: 4]))
    return {
        **SAVED,
        "texts": saved_image(Image.fromarray(PICTURE), "PNG", pnginfo=texts),
        "fourth byte": bytes(bmp),
        "grey TIFF": saved_image(Image.fromarray(PICTURE[..., 1].astype(np.uint16) * 257), "TIFF"),
    }


@pytest.mark.parametrize("setting", _SETTINGS)
def test_no_setting_of_pillow_changes_a_picture(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = _with_texts()
    before = {name: decode(data) for name, data in files.items()}
    np.testing.assert_array_equal(before["fourth byte"], PICTURE)
    monkeypatch.setattr(*_SETTINGS[setting])
    for name, data in files.items():
        if (setting, name) == ("few pixels", "WEBP"):
            continue
        np.testing.assert_array_equal(decode(data), before[name], err_msg=name)


def test_a_limit_of_pixels_that_another_package_sets_is_named_where_it_applies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    try:
        np.testing.assert_array_equal(decode(SAVED["WEBP"]), PICTURE)  # in a Pillow that does not check it
    except InputError as error:
        assert error.code == "image-too-large" and "PIL.Image.MAX_IMAGE_PIXELS" in str(error)


def test_a_decoder_reads_small_blocks_whatever_another_package_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 30)

    class RecordingFile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            sizes.append(-1 if size is None else size)
            return super().read(size)

    from skinret_infer.imaging import codec

    codec.load(codec.Jpeg(RecordingFile(saved_image(Image.fromarray(np.tile(NOISE, (12, 12, 1))), "JPEG"))))
    assert max(sizes) <= 65536


@pytest.mark.parametrize("kind", [name for name in COMPLETE if "MPO" not in name])
def test_pictures_are_read_when_warnings_are_errors(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(COMPLETE[kind]).ndim == 3


def test_plugins_of_other_packages_are_not_used() -> None:
    class Greedy(ImageFile.ImageFile):
        format = "PNG"

        def _open(self) -> None:
            raise AssertionError("used")

    before = dict(Image.OPEN), list(Image.ID)
    try:
        for name in FORMATS:
            Image.register_open(name, Greedy, lambda prefix: True)
        for data in SAVED.values():
            assert decode(data).shape == PICTURE.shape
        image_refusal(b"\0\0\0\x18ftypheic" + bytes(400), "image-unreadable")
    finally:
        Image.OPEN.clear(), Image.OPEN.update(before[0])
        Image.ID[:] = before[1]
