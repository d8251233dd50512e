"""skinret: the most similar confirmed cases of an archive, for a dermoscopy image and a few words.

The public names are imported here. Of the modules below only `skinret_infer.testing` is part of the API.
"""

from . import _telemetry as _telemetry  # first: it switches off the telemetry of libraries that load later
from ._version import __version__ as __version__
from .archive.filters import Range
from .archive.store import AddReport, Match, Record, SearchResult, Store
from .bundle import Manifest
from .cases import Case
from .descriptor import Layout
from .errors import (
    ArchiveError,
    AuditError,
    BundleError,
    InputError,
    MissingExtra,
    ParityError,
    RuntimeUnavailable,
    SkinretError,
    SkinretWarning,
)
from .evidence import Evidence, EvidenceMap
from .results import Hit, Results
from .searcher import Searcher
from .trust.audit import AuditLog
from .words.checklist import Checklist, Criterion, Language, Way
from .words.reading import Finding, Note, Reading

__all__ = [
    "AddReport",
    "ArchiveError",
    "AuditError",
    "AuditLog",
    "BundleError",
    "Case",
    "Checklist",
    "Criterion",
    "Evidence",
    "EvidenceMap",
    "Finding",
    "Hit",
    "InputError",
    "Language",
    "Layout",
    "Manifest",
    "Match",
    "MissingExtra",
    "Note",
    "ParityError",
    "Range",
    "Reading",
    "Record",
    "Results",
    "RuntimeUnavailable",
    "SearchResult",
    "Searcher",
    "SkinretError",
    "SkinretWarning",
    "Store",
    "Way",
]
