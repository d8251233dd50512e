"""Read the image formats of hospitals, and decode them to the pixels that the recipe starts from."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .._extras import missing_extra
from ..errors import InputError, SkinretError, SkinretWarning
from . import codec, tiff
from .colour import to_rgb
from .container import Check, Contents
from .identify import CURE, identify
from .jpeg import read_jpeg
from .limits import MAX_BYTES, MAX_PIXELS, MAX_SECONDS, DeadlineReader, check_size, corrupt_image
from .metadata import orientation
from .png import plain_profile, read_png
from .recipe import Pixels
from .simple import read_bmp, read_webp

ImageSource: TypeAlias = str | Path | bytes | IO[bytes] | Image.Image | Pixels

_READERS: dict[bytes, Callable[["DeadlineReader", Check], Contents]] = {
    b"\xff\xd8\xff": read_jpeg,
    b"\x89PNG\r\n\x1a\n": read_png,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"), tiff.read),
    b"BM": read_bmp,
}
_UPRIGHT = {  # EXIF orientation -> the operation that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    source: ImageSource,
    *,
    max_pixels: int = MAX_PIXELS,
    max_seconds: float = MAX_SECONDS,
    warnings: list[str] | None = None,
) -> Pixels:
    """Decode an image to H x W x 3 uint8 sRGB, upright.

    `source` is a path, the bytes of a file, a binary file object, a PIL image or an H x W x 3 uint8 array. A
    file is a JPEG, PNG, TIFF, BMP or WebP or, with the extra `dicom`, a DICOM object. Alpha is laid over
    white, 16 bits are scaled to 8, CMYK and palettes are converted. The ICC profile (or other data of the
    file on its colours) and the EXIF orientation are applied. If a file holds several pictures, the first is
    taken. A PIL image whose file is not read yet is decoded from its file. Pillow's global settings, which
    other packages of the process may change, do not change the pixels: half a picture is always an error.

    Parameters
    ----------
    max_pixels : the most pixels (width times height) that a picture may have.
    max_seconds : the most seconds that decoding a file may take.
    warnings : a list to which warnings about the picture are added, each with a `code`:
        "image-several": the file holds more pictures;
        "image-profile": the ICC profile cannot be used;
        "image-colour": the colours are unclear, contradicted or not converted;
        "image-depth": 32 bits a channel are taken as 16;
        "image-orientation": the orientation cannot be read;
        "image-metadata": something beside the pixels is damaged;
        "image-burned-in" and "image-recognizable": the DICOM object says that the picture may show who the
        patient is.

    Raises
    ------
    InputError : for anything but a complete image of a usable size, and for a file that is not decoded
        within `max_seconds`. Its code is "image-unreadable" if the format is not read (the message names the
        format), and "image-truncated" if the file is damaged.
    """
    if warnings is None:
        warnings = []
    if isinstance(source, np.ndarray):
        return _check_array(source, max_pixels)
    try:
        if isinstance(source, Image.Image):
            return _decode_pil_image(source, max_pixels, max_seconds, warnings)
        return _decode(_open(source, max_seconds), max_pixels, warnings)
    except MemoryError:
        raise InputError(
            "there is too little memory to decode the image",
            code="image-memory",
            expected="several times the memory of its pixels",
            cure="scale the image down, or give the process more memory",
        ) from None


def _decode(stream: DeadlineReader, max_pixels: int, warnings: list[str]) -> Pixels:
    name = stream.name

    def check(width: int, height: int) -> None:
        check_size(width, height, name, max_pixels)

    try:
        if _is_dicom(stream):
            image = _dicom_reader()(stream, max_pixels, warnings)
            contents = Contents(image=image, icc=image.info.get("icc_profile"))
        else:
            contents = _reader(stream)(stream, check)
        return _pixels(contents, name, warnings)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(
            f"{name} has more pixels than another package of this process allows",
            code="image-too-large",
            expected=f"at most {Image.MAX_IMAGE_PIXELS} pixels, the value of PIL.Image.MAX_IMAGE_PIXELS",
            found="more",
            cure="set it higher, or give the picture as a PNG or JPEG file",
        ) from None
    except (SkinretError, MemoryError):
        raise
    except Exception as error:
        raise corrupt_image(name, str(error) or type(error).__name__) from None


def _reader(stream: DeadlineReader) -> Callable[[DeadlineReader, Check], Contents]:
    """Return the reader of a file by its first bytes, not by its name or the plugins of Pillow."""
    stream.check()
    start = stream.getvalue()[:16]
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return read_webp
    for magic, reader in _READERS.items():
        if start.startswith(magic):
            return reader
    raise identify(stream.getvalue(), stream.name)


def _open(source: str | Path | bytes | IO[bytes], max_seconds: float) -> DeadlineReader:
    """Read the bytes of a source. Raises InputError if they are none or too many, or for another type."""
    if isinstance(source, bytes):
        name, data = "the bytes object", source
    elif isinstance(source, str | Path):
        name, data = str(Path(source)), _read_path(Path(source))
    elif hasattr(source, "read"):
        name, data = "the image file object", _read_file(source)
    else:
        raise InputError(
            "the image cannot be used",
            code="image-required" if source is None else "image-type",
            expected="a path, bytes, a binary file object, a PIL image or an H x W x 3 uint8 array",
            found=f"a {type(source).__name__}",
            cure="give a dermoscopy image" if source is None else "pass one of those",
        )
    if not data:
        raise InputError(
            f"{name} is empty", code="image-empty", expected="an image", found="0 bytes", cure=CURE
        )
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{name} has too many bytes",
            code="image-too-large",
            expected=f"at most {MAX_BYTES / 1e6:g} MB",
            found="more",
            cure="give a single picture, compressed or scaled down",
        )
    return DeadlineReader(data, name, max_seconds)


def _read_path(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(
            f"image file {path} does not exist", code="image-missing", cure="check the path"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"image file {str(path)!r:.200} cannot be read",
            code="image-missing",
            expected="a readable file",
            found=getattr(error, "strerror", None) or str(error),
            cure="check the path and its permissions",
        ) from None


def _read_file(file: IO[bytes]) -> bytes:
    found: object = None
    try:
        data = _read_to_limit(file)
        found = f"a {type(data).__name__}"
    except (OSError, ValueError) as error:
        data, found = None, error
    if not isinstance(data, bytes):
        raise InputError(
            "the image file object gives no bytes",
            code="image-type",
            expected="bytes",
            found=str(found),
            cure='open it with mode "rb"',
        )
    return data


def _read_to_limit(file: IO[bytes]) -> Any:
    """Read a file to its end or just beyond MAX_BYTES. A pipe gives its bytes in pieces."""
    data = file.read(MAX_BYTES + 1)
    while isinstance(data, bytes) and data and len(data) <= MAX_BYTES:
        more = file.read(MAX_BYTES + 1 - len(data))
        if not more:
            break
        data += more
    return data


def _is_dicom(stream: DeadlineReader) -> bool:
    return stream.getvalue()[128:132] == b"DICM"


def _dicom_reader() -> Callable[[DeadlineReader, int, list[str]], Image.Image]:
    try:
        from . import dicom
    except (ImportError, AttributeError) as error:  # AttributeError with pydicom 2
        wrong = "a DICOM object cannot be read here"
        raise missing_extra(wrong, error, "dicom") from None
    return dicom.read


def _pixels(contents: Contents, name: str, warnings: list[str]) -> Pixels:
    if contents.pictures > 1:
        count = str(contents.pictures)
        if contents.pictures == tiff.MAX_PAGES:
            count += " or more"
        text = f"the file holds {count} pictures: the first is taken"
        warnings.append(SkinretWarning(text, "image-several"))
    warnings += dict.fromkeys(contents.warnings)
    try:
        image = to_rgb(contents.image, contents.icc, name, warnings)
    except ValueError as error:
        raise InputError(
            f"{name} has pixels of mode {contents.image.mode}",
            code="image-mode",
            expected="RGB, grey, palette or CMYK",
            found=str(error),
            cure="save it as 8-bit RGB",
        ) from None
    operation = _UPRIGHT.get(contents.orientation)
    return np.asarray(image if operation is None else image.transpose(operation))


def _decode_pil_image(image: Image.Image, max_pixels: int, max_seconds: float, warnings: list[str]) -> Pixels:
    """Return the pixels of a PIL image: from its file if that is not read yet, else from its memory."""
    name = "the PIL image"
    check_size(*image.size, name, max_pixels)
    if (data := _unread_file(image)) is not None:
        return _decode(DeadlineReader(data, name, max_seconds), max_pixels, warnings)
    try:
        codec.load(image)
    except (SkinretError, MemoryError):
        raise
    except Exception as error:
        raise corrupt_image(name, str(error) or type(error).__name__) from None
    if fault := tiff.misread(image):
        raise InputError(
            f"{name} was read from a TIFF that Pillow misreads",
            code="image-mode",
            expected="8 bits a channel",
            found=fault,
            cure="give the file itself, by its path or its bytes",
        )
    contents, info = Contents(image=image), image.info
    icc = info.get("icc_profile") if image.mode != "LAB" else None  # LAB has its own white
    if not icc and isinstance(image, PngImageFile) and "srgb" not in info:
        icc = plain_profile(info.get("chromaticity", ()), info.get("gamma", 0), contents.warnings)
    exif, xmp = info.get("exif", b""), info.get("xmp", b"")
    try:
        turn = image.getexif().get(0x0112, 1)  # not `exif`: the caller may have changed it
    except Exception:  # Pillow raises for any broken tag, be it one that does not matter here
        turn = None
    if turn not in range(1, 9):
        exif, xmp = (value if isinstance(value, bytes) else b"" for value in (exif, xmp))
        turn = orientation(exif.removeprefix(b"Exif\0\0") or b"unclear", xmp, contents.warnings)
    contents.icc, contents.orientation = icc, turn
    return _pixels(contents, name, warnings)


def _unread_file(image: Image.Image) -> bytes | None:
    """Return the bytes of the file of a PIL image if its pixels are not read yet, else None."""
    if not isinstance(image, JpegImageFile | PngImageFile | TiffImageFile | BmpImageFile):
        return None
    if not image.tile or image.fp is None or image.tell() or image.decoderconfig:
        return None  # it is read or closed, or has another page or size than the file's first
    try:
        place = image.fp.tell()
        image.fp.seek(0)
        data = image.fp.read(MAX_BYTES + 1)
        image.fp.seek(place)
    except (OSError, ValueError):
        return None
    return data if 0 < len(data) <= MAX_BYTES else None


def _check_array(array: npt.NDArray[Any], max_pixels: int) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(
            "the image array cannot be used",
            code="image-type",
            expected="H x W x 3 of uint8, RGB",
            found=f"{' x '.join(map(str, array.shape))} of {array.dtype}",
            cure="convert it, or pass a PIL image",
        )
    check_size(array.shape[1], array.shape[0], "the image array", max_pixels)
    return cast(Pixels, array)
