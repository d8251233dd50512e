"""Tables of cases: a CASES.csv, or a Derm7pt folder as it was released."""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ._files import Listings, find_file
from ._values import is_storable, nfc
from .cases import Case
from .checklist import DERM7PT_PHRASES, DERM7PT_VALUES
from .errors import InputError

MAX_BYTES = 100_000_000  # of a table or a file of ids: a million cases of a hundred characters
MAX_COLUMNS = 1000
MAX_CELL = 100_000  # characters
_FILES = ("image", "derm")  # columns of them
_NO_WIDTH = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"  # spaces and marks that nobody sees


_DERM7PT_OTHERS = {"basal cell carcinoma", "dermatofibroma", "lentigo", "miscellaneous", "vascular lesion"}


@dataclass(frozen=True, slots=True)
class CaseTable:
    """The cases of a table in its order, and what a person should know of the reading."""

    cases: list[Case]
    notes: list[str]


def derm7pt_group(diagnosis: str) -> str | None:
    """Return mel, nevus or bkl, the three groups of the paper, or None for a diagnosis outside them."""
    if diagnosis.startswith("melanoma"):
        return "mel"
    if diagnosis.endswith("nevus"):
        return "nevus"
    return "bkl" if diagnosis in ("seborrheic keratosis", "melanosis") else None


def read_cases(source: str | Path, images: str | Path | None = None) -> CaseTable:
    """Read a CASES.csv (columns case_id, image, diagnosis, any more) or a Derm7pt `release_v0` folder.

    Image paths are relative to `images`, by default the table's folder, and may not leave it (`below`).
    Columns `group` and `confirmed_by` are taken as such; every other becomes an attribute, an empty cell
    none. A cell is text, also one that a spreadsheet would calculate. The whole table is checked before
    anything is returned: InputError names the line, and every image file that is missing or outside.
    """
    source = Path(source)
    try:
        is_folder = source.is_dir()
    except OSError as error:
        raise InputError(f"{source} cannot be read", code="table-unreadable", found=str(error)) from None
    if is_folder:
        if images:
            raise InputError(
                f"{source} is a Derm7pt folder, which holds its images",
                code="option",
                expected="no other folder of images",
                found=str(images),
                cure="leave --images out",
            )
        return _read_derm7pt(source)
    columns, rows = _read_csv(source, ("case_id", "image", "diagnosis"))
    folder = Path(images) if images else source.parent
    files = _Files(folder)
    cases, seen = [], dict[str, int]()
    named = {"case_id", "image", "diagnosis", "group", "confirmed_by"}
    for line, row in rows:
        case_id = _unique_id(row, "case_id", source, line, seen)
        cases.append(
            Case(
                case_id,
                files.find(row["image"], line),
                diagnosis=row["diagnosis"],
                group=row.get("group", ""),
                confirmed_by=row.get("confirmed_by") or "unknown",
                image_ref=row["image"],
                attributes={c: row[c] for c in columns if c not in named and row[c]},
            )
        )
    files.check(source)
    return CaseTable(cases, _resemblances(columns, (*named, *DERM7PT_PHRASES)))


def _unique_id(row: dict[str, str], column: str, table: Path, line: int, seen: dict[str, int]) -> str:
    """Check a row's case id against those of earlier lines, and note it among them."""
    case_id = row[column]
    if not case_id:
        raise InputError(
            f"{table}, line {line}: {column} is empty",
            code="table-value",
            expected="a unique id for each case",
        )
    if case_id in seen:
        raise InputError(
            f"{table}, line {line}: {column} {case_id!r:.80} appears twice",
            code="table-duplicate",
            expected="each case once",
            found=f"it first stands in line {seen[case_id]}",
            cure="remove or rename one",
        )
    seen[case_id] = line
    return case_id


def read_ids(path: str | Path) -> set[str]:
    """Read case ids, one a line. Raises InputError."""
    path = Path(path)
    try:
        lines = {nfc(_trimmed(line)) for line in _text(path).splitlines()} - {""}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read",
            code="table-missing",
            expected="a text file, one case id a line",
            found=str(error),
        ) from None
    if any(not is_storable(line) or len(line) > MAX_CELL for line in lines):
        raise InputError(
            f"{path} is no list of case ids",
            code="table-unreadable",
            expected=f"text of at most {MAX_CELL:,} characters a line",
            found="a NUL, or a longer line",
        )
    return lines


def _text(path: Path) -> str:
    """Return the text of a file. Raises InputError for one of too many bytes, OSError, and ValueError."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{path} has too many bytes",
            code="table-too-large",
            expected=f"at most {MAX_BYTES / 1e6:g} MB",
            found="more",
            cure="split it, and index the parts one after the other",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        line = data.count(b"\n", 0, error.start) + 1
        found = "UTF-16" if wide else f"a byte that is not UTF-8 in line {line}: {data[error.start]:#04x}"
        raise InputError(
            f"{path} cannot be read",
            code="table-unreadable",
            expected="text in UTF-8",
            found=found,
            cure='save it as "CSV UTF-8", as Excel calls it',
        ) from None


def _trimmed(text: str) -> str:
    """Return a cell without the spaces around it."""
    while (shorter := text.strip().strip(_NO_WIDTH)) != text:
        text = shorter
    return text


def _read_derm7pt(folder: Path) -> CaseTable:
    root = folder / "release_v0" if (folder / "release_v0").is_dir() else folder
    meta = root / "meta" / "meta.csv"
    if not meta.is_file():
        raise InputError(
            f"{folder} is not a Derm7pt folder",
            code="table-missing",
            expected="meta/meta.csv and images/ in it",
            found="no meta/meta.csv",
            cure="name the folder release_v0, or a CASES.csv",
        )
    _, rows = _read_csv(meta, ("case_num", "diagnosis", "derm", *DERM7PT_PHRASES))
    files = _Files(root / "images")
    cases, left_out = [], Counter[str]()
    unknown: dict[str, list[int]] = {}
    strange: dict[str, list[int]] = {}
    seen = dict[str, int]()
    for line, row in rows:
        _unique_id(row, "case_num", meta, line, seen)
        for name, known in DERM7PT_VALUES.items():
            if row[name] and row[name] not in known:
                strange.setdefault(f"{name} {row[name]!r:.80}", []).append(line)
        group = derm7pt_group(row["diagnosis"])
        if group is None:
            if row["diagnosis"] in _DERM7PT_OTHERS:
                left_out[row["diagnosis"]] += 1
            else:
                unknown.setdefault(f"{row['diagnosis']!r:.80}", []).append(line)
            continue
        attributes = {name: row[name] for name in DERM7PT_PHRASES if row[name]}
        confirmed = row.get("confirmed_by") or "unknown"
        cases.append(
            Case(
                row["case_num"],
                files.find(row["derm"], line),
                diagnosis=row["diagnosis"],
                attributes=attributes,
                group=group,
                confirmed_by=confirmed,
                image_ref=row["derm"],
            )
        )
    for what, found in (("diagnoses", unknown), ("values", strange)):
        if found:
            raise InputError(
                f"{meta} has {what} that Derm7pt does not know",
                code="table-value",
                expected="the words of the released table",
                found="; ".join(
                    f"{name} ({len(lines)}, first in line {lines[0]})" for name, lines in found.items()
                ),
                cure="correct them, or make a CASES.csv, which takes any words",
            )
    files.check(meta)
    notes = []
    if left_out:
        listed = ", ".join(f"{name} {n}" for name, n in left_out.most_common())
        notes.append(
            f"{sum(left_out.values())} cases outside the groups mel, nevus and bkl left out: {listed}"
        )
    return CaseTable(cases, notes)


def _read_csv(path: Path, needed: tuple[str, ...]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the names of the columns, and of each row its line and its cells by name."""
    try:
        reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        header = [nfc(_trimmed(name)) for name in next(reader, [])]
        _check_header(header, needed, path)
        columns = [name for name in header if name]
        rows = []
        for cells in reader:
            if not cells:  # an empty line
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise InputError(
                    f"{where}: the row does not fit the header",
                    code="table-row",
                    expected=f"{len(header)} cells",
                    found="more" if len(cells) > len(header) else "fewer",
                )
            row = {}
            for name, cell in zip(header, cells, strict=True):
                if len(cell) > MAX_CELL or not is_storable(cell):
                    raise InputError(
                        f"{where}: {name!r:.80} cannot be stored",
                        code="table-value",
                        expected=f"text of at most {MAX_CELL:,} characters",
                        found=f"{len(cell):,}" if len(cell) > MAX_CELL else "a NUL",
                    )
                if name:  # a file has its name in the very spelling
                    row[name] = _trimmed(cell) if name in _FILES else nfc(_trimmed(cell))
                elif _trimmed(cell):
                    raise InputError(
                        f"{where}: a cell stands below a column without a name",
                        code="table-columns",
                        expected="a name for each column that has cells",
                        found=f"{cell!r:.80}",
                    )
            rows.append((reader.line_num, row))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist",
            code="table-missing",
            expected="a CASES.csv or a Derm7pt folder",
            cure="check the path",
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read",
            code="table-unreadable",
            expected="a CSV file in UTF-8",
            found=str(error),
        ) from None
    if not rows:
        raise InputError(
            f"{path} has no cases",
            code="table-empty",
            expected="a row for each case",
            found="the header alone",
        )
    return columns, rows


def _check_header(header: list[str], needed: tuple[str, ...], path: Path) -> None:
    """Raise InputError for a header that is too long, names a column twice, or lacks one that is needed."""
    if len(header) > MAX_COLUMNS:
        raise InputError(
            f"{path}, line 1: there are too many columns",
            code="table-columns",
            expected=f"at most {MAX_COLUMNS:,}",
            found=f"{len(header):,}",
        )
    if twice := sorted({c for c in header if c and header.count(c) > 1}):
        raise InputError(
            f"{path}, line 1: columns appear twice: {', '.join(twice):.200}",
            code="table-columns",
            expected="each column once",
        )
    if missing := [c for c in needed if c not in header]:
        sign = next((s for s in ";\t|" if len(header) == 1 and s in header[0]), None)
        raise InputError(
            f"{path}, line 1: columns are missing: {', '.join(missing)}",
            code="table-columns",
            expected=", ".join(needed),
            found=f"{', '.join(header):.200}" or "an empty file",
            cure=f"separate the columns by commas, not by {sign!r}" if sign else "",
        )


def _resemblances(columns: list[str], known: Collection[str]) -> list[str]:
    """Say of each column that is nearly one that is known that it is not taken for that."""

    def plain(name: str) -> str:
        return "".join(c for c in name.casefold() if c.isalnum())

    by_plain = {plain(name): name for name in known}
    return [
        f"column {column!r} becomes an attribute of its own: write {meant!r} if you mean that"
        for column in columns
        if column not in known and (meant := by_plain.get(plain(column)))
    ]


class _Files:
    """Find image files, whatever the case and spelling of their names, and report all faults at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._missing: list[tuple[int, str]] = []
        self._outside: list[tuple[int, str]] = []
        self._ambiguous: list[tuple[int, str]] = []
        self._listings: Listings = {}

    def find(self, name: str, line: int) -> Path:
        try:
            path = find_file(self._folder, name, self._listings)
        except InputError as error:
            faults = self._ambiguous if error.code == "image-ambiguous" else self._outside
            faults.append((line, name))
            return self._folder
        try:
            there = bool(name) and path.is_file()
        except (OSError, ValueError):  # a name that no file can have
            there = False
        if not there:
            self._missing.append((line, name))
        return path

    def check(self, table: Path) -> None:
        if self._outside:
            raise InputError(
                f"{table} names {len(self._outside)} image files outside the folder of images",
                code="table-image-outside",
                expected=f"paths relative to {self._folder}, and below it",
                found=_listed(self._outside),
                cure="name a folder above all of them with --images, and the files relative to it",
            )
        if self._ambiguous:
            raise InputError(
                f"{table} names {len(self._ambiguous)} image files that may be one of several",
                code="table-image-ambiguous",
                expected=f"one file below {self._folder} for each name, whatever the case of its letters",
                found=_listed(self._ambiguous),
                cure="write the names just as the files have them, or rename files",
            )
        if self._missing:
            raise InputError(
                f"{table} names {len(self._missing)} image files that do not exist",
                code="table-image",
                expected=f"files below {self._folder}",
                found=_listed(self._missing),
                cure="correct the names, or name the folder with --images",
            )


def _listed(lines: list[tuple[int, str]]) -> str:
    shown = ", ".join(f"line {line}: {f'{name:.80}' or '(empty)'}" for line, name in lines[:5])
    return shown + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
