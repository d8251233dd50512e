"""The errors of skinret: each says what was wrong, what was expected, what was found and how to cure it."""


class SkinretError(Exception):
    """Base of every error that skinret raises on purpose.

    Parameters
    ----------
    wrong : what was wrong, in one clause.
    code : a stable, machine-readable name of the fault, such as ``"image-truncated"``.
    expected, found, cure : the rest of the message, in that order; an empty one is left out.
    """

    exit_code = 1

    def __init__(self, wrong: str, *, code: str, expected: str = "", found: str = "", cure: str = "") -> None:
        parts = [wrong, expected and f"expected {expected}", found and f"found {found}"]
        message = "; ".join(part for part in parts if part) + "."
        super().__init__(f"{message} To cure it: {cure}." if cure else message)
        self.code = code


class BundleError(SkinretError):
    """The bundle is missing, damaged, or of a schema that this version does not read."""


class ArchiveError(SkinretError):
    """The archive is missing, damaged, empty, locked, or belongs to another model."""


class RuntimeUnavailable(SkinretError):
    """The runtime that was asked for cannot run here."""

    exit_code = 4


class InputError(SkinretError):
    """An image, text, case, table or option given by the caller cannot be used."""


class ParityError(SkinretError):
    """The exported graphs do not do what the PyTorch model does."""

    exit_code = 3
