"""The command line: every command has help, data goes to stdout, messages to stderr; exit codes."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from skinret_export import demo
from skinret_export.cli import main as export_main
from skinret_infer import Case, Searcher, doctor
from skinret_infer.archive import database
from skinret_infer.archive.filters import Range
from skinret_infer.cli.archive import archive as archive_group
from skinret_infer.cli.audit import audit as audit_group
from skinret_infer.cli.bundle import bundle as bundle_group
from skinret_infer.cli.engines import engines as engines_group
from skinret_infer.cli.main import _parse_range, main
from skinret_infer.engines import nvidia
from skinret_infer.engines.registry import RUNTIMES
from skinret_training.adaptation.average import main as average_main
from skinret_training.adaptation.cli import main as adapt_main
from skinret_training.cli import main as train_main

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text("utf-8")
README_LINES = re.findall("^skinret (?:index|query|doctor) .*$", README, re.MULTILINE)
COMMANDS = ["demo", "doctor", "evaluate", "index", "query", "validate-precision"]
GROUPS = {"archive": archive_group, "audit": audit_group, "bundle": bundle_group, "engines": engines_group}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_every_command_has_help_and_is_documented() -> None:
    documented = (ROOT / "docs/reference/cli.md").read_text("utf-8")
    listed = run("-h").stdout
    for command in (*COMMANDS, *GROUPS):
        assert command in listed
        result = run(command, "-h")
        assert result.exit_code == 0 and "Usage:" in result.stdout
        assert f"## skinret {command}\n" in documented
    for name, group in GROUPS.items():
        listed = run(name, "-h").stdout
        for command in group.commands:
            assert command in listed
            result = run(name, command, "-h")
            assert result.exit_code == 0 and "Usage:" in result.stdout
            assert f"## skinret {name} {command}\n" in documented
    for other, name in (
        (adapt_main, "skinret-adapt"),
        (average_main, "skinret-average"),
        (train_main, "skinret-train"),
        (export_main, "skinret-export"),
    ):
        assert "Usage:" in CliRunner().invoke(other, ["-h"]).stdout
        assert f"## {name}\n" in documented


def test_every_option_has_help() -> None:
    commands = [main.get_command(None, name) for name in COMMANDS]
    grouped = [command for group in GROUPS.values() for command in group.commands.values()]
    for command in (*commands, *grouped, adapt_main, train_main, export_main):
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or parameter.help, (command.name, parameter.name)


def test_index_query_evaluate_and_doctor_work_together(
    bundle: Path, data: Path, cases: list[Case], tmp_path: Path
) -> None:
    archive, ids = tmp_path / "cases.skinret", tmp_path / "ids.txt"
    ids.write_text("\n".join(case.case_id for case in cases[:30]))
    first = run("index", bundle, archive, data, "--ids", ids, "--json")
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout) | {"added": 30} == {
        "added": 30,
        "failed": {},
        "replaced": [],
        "unchanged": [],
        "warnings": {},
        "cases": 30,
    }
    assert "30 there already" in run("index", bundle, archive, data, "--ids", ids).stderr

    image = cases[40].image
    found = run("query", bundle, archive, "--image", image, "--text", "irregular streaks", "-k", 3, "--json")
    assert [hit["rank"] for hit in json.loads(found.stdout)["hits"]] == [1, 2, 3]
    filtered = run(
        "query", bundle, archive, "--image", image, "--where", "group=mel", "--where", "group=bkl", "--json"
    )
    assert {hit["group"] for hit in json.loads(filtered.stdout)["hits"]} <= {"mel", "bkl"}
    picture = tmp_path / "hits.png"
    shown = run("query", bundle, archive, "--image", image, "--figure", picture, "--images", data / "images")
    assert shown.exit_code == 0 and "rank" in shown.stdout
    page = tmp_path / "hits.html"
    shown = run(
        "query", bundle, archive, "--image", image, "--report", page, "-k", 5, "--images", data / "images"
    )
    assert shown.exit_code == 0 and f"{page} written" in shown.stderr and "rank" in shown.stdout
    assert page.read_text("utf-8").count('<article class="hit"') == 5 and "No picture" not in page.read_text()
    assert "lacks" not in shown.stderr
    shown = run("query", bundle, archive, "--image", image, "--report", page, "-k", 5, "--images", tmp_path)
    assert shown.exit_code == 0 and "the page lacks the pictures of 5 cases" in shown.stderr
    assert "does not exist [image-missing]; name their folder with --images" in shown.stderr
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 1000

    ids.write_text("\n".join(case.case_id for case in cases[30:42]))
    report = json.loads(run("evaluate", bundle, archive, data, "--ids", ids, "--json").stdout)
    assert report["queries"] == report["image_words"]["queries"] == 12
    groups = {case.group for case in cases[30:42]}
    for kind in ("image_words", "image_only"):
        figures = report[kind]
        assert figures["by_group"].keys() == groups
        for row in (figures, figures["balanced"], *figures["by_group"].values()):
            assert all(
                0 <= row[name] <= 100 for name in ("mAP", "Acc@1", "Acc@2", "Acc@4", "Acc@5", "Acc@10")
            )
            assert 0 < row["nDCG@10"] <= 100 and 0 <= row["shared@5"] <= 7
        assert figures["beyond_group"].keys() == {"nDCG@10", "shared@5"}
        assert figures["beyond_group"]["shared@5"]["measured"] == figures["shared@5"]
    shown = run("evaluate", bundle, archive, data, "--ids", ids).stdout
    assert all(name in shown for name in ("Acc@10", "nDCG@10", "shared@5", "balanced"))
    assert shown.count("by chance within the groups") == 3

    doctor = run("doctor", bundle, "--json")
    assert doctor.exit_code == 0
    assert json.loads(doctor.stdout)["bundle"]["query_ms"] > 0
    assert "healthy" in run("doctor").stdout


def test_doctor_finds_a_damaged_bundle(bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    with (damaged / "composer.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\x00\xff")
    result = run("doctor", damaged)
    assert result.exit_code == 4
    assert "composer.onnx" in result.stdout and "NOT healthy" in result.stdout


def test_doctor_reports_the_machine_and_the_choice_of_auto(bundle: Path) -> None:
    report = json.loads(run("doctor", bundle, "--json").stdout)
    assert report["healthy"] is True
    assert 1 <= report["cpu"]["usable"] <= report["cpu"]["cores"]
    assert report["cpu"]["flags"] is None or set(report["cpu"]["flags"]) == set(doctor.CPU_FLAGS)
    assert list(report["runtimes"]) == list(RUNTIMES)
    for state in report["runtimes"].values():
        assert state["runs"] is (state["reason"] is None) and (state["runs"] is False or state["cure"] == "")
    assert report["auto"] == next(name for name, state in report["runtimes"].items() if state["runs"])
    assert report["cache"] == {"folder": os.environ["SKINRET_CACHE"], "fault": ""}
    found = report["bundle"]
    assert found["may_run"][0] == f"{found['runtime']}/{found['precision']}" == f"{report['auto']}/fp32"
    assert found["hashes"] == "all right" and found["open_ms"] > 0
    assert all("not measured" in check["queries"] for check in found["precision_checks"].values())
    output = run("doctor", bundle).stdout
    assert f"auto takes {found['runtime']} in fp32" in output and output.splitlines()[-1] == "healthy"


def test_doctor_reports_the_precision_check_with_its_figures(bundle: Path, tmp_path: Path) -> None:
    copy, row = tmp_path / "bundle", {"score_regret": 2e-5, "top10_overlap": 0.91, "top1_match": 0.98}
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    record = {
        "passed": False, "faults": ["too few of the hits are the same"], "archive_passed": False,
        "archive_faults": ["too few of the hits are the same"], "queries": 888, "source": "cases of A",
        "date": "2026-11-22", "rows": {"image_words, archive in fp32": row | {"mAP_change": -0.3}},
    }  # fmt: skip
    manifest["precision_checks"] = {
        "openvino/bf16": record,
        "onnxruntime-cuda/fp16": "nonsense",
        "x": {"rows": 3},
    }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = run("doctor", copy)
    assert result.exit_code == 0, result.stdout
    assert "openvino/bf16: refused for queries" in result.stdout and "cases of A" in result.stdout
    assert "top 10 overlap 0.910" in result.stdout and "mAP change -0.30" in result.stdout
    assert "fault: too few of the hits" in result.stdout


def test_doctor_names_the_cure_where_nothing_runs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKINRET_CACHE", str(tmp_path / "file" / "cache"))
    result = run("doctor", bundle)
    assert result.exit_code == 4
    assert 'pip install "skinret-infer[cpu]"' in result.stdout and "NOT healthy" in result.stdout
    assert "cannot be written" in result.stdout
    report = json.loads(run("doctor", bundle, "--json").stdout)
    assert report["auto"] is None and report["bundle"]["code"] == "runtime-unavailable"


class Driver:
    """The CUDA driver of a machine with two cards, or one that fails."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.fails:
                return 100
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"no CUDA-capable device is detected"
            if name == "cuDriverGetVersion":
                arguments[0]._obj.value = 13010
            if name == "cuDeviceGetCount":
                arguments[0]._obj.value = 2
            if name == "cuDeviceGet":
                arguments[0]._obj.value = arguments[1]
            if name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA RTX A4000"
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 6}[arguments[1]]
            return 0

        return call


def test_doctor_asks_the_driver_for_its_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: Driver())
    gpu = doctor.examine()["gpu"]
    card = {"name": "NVIDIA RTX A4000", "compute_capability": "8.6"}
    assert gpu["devices"] == [card, card] and (gpu["cuda"], gpu["fault"]) == ("13.1", "")
    assert "NVIDIA RTX A4000, compute capability 8.6" in run("doctor").stdout
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: Driver(fails="cuInit"))
    gpu = doctor.examine()["gpu"]
    assert gpu["devices"] == [] and "no CUDA-capable device" in gpu["fault"]
    assert run("doctor").exit_code == 0

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(nvidia.ctypes, "CDLL", absent)
    assert "GPU: no NVIDIA driver found" in run("doctor").stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["query"], 2),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "-k", "0"], 2),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--where", "sex"], 2),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--where", "n=1..2", "--where", "n=3"], 2),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--where", "n=1..", "--where", "n=..2"], 2),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--where", "sex=1..2"], 1),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--level-weight", "low"], 2),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--level-weight", "low=much"], 2),
        (
            [
                "query",
                "{bundle}",
                "{archive}",
                "--image",
                "{image}",
                "--level-weight",
                "low=1",
                "--level-weight",
                "low=2",
            ],
            2,
        ),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--level-weight", "top=1"], 1),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--level-weight", "low=-1"], 1),
        (["archive", "check"], 2),
        (["archive", "check", "none.skinret"], 1),
        (["archive", "check", "{image}", "--json"], 1),
        (["archive", "backup", "none.skinret", "copy.skinret"], 1),
        (["archive", "backup", "{archive}", "{image}"], 1),
        (["archive", "compact", "none.skinret"], 1),
        (["archive", "export", "none.skinret", "out"], 1),
        (["archive", "export", "{archive}", "{bundle}"], 1),
        (["archive", "import", "new.skinret", "out"], 1),
        (["archive", "import", "new.skinret", "{bundle}"], 1),
        (["query", "{bundle}", "{archive}", "--image", "none.jpg"], 1),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--where", "colour=red"], 1),
        (["query", "{bundle}", "none.skinret", "--image", "{image}"], 1),
        (["query", "nothing", "{archive}", "--image", "{image}"], 1),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--runtime", "tensorrt"], 4),
        (["index", "{bundle}", "new.skinret", "none.csv"], 1),
        (["evaluate", "{bundle}", "{archive}", "none.csv"], 1),
    ],
)
def test_failures_have_their_exit_code_and_a_message_and_no_traceback(
    arguments: list[str],
    code: int,
    bundle: Path,
    archive: Path,
    cases: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"bundle": bundle, "archive": archive, "image": cases[0].image}
    result = run(*[argument.format(**names) for argument in arguments])
    assert result.exit_code == code
    assert not result.stdout
    assert "rror" in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_commands_for_an_archive_need_no_bundle(archive: Path, tmp_path: Path) -> None:
    copy, out, new = tmp_path / "copy.skinret", tmp_path / "out", tmp_path / "new.skinret"
    done = run("archive", "backup", archive, copy)
    assert done.exit_code == 0 and not done.stdout and f"{copy} written" in done.stderr
    checked = run("archive", "check", copy, "--json")
    assert checked.exit_code == 0 and "is whole; it holds 40 cases of tiny 1" in checked.stderr
    report = json.loads(checked.stdout)
    assert (report["cases"], report["faults"], report["repaired"]) == (40, [], [])
    assert (report["archive"], report["model"], len(report["fingerprint"])) == (str(copy), "tiny 1", 64)
    done = run("archive", "compact", copy)
    assert done.exit_code == 0 and "MB now" in done.stderr and not done.stdout
    done = run("archive", "export", copy, out)
    assert done.exit_code == 0 and f"40 cases written to {out}" in done.stderr and not done.stdout
    assert {file.name for file in out.iterdir()} == {"cases.csv", "descriptors.npy", "archive.json"}
    done = run("archive", "import", new, out, "--json")
    assert done.exit_code == 0 and "40 cases added" in done.stderr
    report = json.loads(done.stdout)
    assert (len(report["added"]), report["cases"], report["replaced"], report["unchanged"]) == (
        40,
        40,
        [],
        [],
    )
    again = run("archive", "import", new, out)
    assert again.exit_code == 0 and "40 there already" in again.stderr and not again.stdout


def test_an_import_refuses_skips_or_replaces_cases_with_other_facts(
    bundle: Path, cases: list[Case], archive: Path, tmp_path: Path
) -> None:
    out, new = tmp_path / "out", tmp_path / "new.skinret"
    assert run("archive", "export", archive, out).exit_code == 0
    with Searcher(bundle, new) as searcher:
        searcher.add([Case(cases[0].case_id, cases[0].image, diagnosis="another")])
    refused = run("archive", "import", new, out)
    assert refused.exit_code == 1 and "--replace" in refused.stderr and "case-duplicate" in refused.stderr
    assert (
        "39 cases added, 0 replaced, 1 there already" in run("archive", "import", new, out, "--skip").stderr
    )
    assert "0 cases added, 1 replaced" in run("archive", "import", new, out, "--replace").stderr


def test_a_check_finds_faults_and_repairs_counts(archive: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.skinret"

    def damage(statement: str) -> None:
        shutil.copy(archive, damaged)
        with contextlib.closing(sqlite3.connect(damaged)) as db, db:
            db.execute(statement)

    damage("UPDATE segments SET cases = cases + 1")
    result = run("archive", "check", damaged)
    assert (
        result.exit_code == 1 and "fault: 40 cases, but 41" in result.stderr and "--repair" in result.stderr
    )
    assert not result.stdout
    result = run("archive", "check", damaged, "--repair", "--json")
    assert result.exit_code == 0 and "repaired: 40 cases, but 41" in result.stderr
    report = json.loads(result.stdout)
    assert report["cases"] == 40 and not report["faults"] and len(report["repaired"]) == 1
    assert run("archive", "check", damaged).exit_code == 0

    damage("UPDATE cases SET attributes = '[]'")
    for option in ((), ("--repair",)):
        result = run("archive", "check", damaged, "--json", *option)
        report = json.loads(result.stdout)
        assert result.exit_code == 1 and len(report["faults"]) == 1 and not report["repaired"]
        assert "from a backup" in result.stderr and report["cases"] is None


def test_a_repair_that_fails_says_why(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "damaged.skinret"
    shutil.copy(archive, damaged)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with contextlib.closing(sqlite3.connect(damaged, isolation_level=None)) as db:
        db.execute("UPDATE segments SET cases = cases + 1")
        db.execute("BEGIN IMMEDIATE")
        result = run("archive", "check", damaged, "--repair", "--json")
    assert result.exit_code == 1 and "archive-locked" in result.stderr and not result.stdout


def test_a_query_takes_ranges_and_the_weights_of_levels(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    archive = tmp_path / "cases.skinret"
    with Searcher(bundle, archive) as searcher:
        searcher.add(
            [
                Case(f"{n}", cases[n].image, diagnosis="x", attributes={"age": n, "span": f"{n}..b"})
                for n in range(8)
            ]
        )

    def found(*options: object) -> set[str]:
        result = run("query", bundle, archive, "--image", cases[0].image, "-k", 10, "--json", *options)
        assert result.exit_code == 0, result.stderr
        return {hit["case_id"] for hit in json.loads(result.stdout)["hits"]}

    assert found("--where", "age=2..4") == {"2", "3", "4"}
    assert found("--where", "age=5.5..") == {"6", "7"} == found("--where", "age=+5.5..1e3")
    assert found("--where", "age=..1", "--where", "diagnosis=x") == {"0", "1"}
    assert found("--where", "age=-3..-1") == set()
    assert found("--where", "span=3..b", "--where", "span=4..b") == {"3", "4"}
    assert found("--where", "age=3", "--where", "age=4") == {"3", "4"}
    command = ["query", bundle, archive, "--image", cases[0].image, "--json"]
    result = run(*command, "--level-weight", "low=2", "--level-weight", "high=0.5")
    assert json.loads(result.stdout)["levels"] == {"low": 2, "mid": 1, "high": 0.5}
    assert json.loads(run(*command).stdout)["levels"] == {"low": 1, "mid": 1, "high": 1}


@pytest.mark.parametrize(
    ("value", "ends"),
    [
        ("1..2", (1, 2)),
        ("-1.5..+2e3", (-1.5, 2000)),
        ("..2", (None, 2)),
        ("1..", (1, None)),
        ("..", None),
        ("1", None),
        ("1.5", None),
        ("1...2", None),
        ("1..2..3", None),
        ("a..b", None),
        ("1..b", None),
        ("nan..", None),
        ("..inf", None),
        ("1..1e999", None),
        ("1_0..2", None),
        ("١..٢", None),
        (" 1..2", None),
        ("1..2\n", None),
    ],
)
def test_only_numbers_make_a_range(value: str, ends: tuple[float, float] | None) -> None:
    assert _parse_range(value) == (ends and Range(*ends))


def test_doctor_examines_an_archive_alone_and_beside_its_bundle(
    bundle: Path, archive: Path, tmp_path: Path
) -> None:
    report = json.loads(run("doctor", archive, "--json").stdout)
    found = report["archive"]
    assert report["healthy"] is True and "bundle" not in report
    assert (found["path"], found["model"], found["schema"]) == (str(archive), "tiny 1", 1)
    assert (found["cases"], found["faults"], found["belongs"]) == (40, [], None)
    assert [found[f"segments_{state}"] for state in ("right", "stale", "missing")] == [0, 0, 0]
    assert found["bytes"] == archive.stat().st_size and found["index_bytes"] == 0
    for both in ((bundle, archive), (archive, bundle)):
        report = json.loads(run("doctor", *both, "--json").stdout)
        assert report["healthy"] is True and report["archive"]["belongs"] is True
        assert report["archive"]["fingerprint"] == report["bundle"]["fingerprint"]
    output = run("doctor", archive).stdout
    assert f"archive {archive}:" in output and "40" in output and output.splitlines()[-1] == "healthy"

    other = tmp_path / "other.skinret"
    shutil.copy(archive, other)
    index_folder = tmp_path / "other.skinret.index"
    index_folder.mkdir()
    (index_folder / "old.segment").write_bytes(b"of the past")
    with contextlib.closing(sqlite3.connect(other)) as db, db:
        db.execute("UPDATE meta SET value = 'e' WHERE name = 'fingerprint'")
    report = doctor.examine(None, other)
    assert report["healthy"] and report["archive"]["segments_stale"] == 1
    assert report["archive"]["index_bytes"] == 11
    result = run("doctor", bundle, other)
    assert result.exit_code == 4 and "NOT the bundle's" in result.stdout and "1 stale" in result.stdout


def test_doctor_finds_a_damaged_archive(archive: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.skinret"
    shutil.copy(archive, damaged)
    with contextlib.closing(sqlite3.connect(damaged)) as db, db:
        db.execute("UPDATE segments SET cases = cases + 1")
    result = run("doctor", damaged)
    assert result.exit_code == 4 and "NOT healthy" in result.stdout
    assert "40 cases, but 41" in result.stdout and "skinret archive check" in result.stdout
    assert json.loads(run("doctor", damaged, "--json").stdout)["archive"]["faults"]
    damaged.write_text("years of work")
    report = json.loads(run("doctor", damaged, "--json").stdout)
    assert report["healthy"] is False and report["archive"]["code"] == "archive-damaged"
    assert "[archive-damaged]" in run("doctor", damaged).stdout
    report = doctor.examine(None, tmp_path / "none.skinret")
    assert report["healthy"] is False and report["archive"]["code"] == "archive-empty"
    index_folder = tmp_path / "gone.skinret.index"
    index_folder.mkdir()
    (index_folder / "a.segment").symlink_to(tmp_path / "nowhere")  # as if another process had removed it
    report = doctor.examine(None, shutil.copy(archive, tmp_path / "gone.skinret"))
    assert report["healthy"] is True and report["archive"]["index_bytes"] == 0


def test_a_table_with_a_bad_line_adds_nothing(bundle: Path, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    image = next((data / "images").rglob("*.jpg"))
    table.write_text(f"case_id,image,diagnosis\n1,{image.name},nevus\n2,gone.jpg,nevus\n")
    archive = tmp_path / "cases.skinret"
    result = run("index", bundle, archive, table, "--images", image.parent)
    assert result.exit_code == 1 and "line 3: gone.jpg" in result.stderr
    assert not archive.exists()


def test_stdout_is_json_alone_when_run_as_a_program(bundle: Path, archive: Path, cases: list[Case]) -> None:
    command = [
        sys.executable,
        "-m",
        "skinret_infer.cli.main",
        "query",
        bundle,
        archive,
        "--image",
        cases[50].image,
        "--json",
    ]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert len(json.loads(done.stdout)["hits"]) == 10
    assert done.stderr == ""


def test_the_demo_overwrites_only_a_demo(tmp_path: Path) -> None:
    mine = tmp_path / "cases.skinret"
    mine.write_text("years of work")
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 1 and "not a folder of the demo" in result.stderr
    assert mine.read_text() == "years of work" and [p.name for p in tmp_path.iterdir()] == ["cases.skinret"]


@pytest.mark.slow
def test_the_demo_runs_from_training_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CASES", 60)
    monkeypatch.setattr(demo, "export_bundle", partial(demo.export_bundle, check_precision=False))
    result = run("demo", "--out", tmp_path / "demo", "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    assert "image words" in result.stdout and "rank" in result.stdout
    files = {path.name for path in (tmp_path / "demo").iterdir()}
    assert files >= {"bundle", "cases.skinret", "ckpt.pt", "data", "report.html", "results.png"}
    monkeypatch.chdir(tmp_path / "demo")
    for line in README_LINES:
        arguments = shlex.split(line)[1:]
        assert (result := run(*arguments)).exit_code == 0, (line, result.stderr)
    again = run("index", "bundle", "cases.skinret", "CASES.csv", "--images", "images")
    assert "0 cases added, 0 replaced, 48 there already" in again.stderr, again.stderr


# -- streams --


def _odd_archive(bundle: Path, path: Path, image: Path, diagnosis: str) -> Path:
    with Searcher(bundle, path, runtime="onnxruntime-cpu") as searcher:
        searcher.add([Case("1", image, diagnosis=diagnosis)])
    return path


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_every_encoding_of_stdout_prints_every_diagnosis(
    encoding: str, form: list[str], bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    archive = _odd_archive(bundle, tmp_path / "a.skinret", Path(str(cases[0].image)), "Nävus, β type 😀")
    command = [
        str(BIN / "skinret"),
        "query",
        str(bundle),
        str(archive),
        "--image",
        str(cases[0].image),
        *form,
    ]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    if form:
        assert json.loads(done.stdout.decode("utf-8"))["hits"][0]["diagnosis"] == "Nävus, β type 😀"
    else:
        assert "\\u03b2 type" in done.stdout.decode(encoding)


def test_a_diagnosis_cannot_forge_a_row_or_move_the_cursor(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    forged = "nevus\n2     9999  0.9999  melanoma\x1b[2A\u202e"
    archive = _odd_archive(bundle, tmp_path / "a.skinret", Path(str(cases[0].image)), forged)
    done = CliRunner().invoke(
        main,
        ["query", str(bundle), str(archive), "--image", str(cases[0].image), "--runtime", "onnxruntime-cpu"],
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and r"nevus\n2     9999  0.9999  melanoma\x1b[2A\u202e" in lines[1]
    done = CliRunner().invoke(main, ["query", str(bundle), "a\x1b[2J\nb", "--image", "c\nd"])
    assert "\x1b" not in done.stderr and done.stderr.count("\n") == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_stdout_is_an_error(bundle: Path, archive: Path, cases: list[Case]) -> None:
    command = [str(BIN / "skinret"), "query", str(bundle), str(archive), "--image", str(cases[0].image)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the output cannot be written" in done.stderr


def test_a_reader_that_closes_stdout_is_no_error(bundle: Path, archive: Path, cases: list[Case]) -> None:
    command = [str(BIN / "skinret"), "query", str(bundle), str(archive), "--image", str(cases[0].image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_where_on_the_command_line_finds_numbers_and_texts_but_no_other_id(
    bundle: Path, cases: list[Case], tmp_path: Path
) -> None:
    archive = tmp_path / "a.skinret"
    with Searcher(bundle, archive, runtime="onnxruntime-cpu") as searcher:
        values: list[str | int] = ["00123", "123", 123]
        searcher.add(
            [
                Case(str(n), c.image, attributes={"patient": v})
                for n, (c, v) in enumerate(zip(cases, values, strict=False))
            ]
        )
    for value, expected in (("00123", {"0"}), ("123", {"1", "2"}), ("100..200", {"1", "2"})):
        command = [
            "query",
            str(bundle),
            str(archive),
            "--image",
            str(cases[0].image),
            "--where",
            f"patient={value}",
            "--json",
        ]
        done = CliRunner().invoke(main, [*command, "--runtime", "onnxruntime-cpu"])
        assert {hit["case_id"] for hit in json.loads(done.stdout)["hits"]} == expected


def test_no_group_or_log_forges_a_line_of_a_report(bundle: Path, cases: list[Case], tmp_path: Path) -> None:
    forged = "nevus\n  mel (9)   100.0\x1b[2A"
    table = tmp_path / "CASES.csv"
    shutil.copy(str(cases[0].image), tmp_path / "a.jpg")
    shutil.copy(str(cases[1].image), tmp_path / "b.jpg")
    table.write_text(f'case_id,image,diagnosis\n1,a.jpg,"{forged}"\n2,b.jpg,"{forged}"\n')
    archive = tmp_path / "a.skinret"
    assert run("index", bundle, archive, table, "--runtime", "onnxruntime-cpu").exit_code == 0
    output = run("evaluate", bundle, archive, table, "--runtime", "onnxruntime-cpu").stdout
    assert r"nevus\n  mel (9)   100.0\x1b[2A (2)" in output and "\x1b" not in output
    log = tmp_path / "a\nb\x1b.jsonl"
    log.write_text("{}\n")
    output = run("audit", "verify", log).stdout
    assert "\x1b" not in output and len(output.splitlines()) == 3 + output.count("fault: ")


def test_info_and_list_show_an_archive_and_remove_deletes_cases(archive: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(archive, tmp_path / "cases.skinret"))
    report = json.loads(run("archive", "info", copy, "--json").stdout)
    assert (report["cases"], report["model"], report["schema"]) == (40, "tiny 1", 1) and len(
        report["state"]
    ) == 64
    assert "cases       40" in run("archive", "info", copy).stdout
    ids = run("archive", "list", copy).stdout.split()
    assert len(ids) == 40 and ids == json.loads(run("archive", "list", copy, "--json").stdout)
    done = run("archive", "remove", copy, ids[3], ids[7])
    assert done.exit_code == 0 and "2 cases removed" in done.stderr and "holds 38" in done.stderr
    again = run("archive", "remove", copy, ids[3], ids[9], "--json")
    assert again.exit_code == 1 and ids[3] in again.stderr
    assert json.loads(again.stdout) == {"removed": 1, "unknown": [ids[3]], "cases": 37}
    for command in (["info"], ["list"], ["remove", "1"]):
        refused = run("archive", command[0], tmp_path / "none.skinret", *command[1:])
        assert refused.exit_code == 1 and "archive-empty" in refused.stderr
