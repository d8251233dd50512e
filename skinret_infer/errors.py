"""The errors of skinret, which say what was wrong, expected and found and how to cure it; and warnings."""

import copyreg
from typing import Any


class SkinretError(Exception):
    """Base of every error that skinret raises on purpose.

    Parameters
    ----------
    wrong :
        what was wrong, in one clause.
    code :
        a stable, machine-readable name of the fault, such as ``"image-truncated"``.
    expected, found, cure :
        the rest of the message, in that order; an empty one is left out.
    case_id :
        the case that it is about, or None.

    Notes
    -----
    All parameters are attributes too. An error can be pickled, as by a process pool.
    """

    exit_code = 1

    def __init__(
        self,
        wrong: str,
        *,
        code: str,
        expected: str = "",
        found: str = "",
        cure: str = "",
        case_id: str | None = None,
    ) -> None:
        parts = [wrong, expected and f"expected {expected}", found and f"found {found}"]
        message = "; ".join(part for part in parts if part) + "."
        super().__init__(f"{message} To cure it: {cure}." if cure else message)
        self.wrong, self.code, self.expected, self.found, self.cure = wrong, code, expected, found, cure
        self.case_id = case_id

    def to_dict(self) -> dict[str, str | None]:
        """Return the code and the parts of the message as plain values, for JSON."""
        return {
            name: getattr(self, name) for name in ("code", "wrong", "expected", "found", "cure", "case_id")
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class BundleError(SkinretError):
    """The bundle is missing, damaged, or of a schema that this version does not read."""


class ArchiveError(SkinretError):
    """The archive is missing, damaged, empty, locked, or belongs to another model."""


class RuntimeUnavailable(SkinretError):
    """The chosen runtime cannot run here."""

    exit_code = 4


class InputError(SkinretError):
    """An image, text, case, table or option given by the caller cannot be used."""


class MissingExtra(RuntimeUnavailable, InputError):
    """A package of an extra is not installed, or cannot be imported."""


class AuditError(SkinretError):
    """The audit log cannot be written or read."""


class ParityError(SkinretError):
    """The exported graphs do not do what the PyTorch model does."""

    exit_code = 3


def printable(text: str) -> str:
    """Return text on one line, with what would move a cursor or turn the writing round as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class SkinretWarning(str):
    """A warning for a person, with a stable, machine-readable name, such as "words-unknown", as its code."""

    __slots__ = ("code",)
    code: str

    def __new__(cls, text: str, code: str = "") -> "SkinretWarning":
        warning = super().__new__(cls, text)
        warning.code = code
        return warning

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.code)
