"""Pillow's decoders, independent of what other packages of the process have set in Pillow.

`ImageFile.LOAD_TRUNCATED_IMAGES` (which accepts half a picture), `ImageFile.MAXBLOCK`,
`Image.MAX_IMAGE_PIXELS`, `BmpImagePlugin.USE_RAW_ALPHA` and the list of plugins hold for the whole process.
This module neither reads nor sets them: a change, even for a moment, would affect other threads.
"""

import functools
import types
from typing import Any

from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

_BLOCK = 65536  # bytes that a decoder reads between two checks of the deadline

# Pillow's own loader, with its switch as a constant: a file that ends too soon is an error
_load = types.FunctionType(
    ImageFile.ImageFile.load.__code__, {**vars(ImageFile), "LOAD_TRUNCATED_IMAGES": False}, "load"
)


class _StrictFile(ImageFile.ImageFile):
    """A picture that raises an error when its file is cut short."""

    def load(self) -> Any:
        self.decodermaxblock = _BLOCK
        return _load(self)


class Png(PngImageFile, _StrictFile):
    """A PNG. The caller shall pass only the chunks that the pixels need."""


class WebP(WebPImageFile, _StrictFile):
    """A WebP."""


class Jpeg2000(Jpeg2KImageFile, _StrictFile):
    """A JPEG 2000 codestream, with or without boxes."""

    load = _StrictFile.load  # Pillow's method calls its base by name, not by super()


class Jpeg(JpegImageFile, _StrictFile):
    """A JPEG."""

    def load_read(self, read_bytes: int) -> bytes:
        """Return bytes of the file. Pillow would add an end where the file has none."""
        return self.fp.read(read_bytes) if self.fp else b""


class Bmp(BmpImageFile, _StrictFile):
    """A BMP. The fourth byte of a pixel is alpha only if a mask says so."""

    def _open(self) -> None:
        super()._open()
        if self.mode == "RGBA" and self.info["compression"] == 0:
            self._mode = "RGB"
            self.tile = [tile._replace(args=("BGRX", *tile.args[1:])) for tile in self.tile]  # type: ignore[index]


class Tiff(TiffImageFile, _StrictFile):
    """A TIFF as it is stored: it is not turned, and Pillow's limit of pixels does not apply."""

    def load_prepare(self) -> None:
        """Allocate the pixels."""
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:
        """Leave the pixels as they are."""


@functools.lru_cache(maxsize=64)
def _strict_class(kind: type[ImageFile.ImageFile]) -> type[ImageFile.ImageFile]:
    """Return a class of Pillow that loads as `_StrictFile` does."""
    base: tuple[type, ...] = (Jpeg, kind) if issubclass(kind, JpegImageFile) else (kind, _StrictFile)
    methods = {"load": _StrictFile.load} if issubclass(kind, Jpeg2KImageFile) else {}
    return types.new_class(kind.__name__, base, exec_body=lambda names: names.update(methods))


def load(image: Image.Image) -> None:
    """Load a PIL image of any class if its file is not read yet. Raises what Pillow raises."""
    if not isinstance(image, ImageFile.ImageFile) or isinstance(image, _StrictFile):
        image.load()
        return
    kind = type(image)
    strict = _strict_class(kind)
    image.__class__ = strict  # only the loading differs
    try:
        image.load()
    finally:
        if type(image) is strict:  # some images change their class when they load
            image.__class__ = kind
