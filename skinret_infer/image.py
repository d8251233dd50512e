"""Read an image as a hospital has it, and prepare it as the model was trained on it."""

import hashlib
import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

from .errors import InputError, Remark, SkinretError

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageSource: TypeAlias = str | Path | bytes | IO[bytes] | Image.Image | Pixels

MAX_PIXELS = 64_000_000  # above any camera's dermoscopy picture, below what a decompression bomb needs
MAX_BYTES = 400_000_000  # of a file: so many pixels of 16 bits a channel, without compression
MAX_SECONDS = 30.0  # to decode a file; an honest one of 64 megapixels takes a few
MAX_PROFILE = 4_000_000  # bytes of an ICC profile; a printer's takes two million
MAX_SCANS = 100  # passes of a JPEG over all its pixels; a progressive one has about ten
MAX_PAGES = 100  # of a TIFF that are looked at to say how many it has
MAX_SEGMENTS = 100_000  # of a JPEG; each is a marker, and its header is kept
MIN_SIDE = 32  # fewer pixels than that show no dermoscopic structure
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # Pillow opens MPO, a JPEG of several pictures, as JPEG
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # of a segment, or of the end
_CURE = f"give a {', '.join(FORMATS)} file that an image viewer opens, or a DICOM object"


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
    file is of one of FORMATS or, with the extra `dicom`, a DICOM object. Alpha is laid over white, 16-bit
    grey is scaled to 8 bits, CMYK and palettes are converted, ICC profile and EXIF orientation are applied.
    Of several pictures in a file the first is taken. `warnings` gets what a person should know of the
    picture. Raises InputError for anything that is not a whole image of a usable size, and for a file that
    is not decoded within `max_seconds`.
    """
    said = [] if warnings is None else warnings
    if isinstance(source, np.ndarray):
        return _check_array(source, max_pixels)
    try:
        if isinstance(source, Image.Image):
            return _pixels(source, "the PIL image", max_pixels, said)
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
    try:
        if _is_dicom(stream):
            return _pixels(_dicom_reader()(stream, max_pixels, warnings), name, max_pixels, warnings)
        check_scans(stream)
        with Image.open(stream, formats=FORMATS) as image:
            if isinstance(image, TiffImagePlugin.TiffImageFile) and image.info.get("compression") == "jpeg":
                for place in image.tag_v2.get(273) or image.tag_v2.get(324) or ():  # of strips, or of tiles
                    check_scans(stream, place)
            if (pictures := _pictures(image)) > 1:
                or_more = " or more" * (pictures == MAX_PAGES)
                said = f"the file holds {pictures}{or_more} pictures: the first is taken"
                warnings.append(Remark(said, "image-several"))
            return _pixels(image, name, max_pixels, warnings)
    except UnidentifiedImageError:
        stream.check()
        raise InputError(
            f"{name} is not an image",
            code="image-unreadable",
            expected=f"one of {', '.join(FORMATS)}, or DICOM",
            found=f"a file that begins with {stream.getvalue()[:8]!r}",
            cure=_CURE,
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, max_pixels, "far more") from None
    except (SkinretError, MemoryError):
        raise
    except Exception as error:
        raise damaged(name, str(error) or type(error).__name__) from None


def _pictures(image: Any) -> int:
    """Return how many pictures a file holds beside previews, gain maps and smaller copies of the first."""
    if image.format == "MPO":
        entries = image.mpinfo[0xB002]
        return 1 + sum("Multi-Frame" in entry["Attribute"]["MPType"] for entry in entries[1:])
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    pages = 1
    try:
        for page in range(1, MAX_PAGES):
            image.seek(page)
            pages += not image.tag_v2.get(254, 0) & 5  # NewSubfileType: a smaller copy, or a mask
    except SkinretError:
        raise
    except Exception:  # there are no more, or what follows is damaged, which the first is not
        pass
    image.seek(0)
    return pages


def check_scans(stream: Timed, place: int = 0) -> None:
    """Raise InputError for a JPEG that goes over its pixels again and again: a megabyte of it takes hours.

    Nor is one in arithmetic coding taken, which hardly a program reads, and of which few bytes take minutes.
    It is read from its place in the file as decoders read it: from marker to marker, past what cannot be
    one. What is no JPEG is left.
    """
    data = stream.getvalue()
    if data[place : place + 3] != b"\xff\xd8\xff":
        return
    stream.check()
    place, segments, scans = place + 2, 0, 0
    while marker := _MARKER.search(data, place):
        place, segments, scans = marker.end(), segments + 1, scans + (marker[1] == b"\xda")
        if marker[1] == b"\xd9":
            return
        arithmetic = marker[1] in b"\xc9\xca\xcb\xcd\xce\xcf"
        if arithmetic or scans > MAX_SCANS or segments > MAX_SEGMENTS:
            raise InputError(
                f"{stream.name} takes too many steps to decode",
                code="image-scans",
                expected=f"Huffman coding, at most {MAX_SCANS} scans and {MAX_SEGMENTS:,} segments",
                found="arithmetic coding" if arithmetic else "more",
                cure="open it in an image viewer and save it again",
            )
        place += int.from_bytes(data[place : place + 2], "big")


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
            f"{name} is empty", code="image-empty", expected="an image", found="0 bytes", cure=_CURE
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
    except (ImportError, AttributeError):
        raise InputError(
            "a DICOM object cannot be read here",
            code="image-dicom-extra",
            expected="the extra dicom",
            found="no pydicom 3",
            cure='pip install "skinret-infer[dicom]"',
        ) from None
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


def _pixels(image: Image.Image, name: str, max_pixels: int, warnings: list[str]) -> Pixels:
    check_size(*image.size, name, max_pixels)
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except (SkinretError, MemoryError):
        raise
    except Exception as error:
        raise damaged(name, str(error) or type(error).__name__) from None
    try:
        return np.asarray(_to_rgb(upright, name, warnings))
    except ValueError as error:
        raise InputError(
            f"{name} has pixels of mode {image.mode}",
            code="image-mode",
            expected="RGB, grey, palette or CMYK",
            found=str(error),
            cure="save it as 8-bit RGB",
        ) from None


def _to_rgb(image: Image.Image, name: str, warnings: list[str]) -> Image.Image:
    icc = image.info.get("icc_profile")
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
        return _to_srgb(Image.fromarray((grey // 257).astype(np.uint8)), icc, warnings)
    if image.has_transparency_data:
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
