"""Cases, and the tables they come in: a CASES.csv, or a Derm7pt folder as it was released."""

import csv
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import InputError
from .image import ImageSource
from .text import DERM7PT_PHRASES

AttributeValue = str | int | float | bool

# The three groups of the paper. `bkl` is seborrheic keratosis and melanosis.
_DERM7PT_OTHERS = {"basal cell carcinoma", "dermatofibroma", "lentigo", "miscellaneous", "vascular lesion"}
# Every value of the released table; an empty cell says that nothing is known.
_DERM7PT_VALUES: Mapping[str, set[str]] = {
    "pigment_network": {"absent", "typical", "atypical"},
    "streaks": {"absent", "regular", "irregular"},
    "pigmentation": {
        "absent", "diffuse regular", "diffuse irregular", "localized regular", "localized irregular",
    },
    "regression_structures": {"absent", "blue areas", "white areas", "combinations"},
    "dots_and_globules": {"absent", "regular", "irregular"},
    "blue_whitish_veil": {"absent", "present"},
    "vascular_structures": {
        "absent", "arborizing", "comma", "dotted", "hairpin", "linear irregular",
        "within regression", "wreath",
    },
    "elevation": {"flat", "palpable", "nodular"},
    "location": {
        "abdomen", "acral", "back", "buttocks", "chest", "genital areas", "head neck", "lower limbs",
        "upper limbs",
    },
    "sex": {"female", "male"},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One confirmed case.

    case_id : the key; unique in an archive.
    image : a path, bytes, a binary file object, a PIL image or an H x W x 3 uint8 array.
    diagnosis : in the words of the source; never shown to the model.
    group : the coarse diagnosis by which retrieval is judged; the diagnosis itself where none is given.
    confirmed_by : how the diagnosis was confirmed, such as "histopathology"; else "unknown".
    attributes : anything else that is known, such as {"streaks": "irregular"}.
    image_ref : what the archive remembers of where the image is; the path by default.
    """

    case_id: str
    image: ImageSource = field(repr=False)
    diagnosis: str = ""
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    group: str = ""
    confirmed_by: str = "unknown"
    image_ref: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.case_id, str) or not self.case_id.strip():
            raise InputError(
                "a case has no id",
                code="case-id",
                expected="a str that is not empty",
                found=repr(self.case_id),
            )
        if not isinstance(self.attributes, Mapping):
            raise InputError(
                f"case {self.case_id!r}: the attributes cannot be kept",
                code="case-attribute",
                expected='a mapping such as {"streaks": "irregular"}',
                found=f"{self.attributes!r:.80}",
            )
        texts = ("case_id", "diagnosis", "group", "confirmed_by", "image_ref")
        said = [(name, getattr(self, name), str) for name in texts]
        for name, value, kind in (
            *said,
            *((n, v, str | int | float | bool) for n, v in self.attributes.items()),
        ):
            plain = isinstance(name, str) and isinstance(value, kind)
            if not plain or not can_be_stored(name) or not can_be_stored(value):
                raise InputError(
                    f"case {self.case_id!r}: {name!r} cannot be kept",
                    code="case-attribute",
                    expected="text in Unicode, or for an attribute also a finite number or bool",
                    found=f"{value!r:.80}, a {type(value).__name__}",
                )
        if not self.group:
            object.__setattr__(self, "group", self.diagnosis)
        if not self.image_ref and isinstance(self.image, str | Path):
            readable = str(self.image).encode("utf-8", "backslashreplace").decode("utf-8")
            object.__setattr__(self, "image_ref", readable)


def can_be_stored(value: AttributeValue) -> bool:
    """Say whether SQLite and JSON hold a value: no NUL, no lone surrogate, no NaN, no int over 64 bits."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
    return math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63


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

    Image paths are relative to `images`, by default the table's folder. Columns `group` and `confirmed_by`
    are taken as such; every other becomes an attribute, an empty cell none. The whole table is checked before
    anything is returned: InputError names the line, and every missing image file.
    """
    source = Path(source)
    try:
        is_folder = source.is_dir()
    except OSError as error:
        raise InputError(f"{source} cannot be read", code="table-unreadable", found=str(error)) from None
    if is_folder:
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
                row["diagnosis"],
                group=row.get("group", ""),
                confirmed_by=row.get("confirmed_by") or "unknown",
                image_ref=row["image"],
                attributes={c: row[c] for c in columns if c not in named and row[c]},
            )
        )
    files.check(source)
    return CaseTable(cases, [])


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
            f"{table}, line {line}: {column} {case_id!r} appears twice",
            code="table-duplicate",
            expected="each case once",
            found=f"it first stands in line {seen[case_id]}",
            cure="remove or rename one",
        )
    seen[case_id] = line
    return case_id


def read_ids(path: str | Path) -> set[str]:
    """Read case ids, one a line."""
    try:
        return {line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read",
            code="table-missing",
            expected="a text file, one case id a line",
            found=str(error),
        ) from None


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
        for name, known in _DERM7PT_VALUES.items():
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
                row["diagnosis"],
                attributes,
                group,
                confirmed,
                row["derm"],
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
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = list(reader.fieldnames or [])
            missing = [c for c in needed if c not in columns]
            if twice := sorted({c for c in columns if columns.count(c) > 1}):
                raise InputError(
                    f"{path}, line 1: columns appear twice: {', '.join(twice)}",
                    code="table-columns",
                    expected="each column once",
                )
            if missing:
                raise InputError(
                    f"{path}, line 1: columns are missing: {', '.join(missing)}",
                    code="table-columns",
                    expected=", ".join(needed),
                    found=", ".join(columns) or "an empty file",
                )
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, line {reader.line_num}: the row does not fit the header",
                        code="table-row",
                        expected=f"{len(columns)} cells",
                        found="more" if None in row else "fewer",
                    )
                rows.append((reader.line_num, {c: v.strip() for c, v in row.items()}))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist", code="table-missing", expected="a CASES.csv or a Derm7pt folder"
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


class _Files:
    """Find image files, whatever the case of their names, and report all that are missing at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._missing: list[tuple[int, str]] = []
        self._folded: dict[str, Path] | None = None

    def find(self, name: str, line: int) -> Path:
        path = self._folder / name
        try:
            if name and path.is_file():
                return path
        except OSError:  # a name that no file can have
            self._missing.append((line, f"{name:.80}..."))
            return path
        if self._folded is None:
            self._folded = {
                str(p.relative_to(self._folder)).casefold(): p for p in self._folder.rglob("*") if p.is_file()
            }
        found = self._folded.get(str(Path(name)).casefold())
        if not found:
            self._missing.append((line, name))
        return found or path

    def check(self, table: Path) -> None:
        if self._missing:
            shown = ", ".join(f"line {line}: {name or '(empty)'}" for line, name in self._missing[:5])
            more = f" and {len(self._missing) - 5} more" if len(self._missing) > 5 else ""
            raise InputError(
                f"{table} names {len(self._missing)} image files that do not exist",
                code="table-image",
                expected=f"files below {self._folder}",
                found=shown + more,
                cure="correct the names, or name the folder with --images",
            )
