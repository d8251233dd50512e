"""Export an archive to a folder that other programs read, and import such a folder.

    cases.csv         RFC 4180 in UTF-8: a header, then a record for each case; attributes as a JSON object
    descriptors.npy   float32 [N, D]; row n belongs to record n of the table
    archive.json      the format's version, model, fingerprint, layout, number of cases, SHA-256 of the two

An import restores every case exactly. A spreadsheet calculates nothing: a text that begins like a formula, or
with an apostrophe, gets an apostrophe before it, as OWASP advises against CSV injection. An import removes it
again. For other programs archive.json names the apostrophe under "escape". Set the comma as the separator in
a spreadsheet: with another separator it may find formulas inside a text.
"""

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from .._files import atomic_folder, file_sha256, read_array
from .._json import build
from .._values import is_storable
from ..cases import Case
from ..descriptor import Layout, Vector
from ..errors import ArchiveError, InputError, SkinretError
from .archive import Archive
from .store import AddReport, Record, check_on_duplicate, keeps_old

FORMAT = "skinret archive"
VERSION = 1
ESCAPE = "'"
MAX_INFO = 4_000_000  # bytes; one of 256 concepts takes four thousand
BATCH = 2048  # cases in one transaction
TABLE, ARRAY, INFO = "cases.csv", "descriptors.npy", "archive.json"
_COLUMNS = list(Record.__dataclass_fields__)  # in the order of Record.row()
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", ESCAPE)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """The content of archive.json, which describes the two files beside it."""

    model: str
    fingerprint: str
    layout: Layout
    cases: int
    sha256: dict[str, str]  # by the file's name


def export_archive(archive: Archive, folder: str | Path, progress: Progress | None = None) -> int:
    """Write all cases of an archive to a folder that does not exist yet; return the number of cases.

    All cases belong to one moment: other writers wait until the export has ended. If a large archive is in
    use, export a backup of it. `progress(done, total)` is called after each batch.

    Raises ArchiveError.
    """
    folder = Path(folder)
    with _translated_write_errors(folder):
        _check_new(folder)
        with atomic_folder(folder) as temporary:
            with archive.snapshot() as (count, batches), _translated_write_errors(folder):
                _write(temporary, count, archive.layout, batches, progress)
            info = {
                "format": FORMAT,
                "version": VERSION,
                "escape": ESCAPE,
                "model": archive.model,
                "fingerprint": archive.fingerprint,
                "layout": asdict(archive.layout),
                "cases": count,
                "sha256": {name: file_sha256(temporary / name) for name in (TABLE, ARRAY)},
            }
            (temporary / INFO).write_text(json.dumps(info, ensure_ascii=False, indent=2), "utf-8")
            _check_new(folder)
    return count


def import_archive(
    archive: Archive, folder: str | Path, progress: Progress | None = None, on_duplicate: str = "error"
) -> AddReport:
    """Write the cases of an exported folder to an archive, in batches of 2,048, each batch all or none.

    The whole folder is checked before the first batch is written. A case that the archive holds with the same
    facts and descriptor stays as it is, so an interrupted import can be run again. For a case that the
    archive holds with other facts, `on_duplicate` decides: "error", "skip" or "replace".
    `progress(done, total)` is called after each batch.

    Raises ArchiveError for a folder that is damaged or of another model, and by default for a case that the
    archive holds with other facts. Batches before the error stay in the archive.
    """
    check_on_duplicate(on_duplicate)
    folder = Path(folder)
    info = read_info(folder)
    if info.fingerprint != archive.fingerprint:
        raise ArchiveError(
            f"{folder} was exported from an archive of another model",
            code="archive-model",
            expected=f"{archive.model} (fingerprint {archive.fingerprint[:12]}), the model of {archive}",
            found=f"{info.model} (fingerprint {info.fingerprint[:12]})",
            cure="import it into a new archive, or index its images with this archive's bundle",
        )
    for name, sha256 in info.sha256.items():
        with _translated_read_errors(folder / name):
            if (found := file_sha256(folder / name)) != sha256:
                raise _damaged(folder / name, f"SHA-256 {sha256}", found)
    for _ in _read(folder, info):  # checks all cases
        pass
    report, done = AddReport(), 0
    for records, descriptors in _read(folder, info):
        try:
            _add(archive, records, descriptors, on_duplicate, report)
        except SkinretError as error:
            if done:
                error.add_note(f"The {done} cases before it are in the archive. You can run the call again.")
            raise
        done += len(records)
        if progress:
            progress(done, info.cases)
    return report


def archive_for(folder: str | Path, path: str | Path) -> Archive:
    """Open the archive at a path for the cases of an exported folder; the import makes it if there is none.

    Raises ArchiveError, also if the archive has another model than the folder.
    """
    info = read_info(folder)
    try:
        return Archive(path, info.fingerprint, info.layout, info.model)
    except ArchiveError as error:
        if error.code == "archive-model":
            error.add_note(f"The cases of {folder} can be imported into a new archive.")
        raise


def read_info(folder: str | Path) -> ExportInfo:
    """Read and check archive.json of an exported folder. Raises ArchiveError."""
    path = Path(folder) / INFO
    with _translated_read_errors(path), path.open("rb") as file:
        content = file.read(MAX_INFO + 1)
        if len(content) > MAX_INFO:
            raise ValueError(f"more than {MAX_INFO:,} bytes")
        data = json.loads(content)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _damaged(path, f'JSON with "format": "{FORMAT}"', f"{data!r:.80}")
    version = data.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ArchiveError(
            f"{path} has another version of the format",
            code="exchange-version",
            expected=f"version {VERSION}",
            found=f"version {version!r:.80}",
            cure="import it with the version of skinret-infer that exported it",
        )
    try:
        layout = build(Layout, data["layout"], "layout")
        sha256 = {name: data["sha256"][name] for name in (TABLE, ARRAY)}
        if data["escape"] != ESCAPE:
            raise ValueError(f"escape: {data['escape']!r:.80}")
        info = ExportInfo(data["model"], data["fingerprint"], layout, data["cases"], sha256)
        if not isinstance(info.cases, int) or isinstance(info.cases, bool) or info.cases < 0:
            raise TypeError(f"{info.cases!r:.80} instead of a number of cases")
        for text in (info.model, info.fingerprint, *sha256.values()):
            if not isinstance(text, str):
                raise TypeError(f"{text!r:.80} instead of a text")
        return info
    except (KeyError, TypeError, ValueError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _damaged(path, "every field, of the right type", found) from None


def _write(
    folder: Path,
    count: int,
    layout: Layout,
    batches: Iterable[tuple[list[Record], Vector]],
    progress: Progress | None,
) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, layout.length)}
    done = 0
    with (
        (folder / TABLE).open("w", encoding="utf-8", newline="") as table,
        (folder / ARRAY).open("wb") as array,
    ):
        writer = csv.writer(table)
        writer.writerow(_COLUMNS)
        np.lib.format.write_array_header_1_0(array, header)
        for records, descriptors in batches:
            writer.writerows(map(_escape, record.row()) for record in records)
            array.write(np.ascontiguousarray(descriptors, "<f4").data)
            done += len(records)
            if progress:
                progress(done, count)


def _read(folder: Path, info: ExportInfo) -> Iterator[tuple[list[Record], Vector]]:
    """Yield the cases of an exported folder in batches, after a check of each case."""
    table, array, layout = folder / TABLE, folder / ARRAY, info.layout
    with _translated_read_errors(array):
        stored = read_array(array)
    shape = (info.cases, layout.length)
    if stored.dtype != np.float32 or stored.shape != shape:
        raise _damaged(array, f"float32 {list(shape)}", f"{stored.dtype} {list(stored.shape)}")
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))  # of the process; 131,072 by default
    known_ids: set[str] = set()
    with _translated_read_errors(table), table.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        if (columns := next(reader, [])) != _COLUMNS:
            raise _damaged(table, ",".join(_COLUMNS), f"{','.join(columns):.80}")
        while lines := [(reader.line_num, row) for row in islice(reader, BATCH)]:
            done = len(known_ids)
            records = [
                _record(table, line, [cell.removeprefix(ESCAPE) for cell in row], known_ids)
                for line, row in lines
            ]
            descriptors = np.array(stored[done : done + len(records)])
            if not (valid := layout.well_formed(descriptors)).all():
                expected = "finite numbers in six unit vectors, then distributions"
                raise _damaged(array, expected, f"other numbers in row {done + int(np.argmin(valid))}")
            if len(descriptors) == len(records):
                yield records, descriptors
        if len(known_ids) != info.cases:
            raise _damaged(table, f"{info.cases} cases", f"{len(known_ids)}")


def _escape(cell: str) -> str:
    return ESCAPE + cell if cell.startswith(_FORMULA) else cell


def _record(table: Path, line: int, row: list[str], known_ids: set[str]) -> Record:
    """Return the record of a row of the table, and add its case id to the known ids.

    line : the number of the row's last line, for messages.
    """
    where = f"line {line}: "
    if len(row) != len(_COLUMNS):
        raise _damaged(table, f"{len(_COLUMNS)} cells", f"{where}{len(row)}")
    case_id, diagnosis, group, confirmed_by, json_text, image_ref, image_sha256 = row
    try:
        attributes = json.loads(json_text)
        Case(
            case_id,
            b"",
            diagnosis=diagnosis,
            attributes=attributes,
            group=group,
            confirmed_by=confirmed_by,
            image_ref=image_ref,
        )  # checks the facts
        if not is_storable(image_sha256):
            raise ValueError(f"image_sha256 {image_sha256!r:.80}")
    except (ValueError, RecursionError, InputError) as error:
        raise _damaged(table, "a valid case", f"{where}{error}") from None
    if case_id in known_ids:
        raise _damaged(table, "each case id once", f"{where}case id {case_id!r:.80} again")
    known_ids.add(case_id)
    return Record(case_id, diagnosis, group, confirmed_by, attributes, image_ref, image_sha256)


def _add(
    archive: Archive, records: Sequence[Record], descriptors: Vector, on_duplicate: str, report: AddReport
) -> None:
    """Write the new and the changed cases of a batch to the archive, and add the batch to the report."""
    old_cases = archive.get_with_descriptors([record.case_id for record in records])
    new = []
    for n, (record, descriptor) in enumerate(zip(records, descriptors, strict=True)):
        if record.case_id in old_cases:
            old_record, old_descriptor = old_cases[record.case_id]
            differences = old_record.differences(record)
            if old_descriptor.tobytes() != descriptor.tobytes():
                differences.append("descriptor")
            if keeps_old(record.case_id, differences, on_duplicate):
                report.unchanged.append(record.case_id)
                continue
        new.append(n)
    if new:
        archive.write([records[n] for n in new], descriptors[new])
        for n in new:
            case_id = records[n].case_id
            (report.replaced if case_id in old_cases else report.added).append(case_id)


def _check_new(folder: Path) -> None:
    if "\0" in str(folder):
        raise OSError("a NUL in the name")
    if folder.exists() or folder.is_symlink():
        raise ArchiveError(
            f"{folder} exists already",
            code="exchange-exists",
            expected="a name that no file or folder has",
            cure="give another name, or move the existing one away",
        )


def _damaged(path: Path, expected: str, found: str) -> ArchiveError:
    return ArchiveError(
        f"{path} is not what an export wrote",
        code="exchange-damaged",
        expected=expected,
        found=found,
        cure="copy the folder again with all its files, or export the archive again",
    )


@contextlib.contextmanager
def _translated_read_errors(path: Path) -> Iterator[None]:
    """Turn the exceptions of reading a file of an exported folder into an ArchiveError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise ArchiveError(
            f"{path} does not exist",
            code="exchange-missing",
            expected=f"a folder with {TABLE}, {ARRAY} and {INFO}",
            cure="name a folder that `skinret archive export` made, or copy it again with all its files",
        ) from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise _damaged(path, "a readable file", str(error)) from None


@contextlib.contextmanager
def _translated_write_errors(folder: Path) -> Iterator[None]:
    """Turn the exceptions of writing a folder into an ArchiveError."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(
            f"{folder} cannot be written",
            code="exchange-io",
            expected="a writable folder with free space",
            found=str(error),
            cure="check the path, its permissions and the free disk space",
        ) from None
