"""Hostile input: files of every format that is read, thousands of ways to damage them, and their readers.

    python tests/hostile/fuzz.py SEED NUMBER   repeat one input, as a failure names it; keep its file

Input NUMBER of SEED is always the same. `run` reads many inputs in separate processes, so that it detects a
crash. tests/hostile/test_fuzz.py is its short form, benchmarks/test_fuzz.py its long form.
"""

import contextlib
import csv
import faulthandler
import gc
import hashlib
import io
import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # helpers.py, also when this file is run as a program

import durability
import numpy as np
import psutil
import pytest
from helpers import PICTURE, tiff
from PIL import Image, ImageCms

from skinret_infer import SkinretError
from skinret_infer.archive import maintenance, segments
from skinret_infer.archive.archive import Archive
from skinret_infer.archive.exchange import archive_for, export_archive, import_archive
from skinret_infer.archive.filters import Range
from skinret_infer.bundle import CONCEPT_HEAD, GRAPHS, Bundle, Level, Manifest, contract
from skinret_infer.descriptor import Layout, part_weights
from skinret_infer.engines.verdicts import refusal
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.imaging.tiff import is_configured
from skinret_infer.tables import read_cases, read_ids
from skinret_infer.text import TextEncoderInput, TextRecipe
from skinret_infer.trust.audit import AuditLog, verify
from skinret_infer.words.checklist import Checklist

MEMORY = 50_000_000  # bytes that a process may grow by
_PIXELS = 2_000_000  # of a picture that is decoded; a larger one takes the same path in the code
_CASES = 150

# -- seeds --


_CHECKLIST = Checklist.from_dict(
    {
        "schema": 1, "name": "small", "version": "1", "language": "en", "sources": {"usage": "usage"},
        "criteria": {"streaks": {"phrase": "{} streaks", "values": ["absent", "regular"]}},
        "languages": {"en": {"name": "English", "endings": ["s"], "deny": ["no"], "absent": ["absent"]}},
        "ways": {
            "en": [
                {"criterion": "streaks", "source": "usage", "terms": ["streaks"],
                 "words": {"regular": ["regular"]}}
            ]
        },
    }
)  # fmt: skip


def write_seeds(folder: Path) -> None:
    """Write valid files of every format to one folder each; they are the same every time."""
    pictures = {"image": _pictures(), "dicom": _dicom_objects()}
    for format, files in pictures.items():
        (folder / format).mkdir(parents=True)
        for name, content in files.items():
            (folder / format / name).write_bytes(content)
    _write_bundle(folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:  # segments shall not stay small in this process
        _use_small_segments(patch.setattr)
        _write_archives(folder)
    tables = folder / "table"
    (tables / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.JPG"):
        (tables / name).write_bytes(b"not read")
    rows = ["case_id,image,diagnosis,group,confirmed_by,streaks,age"]
    rows += [f'c{n},{"a.jpg" if n % 2 else "deep/b.jpg"},nevus,mel,,"a ""b"", é",{n}' for n in range(9)]
    (tables / "CASES.csv").write_text("\r\n".join(rows), "utf-8-sig")
    (tables / "ids.txt").write_text("".join(f"c{n}\n" for n in range(9)), "utf-8")
    (folder / "audit").mkdir()
    log = AuditLog(folder / "audit" / "log", max_bytes=2000)
    for n in range(20):
        log.append([{"query": n, "words": "é streaks", "hits": [f"c{n}"]}])


def _use_small_segments(change: Callable[[Any, str, Any], None] = setattr) -> None:
    durability.small_segments(change)
    for module in (segments, maintenance):
        change(module, "SAMPLE", 100)  # so that the index has a projection


def saved_image(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _picture() -> Image.Image:
    y, x = np.mgrid[:48, :72].astype(float)
    channels = 40 + 2.6 * x, 210 - 3.7 * y, 128 + 60 * np.sin(x / 9) * np.cos(y / 11)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _pictures() -> dict[str, bytes]:
    rgb = _picture()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    palette = rgb.quantize(16)
    files = {
        "baseline.jpg": saved_image(rgb, "JPEG"),
        "progressive.jpg": saved_image(rgb, "JPEG", progressive=True, subsampling=0),
        "cmyk.jpg": saved_image(rgb.convert("CMYK"), "JPEG"),
        "exif.jpg": saved_image(rgb, "JPEG", exif=exif, icc_profile=icc, restart_marker_rows=1),
        "several.jpg": saved_image(rgb, "MPO", save_all=True, append_images=[rgb]),
        "rgb.png": saved_image(rgb, "PNG", exif=exif, icc_profile=icc),
        "deep.png": saved_image(grey, "PNG"),
        "palette.png": saved_image(palette, "PNG", transparency=3),
        "alpha.png": saved_image(alpha, "PNG"),
        "animated.png": saved_image(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]),
        "interlaced.png": _interlaced(),
        "rgb.bmp": saved_image(rgb, "BMP"),
        "palette.bmp": saved_image(palette, "BMP"),
        "lengths.bmp": run_lengths(palette),
        "lossy.webp": saved_image(rgb, "WEBP", exif=exif, icc_profile=icc),
        "lossless.webp": saved_image(alpha, "WEBP", lossless=True),
        "animated.webp": saved_image(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)]),
    }
    compressions = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"]
    compressions += [name for name, code in (("tiff_lzma", 34925), ("zstd", 50000)) if is_configured(code)]
    for name in compressions:
        files[f"{name}.tif"] = saved_image(rgb, "TIFF", compression=name, exif=exif)
    files["group4.tif"] = saved_image(rgb.convert("1"), "TIFF", compression="group4")
    files["pages.tif"] = saved_image(grey, "TIFF", save_all=True, append_images=[grey])
    files["big.tif"] = saved_image(rgb, "TIFF", big_tiff=True)
    return files | _hand_made_files()


def _hand_made_files() -> dict[str, bytes]:
    """Make files that Pillow does not write or read: deep TIFFs, PNGs that name their colours."""
    from helpers import EXIFS, jpeg, png

    deep = PICTURE.astype(np.int64) * 257
    texts = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'tiff:Orientation="6"')
    colour_chunks = [(b"cICP", bytes((9, 14, 0, 1))), (b"cHRM", bytes(range(32))), (b"gAMA", b"\0\0\xff\xff")]
    return {
        "planes.tif": tiff(deep, 16, 2, planar=True, order=">"),
        "tiles.tif": tiff(deep, 16, 2, compression="lzw", differences=True, tiled=True, big=True),
        "twelve.tif": tiff(deep[..., :1] >> 4, 12, 0, compression="deflate"),
        "colours.png": png(*(_chunk(*chunk) for chunk in colour_chunks)),
        "beside.png": png(_chunk(b"iTXt", texts), _chunk(b"tRNS", bytes(6)), pixels=deep, bits=16),
        "beside.jpg": jpeg((0xE1, b"Exif\0\0" + EXIFS["an inner directory outside"])),
    }


def _interlaced() -> bytes:
    """Make a PNG in seven passes, which Pillow does not write."""
    pixels, data = np.asarray(_picture()), b""
    for x, y, across, down in (
        *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
        *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
    ):
        data += b"".join(b"\0" + row.tobytes() for row in pixels[y::down, x::across])
    header = struct.pack(">2I5B", 72, 48, 8, 2, 0, 0, 1)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def run_lengths(palette: Image.Image) -> bytes:
    """Make a BMP of run lengths, which Pillow does not write."""
    body = b""
    for row in np.asarray(palette)[::-1]:
        body += b"".join(bytes((2, int(value))) for value in row[::2]) + b"\0\0"
    colours = np.array(palette.getpalette()).reshape(-1, 3)[:16, ::-1]
    table = np.pad(colours.astype(np.uint8), ((0, 240), (0, 1))).tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 72, 48, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + len(header) + len(table)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + table + body + b"\0\1"


def _dicom_objects() -> dict[str, bytes]:
    from dicom_objects import (
        PICTURE,
        YBR,
        dicom_object,
        palette_object,
        plant_names,
        run_lengths,
        saved_image,
    )
    from pydicom import uid

    frame, stream = saved_image(PICTURE, "JPEG"), saved_image(PICTURE, "JPEG2000", no_jp2=True)
    indices = np.random.default_rng(0).integers(0, 256, (48, 72), np.uint8)
    return {
        "explicit": dicom_object(PICTURE.tobytes()),
        "implicit": dicom_object(PICTURE.tobytes(), syntax=uid.ImplicitVRLittleEndian),
        "big": dicom_object(YBR.tobytes(), "YBR_FULL", uid.ExplicitVRBigEndian),
        "full": dicom_object(PICTURE.tobytes(), change=plant_names),
        "palette": dicom_object(indices.tobytes(), "PALETTE COLOR", change=palette_object()),
        "jpeg": dicom_object(frame, "YBR_FULL_422", uid.JPEGBaseline8Bit),
        "jpeg2000": dicom_object(stream, "YBR_RCT", uid.JPEG2000Lossless),
        "rle": dicom_object(run_lengths(PICTURE), "RGB", uid.RLELossless),
    }


_LAYOUT = Layout(local=(2, 2, 2), global_=(2, 2, 2), concepts=(3,))


def _write_bundle(folder: Path) -> None:
    """Write a bundle whose graphs have every element of real ones, but compute nothing useful."""
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for n, name in enumerate(GRAPHS):
        tensors = [
            numpy_helper.from_array(values.astype((np.float32, np.float16)[n % 2]), "raw"),
            helper.make_tensor("floats", TensorProto.FLOAT, (3, 4), values.ravel()),
            helper.make_tensor("shape", TensorProto.INT64, (2,), [-1, 3]),
            helper.make_tensor("halves", TensorProto.FLOAT16, (2,), [1.0, 2.0]),
            numpy_helper.from_array(np.array(7), "scalar"),
        ]
        nodes = [
            helper.make_node("Constant", [], ["c"], value=tensors[0]),
            helper.make_node("Constant", [], ["d"], value_ints=[1, 2], name="d"),
            helper.make_node("Gemm", ["x", "floats"], ["y"], alpha=0.5, transA=0, name="gemm"),
        ]
        kinds = [helper.make_tensor_value_info(v, TensorProto.FLOAT, ["batch", 4]) for v in "xyc"]
        graph = helper.make_graph(nodes, name, kinds[:1], kinds[1:2], tensors, value_info=kinds[2:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="here")
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "pig", "##ment", "network", "streaks"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(8, stride=2)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    np.save(folder / CONCEPT_HEAD, np.zeros((3, 13), np.float32))
    level = Level(height=2, width=2, channels=2)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    manifest = Manifest(
        schema=2, model="m", version="1", image=ImageRecipe(size=64), text=TextRecipe(),
        checklist=_CHECKLIST, files=files, levels=(level, level, level), layout=_LAYOUT, regions=2,
        aggregation="mean", beta=0.6, gamma=0.5,
        concepts={"group": ["bkl", "mel", "nevus"]}, precision="fp32", opset=18,
        origin={"checkpoint_sha256": "f" * 64, "packages": {"torch": "2"}}, metrics={"mAP": {"all": [1]}},
        precision_checks={"openvino/bf16": {"passed": False, "faults": ["a fault"], "rows": {}}},
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.to_json(), "utf-8")


def _write_archives(folder: Path) -> None:
    cases = [(f"case-{n}", n) for n in range(_CASES)]
    path = folder / "archive" / "cases.skinret"
    with contextlib.closing(durability.opened(path)) as archive:
        archive.write([durability.record(*case) for case in cases], durability.descriptors(cases))
        archive.remove(["case-7", "case-70"])
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE segments SET generation = number + 1")  # random before
    shutil.rmtree(folder / "archive" / "cases.skinret.index")
    with contextlib.closing(durability.opened(path)) as archive:
        _search(archive)
        assert list(archive.index.folder.iterdir())
    few = folder / "few.skinret"
    with contextlib.closing(durability.opened(few)) as archive:
        archive.write([durability.record(*case) for case in cases[:20]], durability.descriptors(cases[:20]))
        export_archive(archive, folder / "exchange")
    few.unlink()


# -- mutators --

_NASTY = [
    0,
    1,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
]
_WORDS = [
    "", "0", "-1", "=cmd|' /C calc'!A0", "../../../etc/passwd", "/etc/passwd", "C:\\x.jpg", "\\\\host\\x",
    "\0", "a" * 200_000, "{0.__class__}", "{:>99999999}", "%s%n", "😀", "\x1b[31m", "NaN", "1e999", '"', ",",
    "'",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), [], {}, [[]],
    "\ud800", ["a"], {"a": 1}, *_WORDS,
]  # fmt: skip


def mutated(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return bytes with one to four random changes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        length = len(changed)
        at = 0
        if length:  # the smaller of two, as headers come first
            at = min(chance.randrange(length + 1), chance.randrange(length + 1))
        size = min(chance.choice((1, 2, 4, 16, 64, 512, 4096)), length - at)
        match chance.randrange(9):
            case 0:
                for _ in range(chance.choice((1, 3, 20))):
                    if changed:
                        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = changed[at : at + size] * chance.choice((1, 2, 50))
            case 4:
                changed[at:at] = chance.randbytes(chance.choice((1, 4, 300)))
            case 5:
                other = chance.choice(others)
                changed[at:] = other[chance.randrange(len(other) + 1) :]
            case 6:  # the start of another file
                head = chance.choice((4, 16, 132, 512))
                changed[:head] = chance.choice(others)[:head]
            case 7:
                wide = chance.choice((1, 2, 4, 8))
                number = chance.choice(_NASTY) % 256**wide
                changed[at : at + wide] = number.to_bytes(wide, chance.choice(("little", "big")))
            case 8:  # a length field
                changed[at : at + chance.choice((1, 2))] = _varint(chance.choice(_NASTY))
    return bytes(changed[:2_000_000])


def _varint(number: int) -> bytes:
    """Return a number as a protobuf varint."""
    result = b""
    while number > 127:
        result, number = result + bytes((number & 127 | 128,)), number >> 7
    return result + bytes((number,))


def mutated_json(chance: random.Random, data: bytes) -> bytes:
    """Return JSON with a few values replaced, deleted, duplicated or deeply nested."""
    tree = json.loads(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = [*_places(tree)]
        if not places:
            break
        parent, key = chance.choice(places)
        match chance.randrange(5):
            case 0:
                del parent[key]
            case 1:
                other_parent, other_key = chance.choice(places)
                with contextlib.suppress(LookupError):
                    parent[key] = json.loads(json.dumps(other_parent[other_key]))
            case 2 if isinstance(parent[key], int | float):
                parent[key] = chance.choice((*_NASTY, -parent[key], parent[key] + 1, parent[key] / 3))
            case 3 if isinstance(parent, dict):
                parent[chance.choice(_WORDS)] = parent[key]
            case _:
                parent[key] = chance.choice(_VALUES)
    text = json.dumps(tree)
    if chance.random() < 0.1:
        deep = chance.choice((50, 500, 100_000))
        text = text.replace("[", "[" * deep, 1).replace("]", "]" * deep, 1)
    if chance.random() < 0.1:
        text = text.replace("{", '{"schema": 1, ', 1)
    return text.encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the parent and the key or index of every value."""
    keys: Sequence[Any] = list(tree) if isinstance(tree, dict) else ()
    if isinstance(tree, list):
        keys = range(len(tree))
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def mutated_table(chance: random.Random, data: bytes) -> bytes:
    """Return CSV with a few cells replaced, or rows deleted or duplicated."""
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    for _ in range(chance.choice((1, 2, 5))):
        row = chance.randrange(len(rows))
        match chance.randrange(5):
            case 0 if len(rows) > 1:
                del rows[row]
            case 1:
                rows.insert(row, list(chance.choice(rows)))
            case 2:
                rows[row] = rows[row][: chance.randrange(len(rows[row]) + 1)]
            case _ if rows[row]:
                value = chance.choice((*_WORDS, *(word for other in rows for word in other)))
                rows[row][chance.randrange(len(rows[row]))] = value
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def mutated_archive(chance: random.Random, path: Path) -> None:
    """Change a few values in the tables of an archive."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for _ in range(chance.choice((1, 1, 2))):
            table = chance.choice(("cases", "cases", "meta", "segments", "projection"))
            column = chance.choice([row[1] for row in db.execute(f"PRAGMA table_info({table})")])
            rows = [row[0] for row in db.execute(f'SELECT "{column}" FROM {table} LIMIT 20')]
            old = chance.choice(rows)
            if isinstance(old, bytes):
                new: Any = mutated(chance, old, [old])
            elif isinstance(old, str) and old.startswith(("{", "[")) and chance.random() < 0.7:
                new = mutated_json(chance, old.encode()).decode()
            else:
                new = chance.choice((0, -1, 2**62, 0.5, None, b"", b"\xff\xfe", *_WORDS, str(2**70), "12.5"))
            with contextlib.suppress(sqlite3.Error, UnicodeEncodeError):
                db.execute(f'UPDATE {table} SET "{column}" = ? WHERE "{column}" IS ?', (new, old))


# -- readers --


def _search(archive: Archive) -> None:
    query = durability.descriptors([("query", 1)])
    for where in (None, {"sex": "male"}, {"version": Range(3, 90)}):
        archive.search(query, part_weights(archive.layout, 0.5, 0.5), 5, where, ["case-3"])


def _use_archive(path: Path) -> None:
    for open_it in (Archive.open, durability.opened):
        with contextlib.closing(open_it(path)) as archive:
            len(archive)
            archive.get(["case-1", "case-7", "none"])
            archive.get_with_descriptors(["case-2"])
            archive.index.file_states()
            faults = maintenance.check(archive)
            if archive.layout == durability.LAYOUT:
                _search(archive)
                archive.write([durability.record("new", 1)], durability.descriptors([("new", 1)]))
                archive.remove(["case-9"])
                maintenance.repair(archive)
            if faults:
                raise _ReportedFault


class _ReportedFault(Exception):
    """A check has reported a fault, without raising an error."""


def _read_picture(chance: random.Random, seeds: Path, folder: Path, kind: str) -> None:
    files = sorted((seeds / kind).iterdir())
    data = chance.choice(files).read_bytes()
    new = mutated(chance, data, [file.read_bytes() for file in chance.sample(files, 3)])
    if new[:4] == b"\x89PNG" and chance.random() < 0.8:
        new = _fix_checksums(new)
    (folder / "picture").write_bytes(new)
    decode(folder / "picture", max_pixels=_PIXELS, warnings=[])


def _fix_checksums(data: bytes) -> bytes:
    """Return a PNG with right checksums: with wrong ones nothing else would be tested."""
    place, result = 8, data[:8]
    while place + 8 <= len(data):
        length = min(int.from_bytes(data[place : place + 4], "big"), len(data))
        result += data[place : place + 4] + data[place + 4 : place + 8 + length]
        result += struct.pack(">I", zlib.crc32(data[place + 4 : place + 8 + length]))
        place += 12 + length
    return result


def _read_bundle(chance: random.Random, seeds: Path, folder: Path, kind: str) -> None:
    place = shutil.copytree(seeds / "bundle", folder / "bundle")
    names = {"manifest": ["manifest.json"], "tokenizer": ["tokenizer.json"], "array": [CONCEPT_HEAD]}
    name = chance.choice(names.get(kind, [f"{graph}.onnx" for graph in GRAPHS]))
    content, others = (place / name).read_bytes(), [path.read_bytes() for path in sorted(place.iterdir())]
    by_value = name.endswith(".json") and chance.random() < 0.8
    new = mutated_json(chance, content) if by_value else mutated(chance, content, others)
    (place / name).write_bytes(new)
    if name != "manifest.json":  # else only the hash would be tested
        manifest = json.loads((place / "manifest.json").read_text("utf-8"))
        manifest["files"][name] = hashlib.sha256(new).hexdigest()
        (place / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    bundle = Bundle.load(place)
    manifest = bundle.manifest
    str(contract(manifest)), manifest.fingerprint, manifest.to_json().encode(), bundle.has("fp16")
    manifest.checklist.text_of(dict.fromkeys(manifest.checklist.criteria, "regular"))
    refusal(bundle, "openvino", "bf16", folder)
    bundle.concept_head()
    TextEncoderInput(bundle.tokenizer(), manifest.text)(["pigment network, x", "irregular streaks " * 90])


def _read_archive(chance: random.Random, seeds: Path, folder: Path, kind: str) -> None:
    path = shutil.copytree(seeds / "archive", folder / "a") / "cases.skinret"
    index_files = sorted(path.with_name("cases.skinret.index").iterdir())
    if kind == "scan":
        file = chance.choice(index_files)
        content = file.read_bytes()
        new = _mutate_index_file(chance, content, [other.read_bytes() for other in index_files])
        file.write_bytes(new)
    elif chance.random() < 0.5:
        mutated_archive(chance, path)
    else:
        content = path.read_bytes()
        path.write_bytes(mutated(chance, content, [content, index_files[0].read_bytes()]))
    _use_archive(path)


def _mutate_index_file(chance: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    start = content.index(b"{")
    length = int.from_bytes(content[start - 8 : start], "little")
    if chance.random() < 0.4:
        header = mutated_json(chance, content[start : start + length])
        head = content[: start - 8] + len(header).to_bytes(8, "little") + header
        head += bytes(-len(head) % 64)  # arrays are aligned to 64 bytes
        new = head + content[-(-(start + length) // 64) * 64 :]
    else:
        new = mutated(chance, content, others)
    return new[:-4] + zlib.crc32(new[:-4]).to_bytes(4, "little") if chance.random() < 0.9 else new


def _read_exchange(chance: random.Random, seeds: Path, folder: Path, kind: str) -> None:
    place = shutil.copytree(seeds / "exchange", folder / "out")
    path = place / chance.choice(("cases.csv", "descriptors.npy", "archive.json"))
    content, others = path.read_bytes(), [other.read_bytes() for other in sorted(place.iterdir())]
    mutate_values = {".csv": mutated_table, ".json": mutated_json}.get(path.suffix)
    if chance.random() < 0.7 and mutate_values:
        path.write_bytes(mutate_values(chance, content))
    else:
        path.write_bytes(mutated(chance, content, others))
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
        info = json.loads((place / "archive.json").read_text("utf-8"))
        for name in info["sha256"]:
            info["sha256"][name] = hashlib.sha256((place / Path(name).name).read_bytes()).hexdigest()
        if chance.random() < 0.9:
            (place / "archive.json").write_text(json.dumps(info), "utf-8")
    with contextlib.closing(archive_for(place, folder / "new.skinret")) as archive:
        import_archive(archive, place)


def _read_table(chance: random.Random, seeds: Path, folder: Path, kind: str) -> None:
    place = shutil.copytree(seeds / "table", folder / "table")
    path = place / ("ids.txt" if kind == "ids" else "CASES.csv")
    content = path.read_bytes()
    by_value = kind == "table" and chance.random() < 0.7
    path.write_bytes(mutated_table(chance, content) if by_value else mutated(chance, content, [content]))
    if kind == "ids":
        read_ids(path)
        return
    for case in read_cases(path).cases:
        assert Path(str(case.image)).resolve().is_relative_to(place.resolve())


def _read_audit(chance: random.Random, seeds: Path, folder: Path, kind: str) -> None:
    place = shutil.copytree(seeds / "audit", folder / "audit")
    files = sorted(place.iterdir())
    path = chance.choice(files)
    path.write_bytes(mutated(chance, path.read_bytes(), [file.read_bytes() for file in files]))
    if verify(place / "log").faults:
        raise _ReportedFault


Reader = Callable[[random.Random, Path, Path, str], None]
FORMATS: dict[str, Reader] = {
    **{f"image {n}": _read_picture for n in range(8)},
    **{f"dicom {n}": _read_picture for n in range(3)},
    **dict.fromkeys(("manifest", "tokenizer", "graph", "graph 2", "array"), _read_bundle),
    **dict.fromkeys(("archive", "scan"), _read_archive),
    **dict.fromkeys(("exchange",), _read_exchange),
    **dict.fromkeys(("table", "ids"), _read_table),
    **dict.fromkeys(("audit",), _read_audit),
}


def one(seed: int, number: int, seeds: Path, folder: Path) -> tuple[str, str]:
    """Make an input, read it, and return its format and the outcome. Raises every error but SkinretError."""
    name = [*FORMATS][number % len(FORMATS)]
    kind = name.partition(" ")[0]
    try:
        FORMATS[name](random.Random(f"{seed} {number}"), seeds, folder, kind)
    except SkinretError as error:
        str(error).encode()
        return kind, error.code
    except _ReportedFault:
        return kind, "fault reported"
    return kind, "read"


# -- many of them --


@dataclass(slots=True)
class Report:
    """The outcomes of many inputs. failures: each unexpected event, with the command that repeats it."""

    inputs: int = 0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    grown: int = 0  # bytes of memory, in the process that grew most
    slowest: tuple[float, int] = (0.0, -1)  # seconds, and the input's number
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.inputs:,} inputs, {len(self.failures)} failures, {self.grown / 1e6:.1f} MB more memory, "
            f"{self.seconds:.0f} s; the slowest, {self.slowest[1]}, took {self.slowest[0]:.1f} s"
        ]
        for kind, outcomes in sorted(self.outcomes.items()):
            codes = ", ".join(f"{code} {n:,}" for code, n in outcomes.most_common())
            lines.append(f"  {kind}: {outcomes.total():,}: {codes}")
        return "\n".join([*lines, *self.failures])


def run(seed: int, count: int, folder: Path, *, batch: int, limit: float) -> Report:
    """Run inputs 0 to count of a seed, `batch` of them in a process, which may take `limit` seconds."""
    write_seeds(folder / "seeds")
    report, start = Report(), time.monotonic()
    for first in range(0, count, batch):
        _run_batch(seed, first, min(count, first + batch), folder, limit, report)
    report.seconds = time.monotonic() - start
    return report


def _run_batch(seed: int, first: int, end: int, folder: Path, limit: float, report: Report) -> None:
    here = folder / f"from-{first}"
    (here / "home").mkdir(parents=True)
    progress = here / "progress"
    progress.write_bytes(bytes(8))
    places = {"HOME": here / "home", "TMPDIR": here / "home", "SKINRET_CACHE": here / "home"}
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", __file__]
    before = _tree(folder)
    try:
        process = subprocess.run(
            [*command, "batch", str(seed), str(first), str(end), folder / "seeds", here],
            cwd=here, env={**os.environ, **{name: str(place) for name, place in places.items()}},
            capture_output=True, timeout=limit,
        )  # fmt: skip
        stderr, fault = process.stderr.decode("utf-8", "replace"), f"ended with {process.returncode}"
    except subprocess.TimeoutExpired as error:
        process, stderr = None, (error.stderr or b"").decode("utf-8", "replace")
        fault = f"took over {limit:g} s"
    number = int.from_bytes(progress.read_bytes(), "little")
    if process is None or process.returncode:
        report.failures.append(f"{again(seed, number)}: the process {fault}\n{stderr[-3000:]}")
        report.inputs += max(0, number - first)
        return
    found = json.loads(process.stdout.splitlines()[-1])
    report.inputs += end - first
    for kind, outcomes in found["outcomes"].items():
        report.outcomes.setdefault(kind, Counter()).update(outcomes)
    report.failures += found["failures"]
    report.grown = max(report.grown, found["grown"])
    report.slowest = max(report.slowest, tuple(found["slowest"]))
    if changes := sorted(_tree(folder) ^ before):
        report.failures.append(f"inputs {first} to {end} of seed {seed} changed other files: {changes[:5]}")
    if found["grown"] > MEMORY:
        report.failures.append(
            f"inputs {first} to {end} of seed {seed}: {found['grown'] / 1e6:.0f} MB more memory"
        )
    shutil.rmtree(here)


def again(seed: int, number: int) -> str:
    """Return the command that repeats an input."""
    return f"python tests/hostile/fuzz.py {seed} {number}"


def _tree(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def _batch(seed: int, first: int, end: int, seeds: Path, here: Path) -> None:
    """Run inputs in this process, and print the outcomes as JSON."""
    _use_small_segments()
    outcomes: dict[str, Counter[str]] = {}
    failures: list[str] = []
    target, slowest, start = here / "target", (0.0, -1), 0
    warm = first + max(2 * len(FORMATS), (end - first) // 4)
    with (here / "progress").open("r+b", buffering=0) as progress:
        writes = _watch_writes(target)
        for number in range(first, end):
            progress.seek(0)
            progress.write(number.to_bytes(8, "little"))
            if number == warm:
                start = _memory()
            target.mkdir()
            begin = time.monotonic()
            try:
                kind, code = one(seed, number, seeds, target)
                outcomes.setdefault(kind, Counter())[code] += 1
            except BaseException:
                failures.append(f"{again(seed, number)}\n{traceback.format_exc()[-3000:]}")
            slowest = max(slowest, (time.monotonic() - begin, number))
            if number % 50 == 0:
                gc.collect()
            shutil.rmtree(target)
            failures += [f"{again(seed, number)}: {path} was written" for path in writes]
            writes.clear()
    grown = _memory() - start
    print(json.dumps({"outcomes": outcomes, "failures": failures, "grown": grown, "slowest": slowest}))


def _watch_writes(target: Path) -> list[str]:
    """Return a list; every path outside a folder that Python opens for writing from now on is added to it."""
    writes: list[str] = []
    inside = str(target) + os.sep

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[0], str) and details[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.path.abspath(details[0])  # noqa: PTH100  (pathlib opens more)
            if not path.startswith(inside) and path != os.devnull:
                writes.append(path)

    sys.addaudithook(watch)
    return writes


def _memory() -> int:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # return free memory, where the C library can
        import ctypes

        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def main(arguments: Sequence[str]) -> None:
    faulthandler.enable()
    if arguments[0] == "batch":
        seed, first, end = map(int, arguments[1:4])
        _batch(seed, first, end, *map(Path, arguments[4:]))
        return
    seed, number = map(int, arguments)
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{seed}-{number}-"))
    write_seeds(folder / "seeds")
    (folder / "target").mkdir()
    print("in", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(*one(seed, number, folder / "seeds", folder / "target"))


if __name__ == "__main__":
    main(sys.argv[1:])
