"""Turn pictures and texts into descriptors and feature maps, on the engine of a bundle."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import _forks
from .bundle import Bundle
from .descriptor import COMPOSED, LEVELS, MASKS, Vector, state
from .engines.base import Array, Engine, TextFeatures, as_levels, head_inputs
from .engines.cache import cache_folder
from .engines.registry import RUNTIMES, open_engine
from .engines.verdicts import refusal
from .errors import RuntimeUnavailable, SkinretWarning
from .evidence import Box, Maps
from .imaging.decode import ImageSource, decode
from .imaging.recipe import ImageRecipe, Pixels, crop_box, pixel_sha256, preprocess
from .text import TextEncoderInput
from .words.reading import Reading

BATCH = 8  # images that are encoded at once
_NO_WEIGHT = 1.0  # settled criteria up to which words move no maps: they only set the criteria
_FULL_WEIGHT = 4.0  # settled criteria from which words have their full weight beside a picture
_STEP = 4  # tokens: texts are padded to a multiple of this
_CACHED_TEXTS = 128  # the last ones: 25 MB at 64 tokens of 768 numbers
_WORKERS = 4  # threads that encode texts, for queries from several threads


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A decoded picture and its model input.

    pixels : the model's input, [S, S, 3].
    sha256 : of the decoded pixels, in full size.
    box : the area of the picture that the model sees.
    warnings : what a person should know about the picture.
    """

    pixels: Pixels
    sha256: str
    box: Box
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, source: ImageSource, recipe: ImageRecipe) -> "Picture":
        """Decode and preprocess an image. Raises InputError."""
        warnings: list[str] = []
        decoded = decode(source, warnings=warnings)
        return cls(
            pixels=preprocess(decoded, recipe),
            sha256=pixel_sha256(decoded),
            box=crop_box(decoded, recipe),
            warnings=tuple(warnings),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """The picture and the words of a query with their descriptor, float32 [D].

    picture : None for a query by words alone.
    reading : what was understood of the words; it may have no findings.
    """

    picture: Picture | None
    reading: Reading
    descriptor: Vector
    warnings: tuple[str, ...]


class EncodedTexts(NamedTuple):
    """Encoded texts, the input of the composer."""

    tokens: Array  # [B, n, d_T]
    mask: Array  # [B, n]
    warnings: list[list[str]]
    milliseconds: float


class Encoder:
    """A bundle on an engine; queries and cases may be encoded in different precisions.

    Safe to call from several threads. A forked process opens its own engine at the first use.
    """

    def __init__(
        self, bundle: Bundle, runtime: str, precision: str, threads: int | None, cache: str | Path | None
    ) -> None:
        self._bundle = bundle
        self._image = bundle.manifest.image
        self._tokenize = TextEncoderInput(bundle.tokenizer(), bundle.manifest.text)
        self._cache = cache
        self._options: Mapping[str, Any] = {"threads": threads, "cache": cache}
        self._runtime = runtime, precision
        self._engine: Engine | None = open_engine(bundle, runtime, precision=precision, **self._options)
        self._archive_engine: Engine | None = None
        self._texts: OrderedDict[bytes, Array] = OrderedDict()  # token ids -> tokens [n, d_T]
        self._renew()
        _forks.renew(self)

    def _renew(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS, "skinret-text")
        self._lock = threading.RLock()

    def after_fork(self) -> None:
        """Abandon the parent's engine, in a forked child; the first use opens a new one."""
        if self._engine and RUNTIMES[self._engine.name].on_card:
            self._runtime = self._engine.name, self._engine.precision
        _forks.abandon(self._engine, self._archive_engine)
        self._engine = self._archive_engine = None
        self._renew()

    @property
    def engine(self) -> Engine:
        """The engine of queries."""
        with self._lock:
            if self._engine is None:
                runtime, precision = self._runtime
                if runtime in RUNTIMES and RUNTIMES[runtime].on_card:
                    raise RuntimeUnavailable(
                        f"runtime {runtime} was started before the fork, and cannot run in the child",
                        code="runtime-forked",
                        expected="a process that opens the card itself",
                        cure='open the Searcher in the child, or start processes with "spawn"',
                    )
                self._engine = open_engine(self._bundle, runtime, precision=precision, **self._options)
            return self._engine

    @property
    def archive_engine(self) -> Engine:
        """The engine of cases: the engine of queries if it may write an archive, else one in fp32."""
        with self._lock:
            if self._archive_engine is None:
                engine, folder = self.engine, cache_folder(self._cache)
                if refusal(self._bundle, engine.name, engine.precision, folder, for_archive=True):
                    engine = open_engine(self._bundle, engine.name, precision="fp32", **self._options)
                self._archive_engine = engine
            return self._archive_engine

    def close(self) -> None:
        """Release what the runtime holds."""
        self._pool.shutdown()
        for engine in {self._engine, self._archive_engine}:
            if engine:
                engine.close()

    def start_texts(self, readings: Sequence[Reading]) -> "Future[EncodedTexts] | None":
        """Start to encode the findings of texts, in another thread; return None if there are none."""
        with_words = [reading.canonical for reading in readings if reading.canonical]
        return self._pool.submit(self._encode_texts, with_words) if with_words else None

    def encode(
        self,
        pictures: Sequence[Picture | None],
        readings: Sequence[Reading],
        started: "Future[EncodedTexts] | None",
    ) -> tuple[list[Encoded], dict[str, float]]:
        """Return the encoded queries, and the milliseconds of text and encode, which overlap.

        pictures : None for a query by words alone.
        readings : of the texts; one without findings makes a query by image alone.
        started : what `start_texts` returned for the same readings.
        """
        began = time.perf_counter()
        descriptors: dict[int, Vector] = {}
        distances: dict[int, float] = {}
        warnings: dict[int, list[str]] = {}
        timings: dict[str, float] = {}
        with_text = [n for n, reading in enumerate(readings) if reading.canonical]
        composed = [n for n in with_text if pictures[n]]

        def embed(queries: Sequence[int], text: TextFeatures | None) -> None:
            pixels = [picture.pixels for n in queries if (picture := pictures[n])]
            embedded = self.engine.embed(np.stack(pixels), text)
            descriptors.update(zip(queries, embedded.descriptors, strict=True))
            if embedded.distances is not None:
                distances.update(zip(queries, map(float, embedded.distances), strict=True))

        words_alone = [n for n in with_text if not pictures[n]]
        if started:
            places = {n: row for row, n in enumerate(with_text)}

            def features(queries: Sequence[int]) -> tuple[Array, Array, Array]:
                encoded_texts = started.result()
                rows = [places[n] for n in queries]
                of_queries = [self._weight(readings[n]) if pictures[n] else 1.0 for n in queries]
                weights = np.array(of_queries, np.float32)
                tokens = encoded_texts.tokens[rows] * weights[:, None, None]
                return tokens, encoded_texts.mask[rows], weights

            if composed:
                embed(composed, lambda: features(composed))
            if words_alone:
                descriptors |= zip(words_alone, self._embed_words(*features(words_alone)), strict=True)
            warnings |= zip(with_text, started.result().warnings, strict=True)
            timings["text"] = started.result().milliseconds
        if alone := [n for n in range(len(readings)) if n not in descriptors]:
            embed(alone, None)
        timings["encode"] = (time.perf_counter() - began) * 1e3
        manifest = self._bundle.manifest
        encoded = [
            Encoded(
                picture=picture,
                reading=reading,
                descriptor=state(descriptors[n], reading.allowed, manifest.concepts, manifest.layout),
                warnings=(
                    *(picture.warnings if picture else ()),
                    *_unlike(distances.get(n, 0.0)),
                    *reading.warnings,
                    *warnings.get(n, ()),
                ),
            )
            for n, (picture, reading) in enumerate(zip(pictures, readings, strict=True))
        ]
        return encoded, timings

    def embed_cases(self, pixels: Sequence[Pixels]) -> Vector:
        """Return the descriptors of cases, float32 [N, D], from their model inputs [S, S, 3]."""
        return self.archive_engine.embed(np.stack(pixels), None).descriptors

    def _weight(self, reading: Reading) -> float:
        """Return the weight of words beside a picture: few findings must not outweigh what it shows."""
        settled = self._bundle.manifest.checklist.settled(reading.allowed)
        return min(1.0, max(0.0, (settled - _NO_WEIGHT) / (_FULL_WEIGHT - _NO_WEIGHT)))

    def query_maps(self, pixels: Pixels, reading: Reading) -> Maps:
        """Return the feature maps and masks that were pooled to the descriptor of a query with a picture."""
        return self._maps(self.engine, pixels, reading)

    def case_maps(self, pixels: Pixels) -> Maps:
        """Return the feature maps and masks from which a case's descriptor was pooled."""
        return self._maps(self.archive_engine, pixels, None)

    def _embed_words(self, tokens: Array, mask: Array, weights: Array) -> Vector:
        """Return the descriptors of queries by words alone: the composer gets maps of zeros."""
        maps = {
            name: np.zeros((len(tokens), level.height, level.width, level.channels), np.float32)
            for name, level in zip(LEVELS, self._bundle.manifest.levels, strict=True)
        }
        composed = self.engine.run("composer", {**maps, "tokens": tokens, "attention_mask": mask}, COMPOSED)
        inputs = head_inputs(as_levels(composed), weights, bool(self._bundle.manifest.concepts))
        descriptors: Vector = self.engine.run("similarity_head", inputs, ["descriptor"])["descriptor"]
        return descriptors

    def _maps(self, engine: Engine, pixels: Pixels, reading: Reading | None) -> Maps:
        weight = np.zeros(1, np.float32)
        with _forks.no_fork():
            maps = engine.run("visual_encoder", {"pixels": pixels[None]}, LEVELS)
            if reading and reading.canonical:
                tokens, mask, *_ = self._encode_texts([reading.canonical])
                weight[:] = self._weight(reading)
                tokens = tokens * weight
                maps = as_levels(
                    engine.run("composer", {**maps, "tokens": tokens, "attention_mask": mask}, COMPOSED)
                )
            inputs = head_inputs(maps, weight, bool(self._bundle.manifest.concepts))
            masks = engine.run("similarity_head", inputs, MASKS)
        return Maps(
            [maps[level][0].astype(np.float64) for level in LEVELS],
            [masks[name][0].astype(np.float64) for name in MASKS],
            float(weight[0]),
        )

    def _encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode texts, except those that are in the cache."""
        began = time.perf_counter()
        ids, mask, warnings = self._tokenize(texts)
        # Cut to the text's length, because masked tokens add nothing; in steps, so that few shapes occur.
        lengths = [min(-(-int(n) // _STEP) * _STEP, ids.shape[1]) for n in mask.sum(axis=1)]
        keys = [row[:n].tobytes() for row, n in zip(ids, lengths, strict=True)]
        with self._lock:
            known = {key: self._texts[key] for key in keys if key in self._texts}
            for key in known:
                self._texts.move_to_end(key)
        if new := {key: i for i, key in enumerate(keys) if key not in known}:
            rows, n = list(new.values()), max(lengths[i] for i in new.values())
            encoded = self.engine.encode_text(ids[rows, :n], mask[rows, :n])
            for (key, i), row in zip(new.items(), encoded, strict=True):
                known[key] = row[: lengths[i]].copy()
            with self._lock:
                self._texts |= {key: known[key] for key in new}
                while len(self._texts) > _CACHED_TEXTS:
                    self._texts.popitem(last=False)
        n = max(lengths)
        tokens = np.zeros((len(texts), n, known[keys[0]].shape[1]), np.float32)
        for row, key in zip(tokens, keys, strict=True):
            row[: len(known[key])] = known[key]
        return EncodedTexts(tokens, mask[:, :n], warnings, (time.perf_counter() - began) * 1e3)


def _unlike(distance: float) -> tuple[str, ...]:
    """Return a warning for a picture that is too far from the training pictures, or whose distance is NaN."""
    if distance <= 1:
        return ()
    return (
        SkinretWarning(
            "the picture is unlike the dermoscopy that the model was made for: its hits may mean nothing",
            "image-unlike",
        ),
    )
