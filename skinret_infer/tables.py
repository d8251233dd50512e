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
from .errors import InputError
from .words.checklist import Checklist

MAX_BYTES = 100_000_000  # of a table or a file of ids: a million cases of a hundred characters
MAX_COLUMNS = 1000
MAX_CELL = 100_000  # characters
_FILE_COLUMNS = ("image", "derm")
_NO_WIDTH = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"  # invisible spaces and marks
_Row = tuple[int, dict[str, str]]  # its line, and its cells by the name of their column
_DERM7PT_OTHERS = {"basal cell carcinoma", "dermatofibroma", "lentigo", "miscellaneous", "vascular lesion"}


@dataclass(frozen=True, slots=True)
class CaseTable:
    """The cases of a table in its order, and notes for the user, such as how many cases were left out."""

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

    Image paths are relative to `images`, by default the table's folder, and must stay inside it. The columns
    `group` and `confirmed_by` become those fields of the case, and every other column becomes an attribute.
    An empty cell gives no attribute. Every cell is text, also one that a spreadsheet would calculate. The
    whole table is checked before anything is returned: InputError names the line, and every image file that
    is missing or outside.
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
    cases, first_lines = [], dict[str, int]()
    fields = {"case_id", "image", "diagnosis", "group", "confirmed_by"}
    for line, row in rows:
        case_id = _unique_id(row, "case_id", source, line, first_lines)
        cases.append(
            Case(
                case_id,
                files.find(row["image"], line),
                diagnosis=row["diagnosis"],
                group=row.get("group", ""),
                confirmed_by=row.get("confirmed_by") or "unknown",
                image_ref=row["image"],
                attributes={c: row[c] for c in columns if c not in fields and row[c]},
            )
        )
    files.check(source)
    return CaseTable(cases, _similar_names(columns, (*fields, *Checklist.seven_point().criteria)))


def _unique_id(row: dict[str, str], column: str, table: Path, line: int, first_lines: dict[str, int]) -> str:
    """Return the case id of a row, and add its line to `first_lines`. Raises InputError if it is not new."""
    case_id = row[column]
    if not case_id:
        raise InputError(
            f"{table}, line {line}: {column} is empty",
            code="table-value",
            expected="a unique id for each case",
        )
    if case_id in first_lines:
        raise InputError(
            f"{table}, line {line}: {column} {case_id!r:.80} appears twice",
            code="table-duplicate",
            expected="each case once",
            found=f"it first stands in line {first_lines[case_id]}",
            cure="remove or rename one",
        )
    first_lines[case_id] = line
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
    """Return the text of a file. Raises InputError for too many bytes or another encoding, OSError."""
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
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        line = data.count(b"\n", 0, error.start) + 1
        found = "UTF-16" if is_utf16 else f"a byte that is not UTF-8 in line {line}: {data[error.start]:#04x}"
        raise InputError(
            f"{path} cannot be read",
            code="table-unreadable",
            expected="text in UTF-8",
            found=found,
            cure='save it as "CSV UTF-8", as Excel calls it',
        ) from None


def _trimmed(text: str) -> str:
    """Return a cell without the spaces and invisible marks around it."""
    while (shorter := text.strip().strip(_NO_WIDTH)) != text:
        text = shorter
    return text


def derm7pt_root(folder: Path) -> Path:
    """Return the folder of meta/ and images/: release_v0 in a folder, or the folder itself."""
    release = folder / "release_v0"
    return release if release.is_dir() else folder


def _read_derm7pt(folder: Path) -> CaseTable:
    root = derm7pt_root(folder)
    meta = root / "meta" / "meta.csv"
    if not meta.is_file():
        raise InputError(
            f"{folder} is not a Derm7pt folder",
            code="table-missing",
            expected="meta/meta.csv and images/ in it",
            found="no meta/meta.csv",
            cure="name the folder release_v0, or a CASES.csv",
        )
    criteria = Checklist.seven_point().criteria
    _, rows = _read_csv(meta, ("case_num", "diagnosis", "derm", *criteria))
    files = _Files(root / "images")
    cases, left_out, first_lines = [], Counter[str](), dict[str, int]()
    for line, row in rows:
        _unique_id(row, "case_num", meta, line, first_lines)
        group = derm7pt_group(row["diagnosis"])
        if group is None:
            left_out[row["diagnosis"]] += 1
            continue
        cases.append(
            Case(
                row["case_num"],
                files.find(row["derm"], line),
                diagnosis=row["diagnosis"],
                attributes={name: row[name] for name in criteria if row[name]},
                group=group,
                confirmed_by=row.get("confirmed_by") or "unknown",
                image_ref=row["derm"],
            )
        )
    _check_derm7pt_words(meta, rows)
    files.check(meta)
    notes = []
    if left_out:
        listed = ", ".join(f"{name} {n}" for name, n in left_out.most_common())
        notes.append(
            f"{sum(left_out.values())} cases outside the groups mel, nevus and bkl left out: {listed}"
        )
    return CaseTable(cases, notes)


def _check_derm7pt_words(meta: Path, rows: list[_Row]) -> None:
    """Raise InputError for diagnoses, then for values of criteria, that the released table does not have."""
    diagnoses: dict[str, list[int]] = {}
    values: dict[str, list[int]] = {}
    for line, row in rows:
        if derm7pt_group(row["diagnosis"]) is None and row["diagnosis"] not in _DERM7PT_OTHERS:
            diagnoses.setdefault(f"{row['diagnosis']!r:.80}", []).append(line)
        for name, criterion in Checklist.seven_point().criteria.items():
            if row[name] and row[name] not in criterion.values:
                values.setdefault(f"{name} {row[name]!r:.80}", []).append(line)
    for what, unknown in (("diagnoses", diagnoses), ("values", values)):
        if unknown:
            raise InputError(
                f"{meta} has {what} that Derm7pt does not know",
                code="table-value",
                expected="the words of the released table",
                found="; ".join(
                    f"{word} ({len(lines)}, first in line {lines[0]})" for word, lines in unknown.items()
                ),
                cure="correct them, or make a CASES.csv, which takes any words",
            )


def _read_csv(path: Path, needed: tuple[str, ...]) -> tuple[list[str], list[_Row]]:
    """Return the names of the columns, and of each row its line and its cells by name."""
    try:
        reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        header = [nfc(_trimmed(name)) for name in next(reader, [])]
        _check_header(header, needed, path)
        columns = [name for name in header if name]
        rows = [
            (reader.line_num, _parse_row(header, cells, f"{path}, line {reader.line_num}"))
            for cells in reader
            if cells  # an empty line has none
        ]
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


def _parse_row(header: list[str], cells: list[str], where: str) -> dict[str, str]:
    """Return the cells of a row by the name of their column. Raises InputError, which names the line."""
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
        if name:  # the name of a file stays in the spelling of the table
            row[name] = _trimmed(cell) if name in _FILE_COLUMNS else nfc(_trimmed(cell))
        elif _trimmed(cell):
            raise InputError(
                f"{where}: a cell stands below a column without a name",
                code="table-columns",
                expected="a name for each column that has cells",
                found=f"{cell!r:.80}",
            )
    return row


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


def _similar_names(columns: list[str], known: Collection[str]) -> list[str]:
    """Return a note for each column whose name is that of a known column but for case and signs."""

    def simplify(name: str) -> str:
        return "".join(c for c in name.casefold() if c.isalnum())

    known_by_letters = {simplify(name): name for name in known}
    return [
        f"column {column!r} becomes an attribute of its own: write {meant!r} if you mean that"
        for column in columns
        if column not in known and (meant := known_by_letters.get(simplify(column)))
    ]


class _Files:
    """Finds image files, whatever the case and spelling of their names, and reports all faults at once."""

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
            exists = bool(name) and path.is_file()
        except (OSError, ValueError):  # a name that no file can have
            exists = False
        if not exists:
            self._missing.append((line, name))
        return path

    def check(self, table: Path) -> None:
        if self._outside:
            raise InputError(
                f"{table} names {len(self._outside)} image files outside the folder of images",
                code="table-image-outside",
                expected=f"paths relative to {self._folder}, and below it",
                found=_list_first(self._outside),
                cure="name a folder above all of them with --images, and the files relative to it",
            )
        if self._ambiguous:
            raise InputError(
                f"{table} names {len(self._ambiguous)} image files that may be one of several",
                code="table-image-ambiguous",
                expected=f"one file below {self._folder} for each name, whatever the case of its letters",
                found=_list_first(self._ambiguous),
                cure="write the names just as the files have them, or rename files",
            )
        if self._missing:
            raise InputError(
                f"{table} names {len(self._missing)} image files that do not exist",
                code="table-image",
                expected=f"files below {self._folder}",
                found=_list_first(self._missing),
                cure="correct the names, or name the folder with --images",
            )


def _list_first(names: list[tuple[int, str]]) -> str:
    """Return the first five of some names with their lines, and the number of the others."""
    first = ", ".join(f"line {line}: {f'{name:.80}' or '(empty)'}" for line, name in names[:5])
    return first + (f" and {len(names) - 5} more" if len(names) > 5 else "")
