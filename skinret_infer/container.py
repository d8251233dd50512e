"""Take a picture file apart: the decoder gets what its pixels need alone; what lies beside is read here.

A broken text, tag or preview so costs no picture, and no setting of Pillow for them matters. What cannot be
used is a remark. EXIF 3.0, PNG (third edition), TIFF 6.0, CIPA DC-007, ICC.1:2001-04, ITU-T H.273.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from . import codec
from .errors import InputError, Remark

if TYPE_CHECKING:
    from .image import Timed

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
MAX_SCANS = 100  # passes of a JPEG over all its pixels; a progressive one has about ten
MAX_SEGMENTS = 100_000  # of a JPEG, or chunks of a PNG; each is looked at
MAX_PROFILE = 4_000_000  # bytes of an ICC profile; a printer's takes two million
MAX_TAGS = 4096  # of a directory that are looked at; cameras write a hundred
CURE = f"give a {', '.join(FORMATS)} file that an image viewer opens, or a DICOM object"
Check = Callable[[int, int], None]  # raises InputError for a width and height that are not taken

_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # of a segment, or of the end
_TYPES = dict(zip((*range(1, 14), 16, 17, 18), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8), strict=True))
_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_D65 = (0.3127, 0.3290)
_PRIMARIES = {  # of H.273: x and y of red, green and blue, and of white
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
}
_SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *_D65)
_ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, *_D65)
_LIKE_SRGB = (1, 6, 13, 14, 15)  # transfers of H.273; television's is shown with the curve of sRGB
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}


@dataclass(slots=True, kw_only=True)
class Contents:
    """A picture and what its file says of it. `image` is loaded and lies as it is stored."""

    image: Image.Image
    icc: bytes | None = None
    orientation: int = 1  # EXIF's
    pictures: int = 1
    remarks: list[Remark] = field(default_factory=list)


def unread(name: str, kind: str, why: str, cure: str) -> InputError:
    """Return the error of a file that is of a known kind, but not read."""
    return InputError(
        f"{name} is {kind}",
        code="image-unreadable",
        expected=f"one of {', '.join(FORMATS)}, or DICOM",
        found=why,
        cure=cure,
    )


# -- what a file is --

_SAVE = "open it in a program that shows it, and save it there as PNG"
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "a HEIF (HEIC) file"),
    **dict.fromkeys((b"mif1", b"msf1"), "a HEIF (HEIC) file"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF file"),
    **dict.fromkeys((b"crx ",), "a camera raw file"),
}
_KINDS: tuple[tuple[bytes, str, str], ...] = (  # how it begins, what it is, a cure
    (rb"GIF8[79]a", "a GIF file", _SAVE),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL file", _SAVE),
    (rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  ", "a JPEG 2000 file", _SAVE),
    (rb"II\xbc", "a JPEG XR file", _SAVE),
    (rb"8BPS", "a Photoshop file", _SAVE),
    (rb"\x00\x00[\x01\x02]\x00", "an icon or cursor", _SAVE),
    (rb"P[1-7]\s", "a PNM file", _SAVE),
    (rb"qoif", "a QOI file", _SAVE),
    (rb"\x76\x2f\x31\x01", "an OpenEXR file", _SAVE),
    (rb"\x8a(MNG)|\x8b(JNG)", "an MNG or JNG file", _SAVE),
    (rb"%PDF", "a PDF document", "export the picture that it shows as PNG or JPEG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file", "export the picture that it shows as PNG or JPEG"),
    (rb"FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\x00|FOVb", "a camera raw file",
     "develop it in the camera's program, and save it there as JPEG or PNG"),
    (rb"\x1f\x8b", "a file packed by gzip", "unpack it, such as with gunzip"),
    (rb"BZh[1-9]|\xfd7zXZ\x00|\x28\xb5\x2f\xfd|7z\xbc\xaf", "a packed file", "unpack it"),
    (rb"PK\x03\x04|PK\x05\x06", "a ZIP archive or a document", "unpack it, and give the picture within"),
    (rb"Rar!", "a RAR archive", "unpack it, and give the picture within"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself", "run git lfs pull"),
    (rb"\x93NUMPY", "a NumPy array", "load it, and pass the H x W x 3 array of uint8"),
    (rb"SQLite format 3", "an SQLite database", CURE),
    (rb"\x7fELF|MZ", "a program", CURE),
    (rb"[\x02\x08]\x00[\x00-\x18]\x00([A-Z]{2}|..\x00\x00)", "a DICOM object without its first 132 bytes",
     "write them, such as with DCMTK: dcmconv IN OUT"),
)  # fmt: skip
_TEXTS: tuple[tuple[bytes, str, str], ...] = (
    (rb"(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*)*(<!DOCTYPE svg|<svg)", "an SVG drawing",
     "export it as PNG"),
    (rb"(<!--((?!-->).)*-->\s*)*<(!DOCTYPE html|html|head|body)", "a web page, perhaps of an error",
     "download the picture again"),
    (rb"<\?xml|<[A-Za-z]+>", "an XML document, perhaps of an error", "download the picture again"),
    (rb"[\[{]", "a text, perhaps JSON", CURE),
)  # fmt: skip


def identify(data: bytes, name: str) -> InputError:
    """Return the error of a file that is of none of the formats that are read: it says what the file is."""
    if data[4:8] == b"ftyp":
        kind = _BRANDS.get(data[8:12], "a video, or another ISO media file")
        cure = _SAVE if data[8:12] in _BRANDS else "export the picture that shows the lesion as JPEG or PNG"
        return unread(name, kind, f"the brand {data[8:12]!r}, which is not read", cure)
    for begin, kind, cure in _KINDS:
        if re.match(begin, data, re.DOTALL):
            return unread(name, kind, "a format that is not read", cure)
    text = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    for begin, kind, cure in _TEXTS:
        if re.match(begin, text, re.DOTALL | re.IGNORECASE):
            return unread(name, kind, f"{text[:8]!r} at its beginning", cure)
    if not data.strip(b"\0"):
        kind, cure = "not an image: it holds zeros alone", "copy the file again from its source"
        return unread(name, kind, f"{len(data)} bytes of 0", cure)
    return unread(name, "not an image", f"a file that begins with {data[:8]!r}", CURE)


# -- directories of tags: TIFF, EXIF, MPF --


class Tag(NamedTuple):
    """A value of a directory: its type by TIFF 6.0, how many, and its bytes."""

    type: int
    items: int
    value: memoryview
    order: str

    def numbers(self, most: int = 65536) -> npt.NDArray[np.uint64]:
        """Return its whole numbers, of very many the first. Raises ValueError where it has none."""
        if self.type not in _NUMBERS or not self.items:
            raise ValueError("a tag without a whole number")
        return np.frombuffer(self.value, self.order + _NUMBERS[self.type])[:most].astype(np.uint64)

    def number(self) -> int:
        """Return the first of its whole numbers."""
        return int(self.numbers()[0])

    def rationals(self) -> list[float]:
        """Return its numbers that are fractions. Raises ValueError where it has none."""
        if self.type != 5:
            raise ValueError("a tag without a fraction")
        pairs = np.frombuffer(self.value[:512], self.order + "u4").reshape(-1, 2).astype(float)
        return [float(above / below) if below else 0.0 for above, below in pairs]


Tags = dict[int, Tag]


def directory(data: bytes, place: int, order: str, *, big: bool = False) -> tuple[Tags, int]:
    """Return the tags of a directory, and the place of the next one, or 0.

    A tag that cannot be read has no items; of two of a number the first counts. Raises ValueError where there
    is no directory, or not the whole of it.
    """
    view = memoryview(data)
    count_as, wide, size = ("Q", "Q", 20) if big else ("H", "L", 12)
    head, word = struct.calcsize(order + count_as), struct.calcsize(order + wide)
    if not 8 <= place <= len(data) - head:
        raise ValueError("a directory that lies outside of the file")
    (count,) = struct.unpack_from(order + count_as, data, place)
    tags: Tags = {}
    for at in range(place + head, place + head + size * min(count, MAX_TAGS), size):
        if at + size > len(data):
            raise ValueError("a directory that is cut short")
        number, kind, items = struct.unpack_from(order + "HH" + wide, data, at)
        length, start = _TYPES.get(kind, 0) * items, at + size - word
        if length > word:
            (start,) = struct.unpack_from(order + wide, data, start)
        value = view[start : start + length]
        there = 0 < length == len(value)
        tags.setdefault(number, Tag(kind, items if there else 0, value if there else view[:0], order))
    end = place + head + size * count
    return tags, struct.unpack_from(order + wide, data, end)[0] if end + word <= len(data) else 0


def header(data: bytes) -> tuple[str, int, bool]:
    """Return the byte order of a TIFF or of EXIF, the place of its first directory, and whether it is big.

    Raises ValueError for anything else.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    if not order or len(data) < 8 or sorted(data[2:4]) not in ([0, 42], [0, 43]):
        raise ValueError("no header of TIFF")
    if 43 not in data[2:4]:
        return order, int(struct.unpack_from(order + "L", data, 4)[0]), False
    if len(data) < 16:
        raise ValueError("no header of TIFF")
    return order, int(struct.unpack_from(order + "Q", data, 8)[0]), True


# -- EXIF and XMP --

_TURNED = Remark("the orientation of the picture cannot be read: it is taken as upright", "image-orientation")
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([0-9]+)")


def orientation(exif: bytes, xmp: bytes, remarks: list[Remark]) -> int:
    """Return the orientation by EXIF, else by XMP; 1, with a remark, where what they say is unclear."""
    found: list[int] = []
    unclear = False
    if exif:
        try:
            order, place, big = header(exif)
            tags, _ = directory(exif, place, order, big=big)
            unclear = not tags
            found += [tags[0x0112].number()] if 0x0112 in tags else []
        except ValueError:
            unclear = True
    if not found and (written := _XMP_ORIENTATION.search(xmp)):
        found.append(int(written[1][:4]))
    return _upright(found, unclear, remarks)


def of_tag(tags: Tags, xmp: bytes, remarks: list[Remark]) -> int:
    """Return the orientation by the tags of a TIFF, else by XMP, as `orientation` does."""
    try:
        found = [tags[0x0112].number()] if 0x0112 in tags else []
    except ValueError:
        return _upright([], True, remarks)
    if not found and (written := _XMP_ORIENTATION.search(xmp)):
        found.append(int(written[1][:4]))
    return _upright(found, False, remarks)


def _upright(found: list[int], unclear: bool, remarks: list[Remark]) -> int:
    if found and 1 <= found[0] <= 8:
        return found[0]
    if found or unclear:
        remarks.append(_TURNED)
    return 1


def exif_profile(exif: bytes, remarks: list[Remark]) -> bytes | None:
    """Return the ICC profile of the colours that EXIF names: of Adobe RGB, or none for sRGB."""
    try:
        order, place, big = header(exif)
        return tag_profile(exif, directory(exif, place, order, big=big)[0], remarks)
    except ValueError:
        return None


def tag_profile(data: bytes, tags: Tags, remarks: list[Remark]) -> bytes | None:
    """Return the ICC profile of the colours that the EXIF within some tags names. DCF 2.0, section 3.4."""
    inner = _inner(data, tags, 0x8769)
    index = _inner(data, inner, 0xA005).get(1)
    try:
        space = inner[0xA001].number() if 0xA001 in inner else 1
    except ValueError:
        space = 0
    if space == 2 or (space != 1 and index and bytes(index.value[:3]) == b"R03"):
        return matrix_profile(_ADOBE, 563 / 256)
    if space != 1:
        remarks.append(_unclear("the picture names colours other than sRGB, but not which"))
    return None


def _inner(data: bytes, tags: Tags, pointer: int) -> Tags:
    try:
        return directory(data, tags[pointer].number(), tags[pointer].order)[0]
    except (KeyError, ValueError):
        return {}


# -- colours --


def _unclear(said: str) -> Remark:
    return Remark(f"{said}: they are taken as sRGB", "image-colour")


def matrix_profile(primaries: Sequence[float], gamma: float | None) -> bytes:
    """Return an ICC profile by x and y of red, green, blue and white, and by a gamma, or sRGB's curve."""
    columns = np.array([(x, y, 1 - x - y) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]).T
    if columns[1].min() <= 0:
        raise ValueError("colours that are none")
    white = columns[:, 3] / columns[1, 3]
    rgb = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    rgb = np.linalg.inv(cone) @ np.diag((cone @ d50) / (cone @ white)) @ cone @ rgb  # Bradford
    if not np.abs(rgb).max() < 4:
        raise ValueError("colours that are too near to each other")
    levels = np.linspace(0, 1, 4096)
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    curve = (linear if gamma is None else levels**gamma) * 65535
    table = b"curv\0\0\0\0" + struct.pack(">L", 4096) + curve.round().astype(">u2").tobytes()

    def xyz(values: npt.NDArray[np.float64]) -> bytes:
        return b"XYZ \0\0\0\0" + (values * 65536).round().astype(">i4").tobytes()

    parts = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">L", 1) + bytes(79),
        b"cprt": b"text\0\0\0\0\0\0\0\0",
        b"wtpt": xyz(d50),
        **{c + b"XYZ": xyz(rgb[:, n]) for n, c in enumerate((b"r", b"g", b"b"))},
        **{c + b"TRC": table for c in (b"r", b"g", b"b")},
    }
    index, body, start = struct.pack(">L", len(parts)), b"", 132 + 12 * len(parts)
    for name, value in parts.items():
        value += bytes(-len(value) % 4)
        index, body = index + struct.pack(">4sLL", name, start + len(body), len(value)), body + value
    head = struct.pack(">L4xL4s4s4s12x4s", start + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return head.ljust(68, b"\0") + xyz(d50)[8:].ljust(60, b"\0") + index + body


# -- JPEG --

_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC3: "lossless"}
_HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xDE)
_ARITHMETIC = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_SEVERAL = (0x020001, 0x020002, 0x020003)  # types of MPF: a panorama, for two eyes, from several angles
_HUFFMAN_CURE = "code it anew without loss, such as with libjpeg-turbo: jpegtran -outfile OUT IN"


class Segment(NamedTuple):
    """A segment of a JPEG: where its marker stands, and its content."""

    marker: int
    place: int
    body: bytes


def segments(stream: "Timed", place: int = 0) -> list[Segment]:
    """Return the segments of a JPEG as far as its first scan; an empty list for what is no JPEG.

    It is read from its place in the file as decoders read it: from marker to marker, past what cannot be
    one. Raises InputError for a JPEG that goes over its pixels again and again (a megabyte of it takes hours)
    or is in arithmetic coding (which hardly a program reads, and of which few bytes take minutes).
    """
    data = stream.getvalue()
    if data[place : place + 3] != b"\xff\xd8\xff":
        return []
    stream.check()
    found: list[Segment] = []
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
            found.append(Segment(kind, marker.start(), data[place + 2 : place + length]))
        scans += kind == 0xDA
        place += length
    return found


def check_frame(parts: Sequence[Segment], name: str) -> Segment:
    """Return the segment that says of which kind a JPEG is. Raises InputError for a kind that is not read."""
    frames = [p for p in parts if p.marker in _FRAMES or p.marker in _HIERARCHICAL]
    if any(p.marker == 0xF7 for p in parts):
        raise unread(name, "a JPEG-LS file", "a format that is not read", _SAVE)
    if not frames or len(frames[0].body) < 6 or parts[-1].marker != 0xDA:
        raise ValueError("no frame, or no scan of it")
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


def read_jpeg(stream: "Timed", check: Check) -> Contents:
    """Read a JPEG, of which the decoder gets what its pixels need: no EXIF, no preview, no text."""
    data, remarks = stream.getvalue(), list[Remark]()
    parts = segments(stream)
    frame = check_frame(parts, stream.name)
    exifs, xmp, pictures, profiles = list[bytes](), b"", 1, dict[int, bytes]()
    kept = [b"\xff\xd8"]
    jfif = adobe = False
    of_profile = 0
    for marker, place, body in parts[:-1]:
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exifs.append(body[6:])
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or body
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 13:
            profiles[body[12]], of_profile = body[14:], body[13]
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            pictures = _several(body[4:])
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[place : place + 4 + len(body)])
        elif (marker, body[:5]) in ((0xE0, b"JFIF\0"), (0xEE, b"Adobe")) and len(body) >= 12:
            jfif, adobe = jfif or marker == 0xE0, adobe or marker == 0xEE
            kept.append(data[place : place + 4 + len(body)])
    scan = parts[-1].place
    image = codec.Jpeg(stream.within(b"".join((*kept, memoryview(data)[scan:]))))
    check(*image.size)
    transform = image.info.get("adobe_transform")
    if (image.mode == "CMYK" and not adobe) or (image.mode == "RGB" and jfif and transform == 0):
        remarks.append(_unclear("the marks of the JPEG do not say which colours it holds"))
    try:
        codec.load(image)
    except OSError:
        if _FRAMES[frame.marker] != "lossless":
            raise
        why = "lossless coding, which the JPEG library here does not read, or damage"
        raise unread(stream.name, "a lossless JPEG", why, _SAVE) from None
    icc = b"".join(profiles[n] for n in sorted(profiles)) or None
    if icc and len(profiles) != of_profile:
        icc = b"incomplete"
    exif = b"".join(exifs)
    icc = icc or exif_profile(exif, remarks)
    turned = orientation(exif, xmp, remarks)
    return Contents(image=image, icc=icc, orientation=turned, pictures=pictures, remarks=remarks)


def _several(mpf: bytes) -> int:
    """Return how many pictures MPF counts beside previews and smaller copies. CIPA DC-007, 5.2.3."""
    try:
        order, place, _ = header(mpf)
        entries = bytes(directory(mpf, place, order)[0][0xB002].value)
    except (ValueError, KeyError):
        return 1
    attributes = np.frombuffer(entries, order + "u4", len(entries) // 16 * 4)[4::4]
    return 1 + int(np.isin(attributes & 0xFFFFFF, _SEVERAL).sum())


# -- PNG --

_PNG = b"\x89PNG\r\n\x1a\n"
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
_HELD = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # the pixels depend on them
_USED = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf", b"acTL", b"fcTL", b"iTXt", b"zTXt", b"tEXt")
_WHOLE_GAMMA = (0.43, 0.48)  # of gAMA: so near to the curve of sRGB that viewers take that


def _chunks(stream: "Timed", broken: set[str]) -> dict[bytes, list[memoryview]]:
    """Return the contents of the chunks of a PNG that are used; name in `broken` what else is damaged."""
    data, place = stream.getvalue(), len(_PNG)
    view, found = memoryview(data), dict[bytes, list[memoryview]]()
    for count in range(MAX_SEGMENTS + 1):
        if count % 4096 == 0:
            stream.check()
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 12 + length
        if kind == b"IEND":
            return found
        if end > len(data) or not kind.isalpha():
            if kind == b"IDAT" or b"IDAT" not in found or not all(64 < c < 123 for c in kind):
                raise ValueError("a chunk that goes beyond the end of the file, or has no name")
            broken.add("the end")
            return found
        given = int.from_bytes(data[end - 4 : end], "big")
        whole = zlib.crc32(view[place + 4 : end - 4]) == given
        if not whole and kind in _HELD:
            raise ValueError(f"a wrong check sum of the chunk {kind.decode()}")
        if not whole:
            broken.add(kind.decode())
        elif kind in _HELD or (kind in _USED and (kind != b"fcTL" or b"IDAT" not in found)):
            found.setdefault(kind, []).append(view[place + 8 : end - 4])
        elif kind == b"CgBI":
            raise unread(stream.name, "a PNG of Apple's own kind (CgBI)", "pixels in another order", _SAVE)
        elif kind[:1].isupper():
            raise unread(stream.name, "a PNG of a kind that is not read", f"a chunk {kind.decode()}", _SAVE)
        place = end
    raise InputError(
        f"{stream.name} takes too many steps to decode",
        code="image-scans",
        expected=f"at most {MAX_SEGMENTS:,} chunks",
        found="more",
        cure="open it in an image viewer and save it again",
    )


def _chunk(kind: bytes, body: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    sums = struct.pack(">L", zlib.crc32(body, zlib.crc32(kind)))
    return struct.pack(">L", len(body)) + kind, body, sums


def read_png(stream: "Timed", check: Check) -> Contents:
    """Read a PNG, of which the decoder gets the chunks that its pixels need."""
    broken: set[str] = set()
    remarks: list[Remark] = []
    parts = _chunks(stream, broken)
    width, height, bits, colour = struct.unpack_from(">LLBB", parts[b"IHDR"][0])
    check(width, height)
    held = [kind for kind in _HELD if kind != b"tRNS" or colour == 3]  # else by _with_transparent
    given = [_chunk(kind, body) for kind in held for body in parts.get(kind, ())]
    data = b"".join([_PNG, *itertools.chain(*given), *_chunk(b"IEND", b"")])
    image: Image.Image = codec.Png(stream.within(data))
    codec.load(image)
    if colour in (0, 2) and b"tRNS" in parts:
        key = np.frombuffer(parts[b"tRNS"][0], ">u2", 1 if colour == 0 else 3).astype(int)
        image = _with_transparent(image, key, bits, stream.within(data))
    if broken:
        named = ", ".join(sorted(broken))
        said = f"parts of the file beside the pixels are damaged, and are not used: {named}"
        remarks.append(Remark(said, "image-metadata"))
    exif, xmp = _texts(parts)
    turned = orientation(exif, xmp, remarks)
    if turned == 1 and "eXIf" in broken:
        remarks.append(_TURNED)
    pictures = 1
    if b"acTL" in parts and len(parts[b"acTL"][0]) == 8:
        animated = int.from_bytes(parts[b"acTL"][0][:4], "big")
        pictures = max(1, animated + (b"fcTL" not in parts and animated > 0))
    told = any(kind in parts for kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"))
    icc = _png_profile(parts, remarks) if told else exif_profile(exif, remarks)
    return Contents(image=image, icc=icc, orientation=turned, pictures=pictures, remarks=remarks)


def _with_transparent(
    image: Image.Image, key: npt.NDArray[np.int_], bits: int, again: "Timed"
) -> Image.Image:
    """Return a picture with one colour transparent, which Pillow takes for a colour of 8 bits."""
    if bits == 16:
        pixels = np.asarray(image).astype(np.uint16)
        if image.mode == "RGB":  # the high bytes: the low ones are another way to read the same
            low = codec.Png(again)
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            codec.load(low)
            pixels = pixels << 8 | np.asarray(low)
        clear = (pixels.reshape(*pixels.shape[:2], -1) == key).all(axis=-1)
        grey = image.mode != "RGB"
        shown = Image.fromarray((pixels // 257).astype(np.uint8)).convert("LA") if grey else image.copy()
        shown.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
        return shown
    if (key < 1 << bits).all():
        levels = tuple(int(k) * 255 // ((1 << bits) - 1) for k in key)
        image.info["transparency"] = levels if image.mode == "RGB" else levels[0]
    return image


def _texts(parts: Mapping[bytes, Sequence[memoryview]]) -> tuple[bytes, bytes]:
    """Return the EXIF and the XMP of a PNG; older programs write EXIF as text."""
    texts = [bytes(body) for kind in (b"iTXt", b"zTXt", b"tEXt") for body in parts.get(kind, ())]
    exif, xmp = _only(parts, b"eXIf").removeprefix(b"Exif\0\0"), b""
    for body in [text for text in texts if text.startswith(_XMP + b"\0")][:1]:
        rest = body[len(_XMP) + 1 :]  # whether it is packed, how, language, translated key word, text
        xmp = rest[2:].split(b"\0", 2)[-1]
        xmp = _inflated(xmp) if rest[:1] == b"\1" else xmp
    for body in [text for text in texts if text.startswith(_RAW_EXIF + b"\0") and not exif][:1]:
        rest = body[len(_RAW_EXIF) + 1 :]
        rest = rest if rest[:1] == b"\n" else _inflated(rest[1:])
        try:  # a line of its name, one of its length, then lines of hexadecimal digits
            exif = bytes.fromhex("".join(rest.decode("ascii").split("\n")[3:])).removeprefix(b"Exif\0\0")
        except ValueError:
            exif = b"unclear"
    return exif, xmp


def _only(parts: Mapping[bytes, Sequence[memoryview]], kind: bytes) -> bytes:
    """Return the content of the first chunk of a kind, or none."""
    return bytes(parts[kind][0]) if kind in parts else b""


def _inflated(data: bytes) -> bytes:
    """Return unpacked bytes, as far as they can be unpacked and are not too many."""
    try:
        return zlib.decompressobj().decompress(data, MAX_PROFILE + 1)
    except zlib.error:
        return b""


def _png_profile(parts: Mapping[bytes, Sequence[memoryview]], remarks: list[Remark]) -> bytes | None:
    """Return the ICC profile of the colours of a PNG, by the first of cICP, iCCP, sRGB, gAMA with cHRM."""
    coded = _only(parts, b"cICP")
    if len(coded) == 4 and coded[0] != 2 and coded[1] != 2:  # 2: not said
        primaries, transfer, matrix, full = coded
        gamma = None if transfer in _LIKE_SRGB else _GAMMAS.get(transfer)
        if primaries == 1 and transfer in _LIKE_SRGB and (matrix, full) == (0, 1):
            return None
        known = primaries == 1 or primaries in _PRIMARIES
        if known and (transfer in _LIKE_SRGB or gamma) and (matrix, full) == (0, 1):
            return matrix_profile(_PRIMARIES.get(primaries, _SRGB), gamma)
        names = {16: " (PQ, of high dynamic range)", 18: " (HLG, of high dynamic range)"}.get(transfer, "")
        remarks.append(_unclear(f"the colours of the picture, cICP {tuple(coded)}{names}, are not converted"))
        return None
    if b"iCCP" in parts:
        return _inflated(_only(parts, b"iCCP").partition(b"\0")[2][1:]) or b"damaged"
    if b"sRGB" in parts:
        return None
    wide, curve = _only(parts, b"cHRM"), _only(parts, b"gAMA")
    chromaticity = [n / 100_000 for n in struct.unpack(">8L", wide)] if len(wide) == 32 else []
    power = int.from_bytes(curve, "big") / 100_000 if len(curve) == 4 else 0
    return plain_profile(chromaticity, power, remarks)


def plain_profile(chromaticity: Sequence[float], power: float, remarks: list[Remark]) -> bytes | None:
    """Return the ICC profile of PNG's cHRM (x and y of white, red, green, blue; or none) and gAMA (or 0)."""
    primaries = (*chromaticity[2:], *chromaticity[:2]) if len(chromaticity) == 8 else _SRGB
    near = np.abs(np.subtract(primaries, _SRGB)).max() < 0.005
    curve = not power or _WHOLE_GAMMA[0] < power < _WHOLE_GAMMA[1]
    if near and curve:
        return None
    try:
        if not (curve or 0.1 <= power <= 2):
            raise ValueError("no curve of a picture")
        profile = matrix_profile(_SRGB if near else primaries, None if curve else 1 / power)
    except (ValueError, ArithmeticError, struct.error):
        remarks.append(_unclear("the colours of the picture cannot be made out from its gAMA and cHRM"))
        return None
    return profile


# -- WebP and BMP --


def read_webp(stream: "Timed", check: Check) -> Contents:
    """Read a WebP."""
    image, remarks = codec.WebP(stream), list[Remark]()
    check(*image.size)
    codec.load(image)
    exif, xmp = image.info.get("exif", b"").removeprefix(b"Exif\0\0"), image.info.get("xmp", b"")
    icc = image.info.get("icc_profile") or exif_profile(exif, remarks)
    turned = orientation(exif, xmp, remarks)
    return Contents(image=image, icc=icc, orientation=turned, pictures=image.n_frames, remarks=remarks)


def read_bmp(stream: "Timed", check: Check) -> Contents:
    """Read a BMP."""
    data = stream.getvalue()
    if int.from_bytes(data[14:18], "little") not in (12, 40, 52, 56, 64, 108, 124):
        raise identify(data, stream.name)
    try:
        image = codec.Bmp(stream)
    except OSError as error:  # so Pillow says what it does not read
        if not str(error).startswith("Unsupported BMP"):
            raise
        raise unread(stream.name, "a BMP of a kind that is not read", str(error), _SAVE) from None
    check(*image.size)
    codec.load(image)
    icc, remarks = None, list[Remark]()
    size, space = struct.unpack_from("<L", data, 14)[0], data[70:74]
    if size == 124 and space == b"DEBM":  # PROFILE_EMBEDDED, written as a number
        start, length = struct.unpack_from("<LL", data, 126)
        icc = data[14 + start : 14 + start + length] or b"damaged"
    elif (size == 124 and space == b"KNIL") or (size >= 108 and space == bytes(4) and any(data[74:110])):
        remarks.append(_unclear("the picture names colours by endpoints or by another file"))
    return Contents(image=image, icc=icc, remarks=remarks)
