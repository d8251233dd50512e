"""The documentation is true: its code runs, its commands exist, its reference is what the code says."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from skinret_export.cli import main as export_main
from skinret_infer import Case
from skinret_infer.cli.main import main as skinret
from skinret_infer.trust import signing
from skinret_training.adaptation.average import main as average_main
from skinret_training.adaptation.cli import main as adapt_main
from skinret_training.cli import main as train_main

ROOT = Path(__file__).parent.parent
SITE = "https://skinret.github.io/skinret/"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = {
    "skinret": skinret,
    "skinret-adapt": adapt_main,
    "skinret-average": average_main,
    "skinret-train": train_main,
    "skinret-export": export_main,
}


def _generator() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs/generate_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> types.ModuleType:
    return _generator()


@pytest.fixture
def workspace(
    bundle: Path, archive: Path, cases: list[Case], data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """A folder as the pages assume it: bundle/, cases.skinret, images/, lesion.jpg, CASES.csv, keys."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, "bundle")
    shutil.copy(archive, "cases.skinret")
    shutil.copytree(data / "images", "images")
    signing.make_keys(Path("private.pem"), Path("trusted.pem"))
    signing.sign(Path("bundle"), signing.private_key("private.pem", str))
    for name, case in (("lesion.jpg", cases[50]), ("a.jpg", cases[51])):
        Image.open(str(case.image)).convert("RGB").save(name)
    rows = ["case_id,image,diagnosis,group,streaks"]
    rows += [f"new-{c.case_id},{c.image_ref},{c.diagnosis},{c.group},irregular" for c in cases[52:55]]
    Path("CASES.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return tmp_path


def _blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)([^\n]*)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [block for language, options, block in found if language in languages and "norun" not in options]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python")], ids=_name)
def test_the_python_of_a_page_runs(page: Path, workspace: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in _blocks(page, "python"):
        exec(compile(block, _name(page), "exec"), names)  # noqa: S102 - the page's own
    for value in names.values():
        if not isinstance(value, type) and callable(close := getattr(value, "close", None)):
            close()


def _command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that a line calls, and its arguments."""
    first, *rest = words
    command: click.Command = COMMANDS[first]
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest.pop(0))
        assert found, words
        command = found
    return command, rest


def _shell_lines(page: Path) -> list[str]:
    text = "\n".join(_blocks(page, "sh", "console")).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    return [line for line in lines if line.split(" ")[0] in COMMANDS]


@pytest.mark.parametrize("page", [p for p in PAGES if _shell_lines(p)], ids=_name)
def test_the_shell_lines_of_a_page_are_commands_that_exist(page: Path) -> None:
    for line in _shell_lines(page):
        command, words = _command(shlex.split(line, comments=True))
        above = click.Context(skinret, **skinret.context_settings)
        command.make_context(line, words, above)  # as by a shell: nothing unknown, nothing missing


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_the_options_that_a_page_mentions_exist(page: Path) -> None:
    mentioned = re.findall(
        r"`(skinret(?:-adapt|-average|-train|-export)?\s[^`]*--[^`]*)`", page.read_text("utf-8")
    )
    for text in mentioned:
        command, words = _command(text.split())
        known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, text


def test_the_readme_is_short_and_its_links_lead_to_pages() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all(link.startswith(("https://", "#")) for link in links)
    for link in links:
        if link.startswith(SITE) and (place := link.removeprefix(SITE).strip("/")):
            assert (ROOT / "docs" / f"{place}.md").is_file(), link
        if "/skinret/skinret/main/" in link or "/skinret/skinret/blob/main/" in link:
            assert (ROOT / link.rpartition("/main/")[2]).is_file(), link


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r"([\w/-]+\.md)$", navigation, re.MULTILINE))
    assert listed == {_name(page).removeprefix("docs/") for page in PAGES if page.name != "README.md"}


def test_the_reference_is_what_the_code_says(reference: types.ModuleType) -> None:
    for name, text in reference.pages().items():
        page = ROOT / "docs" / "reference" / name
        assert page.read_text("utf-8") == text, f"{page} is not up to date: run `make reference`"


def test_every_code_that_a_test_names_is_in_the_list_of_errors() -> None:
    listed = set(re.findall(r"`([a-z0-9-]+)`", (ROOT / "docs/reference/errors.md").read_text("utf-8")))
    for file in (ROOT / "tests").rglob("*.py"):
        named = re.findall(r"\.code == \"([a-z0-9-]+)\"", file.read_text("utf-8"))
        assert not {code for code in named if "-" in code} - listed - {"engine-failed", "plug-in"}, file


def test_every_environment_variable_is_documented(reference: types.ModuleType) -> None:
    found = set()
    for package in reference.PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            found |= set(re.findall(r"\"(SKINRET_[A-Z_]+)\"", file.read_text("utf-8")))
    assert found == set(reference.ENVIRONMENT)


def test_json_has_the_keys_that_are_documented(workspace: Path, reference: types.ModuleType) -> None:
    lines = {
        "skinret index": "index bundle new.skinret CASES.csv --images images",
        "skinret query": "query bundle cases.skinret --image lesion.jpg --audit audit.jsonl",
        "skinret evaluate": "evaluate bundle cases.skinret CASES.csv --images images",
        "skinret parse": "parse streaks",
        "skinret doctor": "doctor bundle cases.skinret",
        "skinret archive info": "archive info cases.skinret",
        "skinret archive check": "archive check cases.skinret",
        "skinret archive remove": "archive remove new.skinret new-1 none",
        "skinret audit verify": "audit verify audit.jsonl",
    }
    assert set(lines) == set(reference.JSON_OUTPUT)
    for command, line in lines.items():
        done = CliRunner().invoke(skinret, [*line.split(), "--json"], env=dict(os.environ))
        assert tuple(sorted(json.loads(done.stdout))) == reference.JSON_OUTPUT[command], command
    listed = CliRunner().invoke(skinret, ["archive", "list", "cases.skinret", "--json"])
    assert len(json.loads(listed.stdout)) == 40
