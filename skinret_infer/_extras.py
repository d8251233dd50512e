"""The error of an extra whose package is not installed, or is installed and cannot be imported."""

import importlib.util

from .errors import MissingExtra

# Of what trains and exports there are versions that were tested together, as the README has it.
_PINNED = dict.fromkeys(("train", "export"), " -c constraints.txt")


def missing_extra(wrong: str, error: Exception, extra: str, code: str = "") -> MissingExtra:
    """Return the error to raise for what an import has raised.

    wrong : what cannot be done.
    extra : the extra that brings the package.
    code : of the error; "" gives extra-missing, or extra-broken for a package that is there.
    """
    absent = _absent_package(error)
    install = f'pip install "skinret-infer[{extra}]"{_PINNED.get(extra, "")}'
    return MissingExtra(
        wrong,
        code=code or ("extra-missing" if absent else "extra-broken"),
        expected=f"the extra {extra}",
        found=f"no package {absent}" if absent else f"{type(error).__name__}: {error}",
        cure=install if absent else f"install the named package again; {install} brings its version",
    )


def _absent_package(error: Exception) -> str:
    """Return the package that an import did not find; "" if it is there, and something else is wrong."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return package if package and importlib.util.find_spec(package) is None else ""
