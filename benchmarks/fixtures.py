"""Inputs of the benchmarks, made by programs: a full-size bundle, images, texts, an archive."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from skinret_infer.archive.archive import Archive
from skinret_infer.archive.store import Record
from skinret_infer.bundle import Bundle
from skinret_infer.cases import Case
from skinret_infer.descriptor import Layout, Vector
from skinret_infer.engines.registry import open_engine
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, preprocess
from skinret_infer.text import TextRecipe
from skinret_infer.words.checklist import Checklist
from skinret_training.synthetic import random_lesions

SEVEN_POINT = Checklist.seven_point()

# The short form: a tiny model and few rounds, to see that all tests run.
SHORT = os.environ.get("SKINRET_BENCHMARK") == "short"
CASES = 1_000 if SHORT else 10_000
RANK, CLUSTERS, NOISE = 256, 500, 0.003  # of descriptors like those of a trained model
ALIKE = (0.3, 1.5)  # weight of a random descriptor that is added to an image's: cosines of 0.96 to 0.55
SIZE = (768, 512)
DRAWINGS = 4  # each in eight orientations
SWIN_T = {"model_type": "swin", "out_features": ["stage2", "stage3", "stage4"]}
BERT_BASE = {"model_type": "bert"}
TINY_SWIN = SWIN_T | {
    "image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 4], "window_size": 2,
}  # fmt: skip
TINY_BERT = BERT_BASE | {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Fixtures:
    """The inputs that every competitor gets."""

    bundle: Bundle
    checkpoint: Path | None
    random: bool  # random weights
    images: list[Path]  # 32 JPEG files of 768 x 512
    full: list[str]  # texts of complete checklists, all different
    short: list[str]  # texts of three findings, all different
    archive: Path  # of 10,000 cases
    matrix: Path  # its descriptors, for numpy
    cache: Path  # of built engines; empty at the start
    threads: int


@dataclass(frozen=True)
class Product:
    """A trained model, its archive, and cases with images to query with."""

    bundle: Path
    archive: Path
    images: Path
    cases: list[Case]


def full_size(cache: Path) -> tuple[Path, Path]:
    """Return a bundle of Swin-T and BERT-base with random weights, and its checkpoint.

    Both stay in the cache until the source code changes. In the short form it is a tiny model.
    """
    import torch

    import skinret_export
    import skinret_training
    from skinret_export.export import export_bundle
    from skinret_training.checkpoint import Checkpoint
    from skinret_training.model import ModelConfig, Skinret

    sources = [Path(__file__)]
    for package in (skinret_export, skinret_training):
        sources += sorted(Path(package.__file__).parent.glob("*.py"))
    sources_content = [path.read_bytes() for path in sources]
    sources_content += [version(name).encode() for name in ("torch", "transformers", "onnxscript")]
    folder = cache / hashlib.sha256(b"".join(sources_content)).hexdigest()[:16]
    if not (folder / "bundle").is_dir():
        shutil.rmtree(cache, ignore_errors=True)  # a bundle of older source code takes a gigabyte
        torch.manual_seed(0)
        name, image = "full-size-random", ImageRecipe()
        config = ModelConfig(vision=SWIN_T, text=BERT_BASE, max_map_size=28)  # the paper's own maps
        if SHORT:
            name, image = "tiny-random", ImageRecipe(size=64)
            config = ModelConfig(
                vision=TINY_SWIN, text=TINY_BERT, image_size=64, max_map_size=8, head_width=16
            )
        model = Skinret(config)
        if SHORT:  # with the usual initial weights, so small a model has one descriptor for all images
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.15)
        Checkpoint(
            config=model.config, image=image, text=TextRecipe(), checklist=SEVEN_POINT, tokenizer=tokenizer(),
            state=model.state_dict(), name=name, version="0",
        ).save(folder / "ckpt.pt")  # fmt: skip
        export_bundle(folder / "ckpt.pt", folder / "bundle", check_precision=False)
    return folder / "bundle", folder / "ckpt.pt"


def rows() -> list[dict[str, str]]:
    """Return rows of a Derm7pt table."""
    return [row for row, _ in random_lesions(300, seed=3, size=(32, 32))]


def tokenizer() -> str:
    """Return a tokenizer.json with pieces so short that a complete checklist has 59, as with BERT's own."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=140, special_tokens=special, show_progress=False)
    words.train_from_iterator(checklists(rows()), trainer)
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return words.to_str()


def checklists(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return the text of each row's complete checklist, without duplicates."""
    return list(dict.fromkeys(SEVEN_POINT.text_of(row) for row in rows))


def findings(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return a text of three findings of each row, without duplicates."""
    present = [{name: value for name, value in row.items() if value != "absent"} for row in rows]
    return list(dict.fromkeys(", ".join(SEVEN_POINT.phrases_of(row)[:3]) for row in present))


def draw(folder: Path) -> list[Path]:
    """Draw JPEG files like those of a dermatoscope's camera."""
    folder.mkdir()
    paths = []
    for n, (_, picture) in enumerate(random_lesions(DRAWINGS, seed=4, size=SIZE)):
        for flip in (None, *Image.Transpose):
            rotated = picture if flip is None else picture.transpose(flip).resize(SIZE)
            paths.append(folder / f"{n}-{flip}.jpg")
            rotated.save(paths[-1], quality=90)
    return paths


def learned_like(count: int, layout: Layout, seed: int, noise: float = NOISE) -> Iterator[Vector]:
    """Yield descriptors [n, D], n up to 2,048, like those of a trained model: clusters, low rank, noise.

    The spectrum is like that of a model trained on Derm7pt. Its six vectors (384 numbers) have 24 % of their
    energy outside 8 dimensions, 2.7 % outside 64, 0.8 % outside 128 and 0.3 % outside 192. Here it is about
    15 %, 2 %, 0.9 % and 0.5 %, of which `noise` is the same in every direction. A tenth of the clusters holds
    half of the cases, as common diagnoses do.
    """
    model_rng = np.random.default_rng(0)  # archive and queries have the same model
    spectrum = np.arange(1, RANK + 1, dtype=np.float32) ** -0.9
    mixing = model_rng.standard_normal((RANK, layout.length), np.float32)
    centres = model_rng.standard_normal((CLUSTERS, RANK), np.float32)
    share = model_rng.pareto(1.5, CLUSTERS) + 0.1
    rng = np.random.default_rng(seed)
    for start in range(0, count, 2048):
        n = min(2048, count - start)
        cluster = rng.choice(CLUSTERS, n, p=share / share.sum())
        latent = np.sqrt(0.5) * (centres[cluster] + rng.standard_normal((n, RANK), np.float32)) * spectrum
        x = latent @ mixing / np.linalg.norm(spectrum)
        x += np.sqrt(noise) * rng.standard_normal(x.shape, np.float32)
        yield to_descriptors(x, layout)


def to_descriptors(x: np.ndarray, layout: Layout) -> Vector:
    """Turn any numbers [n, D] into descriptors: six vectors of length 1, and distributions."""
    six = layout.visual_length
    x = np.hstack([x[:, :six], np.exp(3 * x[:, six:])])
    sums = np.add.reduceat(np.hstack([x[:, :six] ** 2, x[:, six:]]), layout.starts, axis=1)
    sums[:, :6] = np.sqrt(sums[:, :6])
    return (x / np.repeat(sums, layout.lengths, axis=1)).astype(np.float32)


def write_archive(path: Path, bundle: Bundle, images: Sequence[Path]) -> np.ndarray:
    """Write an archive of CASES descriptors, a tenth of them like the images'; return them [N, D]."""
    layout, manifest = bundle.manifest.layout, bundle.manifest
    matrix = np.concatenate([*learned_like(CASES, layout, seed=5)])
    engine = open_engine(bundle, "onnxruntime-cpu", precision="fp32")
    pixels = np.stack([preprocess(decode(image), manifest.image) for image in images])
    embedded = np.concatenate(
        [engine.embed(pixels[n : n + 8], None).descriptors for n in range(0, len(pixels), 8)]
    )
    share = np.random.default_rng(7).uniform(*ALIKE, (len(matrix[::10]), 1)).astype(np.float32)
    alike = embedded[np.arange(len(share)) % len(embedded)] + share * matrix[::10]
    matrix[::10] = to_descriptors(alike, layout)  # so that a query finds similar cases
    archive = Archive(path, manifest.fingerprint, layout, f"{manifest.model} {manifest.version}")
    records = [Record(f"{n:05}", "nevus", "nevus", "", {}, f"{n:05}.jpg", "") for n in range(CASES)]
    for start in range(0, CASES, 1000):
        archive.write(records[start : start + 1000], matrix[start : start + 1000])
    archive.close()
    return matrix
