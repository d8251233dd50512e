"""What the tests stand on: drawn cases, and a tiny model that really went through checkpoint and export."""

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

# Before torch and numpy are loaded, and for every process that a test starts: on tensors this small a second
# thread costs more than it does, and each core has a worker of its own (`make test`).
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import CHECKLIST, tiny_checkpoint

from skinret_export import export
from skinret_export.demo import write_small_tokenizer
from skinret_export.export import export_bundle
from skinret_export.graphs import graph_specs, write_graph
from skinret_infer import Case, Searcher
from skinret_infer._files import file_sha256
from skinret_infer.bundle import QUERY_KINDS
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, preprocess
from skinret_infer.tables import read_cases
from skinret_infer.text import TextRecipe
from skinret_training.checkpoint import Checkpoint
from skinret_training.model import ModelConfig, Skinret
from skinret_training.synthetic import write_dataset
from skinret_training.typicality import Typicality

LONGEST = (
    "full_size",
    "test_usage",
    "test_export",
    "test_crossval",
    "test_cli",
    "test_soup",
    "test_train",
    "test_offline",
    "test_servers",
)  # groups

gc.freeze()  # torch, transformers and sympy stay; looking through them again is a fifth of an export
gc.set_threshold(50_000, 20, 20)


def group(nodeid: str) -> str:
    """Return with which tests a test shares what is costly to make: its file's, or the full-size bundle's."""
    return "full_size" if "full_size" in nodeid else Path(nodeid.partition("::")[0]).stem


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give each group to one worker. (--dist loadgroup of pytest-xdist 3.8 has no effect with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest groups first where workers share the tests, so that none begins one at the end."""
    for item in items:
        if "full_bundle" in item.fixturenames and group(item.nodeid) != "full_size":
            raise pytest.UsageError(f"{item.nodeid} takes full_bundle: call it ..._full_size_...")
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = {name: n for n, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(group(item.nodeid), len(place)))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a file or folder that the first worker to need it makes for all of them."""
    base = factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.with_name(f"{name}.lock")):
        if not path.exists():
            begun = path.with_name(f"{name}.begun-{os.getpid()}")
            make(begun)
            begun.rename(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep built engines and verdicts out of the user's cache folder; processes of a test inherit it."""
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
    folder = made_once(tmp_path_factory, "tokenizer", lambda to: write_small_tokenizer(to, cases))
    return (folder / "tokenizer.json").read_text("utf-8")


@pytest.fixture(scope="session")
def checkpoint(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "ckpt.pt", tiny_checkpoint(tokenizer).save)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny model, exported and proven, in fp32. Shared: copy it before you damage it."""
    # Without precision checks: what runs shall not hang on the CPU.
    return made_once(
        tmp_path_factory, "bundle", lambda to: export_bundle(checkpoint, to, check_precision=False)
    )


@pytest.fixture(scope="session")
def bundle_without_concepts(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny model that predicts no concepts and averages two orientations."""

    def make(folder: Path) -> None:
        checkpoint = folder.with_suffix(".pt")
        tiny_checkpoint(tokenizer, concepts={}, gamma=0.0, tta=2).save(checkpoint)
        export_bundle(checkpoint, folder, check_precision=False)

    return made_once(tmp_path_factory, "without-concepts", make)


@pytest.fixture(scope="session")
def calibrated(
    bundle: Path, tokenizer: str, cases: list[Case], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny bundle with a visual encoder that knows which pictures are typical. Its limits are -1."""

    def make(folder: Path) -> None:
        checkpoint = tiny_checkpoint(tokenizer, typicality=True)
        model = checkpoint.model()
        pixels = np.stack([preprocess(decode(case.image), checkpoint.image) for case in cases])
        with torch.inference_mode():
            low = model.visual_encoder.backbone_maps(torch.from_numpy(pixels))[0]
        model.visual_encoder.typicality.fit(Typicality.pool(low), torch.empty(0, low.shape[-1]), seed=0)
        shutil.copytree(bundle, folder)
        graph = folder / "visual_encoder.onnx"
        write_graph(graph_specs(model, checkpoint.text.length)["visual_encoder"], graph)
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        manifest["files"][graph.name] = file_sha256(graph)
        limits = dict.fromkeys(QUERY_KINDS, -1.0)
        manifest["calibration"] = {"pictures": len(cases), "first_hits": limits}
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")

    return made_once(tmp_path_factory, "calibrated", make)


@pytest.fixture(scope="session")
def full_bundle(tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of Swin-T 224 and BERT-base with random weights, in fp32 and fp16. It takes a minute.

    It is proven on 16 images, where an export takes 64: on the tiny bundle those are, and what is left to ask
    of this size is the same of the first as of the last.
    """
    folder = tmp_path_factory.mktemp("full")
    torch.manual_seed(0)
    swin = {"model_type": "swin", "out_features": ["stage2", "stage3", "stage4"]}  # Swin-T is Swin's default
    model = Skinret(ModelConfig(vision=swin, text={"model_type": "bert"}, max_map_size=28))
    Checkpoint(
        config=model.config, image=ImageRecipe(), text=TextRecipe(), checklist=CHECKLIST, tokenizer=tokenizer,
        state=model.state_dict(), name="full", version="1",
    ).save(folder / "full.pt")  # fmt: skip
    probe = export.make_probe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "make_probe", lambda loaded, images: probe(loaded, images, count=16))
        return export_bundle(folder / "full.pt", folder / "bundle", fp16=True, check_precision=False).path


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
