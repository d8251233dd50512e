"""The command line: help everywhere, data on stdout, words on stderr, exit codes as stated."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from skinret_export import demo
from skinret_export.cli import main as export_main
from skinret_infer import Case, doctor
from skinret_infer.cli import main
from skinret_infer.engines import RUNTIMES
from skinret_training.cli import main as train_main

ROOT = Path(__file__).parent.parent
COMMANDS = ["demo", "doctor", "evaluate", "gate", "index", "query"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_every_command_has_help_and_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    listed = run("-h").stdout
    for command in COMMANDS:
        assert command in listed
        result = run(command, "-h")
        assert result.exit_code == 0 and "Usage:" in result.stdout
        assert f"skinret {command}" in readme or f"make {command}" in readme
    for other, name in ((train_main, "skinret-train"), (export_main, "skinret-export")):
        assert "Usage:" in CliRunner().invoke(other, ["-h"]).stdout
        assert name in readme


def test_every_option_says_what_it_does() -> None:
    commands = [main.get_command(None, name) for name in COMMANDS]
    for command in (*commands, train_main, export_main):
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
        "replaced": [],
        "unchanged": [],
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
    shown = run("query", bundle, archive, "--image", image, "--picture", picture, "--images", data / "images")
    assert shown.exit_code == 0 and "rank" in shown.stdout
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 1000

    ids.write_text("\n".join(case.case_id for case in cases[30:42]))
    report = json.loads(run("evaluate", bundle, archive, data, "--ids", ids, "--json").stdout)
    assert report["queries"] == report["image_words"]["queries"] == 12
    groups = {case.group for case in cases[30:42]}
    for kind in ("image_words", "image_alone"):
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
    assert shown.count("by chance within the groups") == 2

    doctor = run("doctor", bundle, "--json")
    assert doctor.exit_code == 0
    assert json.loads(doctor.stdout)["bundle"]["query_ms"] > 0
    assert "healthy" in run("doctor").stdout


def test_doctor_finds_what_ails_a_bundle(bundle: Path, tmp_path: Path) -> None:
    sick = tmp_path / "bundle"
    shutil.copytree(bundle, sick)
    with (sick / "composer.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\x00\xff")
    result = run("doctor", sick)
    assert result.exit_code == 4
    assert "composer.onnx" in result.stdout and "NOT healthy" in result.stdout


def test_doctor_says_what_a_machine_has_and_what_auto_takes(bundle: Path) -> None:
    report = json.loads(run("doctor", bundle, "--json").stdout)
    assert report["healthy"] is True
    assert 1 <= report["cpu"]["usable"] <= report["cpu"]["cores"]
    assert report["cpu"]["flags"] is None or set(report["cpu"]["flags"]) == set(doctor.CPU_FLAGS)
    assert list(report["runtimes"]) == list(RUNTIMES)
    for state in report["runtimes"].values():
        assert state["runs"] is (state["reason"] == "") and (state["runs"] is False or state["cure"] == "")
    assert report["auto"] == next(name for name, state in report["runtimes"].items() if state["runs"])
    assert report["cache"] == {"folder": os.environ["SKINRET_CACHE"], "fault": ""}
    found = report["bundle"]
    assert found["may_run"][0] == f"{found['runtime']}/{found['precision']}" == f"{report['auto']}/fp32"
    assert found["hashes"] == "all right" and found["open_ms"] > 0
    assert all("not measured" in said["queries"] for said in found["gates"].values())
    said = run("doctor", bundle).stdout
    assert f"auto takes {found['runtime']} in fp32" in said and said.splitlines()[-1] == "healthy"


def test_doctor_tells_the_gates_verdict_with_its_figures(bundle: Path, tmp_path: Path) -> None:
    copy, row = tmp_path / "bundle", {"score_lost": 2e-5, "overlap": 0.91, "same_first": 0.98}
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    record = {
        "passed": False, "faults": ["too few of the hits are the same"], "archive_passed": False,
        "archive_faults": ["too few of the hits are the same"], "queries": 888, "source": "cases of A",
        "date": "2026-11-22", "rows": {"image_words, archive in fp32": row | {"mAP_moved": -0.3}},
    }  # fmt: skip
    manifest["gates"] = {"openvino/bf16": record, "onnxruntime-cuda/fp16": "nonsense", "x": {"rows": 3}}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = run("doctor", copy)
    assert result.exit_code == 0, result.stdout
    assert "openvino/bf16: refused for queries" in result.stdout and "cases of A" in result.stdout
    assert "same top 10 0.910" in result.stdout and "mAP moved -0.30" in result.stdout
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
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: Driver())
    gpu = doctor.examine()["gpu"]
    card = {"name": "NVIDIA RTX A4000", "compute_capability": "8.6"}
    assert gpu["devices"] == [card, card] and (gpu["cuda"], gpu["fault"]) == ("13.1", "")
    assert "NVIDIA RTX A4000, compute capability 8.6" in run("doctor").stdout
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: Driver(fails="cuInit"))
    gpu = doctor.examine()["gpu"]
    assert gpu["devices"] == [] and "no CUDA-capable device" in gpu["fault"]
    assert run("doctor").exit_code == 0

    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", absent)
    assert "GPU: no NVIDIA driver found" in run("doctor").stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["query"], 2),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "-k", "0"], 2),
        (["query", "{bundle}", "{archive}", "--image", "{image}", "--where", "sex"], 2),
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
        "skinret_infer.cli",
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
    assert len(json.loads(done.stdout)["hits"]) == 5
    assert done.stderr == ""


def test_the_demo_writes_over_nothing_but_a_demo(tmp_path: Path) -> None:
    mine = tmp_path / "cases.skinret"
    mine.write_text("years of work")
    result = run("demo", "--out", tmp_path)
    assert result.exit_code == 1 and "not a folder of the demo" in result.stderr
    assert mine.read_text() == "years of work" and [p.name for p in tmp_path.iterdir()] == ["cases.skinret"]


@pytest.mark.slow
def test_the_demo_takes_the_whole_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CASES", 60)
    result = run("demo", "--out", tmp_path / "demo", "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    assert "image words" in result.stdout and "rank" in result.stdout
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    assert made >= {"bundle", "cases.skinret", "ckpt.pt", "data", "results.png"}
    assert run("doctor", tmp_path / "demo" / "bundle").exit_code == 0
