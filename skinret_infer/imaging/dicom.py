"""Read the picture of a DICOM object: its pixels, and the few elements that say how to read them.

pydicom finds the elements and takes the frame out of its fragments, Pillow decodes it. pydicom's reader of
whole objects and its decoders are left aside: they warn and log what they meet, which may be a patient's, and
unpack RLE without a limit. What is not in `_TAGS` is passed over unread, so that no name, id or date leaks.
"""

import io
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.filereader import data_element_generator
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from ..errors import InputError, SkinretError, SkinretWarning
from . import codec
from .jpeg import check_frame, segments
from .limits import DeadlineReader, check_size, corrupt_image
from .recipe import Pixels

CLASSES = (
    uid.DermoscopicPhotographyImageStorage,
    uid.VLPhotographicImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,  # of a single frame
)
SYNTAXES = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.JPEGBaseline8Bit,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.RLELossless,
)
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")
MAX_JPEG_2000 = 80_000_000  # bytes of a frame, which its decoder takes in one piece: half a minute
_SUBSAMPLED = "YBR_FULL_422"  # two pixels of a row share a colour, where the pixels are not compressed
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
_FRAGMENTED = (uid.JPEGBaseline8Bit, uid.RLELossless, *_JPEG_2000)
_UNDONE = ("YBR_RCT", "YBR_ICT")  # by the decoder of JPEG 2000
_CURES: dict[
    str, str
] = {  # each tried with DCMTK 3.6.7 on Dermoscopic Photography Images, which gdcmconv does not take
    uid.DeflatedExplicitVRLittleEndian: "unpack it, such as with DCMTK: dcmconv +te IN OUT",
    **dict.fromkeys(
        (uid.JPEGLSLossless, uid.JPEGLSNearLossless), "unpack it, such as with DCMTK: dcmdjpls IN OUT"
    ),
    **dict.fromkeys(
        (f"1.2.840.10008.1.2.4.{n}" for n in (51, 53, 55, 57, 70)),
        "unpack it, such as with DCMTK: dcmdjpeg IN OUT",
    ),
}
_OTHERS = ("MONOCHROME1", "MONOCHROME2", "ARGB", "CMYK", "HSV", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "XYB")

_META = {0x00020002: "class", 0x00020010: "syntax"}
_TAGS = {
    0x00080016: "class",
    0x00280002: "samples",
    0x00280004: "photometric",
    0x00280006: "planar",
    0x00280008: "frames",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280100: "allocated",
    0x00280101: "stored",
    0x00280103: "signed",
    0x00280301: "burned in",
    0x00280302: "recognizable",
    0x00281101: "palette",
    0x00281201: "red",
    0x00281202: "green",
    0x00281203: "blue",
    0x00282000: "icc",
    0x7FE00010: "pixels",
}
_PIXELS = 0x7FE00010
_FRAGMENTS = re.compile(
    rb"\xe0\x7f\x10\x00(O[BW]\0\0)?\xff{4}"
)  # so begin pixels of no length; some lack a VR
_ITEM = b"\xfe\xff\x00\xe0"
_ENDS = (b"\xfe\xff\xdd\xe0", b"\xfc\xff\xfc\xff")  # of fragments, or of all that is of use in the object
_BEGINNINGS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")  # of JPEG and JPEG 2000
_CHARACTER_SET = 0x00080005
_NO_LENGTH = 0xFFFFFFFF
_MARKS = {
    "burned in": SkinretWarning(
        "the DICOM object says that writing is burned into the picture, which may name the patient "
        "(Burned In Annotation: YES)",
        "image-burned-in",
    ),
    "recognizable": SkinretWarning(
        "the DICOM object says that the picture may show who the patient is "
        "(Recognizable Visual Features: YES)",
        "image-recognizable",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The elements of `_TAGS` that an object has, as bytes."""

    name: str  # of the file, for messages
    file: DeadlineReader
    syntax: str
    values: Mapping[str, bytes]
    swapped: bool  # big endian, with pixels as words

    @property
    def order(self) -> str:
        return ">" if self.syntax == uid.ExplicitVRBigEndian else "<"

    def word(self, element: str) -> str:
        return _word(self.values.get(element, b""))

    def number(self, element: str, default: int | None = None) -> int:
        value = self.values.get(element, b"")
        if len(value) < 2 and default is None:
            raise corrupt_image(self.name, f"no number of {element}")
        return int(struct.unpack(self.order + "H", value[:2])[0]) if len(value) >= 2 else default or 0


def read(stream: DeadlineReader, max_pixels: int, warnings: list[str]) -> Image.Image:
    """Return the picture of a DICOM object as RGB, with its ICC profile in `info`.

    warnings : gets what the object says of writing in the picture and of recognisable features.

    Raises InputError for an object of another class, transfer syntax, colour or depth than a dermoscopy
    picture has, for one without pixels or with more than `max_pixels`, and for a damaged one.
    """
    name = stream.name
    try:
        found = _find(stream)
        width, height = _check(found, max_pixels)
        picture = _decode(found, width, height, warnings)
    except (SkinretError, MemoryError):
        raise
    except Exception:  # pydicom and Pillow raise many kinds, whose texts may quote the object
        raise corrupt_image(name, "data that do not fit its header") from None
    icc = found.values.get("icc")
    picture.info = {"icc_profile": icc} if icc else {}
    warnings += [said for element, said in _MARKS.items() if found.word(element) == "YES"]
    return picture


def _find(stream: DeadlineReader) -> _Found:
    """Find the elements of an object that may be one of a dermoscopy picture."""
    name = stream.name

    def behind(tag: int, vr: str | None, length: int) -> bool:
        return tag >> 16 != 2 or length == _NO_LENGTH

    stream.seek(132)
    header = data_element_generator(stream, False, True, behind, specific_tags=[*_META])
    meta = {_META[e.tag]: _word(_bytes(e)) for e in header if isinstance(e, RawDataElement)}
    syntax = meta.get("syntax", "")
    if not syntax:
        raise InputError(
            f"{name} is not a whole DICOM object",
            code="image-unreadable",
            expected="a file that names its transfer syntax",
            found="none",
            cure="export it again, as a DICOM file (part 10)",
        )
    if "class" in meta:
        _check_class(meta["class"], name)
    if syntax not in SYNTAXES:
        raise InputError(
            f"{name} is compressed in a way that is not read",
            code="image-dicom-syntax",
            expected=", ".join(s.name for s in SYNTAXES),
            found=_registered(syntax) or "an unknown transfer syntax",
            cure=_CURES.get(syntax, "export it again, uncompressed or as JPEG baseline"),
        )
    big = syntax == uid.ExplicitVRBigEndian
    values, swapped = {}, False
    for element in _elements(stream, syntax == uid.ImplicitVRLittleEndian, not big):
        value = _bytes(element)
        if len(value) < element.length:
            raise corrupt_image(name, f"{len(value)} bytes of an element that has {element.length}")
        values[_TAGS[element.tag]] = value
        if element.tag == _PIXELS:
            swapped = big and element.VR == "OW"
            break
    else:
        if stream.tell() > stream.getbuffer().nbytes:
            raise corrupt_image(name, "an element that goes beyond its end")
    if "pixels" not in values and syntax in _FRAGMENTED and (begin := _FRAGMENTS.match(_ahead(stream))):
        stream.seek(begin.end(), io.SEEK_CUR)
        values["pixels"] = _frame(stream)
    return _Found(name=name, file=stream, syntax=syntax, values=values, swapped=swapped)


def _frame(stream: DeadlineReader) -> bytes:
    """Return what all fragments hold: an object of one frame needs no table of where its frames begin.

    A table that is wrong is no matter then, nor is one that is missing, nor a missing end. PS3.5, A.4.
    """
    items: list[bytes] = []
    while (head := stream.read(8))[:4] == _ITEM:
        (length,) = struct.unpack("<L", head[4:])
        item = stream.read(length) if length != _NO_LENGTH else b""
        if len(item) < length:
            raise corrupt_image(stream.name, "fragments that go beyond its end")
        if item or not items:
            items.append(item)
    fragments = items[1:]
    if items and (items[0].startswith(_BEGINNINGS) or not fragments):
        fragments.insert(0, items[0])  # no table at all
    if not head.startswith(_ENDS) and any(head):
        raise corrupt_image(stream.name, "something else between its fragments")
    if sum(fragment.startswith(_BEGINNINGS) for fragment in fragments) > 1:
        raise _frames(stream.name, "a single one", "the beginnings of several")
    return b"".join(fragments)


def _elements(stream: DeadlineReader, implicit: bool, little: bool) -> Iterator[RawDataElement]:
    """Yield the elements of `_TAGS`, as far as pixels in fragments, if any.

    On the way, what pydicom would interpret, and warn of, is passed over: sequences and the character set.
    """

    def interpreted(tag: int, vr: str | None, length: int) -> bool:
        return tag == _CHARACTER_SET or length == _NO_LENGTH

    while True:
        elements = data_element_generator(stream, implicit, little, interpreted, specific_tags=[*_TAGS])
        yield from (e for e in elements if isinstance(e, RawDataElement) and e.tag in _TAGS)
        if _FRAGMENTS.match(_ahead(stream)) or not _pass_over(stream, implicit, little):
            return


def _ahead(stream: DeadlineReader) -> bytes:
    place = stream.tell()
    ahead = stream.read(12)
    stream.seek(place)
    return ahead


def _pass_over(stream: DeadlineReader, implicit: bool, little: bool) -> bool:
    """Move past one element, with all that is nested in it; return whether there was one. PS3.5, 7.5."""
    order = "<" if little else ">"
    nested: list[bool] = []  # of each sequence and item that is open: is it written with implicit VR
    while head := stream.read(8):
        group, number, vr, length = struct.unpack(order + "HH2sH", head)
        plain = nested[-1] if nested else implicit
        if plain or group == 0xFFFE or not vr.isalpha():
            (length,) = struct.unpack(order + "L", head[4:])
        elif vr.decode("ascii") in EXPLICIT_VR_LENGTH_32:
            (length,) = struct.unpack(order + "L", stream.read(4))
            plain = vr == b"UN"  # PS3.5, 6.2.2: of no length, its items have implicit VR
        if group == 0xFFFE and number != 0xE000:  # the end of an item or of a sequence
            del nested[-1:]
        elif length == _NO_LENGTH:
            nested.append(plain)
        else:
            stream.seek(length, io.SEEK_CUR)
        if not nested:
            return True
    if nested:
        raise EOFError
    return False


def _check(found: _Found, max_pixels: int) -> tuple[int, int]:
    """Raise InputError for what is no picture in 8-bit colour; return its width and height."""
    name = found.name
    _check_class(found.word("class"), name)
    if not found.values.get("pixels"):
        raise InputError(
            f"{name} has no pixels",
            code="image-dicom-pixels",
            expected="a DICOM object with Pixel Data",
            found="its header alone",
            cure="export it with its picture; copy it again if it was cut short",
        )
    frames = int(found.word("frames") or 1)
    if frames != 1:
        raise _frames(name, "a still picture, of a single frame", f"{frames} frames")
    photometric = found.word("photometric")
    jpeg, samples = found.syntax == uid.JPEGBaseline8Bit, 1 if photometric == "PALETTE COLOR" else 3
    allowed = [c for c in COLOURS if c not in _UNDONE or found.syntax in _JPEG_2000]
    if jpeg:
        allowed.remove("PALETTE COLOR")
    if photometric not in allowed:
        raise InputError(
            f"{name} has no colours that can be read",
            code="image-dicom-colour",
            expected=f"the photometric interpretation {', '.join(allowed)}",
            found=photometric if photometric in (*COLOURS, *_OTHERS) else "another",
            cure="export the picture in colour, as RGB; dermoscopy is not read from grey levels",
        )
    allocated = found.number("allocated")
    stored, signed = found.number("stored", allocated), found.number("signed", 0)
    if (allocated, stored, signed) != (8, 8, 0):
        raise InputError(
            f"{name} has {'signed ' * bool(signed)}pixels of {stored} bits a channel, stored in {allocated}",
            code="image-dicom-depth",
            expected="8 bits, unsigned",
            cure="export the picture with 8 bits a channel, as a camera gives it",
        )
    if found.number("samples") != samples:
        raise corrupt_image(
            name, f"{found.number('samples')} samples a pixel where {photometric} has {samples}"
        )
    width, height = found.number("columns"), found.number("rows")
    check_size(width, height, name, max_pixels)
    return width, height


def _frames(name: str, expected: str, found: str) -> InputError:
    return InputError(
        f"{name} has another number of frames than one",
        code="image-dicom-frames",
        expected=expected,
        found=found,
        cure="export the one frame that shows the lesion",
    )


def _check_class(given: str, name: str) -> None:
    if given not in CLASSES:
        raise InputError(
            f"{name} is not a DICOM object of a dermoscopy picture",
            code="image-dicom-class",
            expected=", ".join(c.name.removesuffix(" Storage") for c in CLASSES),
            found=_registered(given) or ("an unknown SOP class" if given else "no SOP class"),
            cure="export the picture as one of those, or as a JPEG or PNG file",
        )


def _decode(found: _Found, width: int, height: int, warnings: list[str]) -> Image.Image:
    photometric = found.word("photometric")
    samples = 1 if photometric == "PALETTE COLOR" else 3
    size, data = (width, height), found.values["pixels"]
    if found.syntax == uid.JPEGBaseline8Bit:
        return _jpeg(found, data, size, warnings)
    coded = photometric in ("YBR_FULL", _SUBSAMPLED)  # YCbCr, if nothing else tells
    if found.syntax in _JPEG_2000:
        pixels, transformed = _jpeg_2000(found, data, size, "L" if samples == 1 else "RGB")
        told = False if transformed or photometric in _UNDONE else None
        if samples == 3 and (coded if transformed else photometric in _UNDONE):
            coded = False
            warnings.append(_disagreement(photometric, "JPEG 2000"))
    elif found.syntax == uid.RLELossless:
        pixels, told = _run_lengths(found, data, size, samples), None
    else:
        pixels, told = _uncompressed(found, data, size, samples), None
    if photometric == "PALETTE COLOR":
        return Image.fromarray(_palette(found)[pixels[..., 0]])
    if told is None:
        warnings += _doubts(pixels, coded)
    mode = "YCbCr" if coded else "RGB"
    return Image.frombytes(mode, size, np.ascontiguousarray(pixels).data).convert("RGB")


def _disagreement(photometric: str, syntax: str) -> SkinretWarning:
    said = (
        f"the DICOM object says {photometric} of its colours and its {syntax} something else, which is taken"
    )
    return SkinretWarning(said, "image-colour")


def _doubts(pixels: Pixels, coded: bool) -> list[SkinretWarning]:
    """Return a warning where samples of which only the object tells the colours look like others.

    In RGB of skin the channels rise and fall together. In YCbCr the last two stay near 128.
    """
    part = (
        pixels[:: max(1, len(pixels) // 256), :: max(1, pixels.shape[1] // 256)].reshape(-1, 3).astype(float)
    )
    spread = part.std(axis=0)
    ycc_like = spread[0] > 4 and spread[1:].max() < spread[0] / 2.5
    ycc_like = ycc_like and np.abs(part[:, 1:].mean(axis=0) - 128).max() < 40
    rgb_like = spread[0] > 4 and spread[1:].min() > spread[0] / 2 and np.corrcoef(part.T)[0, 1:].min() > 0.8
    if not (rgb_like if coded else ycc_like):
        return []
    named, other = ("YCbCr", "RGB") if coded else ("RGB", "YCbCr")
    said = f"the DICOM object says {named} of its colours, which is taken, but they look like {other}"
    return [SkinretWarning(said, "image-colour")]


def _jpeg(found: _Found, frame: bytes, size: tuple[int, int], warnings: list[str]) -> Image.Image:
    """Decode JPEG baseline: the stream's own marks tell its colours, the object only where it has none."""
    frame = frame.replace(b"Exif\0\0", bytes(6))  # Pillow would read and log it; it may name the patient
    stream = found.file.within(frame)
    parts = segments(stream)
    frame_head = check_frame(parts, found.name)
    image = codec.Jpeg(stream)
    if image.size != size or image.mode != "RGB":
        raise corrupt_image(found.name, f"a JPEG of {image.size[0]} x {image.size[1]} pixels, {image.mode}")
    photometric, transform = found.word("photometric"), image.info.get("adobe_transform")
    letters = frame_head.body[6::3] == b"RGB"
    marked = "jfif" in image.info or transform is not None or letters
    coded = "jfif" in image.info or (transform != 0 if transform is not None else not letters)
    if marked and coded != (photometric != "RGB"):
        warnings.append(_disagreement(photometric, "JPEG"))
    if not marked and photometric == "RGB":
        image.draft("YCbCr", size)  # so that the decoder leaves the samples as they are
        codec.load(image)
        pixels = np.asarray(image)
        warnings += _doubts(pixels, coded=False)
        return Image.fromarray(pixels)
    codec.load(image)
    return image.copy()


def _jpeg_2000(found: _Found, frame: bytes, size: tuple[int, int], mode: str) -> tuple[Pixels, bool]:
    """Decode JPEG 2000; also return whether the stream had the decoder make RGB of other colours."""
    if len(frame) > MAX_JPEG_2000:
        raise InputError(
            f"{found.name} has too many bytes",
            code="image-too-large",
            expected=f"at most {MAX_JPEG_2000 / 1e6:g} MB of JPEG 2000",
            found=f"{len(frame) / 1e6:.1f} MB",
            cure="export the picture scaled down, or as JPEG",
        )
    image = codec.Jpeg2000(found.file.within(frame))
    if image.size != size or image.mode != mode:
        raise corrupt_image(
            found.name, f"a JPEG 2000 of {image.size[0]} x {image.size[1]} pixels, {image.mode}"
        )
    codec.load(image)
    return np.asarray(image).reshape(size[1], size[0], -1), _transformed(frame)


def _transformed(frame: bytes) -> bool:
    """Return whether a decoder of JPEG 2000 makes RGB of it. ISO/IEC 15444-1, A.6.1 and I.5.3.3.

    It undoes a multiple component transformation, and turns YCbCr into RGB where boxes name the colours.
    """
    start = frame.find(b"\xff\x4f\xff\x51")
    if b"colr\x01" in frame[:start]:
        return True
    place = start + 2
    for _ in range(1000):
        marker = frame[place : place + 2]
        if marker == b"\xff\x52":  # the coding style
            return frame[place + 8 : place + 9] not in (b"", b"\0")
        if marker[:1] != b"\xff" or marker == b"\xff\x90":  # a tile
            break
        place += 2 + max(2, int.from_bytes(frame[place + 2 : place + 4], "big"))
    return False


def _run_lengths(found: _Found, frame: bytes, size: tuple[int, int], samples: int) -> Pixels:
    """Decode RLE, PS3.5 annex G: a segment of PackBits a channel, as one row: some runs cross the rows."""
    count, *starts = struct.unpack("<16L", frame[:64])
    if count != samples:
        raise corrupt_image(found.name, f"{count} RLE segments where {samples} are needed")
    ends = [*starts[1:count], len(frame)]
    row = (size[0] * size[1], 1)
    planes = [
        np.asarray(Image.frombytes("L", row, frame[start:end], "packbits", "L"))
        for start, end in zip(starts[:count], ends, strict=True)
    ]
    return np.stack(planes, axis=-1).reshape(size[1], size[0], samples)


def _uncompressed(found: _Found, data: bytes, size: tuple[int, int], samples: int) -> Pixels:
    width, height = size
    values, needed = _unswapped(data, found.swapped), width * height * samples
    halved = found.word("photometric") == _SUBSAMPLED and len(values) < needed  # some writers do not halve
    if halved:
        needed = width * height * 2
    if len(values) < needed or (halved and width % 2):
        raise corrupt_image(found.name, f"{len(values)} bytes of pixels for {width} x {height}")
    if len(values) >= 2 * needed:
        raise _frames(found.name, f"{needed} bytes of pixels", f"{len(values)}")
    values = values[:needed]
    if halved:  # PS3.3, C.7.6.3.1.2: Y Y Cb Cr for two pixels of a row
        pairs = values.reshape(height, width // 2, 4)
        luma = pairs[..., :2].reshape(height, width, 1)
        return np.concatenate([luma, pairs[..., 2:].repeat(2, axis=1)], axis=-1)
    if samples > 1 and found.number("planar", 0) == 1:
        return values.reshape(samples, height, width).transpose(1, 2, 0)
    return values.reshape(height, width, samples)


def _palette(found: _Found) -> Pixels:
    """Return the RGB [256, 3] of every pixel value. PS3.3, C.7.6.3.1.5 and 6."""
    try:
        entries, first, _ = struct.unpack(found.order + "3H", found.values["palette"][:6])
        tables = [found.values[channel] for channel in ("red", "green", "blue")]
    except KeyError:
        raise InputError(
            f"{found.name} has no palette that can be read",
            code="image-dicom-colour",
            expected="Red, Green and Blue Palette Color Lookup Table Data",
            found="none, or segmented ones",
            cure="export the picture as RGB",
        ) from None
    entries = entries or 65536
    if all(len(table) >= 2 * entries for table in tables):
        wide = np.stack([np.frombuffer(t, found.order + "u2", entries) for t in tables], axis=-1)
        colours = wide >> 8 if wide.max() > 255 else wide  # some keep 8 bits in a word
    else:
        colours = np.stack([_unswapped(t, found.order == ">")[:entries] for t in tables], axis=-1)
    if len(colours) < entries:
        raise corrupt_image(found.name, f"{len(colours)} colours of a palette that has {entries}")
    place = (np.arange(256) - first).clip(0, entries - 1)  # what lies outside has the first or last colour
    table: Pixels = colours[place].astype(np.uint8)
    return table


def _unswapped(data: bytes, swapped: bool) -> npt.NDArray[np.uint8]:
    """Return bytes; big-endian words come with their bytes swapped. PS3.5, annex D."""
    values = np.frombuffer(data, np.uint8)
    return values[: len(values) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1) if swapped else values


def _bytes(element: RawDataElement) -> bytes:
    return bytes(element.value or b"")


def _word(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


def _registered(given: str) -> str:
    """Return the name of a class or syntax of the standard; nothing of what else may stand in its place."""
    if len(given) > 64 or not re.fullmatch(r"1\.2\.840\.10008(\.(0|[1-9]\d*))+", given):
        return ""
    name = uid.UID(given).name
    return "" if name == given else name
