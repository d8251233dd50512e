"""The records of the precision check, on disk or in the bundle, decide which precision is allowed to run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._files import atomic_write
from ..bundle import Bundle
from ..errors import RuntimeUnavailable


def refusal(
    bundle: Bundle, runtime: str, precision: str, cache: Path, *, for_archive: bool = False
) -> str | None:
    """Return None if a precision is allowed to run, or the reason why not. fp32 always is.

    for_archive : the descriptors are for an archive, not for queries.

    A record made on site takes precedence over the bundle's own.
    """
    if precision == "fp32":
        return None
    record = read_record(bundle, runtime, precision, cache)
    if record is None:
        return (
            "its ranks were not measured with this bundle; run `skinret validate-precision` to measure them"
        )
    prefix = "archive_" if for_archive else ""
    if record.get(f"{prefix}passed") is True:
        return None
    faults = record.get(f"{prefix}faults")
    return "it failed the precision check: " + "; ".join(map(str, faults if isinstance(faults, list) else ()))


def read_record(bundle: Bundle, runtime: str, precision: str, cache: Path) -> dict[str, Any] | None:
    """Return the record of a runtime and a precision, made on site or with the bundle, or None."""
    try:
        record = json.loads(_path(bundle, runtime, precision, cache).read_text("utf-8"))
        if isinstance(record, dict) and record.get("bundle") == dict(bundle.manifest.files):
            return record
    except (OSError, ValueError):
        pass
    record = bundle.manifest.precision_checks.get(f"{runtime}/{precision}")
    return record if isinstance(record, dict) else None


def save_record(bundle: Bundle, record: Mapping[str, Any], cache: Path) -> Path:
    """Save a record made on site, for this bundle only. Raises RuntimeUnavailable if it cannot be written."""
    path = _path(bundle, record["runtime"], record["precision"], cache)
    try:
        with atomic_write(path) as temporary:
            text = json.dumps({**record, "bundle": dict(bundle.manifest.files)}, indent=2)
            temporary.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise RuntimeUnavailable(
            f"{path} cannot be written",
            code="engine-cache",
            expected="a writable folder",
            found=str(error),
            cure="set SKINRET_CACHE to a writable folder",
        ) from None
    return path


def _path(bundle: Bundle, runtime: str, precision: str, cache: Path) -> Path:
    return cache / "precision" / f"{runtime}-{precision}-{bundle.manifest.fingerprint[:16]}.json"
