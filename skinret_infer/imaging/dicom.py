"""Read the picture of a DICOM object: its pixels, and the few elements that say how to read them.

pydicom finds the elements, this module joins the fragments of the frame, and Pillow decodes it. pydicom's
`dcmread` and decoders are not used: they warn and log about values, which may be a patient's, and unpack RLE
without a limit. Elements outside `_TAGS` are skipped unread, so that no name, id or date leaks.
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
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,  # with a single frame
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
MAX_JPEG_2000 = 80_000_000  # bytes of a frame, whose decoder has no deadline: half a minute
_SUBSAMPLED = "YBR_FULL_422"  # two pixels of a row share a colour if the pixels are not compressed
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
_FRAGMENTED = (uid.JPEGBaseline8Bit, uid.RLELossless, *_JPEG_2000)
_CONVERTED_COLOURS = ("YBR_RCT", "YBR_ICT")  # the decoder of JPEG 2000 makes RGB of these
# Each cure was tried with DCMTK 3.6.7 on Dermoscopic Photography Images, which gdcmconv cannot convert
_CURES: dict[str, str] = {
    uid.DeflatedExplicitVRLittleEndian: "unpack it, such as with DCMTK: dcmconv +te IN OUT",
    **dict.fromkeys(
        (uid.JPEGLSLossless, uid.JPEGLSNearLossless), "unpack it, such as with DCMTK: dcmdjpls IN OUT"
    ),
    **dict.fromkeys(
        (f"1.2.840.10008.1.2.4.{n}" for n in (51, 53, 55, 57, 70)),
        "unpack it, such as with DCMTK: dcmdjpeg IN OUT",
    ),
}
# Other photometric interpretations, which a message may name
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
# The first bytes of pixels in fragments, which have no length; some files have no VR here
_FRAGMENTS = re.compile(rb"\xe0\x7f\x10\x00(O[BW]\0\0)?\xff{4}")
_ITEM = b"\xfe\xff\x00\xe0"
_ENDS = (b"\xfe\xff\xdd\xe0", b"\xfc\xff\xfc\xff")  # the delimiter of the fragments, or trailing padding
_STREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")  # of a JPEG or JPEG 2000 stream
_CHARACTER_SET = 0x00080005
_NO_LENGTH = 0xFFFFFFFF
_PRIVACY_WARNINGS = {
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
class _Elements:
    """The values of the elements of `_TAGS` in an object, as bytes."""

    name: str  # of the file, for messages
    file: DeadlineReader
    syntax: str
    values: Mapping[str, bytes]
    swapped: bool  # the pixels are big-endian words

    @property
    def order(self) -> str:
        return ">" if self.syntax == uid.ExplicitVRBigEndian else "<"

    def text(self, element: str) -> str:
        return _text(self.values.get(element, b""))

    def number(self, element: str, default: int | None = None) -> int:
        value = self.values.get(element, b"")
        if len(value) < 2 and default is None:
            raise corrupt_image(self.name, f"no number of {element}")
        return int(struct.unpack(self.order + "H", value[:2])[0]) if len(value) >= 2 else default or 0


def read(stream: DeadlineReader, max_pixels: int, warnings: list[str]) -> Image.Image:
    """Return the picture of a DICOM object as RGB, with its ICC profile in `info`.

    warnings : a list to which warnings are added, such as of text in the picture or of unclear colours.

    Raises InputError for an object whose class, transfer syntax, colours or depth are not read, for one
    without pixels or with more than `max_pixels`, and for a damaged one.
    """
    name = stream.name
    try:
        elements = _find_elements(stream)
        width, height = _check(elements, max_pixels)
        picture = _decode(elements, width, height, warnings)
    except (SkinretError, MemoryError):
        raise
    except Exception:  # pydicom and Pillow raise many types, and their texts may quote the object
        raise corrupt_image(name, "data that do not fit its header") from None
    icc = elements.values.get("icc")
    picture.info = {"icc_profile": icc} if icc else {}
    warnings += [warning for element, warning in _PRIVACY_WARNINGS.items() if elements.text(element) == "YES"]
    return picture


def _find_elements(stream: DeadlineReader) -> _Elements:
    """Find the elements of an object. Raises InputError for a class or transfer syntax that is not read."""
    name = stream.name

    def is_after_meta(tag: int, vr: str | None, length: int) -> bool:
        return tag >> 16 != 2 or length == _NO_LENGTH

    stream.seek(132)
    header = data_element_generator(stream, False, True, is_after_meta, specific_tags=[*_META])
    meta = {_META[e.tag]: _text(_bytes(e)) for e in header if isinstance(e, RawDataElement)}
    syntax = meta.get("syntax", "")
    if not syntax:
        raise InputError(
            f"{name} is not a complete DICOM file",
            code="image-unreadable",
            expected="a file that names its transfer syntax",
            found="none",
            cure="export it again, as a DICOM file (part 10)",
        )
    if "class" in meta:
        _check_class(meta["class"], name)
    if syntax not in SYNTAXES:
        raise InputError(
            f"{name} has a transfer syntax that is not read",
            code="image-dicom-syntax",
            expected=", ".join(s.name for s in SYNTAXES),
            found=_registered_name(syntax) or "an unknown transfer syntax",
            cure=_CURES.get(syntax, "export it again, uncompressed or as JPEG baseline"),
        )
    big = syntax == uid.ExplicitVRBigEndian
    values, swapped = {}, False
    for element in _read_elements(stream, syntax == uid.ImplicitVRLittleEndian, not big):
        value = _bytes(element)
        if len(value) < element.length:
            raise corrupt_image(name, f"{len(value)} bytes of an element that has {element.length}")
        values[_TAGS[element.tag]] = value
        if element.tag == _PIXELS:
            swapped = big and element.VR == "OW"
            break
    else:
        if stream.tell() > stream.getbuffer().nbytes:
            raise corrupt_image(name, "an element that reaches beyond the end of the file")
    if "pixels" not in values and syntax in _FRAGMENTED and (start := _FRAGMENTS.match(_peek(stream))):
        stream.seek(start.end(), io.SEEK_CUR)
        values["pixels"] = _frame(stream)
    return _Elements(name=name, file=stream, syntax=syntax, values=values, swapped=swapped)


def _frame(stream: DeadlineReader) -> bytes:
    """Join all fragments to one frame. PS3.5, A.4.

    With a single frame the table of offsets is not needed: it may be wrong or missing, as may the end mark.
    """
    items: list[bytes] = []
    while (head := stream.read(8))[:4] == _ITEM:
        (length,) = struct.unpack("<L", head[4:])
        item = stream.read(length) if length != _NO_LENGTH else b""
        if len(item) < length:
            raise corrupt_image(stream.name, "fragments that reach beyond the end of the file")
        if item or not items:
            items.append(item)
    fragments = items[1:]
    if items and (items[0].startswith(_STREAM_STARTS) or not fragments):
        fragments.insert(0, items[0])  # there is no table
    if not head.startswith(_ENDS) and any(head):
        raise corrupt_image(stream.name, "other bytes between its fragments")
    if sum(fragment.startswith(_STREAM_STARTS) for fragment in fragments) > 1:
        raise _frame_count_error(stream.name, "a single frame", "the starts of several")
    return b"".join(fragments)


def _read_elements(stream: DeadlineReader, implicit: bool, little: bool) -> Iterator[RawDataElement]:
    """Yield the elements of `_TAGS` up to the pixels, or up to the start of pixels in fragments.

    Sequences and the character set are skipped here, because pydicom would interpret them and warn.
    """

    def is_interpreted(tag: int, vr: str | None, length: int) -> bool:
        return tag == _CHARACTER_SET or length == _NO_LENGTH

    while True:
        elements = data_element_generator(stream, implicit, little, is_interpreted, specific_tags=[*_TAGS])
        yield from (e for e in elements if isinstance(e, RawDataElement) and e.tag in _TAGS)
        if _FRAGMENTS.match(_peek(stream)) or not _skip_element(stream, implicit, little):
            return


def _peek(stream: DeadlineReader) -> bytes:
    """Return the next 12 bytes without moving."""
    place = stream.tell()
    data = stream.read(12)
    stream.seek(place)
    return data


def _skip_element(stream: DeadlineReader, implicit: bool, little: bool) -> bool:
    """Skip one element with all that is nested in it; return False at the end of the file. PS3.5, 7.5."""
    order = "<" if little else ">"
    nested: list[bool] = []  # for each open sequence and item: whether it has implicit VR
    while head := stream.read(8):
        group, number, vr, length = struct.unpack(order + "HH2sH", head)
        implicit_vr = nested[-1] if nested else implicit
        if implicit_vr or group == 0xFFFE or not vr.isalpha():
            (length,) = struct.unpack(order + "L", head[4:])
        elif vr.decode("ascii") in EXPLICIT_VR_LENGTH_32:
            (length,) = struct.unpack(order + "L", stream.read(4))
            implicit_vr = vr == b"UN"  # PS3.5, 6.2.2: without a length, its items have implicit VR
        if group == 0xFFFE and number != 0xE000:  # the end of an item or of a sequence
            del nested[-1:]
        elif length == _NO_LENGTH:
            nested.append(implicit_vr)
        else:
            stream.seek(length, io.SEEK_CUR)
        if not nested:
            return True
    if nested:
        raise EOFError
    return False


def _check(elements: _Elements, max_pixels: int) -> tuple[int, int]:
    """Return the width and height. Raises InputError for anything but one picture in 8-bit colour."""
    name = elements.name
    _check_class(elements.text("class"), name)
    if not elements.values.get("pixels"):
        raise InputError(
            f"{name} has no pixels",
            code="image-dicom-pixels",
            expected="a DICOM object with Pixel Data",
            found="only a header",
            cure="export it with its picture, or copy it again if the file was cut short",
        )
    frames = int(elements.text("frames") or 1)
    if frames != 1:
        raise _frame_count_error(name, "a still picture, with a single frame", f"{frames} frames")
    photometric = elements.text("photometric")
    jpeg, samples = elements.syntax == uid.JPEGBaseline8Bit, 1 if photometric == "PALETTE COLOR" else 3
    allowed = [c for c in COLOURS if c not in _CONVERTED_COLOURS or elements.syntax in _JPEG_2000]
    if jpeg:
        allowed.remove("PALETTE COLOR")
    if photometric not in allowed:
        raise InputError(
            f"{name} has colours that are not read",
            code="image-dicom-colour",
            expected=f"the photometric interpretation {', '.join(allowed)}",
            found=photometric if photometric in (*COLOURS, *_OTHERS) else "another",
            cure="export the picture in colour, as RGB; dermoscopy is not read from grey levels",
        )
    allocated = elements.number("allocated")
    stored, signed = elements.number("stored", allocated), elements.number("signed", 0)
    if (allocated, stored, signed) != (8, 8, 0):
        sign = "signed " if signed else ""
        raise InputError(
            f"{name} has {sign}pixels of {stored} bits a channel, stored in {allocated} bits",
            code="image-dicom-depth",
            expected="8 bits, unsigned",
            cure="export the picture with 8 bits a channel, as a camera gives it",
        )
    if elements.number("samples") != samples:
        raise corrupt_image(
            name, f"{elements.number('samples')} samples a pixel where {photometric} has {samples}"
        )
    width, height = elements.number("columns"), elements.number("rows")
    check_size(width, height, name, max_pixels)
    return width, height


def _frame_count_error(name: str, expected: str, found: str) -> InputError:
    return InputError(
        f"{name} does not hold exactly one frame",
        code="image-dicom-frames",
        expected=expected,
        found=found,
        cure="export the one frame that shows the lesion",
    )


def _check_class(sop_class: str, name: str) -> None:
    if sop_class not in CLASSES:
        raise InputError(
            f"{name} is not a DICOM object of a dermoscopy picture",
            code="image-dicom-class",
            expected=", ".join(c.name.removesuffix(" Storage") for c in CLASSES),
            found=_registered_name(sop_class) or ("an unknown SOP class" if sop_class else "no SOP class"),
            cure="export the picture as one of these, or as a JPEG or PNG file",
        )


def _decode(elements: _Elements, width: int, height: int, warnings: list[str]) -> Image.Image:
    photometric = elements.text("photometric")
    samples = 1 if photometric == "PALETTE COLOR" else 3
    size, data = (width, height), elements.values["pixels"]
    if elements.syntax == uid.JPEGBaseline8Bit:
        return _jpeg(elements, data, size, warnings)
    is_ycc = photometric in ("YBR_FULL", _SUBSAMPLED)  # unless the stream says otherwise
    unconfirmed = True  # only the object says which colours these are
    if elements.syntax in _JPEG_2000:
        pixels, converted = _jpeg_2000(elements, data, size, "L" if samples == 1 else "RGB")
        unconfirmed = not converted and photometric not in _CONVERTED_COLOURS
        if samples == 3 and (is_ycc if converted else photometric in _CONVERTED_COLOURS):
            is_ycc = False
            warnings.append(_disagreement(photometric, "JPEG 2000"))
    elif elements.syntax == uid.RLELossless:
        pixels = _run_lengths(elements, data, size, samples)
    else:
        pixels = _uncompressed(elements, data, size, samples)
    if photometric == "PALETTE COLOR":
        return Image.fromarray(_palette(elements)[pixels[..., 0]])
    if unconfirmed:
        warnings += _colour_doubts(pixels, is_ycc)
    mode = "YCbCr" if is_ycc else "RGB"
    return Image.frombytes(mode, size, np.ascontiguousarray(pixels).data).convert("RGB")


def _disagreement(photometric: str, syntax: str) -> SkinretWarning:
    text = (
        f"the DICOM object names the colours {photometric}, but its {syntax} stream says otherwise: "
        "the stream is followed"
    )
    return SkinretWarning(text, "image-colour")


def _colour_doubts(pixels: Pixels, is_ycc: bool) -> list[SkinretWarning]:
    """Return a warning if only the object names the colours, and the samples look like other colours.

    In RGB of skin the channels rise and fall together. In YCbCr the last two stay near 128.
    """
    down, across = (max(1, side // 256) for side in pixels.shape[:2])
    sample = pixels[::down, ::across].reshape(-1, 3).astype(float)
    spread = sample.std(axis=0)
    ycc_like = spread[0] > 4 and spread[1:].max() < spread[0] / 2.5
    ycc_like = ycc_like and np.abs(sample[:, 1:].mean(axis=0) - 128).max() < 40
    rgb_like = spread[0] > 4 and spread[1:].min() > spread[0] / 2 and np.corrcoef(sample.T)[0, 1:].min() > 0.8
    if not (rgb_like if is_ycc else ycc_like):
        return []
    stated, likely = ("YCbCr", "RGB") if is_ycc else ("RGB", "YCbCr")
    text = f"the DICOM object names the colours {stated}, but they look like {likely}: the object is followed"
    return [SkinretWarning(text, "image-colour")]


def _jpeg(elements: _Elements, frame: bytes, size: tuple[int, int], warnings: list[str]) -> Image.Image:
    """Decode JPEG baseline. The marks of the stream name its colours; the object only if it has no marks."""
    frame = frame.replace(b"Exif\0\0", bytes(6))  # Pillow would read and log it; it may name the patient
    stream = elements.file.within(frame)
    frame_header = check_frame(segments(stream), elements.name)
    image = codec.Jpeg(stream)
    if image.size != size or image.mode != "RGB":
        raise corrupt_image(
            elements.name, f"a JPEG of {image.size[0]} x {image.size[1]} pixels, {image.mode}"
        )
    photometric, transform = elements.text("photometric"), image.info.get("adobe_transform")
    has_rgb_ids = frame_header.body[6::3] == b"RGB"
    has_marks = "jfif" in image.info or transform is not None or has_rgb_ids
    is_ycc = "jfif" in image.info or (transform != 0 if transform is not None else not has_rgb_ids)
    if has_marks and is_ycc != (photometric != "RGB"):
        warnings.append(_disagreement(photometric, "JPEG"))
    if not has_marks and photometric == "RGB":
        image.draft("YCbCr", size)  # so that the decoder leaves the samples as they are
        codec.load(image)
        pixels = np.asarray(image)
        warnings += _colour_doubts(pixels, is_ycc=False)
        return Image.fromarray(pixels)
    codec.load(image)
    return image.copy()


def _jpeg_2000(elements: _Elements, frame: bytes, size: tuple[int, int], mode: str) -> tuple[Pixels, bool]:
    """Decode JPEG 2000; also return whether the decoder converted the colours to RGB."""
    if len(frame) > MAX_JPEG_2000:
        raise InputError(
            f"{elements.name} has too many bytes",
            code="image-too-large",
            expected=f"at most {MAX_JPEG_2000 / 1e6:g} MB of JPEG 2000",
            found=f"{len(frame) / 1e6:.1f} MB",
            cure="export the picture scaled down, or as JPEG",
        )
    image = codec.Jpeg2000(elements.file.within(frame))
    if image.size != size or image.mode != mode:
        raise corrupt_image(
            elements.name, f"a JPEG 2000 of {image.size[0]} x {image.size[1]} pixels, {image.mode}"
        )
    codec.load(image)
    return np.asarray(image).reshape(size[1], size[0], -1), _converts_to_rgb(frame)


def _converts_to_rgb(frame: bytes) -> bool:
    """Return whether a decoder of JPEG 2000 converts the colours to RGB. ISO/IEC 15444-1, A.6.1 and I.5.3.3.

    It inverts a multiple component transformation, and converts YCbCr if a box names the colours.
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


def _run_lengths(elements: _Elements, frame: bytes, size: tuple[int, int], samples: int) -> Pixels:
    """Decode RLE, PS3.5 annex G: one PackBits segment a channel, read as one row, as runs may cross rows."""
    count, *starts = struct.unpack("<16L", frame[:64])
    if count != samples:
        raise corrupt_image(elements.name, f"{count} RLE segments where {samples} are needed")
    ends = [*starts[1:count], len(frame)]
    row = (size[0] * size[1], 1)
    planes = [
        np.asarray(Image.frombytes("L", row, frame[start:end], "packbits", "L"))
        for start, end in zip(starts[:count], ends, strict=True)
    ]
    return np.stack(planes, axis=-1).reshape(size[1], size[0], samples)


def _uncompressed(elements: _Elements, data: bytes, size: tuple[int, int], samples: int) -> Pixels:
    width, height = size
    values, needed = _in_pixel_order(data, elements.swapped), width * height * samples
    # Some writers name the colours so, but do not subsample them
    is_subsampled = elements.text("photometric") == _SUBSAMPLED and len(values) < needed
    if is_subsampled:
        needed = width * height * 2
    if len(values) < needed or (is_subsampled and width % 2):
        raise corrupt_image(elements.name, f"{len(values)} bytes of pixels for {width} x {height}")
    if len(values) >= 2 * needed:
        raise _frame_count_error(elements.name, f"{needed} bytes of pixels", f"{len(values)}")
    values = values[:needed]
    if is_subsampled:  # PS3.3, C.7.6.3.1.2: Y Y Cb Cr for two pixels of a row
        pairs = values.reshape(height, width // 2, 4)
        luma = pairs[..., :2].reshape(height, width, 1)
        return np.concatenate([luma, pairs[..., 2:].repeat(2, axis=1)], axis=-1)
    if samples > 1 and elements.number("planar", 0) == 1:
        return values.reshape(samples, height, width).transpose(1, 2, 0)
    return values.reshape(height, width, samples)


def _palette(elements: _Elements) -> Pixels:
    """Return the RGB colours [256, 3] of the pixel values. PS3.3, C.7.6.3.1.5 and C.7.6.3.1.6."""
    try:
        entries, first, _ = struct.unpack(elements.order + "3H", elements.values["palette"][:6])
        tables = [elements.values[channel] for channel in ("red", "green", "blue")]
    except KeyError:
        raise InputError(
            f"{elements.name} has no palette that can be read",
            code="image-dicom-colour",
            expected="Red, Green and Blue Palette Color Lookup Table Data",
            found="none, or segmented ones",
            cure="export the picture as RGB",
        ) from None
    entries = entries or 65536
    if all(len(table) >= 2 * entries for table in tables):
        wide = np.stack([np.frombuffer(t, elements.order + "u2", entries) for t in tables], axis=-1)
        colours = wide >> 8 if wide.max() > 255 else wide  # some writers keep 8 bits in a word
    else:
        colours = np.stack([_in_pixel_order(t, elements.order == ">")[:entries] for t in tables], axis=-1)
    if len(colours) < entries:
        raise corrupt_image(elements.name, f"{len(colours)} colours of a palette that has {entries}")
    index = (np.arange(256) - first).clip(0, entries - 1)  # values outside get the first or last colour
    table: Pixels = colours[index].astype(np.uint8)
    return table


def _in_pixel_order(data: bytes, swapped: bool) -> npt.NDArray[np.uint8]:
    """Return data as bytes in the order of pixels; `swapped` data are big-endian words. PS3.5, annex D."""
    values = np.frombuffer(data, np.uint8)
    return values[: len(values) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1) if swapped else values


def _bytes(element: RawDataElement) -> bytes:
    return bytes(element.value or b"")


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


def _registered_name(identifier: str) -> str:
    """Return the name of a class or syntax of the standard, else "": other text may name the patient."""
    if len(identifier) > 64 or not re.fullmatch(r"1\.2\.840\.10008(\.(0|[1-9]\d*))+", identifier):
        return ""
    name = uid.UID(identifier).name
    return "" if name == identifier else name
