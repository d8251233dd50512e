"""The three ways in which it is used, to the letter; and what stands in the README is run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_dicom import PICTURE, _object

from skinret_export import cli as export_cli
from skinret_infer import Case, RuntimeUnavailable, Searcher, signing
from skinret_infer.bundle import Bundle

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


# -- skinret-export ckpt.pt --


def test_skinret_export_takes_a_checkpoint_alone(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint, tmp_path / "ckpt.pt")
    done = subprocess.run(
        ["skinret-export", "ckpt.pt"], cwd=tmp_path, capture_output=True, text=True, env=_path()
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt.pt", "ckpt"}
    assert Bundle.load(tmp_path / "ckpt").manifest.gates  # lower precisions were measured
    for line in ("the bundle is ckpt", "skinret doctor ckpt", "skinret index ckpt cases.skinret CASES.csv"):
        assert line in done.stderr
    again = subprocess.run(
        ["skinret-export", "ckpt.pt"], cwd=tmp_path, capture_output=True, text=True, env=_path()
    )
    assert again.returncode == 1 and "[exists]" in again.stderr and "--overwrite" in again.stderr


def _path() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def _export(*arguments: object) -> "tuple[int, str]":
    done = CliRunner().invoke(export_cli.main, [*map(str, arguments), "--no-gate"])
    return done.exit_code, done.stderr


@pytest.mark.parametrize(
    ("name", "bundle"), [("a model.pt", "a model"), ("ckpt", "ckpt.bundle"), ("m.v1.pt", "m.v1")]
)
def test_the_bundle_lies_beside_the_checkpoint_under_its_name(name: str, bundle: str, tmp_path: Path) -> None:
    assert export_cli._beside(tmp_path / name) == tmp_path / bundle


def test_what_is_no_bundle_is_never_written_over(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for out in ("work", "file"):
        for more in ([], ["--overwrite"]):
            code, said = _export(checkpoint, "--out", tmp_path / out, *more)
            assert code == 1 and "[exists]" in said and "no bundle" in said
    assert (tmp_path / "work" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "x"
    code, said = _export(bundle)
    assert code == 2 and "is a bundle already" in said


def test_where_nothing_can_be_written_it_says_so_before_the_work(checkpoint: Path) -> None:
    code, said = _export(checkpoint, "--out", "/proc/none/bundle")
    assert code == 1 and "[out-path]" in said and "parity" not in said


def test_without_a_card_nothing_is_tried(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    export_cli._build_for_card(bundle, "fp32", tmp_path)
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_engines_that_cannot_be_built_are_a_warning(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where TensorRT is installed and the driver is too old: the bundle is good all the same."""
    monkeypatch.setattr(export_cli.tensorrt, "why_not", lambda _: "")

    def refused(*_: object, **__: object) -> list[Path]:
        raise RuntimeUnavailable("the card is too old", code="engine-failed")

    monkeypatch.setattr(export_cli, "build_engines", refused)
    export_cli._build_for_card(bundle, "fp32", tmp_path)
    assert "warning: no engines for tensorrt: the card is too old" in capsys.readouterr().err


def test_engines_are_built_where_a_card_is(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TensorRT-RTX's own builder builds them; only the card is pretended."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(export_cli.tensorrt, "why_not", lambda name: "" if name == "tensorrt-rtx" else "no")
    card = export_cli.tensorrt.Target(capability="8.6")
    monkeypatch.setattr(export_cli.tensorrt, "target_here", lambda _: card)
    export_cli._build_for_card(bundle, "fp32", tmp_path)
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


def test_the_python_of_the_readme_runs(
    bundle: Path, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, "bundle")
    signing.make_keys(Path("private.pem"), Path("trusted.pem"))
    signing.sign(Path("bundle"), signing.private_key("private.pem", str))
    Path("images").mkdir()
    for name, case in (("a.jpg", cases[0]), ("lesion.jpg", cases[1])):
        shutil.copy(str(case.image), name)
        shutil.copy(str(case.image), Path("images") / name)
    names: dict[str, object] = {"dicom_bytes": _object(PICTURE.tobytes())}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - the README's own
    assert Path("report.html").stat().st_size > 10_000 and Path("audit.jsonl").stat().st_size > 100


# -- pytest benchmarks --


@pytest.mark.slow
def test_pytest_benchmarks_runs_as_typed() -> None:
    """In its short form, which measures a tiny model by the same code."""
    environment = {**_path(), "SKINRET_BENCHMARK": "short"}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    done = subprocess.run(["pytest", "benchmarks"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    for said in (
        "its figures mean nothing",
        "beside PyTorch",
        "written: build/benchmarks-short",
        "faiss Flat",
    ):
        assert said in done.stdout
    assert re.search(r"1\d passed, \d+ skipped", done.stdout)


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


def test_a_package_that_is_there_but_broken_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import torch._C_that_is_lost")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "skinret_training", "-h"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (
        done.returncode == 1 and "torch._C_that_is_lost" in done.stderr and "extra-missing" not in done.stderr
    )
