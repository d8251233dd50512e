"""docs/soup.md has a true line for every package, constraints.txt locks them all, and the SBOM lists them."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.licenses import canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from skinret_infer import Case, _telemetry

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
LOCK = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([^#\s]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M
    )
}
NOT_LOCKED = {"hatchling", "tensorrt"}  # why is said in soup.md
MISCLASSIFIED = {"nvidia-nvtx"}  # as proprietary; the licence in it is Apache's
# What a package says without SPDX, and how its SPDX expression begins.
SAID = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Other/Proprietary License": "LicenseRef-NVIDIA-Proprietary",
    "Python Software Foundation License": "PSF-2.0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    section: str
    version: str
    against: str
    licence: str


def _rows() -> Iterator[tuple[str, Row]]:
    section = ""
    for line in (ROOT / "docs" / "soup.md").read_text("utf-8").splitlines():
        section = line.strip("# ") if line.startswith("#") else section
        if line.startswith("| ") and not line.startswith("| part |"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 6 and all(cells), line
            yield cells[0], Row(section=section, version=cells[1], against=cells[4], licence=cells[5])


ALL = list(_rows())
ROWS = {canonicalize_name(name): row for name, row in ALL if row.section != "Beneath the packages"}


def _named() -> dict[str, Requirement]:
    """Return what pyproject.toml names, in whatever place."""
    lists = [PROJECT["build-system"]["requires"], PROJECT["project"]["dependencies"], *EXTRAS.values()]
    found = [Requirement(text) for texts in lists for text in texts]
    return {canonicalize_name(r.name): r for r in found if r.name != PROJECT["project"]["name"]}


# -- soup.md --


def test_every_package_has_one_line_and_no_line_is_of_another() -> None:
    assert set(ROWS) == set(LOCK) | set(_named())
    assert len({name.lower() for name, _ in ALL}) == len(ALL)


def test_the_versions_are_the_locks() -> None:
    named = _named()
    for name, row in ROWS.items():
        assert row.version == (LOCK[name] if name in LOCK else str(named[name].specifier)), name
    assert set(named) - set(LOCK) == NOT_LOCKED
    assert all(named[name].specifier.contains(LOCK[name]) for name in set(named) - NOT_LOCKED)


def test_the_licences_are_spdx_and_those_that_the_packages_declare() -> None:
    for name, row in ROWS.items():
        assert canonicalize_license_expression(row.licence) == row.licence, name
        try:
            said = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if expression := said["License-Expression"]:
            assert row.licence == expression, name
            continue
        classes = [
            c.split(" :: ")[-1] for c in said.get_all("Classifier") or [] if c.startswith("License ::")
        ]
        fits = all(row.licence.startswith(SAID[c]) for c in classes) or name in MISCLASSIFIED
        assert fits, (name, classes)


def test_what_is_called_idle_is_not_imported_by_a_query(
    bundle: Path, archive: Path, cases: list[Case]
) -> None:
    code = (
        "import sys, skinret_infer\n"
        "with skinret_infer.Searcher(sys.argv[1], sys.argv[2]) as searcher:\n"
        "    searcher.query(sys.argv[3], 'irregular streaks')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bundle, archive, str(cases[0].image)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    idle = {name for name, row in ROWS.items() if "never imported" in row.against}
    assert "huggingface-hub" in idle and "numpy" in loaded
    for module, distributions in importlib.metadata.packages_distributions().items():
        assert module not in loaded or not idle & {canonicalize_name(d) for d in distributions}, module


def test_what_switches_telemetry_off_is_named() -> None:
    text = (ROOT / "docs" / "soup.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in _telemetry.OFF)


# -- constraints.txt --


def _platforms() -> Iterator[dict[str, str]]:
    for system, name, machine in (
        ("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("win32", "Windows", "AMD64"),
        ("darwin", "Darwin", "arm64"),
    ):  # fmt: skip
        for python in ("3.11", "3.12", "3.13", "3.14"):
            yield {
                "sys_platform": system, "platform_system": name, "platform_machine": machine,
                "os_name": "nt" if system == "win32" else "posix", "python_version": python,
                "python_full_version": f"{python}.0",
            }  # fmt: skip


def _required(platform: dict[str, str]) -> set[str]:
    """Return the packages of all extras on a platform, as far as those that are installed here say it."""
    waiting = [
        Requirement(text)
        for texts in (PROJECT["project"]["dependencies"], *EXTRAS.values())
        for text in texts
    ]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        here = waiting.pop()
        name, extras = canonicalize_name(here.name), frozenset(here.extras)
        if name == PROJECT["project"]["name"] or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for next_ in map(Requirement, required):
            if next_.marker is None or any(
                next_.marker.evaluate({**platform, "extra": extra}) for extra in extras | {""}
            ):
                waiting.append(next_)
    return {name for name, _ in seen}


@pytest.mark.parametrize(
    "platform",
    [*_platforms()],
    ids=lambda p: f"{p['platform_system']}-{p['platform_machine']}-{p['python_version']}",
)
def test_all_that_is_required_is_locked(platform: dict[str, str]) -> None:
    assert _required(platform) - set(LOCK) == NOT_LOCKED - {"hatchling"}


# -- the SBOM --


def _made(target: Path) -> dict[str, Any]:
    """Make one of the two files with the environment that runs here, and check it against the schema."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-o", f"{sys.prefix}/.ready", f"VENV={sys.prefix}", f"PYTHON={sys.executable}"]
    done = subprocess.run(
        [*command, f"SBOM={target.parent}", str(target)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = target.read_text("utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert not any(place in text for place in ("file:", str(ROOT), str(target.parent), sys.prefix))
    bom: dict[str, Any] = json.loads(text)
    assert bom["specVersion"] == "1.6"
    assert "serialNumber" not in bom and "timestamp" not in bom["metadata"]  # the same in every run
    root = bom["metadata"]["component"]
    assert (root["name"], root["version"]) == ("skinret-infer", PROJECT["project"]["version"])
    assert root["licenses"][0]["license"]["id"] == "Apache-2.0"
    graph = {node["ref"]: node.get("dependsOn", []) for node in bom["dependencies"]}
    assert {"numpy", "pillow"} <= {ref.partition("==")[0] for ref in graph[root["bom-ref"]]}
    (tokenizers,) = (ref for ref in graph if ref.startswith("tokenizers=="))
    assert "huggingface_hub" in {ref.partition("==")[0] for ref in graph[tokenizers]}
    return bom


def _listed(bom: dict[str, Any]) -> set[str]:
    for part in bom["components"]:
        name, version = canonicalize_name(part["name"]), part["version"]
        kind, _, known = part["purl"].partition("@")
        assert canonicalize_name(kind.removeprefix("pkg:pypi/")) == name and known == version.replace(
            "+", "%2B"
        )
        assert LOCK.get(name, version) == version.partition("+")[0], name  # torch of the CPU is 2.13.0+cpu
    return {canonicalize_name(part["name"]) for part in bom["components"]}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_sbom_lists_every_locked_package_that_is_installed(tmp_path: Path) -> None:
    installed = {canonicalize_name(d.name) for d in importlib.metadata.distributions()}
    assert set(LOCK) & installed <= _listed(_made(tmp_path / "all.cdx.json"))


@pytest.mark.install
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_sbom_of_the_hospital_is_what_soup_says_runs_there(tmp_path: Path) -> None:
    listed = _listed(_made(tmp_path / "runtime.cdx.json"))
    runs = {name for name, row in ROWS.items() if row.section in ("The core", "The extras")}
    assert listed <= runs
    assert runs - listed <= {"colorama", "openvino", "openvino-telemetry"}  # of other platforms
    assert not (tmp_path / "runtime").exists()
