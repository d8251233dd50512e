"""Built engines on disk. A file says what it was built from and for and proves its bytes, or is not used."""

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
_ALIGNED = 64  # bytes: where an engine begins in its file, so that a runtime may use it as it lies there
# What sets apart engines that are used side by side. In the rest of a key the newer takes the older's place.
_PLACE = ("graph", "onnx", "runtime", "precision", "capability", "device", "platform")
_logger = logging.getLogger(__name__)


class _Building:
    """The lock of the thread that builds; a child that is forked meanwhile takes another."""

    def __init__(self) -> None:
        self.after_fork()
        _forks.renew(self)

    def after_fork(self) -> None:
        self.lock = threading.Lock()


_building = _Building()


def cache_folder(folder: str | Path | None = None) -> Path:
    """Return the cache: `folder`, else SKINRET_CACHE, else XDG_CACHE_HOME/skinret, else ~/.cache/skinret.

    For a user without a home, as in many containers, it is a folder that cannot be made.
    """
    if chosen := folder or os.environ.get("SKINRET_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skinret"
    except RuntimeError:
        return Path(os.devnull) / "skinret"


def engine_path(folder: Path, key: Key) -> Path:
    """Return where the engine of a key stands; engines that differ only in version or driver share it."""
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
    refused: str = "",
    required: bool = False,
) -> bytes | memoryview:
    """Return the engine at `path` if it is whole and its key is `key`, else build it and keep it there.

    It is mapped, so that its pages are the system's to share and to drop. Who finds another building the
    same one waits for it. Where nothing can be written the engine serves this process alone, with a warning
    in the log: an answer is worth more than a file; with `required` it is an error.

    refused : why the runtime would not take the engine that is there; it is then built again.
    """
    payload, fault = (None, refused) if refused else _read(path, key)
    if payload is not None:
        return payload
    with _building.lock, contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            waited = stack.enter_context(_lock(path.with_suffix(".lock"), notify))
        except OSError as error:
            _not_kept(path, error, required)
            return build()
        if waited or not refused:
            payload, fault = _read(path, key)
            if payload is not None:
                return payload
        if fault:
            notify(f"{path.name} {fault}; it is built again")
        built = build()
        try:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                header = json.dumps({"key": dict(key), "sha256": hashlib.sha256(built).hexdigest()}).encode()
                padding = b" " * (-(len(_MAGIC) + len(header) + 1) % _ALIGNED)
                file.write(_MAGIC + header + padding + b"\n")
                file.write(built)
        except OSError as error:
            _not_kept(path, error, required)
            return built
        return _read(path, key)[0] or built


def drop(engine: bytes | memoryview) -> None:
    """Let the system have the pages of an engine that was read; what is read again comes from its file."""
    mapped = engine.obj if isinstance(engine, memoryview) else None
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _read(path: Path, key: Key) -> tuple[memoryview | None, str]:
    """Return the payload, or None and what is wrong with the file; nothing, if there is none."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except ValueError:  # nothing in it
        return None, "is not an engine of skinret"
    except OSError as error:
        return None, f"cannot be read ({error})"
    end = data.find(b"\n", len(_MAGIC))
    if data[: len(_MAGIC)] != _MAGIC or end < 0:
        return None, "is not an engine of skinret"
    try:
        header: dict[str, Any] = json.loads(data[len(_MAGIC) : end])
        said, sha256 = dict(header["key"]), header["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, "has a header that cannot be read"
    if other := [f"{n} {said.get(n)}, not {v}" for n, v in key.items() if said.get(n) != v]:
        return None, f"is of another kind ({'; '.join(other)})"
    payload = memoryview(data)[end + 1 :]
    if hashlib.sha256(payload).hexdigest() != sha256:
        return None, "is cut short or damaged"
    return payload, ""


@contextlib.contextmanager
def _lock(path: Path, notify: Notify) -> Iterator[bool]:
    """Hold a lock between processes and give whether it had to be waited for.

    Without flock, on Windows and some network drives, two may build at once; each then puts a whole file.
    """
    waited = False
    with path.open("wb") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                notify(f"{path.stem} is being built by another process; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass
        try:
            yield waited
        finally:  # closing the file would not do: a child forked meanwhile holds it too
            if sys.platform != "win32":
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)


def _not_kept(path: Path, error: OSError, required: bool) -> None:
    if required:
        raise RuntimeUnavailable(
            f"{path} cannot be written",
            code="engine-cache",
            expected="a folder that can be written",
            found=str(error),
            cure="give another cache folder, by option or as SKINRET_CACHE",
        ) from None
    _warn(path.parent, error.strerror or str(error))


@functools.cache
def _warn(folder: Path, reason: str) -> None:
    """Warn of a folder once in a process, whatever the number of engines."""
    _logger.warning(
        "%s cannot be written (%s): engines are not cached and every start builds them again; "
        "set SKINRET_CACHE to a folder that can be written",
        folder,
        reason,
    )
