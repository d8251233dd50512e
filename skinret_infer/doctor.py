"""Report what is installed, what runs, what "auto" takes, and what is wrong with a bundle or archive."""

import contextlib
import functools
import io
import os
import platform
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import _telemetry
from ._version import __version__
from .archive import maintenance
from .archive.archive import Archive
from .archive.database import SCHEMA, check_sqlite
from .bundle import Bundle
from .engines.base import version
from .engines.cache import cache_folder
from .engines.cpus import available_cpus
from .engines.nvidia import nvidia_report
from .engines.registry import PRECISIONS, RUNTIMES, choose, precisions, why_not
from .engines.verdicts import read_record, refusal
from .errors import ArchiveError, BundleError, SkinretError, printable
from .searcher import Searcher
from .trust import signing

NOTHING_RUNS = 'nothing here; pip install "skinret-infer[cpu]"'
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = (
    "numpy", "pillow", "tokenizers", "click", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "tensorrt-rtx-cu13", "cuda-bindings", "pydicom", "cryptography", "jinja2",
)  # fmt: skip
_TRIAL_BYTES = 2**20  # a file of this size is written to try the cache
_WORST: Mapping[str, Callable[[Iterable[float]], float]] = {
    "score_regret": max,
    "top10_overlap": min,
    "top1_match": min,
    "mAP_change": functools.partial(max, key=abs),
    "Acc@1_change": functools.partial(max, key=abs),
}
_SHOWN = {
    "score_regret": ("score regret", ".1e"),
    "top10_overlap": ("top 10 overlap", ".3f"),
    "top1_match": ("top 1 match", ".3f"),
    "mAP_change": ("mAP change", "+.2f"),
    "Acc@1_change": ("Acc@1 change", "+.2f"),
}
_WORDS = ("atypical pigment network", "irregular streaks", "blue-whitish veil")  # each once: they are cached


def examine(
    bundle: str | Path | None = None,
    archive: str | Path | None = None,
    trusted_keys: str | Path | None = None,
) -> dict[str, Any]:
    """Return a report of plain values; `healthy` says whether a query could be answered here.

    The whole archive is read; it is not changed.
    """
    gpu, reasons = nvidia_report(), {name: why_not(name) for name in RUNTIMES}
    report: dict[str, Any] = {
        "skinret_infer": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlite_fault": _sqlite_fault(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpu": gpu,
        "cache": _cache(),
        "packages": {name: found for name in _PACKAGES if (found := version(name))},
        "runtimes": {
            name: {"runs": not reason, "reason": reason, "cure": _cure(name, reason, gpu)}
            for name, reason in reasons.items()
        },
        "telemetry": {name: _telemetry.state(name) for name in ("onnxruntime", "openvino")},
        "auto": next((name for name, reason in reasons.items() if not reason), None),
    }
    healthy = report["auto"] is not None and not report["sqlite_fault"]
    if bundle is not None:
        report["bundle"] = _examine_bundle(Path(bundle), trusted_keys)
        healthy = healthy and "error" not in report["bundle"]
    if archive is not None:
        fingerprint = report.get("bundle", {}).get("fingerprint")
        report["archive"] = state = _examine_archive(Path(archive), fingerprint)
        healthy = healthy and not (state.get("error") or state["faults"] or state["belongs"] is False)
    return report | {"healthy": healthy}


def format_report(report: Mapping[str, Any]) -> str:
    """Return the report as lines for a person."""
    cpu, cache = report["cpu"], report["cache"]
    packages = ", ".join(f"{name} {found}" for name, found in report["packages"].items())
    lines = [
        f"skinret-infer {report['skinret_infer']}, Python {report['python']}, SQLite {report['sqlite']}, "
        f"{report['platform']}",
        *([report["sqlite_fault"]] if report["sqlite_fault"] else []),
        f"CPU: {cpu['model']}; {cpu['usable']} of {cpu['cores']} cores may be used",
        f"     {_instruction_words(cpu['flags'])}",
        f"GPU: {_gpu_words(report['gpu'])}",
        f"cache: {cache['folder']}: {cache['fault'] or 'can be written'}",
        f"packages: {packages}",
        f"telemetry: {'; '.join(f'{name} {state}' for name, state in report['telemetry'].items())}",
        'runtimes, in the order of "auto":',
    ]
    for name, state in report["runtimes"].items():
        lines.append(f"  {name:<17}{'runs' if state['runs'] else state['reason']}")
        if state["cure"]:
            lines.append(f"{'':<19}cure: {state['cure']}")
    if report["auto"] is None:
        lines.append(f"auto takes: {NOTHING_RUNS}")
    elif "bundle" not in report:
        lines.append(
            f"auto takes: {report['auto']}, in the fastest precision that has passed the check for a bundle"
        )
    if bundle := report.get("bundle"):
        lines += _bundle_lines(bundle)
    if archive := report.get("archive"):
        lines += _archive_lines(archive)
    return "\n".join([*map(printable, lines), "healthy" if report["healthy"] else "NOT healthy"])


def _cpu() -> dict[str, Any]:
    """Return the model, the flags (None if unknown), the cores of the machine and the usable cores."""
    model, flags = platform.processor() or platform.machine() or "unknown", None
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        cpuinfo = ""
    if match := re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE):
        model = match[1].strip()
    if match := re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE):
        cpu_flags = set(match[1].split())
        flags = {flag: flag in cpu_flags for flag in CPU_FLAGS}
    return {"model": model, "flags": flags, "cores": os.cpu_count(), "usable": available_cpus()}


def _instruction_words(flags: Mapping[str, bool] | None) -> str:
    if flags is None:
        return "its instructions are unknown"
    present = ", ".join(name for name, has_flag in flags.items() if has_flag)
    absent = ", ".join(name for name, has_flag in flags.items() if not has_flag)
    return f"with {present or 'none of the fast instructions'}; without {absent or 'none'}"


def _gpu_words(gpu: Mapping[str, Any]) -> str:
    cards = "; ".join(
        f"{card['name']}, compute capability {card['compute_capability']}" for card in gpu["devices"]
    )
    driver = f"driver {gpu['driver'] or 'of unknown version'}, for CUDA {gpu['cuda']}" if gpu["cuda"] else ""
    return "; ".join(filter(None, (cards, driver, gpu["fault"]))) if cards or gpu["fault"] else "no card"


def _sqlite_fault() -> str:
    try:
        check_sqlite()
    except ArchiveError as error:
        return str(error)
    return ""


def _cache() -> dict[str, str]:
    """Return the cache folder and what is wrong with it. A missing one is not made: its parent is tried."""
    folder = cache_folder()
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(_TRIAL_BYTES))
        return {"folder": str(folder.absolute()), "fault": ""}
    except OSError as error:
        return {
            "folder": str(folder),
            "fault": f"cannot be written ({error.strerror or error}), so every start is slow; "
            "set SKINRET_CACHE to a folder that can be written",
        }


def _cure(name: str, reason: str | None, gpu: Mapping[str, Any]) -> str:
    """Return how to make a runtime run; "" if it runs, or if its reason already says how."""
    if not reason or "uninstall" in reason:
        return ""
    if RUNTIMES[name].on_card and not gpu["cuda"]:
        return "none without an NVIDIA card and its driver"
    return RUNTIMES[name].cure()


def _examine_bundle(path: Path, trusted_keys: str | Path | None) -> dict[str, Any]:
    report: dict[str, Any] = {"path": str(path)}
    try:
        bundle = Bundle.load(path, trusted_keys)
        manifest = bundle.manifest
        allowed, refused = choose(bundle)
        report |= {
            "model": f"{manifest.model} {manifest.version}",
            "fingerprint": manifest.fingerprint[:12],
            "files": len(manifest.files),
            "hashes": "all right",
            "signature": _signature(path, trusted_keys),
            "descriptor": manifest.layout.length,
            "tokens": manifest.text.length,
            "precision_checks": _precision_checks(bundle),
            "may_run": [f"{name}/{precision}" for name, precision in allowed],
            "refused": refused,
        }
        report |= _measure(path, trusted_keys)
    except SkinretError as error:
        report |= {"error": str(error), "code": error.code}
    return report


def _signature(path: Path, trusted_keys: str | Path | None) -> dict[str, Any]:
    """Return which key signed a loaded bundle. Loading has verified it if keys are configured."""
    verified = trusted_keys is not None or signing.KEY in os.environ
    report: dict[str, Any] = {"key": None, "verified": verified, "fault": ""}
    try:
        return report | {"key": signing.signer(path)}
    except BundleError as error:
        return report | {"fault": str(error)}


def _examine_archive(path: Path, fingerprint: str | None) -> dict[str, Any]:
    """Read an archive, and compare its model with the fingerprint of a bundle, if one is given."""
    report: dict[str, Any] = {"path": str(path)}
    try:
        with contextlib.closing(Archive.open(path)) as archive:
            report |= {
                "model": archive.model,
                "fingerprint": archive.fingerprint[:12],
                "belongs": None if fingerprint is None else archive.fingerprint[:12] == fingerprint,
                "schema": SCHEMA,  # an archive of another schema cannot be opened
                "bytes": _size([path]),
                "index_bytes": _size(archive.index.folder.glob("*")),
                "faults": maintenance.check(archive),
            }
            with contextlib.suppress(ArchiveError):  # its fault is among "faults"
                report["cases"] = len(archive)
                states = list(archive.index.file_states().values())
                report |= {
                    f"segments_{state}": states.count(state) for state in ("right", "stale", "missing")
                }
    except SkinretError as error:
        report |= {"error": str(error), "code": error.code}
    return report


def _size(files: Iterable[Path]) -> int:
    """Return the bytes of files; a file that another process removes meanwhile counts as none."""
    size = 0
    for file in files:
        with contextlib.suppress(OSError):
            size += file.stat().st_size
    return size


def _measure(path: Path, trusted_keys: str | Path | None) -> dict[str, Any]:
    """Open a bundle as "auto" does, twice, and embed a picture with words three times."""
    opened, times = [], []
    with io.BytesIO() as jpeg:
        noise = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
        Image.fromarray(noise).resize((768, 512)).save(jpeg, "JPEG")
        for _ in range(2):
            began = time.perf_counter()
            no_archive = path / "none.skinret"  # it does not exist, and is not made
            searcher = Searcher(path, no_archive, trusted_keys=trusted_keys)
            opened.append(time.perf_counter() - began)
            with searcher:
                if len(opened) == 2:
                    searcher.warmup()
                    for words in _WORDS:
                        began = time.perf_counter()
                        searcher.embed(jpeg.getvalue(), words)
                        times.append(time.perf_counter() - began)
                runtime, precision = searcher.runtime, searcher.precision
    return {
        "runtime": runtime,
        "precision": precision,
        "open_ms": round(opened[0] * 1e3, 1),
        "open_again_ms": round(opened[1] * 1e3, 1),
        "query_ms": round(sorted(times)[1] * 1e3, 1),
    }


def _precision_checks(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Return for each "runtime/precision" the verdict of the precision check, on site or with the bundle."""
    cache, known = cache_folder(), dict.fromkeys(bundle.manifest.precision_checks)
    for name in RUNTIMES:
        if not why_not(name):
            known |= dict.fromkeys(f"{name}/{p}" for p in precisions(name, bundle) if p != "fp32")
    checks = {}
    for key in known:
        name, _, precision = key.partition("/")
        if precision in PRECISIONS:
            record = read_record(bundle, name, precision, cache)
            queries, writing = (
                refusal(bundle, name, precision, cache, for_archive=to_write) for to_write in (False, True)
            )
            checks[key] = {"queries": queries or "passed", "writing": writing or "passed"} | _figures(record)
    return checks


def _figures(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the facts of a record and its worst figures for each archive; {} if it cannot be read."""
    if record is None:
        return {}
    try:
        worst: dict[str, dict[str, float]] = {}
        for name, row in record["rows"].items():
            figures = worst.setdefault(name.partition(", ")[2], {})
            for figure, worst_of in _WORST.items():
                if figure in row:
                    value = float(row[figure])
                    figures[figure] = worst_of((value, figures.get(figure, value)))
        return {
            "measured": "on site" if "bundle" in record else "with the bundle",
            "date": str(record["date"]),
            "validation_set": f"{record['queries']} queries, {record['source']}",
            "faults": [str(fault) for fault in record.get("archive_faults", record["faults"])],
            "at_worst": worst,
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _bundle_lines(bundle: Mapping[str, Any]) -> list[str]:
    lines = [f"bundle {bundle['path']}:"]

    def notify(name: str, *values: str) -> None:
        lines.extend(f"  {name if n == 0 else '':<11}{value}" for n, value in enumerate(values))

    if "model" in bundle:
        notify("model", f"{bundle['model']}, fingerprint {bundle['fingerprint']}")
        notify("hashes", f"{bundle['hashes']}, {bundle['files']} files")
        notify("signature", _signature_words(bundle["signature"]))
        notify("descriptor", f"{bundle['descriptor']} numbers; texts of up to {bundle['tokens']} tokens")
        for key, check in bundle["precision_checks"].items():
            notify("precision", *_check_lines(key, check))
        notify("may run", *_auto_lines(bundle))
    if "query_ms" in bundle:
        notify("auto takes", f"{bundle['runtime']} in {bundle['precision']}")
        notify("opens in", f"{bundle['open_ms']:.0f} ms, a second time in {bundle['open_again_ms']:.0f} ms")
        notify(
            "a query", f"{bundle['query_ms']:.0f} ms for a JPEG of 768 x 512 with words, without the search"
        )
    if "error" in bundle:
        notify("error", f"{bundle['error']} [{bundle['code']}]")
    return lines


def _archive_lines(archive: Mapping[str, Any]) -> list[str]:
    lines = [f"archive {archive['path']}:"]

    def notify(name: str, value: str) -> None:
        lines.append(f"  {name:<11}{value}")

    if "model" in archive:
        owner = {True: ", the bundle's", False: ", NOT the bundle's: a query would be refused", None: ""}
        notify(
            "model", f"{archive['model']}, fingerprint {archive['fingerprint']}{owner[archive['belongs']]}"
        )
        size, index_size = archive["bytes"] / 1e6, archive["index_bytes"] / 1e6
        notify("schema", f"{archive['schema']}; {size:.1f} MB, and {index_size:.1f} MB of pruning index")
    if "cases" in archive:
        notify("cases", str(archive["cases"]))
    if any(counts := [archive.get(f"segments_{state}", 0) for state in ("right", "stale", "missing")]):
        notify("index", "{} files right, {} stale, {} missing; a search makes these again".format(*counts))
    for fault in archive.get("faults", ()):
        notify("fault", fault)
    if archive.get("faults"):
        notify("cure", f"skinret archive check {archive['path']} --repair, or restore a backup")
    if "error" in archive:
        notify("error", f"{archive['error']} [{archive['code']}]")
    return lines


def _signature_words(signature: Mapping[str, Any]) -> str:
    if signature["key"] is None:
        return signature["fault"] or "none"
    verified = "verified" if signature["verified"] else f"not verified, because {signing.KEY} is not set"
    return f"by key {signature['key']}, {verified}"


def _check_lines(key: str, check: Mapping[str, Any]) -> list[str]:
    if "at_worst" not in check:
        return [f"{key}: {check['queries']}"]
    verdicts = ["passed" if check[use] == "passed" else "refused" for use in ("queries", "writing")]
    lines = [
        f"{key}: {verdicts[0]} for queries, {verdicts[1]} for writing an archive; "
        f"{check['validation_set']}, measured {check['measured']}, {check['date']}"
    ]
    for archive, worst in check["at_worst"].items():
        shown = (
            f"{words} {worst[figure]:{form}}" for figure, (words, form) in _SHOWN.items() if figure in worst
        )
        lines.append(f"  {archive}, at worst: {', '.join(shown)}")
    return [*lines, *(f"  fault: {fault}" for fault in check["faults"])]


def _auto_lines(bundle: Mapping[str, Any]) -> Sequence[str]:
    """Say what may run, in the order in which "auto" tries it, and which installed runtimes may not."""
    refused = [key for key in bundle["refused"] if "/" in key]
    lines = [", then ".join(bundle["may_run"]) or "nothing"]
    return [*lines, f"not {', '.join(refused)}: see the precision checks"] if refused else lines
