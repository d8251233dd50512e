"""What the reader of one file format returns.

A reader gives the decoder only what the pixels need, and reads the metadata itself. A picture is therefore
read although a text, tag or preview is damaged, and Pillow's settings for these do not matter. Metadata that
cannot be used give a warning.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from ..errors import SkinretWarning

MAX_SEGMENTS = 100_000  # of a JPEG, or chunks of a PNG; each is checked
Check = Callable[[int, int], None]  # raises InputError for a width and height out of the limits


@dataclass(slots=True, kw_only=True)
class Contents:
    """A picture and what its file says about it. `image` is loaded, but not turned upright."""

    image: Image.Image
    icc: bytes | None = None
    orientation: int = 1  # EXIF's
    pictures: int = 1
    warnings: list[SkinretWarning] = field(default_factory=list)
