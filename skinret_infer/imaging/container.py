"""What the reader of one file format returns.

A reader gives the decoder only what its pixels need, and reads the metadata itself. A damaged text, tag or
preview therefore costs no picture, and no setting of Pillow for them matters. What cannot be used gives a
warning.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from ..errors import SkinretWarning

MAX_SEGMENTS = 100_000  # of a JPEG, or chunks of a PNG; each is looked at
Check = Callable[[int, int], None]  # raises InputError for a width and height that are not taken


@dataclass(slots=True, kw_only=True)
class Contents:
    """A picture and what its file says of it. `image` is loaded and lies as it is stored."""

    image: Image.Image
    icc: bytes | None = None
    orientation: int = 1  # EXIF's
    pictures: int = 1
    warnings: list[SkinretWarning] = field(default_factory=list)
