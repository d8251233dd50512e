"""What the contestants are asked with, made by programs: a full-size bundle, pictures, words, an archive."""

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
from skinret_infer.text import TextRecipe, attributes_to_text, phrases_of
from skinret_training.synthetic import random_lesions

SHORT = os.environ.get("SKINRET_BENCHMARK") == "short"  # a tiny model and few rounds: does all of it run?
CASES = 1_000 if SHORT else 10_000
RANK, CLUSTERS, NOISE = 256, 500, 0.003  # of descriptors that are like learned ones
ALIKE = (0.3, 1.5)  # of another's descriptor in a case that is like an image: their cosines are 0.96 to 0.55
SIZE = (768, 512)
DRAWINGS = 4  # each is turned eight ways
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
class Material:
    """What every contestant is asked with."""

    bundle: Bundle
    checkpoint: Path | None
    random: bool  # the weights are
    images: list[Path]  # 32 JPEG files of 768 x 512
    full: list[str]  # words of whole checklists, each once
    short: list[str]  # of three findings
    archive: Path  # of 10,000 cases
    matrix: Path  # its descriptors, for numpy
    cache: Path  # of built engines; empty at first
    threads: int


@dataclass(frozen=True)
class Product:
    """A trained model, its archive, and pictures and facts of cases to ask with."""

    bundle: Path
    archive: Path
    images: Path
    cases: list[Case]


def full_size(cache: Path) -> tuple[Path, Path]:
    """Return a bundle of Swin-T and BERT-base with random weights, and its checkpoint; made once a source.

    In the short form it is a tiny model.
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
    made_by = [path.read_bytes() for path in sources]
    made_by += [version(name).encode() for name in ("torch", "transformers", "onnxscript")]
    folder = cache / hashlib.sha256(b"".join(made_by)).hexdigest()[:16]
    if not (folder / "bundle").is_dir():
        shutil.rmtree(cache, ignore_errors=True)  # an older one is of no use, and of a gigabyte
        torch.manual_seed(0)
        name, image = "full-size-random", ImageRecipe()
        config = ModelConfig(vision=SWIN_T, text=BERT_BASE, max_map_size=28)  # the paper's own maps
        if SHORT:
            name, image = "tiny-random", ImageRecipe(size=64)
            config = ModelConfig(
                vision=TINY_SWIN, text=TINY_BERT, image_size=64, max_map_size=8, head_width=16
            )
        model = Skinret(config)
        for parameter in (
            model.parameters() if SHORT else ()
        ):  # so small a model tells nothing apart otherwise
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        Checkpoint(
            config=model.config, image=image, text=TextRecipe(), tokenizer=tokenizer(),
            state=model.state_dict(), name=name, version="0",
        ).save(folder / "ckpt.pt")  # fmt: skip
        export_bundle(folder / "ckpt.pt", folder / "bundle", check_precision=False)
    return folder / "bundle", folder / "ckpt.pt"


def rows() -> list[dict[str, str]]:
    """Return rows of a Derm7pt table."""
    return [row for row, _ in random_lesions(300, seed=3, size=(32, 32))]


def tokenizer() -> str:
    """Return a tokenizer.json of pieces so small that a whole checklist has as many as in BERT's own: 59."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=140, special_tokens=special, show_progress=False)
    words.train_from_iterator(checklists(rows()), trainer)
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return words.to_str()


def checklists(rows: Sequence[dict[str, str]]) -> list[str]:
    """Say each row in full, no two alike."""
    return list(dict.fromkeys(attributes_to_text(row, TextRecipe().phrases) for row in rows))


def findings(rows: Sequence[dict[str, str]]) -> list[str]:
    """Say three findings of each row that has them, no two alike."""
    said = [
        phrases_of({n: v for n, v in row.items() if v != "absent"}, TextRecipe().phrases)[:3] for row in rows
    ]
    return list(dict.fromkeys(", ".join(three) for three in said))


def draw(folder: Path) -> list[Path]:
    """Draw JPEG files as a dermatoscope's camera might leave them."""
    folder.mkdir()
    paths = []
    for n, (_, picture) in enumerate(random_lesions(DRAWINGS, seed=4, size=SIZE)):
        for flip in (None, *Image.Transpose):
            turned = picture if flip is None else picture.transpose(flip).resize(SIZE)
            paths.append(folder / f"{n}-{flip}.jpg")
            turned.save(paths[-1], quality=90)
    return paths


def learned_like(count: int, layout: Layout, seed: int, noise: float = NOISE) -> Iterator[Vector]:
    """Give descriptors [n, D] as a trained model's are: clustered, of low rank, with noise; n up to 2,048.

    The spectrum is that of the archive of the model trained on Derm7pt, whose six vectors (384 numbers) leave
    24 % of their energy outside 8 dimensions, 2.7 % outside 64, 0.8 % outside 128 and 0.3 % outside 192. Here
    it is about 15 %, 2 %, 0.9 % and 0.5 %, of which `noise` is the same in every direction. A tenth of the
    clusters holds half of the cases, as common diagnoses do.
    """
    law = np.random.default_rng(0)  # the model's, the same for archive and queries
    spectrum = np.arange(1, RANK + 1, dtype=np.float32) ** -0.9
    mixing = law.standard_normal((RANK, layout.length), np.float32)
    centres = law.standard_normal((CLUSTERS, RANK), np.float32)
    share = law.pareto(1.5, CLUSTERS) + 0.1
    rng = np.random.default_rng(seed)
    for start in range(0, count, 2048):
        n = min(2048, count - start)
        cluster = rng.choice(CLUSTERS, n, p=share / share.sum())
        latent = np.sqrt(0.5) * (centres[cluster] + rng.standard_normal((n, RANK), np.float32)) * spectrum
        x = latent @ mixing / np.linalg.norm(spectrum)
        x += np.sqrt(noise) * rng.standard_normal(x.shape, np.float32)
        yield formed(x, layout)


def formed(x: np.ndarray, layout: Layout) -> Vector:
    """Return any numbers [n, D] as descriptors: six vectors of length 1, and distributions."""
    six = layout.visual_length
    x = np.hstack([x[:, :six], np.exp(3 * x[:, six:])])
    sums = np.add.reduceat(np.hstack([x[:, :six] ** 2, x[:, six:]]), layout.starts, axis=1)
    sums[:, :6] = np.sqrt(sums[:, :6])
    return (x / np.repeat(sums, layout.lengths, axis=1)).astype(np.float32)


def write_archive(path: Path, bundle: Bundle, images: Sequence[Path]) -> np.ndarray:
    """Write an archive of CASES descriptors, a tenth of them like those of the images; return them [N, D]."""
    layout, manifest = bundle.manifest.layout, bundle.manifest
    matrix = np.concatenate([*learned_like(CASES, layout, seed=5)])
    engine = open_engine(bundle, "onnxruntime-cpu", precision="fp32")
    pixels = np.stack([preprocess(decode(image), manifest.image) for image in images])
    own = np.concatenate([engine.embed(pixels[n : n + 8], None) for n in range(0, len(pixels), 8)])
    share = np.random.default_rng(7).uniform(*ALIKE, (len(matrix[::10]), 1)).astype(np.float32)
    alike = own[np.arange(len(share)) % len(own)] + share * matrix[::10]
    matrix[::10] = formed(alike, layout)  # a query finds its like
    archive = Archive(path, manifest.fingerprint, layout, f"{manifest.model} {manifest.version}")
    records = [Record(f"{n:05}", "nevus", "nevus", "", {}, f"{n:05}.jpg", "") for n in range(CASES)]
    for start in range(0, CASES, 1000):
        archive.write(records[start : start + 1000], matrix[start : start + 1000])
    archive.close()
    return matrix
