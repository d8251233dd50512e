"""skinret: the most similar confirmed cases of an archive, for a dermoscopy image and a few words."""

from . import _telemetry as _telemetry  # first of all: it is off in whatever loads from here on
from ._version import __version__ as __version__
from .cases import Case
from .errors import ArchiveError, BundleError, InputError, ParityError, RuntimeUnavailable, SkinretError
from .results import Hit, Results
from .searcher import Searcher

__all__ = [
    "ArchiveError",
    "BundleError",
    "Case",
    "Hit",
    "InputError",
    "ParityError",
    "Results",
    "RuntimeUnavailable",
    "Searcher",
    "SkinretError",
]
