"""Write docs/reference from the code. `make reference` runs it; a test fails if a page is not what it writes."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

import skinret_infer
from skinret_export.cli import main as export_command
from skinret_infer import AddReport, Hit, Manifest, Results, SkinretError
from skinret_infer.archive import database
from skinret_infer.bundle import Calibration, Level
from skinret_infer.cli.main import main as skinret_command
from skinret_infer.descriptor import Layout
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.text import TextRecipe
from skinret_infer.words.reading import WARNINGS
from skinret_training.adaptation.average import main as average_command
from skinret_training.adaptation.cli import main as adapt_command
from skinret_training.cli import main as train_command
from skinret_training.systems import MODELS, SYSTEMS
from skinret_training.systems.page import USES

ROOT = Path(__file__).parent.parent
PACKAGES = ("skinret_infer", "training/skinret_training", "export/skinret_export")
GENERATED = "<!-- Written by docs/generate_reference.py from the code; do not edit. -->\n\n"
# Codes that are put together when an error is raised.
COMPOSED = {
    "{name}-range": ("beta-range", "gamma-range"),
    "{what}-unknown": ("runtime-unknown", "precision-unknown"),
    "audit-{use}": ("audit-read", "audit-write"),
}
ENVIRONMENT = {
    "SKINRET_CACHE": "Folder of built engines and of precision checks. Default: `XDG_CACHE_HOME/skinret` or "
    "`~/.cache/skinret`.",
    "SKINRET_BUNDLE_KEY": "PEM file of trusted public keys. If it is set, every bundle must be signed by one of "
    "them.",
    "SKINRET_KEY_PASSPHRASE": "Passphrase of the private key of `skinret bundle keygen` and `sign`.",
}
OTHERS = {
    "XDG_CACHE_HOME": "Folder of caches, where `SKINRET_CACHE` is not set.",
    "SQLITE_TMPDIR": "Folder for the temporary file of `skinret archive compact`.",
    "ORT_DISABLE_TELEMETRY, HF_HUB_DISABLE_TELEMETRY": "Importing skinret sets both to 1, whatever they were.",
    "TORCHINDUCTOR_CACHE_DIR": "Importing the training package sets it below the cache, if it is not set.",
}
JSON_OUTPUT = {  # the keys of what a command prints with --json; tests/test_docs.py runs each
    "skinret index": ("added", "cases", "failed", "replaced", "unchanged", "warnings"),
    "skinret query": tuple(sorted(f.name for f in dataclasses.fields(Results) if f.name != "explainer")),
    "skinret evaluate": (
        "archive", "beta", "gamma", "image_only", "image_words", "model", "precision", "queries", "runtime",
        "same_lesion", "same_picture", "words_alone",
    ),
    "skinret parse": ("allowed", "canonical", "findings", "language", "text", "warnings"),
    "skinret doctor": (
        "archive", "auto", "bundle", "cache", "cpu", "gpu", "healthy", "packages", "platform", "python",
        "runtimes", "skinret_infer", "sqlite", "sqlite_fault", "telemetry",
    ),
    "skinret archive info": (
        "archive", "bytes", "cases", "descriptor", "fingerprint", "model", "schema", "state",
    ),
    "skinret archive check": ("archive", "cases", "faults", "fingerprint", "model", "repaired"),
    "skinret archive remove": ("cases", "removed", "unknown"),
    "skinret audit verify": ("faults", "files", "first", "head", "notes", "records"),
}  # fmt: skip


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {
        "api.md": _api(),
        "cli.md": _cli(),
        "errors.md": _errors(),
        "manifest.md": _manifest(),
        "archive-schema.md": _archive_schema(),
        "environment.md": _environment(),
        "json-output.md": _json_output(),
        "systems.md": _systems(),
    }


def _api() -> str:
    first = ["Searcher", "Case", "Range", "Results", "Hit", "Evidence", "EvidenceMap", "AuditLog"]
    names = [*first, *(name for name in skinret_infer.__all__ if name not in first)]
    text = (
        "# API\n\nWhat is public is imported from `skinret_infer`; of the modules below it only "
        "`skinret_infer.testing` is part of the API, the others may change. The package is typed (`py.typed`) and logs to the loggers below `skinret_infer`; "
        "it sets no handler.\n\n"
    )
    return (
        GENERATED
        + text
        + "\n".join(f"::: skinret_infer.{name}\n" for name in [*names, "testing.check_store"])
    )


def _cli() -> str:
    parts = [
        "# Command line\n\nText for a person goes to stderr, data to stdout. `--json` prints JSON "
        "([its keys](json-output.md)). Exit codes: 0 good, 1 an error, 2 wrong usage, 3 parity or the precision "
        "check failed, 4 the environment lacks something.\n"
    ]
    for name, command in (
        ("skinret", skinret_command),
        ("skinret-adapt", adapt_command),
        ("skinret-average", average_command),
        ("skinret-train", train_command),
        ("skinret-export", export_command),
    ):
        parts += _help(name, command, None)
    return GENERATED + "\n".join(parts)


def _help(name: str, command: click.Command, parent: click.Context | None) -> Iterator[str]:
    """Yield a section for a command, and for each command of a group."""
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=100, max_content_width=100,
        **({} if parent else command.context_settings),
    )  # fmt: skip
    title = context.command_path
    yield f"## {title}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                yield from _help(inner, found, context)


def _systems() -> str:
    parts = [
        "# Compared systems\n\n`skinret-train DATA --folds 5 --system NAME` measures a row "
        "([cross-validation](../train/cross-validation.md#compared-systems)).\n\n"
        "*Labels*: of the training folds, in training. The other columns are what a system looks at in a search.\n",
        "| system | fidelity | " + " | ".join(USES.values()) + " |",
        "|---|---|" + "---|" * len(USES),
    ]
    described = {name: system.facts() for name, system in (MODELS | SYSTEMS).items()}
    for name, facts in described.items():
        uses = " | ".join("yes" if facts["uses"][key] else "no" for key in USES)
        parts.append(f"| [`{name}`](#{name}) | {facts['fidelity']} | {uses} |")
    for name, facts in described.items():
        deviations = [f"- {sentence}" for sentence in facts["deviations"]]
        parts.append(
            "\n".join(
                ["", f"## {name}", "", f"{facts['source']}.", *([""] if deviations else []), *deviations]
            )
        )
    return GENERATED + "\n".join(parts) + "\n"


def _errors() -> str:
    rows: dict[str, dict[str, list[tuple[str, str]]]] = {}
    warnings: dict[str, str] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call):
                    _collect(node, rows, warnings)
    warnings |= {code: f"{why}: ..." for code, why in WARNINGS.items()}
    text = [
        "# Errors\n\nEvery error that skinret raises on purpose is a `SkinretError`. Its message says what was "
        "wrong, expected and found, and how to cure it. These parts are attributes too: `code`, `wrong`, "
        "`expected`, `found`, `cure` and, if it is about one case, `case_id`. A code is stable: programs may "
        "test it. Errors can be pickled, and `to_dict()` returns plain values.\n"
    ]
    for kind in sorted(rows):
        cls = getattr(skinret_infer, kind, None)
        summary = _paragraphs(cls).split("\n\n")[0]
        text.append(f"\n## {kind}\n\n{summary}\n\n| code | what is wrong | cure |\n|---|---|---|")
        for code in sorted(rows[kind]):
            messages = "<br>".join(dict.fromkeys(m for m, _ in rows[kind][code] if m)) or "-"
            cures = "<br>".join(dict.fromkeys(c for _, c in rows[kind][code] if c)) or "-"
            text.append(f"| `{code}` | {messages} | {cures} |")
    text.append(
        "\n## Warnings\n\nResults and reports have warnings: texts with a stable `code`.\n\n"
        "| code | text |\n|---|---|"
    )
    text += [f"| `{code}` | {warnings[code]} |" for code in sorted(warnings)]
    return GENERATED + "\n".join(text) + "\n"


def _collect(
    call: ast.Call, rows: dict[str, dict[str, list[tuple[str, str]]]], warnings: dict[str, str]
) -> None:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name == "SkinretWarning" and len(call.args) == 2:
        warnings.update(dict.fromkeys(_constants(call.args[1]), _text(call.args[0])))
        return
    given = {k.arg: k.value for k in call.keywords if k.arg}
    if not name.endswith(("Error", "Unavailable", "Extra")) or "code" not in given:
        return
    wrong = _text(call.args[0]) if call.args else ""
    cure = _text(given["cure"]) if "cure" in given else ""
    for code in _constants(given["code"]):
        for each in COMPOSED.get(code, (code,)):
            rows.setdefault(name, {}).setdefault(each, []).append((wrong, cure))


def _constants(node: ast.expr) -> list[str]:
    """Return the texts that an expression may be; of an f-string its pattern."""
    if isinstance(node, ast.IfExp):
        return _constants(node.body) + _constants(node.orelse)
    if isinstance(node, ast.JoinedStr):
        return ["".join(_pieces(node, "{%s}"))]
    return [
        n.value
        for n in ast.walk(node)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value
    ]


def _text(node: ast.expr) -> str:
    """Return an expression as a message for a table: what is filled in is "..."."""
    if isinstance(node, ast.Constant):
        text = str(node.value)
    elif isinstance(node, ast.JoinedStr):
        text = "".join(_pieces(node, "..."))
    elif isinstance(node, ast.IfExp):
        text = f"{_text(node.body)} / {_text(node.orelse)}"
    elif isinstance(node, ast.BinOp):
        text = _text(node.left) + _text(node.right)
    else:
        text = "..."
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").strip()


def _pieces(node: ast.JoinedStr, hole: str) -> Iterator[str]:
    for value in node.values:
        if isinstance(value, ast.Constant):
            yield str(value.value)
        elif isinstance(value, ast.FormattedValue):
            yield hole % ast.unparse(value.value) if "%s" in hole else hole


def _manifest() -> str:
    text = [
        "# manifest.json\n\nA bundle is a folder: four ONNX graphs, `tokenizer.json`, `concept_head.npy` for a "
        "model with concepts, and `manifest.json`, which describes them. A signature is `manifest.json.sig`. "
        "Loading a bundle checks every field and the SHA-256 of every file.\n"
    ]
    for cls, title in (
        (Manifest, "Top level"), (ImageRecipe, "image"), (TextRecipe, "text"), (Level, "levels"),
        (Layout, "layout"), (Calibration, "calibration"),
    ):  # fmt: skip
        text.append(f"\n## {title}\n\n{_paragraphs(cls)}\n\n| field | type | meaning |\n|---|---|---|")
        comments = _comments(cls)
        text += [
            f"| `{f.name}` | `{_type(f.type)}` | {comments.get(f.name, '')} |"
            for f in dataclasses.fields(cls)
        ]
    return GENERATED + "\n".join(text) + "\n"


def _type(kind: object) -> str:
    name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", name).replace("|", "or")


def _paragraphs(cls: type) -> str:
    """Return a docstring as Markdown: its sections of names as a list."""
    lines: list[str] = []
    listing = False
    for line in (inspect.getdoc(cls) or "").splitlines():
        if set(line) == {"-"} and lines:
            listing = lines.pop() in ("Parameters", "Attributes")
        elif listing and line.endswith(" :"):
            lines.append(f"- `{line.removesuffix(' :')}`:")
        elif listing and line.startswith("    "):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _comments(cls: type) -> dict[str, str]:
    """Return the comment at the end of the line of each field."""
    found = re.findall(r"^    (\w+):[^#\n]*#\s*(.+)$", inspect.getsource(cls), re.MULTILINE)
    return {name: comment.replace("|", "\\|") for name, comment in found}


def _archive_schema() -> str:
    statements = ";\n".join(textwrap.dedent(s).strip() for s in database._TABLES)
    return GENERATED + (
        f"# Archive schema\n\nAn archive is one SQLite file, schema {database.SCHEMA}, for SQLite "
        f"{'.'.join(map(str, database.OLDEST_SQLITE[:2]))} or newer. Read it as you like; write to it only through "
        "skinret.\n\n- `cases.descriptor` is float32, little endian, in the order of the manifest's layout.\n"
        "- A removed case leaves an empty row whose `case_id` is a BLOB, until `skinret archive compact`.\n"
        "- `meta` has `fingerprint`, `model`, `layout` (JSON), `revision`, `next_id` and `state`.\n"
        "- `segments`, `projection` and `history` belong to the pruning index; `skinret archive check --repair` "
        "makes them again from the cases.\n\n"
        f"```sql\n{statements};\n```\n\nThe folder `ARCHIVE.index` beside the file is the pruning index. It can be "
        "deleted: the next search makes it again.\n"
    )


def _environment() -> str:
    rows = [f"| `{name}` | {meaning} |" for name, meaning in {**ENVIRONMENT, **OTHERS}.items()]
    return GENERATED + "# Environment variables\n\n| name | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"


def _json_output() -> str:
    text = [
        "# JSON output\n\nCommands with `--json` print one JSON value on stdout. JSON is ASCII. New keys may be "
        "added; a key is not removed or changed without a new major version.\n"
    ]
    for command, keys in JSON_OUTPUT.items():
        text.append(f"\n## {command}\n\n" + ", ".join(f"`{key}`" for key in keys) + "\n")
    text.append("\n`skinret archive list --json` prints a list of case ids.\n")
    for cls in (Results, Hit, AddReport):
        text.append(f"\n## {cls.__name__}.to_dict()\n\n{_paragraphs(cls)}\n")
    error = SkinretError("what was wrong", code="a-code").to_dict()
    keys = ", ".join(f"`{key}`" for key in error)
    text.append(f"\n## SkinretError.to_dict()\n\n{keys}\n")
    return GENERATED + "\n".join(text)


if __name__ == "__main__":
    folder = ROOT / "docs" / "reference"
    folder.mkdir(exist_ok=True)
    for page, content in pages().items():
        (folder / page).write_text(content, "utf-8")
        print(folder / page)
