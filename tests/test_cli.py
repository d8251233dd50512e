"""The command line: help everywhere, data on stdout, words on stderr, exit codes as stated."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from skinret_export import demo
from skinret_export.cli import main as export_main
from skinret_infer import Case
from skinret_infer.cli import main
from skinret_training.cli import main as train_main

ROOT = Path(__file__).parent.parent
COMMANDS = ["demo", "doctor", "evaluate", "index", "query"]


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
    assert 0 <= report["image_alone"]["mAP"] <= 100
    assert "Acc@10" in run("evaluate", bundle, archive, data, "--ids", ids).stdout

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
