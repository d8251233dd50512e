"""What the tests stand on: drawn cases, and a tiny model that really went through checkpoint and export."""

import os
from pathlib import Path

import pytest
import torch

from skinret_export.bundle_writer import export_bundle
from skinret_export.demo import write_small_tokenizer
from skinret_infer import Case, Searcher
from skinret_infer.bundle import Bundle
from skinret_infer.cases import read_cases
from skinret_infer.image import ImageRecipe
from skinret_infer.text import TextRecipe
from skinret_training.checkpoint import Checkpoint
from skinret_training.model import ModelConfig, Skinret
from skinret_training.synthetic import write_dataset

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


TRAITS = {"group": ["bkl", "mel", "nevus"], "streaks": ["absent", "irregular", "regular"]}


def tiny_config(**options: object) -> ModelConfig:
    """Return the configuration of a model that builds and runs in milliseconds."""
    tiny = {"vision": SWIN, "text": BERT, "image_size": 64, "map_side": 8, "head_width": 16}
    return ModelConfig(**{**tiny, "traits": TRAITS, "gamma": 0.5, **options})


def tiny_checkpoint(tokenizer: str, *, seed: int = 0, **options: object) -> Checkpoint:
    """Return a checkpoint of a tiny model with random weights."""
    torch.manual_seed(seed)
    model = Skinret(tiny_config(**options))
    for parameter in model.parameters():  # wider than the libraries' start, so that cases differ
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return Checkpoint(
        config=model.config, image=ImageRecipe(size=64), text=TextRecipe(), tokenizer=tokenizer,
        state=model.state_dict(), name="tiny", version="1",
    )  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep built engines and gate records out of the user's cache folder; processes of a test inherit it."""
    os.environ["SKINRET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Derm7pt-style folder of 60 drawn cases."""
    return write_dataset(tmp_path_factory.mktemp("drawn") / "release_v0", 60, seed=1, size=(120, 80))


@pytest.fixture(scope="session")
def cases(data: Path) -> list[Case]:
    return read_cases(data).cases


@pytest.fixture(scope="session")
def tokenizer(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a tokenizer.json with the words of the drawn cases."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_small_tokenizer(folder, cases)
    return (folder / "tokenizer.json").read_text("utf-8")


@pytest.fixture(scope="session")
def checkpoint(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "ckpt.pt"
    tiny_checkpoint(tokenizer).save(path)
    return path


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny model, exported and proven, in fp32. Shared: copy it before you damage it."""
    out = tmp_path_factory.mktemp("export") / "bundle"
    loaded: Bundle = export_bundle(checkpoint, out, gates=False)  # what runs shall not hang on the CPU
    assert loaded.path == out
    return out


@pytest.fixture(scope="session")
def full_bundle(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of Swin-T 224 and BERT-base with random weights, in fp32 and fp16. It takes a minute."""
    folder = tmp_path_factory.mktemp("full")
    torch.manual_seed(0)
    swin = {"model_type": "swin", "out_features": ["stage2", "stage3", "stage4"]}  # Swin-T is Swin's default
    model = Skinret(ModelConfig(vision=swin, text={"model_type": "bert"}, map_side=28))
    Checkpoint(
        config=model.config, image=ImageRecipe(), text=TextRecipe(), tokenizer=tokenizer,
        state=model.state_dict(), name="full", version="1",
    ).save(folder / "full.pt")  # fmt: skip
    return export_bundle(folder / "full.pt", folder / "bundle", fp16=True, gates=False).path


@pytest.fixture(scope="session")
def archive(bundle: Path, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 40 of the cases. Shared: copy it before you change it."""
    path = tmp_path_factory.mktemp("archive") / "cases.skinret"
    with Searcher(bundle, path) as searcher:
        searcher.add(cases[:40])
    return path


@pytest.fixture
def searcher(bundle: Path, archive: Path):
    """A searcher over the shared archive: query it, do not add to it."""
    with Searcher(bundle, archive) as opened:
        yield opened


@pytest.fixture
def derm7pt() -> Path:
    folder = os.environ.get("SKINRET_DERM7PT")
    if not folder:
        pytest.skip("SKINRET_DERM7PT does not name the folder of the real data")
    return Path(folder)
