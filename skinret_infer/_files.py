"""Files: atomic writing (a temporary name, fsync, rename), paths inside a folder, hashes, arrays."""

import contextlib
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


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; a clean exit gives it the name `path`, any other removes it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "partial")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; a clean exit gives it the name `path`, for the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "partial")
    temporary.mkdir()
    try:
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            sync(file)
        old = _beside(path, "old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    """Return a name that no other thread, process or container that writes the same file has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{what}")


def sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Listings = dict[Path, dict[str, list[str]]]  # of a folder: its files by their names without case


def resolve_inside(folder: str | Path, name: str) -> Path:
    """Return the path of a file by its name relative to a folder, which it may not leave.

    Symbolic links are followed: what the folder's owner placed in it belongs to it. A name that is absolute,
    has a drive or climbs out by `..`, as POSIX or Windows reads it, raises InputError.
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
            else:  # Windows leaves spaces and dots at an end out, so that ".. " may be ".."
                outside = True
    if outside:
        raise InputError(
            f"the image {name!r:.200} is outside its folder",
            code="image-outside",
            expected=f"a path relative to {folder}, and below it",
            cure="name a folder above it",
        )
    return Path(folder, *parts)


def find_file(folder: str | Path, name: str, listings: Listings | None = None) -> Path:
    """Return the path of a file by its name relative to a folder, as `below` does.

    Where there is none of exactly that name, one that differs in the spelling of Unicode or in the case of
    letters is taken; if two do, InputError is raised. Where there is none either, it is the path of the name.

    listings : of the folders that were read already, if many files are looked for.
    """
    path = resolve_inside(folder, name)
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if path.exists():
            return path
    listings = {} if listings is None else listings
    here = Path(folder)
    for part in path.relative_to(folder).parts:
        if here not in listings:
            listings[here] = {}
            with contextlib.suppress(OSError, ValueError):
                for found in sorted(here.iterdir()):
                    listings[here].setdefault(_folded(found.name), []).append(found.name)
        there = listings[here].get(_folded(part), [])
        alike = [n for n in there if n == part] or [n for n in there if nfc(n) == nfc(part)] or there
        if len(alike) > 1:
            raise InputError(
                f"the image {name!r:.200} may be one of several files",
                code="image-ambiguous",
                expected="one file of that name, whatever the case of its letters",
                found=f"{', '.join(map(repr, alike)):.200} in {here}",
                cure="write its name just as the file has it, or rename one",
            )
        if not alike:
            return path
        here /= alike[0]
    return here


def _folded(name: str) -> str:
    return nfc(nfc(name).casefold())


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_array(path: Path) -> npt.NDArray[Any]:
    """Map the array of a .npy file. Raises OSError, and ValueError for whatever is wrong with it."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy reads the header as Python
        raise ValueError(str(error) or type(error).__name__) from None
