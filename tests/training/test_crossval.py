"""Cross-validation as a command: what it measures, what it writes, and that a killed one goes on."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CHECKLIST
from helpers import call_train as call
from helpers import read_json as read

from skinret_infer import Case, SkinretError
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.tables import CaseTable, read_cases
from skinret_training import crossval
from skinret_training.crossval_report import FIGURES, grid, markdown, overview, spread, summarize
from skinret_training.data import Dataset, load_dataset, split
from skinret_training.systems import SYSTEMS, heads
from skinret_training.systems.evaluate import evaluate_scores
from skinret_training.systems.inputs import Inputs, one_hot
from skinret_training.train import TrainConfig, train

ARCHIVES = ("training_folds", "held_out_fold")
EXPORT = crossval._export  # the real one, where a test has replaced it


@pytest.fixture(scope="module")
def measured(quick: None, cross: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the model and, in two seeds, of the linear probe. Shared: change nothing."""
    out = tmp_path_factory.mktemp("results") / "results"
    call(cross(out, "--seeds", "0"))
    call(cross(out, "--system", "linear-probe"))
    return out


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a head for a tenth of its steps, which is enough to tell these cases apart."""
    monkeypatch.setattr(heads, "STEPS", 100)


def timeless(value: Any) -> Any:
    """Leave out what two runs of the same may differ in."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("minutes", "resumed")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


# -- the measures --


def test_both_archives_and_every_kind_of_query_are_measured_in_every_run(measured: Path) -> None:
    for row, kinds, seeds in (
        ("skinret", ["image_words", "image_only", "words_alone"], [0]),
        ("linear-probe", ["image_words", "image_only", "words_alone"], [0, 1]),
    ):
        result = read(measured / f"{row}.json")
        assert [(r["seed"], r["fold"]) for r in result["runs"]] == [(s, f) for s in seeds for f in (0, 1)]
        assert result["protocol"]["cases"] == {"bkl": 12, "mel": 21, "nevus": 27}
        assert list(result["summary"]) == list(ARCHIVES)
        for archive in ARCHIVES:
            assert list(result["summary"][archive]) == kinds
            for run in result["runs"]:
                assert run["archives"][archive]["queries"] == run["archives"][archive]["archive"] == 30
                assert all(set(FIGURES) <= set(run["archives"][archive][kind]) for kind in kinds)
    assert read(measured / "skinret.json")["searched_with"][0].endswith(" in fp32")


def test_the_held_out_fold_is_in_no_training_archive_and_every_case_is_held_out_once_a_seed(
    measured: Path, cases: list[Case]
) -> None:
    everything = sorted(case.case_id for case in cases)
    for row, seeds in (("skinret", (0,)), ("linear-probe", (0, 1))):
        for seed in seeds:
            runs = [read(measured / ".work" / row / f"seed{seed}-fold{f}" / "run.json") for f in (0, 1)]
            for run in runs:
                assert set(run["archive_ids"]).isdisjoint(run["query_ids"])
                assert sorted(run["archive_ids"] + run["query_ids"]) == everything
            assert sorted(i for run in runs for i in run["query_ids"]) == everything
    probe, model = (
        measured / ".work" / row / "seed0-fold1" / "run.json" for row in ("linear-probe", "skinret")
    )
    assert read(probe)["query_ids"] == read(model)["query_ids"]


def test_the_summary_is_what_one_would_reckon_by_hand(measured: Path) -> None:
    result = read(measured / "linear-probe.json")
    for archive in ARCHIVES:
        values = [run["archives"][archive]["image_words"]["mAP"] for run in result["runs"]]
        by_seed = values[:2], values[2:]
        figure = result["summary"][archive]["image_words"]["all"]["mAP"]
        assert figure["mean"] == pytest.approx(fmean(values), abs=1e-3)
        assert figure["std_seeds"] == pytest.approx(stdev(map(fmean, by_seed)), abs=1e-3)
        squares = [stdev(folds) ** 2 for folds in by_seed]
        assert figure["std_folds"] == pytest.approx(fmean(squares) ** 0.5, abs=1e-3)
        nevi = [
            run["archives"][archive]["image_words"]["by_group"]["nevus"]["Acc@4"] for run in result["runs"]
        ]
        told = result["summary"][archive]["image_words"]["by_group"]["nevus"]["Acc@4"]
        assert told["mean"] == pytest.approx(fmean(nevi), abs=1e-3)


def test_the_comparison_with_chance_pools_the_folds_of_a_seed_and_never_the_seeds() -> None:
    def run(seed: int, fold: int, measured: float, error: float | None) -> dict[str, Any]:
        beyond = {"measured": measured, "shuffled": 50.0, "standard_error": error, "z": None}
        figures = {"mAP": 1.0, "by_group": {}, "balanced": {"mAP": 1.0}}
        kind = figures | {"beyond_group": {"nDCG@10": beyond, "shared@5": beyond | {"standard_error": None}}}
        return {"seed": seed, "fold": fold, "archives": {name: {"image_only": kind} for name in ARCHIVES}}

    runs = [run(0, 0, 56.0, 3.0), run(0, 1, 54.0, 4.0), run(1, 0, 60.0, 3.0), run(1, 1, 60.0, 4.0)]
    beyond = summarize(runs)["held_out_fold"]["image_only"]["beyond_group"]
    told = beyond["nDCG@10"]
    assert (told["seed"], told["measured"], told["shuffled"]) == (0, 55.0, 50.0)
    assert told["standard_error"] == 2.5 and told["z"] == 2.0  # sqrt(9 + 16) / 2, and 5 of them
    assert [s["z"] for s in told["seeds"]] == [2.0, 4.0]
    assert beyond["shared@5"]["z"] is None


def test_one_fold_or_one_seed_has_no_spread() -> None:
    assert spread([(0, 80.0)]) == {"mean": 80.0, "std_folds": None, "std_seeds": None}
    assert spread([(0, 80.0), (1, 82.0)])["std_seeds"] == pytest.approx(2**0.5, abs=1e-3)


# -- the files --


def test_the_pages_show_the_figures_in_aligned_columns(measured: Path) -> None:
    result = read(measured / "linear-probe.json")
    page = (measured / "linear-probe.md").read_text("utf-8")
    figure = result["summary"]["held_out_fold"]["words_alone"]["all"]["Acc@1"]
    assert f"{figure['mean']:.1f} ± {figure['std_folds']:.1f}" in page
    assert all(f"seed {s}, fold {f}" in page for s in (0, 1) for f in (0, 1))
    assert "read once" in page and "2 stratified folds, seeds 0, 1: 4 runs" in page and "torch 2" in page
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 * 3 * 3
    assert all(len({len(line) for line in lines}) == 1 for lines in tables)
    assert "epochs 40" in (measured / "skinret.md").read_text("utf-8")


def test_the_pages_say_what_a_random_order_gives(measured: Path) -> None:
    page = (measured / "linear-probe.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    # 6 bkl, 10 or 11 mel, 13 or 14 nevus in the query's fold and in the other
    at_random = [row for row in rows if row[0] == "random order"]
    assert len(at_random) == 6 and {(row[2], row[4]) for row in at_random[:3]} == {("33.3", "36.4")}
    bkl = [row for row in rows if row[0] == "bkl, random order"]
    assert bkl[0][2] == "20.0" and bkl[3][2] == "17.2"  # 6 of 30; 5 of 29, without the query itself
    readme = (measured / "README.md").read_text("utf-8")
    line, _ = (line for line in readme.splitlines() if line.startswith("| random order"))  # by archive
    assert "36.4" in line


def test_rows_of_an_earlier_version_have_no_random_order(measured: Path) -> None:
    def aged(value: Any) -> Any:
        if isinstance(value, dict):
            new = ("random_order", "tied", "same_picture", "same_lesion", "external", "adaptation")
            new += ("visual_alone", "concepts_alone")
            is_new = {k: k in new or (k == "queries" and isinstance(v, dict)) for k, v in value.items()}
            return {k: aged(v) for k, v in value.items() if not is_new[k]}
        return [aged(v) for v in value] if isinstance(value, list) else value

    now, then = read(measured / "linear-probe.json"), aged(read(measured / "linear-probe.json"))
    assert "| random order" not in markdown(then) + overview([then])
    assert aged(summarize(then["runs"])) == then["summary"]
    assert overview([then, now]).count("| random order") == len(ARCHIVES)


def test_the_readme_has_a_line_for_every_row_and_no_path_of_this_machine(
    measured: Path, tmp_path: Path
) -> None:
    readme = (measured / "README.md").read_text("utf-8")
    rows = [read(measured / f"{row}.json") for row in ("linear-probe", "skinret")]
    assert readme == overview(rows)
    tables = [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        for block in readme.split("\n\n")
        if block.startswith("|")
    ]
    assert len(tables) == len(ARCHIVES)
    for archive, (header, _, *lines) in zip(ARCHIVES, tables, strict=True):
        assert header[4:8] == ["balanced mAP", "balanced Acc@1", "mAP", "Acc@1"]
        assert header[-4:-1] == ["bkl: mAP", "mel: mAP", "nevus: mAP"]
        found = {(line[0], line[3]): line for line in lines}
        for row in rows:
            summary = row["summary"][archive]["image_words"]
            line = found[row["experiment"], "image words"]
            assert line[4].startswith(f"{summary['balanced']['mAP']['mean']:.1f} ± ")
            assert line[6].startswith(f"{summary['all']['mAP']['mean']:.1f} ± ")
            assert line[-4].endswith(" (12)")  # of bkl
        for query in ("image words", "image only"):
            assert ("skinret", f"{query}, S alone") in found
            assert ("skinret", f"{query}, concepts alone") in found
    written = [p for p in measured.iterdir() if p.is_file()]
    assert sorted(p.name for p in written) == [
        "README.md", "linear-probe.json", "linear-probe.md", "skinret.json", "skinret.md",
            "systems.md", "systems.svg",
    ]  # fmt: skip
    for path in written:
        assert str(tmp_path.parent.parent) not in path.read_text("utf-8"), path
    assert not [p for p in measured.rglob("*") if p.suffix in (".pt", ".skinret", ".onnx", ".resume")]


def test_a_grid_is_readable_as_plain_text() -> None:
    assert grid(["", "mAP"], [["a", "1.0"], ["longer", "100.0 ± 2.0"]]) == [
        "|        |         mAP |",
        "| ------ | ----------: |",
        "| a      |         1.0 |",
        "| longer | 100.0 ± 2.0 |",
    ]


# -- killed, and called again --


def test_a_killed_cross_validation_goes_on_in_the_epoch_where_it_was_to_the_same_end(
    measured: Path, cross: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = shutil.copytree(measured, tmp_path / "results")
    work = out / ".work" / "skinret"
    shutil.rmtree(work / "seed0-fold1")
    (out / "skinret.json").unlink()
    done = work / "seed0-fold0" / "run.json"
    written = done.stat().st_mtime_ns
    command = cross(out, "--seeds", "0")
    state = work / "seed0-fold1" / "ckpt.pt.resume"
    running = subprocess.Popen(
        [sys.executable, "-m", "skinret_training.cli", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not state.is_file() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    epochs = len(torch.load(state, weights_only=True)["history"])
    assert 0 < epochs < 40 and not (out / "skinret.json").exists()

    call(command)
    assert done.stat().st_mtime_ns == written
    resumed, whole = read(out / "skinret.json"), read(measured / "skinret.json")
    assert [run["resumed"] for run in resumed["runs"]] == [False, True]
    assert timeless(resumed) == timeless(whole)
    assert not state.exists()


def test_a_row_that_is_done_is_written_again_without_any_training(
    measured: Path, cross: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(measured, tmp_path / "results")
    (out / "linear-probe.md").unlink()
    monkeypatch.setattr(crossval, "_open", None)
    call(cross(out, "--system", "linear-probe"))
    for name in ("linear-probe.md", "linear-probe.json", "README.md"):
        assert (out / name).read_bytes() == (measured / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--beta", "0.3"], "beta 0.6 there, 0.3 now"),
        (["--system", "late-fusion", "--experiment", "skinret"], "method 'skinret' there, 'late-fusion' now"),
    ],
)
def test_a_row_of_other_options_is_refused_with_the_cure(
    more: list[str], named: str, measured: Path, cross: Callable[..., list[str]]
) -> None:
    refused = call(cross(measured, "--seeds", "0", *more), 1).output
    assert named in refused and "another --experiment" in refused and "[crossval-row]" in refused


def test_a_row_of_other_words_is_refused(
    measured: Path, cross: Callable[..., list[str]], data: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(data, tmp_path / "release_v0")
    edit(changed, 4, sex="")
    assert "other data" in call(cross(measured, "--seeds", "0", source=changed), 1).output


def test_a_damaged_run_is_named(measured: Path, cross: Callable[..., list[str]], tmp_path: Path) -> None:
    out = shutil.copytree(measured, tmp_path / "results")
    path = out / ".work" / "skinret" / "seed0-fold1" / "run.json"
    path.write_text('{"seed": 0,')
    refused = call(cross(out, "--seeds", "0"), 1).output
    assert str(path) in refused and "delete the file" in refused


# -- the product --


@pytest.mark.slow
def test_what_the_bundle_finds_is_what_the_model_found_in_training(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    config = TrainConfig(
        vision=str(weights / "swin"), text=str(weights / "bert"), image_size=64, width=16, batch=16,
        augment_dihedral=1, text_views=2, epochs=3, validation=0.2, folds=2, fold=0,
    )  # fmt: skip
    table = read_cases(data)
    dataset = load_dataset(table, ImageRecipe(size=64), CHECKLIST, quiet=True)
    parts = split(dataset, folds=2, fold=0, validation=0.2, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossval, "_export", EXPORT)
        runs = crossval._ModelRuns("skinret", table, dataset, config, tmp_path / "maps", True)
        run = runs.run_fold(config, parts, tmp_path / "run")
    assert "held_out" not in run["training"]  # that fold is read once, through the bundle
    again = train(table, config, cache=tmp_path / "maps", dataset=dataset, quiet=True)
    for kind in ("image_words", "image_only"):
        found = run["archives"]["training_folds"][kind]
        expected = again.checkpoint.metrics["held_out"][kind]
        assert found["mAP"] == pytest.approx(expected["mAP"], abs=0.5)


def test_an_export_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(b"no checkpoint")
    with pytest.raises(SkinretError, match="could not be exported") as caught:
        EXPORT(tmp_path / "ckpt.pt", tmp_path / "bundle")
    assert caught.value.code == "export-failed"
    assert any("not a skinret checkpoint" in note for note in caught.value.__notes__)


def test_a_missing_package_of_the_export_is_named_before_anything_is_trained(
    cross: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossval.importlib.util, "find_spec", lambda name: None if name == "onnx" else name)
    refused = call(cross(tmp_path / "results"), 4).output
    assert "found no onnx." in refused and 'pip install "skinret-infer[export]"' in refused
    assert not (tmp_path / "results").exists()


# -- baselines --


@pytest.mark.parametrize("method", ["contrastive-projection", "late-fusion"])
def test_a_learned_baseline_runs_as_a_row(
    method: str, cross: Callable[..., list[str]], few_steps: None, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    printed = call(cross(out, "--system", method, "--seeds", "3", "--experiment", "of mine", "--json")).stdout
    result = read(out / "of mine.json")
    assert json.loads(printed) == result["summary"] and result["method"] == method
    kinds = ["image_only"] if method == "contrastive-projection" else ["image_words", "image_only"]
    assert list(result["summary"]["held_out_fold"]) == kinds
    assert "of mine" in (out / "README.md").read_text("utf-8")


def test_several_systems_share_a_page_and_a_killed_run_goes_on(
    cross: Callable[..., list[str]], few_steps: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    both = cross(out, "--system", "csq", "--system", "tirg", "--seeds", "0", "--json")
    with monkeypatch.context() as killed:
        killed.setattr(crossval, "write_experiment", _interrupt)
        call(both, 1)
    done = out / ".work" / "csq" / "seed0-fold1" / "run.json"
    written = done.stat().st_mtime_ns
    assert set(json.loads(call(both).stdout)) == {"csq", "tirg"} and done.stat().st_mtime_ns == written
    page = " ".join((out / "systems.md").read_text("utf-8").split())
    assert "| csq | image only |" in page and "| tirg | image words |" in page
    assert (out / "systems.svg").is_file()


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_a_row_that_its_data_cannot_have_stops_all_before_the_first(
    cross: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "results"
    refused = call(cross(out, "--system", "csq", "--system", "snf-dca", "--folds", "3"), 1).stderr
    assert "snf-dca" in refused and "at least 21 cases" in refused and not out.exists()
    assert "is not one of 'skinret'" in call(cross(out, "--system", "snf"), 2).stderr
    assert "Give one --system" in call(cross(out, "--system", "all", "--experiment", "x"), 2).stderr


def test_baselines_find_what_is_in_the_pictures_and_in_the_words(data: Path, few_steps: None) -> None:
    table = read_cases(data)
    dataset = load_dataset(table, ImageRecipe(size=64), CHECKLIST, quiet=True)
    parts = split(dataset, folds=2, fold=0, validation=0.2, seed=0)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12)).astype(np.float32)
    images = centres[dataset.labels] + rng.normal(size=(2, 60, 12)).astype(np.float32)
    said = one_hot(table, CHECKLIST)
    assert set(np.unique(said)) == {0, 1} and (said.sum(1) == 10).all()
    seen = inputs_of(dataset, images, said, said)
    chance = max(np.bincount(dataset.labels[parts.test])) / 30 * 100
    config = TrainConfig(fold=0)
    for name in ("linear-probe", "late-fusion", "contrastive-projection", "tirg", "combiner", "artemis"):
        scores = SYSTEMS[name].fit(seen, parts, config)(parts.archive)
        for kind, figures in evaluate_scores(scores, table, CHECKLIST, parts.test, parts.archive).items():
            if isinstance(figures, dict):
                assert figures["Acc@1"] > chance and figures["mAP"] > chance, (name, kind)
        again = SYSTEMS[name].fit(seen, parts, config)(parts.archive)
        assert all(np.array_equal(scores[kind], again[kind]) for kind in scores)


def inputs_of(dataset: Dataset, images: np.ndarray, words: np.ndarray, tokens: np.ndarray) -> Inputs:
    """Return inputs for systems that take pooled features."""
    channels = (images.shape[2] - 8, 4, 4) if images.shape[2] > 8 else (1, 1, images.shape[2] - 2)
    return Inputs(
        dataset.labels, dataset.targets, images, channels, words, tokens,
        lambda cases: pytest.fail("no text"), lambda cases, views: pytest.fail("no maps"),
        lambda: pytest.fail("no stage"), dataset.pixels, Path(),
    )  # fmt: skip


def test_a_baseline_that_knows_nothing_measures_a_random_order(cases: list[Case]) -> None:
    by_group = sorted(cases, key=lambda case: case.group)
    renamed = [
        Case(f"{n:03}", c.image, diagnosis="", attributes=c.attributes, group=c.group)
        for n, c in enumerate(by_group)
    ]
    everything = np.arange(60)
    report = evaluate_scores(
        {"image_only": np.zeros((60, 60), np.float32)},
        CaseTable(renamed, []),
        CHECKLIST,
        everything,
        everything,
    )
    found = report["image_only"]
    assert found["tied"] == 60 and found["balanced"]["Acc@1"] == pytest.approx(
        100 * (11 + 20 + 26) / 59 / 3, abs=1e-3
    )
    assert all(found[name] == value for name, value in found["random_order"].items())


def test_the_same_picture_in_two_cases_is_no_hit(cases: list[Case]) -> None:
    twin = Case("twin", cases[0].image, diagnosis="", attributes=cases[0].attributes, group=cases[0].group)
    table = CaseTable([*cases[:20], twin], [])
    dataset = load_dataset(table, ImageRecipe(size=64), CHECKLIST, quiet=True)
    archive = np.arange(20)
    for pictures, left_out in ((dataset.pictures, 1), ((), 0)):
        report = evaluate_scores(
            {"image_only": np.ones((1, 20))}, table, CHECKLIST, np.array([20]), archive, pictures
        )
        assert report["same_picture"] == left_out


def test_cases_without_words_have_no_words_alone(cases: list[Case]) -> None:
    silent = CaseTable(
        [Case(c.case_id, c.image, diagnosis=c.diagnosis, attributes={}, group=c.group) for c in cases], []
    )
    assert one_hot(silent, CHECKLIST).shape == (60, 0)
    dataset = load_dataset(silent, ImageRecipe(size=64), CHECKLIST, quiet=True)
    parts = split(dataset, folds=2, fold=0, validation=0.2, seed=0)
    images = np.random.default_rng(0).normal(size=(1, 60, 4)).astype(np.float32)
    seen = inputs_of(dataset, images, one_hot(silent, CHECKLIST), np.zeros((60, 8), np.float32))
    ranker = SYSTEMS["linear-probe"].fit(seen, parts, TrainConfig(fold=0))
    assert "words_alone" not in ranker(parts.archive)


# -- options and data that cannot be used --


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--folds", "2", "--seed", "1"], "takes --seeds"),
        (["--folds", "2", "--fold", "0", "--seeds", "0,1"], "--seeds: only for a cross-validation"),
        (["--seeds", "0"], "--seeds: only for a cross-validation"),
        (["--fold", "0", "--system", "linear-probe"], "--system: only for"),
        (["--keep-artifacts", "--experiment", "x"], "--experiment, --keep-artifacts: only for"),
        (["--folds", "2", "--seeds", "0;1"], "not a list of numbers"),
        (["--folds", "1"], "--folds"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    more: list[str], said: str, tmp_path: Path
) -> None:
    result = call([str(tmp_path), "--out", str(tmp_path / "out"), *more], 2)
    assert said in result.output and "Usage:" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more", [["--seeds", "0,0"], ["--seeds=-1"], ["--experiment", "a/b"], ["--experiment", ".x"]]
)
def test_seeds_and_names_that_cannot_be_used_are_refused(
    more: list[str], cross: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert "cannot be used" in call(cross(tmp_path / "out", *more), 1).output
    assert not (tmp_path / "out").exists()


def test_another_readme_is_never_overwritten(cross: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    assert "another --out" in call(cross(tmp_path, "--system", "linear-probe"), 1).output
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def edit(folder: Path, row: int, **values: str) -> None:
    """Change a row of a Derm7pt folder's table; row 0 stands in line 2."""
    path = folder / "meta" / "meta.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[row] |= values
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "meta" / "meta.csv").unlink(), ["no meta/meta.csv", "release_v0, or a CASES.csv"]),
        (lambda d: (d / "images/SYN/syn0007.jpg").unlink(), ["1 image files", "line 8: SYN/syn0007.jpg"]),
        (lambda d: (d / "images/SYN/syn0007.jpg").write_bytes(b"no"), ["image of case '7'"]),
        (lambda d: edit(d, 2, diagnosis="naevus"), ["'naevus' (1, first in line 4)"]),
        (
            lambda d: (edit(d, 2, streaks="many"), edit(d, 5, streaks="many"), edit(d, 8, sex="f")),
            ["streaks 'many' (2, first in line 4)", "sex 'f' (1, first in line 10)", "CASES.csv"],
        ),
    ],
)
def test_bad_data_is_named_before_anything_is_trained(
    damage: Callable[[Path], object],
    said: list[str],
    data: Path,
    cross: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(data, tmp_path / "release_v0")
    damage(folder)
    refused = call(cross(tmp_path / "out", source=folder), 1).output
    assert all(part in refused for part in said), refused
    assert not (tmp_path / "out").exists()


def test_fewer_cases_of_a_group_than_folds_are_counted(
    cross: Callable[..., list[str]], tmp_path: Path
) -> None:
    refused = call(cross(tmp_path / "out", "--folds", "13"), 1).output
    assert "12 of bkl" in refused and "fewer folds" in refused
    assert not (tmp_path / "out").exists()
