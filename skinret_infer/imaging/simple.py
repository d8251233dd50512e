"""Read WebP and BMP, whose containers Pillow parses."""

import struct

from ..errors import SkinretWarning
from . import codec
from .container import Check, Contents
from .identify import SAVE_AS_PNG, identify, unread
from .limits import DeadlineReader
from .metadata import exif_profile, orientation, unclear_colours


def read_webp(stream: "DeadlineReader", check: Check) -> Contents:
    """Read a WebP."""
    image, warnings = codec.WebP(stream), list[SkinretWarning]()
    check(*image.size)
    codec.load(image)
    exif, xmp = image.info.get("exif", b"").removeprefix(b"Exif\0\0"), image.info.get("xmp", b"")
    icc = image.info.get("icc_profile") or exif_profile(exif, warnings)
    turn = orientation(exif, xmp, warnings)
    return Contents(image=image, icc=icc, orientation=turn, pictures=image.n_frames, warnings=warnings)


def read_bmp(stream: "DeadlineReader", check: Check) -> Contents:
    """Read a BMP."""
    data = stream.getvalue()
    if int.from_bytes(data[14:18], "little") not in (12, 40, 52, 56, 64, 108, 124):
        raise identify(data, stream.name)
    try:
        image = codec.Bmp(stream)
    except OSError as error:  # Pillow's error of a BMP that it does not read
        if not str(error).startswith("Unsupported BMP"):
            raise
        raise unread(stream.name, "a BMP of a kind that is not read", str(error), SAVE_AS_PNG) from None
    check(*image.size)
    codec.load(image)
    icc, warnings = None, list[SkinretWarning]()
    size, space = struct.unpack_from("<L", data, 14)[0], data[70:74]
    if size == 124 and space == b"DEBM":  # PROFILE_EMBEDDED, as a little-endian number
        start, length = struct.unpack_from("<LL", data, 126)
        icc = data[14 + start : 14 + start + length] or b"damaged"
    elif (size == 124 and space == b"KNIL") or (size >= 108 and space == bytes(4) and any(data[74:110])):
        warnings.append(unclear_colours("the picture names colours by endpoints or by another file"))
    return Contents(image=image, icc=icc, warnings=warnings)
