"""The long form of tests/hostile/test_fuzz.py: many hostile inputs of every format.

    python -m pytest benchmarks/test_fuzz.py --fuzz 20000 -s

20,000 inputs take ten minutes. `-s` shows the report; a failure says how to reproduce its input.
"""

from pathlib import Path

import fuzz
import pytest


def test_hostile_inputs_raise_nothing_else_crash_nothing_and_write_nothing_outside(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    count = request.config.getoption("--fuzz")
    if not count:
        pytest.skip("runs only with --fuzz 20000")
    report = fuzz.run(2026, count, tmp_path, batch=2500, limit=1800)
    print(f"\n{report}")
    assert not report.failures and report.inputs == count
