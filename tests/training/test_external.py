"""Cross-validation: other sources of cases, the origin of the backbone, results beside a baseline's."""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CHECKLIST, call_train, read_json, refusal_of

from skinret_infer import Case, InputError
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, pixel_sha256
from skinret_infer.tables import CaseTable, read_cases
from skinret_training import crossval
from skinret_training.crossval_report import compare, is_baseline_of, markdown, overview
from skinret_training.data import Split, load_dataset
from skinret_training.external import ARCHIVES, DATA, OWN, Source, load_source
from skinret_training.origin import read_adaptation
from skinret_training.synthetic import write_dataset
from skinret_training.systems import SYSTEMS
from skinret_training.systems.base import Ranker, System, fixed
from skinret_training.systems.inputs import Inputs, one_hot
from skinret_training.train import TrainConfig

Cross = Callable[..., list[str]]
PROBE = ("--system", "linear-probe", "--seeds", "0")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Twenty-four cases of another source, with the ids of the training data."""
    folder = tmp_path_factory.mktemp("other") / "release_v0"
    return read_cases(write_dataset(folder, 24, seed=9, size=(96, 96))).cases


@pytest.fixture(scope="module")
def clinic(drawn: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of that source: two pictures of each lesion, one finding, two cases of another group."""
    return write_table(tmp_path_factory.mktemp("tables") / "clinic.csv", drawn, "streaks")


def write_table(path: Path, cases: Sequence[Case], *columns: str) -> Path:
    """Write a CASES.csv with these attributes; the first two cases get a group of their own."""
    names = ["case_id", "image", "diagnosis", "group", "lesion_id", *columns]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for n, case in enumerate(cases):
            image = path.parent / f"{n}.jpg"
            shutil.copy(str(case.image), image)
            row = {"case_id": case.case_id, "image": image.name, "diagnosis": case.diagnosis}
            row |= {"group": case.group if n > 1 else "scar", "lesion_id": f"L{n // 2}"}
            writer.writerow(row | {name: case.attributes[name] for name in columns})
    return path


@pytest.fixture(scope="module")
def loaded(data: Path, clinic: Path) -> tuple[CaseTable, Any, Source]:
    """The training data, and the source beside it."""
    table = read_cases(data)
    dataset = load_dataset(table, ImageRecipe(size=64), CHECKLIST, quiet=True)
    return table, dataset, load(read_cases(clinic), table, dataset)


def load(found: CaseTable, table: CaseTable, dataset: Any) -> Source:
    return load_source("clinic", found, table, dataset, ImageRecipe(size=64), None, quiet=True)


@pytest.fixture(scope="module")
def measured(quick: None, cross: Cross, clinic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the model and of the linear probe with the source. Shared: change nothing."""
    out = tmp_path_factory.mktemp("results") / "results"
    for more in (("--seeds", "0", "--epochs", "2"), PROBE):
        call_train(cross(out, *more, "--external", str(clinic)))
    return out


# -- the protocol --


def test_a_model_of_all_of_the_data_answers_in_both_archives(measured: Path, drawn: list[Case]) -> None:
    groups = Counter(case.group for case in drawn[2:])
    for row in ("skinret", "linear-probe"):
        source = read_json(measured / f"{row}.json")["external"]["clinic"]
        assert source["cases"] == dict(sorted(groups.items()))
        assert (source["lesions"], source["with_words"]) == (11, 22)
        assert source["notes"] == ["Groups that only clinic has are left out: scar 2"]
        [run] = source["runs"]
        assert run["seed"] == 0 and list(run["archives"]) == list(source["summary"]) == list(ARCHIVES)
        for archive, size, pictures in ((DATA, 60, 0), (OWN, 22, 22)):
            report = run["archives"][archive]
            assert (report["queries"], report["archive"]) == (22, size)
            assert (report["same_picture"], report["same_lesion"]) == (0, pictures)
            assert {"image_words", "image_only", "words_alone"} <= report.keys()
            by_group = report["image_only"]["by_group"]
            assert {group: f["queries"] for group, f in by_group.items()} == groups


def test_the_pages_have_a_section_of_the_source(measured: Path) -> None:
    page, readme = ((measured / name).read_text("utf-8") for name in ("skinret.md", "README.md"))
    assert "- Queries: 22 pictures (bkl" in page and "of 11 lesions; 22 have words" in page
    assert "- Groups that only clinic has are left out: scar 2" in page
    for title in ARCHIVES.values():
        assert f"## clinic, archive: {title}\n" in page
        section = readme.split(f"### External source clinic, archive: {title}\n")[1].split("###")[0]
        rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
        assert {"skinret", "linear-probe", "random order"} <= set(rows)
        assert "image only, S alone" in section and "image only, concepts alone" in section
    assert str(measured.parent) not in page + readme


def test_no_hit_shows_the_lesion_of_the_query(loaded: tuple[CaseTable, Any, Source]) -> None:
    table, dataset, source = loaded
    cases = [*table.cases, *source.cases]
    lesions = [str(case.attributes.get("lesion_id", "")) for case in cases]

    def by_lesion(inputs: Inputs, subsets: Split, config: TrainConfig) -> Ranker:
        same = [[lesions[q] == lesion for lesion in lesions] for q in subsets.test]
        return fixed({"image_only": np.array(same, np.float32)})

    system = replace(SYSTEMS["linear-probe"], fit=by_lesion)
    reports = measured_with(system, source, table, dataset)
    for report in reports.values():  # nothing is left that it could find
        figures = report["image_only"]
        assert all(figures[name] == value for name, value in figures["random_order"].items())


def features_of(dataset: Any, table: CaseTable) -> Inputs:
    images = np.random.default_rng(0).normal(size=(1, len(table.cases), 4)).astype(np.float32)
    said = one_hot(table, CHECKLIST)
    return Inputs(
        dataset.labels, dataset.targets, images, (1, 1, 2), said, np.zeros((len(said), 2), np.float32),
        lambda cases: pytest.fail("no text"), lambda cases, views: pytest.fail("no maps"),
        lambda: pytest.fail("no stage"), dataset.pixels, Path(),
    )  # fmt: skip


def measured_with(system: System, source: Source, table: CaseTable, dataset: Any) -> dict[str, Any]:
    """Return the figures of a system, from features that say nothing."""
    own = features_of(source.dataset, CaseTable(source.cases, []))
    return source.evaluate_system(system, TrainConfig(), table, dataset, features_of(dataset, table), own)


def test_a_source_with_the_ids_and_lesions_of_the_data_stays_apart(
    loaded: tuple[CaseTable, Any, Source],
) -> None:
    table, _, source = loaded
    assert {case.case_id for case in table.cases}.isdisjoint(case.case_id for case in source.cases)
    assert source.cases[0].case_id == "clinic/3"
    assert source.cases[0].attributes["lesion_id"] == "clinic/L1"


def test_groups_of_the_data_that_the_source_lacks_are_not_searched(
    loaded: tuple[CaseTable, Any, Source], clinic: Path
) -> None:
    table, dataset, _ = loaded
    found = [case for case in read_cases(clinic).cases if case.group != "bkl"]
    source = load(CaseTable(found, []), table, dataset)
    assert source.notes[1] == "Groups that only the training data has are left out: bkl 12"
    assert len(source.archive) == 48
    report = measured_with(SYSTEMS["linear-probe"], source, table, dataset)[DATA]
    assert report["archive"] == 48 and "bkl" not in report["image_only"]["by_group"]


def test_a_source_whose_columns_the_checklist_does_not_know_is_queried_by_image_alone(
    loaded: tuple[CaseTable, Any, Source], drawn: list[Case], tmp_path: Path
) -> None:
    table, dataset, _ = loaded
    source = load(read_cases(write_table(tmp_path / "clinic.csv", drawn)), table, dataset)
    reports = measured_with(SYSTEMS["linear-probe"], source, table, dataset)
    for report in reports.values():
        assert "image_only" in report and not {"image_words", "words_alone"} & report.keys()
    assert source.facts()["with_words"] == 0


def test_a_query_without_words_is_its_image_alone_for_the_probe(
    loaded: tuple[CaseTable, Any, Source],
) -> None:
    table, dataset, _ = loaded
    features = features_of(dataset, table)
    features.words[50] = 0
    everything = np.arange(60)
    parts = Split(everything[:50], everything[:0], everything[50:])
    scores = SYSTEMS["linear-probe"].fit(features, parts, TrainConfig())(everything)
    assert np.array_equal(scores["image_words"][0], scores["image_only"][0])
    assert not np.array_equal(scores["image_words"][1], scores["image_only"][1])


# -- killed, and called again --


def test_what_is_done_is_not_done_again_and_a_changed_source_is(
    measured: Path,
    cross: Cross,
    clinic: Path,
    drawn: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = shutil.copytree(measured, tmp_path / "results")
    with monkeypatch.context() as patch:
        patch.setattr(crossval, "_open", None)
        call_train(cross(out, *PROBE, "--external", str(clinic)))
    for name in ("linear-probe.json", "linear-probe.md", "skinret.md", "README.md"):
        assert (out / name).read_bytes() == (measured / name).read_bytes()
    folds = [out / ".work" / "linear-probe" / f"seed0-fold{n}" / "run.json" for n in (0, 1)]
    written = [path.stat().st_mtime_ns for path in folds]
    changed = write_table(tmp_path / "clinic.csv", drawn[:20], "streaks")
    call_train(cross(out, *PROBE, "--external", str(changed)))
    assert [path.stat().st_mtime_ns for path in folds] == written
    assert read_json(out / "linear-probe.json")["external"]["clinic"]["lesions"] == 9


# -- sources that cannot be used --


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (
            lambda cases: [replace(c, group="x") for c in cases],
            "external-groups",
            ["bkl, mel, nevus", "x 24"],
        ),
        (
            lambda cases: [*cases[:-1], replace(cases[-1], attributes={"streaks": "1"})],
            "checklist-value",
            ["streaks '1'", "clinic/24"],
        ),
    ],
)
def test_a_source_that_cannot_be_used_is_named(
    change: Callable[[list[Case]], list[Case]],
    code: str,
    named: list[str],
    loaded: tuple[CaseTable, Any, Source],
    clinic: Path,
) -> None:
    table, dataset, _ = loaded
    with refusal_of(code, *named, kind=InputError):
        load(CaseTable(change(read_cases(clinic).cases), []), table, dataset)


def test_a_picture_of_the_training_data_is_refused(
    loaded: tuple[CaseTable, Any, Source], clinic: Path
) -> None:
    table, dataset, _ = loaded
    found = read_cases(clinic).cases
    found[-1] = replace(found[-1], image=table.cases[6].image)
    with refusal_of("external-seen", "clinic/24 is case 7", kind=InputError):
        load(CaseTable(found, []), table, dataset)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--external", "a.csv"], "--external: only for a cross-validation"),
        (
            ["--folds", "2", "--external", "a.csv", "--external-images", "x", "--external-images", "y"],
            "one for each --external",
        ),
        (["--folds", "2", "--external-images", "x"], "one for each --external"),
    ],
)
def test_options_of_sources_that_do_not_go_together_are_a_usage_error(
    more: list[str], said: str, tmp_path: Path
) -> None:
    assert said in call_train([str(tmp_path), "--out", str(tmp_path / "out"), *more], 2).output


def test_two_sources_of_one_name_are_refused(cross: Cross, clinic: Path, tmp_path: Path) -> None:
    refused = call_train(
        cross(tmp_path / "out", *PROBE, "--external", str(clinic), "--external", str(clinic)), 1
    ).output
    assert "two external sources have the name clinic" in refused and "rename one" in refused
    assert not (tmp_path / "out").exists()


# -- the origin of the backbone --


@pytest.fixture
def adapted(weights: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a backbone which was adapted on pictures."""

    def make(*images: Any) -> Path:
        folder = shutil.copytree(weights / "swin", tmp_path / "adapted")
        record = {"data": {"sha256": "a" * 64, "pictures": 12_345}}
        (folder / "adaptation.json").write_text(json.dumps(record))
        hashes = [pixel_sha256(decode(image)) for image in images]
        (folder / "adaptation-pictures.txt").write_text("\n".join([*hashes, "b" * 64]) + "\n")
        return folder

    return make


def test_results_of_an_adapted_backbone_are_in_a_table_of_their_own(
    measured: Path, cross: Cross, adapted: Callable[..., Path], tmp_path: Path
) -> None:
    out = shutil.copytree(measured, tmp_path / "results")
    name = ["--experiment", "adapted probe"]
    call_train(cross(out, *PROBE, *name, "--vision", str(adapted())))
    result = read_json(out / "adapted probe.json")
    assert result["adaptation"] == {"pictures": 12_345, "sha256": "a" * 64}
    alone, other = (out / "README.md").read_text("utf-8").split("## With other dermoscopy\n")
    assert "## This data alone\n" in alone and "| adapted probe" not in alone
    assert "| adapted probe" in other and "| linear-probe " not in other.replace("| linear-probe |", "")
    assert "adapted to 12,345 other pictures (data aaaaaaaaaaaa)" in (out / "adapted probe.md").read_text()
    assert "Against adapted probe" not in (out / "skinret.md").read_text()


def test_a_picture_that_the_backbone_was_adapted_on_is_refused(
    cross: Cross,
    adapted: Callable[..., Path],
    drawn: list[Case],
    cases: list[Case],
    clinic: Path,
    tmp_path: Path,
) -> None:
    vision = adapted(drawn[5].image)
    out = tmp_path / "out"
    refused = call_train(cross(out, *PROBE, "--vision", str(vision), "--external", str(clinic)), 1).output
    assert "1 of them: clinic/6" in refused and "[adaptation-seen]" in refused
    shutil.rmtree(vision)
    refused = call_train(cross(out, *PROBE, "--vision", str(adapted(cases[3].image))), 1).output
    assert "pictures of the data" in refused and "1 of them: 4" in refused
    assert not out.exists()


@pytest.mark.parametrize("missing", ["adaptation-pictures.txt", "sha256"])
def test_an_adaptation_that_does_not_say_what_was_seen_is_refused(
    missing: str, adapted: Callable[..., Path]
) -> None:
    vision = adapted()
    if missing == "sha256":
        (vision / "adaptation.json").write_text('{"data": {"pictures": 1}}')
    else:
        (vision / missing).unlink()
    with refusal_of("adaptation-record", missing, kind=InputError):
        read_adaptation(str(vision))


def test_a_hub_name_has_no_adaptation() -> None:
    assert read_adaptation("microsoft/swin-tiny-patch4-window7-224") is None


# -- beside a baseline --


def result_of(method: str, values: Sequence[float], **facts: Any) -> dict[str, Any]:
    """Results of two folds of two seeds, with one figure in two archives."""
    runs = []
    for n, value in enumerate(values):
        figures = {"mAP": value, "Acc@1": 50.0, "queries": 9, "by_group": {}, "balanced": {"mAP": value / 2}}
        archives = {
            name: {"image_only": figures, "queries": 9} for name in ("training_folds", "held_out_fold")
        }
        runs.append({"seed": n // 2, "fold": n % 2, "archives": archives})
    plain = {"data_sha256": "d", "options": {"vision": "swin"}, "protocol": {"folds": 2}, "method": method}
    return plain | {"runs": runs} | facts


def test_a_difference_is_that_of_the_same_folds_with_the_error_over_folds() -> None:
    model = result_of("skinret", [80.0, 84.0, 81.0, 81.0])
    probe = result_of("linear-probe", [79.0, 80.0, 83.0, 77.0])
    told = compare(model, probe, "held_out_fold", "image_only")
    assert told["mAP"]["runs"] == [1.0, 4.0, -2.0, 4.0] and told["mAP"]["mean"] == 1.75
    # The squares of the folds' std are 4.5 and 18; the mean's error divides by the root of two folds.
    assert told["mAP"]["standard_error"] == pytest.approx((22.5 / 2) ** 0.5 / 2**0.5, abs=1e-3)
    assert told["balanced mAP"]["mean"] == 0.875 and told["Acc@1"]["mean"] == 0
    assert "shared@5" not in told


@pytest.mark.parametrize(
    ("facts", "same"),
    [
        ({}, True),
        ({"method": "late-fusion"}, True),
        ({"method": "skinret"}, False),
        ({"data_sha256": "e"}, False),
        ({"options": {"vision": "resnet"}}, False),
        ({"adaptation": {"pictures": 1, "sha256": "f"}}, False),
    ],
)
def test_a_baseline_has_the_same_data_folds_seeds_and_backbone(facts: dict[str, Any], same: bool) -> None:
    model = result_of("skinret", [1.0, 2.0])
    assert is_baseline_of(result_of("linear-probe", [1.0, 2.0]) | facts, model) == same
    assert not is_baseline_of(result_of("linear-probe", [1.0, 2.0, 3.0, 4.0]), model)


def test_the_page_of_the_model_shows_in_bold_where_it_is_behind(measured: Path) -> None:
    page = (measured / "skinret.md").read_text("utf-8")  # the probe was measured after the model
    section = page.split("## Against linear-probe\n")[1].split("\n## ")[0]
    model, probe = (read_json(measured / f"{row}.json") for row in ("skinret", "linear-probe"))
    assert section.count("| balanced mAP ") == section.count("| shared@5 ") == 2 * 2
    seen = 0
    for archive in ("training_folds", "held_out_fold"):
        for kind in ("image_words", "image_only"):
            for difference in compare(model, probe, archive, kind).values():
                seen += sum(d < 0 for d in difference["runs"]) + (difference["mean"] < 0)
    assert seen and section.count("**") == 2 * seen + 2  # and the word bold
    assert "Against" not in (measured / "linear-probe.md").read_text("utf-8")


def test_results_of_an_earlier_version_have_no_sources(measured: Path) -> None:
    then = read_json(measured / "linear-probe.json")
    for name in ("external", "adaptation"):
        del then[name]
    assert "External" not in markdown(then) + overview([then]).split("\n- ")[0]
