"""What the contestants are asked with, made by programs: a full-size bundle, pictures, words, an archive."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from skinret_infer.archive import Archive, Record
from skinret_infer.bundle import Bundle
from skinret_infer.image import ImageRecipe
from skinret_infer.text import TextRecipe, describe, phrases_of
from skinret_training.synthetic import random_lesions

CASES = 10_000
SIZE = (768, 512)
DRAWINGS = 4  # each is turned eight ways
SWIN_T = {"model_type": "swin", "out_features": ["stage2", "stage3", "stage4"]}
BERT_BASE = {"model_type": "bert"}


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


def full_size(cache: Path) -> tuple[Path, Path]:
    """Return a bundle of Swin-T and BERT-base with random weights, and its checkpoint; made once a source."""
    import torch

    import skinret_export
    import skinret_training
    from skinret_export.bundle_writer import export_bundle
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
        model = Skinret(ModelConfig(vision=SWIN_T, text=BERT_BASE, map_side=28))  # the paper's own maps
        Checkpoint(
            config=model.config, image=ImageRecipe(), text=TextRecipe(), tokenizer=tokenizer(),
            state=model.state_dict(), name="full-size-random", version="0",
        ).save(folder / "ckpt.pt")  # fmt: skip
        export_bundle(folder / "ckpt.pt", folder / "bundle", gates=False)
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
    return list(dict.fromkeys(describe(row, TextRecipe().phrases) for row in rows))


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


def write_archive(path: Path, bundle: Bundle) -> np.ndarray:
    """Write an archive of random descriptors; return them, float32 [N, D]."""
    layout, manifest = bundle.manifest.layout, bundle.manifest
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((CASES, layout.length), np.float32)
    six = sum(layout.local + layout.global_)
    matrix[:, six:] = np.abs(matrix[:, six:])
    sums = np.add.reduceat(np.hstack([matrix[:, :six] ** 2, matrix[:, six:]]), layout.starts, axis=1)
    sums[:, :6] = np.sqrt(sums[:, :6])
    matrix /= np.repeat(sums, layout.lengths, axis=1)
    archive = Archive(path, manifest.fingerprint, layout, f"{manifest.model} {manifest.version}")
    records = [Record(f"{n:05}", "nevus", "nevus", "", {}, f"{n:05}.jpg", "") for n in range(CASES)]
    for start in range(0, CASES, 1000):
        archive.write(records[start : start + 1000], matrix[start : start + 1000])
    archive.close()
    return matrix
