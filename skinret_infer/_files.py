"""Files: atomic writing (a temporary name, fsync, rename), paths inside a folder, hashes, arrays."""

import contextlib
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt

from ._values import nfc
from .errors import InputError

_PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename the file to `path` at a clean exit, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path, "partial")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; a clean exit replaces `path` by it, any other removes it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path, "partial")
    temporary.mkdir()
    try:
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            sync(file)
        old = _temporary_path(path, "old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_path(path: Path, ending: str) -> Path:
    """Return a path beside `path` that no other thread, process or container has for the same file."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{ending}")


def remove_partial(path: Path) -> None:
    """Remove what a killed process left of its writing to `path`."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        partial.unlink(missing_ok=True)


def pictures_below(folder: Path) -> list[Path]:
    """Return the files below a folder whose endings are those of pictures, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURE_ENDINGS)


def sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Listings = dict[Path, dict[str, list[str]]]  # for each folder: the names in it, by name without case


def resolve_inside(folder: str | Path, name: str) -> Path:
    """Return the path of a file by its name relative to a folder. Raises InputError for a name outside it.

    A name is outside if it is absolute, has a drive or leaves the folder by `..`, as POSIX or Windows reads
    it. Symbolic links are followed: the owner of the folder made them.
    """
    parts: list[str] = []
    outside = bool(PurePosixPath(name).root or PureWindowsPath(name).anchor)
    for flavour in (PureWindowsPath, PurePosixPath):
        parts.clear()
        for part in flavour(name).parts:
            if part.rstrip(" ."):
                parts.append(part)
            elif part == ".." and parts:
                parts.pop()
            else:  # Windows ignores spaces and dots at the end of a name, so ".. " may be ".."
                outside = True
    if outside:
        raise InputError(
            f"the image {name!r:.200} is outside its folder",
            code="image-outside",
            expected=f"a path relative to {folder}, and below it",
            cure="name a folder that holds it",
        )
    return Path(folder, *parts)


def find_file(folder: str | Path, name: str, listings: Listings | None = None) -> Path:
    """Return the path of a file by its name relative to a folder, as `resolve_inside` does.

    If no file has exactly that name, the name of a file may differ in the spelling of Unicode or in the case
    of letters; InputError is raised if two files match so. If none does, the path need not exist.

    listings : a dict that keeps the names in the folders between calls, for many files.
    """
    path = resolve_inside(folder, name)
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if path.exists():
            return path
    listings = {} if listings is None else listings
    current = Path(folder)
    for part in path.relative_to(folder).parts:
        if current not in listings:
            listings[current] = _list_folder(current)
        names = listings[current].get(_fold(part), [])
        matches = [n for n in names if n == part] or [n for n in names if nfc(n) == nfc(part)] or names
        if len(matches) > 1:
            raise InputError(
                f"the image {name!r:.200} may be one of several files",
                code="image-ambiguous",
                expected="one file of that name, whatever the case of its letters",
                found=f"{', '.join(map(repr, matches)):.200} in {current}",
                cure="write the name exactly as the file has it, or rename one",
            )
        if not matches:
            return path
        current /= matches[0]
    return current


def _list_folder(folder: Path) -> dict[str, list[str]]:
    """Return the names in a folder, by name without case; none if it cannot be read."""
    names: dict[str, list[str]] = {}
    with contextlib.suppress(OSError, ValueError):
        for path in sorted(folder.iterdir()):
            names.setdefault(_fold(path.name), []).append(path.name)
    return names


def _fold(name: str) -> str:
    return nfc(nfc(name).casefold())


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_array(path: Path) -> npt.NDArray[Any]:
    """Map the array of a .npy file into memory. Raises OSError, and ValueError for a malformed file."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy reads the header as Python
        raise ValueError(str(error) or type(error).__name__) from None
