"""Name the format of a file that is not read, so that the error says what it is and what to do."""

import re

from ..errors import InputError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")


CURE = f"give a {', '.join(FORMATS)} file that an image viewer opens, or a DICOM object"


def unread(name: str, kind: str, why: str, cure: str) -> InputError:
    """Return the error of a file of a known format that is not read."""
    return InputError(
        f"{name} is {kind}",
        code="image-unreadable",
        expected=f"one of {', '.join(FORMATS)}, or DICOM",
        found=why,
        cure=cure,
    )


SAVE_AS_PNG = "open it in a program that shows it, and save it there as PNG"


_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "a HEIF (HEIC) file"),
    **dict.fromkeys((b"mif1", b"msf1"), "a HEIF (HEIC) file"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF file"),
    **dict.fromkeys((b"crx ",), "a camera raw file"),
}


_KINDS: tuple[tuple[bytes, str, str], ...] = (  # its first bytes as a pattern, its format, a cure
    (rb"GIF8[79]a", "a GIF file", SAVE_AS_PNG),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL file", SAVE_AS_PNG),
    (rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  ", "a JPEG 2000 file", SAVE_AS_PNG),
    (rb"II\xbc", "a JPEG XR file", SAVE_AS_PNG),
    (rb"8BPS", "a Photoshop file", SAVE_AS_PNG),
    (rb"\x00\x00[\x01\x02]\x00", "an icon or cursor", SAVE_AS_PNG),
    (rb"P[1-7]\s", "a PNM file", SAVE_AS_PNG),
    (rb"qoif", "a QOI file", SAVE_AS_PNG),
    (rb"\x76\x2f\x31\x01", "an OpenEXR file", SAVE_AS_PNG),
    (rb"\x8a(MNG)|\x8b(JNG)", "an MNG or JNG file", SAVE_AS_PNG),
    (rb"%PDF", "a PDF document", "export the picture that it shows as PNG or JPEG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file", "export the picture that it shows as PNG or JPEG"),
    (rb"FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\x00|FOVb", "a camera raw file",
     "develop it in the camera's program, and save it there as JPEG or PNG"),
    (rb"\x1f\x8b", "a file packed by gzip", "unpack it, such as with gunzip"),
    (rb"BZh[1-9]|\xfd7zXZ\x00|\x28\xb5\x2f\xfd|7z\xbc\xaf", "a packed file", "unpack it"),
    (rb"PK\x03\x04|PK\x05\x06", "a ZIP archive or a document", "unpack it, and give the picture in it"),
    (rb"Rar!", "a RAR archive", "unpack it, and give the picture in it"),
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
    (rb"[\[{]", "a text file, perhaps JSON", CURE),
)  # fmt: skip


def identify(data: bytes, name: str) -> InputError:
    """Return the error of a file in none of the formats that are read: it says what the file is."""
    if data[4:8] == b"ftyp":
        kind = _BRANDS.get(data[8:12], "a video, or another ISO media file")
        cure = (
            SAVE_AS_PNG
            if data[8:12] in _BRANDS
            else "export the picture that shows the lesion as JPEG or PNG"
        )
        return unread(name, kind, f"the brand {data[8:12]!r}, which is not read", cure)
    for pattern, kind, cure in _KINDS:
        if re.match(pattern, data, re.DOTALL):
            return unread(name, kind, "a format that is not read", cure)
    text = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    for pattern, kind, cure in _TEXTS:
        if re.match(pattern, text, re.DOTALL | re.IGNORECASE):
            return unread(name, kind, f"{text[:8]!r} at its start", cure)
    if not data.strip(b"\0"):
        kind, cure = "not an image: it holds only zeros", "copy the file again from its source"
        return unread(name, kind, f"{len(data)} bytes of 0", cure)
    return unread(name, "not an image", f"a file that starts with {data[:8]!r}", CURE)
