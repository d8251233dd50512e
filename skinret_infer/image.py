"""Read an image as a hospital has it, and prepare it as the model was trained on it."""

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from . import codec, tiff
from .container import (
    CURE,
    MAX_PROFILE,
    Check,
    Contents,
    identify,
    orientation,
    plain_profile,
    read_bmp,
    read_jpeg,
    read_png,
    read_webp,
)
from .errors import InputError, Remark, SkinretError
from .extras import missing_extra

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageSource: TypeAlias = str | Path | bytes | IO[bytes] | Image.Image | Pixels

MAX_PIXELS = 64_000_000  # above any camera's dermoscopy picture, below what a decompression bomb needs
MAX_BYTES = 400_000_000  # of a file: so many pixels of 16 bits a channel, without compression
MAX_SECONDS = 30.0  # to decode a file; an honest one of 64 megapixels takes a few
MIN_SIDE = 32  # fewer pixels than that show no dermoscopic structure

_READERS: dict[bytes, Callable[["Timed", Check], Contents]] = {
    b"\xff\xd8\xff": read_jpeg,
    b"\x89PNG\r\n\x1a\n": read_png,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"), tiff.read),
    b"BM": read_bmp,
}
_UPRIGHT = {  # how a picture is turned, by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """How pixels become the input of the visual encoder. Kept in the manifest; training uses it too."""

    size: int = 224  # the side of the square that the encoder sees, in pixels
    fit: str = "crop"  # "crop": the central square; "squash": the whole picture, its aspect ratio given up
    resample: str = "bicubic"  # Pillow's antialiased filter of that name
    orientation: str = "exif"  # the EXIF orientation is honoured
    decode: str = "rgb8"  # 8-bit sRGB; alpha over white, 16 bit scaled down, CMYK, palette, ICC converted

    def __post_init__(self) -> None:
        allowed = {
            "fit": ("crop", "squash"),
            "resample": ("bicubic", "bilinear"),
            "orientation": ("exif",),
            "decode": ("rgb8",),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise InputError(
                    f"image recipe: {name} cannot be used",
                    code="recipe-unknown",
                    expected=" or ".join(values),
                    found=repr(getattr(self, name)),
                    cure="update skinret-infer",
                )
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise InputError(
                "image recipe: size cannot be used",
                code="recipe-unknown",
                expected="an int of at least 1",
                found=repr(self.size),
            )


class Timed(io.BytesIO):
    """The bytes of a file, which can be read for some seconds. `name` says in messages which.

    Decoders take a file in pieces, and so end when it no longer gives them. Those of WebP, compressed TIFF
    and JPEG 2000 take it whole: them the limits of pixels, bytes and scans hold to seconds.
    """

    def __init__(self, data: bytes, name: str, seconds: float) -> None:
        super().__init__(data)
        self.name, self._seconds = name, seconds
        self._deadline = time.monotonic() + seconds

    def within(self, data: bytes) -> "Timed":
        """Return bytes that lie within this file, with what is left of its time."""
        part = Timed(data, self.name, self._seconds)
        part._deadline = self._deadline
        return part

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes, or raise InputError after the deadline."""
        self.check()
        return super().read(size)

    def check(self) -> None:
        """Raise InputError after the deadline."""
        if time.monotonic() > self._deadline:
            raise InputError(
                f"{self.name} takes too long to decode",
                code="image-too-slow",
                expected=f"a picture that is decoded within {self._seconds:g} s",
                cure="open it in an image viewer and save it again",
            )


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
    white, 16 bits are scaled to 8, CMYK and palettes are converted, ICC profile (or colours that the file
    names in another way) and EXIF orientation are applied. Of several pictures in a file the first is taken.
    A PIL image whose file is not read yet is decoded from its file. No setting of Pillow that another package
    of the process makes changes what is read, or lets half a picture pass.

    Parameters
    ----------
    max_pixels : width times height of a picture that is taken.
    max_seconds : that a file may take.
    warnings : gets what a person should know of the picture, each with a `code`:
        "image-several", of more pictures in the file;
        "image-profile", of an ICC profile that cannot be used;
        "image-colour", of colours that are unclear, contradicted or not converted;
        "image-depth", of 32 bits a channel that are taken as 16;
        "image-orientation", of an orientation that cannot be read;
        "image-metadata", of damage beside the pixels;
        "image-burned-in" and "image-recognizable", of what a DICOM object says may show the patient.

    Raises
    ------
    InputError : for anything that is not a whole image of a usable size, and for a file that is not decoded
        within `max_seconds`. Its code is "image-unreadable" where the file is of a kind that is not read (the
        message says of which), and "image-truncated" where it is damaged.
    """
    said = [] if warnings is None else warnings
    if isinstance(source, np.ndarray):
        return _check_array(source, max_pixels)
    try:
        if isinstance(source, Image.Image):
            return _given(source, max_pixels, max_seconds, said)
        return _decode(_open(source, max_seconds), max_pixels, said)
    except MemoryError:
        raise InputError(
            "there is too little memory to decode the image",
            code="image-memory",
            expected="room for its pixels, several times over",
            cure="scale the image down, or give the process more memory",
        ) from None


def _decode(stream: Timed, max_pixels: int, warnings: list[str]) -> Pixels:
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
        raise damaged(name, str(error) or type(error).__name__) from None


def _reader(stream: Timed) -> Callable[[Timed, Check], Contents]:
    """Return what reads a file, by how it begins: neither its name nor the plugins of Pillow matter."""
    stream.check()
    begin = stream.getvalue()[:16]
    if begin[:4] == b"RIFF" and begin[8:12] == b"WEBP":
        return read_webp
    for magic, reader in _READERS.items():
        if begin.startswith(magic):
            return reader
    raise identify(stream.getvalue(), stream.name)


def prepare(pixels: Pixels, recipe: ImageRecipe) -> Pixels:
    """Resize H x W x 3 uint8 pixels to the S x S x 3 square of the recipe."""
    resample = Image.Resampling[recipe.resample.upper()]
    box = seen_box(pixels, recipe)
    return np.asarray(Image.fromarray(pixels).resize((recipe.size, recipe.size), resample, box=box))


def seen_box(pixels: Pixels, recipe: ImageRecipe) -> tuple[float, float, float, float]:
    """Return the part of a picture that the encoder sees: left, top, right, bottom in pixels."""
    height, width, _ = pixels.shape
    if recipe.fit == "squash":
        return 0, 0, width, height
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def digest(pixels: Pixels) -> str:
    """Return the SHA-256 of a picture: of its shape and its decoded RGB bytes, whatever file held them."""
    sha = hashlib.sha256(np.asarray(pixels.shape, np.int64).tobytes())
    sha.update(np.ascontiguousarray(pixels).data)
    return sha.hexdigest()


def _open(source: str | Path | bytes | IO[bytes], max_seconds: float) -> Timed:
    if isinstance(source, bytes):
        name, data = "the image bytes", source
    elif isinstance(source, str | Path):
        path = Path(source)
        name = str(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise InputError(
                f"image file {name} does not exist", code="image-missing", cure="check the path"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(
                f"image file {name!r:.200} cannot be read",
                code="image-missing",
                expected="a readable file",
                found=getattr(error, "strerror", None) or str(error),
                cure="check the path and its permissions",
            ) from None
    elif hasattr(source, "read"):
        name = "the image file object"
        try:
            data = _read(source)
        except (OSError, ValueError) as error:
            data, found = None, str(error)
        else:
            found = f"a {type(data).__name__}"
        if not isinstance(data, bytes):
            raise InputError(
                f"{name} gives no bytes",
                code="image-type",
                expected="bytes",
                found=found,
                cure='open it with mode "rb"',
            )
    else:
        raise InputError(
            "the image cannot be used",
            code="image-type",
            expected="a path, bytes, a binary file object, a PIL image or an H x W x 3 uint8 array",
            found=f"a {type(source).__name__}",
            cure="pass one of those",
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
    return Timed(data, name, max_seconds)


def _read(file: IO[bytes]) -> bytes:
    """Read a file to its end, but not far beyond the limit; what is read from a pipe comes in pieces."""
    data = file.read(MAX_BYTES + 1)
    while isinstance(data, bytes) and data and len(data) <= MAX_BYTES:
        more = file.read(MAX_BYTES + 1 - len(data))
        if not more:
            break
        data += more
    return data


def _is_dicom(stream: Timed) -> bool:
    return stream.getvalue()[128:132] == b"DICM"


def _dicom_reader() -> Callable[[Timed, int, list[str]], Image.Image]:
    try:
        from . import dicom
    except (ImportError, AttributeError) as error:  # the latter with pydicom 2
        wrong = "a DICOM object cannot be read here"
        raise missing_extra(wrong, error, "dicom", "image-dicom-extra") from None
    return dicom.read


def _too_large(name: str, max_pixels: int, found: str) -> InputError:
    return InputError(
        f"{name} has too many pixels",
        code="image-too-large",
        expected=f"at most {max_pixels / 1e6:g} megapixels",
        found=found,
        cure="scale it down before the query: the model sees a few hundred pixels a side",
    )


def damaged(name: str, found: str) -> InputError:
    """Return the error of an image that does not hold what its header says."""
    # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, EOFError and more.
    return InputError(
        f"{name} is damaged or cut short",
        code="image-truncated",
        expected="a whole image",
        found=found,
        cure="copy the file again from its source",
    )


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise InputError for a picture of too many pixels, or of too few."""
    if width * height > max_pixels:
        raise _too_large(name, max_pixels, f"{width} x {height} = {width * height / 1e6:.1f} megapixels")
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{name} is too small to show a lesion",
            code="image-too-small",
            expected=f"at least {MIN_SIDE} pixels a side",
            found=f"{width} x {height}",
            cure="give the original image",
        )


def _pixels(contents: Contents, name: str, warnings: list[str]) -> Pixels:
    said = f"the file holds {contents.pictures}{' or more' * (contents.pictures == tiff.MAX_PAGES)} pictures"
    if contents.pictures > 1:
        warnings.append(Remark(f"{said}: the first is taken", "image-several"))
    warnings += dict.fromkeys(contents.remarks)
    try:
        image = _to_rgb(contents.image, contents.icc, name, warnings)
    except ValueError as error:
        raise InputError(
            f"{name} has pixels of mode {contents.image.mode}",
            code="image-mode",
            expected="RGB, grey, palette or CMYK",
            found=str(error),
            cure="save it as 8-bit RGB",
        ) from None
    turn = _UPRIGHT.get(contents.orientation)
    return np.asarray(image if turn is None else image.transpose(turn))


def _given(image: Image.Image, max_pixels: int, max_seconds: float, warnings: list[str]) -> Pixels:
    """Return the pixels of a PIL image: of its file where that is not read yet, else what it holds."""
    name = "the PIL image"
    check_size(*image.size, name, max_pixels)
    if (data := _unread(image)) is not None:
        return _decode(Timed(data, name, max_seconds), max_pixels, warnings)
    try:
        codec.load(image)
    except (SkinretError, MemoryError):
        raise
    except Exception as error:
        raise damaged(name, str(error) or type(error).__name__) from None
    if found := tiff.misread(image):
        raise InputError(
            f"{name} was read from a TIFF that Pillow misreads",
            code="image-mode",
            expected="8 bits a channel",
            found=found,
            cure="give the file itself, by its path or its bytes",
        )
    remarks: list[Remark] = []
    info = image.info
    icc = info.get("icc_profile") if image.mode != "LAB" else None  # which has its own white
    if not icc and isinstance(image, PngImageFile) and "srgb" not in info:
        icc = plain_profile(info.get("chromaticity", ()), info.get("gamma", 0), remarks)
    exif, xmp = info.get("exif", b""), info.get("xmp", b"")
    try:
        turned = image.getexif().get(0x0112, 1)  # which the caller may have changed
    except Exception:  # Pillow gives up where a tag that does not matter is broken
        turned = None
    if turned not in range(1, 9):
        exif, xmp = (value if isinstance(value, bytes) else b"" for value in (exif, xmp))
        turned = orientation(exif.removeprefix(b"Exif\0\0") or b"unclear", xmp, remarks)
    return _pixels(Contents(image=image, icc=icc, orientation=turned, remarks=remarks), name, warnings)


def _unread(image: Image.Image) -> bytes | None:
    """Return the file of a PIL image, where its pixels are still to be read from it, as they stand there."""
    if not isinstance(image, JpegImageFile | PngImageFile | TiffImageFile | BmpImageFile):
        return None
    if not image.tile or image.fp is None or image.tell() or image.decoderconfig:
        return None  # it is read, or closed, or of another page or size than its file's first
    try:
        place = image.fp.tell()
        image.fp.seek(0)
        data = image.fp.read(MAX_BYTES + 1)
        image.fp.seek(place)
    except (OSError, ValueError):
        return None
    return data if 0 < len(data) <= MAX_BYTES else None


def _to_rgb(image: Image.Image, icc: bytes | None, name: str, warnings: list[str]) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return _to_srgb(image, icc, warnings)
    if image.mode == "F":
        raise InputError(
            f"{name} has floating-point pixels",
            code="image-mode",
            expected="8 or 16 bits a channel",
            cure="save it with 8 bits a channel",
        )
    if image.mode.startswith("I"):  # 16-bit grey; mode I holds the same numbers in 32 bits
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(
                f"{name} has more than 16 bits a channel",
                code="image-mode",
                expected="values of 0 to 65535",
                found=f"{grey.min()} to {grey.max()}",
                cure="save it with 8 bits a channel",
            )
        clear, image = image.info.get("transparency"), Image.fromarray((grey // 257).astype(np.uint8))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = _to_srgb(image.convert("RGBA"), icc, warnings)
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return _to_srgb(image if image.mode in ("L", "CMYK") else image.convert("RGB"), icc, warnings)


def _to_srgb(image: Image.Image, icc: bytes | None, warnings: list[str]) -> Image.Image:
    """Return an L, CMYK, RGB or RGBA image as RGB or RGBA, its colours by its ICC profile if it has one."""
    if icc:
        try:
            return _by_profile(image, icc)
        except MemoryError:
            raise
        except Exception:  # whatever is wrong with a profile, viewers show the picture without it
            said = "the ICC profile of the picture cannot be used: its colours are taken as sRGB"
            warnings.append(Remark(said, "image-profile"))
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _by_profile(image: Image.Image, icc: bytes) -> Image.Image:
    if len(icc) > MAX_PROFILE:
        raise ValueError("the profile has too many bytes")
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = profile.profile.xcolor_space.strip()
    if space == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    if {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space) != image.mode.removesuffix("A"):
        raise ValueError("the profile is of another kind of colours")
    out = "RGBA" if image.mode == "RGBA" else "RGB"
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, out)
    if space == "RGB":
        # sRGB comes in many profiles: one that moves no colour by more than rounding is left alone
        levels = np.linspace(0, 255, 16).astype(np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
        chart = Image.fromarray(grid).convert(image.mode)
        moved = np.asarray(transform.apply(chart)).astype(int) - np.asarray(chart)
        if np.abs(moved).max() <= 1:
            return image
    return transform.apply(image)


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
