"""Imports go one way: skinret_infer <- skinret_training <- skinret_export; and the SDK's core stays small."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSES = {
    "skinret_infer": ROOT / "skinret_infer",
    "skinret_training": ROOT / "training" / "skinret_training",
    "skinret_export": ROOT / "export" / "skinret_export",
}
MAY_IMPORT = {
    "skinret_infer": {"skinret_infer"},
    "skinret_training": {"skinret_infer", "skinret_training"},
    "skinret_export": set(HOUSES),
}
EXTRAS = {"dicom.py": "pydicom", "report.py": "jinja2", "signing.py": "cryptography"}  # each in its one file


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


@pytest.mark.parametrize("house", HOUSES)
def test_imports_go_one_way(house: str) -> None:
    for file in HOUSES[house].rglob("*.py"):
        assert not (imported(file) & set(HOUSES)) - MAY_IMPORT[house], file


def test_the_sdk_imports_only_its_core_and_its_runtimes() -> None:
    allowed = {"skinret_infer", "numpy", "PIL", "tokenizers", "click", "onnxruntime", "openvino"}
    for file in HOUSES["skinret_infer"].rglob("*.py"):
        extra = {EXTRAS[file.name]} if file.name in EXTRAS else set()
        assert not imported(file) - allowed - extra - set(sys.stdlib_module_names), file


def test_core_dependencies_are_the_four_and_no_runtime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {d.partition(">")[0] for d in project["dependencies"]}
    assert names == {"numpy", "pillow", "tokenizers", "click"}
    runtimes = {"cpu", "gpu", "openvino", "tensorrt", "tensorrt-rtx"}
    extras = runtimes | {"dicom", "report", "sign", "train", "export", "dev"}
    assert set(project["optional-dependencies"]) == extras
