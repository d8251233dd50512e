"""The error of an extra whose package is not installed, or is installed and cannot be imported."""

import importlib.util

from .errors import MissingExtra

# Training and export need versions that were tested together; the README gives the same command.
_PINNED = dict.fromkeys(("train", "timm", "export", "compare"), " (with constraints.txt of the repository)")


def missing_extra(wrong: str, error: Exception, extra: str) -> MissingExtra:
    """Return the error to raise for what an import has raised.

    wrong : what cannot be done.
    extra : the extra that brings the package.
    """
    absent = _absent_package(error)
    install = f'pip install "skinret-infer[{extra}]"{_PINNED.get(extra, "")}'
    return MissingExtra(
        wrong,
        code="extra-missing" if absent else "extra-broken",
        expected=f"the extra {extra}",
        found=f"no package {absent}" if absent else f"{type(error).__name__}: {error}",
        cure=install if absent else f"install the named package again; {install} brings its version",
    )


def _absent_package(error: Exception) -> str:
    """Return the package that is not installed; "" if it is installed and the import failed otherwise."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return package if package and importlib.util.find_spec(package) is None else ""
