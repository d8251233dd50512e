"""Weights of tiny encoders, and cross-validations with them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import BERT, SWIN
from transformers import BertConfig, BertModel, SwinBackbone, SwinConfig

from skinret_export.demo import write_small_tokenizer
from skinret_infer import Case
from skinret_training import crossval


@pytest.fixture(scope="module")
def weights(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local folders of a tiny Swin and BERT."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    swin = SwinConfig(**{k: v for k, v in SWIN.items() if k != "model_type"})
    SwinBackbone(swin).save_pretrained(folder / "swin")
    small = {k: v for k, v in BERT.items() if k not in ("model_type", "vocab_size")}
    vocabulary = write_small_tokenizer(folder / "bert", cases)
    BertModel(BertConfig(**small, vocab_size=vocabulary)).save_pretrained(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def cross(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """A function that gives the arguments of a cross-validation of two folds into a folder."""
    cache = tmp_path_factory.mktemp("maps")

    def arguments(out: Path, *more: str, source: Path = data) -> list[str]:
        return [
            str(source), "--out", str(out), "--cache", str(cache), "--folds", "2",
            "--vision", str(weights / "swin"), "--text", str(weights / "bert"), "--image-size", "64",
            "--width", "16", "--batch", "16", "--augment-dihedral", "1", "--text-views", "2",
            "--epochs", "40",
            "--validation", "0.2", *more,
        ]  # fmt: skip

    return arguments


@pytest.fixture(scope="module")
def quick(bundle: Path) -> Iterator[None]:
    """Take a bundle that is there for each export, which is half a minute of work; one test does without."""

    def copied(checkpoint: Path, out: Path) -> None:
        assert checkpoint.is_file()
        shutil.copytree(bundle, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossval, "_export", copied)
        yield
