"""A bundle: four ONNX graphs, a tokenizer and the manifest that says what they are and proves their bytes."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .descriptor import LEVELS, Layout
from .errors import BundleError, SkinretError
from .image import ImageRecipe
from .text import TextRecipe

SCHEMA = 1
GRAPHS = ("visual_encoder", "text_encoder", "composer", "similarity_head")
FILES = (*(f"{name}.onnx" for name in GRAPHS), "tokenizer.json")

INTENDED_USE = (
    "Retrieval of similar confirmed cases for a dermoscopy image and a few words, as a help to a qualified "
    "reader. The score is a similarity, not a probability; the output is not a diagnosis."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The shape of a level's feature map, h x w x d."""

    height: int
    width: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle says of itself. `files` maps each file to its SHA-256."""

    schema: int
    model: str
    version: str
    image: ImageRecipe
    text: TextRecipe
    levels: tuple[Level, Level, Level]
    layout: Layout
    regions: int  # k
    aggregation: str
    beta: float
    precision: str
    opset: int
    origin: Mapping[str, Any]  # checkpoint_sha256, data, packages
    files: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    intended_use: str = INTENDED_USE

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a case's descriptor depends on: the weights, the image recipe, the layout.

        Two bundles of one checkpoint, of different precision say, share it, and so may share an archive.
        """
        facts = [
            self.origin.get("checkpoint_sha256"),
            dataclasses.asdict(self.image),
            dataclasses.asdict(self.layout),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every hash has been checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Read the manifest and check every file against its hash. Raises BundleError."""
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise BundleError(
                f"{path} is not a bundle",
                code="bundle-missing",
                expected="a folder with manifest.json",
                found="no such file in it" if path.is_dir() else "no such folder",
                cure="make one with skinret-export",
            )
        manifest = read_manifest(path / "manifest.json")
        for name in FILES:
            file = path / name
            if not file.is_file():
                raise BundleError(
                    f"{file} is missing",
                    code="bundle-incomplete",
                    expected=", ".join(FILES),
                    cure="copy the bundle again, whole",
                )
            expected, found = manifest.files.get(name), file_sha256(file)
            if found != expected:
                raise BundleError(
                    f"{file} is not the file that was exported",
                    code="bundle-hash",
                    expected=f"SHA-256 {expected}",
                    found=found,
                    cure="copy the bundle again; if it was changed on purpose, export it again",
                )
        return cls(path, manifest)

    def graph(self, name: str) -> Path:
        """Return the path of one of the four graphs."""
        return self.path / f"{name}.onnx"

    def tokenizer(self) -> str:
        """Return the text of tokenizer.json."""
        return (self.path / "tokenizer.json").read_text("utf-8")


def read_manifest(path: Path) -> Manifest:
    """Read and check manifest.json. Raises BundleError."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} cannot be read",
            code="bundle-manifest",
            expected="JSON",
            found=str(error),
            cure="export the bundle again",
        ) from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(
            f"{path} is newer than this package",
            code="bundle-newer",
            expected=f"schema {SCHEMA} or older",
            found=f"schema {schema}",
            cure="pip install --upgrade skinret-infer",
        )
    try:
        if schema != SCHEMA:
            raise TypeError(f"schema: {schema!r}")
        levels = tuple(_build(Level, level, f"levels[{i}]") for i, level in enumerate(data["levels"]))
        if len(levels) != len(LEVELS):
            raise TypeError(f"levels: {len(levels)} of them")
        parts: dict[str, Any] = {
            "image": _build(ImageRecipe, data["image"], "image"),
            "text": _build(TextRecipe, data["text"], "text"),
            "layout": _build(Layout, {k: tuple(v) for k, v in data["layout"].items()}, "layout"),
            "levels": levels,
        }
        return _build(Manifest, {**data, **parts}, "manifest")
    except SkinretError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{path} is not a manifest of schema {SCHEMA}",
            code="bundle-manifest",
            expected="every field with its type",
            found=f"no {error}" if isinstance(error, KeyError) else str(error),
            cure="export the bundle again",
        ) from None


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


T = TypeVar("T")
_TYPES: Mapping[Any, Any] = {
    int: int,
    float: (int, float),
    str: str,
    Mapping[str, Any]: dict,
    Mapping[str, str]: dict,
}


def _build(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of a JSON object: no unknown field, each plain one of its type and not negative."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := set(data) - set(fields):
        raise TypeError(f"{where}: unknown {', '.join(sorted(unknown))}")
    for name, value in data.items():
        expected = _TYPES.get(fields[name].type)
        if expected and (not isinstance(value, expected) or isinstance(value, bool)):
            raise TypeError(f"{where}.{name}: {value!r}")
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(n, int | float) and (n < 0 or (isinstance(n, float) and n > 1)) for n in numbers):
            raise ValueError(f"{where}.{name}: {value!r}")
    return cls(**data)
