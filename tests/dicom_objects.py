"""DICOM objects that the tests write with pydicom."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.sequence import Sequence

HEIGHT, WIDTH = 48, 72


def _smooth(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Make an RGB picture in which no pixel, row or column equals its mirror."""
    y, x = np.mgrid[:height, :width].astype(float)
    channels = 40 + 2.6 * x, 210 - 3.7 * y, 128 + 60 * np.sin(x / 9) * np.cos(y / 11)
    return np.stack(channels, axis=-1).astype(np.uint8)


PICTURE = _smooth()
YBR = convert_color_space(PICTURE, "RGB", "YBR_FULL")


def dicom_object(
    pixels: bytes | None,
    photometric: str = "RGB",
    syntax: str = uid.ExplicitVRLittleEndian,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    change: Callable[[Dataset], object] = lambda ds: None,
    **elements: Any,
) -> bytes:
    """Return the bytes of a DICOM file; compressed pixels are one frame."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.SOPClassUID = uid.DermoscopicPhotographyImageStorage
    ds.Columns, ds.Rows = size
    elements.setdefault("PhotometricInterpretation", photometric)
    ds.SamplesPerPixel = 1 if photometric.startswith(("PALETTE", "MONO")) else 3
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    if pixels is not None:
        native = not uid.UID(syntax).is_encapsulated
        ds.PixelData = pixels + b"\0" * (len(pixels) % 2) if native else encapsulate([pixels])
        ds["PixelData"].VR = "OW" if syntax == uid.ImplicitVRLittleEndian else "OB"
        ds["PixelData"].is_undefined_length = not native
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of invalid values, which are wanted here
        for name, value in elements.items():
            setattr(ds, name, value)
        change(ds)
        ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "")
    return _written(ds)


def _written(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(buffer, enforce_file_format=bool(ds.get("SOPClassUID")))
    data = buffer.getvalue()
    return data if data[128:132] == b"DICM" else bytes(128) + b"DICM" + data


def saved_image(pixels: np.ndarray, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


_PALETTE = np.random.default_rng(0).integers(0, 256, (200, 3), np.uint8)


def palette_object(first: int = 0, wide: str = "", order: str = "<") -> Callable[[Dataset], None]:
    """Return a change that adds _PALETTE to an object: as bytes, or as words with the 8 bits of a colour in
    the high byte, the low byte or both.
    """

    def change(ds: Dataset) -> None:
        for n, colour in enumerate(("Red", "Green", "Blue")):
            values = _PALETTE[:, n]
            if wide:
                factor = {"high": 256, "low": 1, "both": 257}[wide]
                table = (values.astype(np.uint16) * factor).astype(order + "u2").tobytes()
            else:
                table = values.reshape(-1, 2)[:, :: 1 if order == "<" else -1].tobytes()
            setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [200, first, 16 if wide else 8])
            setattr(ds, f"{colour}PaletteColorLookupTableData", table)
            ds[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"

    return change


def run_lengths(pixels: np.ndarray) -> bytes:
    """Encode a frame by the encoder of pydicom."""
    ds = pydicom.dcmread(
        io.BytesIO(dicom_object(pixels.tobytes(), "RGB" if pixels.shape[2] == 3 else "MONOCHROME2"))
    )
    ds.compress(uid.RLELossless, encoding_plugin="pydicom")
    return pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)


NAME, DAY, NUMBER = "Zzyzxova", "19310722", "9918273645"
_TEXTS = {
    "AE": NAME, "AS": "093Y", "CS": NAME.upper(), "DA": DAY, "DS": NUMBER, "DT": DAY + "101010", "IS": NUMBER,
    "LO": NAME, "LT": NAME, "PN": f"{NAME}^Anna", "SH": NAME, "ST": NAME, "TM": "101010", "UC": NAME,
    "UI": f"1.2.3.{NUMBER}", "UR": f"http://{NAME}", "UT": NAME,
}  # fmt: skip


def plant_names(ds: Dataset) -> None:
    """Put a name, a day and a number into all text elements, sequences, private blocks and the header."""
    used = {int(e.tag) for e in ds} | {0x00280008, 0x00280301, 0x00280302}
    for tag, (vr, _, _, _, keyword) in pydicom.datadict.DicomDictionary.items():
        if vr in _TEXTS and keyword and tag >> 16 not in (0, 2, 4) and tag < 0x7FE00000 and tag not in used:
            ds.add_new(tag, vr, _TEXTS[vr])
    item = Dataset()
    item.PatientName, item.PatientBirthDate = f"{NAME}^Inner", DAY
    for name in ("RequestAttributesSequence", "OtherPatientIDsSequence"):
        setattr(ds, name, Sequence([item]))
        ds[name].is_undefined_length = name.startswith("Other")
    for group in (0x0009, 0x0029, 0x7FE1):
        block = ds.private_block(group, NAME, create=True)
        for n, vr in enumerate(("LO", "PN", "UT", "UN", "OB")):
            block.add_new(n, vr, NAME.encode() if vr in ("UN", "OB") else NAME)
        block.add_new(9, "SQ", Sequence([item]))
    ds.file_meta.ImplementationVersionName = NAME
    ds.file_meta.SourceApplicationEntityTitle = NAME
    ds.SpecificCharacterSet = "ISO_IR 192"
