"""The documented uses: skinret-export ckpt.pt, Searcher.query(img, text), pytest benchmarks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import take_graphs
from PIL import Image

from skinret_export import cli as export_cli
from skinret_export import export
from skinret_export.cli import main as export_main
from skinret_export.export import export_bundle
from skinret_infer import Case, InputError, Searcher
from skinret_infer.bundle import Bundle
from skinret_infer.cli.main import main as skinret
from skinret_infer.trust import signing
from skinret_training import crossval

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


# -- skinret-export ckpt.pt --


@pytest.mark.slow
def test_skinret_export_takes_a_checkpoint_alone(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint, tmp_path / "ckpt.pt")
    done = subprocess.run(
        ["skinret-export", "ckpt.pt"], cwd=tmp_path, capture_output=True, text=True, env=_path()
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt.pt", "ckpt"}
    assert Bundle.load(tmp_path / "ckpt").manifest.precision_checks  # lower precisions were measured
    for line in ("the bundle is ckpt", "skinret doctor ckpt", "skinret index ckpt cases.skinret CASES.csv"):
        assert line in done.stderr
    code, message = _export(tmp_path / "ckpt.pt")
    assert code == 1 and "[exists]" in message and "--overwrite" in message


def _path() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def _export(*arguments: object) -> "tuple[int, str]":
    done = CliRunner().invoke(export_cli.main, [*map(str, arguments), "--no-check-precision"])
    return done.exit_code, done.stderr


@pytest.mark.parametrize(
    ("name", "bundle"),
    [
        ("a model.pt", "a model"),
        ("läsion.ckpt", "läsion"),
        ("ckpt", "ckpt.bundle"),
        ("m.v1.pt", "m.v1"),
        ("v0.2", "v0.2.bundle"),
    ],
)
def test_the_bundle_lies_beside_the_checkpoint_under_its_name(name: str, bundle: str, tmp_path: Path) -> None:
    assert export_cli._default_out(tmp_path / name) == tmp_path / bundle


def test_only_a_bundle_is_overwritten(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    work, page, with_notes = (tmp_path / name for name in ("work", "page", "with_notes"))
    for folder in (work, page):
        folder.mkdir()
    shutil.copytree(bundle, with_notes)
    for file in (work / "thesis.txt", page / "manifest.json", with_notes / "notes.txt", tmp_path / "file"):
        file.write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in (work, page, with_notes, tmp_path / "file", tmp_path / "link"):
        for more in ([], ["--overwrite"]):
            code, message = _export(checkpoint, "--out", out, *more)
            assert code == 1 and "[exists]" in message and "left as it is" in message
    assert "notes.txt" in _export(checkpoint, "--out", with_notes, "--overwrite")[1]
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_the_target_of_a_link_is_replaced_and_no_other_file_stays(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_graphs(monkeypatch, bundle)
    old, link = tmp_path / "models" / "old", tmp_path / "current"
    shutil.copytree(bundle, old)
    (old / "composer.onnx").write_bytes(b"damaged")
    link.symlink_to(old)
    export_bundle(checkpoint, link, check_precision=False, overwrite=True)
    Bundle.load(old)
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"models", "current"}
    assert [path.name for path in old.parent.iterdir()] == ["old"]


def test_a_bundle_that_appears_during_an_export_stays(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_graphs(monkeypatch, bundle)

    def another(step: str) -> None:
        if step.startswith("parity"):
            shutil.copytree(bundle, tmp_path / "bundle")

    with pytest.raises(InputError, match="exists"):
        export_bundle(checkpoint, tmp_path / "bundle", check_precision=False, notify=another)
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_full_disk_ends_an_export_and_leaves_no_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: object, path: Path) -> None:
        path.symlink_to("/dev/full")
        path.write_bytes(b"x")

    monkeypatch.setattr(export, "write_graph", write)
    code, message = _export(checkpoint, "--out", tmp_path / "bundle")
    assert (
        code == 1 and "[out-path]" in message and "No space left" in message and not list(tmp_path.iterdir())
    )


def test_an_unwritable_output_is_an_error_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in ("/proc/none/bundle", tmp_path / "file" / "bundle", tmp_path / ("x" * 300)):
        code, message = _export(checkpoint, "--out", out)
        assert code == 1 and "[out-path]" in message and "parity" not in message
    for wrong in (tmp_path / "file", tmp_path, tmp_path / "none.pt"):
        assert _export(wrong, "--out", tmp_path / "new" / "bundle")[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (export_main, "BUNDLE", "skinret engines build"),
        (export_main, "BUNDLE --out x", "is a bundle already"),
        (skinret, "engines build BUNDLE", "--runtime"),
        (skinret, "engines build BUNDLE --runtime openvino", "is not one of"),
    ],
)
def test_a_wrong_argument_is_a_usage_error(
    command: click.Command, arguments: str, message: str, bundle: Path, tmp_path: Path
) -> None:
    command_line = [str(bundle) if word == "BUNDLE" else word for word in arguments.split()]
    done = CliRunner().invoke(command, command_line)
    assert done.exit_code == 2 and message in done.stderr and not list(tmp_path.iterdir())


def test_a_cross_validation_builds_no_engines_that_it_does_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(crossval.subprocess, "run", lambda command, **_: commands.append(command) or done)
    crossval._export(tmp_path / "ckpt.pt", tmp_path / "bundle")
    assert export_cli.main.make_context("skinret-export", commands[0][3:]).params["engines"] is False


def test_without_a_card_no_engine_is_built(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKINRET_CACHE", str(tmp_path))
    export_cli._build_engines(bundle, ["fp32"])
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_that_cannot_be_built_are_a_warning(
    precision: str, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The bundle is good all the same, whatever a driver, a missing signature or missing graphs say."""
    monkeypatch.setattr(export_cli.tensorrt, "why_not", lambda _: "")
    monkeypatch.setattr(
        export_cli.tensorrt, "target_here", lambda _: export_cli.tensorrt.Target(capability="8.6")
    )
    if precision == "fp32":
        signing.make_keys(tmp_path / "private.pem", tmp_path / "trusted.pem")
        monkeypatch.setenv(signing.KEY, str(tmp_path / "trusted.pem"))
    monkeypatch.setattr(export_cli.tensorrt, "load", lambda _: None)
    monkeypatch.setenv("SKINRET_CACHE", str(tmp_path))
    export_cli._build_engines(bundle, [precision])
    message = capsys.readouterr().err
    assert "warning: no engines for tensorrt: " in message
    assert ("not signed" if precision == "fp32" else "no fp16 graphs") in message


def test_engines_are_built_if_there_is_a_card(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TensorRT-RTX's own builder builds them; only the card is pretended."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(export_cli.tensorrt, "why_not", lambda name: "" if name == "tensorrt-rtx" else "no")
    card = export_cli.tensorrt.Target(capability="8.6")
    monkeypatch.setattr(export_cli.tensorrt, "target_here", lambda _: card)
    monkeypatch.setenv("SKINRET_CACHE", str(tmp_path))
    export_cli._build_engines(bundle, ["fp32"])
    built = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert len(built) == 4 and all(path.is_file() and path.is_relative_to(tmp_path) for path in built)


# -- Searcher.query(img, text) --


def test_query_takes_an_image_and_words_by_position(bundle: Path, archive: Path, cases: list[Case]) -> None:
    path = Path(str(cases[50].image))
    searcher = Searcher(bundle, archive)
    text = "atypical pigment network, blue-whitish veil"
    first = [hit.case_id for hit in searcher.query(str(path), text)]
    with Image.open(path) as picture, path.open("rb") as file:
        pixels = np.asarray(picture)
        for img in (path, path.read_bytes(), file, picture, pixels):
            assert [hit.case_id for hit in searcher.query(img, text)] == first
    assert len(searcher.query(path)) == len(searcher.query(path, None)) == 10
    searcher.close()


# -- pytest benchmarks --


@pytest.mark.slow
def test_pytest_benchmarks_runs_as_typed(tmp_path: Path) -> None:
    """In the short form, which measures a tiny model with the same code."""
    out = tmp_path / "reports"
    options = f"--out {out} -o cache_dir={tmp_path / 'cache'}"
    environment = {**_path(), "PYTEST_ADDOPTS": options, "SKINRET_BENCHMARK": "short"}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    done = subprocess.run(["pytest", "benchmarks"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    for line in ("beside PyTorch", "faiss", "runs only with --durability", "runs only with --product"):
        assert line in done.stdout
    assert re.search(r"1\d passed, \d+ skipped", done.stdout)
    for name in ("latency", "search"):
        assert {path.suffix for path in out.glob(f"{name}.*")} == {".json", ".md", ".png"}
        for report in (done.stdout, (out / f"{name}.md").read_text(), (out / f"{name}.json").read_text()):
            assert "its figures mean nothing" in report


# -- without an extra --


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("skinret_training", "torch", "train"),
        ("skinret_training", "sklearn", "train"),
        ("skinret_export", "torch", "export"),
        ("skinret_export", "onnxscript", "export"),
        ("skinret_infer", "torch", "export"),
    ],
)
def test_a_command_without_its_extra_names_it(module: str, missing: str, extra: str) -> None:
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_module({module!r}, None, '__main__')"
    )
    arguments = ["demo", "--out", "x"] if module == "skinret_infer" else ["-h"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    assert f'pip install "skinret-infer[{extra}]"' in done.stderr and f"no package {missing}" in done.stderr
    assert "[extra-missing]" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content",
    ["import torch._C_that_is_lost", "raise OSError('libcudart.so.13: cannot open shared object file')"],
)
def test_a_broken_package_is_not_called_missing(content: str, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(content)
    done = _python(tmp_path, "-m", "skinret_training", "-h")
    assert done.returncode == 4 and "[extra-broken]" in done.stderr and "Traceback" not in done.stderr
    assert "no package" not in done.stderr
    assert "torch._C_that_is_lost" in done.stderr or "libcudart.so.13: cannot open" in done.stderr


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("pydicom", "dicom", "decode.decode(bytes(128) + b'DICM' + bytes(9))"),
        ("jinja2", "report", "html._template()"),
        ("cryptography", "sign", "signing.trusted_keys(sys.argv[1])"),
    ],
)
def test_every_extra_of_the_sdk_is_named_with_exit_code_4_and_a_broken_package_with_its_fault(
    package: str, extra: str, call: str, tmp_path: Path
) -> None:
    signing.make_keys(tmp_path / "private.pem", tmp_path / "trusted.pem")
    program = (
        "import sys\nfrom skinret_infer import SkinretError\nfrom skinret_infer.imaging import decode\n"
        "from skinret_infer.report import html\nfrom skinret_infer.trust import signing\n"
        f"def report():\n    try:\n        {call}\n"
        "    except SkinretError as error:\n"
        "        print(error.exit_code, error.code, error.found, error.cure, sep='|')\n"
        f"report()\nsys.modules[{package!r}] = None\nreport()"
    )
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('libhalf.so: not there')")
    done = _python(tmp_path, "-c", program, tmp_path / "trusted.pem")
    broken, missing = (line.split("|") for line in done.stdout.splitlines())
    assert broken[:3] == ["4", "extra-broken", "ImportError: libhalf.so: not there"] and "again" in broken[3]
    assert missing == ["4", "extra-missing", f"no package {package}", f'pip install "skinret-infer[{extra}]"']


def test_a_broken_plug_in_leaves_the_other_commands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One raises, the package of one is missing, and one is no command."""
    folder = tmp_path / "other-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[skinret.commands]\nraises=other_raises:x\ngone=other_gone:x\nnumber=sys:maxsize\n"
    )
    (tmp_path / "other_raises.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    faults = {"raises": "RuntimeError: no licence", "gone": "other_gone", "number": "int is no command"}
    shown = CliRunner().invoke(skinret, ["-h"])
    assert shown.exit_code == 0 and "Cannot run here" in shown.stdout
    assert all(f"\n  {name}" in shown.stdout for name in ("query", "demo", *faults))
    for name, fault in faults.items():
        done = CliRunner().invoke(skinret, [name, "--option", "x"])
        assert done.exit_code == 4 and fault in done.stderr and "[command-broken]" in done.stderr
        assert fault in CliRunner().invoke(skinret, [name, "--help"]).stderr


def _python(path: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run Python where the packages of a folder come before the installed ones."""
    paths = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=path,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
