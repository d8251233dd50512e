"""A wheel in an empty environment with [cpu] alone: small, without torch, and it answers a query."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from helpers import GUARD

from skinret_infer import Case

ROOT = Path(__file__).parent.parent


@pytest.mark.install
@pytest.mark.slow
def test_an_empty_environment_with_only_cpu_is_small_and_answers(
    bundle: Path, archive: Path, cases: list[Case], tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 1_000_000
    venv.create(tmp_path / "env", with_pip=True, clear=True)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    before = _size(site)
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]"]
    subprocess.run(install, check=True, capture_output=True)
    assert _size(site) - before < 450_000_000  # much of it OpenVINO
    installed = {p.name.partition("-")[0] for p in site.glob("*.dist-info")}
    assert not installed & {"torch", "transformers", "onnx", "scipy"}
    guarded = subprocess.run(
        [python, "-c", GUARD, bundle, archive, str(cases[50].image)],
        capture_output=True, text=True, check=True, cwd=tmp_path, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert json.loads(guarded.stdout) == {"hits": 5, "sockets": [], "open": [], "heavy": []}
    demo = subprocess.run(
        [tmp_path / "env" / "bin" / "skinret", "demo"], capture_output=True, text=True, cwd=tmp_path
    )
    assert demo.returncode == 4 and "skinret-infer[export]" in demo.stderr
    for command, extra in (
        ("skinret-adapt", "train"),
        ("skinret-average", "train"),
        ("skinret-train", "train"),
        ("skinret-export", "export"),
    ):
        done = subprocess.run([tmp_path / "env" / "bin" / command, "x"], capture_output=True, text=True)
        assert done.returncode == 4 and f"skinret-infer[{extra}]" in done.stderr
        assert "Traceback" not in done.stderr
    shown = subprocess.run(
        [tmp_path / "env" / "bin" / "skinret", "-h"], capture_output=True, text=True, check=True
    )
    assert "query" in shown.stdout


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
