"""Read a JPEG: this module checks and reads the segments; the decoder gets only the pixels."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError, SkinretWarning
from . import codec
from .container import MAX_SEGMENTS, Check, Contents
from .identify import SAVE_AS_PNG, unread
from .limits import DeadlineReader
from .metadata import directory, exif_profile, header, orientation, unclear_colours

MAX_SCANS = 100  # passes of a JPEG over all its pixels; a progressive JPEG has about ten
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # of a segment, or of the end of the image
_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC3: "lossless"}
_HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xDE)
_ARITHMETIC = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_FULL_PICTURES = (0x020001, 0x020002, 0x020003)  # types of MPF: panorama, stereo, multiple angles
_HUFFMAN_CURE = "recode it without loss, such as with libjpeg-turbo: jpegtran -outfile OUT IN"


class Segment(NamedTuple):
    """A segment of a JPEG: its marker, the offset of the marker in the file, and its content."""

    marker: int
    place: int
    body: bytes


def segments(stream: "DeadlineReader", place: int = 0) -> list[Segment]:
    """Return the segments of the JPEG at an offset up to its first scan; an empty list if it is no JPEG.

    The JPEG is read as decoders read it: from marker to marker, past bytes that cannot be a marker. Raises
    InputError for a JPEG of too many scans (a megabyte of them can take hours) or in arithmetic coding (few
    programs read it, and a few bytes can take minutes).
    """
    data = stream.getvalue()
    if data[place : place + 3] != b"\xff\xd8\xff":
        return []
    stream.check()
    result: list[Segment] = []
    place, count, scans = place + 2, 0, 0
    while marker := _MARKER.search(data, place):
        kind, place, count = marker[1][0], marker.end(), count + 1
        if kind == 0xD9:
            break
        arithmetic = kind in _ARITHMETIC
        if arithmetic or scans == MAX_SCANS or count > MAX_SEGMENTS:
            raise InputError(
                f"{stream.name} takes too many steps to decode",
                code="image-scans",
                expected=f"Huffman coding, at most {MAX_SCANS} scans and {MAX_SEGMENTS:,} segments",
                found="arithmetic coding" if arithmetic else "more",
                cure=_HUFFMAN_CURE if arithmetic else "open it in an image viewer and save it again",
            )
        length = int.from_bytes(data[place : place + 2], "big")
        if not scans:
            result.append(Segment(kind, marker.start(), data[place + 2 : place + length]))
        scans += kind == 0xDA
        place += length
    return result


def check_frame(jpeg_segments: Sequence[Segment], name: str) -> Segment:
    """Return the frame header of a JPEG. Raises InputError for a kind of JPEG that is not read."""
    frames = [
        segment for segment in jpeg_segments if segment.marker in _FRAMES or segment.marker in _HIERARCHICAL
    ]
    if any(segment.marker == 0xF7 for segment in jpeg_segments):
        raise unread(name, "a JPEG-LS file", "a format that is not read", SAVE_AS_PNG)
    if not frames or len(frames[0].body) < 6 or jpeg_segments[-1].marker != 0xDA:
        raise ValueError("no frame header, or no scan")
    frame = frames[0]
    bits, channels = frame.body[0], frame.body[5]
    if frame.marker in _HIERARCHICAL:
        kind = "a hierarchical JPEG"
    elif bits != 8:
        kind = f"a JPEG of {bits} bits a channel"
    elif channels not in (1, 3, 4):
        kind = f"a JPEG of {channels} channels"
    else:
        return frame
    cure = "save it as PNG, or as a JPEG of 8 bits, in the program that wrote it"
    raise unread(name, kind, "a kind of JPEG that is not read", cure)


def read_jpeg(stream: "DeadlineReader", check: Check) -> Contents:
    """Read a JPEG. The decoder gets only what the pixels need: no EXIF, no preview, no text."""
    data, warnings = stream.getvalue(), list[SkinretWarning]()
    jpeg_segments = segments(stream)
    frame = check_frame(jpeg_segments, stream.name)
    exif_segments, xmp, pictures, profiles = list[bytes](), b"", 1, dict[int, bytes]()
    pieces = [b"\xff\xd8"]  # of the file that the decoder gets
    jfif = adobe = False
    profile_count = 0
    for marker, place, body in jpeg_segments[:-1]:
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif_segments.append(body[6:])
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or body
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 13:
            profiles[body[12]], profile_count = body[14:], body[13]
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            pictures = _count_pictures(body[4:])
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            pieces.append(data[place : place + 4 + len(body)])
        elif (marker, body[:5]) in ((0xE0, b"JFIF\0"), (0xEE, b"Adobe")) and len(body) >= 12:
            jfif, adobe = jfif or marker == 0xE0, adobe or marker == 0xEE
            pieces.append(data[place : place + 4 + len(body)])
    scan = jpeg_segments[-1].place
    image = codec.Jpeg(stream.within(b"".join((*pieces, memoryview(data)[scan:]))))
    check(*image.size)
    transform = image.info.get("adobe_transform")
    if (image.mode == "CMYK" and not adobe) or (image.mode == "RGB" and jfif and transform == 0):
        warnings.append(unclear_colours("the JPEG does not state its colours, or contradicts itself"))
    try:
        codec.load(image)
    except OSError:
        if _FRAMES[frame.marker] != "lossless":
            raise
        why = "lossless coding, which the JPEG library here does not read, or damaged data"
        raise unread(stream.name, "a lossless JPEG", why, SAVE_AS_PNG) from None
    icc = b"".join(profiles[n] for n in sorted(profiles)) or None
    if icc and len(profiles) != profile_count:
        icc = b"incomplete"
    exif = b"".join(exif_segments)
    icc = icc or exif_profile(exif, warnings)
    turn = orientation(exif, xmp, warnings)
    return Contents(image=image, icc=icc, orientation=turn, pictures=pictures, warnings=warnings)


def _count_pictures(mpf: bytes) -> int:
    """Return the number of pictures by MPF, without previews and smaller copies. CIPA DC-007, 5.2.3."""
    try:
        order, place, _ = header(mpf)
        entries = bytes(directory(mpf, place, order)[0][0xB002].value)
    except (ValueError, KeyError):
        return 1
    attributes = np.frombuffer(entries, order + "u4", len(entries) // 16 * 4)[4::4]
    return 1 + int(np.isin(attributes & 0xFFFFFF, _FULL_PICTURES).sum())
