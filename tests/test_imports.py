"""Imports go one way, in no circle, and the SDK's core stays small."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "skinret_infer": ROOT / "skinret_infer",
    "skinret_training": ROOT / "training" / "skinret_training",
    "skinret_export": ROOT / "export" / "skinret_export",
}
MAY_IMPORT = {
    "skinret_infer": {"skinret_infer"},
    "skinret_training": {"skinret_infer", "skinret_training"},
    "skinret_export": set(PACKAGES),
}
EXTRAS = {  # each in its one file
    "imaging/dicom.py": "pydicom",
    "report/html.py": "jinja2",
    "trust/signing.py": "cryptography",
}


def modules() -> dict[str, Path]:
    """Return the file of every module of the three packages."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(module: str, known: dict[str, Path]) -> Iterator[str]:
    """Yield what a module imports anywhere, except for types alone; modules of these packages by name."""
    tree = ast.parse(known[module].read_text("utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = module if known[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base


def runs(module: str, target: str) -> set[str]:
    """Return what importing `target` from `module` runs: it, and the packages above it that are new."""
    parts = target.split(".")
    above = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return {name for name in above if not f"{module}.".startswith(f"{name}.")} | ({target} - {module})


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    known = modules()
    for module in known:
        if module.partition(".")[0] == package:
            tops = {name.partition(".")[0] for name in imports(module, known)}
            assert not (tops & set(PACKAGES)) - MAY_IMPORT[package], module


def test_no_import_closes_a_circle_not_even_one_inside_a_function_or_through_a_package() -> None:
    known = modules()
    graph = {
        module: {
            name for target in imports(module, known) if target in known for name in runs(module, target)
        }
        for module in known
    }
    path: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for target in sorted(graph[module]):
                visit(target)
            done.add(path.pop())

    for module in sorted(known):
        visit(module)


def test_the_sdk_imports_only_its_core_and_its_runtimes() -> None:
    allowed = {"skinret_infer", "numpy", "PIL", "tokenizers", "click", "rapidfuzz", "onnxruntime", "openvino"}
    known = modules()
    for module, file in known.items():
        if module.partition(".")[0] == "skinret_infer":
            extra = EXTRAS.get(file.relative_to(PACKAGES["skinret_infer"]).as_posix())
            tops = {name.partition(".")[0] for name in imports(module, known)}
            assert not tops - allowed - {extra} - set(sys.stdlib_module_names), file


def test_core_dependencies_are_the_five_and_no_runtime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {d.partition(">")[0] for d in project["dependencies"]}
    assert names == {"numpy", "pillow", "tokenizers", "click", "rapidfuzz"}
    runtimes = {"cpu", "gpu", "openvino", "tensorrt", "tensorrt-rtx"}
    extras = runtimes | {"dicom", "report", "sign", "train", "timm", "compare", "export", "dev"}
    assert set(project["optional-dependencies"]) == extras
