"""Out of its depth, on held-out folds: which pictures get a warning, and how often a held-out case gets one.

    for fold in 0 1; do
        skinret-train release_v0 --fold $fold --unlike release_v0 --out runs/$fold/ckpt.pt ...
        skinret-export runs/$fold/ckpt.pt --out runs/$fold/bundle
    done
    SKINRET_DERM7PT=release_v0 .venv/bin/python -m pytest benchmarks/test_depth.py -s --runs runs

SKINRET_OTHERS may name a folder of pictures that are no dermoscopy, SKINRET_DERMOSCOPY one of dermoscopy of
another source. The clinical photographs are those of the held-out cases. The table is also written to --out,
as depth.json.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFilter
from sklearn.metrics import roc_auc_score

from skinret_infer import Case, Searcher
from skinret_infer.bundle import QUERY_KINDS, Bundle
from skinret_infer.engines.registry import open_engine
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import preprocess
from skinret_infer.tables import read_cases
from skinret_training.typicality import read_others

AUROC = 0.97
SHARE = 2.0  # per cent of held-out cases that may get a warning
HELD_OUT, CLINICAL, DRAWN, BLURRED = "held-out dermoscopy", "clinical photographs", "drawn", "blurred"
FOLDERS = {"other pictures": "SKINRET_OTHERS", "other dermoscopy": "SKINRET_DERMOSCOPY"}

pytestmark = [
    pytest.mark.derm7pt,
    pytest.mark.skipif("SKINRET_DERM7PT" not in os.environ, reason="SKINRET_DERM7PT is not set"),
]
Pixels = npt.NDArray[np.uint8]
Table = dict[str, dict[str, float]]  # kind of picture or of query, figure -> mean over the runs


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Table:
    folder = request.config.getoption("--runs")
    if folder is None:
        pytest.skip("runs only with --runs DIR, of trainings with --fold and their bundles")
    runs = sorted(Path(folder).glob("*/bundle"))
    assert runs, f"no bundle in {folder}"
    cases = {case.case_id: case for case in read_cases(Path(os.environ["SKINRET_DERM7PT"])).cases}
    of_runs = [_distances(run, cases) | _first_hits(run, cases) for run in runs]
    means = {
        kind: {name: float(np.mean([run[kind][name] for run in of_runs])) for name in figures}
        for kind, figures in of_runs[0].items()
    }
    print(f"\n{len(runs)} runs")
    for kind, figures in means.items():
        print(f"{kind:24}" + "".join(f"{name} {value:8.3f}   " for name, value in figures.items()))
    out = request.config.getoption("--out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "depth.json").write_text(json.dumps({"mean": means, "runs": of_runs}, indent=1) + "\n", "utf-8")
    return means


def _ids(run: Path, role: str) -> list[str]:
    return (run.parent / f"ckpt.{role}.txt").read_text("utf-8").split()


def _distances(run: Path, cases: Mapping[str, Case]) -> Table:
    """Return for each kind of picture the AUROC against held-out dermoscopy, and the share with a warning."""
    bundle = Bundle.load(run)
    engine = open_engine(bundle, "onnxruntime-cpu")
    recipe, held_out = bundle.manifest.image, _ids(run, "queries")
    dermoscopy = [preprocess(decode(cases[case_id].image), recipe) for case_id in held_out]
    photographs = [o.path for o in read_others(Path(os.environ["SKINRET_DERM7PT"])) if o.case_id in held_out]
    pictures: dict[str, list[Pixels]] = {
        HELD_OUT: dermoscopy,
        CLINICAL: [preprocess(decode(path), recipe) for path in photographs],
        DRAWN: _drawn(recipe.size),
        BLURRED: [_blurred(pixels) for pixels in dermoscopy],
    }
    for kind, variable in FOLDERS.items():
        if folder := os.environ.get(variable):
            pictures[kind] = [preprocess(decode(o.path), recipe) for o in read_others(Path(folder))]
    found = {}
    for kind, of_kind in pictures.items():
        batches = (np.stack(of_kind[start : start + 8]) for start in range(0, len(of_kind), 8))
        found[kind] = np.concatenate([engine.embed(batch, None).distances for batch in batches])
    usual = found[HELD_OUT]
    return {
        kind: {
            "pictures": len(distances),
            "warned %": 100 * float(np.mean(distances > 1)),
            "AUROC": _auroc(distances, usual) if kind != HELD_OUT else 0.5,
        }
        for kind, distances in found.items()
    }


def _auroc(unlike: npt.NDArray[Any], usual: npt.NDArray[Any]) -> float:
    labels = np.r_[np.ones(len(unlike)), np.zeros(len(usual))]
    return float(roc_auc_score(labels, np.r_[unlike, usual]))


def _drawn(size: int) -> list[Pixels]:
    """Draw pictures without any skin: texts, plain colours, gradients and noise."""
    rng = np.random.default_rng(0)
    pictures = []
    for n in range(20):
        colour, other = (tuple(map(int, rng.integers(0, 256, 3))) for _ in range(2))
        page = Image.new("RGB", (size, size), (255 - n, 255, 255 - n))
        for y in range(0, size, 14):
            ImageDraw.Draw(page).text((3, y), f"{n} report of the patient, page {y}", fill=(20, 20, 20))
        ramp = np.linspace(colour, other, size)[:, None].repeat(size, 1)
        noise = rng.integers(0, 256, (size, size, 3))
        pictures += [page, Image.new("RGB", (size, size), colour), ramp, noise]
    return [np.asarray(picture, np.uint8) for picture in pictures]


def _blurred(pixels: Pixels) -> Pixels:
    """Blur a picture as a lens that is out of focus: by a 28th of its side."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(len(pixels) / 28)))


def _first_hits(run: Path, cases: Mapping[str, Case]) -> Table:
    """Return for each kind of query the share of held-out cases for which the archive has nothing alike."""
    queries = [cases[case_id] for case_id in _ids(run, "queries")]
    with Searcher(run, run.parent / "cases.skinret", precision="fp32") as searcher:
        searcher.add([cases[case_id] for case_id in _ids(run, "archive")])
        words = {case.case_id: searcher.manifest.checklist.text_of(case.attributes) for case in queries}

        def share(image: Callable[[Case], Any], text: Callable[[Case], str | None]) -> dict[str, float]:
            asked = [(image(case), text(case)) for case in queries]
            found = [results.warnings for results in searcher.query_batch(asked, k=1)]
            unlike = [any(w.code == "archive-unlike" for w in warnings) for warnings in found]  # type: ignore[attr-defined]
            return {"queries": len(asked), "warned %": 100 * float(np.mean(unlike))}

        both, by_image, by_words = QUERY_KINDS
        return {
            both: share(lambda case: case.image, lambda case: words[case.case_id]),
            "half of the words": share(lambda case: case.image, lambda case: _half(words[case.case_id])),
            by_image: share(lambda case: case.image, lambda case: None),
            by_words: share(lambda case: None, lambda case: words[case.case_id]),
        }


def _half(text: str) -> str:
    return ", ".join(text.split(", ")[::2])


@pytest.mark.parametrize("kind", [CLINICAL, DRAWN])
def test_a_picture_that_is_no_dermoscopy_is_told_apart(table: Table, kind: str) -> None:
    assert table[kind]["AUROC"] >= AUROC


def test_other_pictures_are_told_apart(table: Table) -> None:
    if "other pictures" not in table:
        pytest.skip("SKINRET_OTHERS is not set")
    assert table["other pictures"]["AUROC"] >= AUROC


@pytest.mark.parametrize("kind", [HELD_OUT, *QUERY_KINDS])
def test_few_held_out_cases_get_a_warning(table: Table, kind: str) -> None:
    assert table[kind]["warned %"] <= SHARE
