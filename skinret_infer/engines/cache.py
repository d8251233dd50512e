"""Built engines on disk. An engine is used only if its file has the right key and the right SHA-256."""

import contextlib
import functools
import hashlib
import json
import logging
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import _forks
from .._files import atomic_write
from ..errors import RuntimeUnavailable
from .base import Notify

Key = Mapping[str, str]  # everything an engine depends on, by name
_MAGIC = b"skinret engine 2\n"
_ALIGNMENT = (
    64  # bytes: an engine begins at a multiple in its file, so that a runtime can use the mapped file
)
# The names of the key that go into the path. An engine that differs in another name replaces the older one.
_PLACE = ("graph", "onnx", "runtime", "precision", "capability", "device", "platform")
_logger = logging.getLogger(__name__)


class _BuildLock:
    """The lock of the thread that builds; a forked child makes a new one."""

    def __init__(self) -> None:
        self.after_fork()
        _forks.renew(self)

    def after_fork(self) -> None:
        self.lock = threading.Lock()


_build_lock = _BuildLock()


def cache_folder(folder: str | Path | None = None) -> Path:
    """Return the cache: `folder`, else SKINRET_CACHE, else XDG_CACHE_HOME/skinret, else ~/.cache/skinret.

    For a user without a home, as in many containers, it is a folder that cannot be made.
    """
    if path := folder or os.environ.get("SKINRET_CACHE"):
        return Path(path)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skinret"
    except RuntimeError:
        return Path(os.devnull) / "skinret"


def engine_path(folder: Path, key: Key) -> Path:
    """Return the path of the engine of a key. Engines that differ only in version or driver share a path."""
    place = hashlib.sha256(json.dumps([key[name] for name in _PLACE]).encode()).hexdigest()
    return (
        folder / key["runtime"] / f"{key['graph']}-{key['precision']}-{key['capability']}-{place[:16]}.engine"
    )


def cached(
    path: Path,
    key: Key,
    build: Callable[[], bytes],
    *,
    notify: Notify,
    rejection: str = "",
    required: bool = False,
) -> bytes | memoryview:
    """Return the engine at `path` if it is undamaged and its key is `key`, else build it and write it there.

    The file is mapped, so that the system can share its pages and free them. If another process or thread
    builds the same engine, the call waits for it. If the file cannot be written, only this process has the
    engine, with a warning in the log.

    rejection : why the runtime does not accept the engine in the file; it is then built again.
    required : raise RuntimeUnavailable if the file cannot be written.
    """
    payload, fault = (None, rejection) if rejection else _read(path, key)
    if payload is not None:
        return payload
    with _build_lock.lock, contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            had_to_wait = stack.enter_context(_lock(path.with_suffix(".lock"), notify))
        except OSError as error:
            _report_unwritable(path, error, required)
            return build()
        if had_to_wait or not rejection:
            payload, fault = _read(path, key)
            if payload is not None:
                return payload
        if fault:
            notify(f"{path.name} {fault}; it is built again")
        engine = build()
        try:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                header = json.dumps({"key": dict(key), "sha256": hashlib.sha256(engine).hexdigest()}).encode()
                padding = b" " * (-(len(_MAGIC) + len(header) + 1) % _ALIGNMENT)
                file.write(_MAGIC + header + padding + b"\n")
                file.write(engine)
        except OSError as error:
            _report_unwritable(path, error, required)
            return engine
        return _read(path, key)[0] or engine


def drop(engine: bytes | memoryview) -> None:
    """Free the memory pages of a mapped engine. The system reads them from the file again if needed."""
    mapping = engine.obj if isinstance(engine, memoryview) else None
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _read(path: Path, key: Key) -> tuple[memoryview | None, str]:
    """Return the engine and "", or None and the fault of the file; the fault is "" if there is no file."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except ValueError:  # an empty file
        return None, "is not an engine of skinret"
    except OSError as error:
        return None, f"cannot be read ({error})"
    end = data.find(b"\n", len(_MAGIC))
    if data[: len(_MAGIC)] != _MAGIC or end < 0:
        return None, "is not an engine of skinret"
    try:
        header: dict[str, Any] = json.loads(data[len(_MAGIC) : end])
        stored_key, sha256 = dict(header["key"]), header["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, "has a header that cannot be read"
    differences = [
        f"{name} {stored_key.get(name)}, not {value}"
        for name, value in key.items()
        if stored_key.get(name) != value
    ]
    if differences:
        return None, f"is of another kind ({'; '.join(differences)})"
    payload = memoryview(data)[end + 1 :]
    if hashlib.sha256(payload).hexdigest() != sha256:
        return None, "is cut short or damaged"
    return payload, ""


@contextlib.contextmanager
def _lock(path: Path, notify: Notify) -> Iterator[bool]:
    """Hold a lock between processes, and yield whether the call had to wait for it.

    Without flock, on Windows and some network drives, two processes may build at once; each then writes a
    complete file.
    """
    had_to_wait = False
    with path.open("wb") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                had_to_wait = True
                notify(f"{path.stem} is being built by another process; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass
        try:
            yield had_to_wait
        finally:  # to close the file is not enough: a forked child may hold it too
            if sys.platform != "win32":
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)


def _report_unwritable(path: Path, error: OSError, required: bool) -> None:
    if required:
        raise RuntimeUnavailable(
            f"{path} cannot be written",
            code="engine-cache",
            expected="a writable folder",
            found=str(error),
            cure="give another cache folder, as an option or as SKINRET_CACHE",
        ) from None
    _warn(path.parent, error.strerror or str(error))


@functools.cache
def _warn(folder: Path, reason: str) -> None:
    """Warn of a folder only once in a process, for all engines."""
    _logger.warning(
        "%s cannot be written (%s): engines are not cached and every start builds them again; "
        "set SKINRET_CACHE to a writable folder",
        folder,
        reason,
    )
