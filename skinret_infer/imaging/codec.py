"""Pillow's decoders, free of what other packages of the process have set in Pillow.

`ImageFile.LOAD_TRUNCATED_IMAGES` (half a picture is one), `ImageFile.MAXBLOCK`, `Image.MAX_IMAGE_PIXELS`,
`BmpImagePlugin.USE_RAW_ALPHA` and the list of plugins hold for a whole process. They are neither set nor read
here: setting them back, even for a moment, would be felt by the other threads.
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

_BLOCK = 65536  # bytes that a decoder takes at a time, between two looks at the clock

# Pillow's own loader, but with its switch as a constant: what ends too soon is an error
_load = types.FunctionType(
    ImageFile.ImageFile.load.__code__, {**vars(ImageFile), "LOAD_TRUNCATED_IMAGES": False}, "load"
)


class _Whole(ImageFile.ImageFile):
    """A picture whose file is read to its end, or is an error."""

    def load(self) -> Any:
        self.decodermaxblock = _BLOCK
        return _load(self)


class Png(PngImageFile, _Whole):
    """A PNG; of its chunks, those of pixels alone shall be given."""


class WebP(WebPImageFile, _Whole):
    """A WebP."""


class Jpeg2000(Jpeg2KImageFile, _Whole):
    """A JPEG 2000 codestream, with or without boxes."""

    load = _Whole.load  # Pillow's names its base instead of asking for the next class


class Jpeg(JpegImageFile, _Whole):
    """A JPEG."""

    def load_read(self, read_bytes: int) -> bytes:
        """Return bytes of the file, and no end that it does not have."""
        return self.fp.read(read_bytes) if self.fp else b""


class Bmp(BmpImageFile, _Whole):
    """A BMP. The fourth byte of its pixels is no alpha, unless a mask says so."""

    def _open(self) -> None:
        super()._open()
        if self.mode == "RGBA" and self.info["compression"] == 0:
            self._mode = "RGB"
            self.tile = [tile._replace(args=("BGRX", *tile.args[1:])) for tile in self.tile]  # type: ignore[index]


class Tiff(TiffImageFile, _Whole):
    """A TIFF, as it lies: neither turned, nor measured by Pillow's limit of pixels."""

    def load_prepare(self) -> None:
        """Make room for the pixels."""
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:
        """Leave the pixels as they are."""


@functools.lru_cache(maxsize=64)
def _held(kind: type[ImageFile.ImageFile]) -> type[ImageFile.ImageFile]:
    base: tuple[type, ...] = (Jpeg, kind) if issubclass(kind, JpegImageFile) else (kind, _Whole)
    own = {"load": _Whole.load} if issubclass(kind, Jpeg2KImageFile) else {}
    return types.new_class(kind.__name__, base, exec_body=lambda names: names.update(own))


def load(image: Image.Image) -> None:
    """Load a PIL image of any class, where its file is not read yet. Raises what Pillow raises."""
    if not isinstance(image, ImageFile.ImageFile) or isinstance(image, _Whole):
        image.load()
        return
    kind = type(image)
    held = _held(kind)
    image.__class__ = held  # the same, but for how it loads
    try:
        image.load()
    finally:
        if type(image) is held:  # some become another when they load
            image.__class__ = kind
