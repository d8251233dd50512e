"""Hostile input of every format raises nothing but a SkinretError. The long form is in benchmarks/."""

import random
from pathlib import Path

import fuzz
import pytest

pytest.importorskip("pydicom", reason="the extra dicom is not installed")


def test_500_hostile_inputs_raise_only_skinret_errors_and_write_no_other_files(
    tmp_path: Path,
) -> None:
    report = fuzz.run(2026, 500, tmp_path, batch=500, limit=300)
    assert not report.failures, str(report)
    assert report.inputs == 500 and set(report.outcomes) == {name.partition(" ")[0] for name in fuzz.FORMATS}


def test_an_input_is_the_same_every_time(tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        fuzz.write_seeds(tmp_path / name / "seeds")
        target = tmp_path / name / "target"
        target.mkdir()
        outcome = fuzz.one(1, 4, tmp_path / name / "seeds", target)
        runs.append((outcome, [path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()]))
    assert runs[0] == runs[1] and runs[0][1]


@pytest.mark.parametrize(
    ("reader", "message", "number"),
    [
        ("raise ValueError('no refusal')", "ValueError: no refusal", 90),
        ("__import__('os').abort()", "Fatal Python error: Aborted", 90),
        ("__import__('ctypes').string_at(0)", "Segmentation fault", 90),
        ("open('outside', 'w').close()", "outside was written", 90),
        ("fuzz.data = b'1' * 99_000_000", "MB more memory", 90),
        # The limit counts the start of the process, which may be slow: hang in the first input.
        ("__import__('time').sleep(600)", "took over 2 s", 0),
    ],
)
def test_a_failure_is_reported_with_the_command_that_repeats_it(
    reader: str, message: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "spoilt.py"
    program.write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(fuzz.__file__).parent)!r})
import fuzz

def read(chance, seeds, folder, kind):
    if (folder.parent / "progress").read_bytes()[0] == {number}:
        {reader}

fuzz.FORMATS = {{"spoilt": read}}
fuzz.main(sys.argv[1:])
"""
    )
    monkeypatch.setattr(fuzz, "__file__", str(program))
    monkeypatch.setattr(fuzz, "write_seeds", lambda folder: folder.mkdir(parents=True))
    report = fuzz.run(7, 100, tmp_path / "run", batch=100, limit=2 if "sleep" in reader else 60)
    failures = "\n".join(report.failures)
    assert message in failures, failures
    assert f"fuzz.py 7 {number}" in failures or "0 to 100 of seed 7" in failures, failures


def test_every_mutator_gives_bytes_of_a_bounded_size() -> None:
    chance = random.Random(1)
    for _ in range(300):
        assert len(fuzz.mutated(chance, b"", [b"", b"abc"])) <= 2_000_000
        assert len(fuzz.mutated(chance, bytes(1000), [b"", b"abc"])) <= 2_000_000
