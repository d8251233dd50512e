"""Offline: no step opens a socket or writes outside its folders, in native code too.

The programs run under strace, as a user whose home is empty, and without the variables by which libraries
know a CI. Python's own audit hooks do not see what a C++ library does.
"""

import importlib.util
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import BERT, SWIN
from transformers import BertConfig, BertModel, SwinBackbone, SwinConfig

from skinret_export.demo import write_small_tokenizer
from skinret_infer import Case, _telemetry, doctor
from skinret_infer.engines import openvino
from skinret_infer.engines.registry import RUNTIMES, why_not

IMPORTS = r"^\s*(import|from) (onnxruntime|openvino)\b"
# Each program is one process, which takes commands as JSON and ends at the first that fails.
SDK = """
import json, sys
from skinret_infer.evaluation import precision
from skinret_infer.cli.main import main
precision.MIN_QUERIES = 9
for words in json.loads(sys.argv[1]):
    try:
        main(words, standalone_mode=False)
    except SystemExit as ended:
        if (words[0], ended.code) != ("validate-precision", 3):  # the precision is refused
            raise
"""
TRAINING = """
import gc, json, os, sys
gc.disable()  # a third of the time
os.environ["USER"] = "a name"  # or torch asks the system for one, by a socket to nscd if that runs
from skinret_training.cli import main as train
from skinret_export.cli import main as export
from skinret_infer.cli.engines import engines
for name, *words in json.loads(sys.argv[1]):
    {"train": train, "export": export, "engines": engines}[name](words, standalone_mode=False)
"""
TRACED = "socket,socketpair,io_uring_setup,open,openat,openat2,creat,mkdir,mkdirat"
OPENED = re.compile(r"^(?:open|creat)\w*\(.*\bO_(?:WRONLY|RDWR|CREAT|TMPFILE)\b.*\) = \d+<(.+)>$", re.M)
MADE = re.compile(r'^mkdir\w*\((?:[^"<]*(?:<(?P<at>.+?)>)?, )?"(?P<path>.+?)".*\) = 0$', re.M)
STRACE = [
    "strace",
    "-ff",
    "-y",
    "-qq",
    "--seccomp-bpf",
    "-s",
    "4096",
    "-e",
    f"trace={TRACED}",
    "-e",
    "signal=none",
]


class Traced:
    """Folders of a new user, and the traces of programs that ran there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work, self.home, self.tmp = (folder / name for name in ("work", "home", "tmp"))
        for path in (self.work, self.home, self.tmp):
            path.mkdir()

    def run(self, program: str, *commands: Sequence[object]) -> None:
        """Run a program in Python, in the folder `work`, with commands."""
        arguments = [json.dumps([[str(word) for word in command] for command in commands])]
        inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        places = {"HOME": self.home, "TMPDIR": self.tmp, "SKINRET_CACHE": self.folder / "cache"}
        quiet = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*STRACE, "-o", self.folder / "trace", sys.executable, "-c", program, *arguments],
            capture_output=True, text=True, cwd=self.work, env={**inherited, **places, **quiet},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def sockets(self) -> list[str]:
        """Return each call that opened a socket, of every thread and process."""
        calls = "\n".join(path.read_text("utf-8", "replace") for path in self.folder.glob("trace.*"))
        return re.findall(r"^(?:socket|io_uring).*", calls, re.M)

    def stray_paths(self) -> list[str]:
        """Return the paths that were made outside `work` and the cache, or that stay elsewhere."""
        calls = "\n".join(path.read_text("utf-8", "replace") for path in self.folder.glob("trace.*"))
        made = (str(Path(m["at"] or self.work) / m["path"]) for m in MADE.finditer(calls))
        allowed = (
            *map(str, (self.work, self.folder / "cache", self.tmp)),
            "/dev/null",
            "/dev/shm/sem.",  # a lock of tqdm's bars, which has no name any more when it is used
        )
        return [
            *(path for path in (*OPENED.findall(calls), *made) if not path.startswith(allowed)),
            *(str(path) for place in (self.home, self.tmp) for path in place.rglob("*")),
        ]


@pytest.fixture
def traced(tmp_path: Path) -> Traced:
    works = (
        shutil.which("strace") and subprocess.run([*STRACE, "-o", tmp_path / "try", "true"]).returncode == 0
    )
    if not works:
        needed = os.environ.get("SKINRET_STRACE_REQUIRED")
        (pytest.fail if needed else pytest.skip)("no strace, or it may not trace: install Debian's strace")
    return Traced(tmp_path)


@pytest.fixture(scope="module")
def weights(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local folders of a tiny Swin and BERT."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    SwinBackbone(SwinConfig(**{k: v for k, v in SWIN.items() if k != "model_type"})).save_pretrained(
        folder / "swin"
    )
    small = {k: v for k, v in BERT.items() if k not in ("model_type", "vocab_size")}
    vocabulary = write_small_tokenizer(folder / "bert", cases)
    BertModel(BertConfig(**small, vocab_size=vocabulary)).save_pretrained(folder / "bert")
    return folder


def test_the_tracer_sees_a_socket_and_a_stray_file_of_native_code(traced: Traced) -> None:
    traced.run(
        "import ctypes, pathlib, threading\n"
        "libc = ctypes.CDLL(None)\n"
        "thread = threading.Thread(target=libc.socket, args=(2, 2, 0))\n"
        "thread.start(); thread.join()\n"
        "libc.mkdir((str(pathlib.Path.home()) + '/.cache').encode(), 0o700)\n"
        "pathlib.Path.home().joinpath('.cache/id').write_text('')\n"
    )
    assert len(traced.sockets()) == 1 and "AF_INET" in traced.sockets()[0]
    expected = [str(traced.home / ".cache"), str(traced.home / ".cache/id")]
    assert sorted(traced.stray_paths()) == sorted(expected * 2)


def test_the_commands_of_a_hospital_are_offline(
    traced: Traced, bundle: Path, data: Path, cases: list[Case]
) -> None:
    (traced.work / "ids").write_text("\n".join(case.case_id for case in cases[:9]))
    runtimes = [name for name in RUNTIMES if not why_not(name)]
    query = ["query", bundle, "new.skinret", "--image", cases[20].image, "--text", "irregular streaks"]
    low = "openvino" in runtimes and "bf16" in openvino.precisions()
    traced.run(
        SDK,
        ["index", bundle, "new.skinret", data, "--ids", "ids"],
        *([*query, "--runtime", name] for name in runtimes),
        [*query, "--report", "page.html", "--images", data / "images", "--audit", "audit.jsonl"],
        ["evaluate", bundle, "new.skinret", data, "--ids", "ids"],
        *(
            [
                [
                    "validate-precision",
                    bundle,
                    data,
                    "--ids",
                    "ids",
                    "--runtime",
                    "openvino",
                    "--precision",
                    "bf16",
                ]
            ]
            * low
        ),
        ["doctor", bundle, "new.skinret"],
    )
    assert {p.name for p in traced.work.iterdir()} == {
        "ids", "new.skinret", "page.html", "audit.jsonl", "audit.jsonl.head"
    }  # fmt: skip
    assert traced.sockets() == [] and traced.stray_paths() == []


@pytest.mark.slow
def test_training_from_local_folders_and_export_are_offline(
    traced: Traced, data: Path, weights: Path
) -> None:
    rtx = importlib.util.find_spec("tensorrt_rtx") is not None
    traced.run(
        TRAINING,
        [
            "train", data, "--out", "ckpt.pt", "--vision", weights / "swin", "--text", weights / "bert",
            "--image-size", "64", "--width", "16", "--batch", "16", "--epochs", "1", "--fold", "0",
        ],
        ["export", "ckpt.pt", "--out", "bundle", "--no-check-precision"],
        *([["engines", "build", "bundle", "--runtime", "tensorrt-rtx", "--capability", "8.6"]] * rtx),
    )  # fmt: skip
    assert (traced.work / "bundle" / "manifest.json").exists()
    assert traced.sockets() == [] and traced.stray_paths() == []


def test_runtimes_are_imported_only_after_their_telemetry_is_off() -> None:
    root = Path(__file__).parents[2]
    for folder in ("skinret_infer", "training", "export", "benchmarks"):
        for file in (root / folder).rglob("*.py"):
            found = re.search(IMPORTS, file.read_text("utf-8"), re.MULTILINE)
            assert file.name == "_telemetry.py" or not found, file


def test_no_environment_variable_turns_telemetry_on() -> None:
    program = "import os, skinret_infer; print([os.environ[name] for name in skinret_infer._telemetry.OFF])"
    environment = {**os.environ, **dict.fromkeys(_telemetry.OFF, "0")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(list(_telemetry.OFF.values())), done.stderr


def test_a_runtime_that_was_imported_before_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = "import onnxruntime; from skinret_infer._telemetry import onnxruntime; onnxruntime()"
    quiet = {**os.environ, "ORT_DISABLE_TELEMETRY": "", "CI": "1"}  # by CI: it stays off in this test
    done = subprocess.run([sys.executable, "-c", program], env=quiet, capture_output=True, text=True)
    assert done.returncode == 0 and "onnxruntime was imported before skinret_infer" in done.stderr
    assert _telemetry.state("onnxruntime") == _telemetry.state("openvino") == "off"
    monkeypatch.setitem(sys.modules, "openvino_telemetry", ModuleType("openvino_telemetry"))
    assert "openvino was imported before skinret_infer" in _telemetry.state("openvino")
    assert "openvino not off from the start" in doctor.format_report(doctor.examine())


def test_doctor_says_which_sqlite_runs_and_that_telemetry_is_off() -> None:
    report = doctor.examine()
    assert report["sqlite"] == sqlite3.sqlite_version
    assert report["telemetry"] == {"onnxruntime": "off", "openvino": "off"}
    text = doctor.format_report(report)
    assert f"SQLite {sqlite3.sqlite_version}" in text and "telemetry: onnxruntime off; openvino off" in text
