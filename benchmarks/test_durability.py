"""The long forms of tests/archive/test_durability.py: 200 kills, readers beside a writer, a disk often full.

    python -m pytest benchmarks/test_durability.py --durability -s

They take five minutes, so they run only with --durability; `-s` shows the figures.
"""

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import durability
import pytest

from skinret_infer import ArchiveError
from skinret_infer.archive import maintenance

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and mounts of POSIX")


@pytest.fixture(autouse=True)
def _only_on_request(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.config.getoption("--durability"):
        pytest.skip("runs only with --durability")
    durability.small_segments(monkeypatch.setattr)


@contextlib.contextmanager
def _timed(what: str, figures: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    _show(what, {**figures, "seconds in all": time.monotonic() - start})


def _show(what: str, figures: Mapping[str, float]) -> None:
    print(f"\n{what}")
    for name, figure in figures.items():
        print(f"  {name}: {figure:.6g}")


def test_an_archive_survives_200_kills(tmp_path: Path) -> None:
    figures: dict[str, float] = {}
    with _timed("200 kills, nothing lost, nothing half there", figures):
        figures |= durability.killed_many_times(tmp_path / "cases.skinret", 200, seed=2026)
    assert figures["kills"] == 200


def test_four_readers_and_a_writer_for_a_minute(tmp_path: Path) -> None:
    figures: dict[str, float] = {}
    with _timed("4 readers and a writer, no error, no torn result", figures):
        figures |= durability.readers_and_a_writer(
            tmp_path / "cases.skinret", readers=4, seconds=60, seed=2026
        )
    assert figures["worst delay until a reader saw a new case, s"] < 1


def test_an_archive_survives_a_disk_that_is_often_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "none", str(disk)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    figures: dict[str, float] = {"operations": 0, "refused": 0}
    path, chance, state = disk / "cases.skinret", random.Random(2026), durability.State()
    try:
        durability.backups(path).mkdir()
        with (
            _timed("a full disk, nothing lost", figures),
            contextlib.closing(durability.opened(path)) as archive,
        ):
            while figures["refused"] < 200:
                op = durability.chosen(chance, state)
                figures["operations"] += 1
                try:
                    durability.perform(archive, op, state, chance)
                    state = durability.after(state, op)
                except ArchiveError as error:
                    assert error.code == "archive-io"
                    figures["refused"] += 1
                    (disk / "filling").unlink(missing_ok=True)
                    for copy in durability.backups(path).glob("*"):
                        assert copy.suffix == ".skinret"
                        copy.unlink()
                assert durability.held(path) == state
                durability.check_answers(archive, state, chance)
                if chance.random() < 0.3:
                    filling = shutil.disk_usage(disk).free - chance.choice((0, 4096, 40_000, 150_000))
                    (disk / "filling").write_bytes(bytes(max(0, filling)))
                if chance.random() < 0.1:
                    assert maintenance.check(archive) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
