"""Hostile input of every format: nothing but a SkinretError comes out. The long form is in benchmarks/."""

import random
from pathlib import Path

import fuzz
import pytest

pytest.importorskip("pydicom", reason="the extra dicom is not installed")


def test_500_hostile_inputs_raise_nothing_else_crash_nothing_and_write_nothing_outside(
    tmp_path: Path,
) -> None:
    report = fuzz.run(2026, 500, tmp_path, batch=500, limit=300)
    assert not report.failures, str(report)
    assert report.inputs == 500 and set(report.outcomes) == {name.partition(" ")[0] for name in fuzz.FORMATS}


def test_an_input_is_the_same_every_time(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        fuzz.write_seeds(tmp_path / name / "seeds")
        target = tmp_path / name / "target"
        target.mkdir()
        outcome = fuzz.one(1, 4, tmp_path / name / "seeds", target)
        found.append((outcome, [path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()]))
    assert found[0] == found[1] and found[0][1]


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        ("raise ValueError('no refusal')", "ValueError: no refusal"),
        ("__import__('os').abort()", "Fatal Python error: Aborted"),
        ("__import__('ctypes').string_at(0)", "Segmentation fault"),
        ("open('outside', 'w').close()", "outside was written"),
        ("fuzz.kept = b'1' * 99_000_000", "MB more memory"),
        ("__import__('time').sleep(60)", "took over 5 s"),
    ],
)
def test_what_should_not_be_is_told_with_how_to_see_it_again(
    reader: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = tmp_path / "spoilt.py"
    spoilt.write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(fuzz.__file__).parent)!r})
import fuzz

def read(chance, seeds, folder, kind):
    if (folder.parent / "progress").read_bytes()[0] == 90:
        {reader}

fuzz.FORMATS = {{"spoilt": read}}
fuzz.main(sys.argv[1:])
"""
    )
    monkeypatch.setattr(fuzz, "__file__", str(spoilt))
    monkeypatch.setattr(fuzz, "write_seeds", lambda folder: folder.mkdir(parents=True))
    report = fuzz.run(7, 100, tmp_path / "run", batch=100, limit=5 if "sleep" in reader else 60)
    told = "\n".join(report.failures)
    assert said in told and ("fuzz.py 7 90" in told or "0 to 100 of seed 7" in told), told


def test_every_mutator_gives_bytes_of_a_bounded_size() -> None:
    chance = random.Random(1)
    for _ in range(300):
        assert len(fuzz.mutated(chance, b"", [b"", b"abc"])) <= 2_000_000
        assert len(fuzz.mutated(chance, bytes(1000), [b"", b"abc"])) <= 2_000_000
