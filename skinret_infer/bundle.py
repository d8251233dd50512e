"""A bundle: four ONNX graphs, a tokenizer and a manifest that describes them and has their hashes."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._files import file_sha256, read_array
from ._json import MAX_BLOCK, build
from .descriptor import COMPOSED, GROUP_WEIGHT, LEVELS, Layout
from .errors import BundleError, InputError, SkinretError
from .imaging.recipe import ImageRecipe
from .text import TextRecipe
from .trust import signing
from .trust.onnx_check import MAX_BYTES as MAX_GRAPH
from .trust.onnx_check import check_graph
from .words.checklist import Checklist

Shapes = dict[str, tuple[int | str | None, ...]]
SCHEMA = 4
DISTANCE = "distance"  # an output of the visual encoder of a bundle with a calibration
WORDS = "words"  # an input of the similarity head of a model with concepts: the weight of a query's words
QUERY_KINDS = ("image_words", "image_only", "words_alone")  # of queries
TOKENS = "tokens"  # an axis of any length; a graph that fixes it breaks the contract
GRAPHS = ("visual_encoder", "text_encoder", "composer", "similarity_head")
FILES = (*(f"{name}.onnx" for name in GRAPHS), "tokenizer.json")
CONCEPT_HEAD = "concept_head.npy"
MAX_MANIFEST = 4_000_000  # bytes; most have about ten thousand
MAX_TOKENIZER = 64_000_000
_LIMITS = {
    "image.size": 2048,
    "text.length": 4096,
    "text.max_characters": 100_000,
    "levels.height": 1024,
    "levels.width": 1024,
    "levels.channels": MAX_BLOCK,
    "regions": 1024,
}

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
class Calibration:
    """What is usual for cases that the model was not trained on. A query beyond it gets a warning."""

    pictures: int  # training pictures that set the limit of the visual encoder's `distance`, which is 1
    first_hits: Mapping[str, float]  # by kind of query: the score that 99 % of first hits exceed


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The description of a bundle.

    `files` maps each file to its SHA-256. `precision_checks` maps "runtime/precision" to the
    record of the precision check where the bundle was made: a precision below fp32 runs only if such a record
    says that it passed. `checklist` has the criteria and the words in which a query may state them.
    """

    schema: int
    model: str
    version: str
    image: ImageRecipe
    text: TextRecipe
    checklist: Checklist
    levels: tuple[Level, Level, Level]
    layout: Layout
    regions: int  # k
    aggregation: str
    beta: float
    gamma: float
    concepts: Mapping[str, list[str]]  # their names and values, the group first; none: gamma is 0
    precision: str
    opset: int
    origin: Mapping[str, Any]  # checkpoint_sha256, data, packages
    files: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    precision_checks: Mapping[str, Any] = field(default_factory=dict)
    intended_use: str = INTENDED_USE
    calibration: Calibration | None = None  # none: no query gets a warning that it is unusual
    group_weight: float = GROUP_WEIGHT  # among the concepts

    @classmethod
    def read(cls, bundle: str | Path) -> "Manifest":
        """Read the manifest of a bundle, and none of its other files. Raises BundleError."""
        path = Path(bundle) / "manifest.json"
        return parse_manifest(_read(path), path)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a case's descriptor depends on: the weights, the image recipe, the layout.

        All bundles of one checkpoint have the same, in any precision, so they may share an archive.
        """
        facts = [
            self.origin.get("checkpoint_sha256"),
            dataclasses.asdict(self.image),
            {name: lengths for name, lengths in dataclasses.asdict(self.layout).items() if lengths},
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = values | {"checklist": self.checklist.to_dict()}
        return json.dumps(plain, indent=2, ensure_ascii=False, default=dataclasses.asdict) + "\n"


def contract(manifest: Manifest) -> dict[str, tuple[Shapes, Shapes]]:
    """Return for each graph the shapes, without the batch, of inputs and outputs.

    None is a size that is not in the manifest. TOKENS is an axis that must be free: its length is that of the
    words, at most the text recipe's length.
    """
    maps: Shapes = {n: (v.height, v.width, v.channels) for n, v in zip(LEVELS, manifest.levels, strict=True)}
    composed = dict(zip(COMPOSED, maps.values(), strict=True))
    masks: Shapes = {f"masks_{n}": (manifest.regions, *shape[:2]) for n, shape in maps.items()}
    size, mask = manifest.image.size, (TOKENS,)
    tokens: Shapes = {"tokens": (TOKENS, None)}
    return {
        "visual_encoder": (
            {"pixels": (size, size, 3)},
            maps | ({DISTANCE: ()} if manifest.calibration else {}),
        ),
        "text_encoder": ({"input_ids": mask, "attention_mask": mask}, tokens),
        "composer": ({**maps, **tokens, "attention_mask": mask}, composed),
        "similarity_head": (
            maps | ({WORDS: ()} if manifest.layout.concepts else {}),
            {"descriptor": (manifest.layout.length,), **masks},
        ),
    }


def visual_outputs(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the visual encoder's outputs."""
    return tuple(contract(manifest)["visual_encoder"][1])


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every hash has been checked."""

    path: Path
    manifest: Manifest
    sha256: str = ""  # of the manifest, which has the hash of every file

    @classmethod
    def load(cls, path: str | Path, key: str | Path | None = None) -> "Bundle":
        """Read the manifest and check every file against its hash. Raises BundleError.

        key : a PEM file of Ed25519 public keys, of which one must have signed the bundle; None takes the file
            that SKINRET_BUNDLE_KEY names, and requires no signature if that is not set. Raises InputError
            if the file cannot be read, RuntimeUnavailable without the extra `sign`.
        """
        return cls._load(Path(path), signing.trusted_keys(key))

    @classmethod
    def unverified(cls, path: str | Path) -> "Bundle":
        """Load a bundle without a check of its signature, in order to make or sign it."""
        return cls._load(Path(path), None)

    @classmethod
    def _load(cls, path: Path, keys: signing.Keys | None) -> "Bundle":
        _check_folder(path)
        content = _read(path / "manifest.json")
        if keys is not None:
            signing.verify(path, content, keys)  # before the content is used
        manifest = parse_manifest(content, path / "manifest.json")
        known = {*FILES, CONCEPT_HEAD, *(graph_file(graph, "fp16") for graph in GRAPHS)}
        if unknown := set(manifest.files) - known:
            raise BundleError(
                f"{path / 'manifest.json'} lists files that no bundle has",
                code="bundle-manifest",
                expected=", ".join(sorted(known)),
                found=f"{', '.join(map(repr, sorted(unknown))):.200}",
                cure="export the bundle again",
            )
        for name in sorted({*FILES, *manifest.files}):
            _check_file(path / name, manifest)
        return cls(path, manifest, hashlib.sha256(content).hexdigest())

    def graph(self, name: str, precision: str = "fp32") -> Path:
        """Return the path of one of the four graphs; one of lower precision has a file of its own."""
        return self.path / graph_file(name, precision)

    def has(self, precision: str) -> bool:
        """Say whether the bundle has the four graphs in a precision."""
        return all(graph_file(name, precision) in self.manifest.files for name in GRAPHS)

    def concept_head(self) -> npt.NDArray[np.float32] | None:
        """Return [W b] of the linear concept heads, float32 [2, values, channels of the three maps + 1].

        The first is that of a picture alone, the second that beside words of weight 1. None for a model
        without concepts. The evidence of a hit needs it. Raises BundleError.
        """
        layout = self.manifest.layout
        if not layout.concepts:
            return None
        shape = (2, sum(layout.concepts), sum(level.channels for level in self.manifest.levels) + 1)
        try:
            head = read_array(self.path / CONCEPT_HEAD)
            found = f"{head.shape} of {head.dtype}"
        except (OSError, ValueError) as error:
            head, found = None, str(error)
        if head is None or head.shape != shape or head.dtype != np.float32 or not np.isfinite(head).all():
            raise BundleError(
                f"{self.path / CONCEPT_HEAD} does not fit the manifest",
                code="bundle-concepts",
                expected=f"finite float32 numbers, {shape}",
                found=found,
                cure="export the bundle again",
            )
        return np.array(head)

    def tokenizer(self) -> bytes:
        """Return the content of tokenizer.json."""
        return (self.path / "tokenizer.json").read_bytes()


def graph_file(name: str, precision: str = "fp32") -> str:
    """Return the name of a graph's file."""
    return f"{name}.onnx" if precision == "fp32" else f"{name}.{precision}.onnx"


def check_contract(bundle: Bundle, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Check the names and shapes, batch first, that a runtime finds in a graph. Raises BundleError."""
    for expected, found in zip(contract(bundle.manifest)[graph], (inputs, outputs), strict=True):
        fits = list(expected) == list(found) and all(
            len(found[name]) == len(shape) + 1
            and all(
                expected_size is None or not isinstance(size, int) or size == expected_size
                for expected_size, size in zip(shape, found[name][1:], strict=True)
            )
            for name, shape in expected.items()
        )
        if not fits:
            raise BundleError(
                f"{bundle.graph(graph)} is not the graph that the manifest describes",
                code="bundle-graph",
                expected=f"{expected}, after the axis of the batch",
                found=str(dict(found)),
                cure="export the bundle again",
            )


def _check_folder(path: Path) -> None:
    """Raise BundleError unless a path is a folder with a manifest."""
    try:
        if (path / "manifest.json").is_file():
            return
        found = "a folder without it" if path.is_dir() else "a file" if path.is_file() else "no such folder"
    except OSError as error:
        found = str(error)
    raise BundleError(
        f"{path} is not a bundle",
        code="bundle-missing",
        expected="a folder with manifest.json",
        found=found,
        cure="check the path, and the order of the arguments, which is BUNDLE ARCHIVE; "
        "skinret-export or `make demo` makes a bundle",
    )


def _check_file(file: Path, manifest: Manifest) -> None:
    """Raise BundleError for a file that is missing, too large, or not the one that was exported."""
    if not file.is_file():
        raise BundleError(
            f"{file} is missing",
            code="bundle-incomplete",
            expected=", ".join(sorted({*FILES, *manifest.files})),
            cure="copy the whole bundle again",
        )
    expected = manifest.files.get(file.name)
    limit = MAX_TOKENIZER if file.name == "tokenizer.json" else MAX_GRAPH
    try:
        if file.stat().st_size > limit:
            raise _too_large(file, limit)
        found = file_sha256(file)
    except OSError as error:
        found = str(error)
    if found != expected:
        raise BundleError(
            f"{file} is not the file that was exported",
            code="bundle-hash",
            expected=f"SHA-256 {expected}",
            found=found,
            cure="copy the bundle again; if it was changed on purpose, export it again",
        )
    if file.suffix == ".onnx":
        check_graph(file)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Check the content of the manifest at a path. Raises BundleError."""
    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
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
    if isinstance(schema, int) and not isinstance(schema, bool) and 0 < schema < SCHEMA:
        raise BundleError(
            f"{path} is older than this package",
            code="bundle-older",
            expected=f"schema {SCHEMA}",
            found=f"schema {schema}",
            cure="train the model again with this version and export it, or install the version that made it",
        )
    try:
        if schema != SCHEMA or not isinstance(schema, int) or isinstance(schema, bool):
            raise TypeError(f"schema: {schema!r}")
        return _build_manifest(data)
    except SkinretError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{path} is not a manifest of schema {SCHEMA}",
            code="bundle-manifest",
            expected="every field with its type",
            found=f"no {error}" if isinstance(error, KeyError) else str(error),
            cure="export the bundle again",
        ) from None


def _build_manifest(data: dict[str, Any]) -> Manifest:
    """Return a JSON object as a manifest. Raises KeyError, TypeError or ValueError for a wrong field."""
    levels = tuple(build(Level, level, f"levels[{i}]") for i, level in enumerate(data["levels"]))
    if len(levels) != len(LEVELS):
        raise TypeError(f"levels: {len(levels)}, not {len(LEVELS)}")
    nested: dict[str, Any] = {
        "image": build(ImageRecipe, data["image"], "image"),
        "text": build(TextRecipe, data["text"], "text"),
        "checklist": _build_checklist(data["checklist"]),
        "layout": build(Layout, data["layout"], "layout"),
        "levels": levels,
        "calibration": _build_calibration(data.get("calibration")),
    }
    manifest = build(Manifest, {**data, **nested}, "manifest")
    if tuple(map(len, manifest.concepts.values())) != manifest.layout.concepts:
        raise TypeError(
            f"concepts: the numbers of values differ from layout.concepts, {manifest.layout.concepts}"
        )
    if manifest.gamma and not manifest.concepts:
        raise TypeError(f"gamma: {manifest.gamma} without concepts")
    if not isinstance(manifest.origin["checkpoint_sha256"], str):
        raise TypeError("origin.checkpoint_sha256 is not a text")
    _check_limits(manifest)
    json.dumps(data, allow_nan=False, ensure_ascii=False).encode("utf-8")  # no NaN, no lone surrogate
    return manifest


def _build_calibration(data: Any) -> Calibration | None:
    """Return the calibration of a manifest, or None. Raises TypeError or ValueError."""
    if data is None:
        return None
    calibration = build(Calibration, data, "calibration")
    limits = calibration.first_hits
    if not isinstance(limits, dict) or not set(limits) <= set(QUERY_KINDS):
        raise ValueError(f"calibration.first_hits: {limits!r:.80}")
    for name, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not -1 <= limit <= 1:
            raise ValueError(f"calibration.first_hits.{name}: {limit!r:.80}")
    return calibration


def _build_checklist(data: Any) -> Checklist:
    """Return the checklist of a manifest. Raises ValueError."""
    try:
        return _parse_checklist(json.dumps(data))
    except InputError as error:
        raise ValueError(f"checklist: {error}") from None


@functools.lru_cache(maxsize=8)
def _parse_checklist(text: str) -> Checklist:
    """Return a checklist from JSON: the same object for the same text, because its check takes time."""
    return Checklist.from_dict(json.loads(text))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read", code="bundle-manifest", expected="a file", found=str(error)
        ) from None
    if len(content) > MAX_MANIFEST:
        raise _too_large(path, MAX_MANIFEST)
    return content


def _too_large(path: Path, limit: int) -> BundleError:
    return BundleError(
        f"{path} has too many bytes",
        code="bundle-too-large",
        expected=f"at most {limit:,}",
        found="more",
        cure="export the bundle again, and take bundles only from those you trust",
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raises ValueError for a name that appears twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name that appears twice")
    return fields


def _check_limits(manifest: Manifest) -> None:
    """Raise ValueError for sizes that no model has."""
    sizes = [
        ("image.size", manifest.image.size),
        ("text.length", manifest.text.length),
        ("text.max_characters", manifest.text.max_characters),
        ("regions", manifest.regions),
        *((f"levels.{n}", v) for level in manifest.levels for n, v in dataclasses.asdict(level).items()),
    ]
    for name, value in sizes:
        if value > _LIMITS[name]:
            raise ValueError(f"{name}: {value:,} where at most {_LIMITS[name]:,} is allowed")
