"""What several test files share: tiny models, drawn archives, pictures and their profiles."""

import contextlib
import io
import itertools
import json
import lzma
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from skinret_infer import ArchiveError, InputError, SkinretError
from skinret_infer.archive.archive import Archive
from skinret_infer.archive.store import Match, Record
from skinret_infer.descriptor import Layout, Vector, part_weights
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.text import TextRecipe
from skinret_infer.words.checklist import Checklist

if TYPE_CHECKING:  # torch takes seconds to import, and most processes that a test starts need none
    from click.testing import Result

    from skinret_export.graphs import GraphSpec
    from skinret_training.checkpoint import Checkpoint
    from skinret_training.model import ModelConfig

SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 4],
    "window_size": 2,
    "out_features": ["stage2", "stage3", "stage4"],
}


BERT = {
    "model_type": "bert",
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


CONCEPTS = {"group": ["bkl", "mel", "nevus"], "streaks": ["absent", "irregular", "regular"]}


def english(checklist: Checklist) -> Checklist:
    """Return a checklist with its English words alone, which is faster to load."""
    data = checklist.to_dict()
    return Checklist.from_dict({**data, **{part: {"en": data[part]["en"]} for part in ("languages", "ways")}})


SEVEN_POINT = Checklist.seven_point()
CHECKLIST = english(SEVEN_POINT)


def tiny_config(**options: object) -> "ModelConfig":
    """Return the configuration of a model that builds and runs in milliseconds."""
    from skinret_training.model import ModelConfig

    tiny = {"vision": SWIN, "text": BERT, "image_size": 64, "max_map_size": 8, "head_width": 16}
    return ModelConfig(**{**tiny, "concepts": CONCEPTS, "gamma": 0.5, "group_weight": 0.6, **options})


def tiny_checkpoint(tokenizer: str, *, seed: int = 0, **options: object) -> "Checkpoint":
    """Return a checkpoint of a tiny model with random weights."""
    import torch

    from skinret_training.checkpoint import Checkpoint
    from skinret_training.model import Skinret

    torch.manual_seed(seed)
    model = Skinret(tiny_config(**options))
    for parameter in model.parameters():  # wider than the libraries' start, so that cases differ
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    if model.visual_encoder.typicality:
        torch.nn.init.normal_(model.visual_encoder.typicality.whitening)
    return Checkpoint(
        config=model.config, image=ImageRecipe(size=64), text=TextRecipe(), checklist=CHECKLIST,
        tokenizer=tokenizer, state=model.state_dict(), name="tiny", version="1",
    )  # fmt: skip


LAYOUT = Layout(local=(4, 6, 8), global_=(4, 6, 8), concepts=(3, 2))


GAMMA = 0.5


QUICK = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def random_descriptors(count: int, seed: int = 0, layout: Layout = LAYOUT) -> Vector:
    """Random descriptors: six unit vectors, and a distribution of each concept."""
    rng = np.random.default_rng(seed)
    six = [rng.standard_normal((count, width)) for width in layout.local + layout.global_]
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in six]
    concepts = [rng.dirichlet(np.ones(width), count) for width in layout.concepts]
    return np.concatenate(unit + concepts, axis=1).astype(np.float32)


QUERY = random_descriptors(1, seed=99)[0]


def make_record(case_id: str, **facts: Any) -> Record:
    plain = {
        "diagnosis": "clark nevus",
        "group": "nevus",
        "confirmed_by": "unknown",
        "attributes": {},
        "image_ref": f"{case_id[:20]}.jpg",
        "image_sha256": "0" * 64,
    }
    return Record(case_id, **(plain | facts))


def open_archive(
    path: Path, *, fingerprint: str = "f" * 64, layout: Layout = LAYOUT, model: str = "m 1"
) -> Archive:
    return Archive(path, fingerprint, layout, model)


def make_archive(path: Path, count: int = 12, layout: Layout = LAYOUT, seed: int = 0) -> Path:
    """Make an archive of cases c00, c01, ... at a path."""
    with contextlib.closing(open_archive(path, layout=layout)) as archive:
        records = [
            make_record(f"c{n:02d}", attributes={"sex": "female" if n % 2 else "male"}) for n in range(count)
        ]
        archive.write(records, random_descriptors(count, seed, layout))
    return path


def search_archive(
    archive: Archive, query: Vector, k: int, beta: float, gamma: float, where: Any = None, exclude: Any = ()
) -> tuple[list[Match], int]:
    """Search for one query."""
    weights = part_weights(archive.layout, beta, gamma)
    [matches], searched, _ = archive.search(query[None], weights, k, where, exclude)
    return matches, searched


@contextlib.contextmanager
def refusal_of(
    code: str | None = None, *names: object, kind: type[SkinretError] = ArchiveError
) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert code in (None, caught.value.code), caught.value
    for name in names:
        assert str(name) in str(caught.value)


ODD_IDS = [
    *(
        "'",
        '"',
        "it's",
        'say "x"',
        "a\nb",
        "a\tb",
        "a\\b",
        "😀",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "病例",
        "%",
        "_",
        "*",
    ),
    *("a", "A", " a", "a ", "[1]", "1", "01", "1.0", "1e0", "null", "true", "$.a", "--", "x" * 10_000),
    *("x" * 9_999 + "y", "'); DROP TABLE cases; --", "\u202eabc", "\ufeff1", "a,b", "\x7f", "\x01"),
]


HEIGHT, WIDTH = 48, 72


FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 92},
    "PNG": {},
    "TIFF": {},
    "BMP": {},
    "WEBP": {"lossless": True},
}


def _smooth() -> np.ndarray:
    """An RGB picture in which no pixel, row or column equals its mirror."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    channels = 40 + 2.6 * x, 210 - 3.7 * y, 128 + 60 * np.sin(x / 9) * np.cos(y / 11)
    return np.stack(channels, axis=-1).astype(np.uint8)


PICTURE = _smooth()


def saved_image(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif_bytes(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


SAVED = {name: saved_image(Image.fromarray(PICTURE), name, **options) for name, options in FORMATS.items()}


def image_refusal(source: Any, code: str | None = None, name: str = "") -> str:
    """Check that a source is refused as the contract says, and return the message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own warnings
        with pytest.raises(InputError) as caught:
            decode(source)
    message = str(caught.value)
    assert code in (None, caught.value.code), message
    assert name in message
    assert re.search(r"\. [A-Z].*\.$", message), f"no cure: {message}"
    return message


def _profile(space: bytes, **tags: bytes) -> bytes:
    """An ICC profile of version 2 of a display; ICC.1:2001-04."""
    said = {
        "desc": b"desc" + struct.pack(">2L4x", 0, 1)[:8] + b"a" + bytes(80),
        "cprt": b"text\0\0\0\0-",
        **tags,
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(said)
    for name, value in said.items():
        table += struct.pack(">4s2L", name.encode(), start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = start + len(body)
    white = struct.pack(">3i", *(round(x * 65536) for x in WHITE))
    head = struct.pack(">L4sL4s4s4s12x4s", size, b"", 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
    return (head.ljust(68, b"\0") + white).ljust(128, b"\0") + struct.pack(">L", len(said)) + table + body


def _xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(x) * 65536) for x in values))


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">LH", 1, round(value * 256))


# Of Adobe RGB (1998) and of sRGB, adapted to D50: columns are red, green and blue.
WHITE = (0.9642, 1.0, 0.8249)


WIDE_PRIMARIES = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)


SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


CURVES = {f"{c}TRC": _gamma(563 / 256) for c in "rgb"}


WIDE_PROFILE = _profile(
    b"RGB ", **{f"{c}XYZ": _xyz(WIDE_PRIMARIES[:, n]) for n, c in enumerate("rgb")}, **CURVES
)


GREY_PROFILE = _profile(b"GRAY", wtpt=_xyz(WHITE), kTRC=_gamma(1.75))


def gamma_curve(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    low = linear <= 0.0031308
    return np.where(low, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)


def wide_to_srgb(pixels: np.ndarray) -> np.ndarray:
    """What pixels of WIDE_PROFILE are in sRGB, by the definitions of the two."""
    linear = (pixels / 255) ** (563 / 256) @ (np.linalg.inv(SRGB) @ WIDE_PRIMARIES).T
    return (gamma_curve(linear.clip(0, 1)) * 255).round().astype(np.uint8)


CODES = {"": 1, "lzw": 5, "deflate": 8, "packbits": 32773}


TILE = (32, 16)


def _bits(samples: np.ndarray, bits: int, order: str) -> bytes:
    """Pack rows of samples [H, n], each row to whole bytes."""
    if bits in (8, 16, 32, 64):
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    digits = (samples[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def _packed(data: bytes, rows: int, compression: str) -> bytes:
    if compression == "deflate":
        return zlib.compress(data)
    if not compression:
        return data
    if compression == "lzma":
        return lzma.compress(data)
    name = "tiff_lzw" if compression == "lzw" else compression
    image = Image.frombytes("L", (len(data) // rows, rows), data)  # libtiff packs the bytes of a row
    saved = saved_image(image, "TIFF", compression=name, tiffinfo={278: rows})
    with Image.open(io.BytesIO(saved)) as file:
        [place], [length] = file.tag_v2[273], file.tag_v2[279]  # type: ignore[attr-defined]
    return saved[place : place + length]


def _cells(samples: np.ndarray, tiled: bool) -> Iterator[np.ndarray]:
    """Yield strips of seven rows, or tiles, which stand out beyond the picture."""
    if not tiled:
        yield from (samples[top : top + 7] for top in range(0, HEIGHT, 7))
        return
    wide, high = TILE
    full = np.pad(samples, ((0, -HEIGHT % high), (0, -WIDTH % wide), (0, 0)), mode="edge")
    for top, left in itertools.product(range(0, HEIGHT, high), range(0, WIDTH, wide)):
        yield full[top : top + high, left : left + wide]


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    planar: bool = False,
    compression: str = "",
    differences: bool = False,
    tiled: bool = False,
    reverse: bool = False,
    big: bool = False,
    ahead: bool = False,
    base: int = 0,
    tags: dict[int, tuple[int, Any]] | None = None,
) -> bytes:
    """Write samples [H, W, n] as a TIFF.

    ahead : the directory stands before the pixels. base : where the file will stand in another one.
    tags : more of them, each a type of TIFF 6.0 and values.
    """
    count = samples.shape[2]
    planes = np.split(samples, count, axis=2) if planar else [samples]
    parts = []
    for cell in (cell for plane in planes for cell in _cells(plane, tiled)):
        values = cell
        if differences:
            values = np.diff(cell.astype(np.int64), axis=1, prepend=0) % (1 << bits)
        data = _packed(_bits(values.reshape(len(cell), -1), bits, order), len(cell), compression)
        parts.append(bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if reverse else data)
    lengths, wide, room = [*map(len, parts)], "Q" if big else "L", 8 if big else 4

    def directory(at: int, pixels: int) -> bytes:
        said: dict[int, tuple[int, Any]] = {
            256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [bits] * count), 259: (3, [CODES[compression]]),
            262: (3, [photometric]), 277: (3, [count]), 284: (3, [2 if planar else 1]),
        }  # fmt: skip
        said |= {322: (3, [TILE[0]]), 323: (3, [TILE[1]])} if tiled else {278: (3, [7])}
        said[324 if tiled else 273] = (
            4,
            [base + n for n in itertools.accumulate(lengths[:-1], initial=pixels)],
        )
        said[325 if tiled else 279] = (4, lengths)
        said |= ({317: (3, [2])} if differences else {}) | ({266: (3, [2])} if reverse else {}) | (tags or {})
        said = {tag: value for tag, value in said.items() if value[0]}
        place = base + at + (8 if big else 2) + len(said) * (20 if big else 12) + room
        entries, values = b"", b""
        for tag, (kind, given) in sorted(said.items()):
            form = {1: "B", 2: "B", 3: "H", 4: "L", 5: "L", 6: "b", 7: "B", 8: "h"}[kind]
            written = struct.pack(f"{order}{len(given)}{form}", *given)
            entries += struct.pack(order + "HH" + wide, tag, kind, len(given) // (2 if kind == 5 else 1))
            within = len(written) <= room
            entries += (
                written.ljust(room, b"\0") if within else struct.pack(order + wide, place + len(values))
            )
            values += b"" if within else written
        return struct.pack(order + ("Q" if big else "H"), len(said)) + entries + bytes(room) + values

    start, mark = 16 if big else 8, b"II" if order == "<" else b"MM"
    pixels = start + (len(directory(0, 0)) if ahead else 0)
    at = start if ahead else start + sum(lengths)
    head = struct.pack(
        order + ("2sHHHQ" if big else "2sHL"), mark, *((43, 8, 0) if big else (42,)), base + at
    )
    written = [directory(at, pixels), *parts] if ahead else [*parts, directory(at, pixels)]
    return head + b"".join(written)


WORDS = "atypical pigment network, irregular streaks"


GUARD = """
import sys, json
touched = []
sys.addaudithook(lambda event, args: touched.append(event) if event.startswith("socket.") else None)
import skinret_infer
with skinret_infer.Searcher(sys.argv[1], sys.argv[2]) as searcher:
    hits = len(searcher.query(sys.argv[3], "irregular streaks", k=5))
import os
links = []
for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
    try:
        links.append(os.readlink("/proc/self/fd/" + fd))
    except OSError:
        pass
heavy = ("torch", "transformers", "skinret_training", "skinret_export", "onnx", "huggingface_hub", "scipy")
print(json.dumps({"hits": hits, "sockets": touched, "open": [x for x in links if x.startswith("socket:")],
                  "heavy": [m for m in heavy if m in sys.modules]}))
"""


def take_graphs(monkeypatch: pytest.MonkeyPatch, bundle: Path, off: str = "", by: float = 1.0) -> None:
    """Let the next export have the graphs of `bundle`, one of them with weights that are not the model's."""
    import onnx

    from skinret_export import export

    def write(spec: "GraphSpec", path: Path) -> None:
        model = onnx.load(bundle / path.name)
        for tensor in model.graph.initializer if path.stem == off else ():
            if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(tensor) * np.float32(by)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(export, "write_graph", write)


def _chunk(kind: bytes, body: bytes, damage: int = 0) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body) ^ damage)


def png(
    *chunks: bytes, pixels: np.ndarray = PICTURE, bits: int = 8, colour: int = 2, after: bytes = b""
) -> bytes:
    """Write [H, W, n] or [H, row] samples as a PNG, with chunks before and after its pixels."""
    rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(len(pixels), -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    width = pixels.shape[1] if pixels.ndim == 3 else pixels.shape[1] * 8 // bits
    head = _chunk(b"IHDR", struct.pack(">2L5B", width, len(pixels), bits, colour, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + after + _chunk(b"IEND", b"")


def jpeg(*segments: tuple[int, bytes], whole: bytes = SAVED["JPEG"]) -> bytes:
    """Put segments into a JPEG, right after its beginning."""
    made = b"".join(struct.pack(">BBH", 255, marker, len(body) + 2) + body for marker, body in segments)
    return whole[:2] + made + whole[2:]


def _tags(*entries: tuple[int, int, int, bytes], order: str = "<", after: bytes = b"") -> bytes:
    """A directory as EXIF has it; each entry is a tag, a type, a count and four bytes."""
    body = b"".join(struct.pack(order + "HHL", *entry[:3]) + entry[3] for entry in entries)
    mark = b"II" if order == "<" else b"MM"
    return struct.pack(order + "2sHLH", mark, 42, 8, len(entries)) + body + bytes(4) + after


_SIX = (0x0112, 3, 1, b"\6\0\0\0")


EXIFS = {  # each says 6, and has something broken beside it
    "a resolution outside": _tags(_SIX, (0x011A, 5, 1, b"\xff\xff\xff\x7f")),
    "a resolution of a wrong type": _tags(_SIX, (0x011A, 2, 3, b"abc\0")),
    "a resolution of 1/0": _tags(_SIX, (0x011A, 5, 1, struct.pack("<L", 38)), after=struct.pack("<LL", 1, 0)),
    "a type that is none": _tags((0x010F, 99, 4, b"abcd"), _SIX),
    "a count beyond all": _tags(_SIX, (0x010F, 2, 0xFFFFFFFF, bytes(4))),
    "an inner directory outside": _tags(_SIX, (0x8769, 4, 1, b"\xff\xff\xff\x7f")),
    "an inner directory in a circle": _tags(
        _SIX, (0x8769, 4, 1, b"\x08\0\0\0"), (0xA005, 4, 1, b"\x08\0\0\0")
    ),
    "a place that is text": _tags(_SIX, (0x8825, 2, 4, b"here")),
    "the next directory outside": _tags(_SIX)[:-4] + b"\xff\xff\xff\x7f",
    "no next directory": _tags(_SIX)[:-4],
    "a wide orientation": _tags((0x0112, 4, 1, b"\6\0\0\0")),
    "twice": _tags(_SIX, _SIX),
}


def call_train(arguments: Sequence[str], code: int = 0) -> "Result":
    """Call skinret-train and check its exit code."""
    from click.testing import CliRunner

    from skinret_training.cli import main

    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8")))
