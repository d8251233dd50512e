"""The limits of a file that is decoded, in bytes, pixels and seconds, and the errors of exceeding them."""

import io
import time

from ..errors import InputError

MAX_PIXELS = 64_000_000  # above any camera's dermoscopy picture, below what a decompression bomb needs
MAX_BYTES = 400_000_000  # of a file: MAX_PIXELS with 16 bits a channel, without compression
MAX_SECONDS = 30.0  # to decode a file; a harmless one of 64 megapixels takes a few
MIN_SIDE = 32  # a side with fewer pixels shows no dermoscopic structure


class DeadlineReader(io.BytesIO):
    """The bytes of a file, which can be read until a deadline. `name` names the file in messages.

    Most decoders read a file in pieces, so an error of `read` ends them. Those of WebP, compressed TIFF and
    JPEG 2000 read it in one piece: only the limits of pixels, bytes and scans bound their time, to seconds.
    """

    def __init__(self, data: bytes, name: str, seconds: float) -> None:
        super().__init__(data)
        self.name, self._seconds = name, seconds
        self._deadline = time.monotonic() + seconds

    def within(self, data: bytes) -> "DeadlineReader":
        """Return a reader of bytes from this file, with the same name and deadline."""
        reader = DeadlineReader(data, self.name, self._seconds)
        reader._deadline = self._deadline
        return reader

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


def too_large(name: str, max_pixels: int, found: str) -> InputError:
    return InputError(
        f"{name} has too many pixels",
        code="image-too-large",
        expected=f"at most {max_pixels / 1e6:g} megapixels",
        found=found,
        cure="scale it down before the query: the model sees a few hundred pixels a side",
    )


def corrupt_image(name: str, found: str) -> InputError:
    """Return the error of an image whose content does not match its header."""
    # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, EOFError and more.
    return InputError(
        f"{name} is damaged or cut short",
        code="image-truncated",
        expected="a complete image",
        found=found,
        cure="copy the file again from its source",
    )


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Raise InputError for a picture with too many or too few pixels."""
    if width * height > max_pixels:
        raise too_large(name, max_pixels, f"{width} x {height} = {width * height / 1e6:.1f} megapixels")
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{name} is too small to show a lesion",
            code="image-too-small",
            expected=f"at least {MIN_SIDE} pixels a side",
            found=f"{width} x {height}",
            cure="give the original image",
        )
