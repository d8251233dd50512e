"""Export an archive to a folder that other programs read, and import such a folder.

    cases.csv         RFC 4180 in UTF-8: a header, then a record for each case; attributes as a JSON object
    descriptors.npy   float32 [N, D]; row n belongs to record n of the table
    archive.json      the format's version, model, fingerprint, layout, number of cases, SHA-256 of the two

Nothing is lost on the way there and back, and nothing is calculated on the way through a spreadsheet: a text
that begins like a formula gets an apostrophe before it, as OWASP advises against CSV injection, and so does
one that begins with an apostrophe. An import takes it away again; archive.json names it under "escape" for
other programs. Set the comma as the separator in a spreadsheet: with another one it may find formulas
within a text.
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
BATCH = 2048  # cases written in one transaction
TABLE, ARRAY, INFO = "cases.csv", "descriptors.npy", "archive.json"
_COLUMNS = list(Record.__dataclass_fields__)  # as Record.row() has them
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
    """Write all cases of an archive to a folder that is not there yet; return how many.

    They are those of one moment: who writes to the archive waits meanwhile. For a large one that others write
    to, export a backup. `progress(done, total)` is called now and then.

    Raises ArchiveError.
    """
    folder = Path(folder)
    with _usable(folder):
        _check_new(folder)
        with atomic_folder(folder) as temporary:
            with archive.snapshot() as (count, batches), _usable(folder):
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
    """Write the cases of an exported folder to an archive, all or none of a batch of 2,048 at a time.

    The whole folder is checked before the first is written. A case that is there with the same facts and
    descriptor is left, so that an import that was interrupted can simply be made again; one that is there
    with others follows `on_duplicate`: "error", "skip" or "replace". `progress(done, total)` is called after
    each batch.

    Raises ArchiveError for a folder that is not whole or is another model's, and for a case that is there
    with others; what was written before it stays.
    """
    check_on_duplicate(on_duplicate)
    folder = Path(folder)
    info = read_info(folder)
    if info.fingerprint != archive.fingerprint:
        raise ArchiveError(
            f"{folder} was exported from an archive of another model",
            code="archive-model",
            expected=f"{archive.model} (fingerprint {archive.fingerprint[:12]}), as {archive} is of",
            found=f"{info.model} (fingerprint {info.fingerprint[:12]})",
            cure="import it into a new archive, or index its images with this archive's bundle",
        )
    for name, sha256 in info.sha256.items():
        with _whole(folder / name):
            if (found := file_sha256(folder / name)) != sha256:
                raise _damaged(folder / name, f"SHA-256 {sha256}", found)
    for _ in _read(folder, info):
        pass
    report, done = AddReport(), 0
    for records, descriptors in _read(folder, info):
        try:
            _add(archive, records, descriptors, on_duplicate, report)
        except SkinretError as error:
            if done:
                error.add_note(f"{done} cases before it are in the archive; the call can be made again.")
            raise
        done += len(records)
        if progress:
            progress(done, info.cases)
    return report


def archive_for(folder: str | Path, path: str | Path) -> Archive:
    """Open the archive at a path for the cases of an exported folder; the import makes it if there is none.

    Raises ArchiveError, also for an archive of another model.
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
    with _whole(path), path.open("rb") as file:
        content = file.read(MAX_INFO + 1)
        if len(content) > MAX_INFO:
            raise ValueError(f"more than {MAX_INFO:,} bytes")
        data = json.loads(content)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _damaged(path, f'JSON with "format": "{FORMAT}"', f"{data!r:.80}")
    version = data.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ArchiveError(
            f"{path} is of another version of the format",
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
            raise TypeError(f"{info.cases!r:.80} for a number of cases")
        for text in (info.model, info.fingerprint, *sha256.values()):
            if not isinstance(text, str):
                raise TypeError(f"{text!r:.80} for a text")
        return info
    except (KeyError, TypeError, ValueError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _damaged(path, "every field with its type", found) from None


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
            writer.writerows(map(_escaped, record.row()) for record in records)
            array.write(np.ascontiguousarray(descriptors, "<f4").data)
            done += len(records)
            if progress:
                progress(done, count)


def _read(folder: Path, info: ExportInfo) -> Iterator[tuple[list[Record], Vector]]:
    """Give the cases of an exported folder, a batch at a time, each checked."""
    table, array, layout = folder / TABLE, folder / ARRAY, info.layout
    with _whole(array):
        stored = read_array(array)
    shape = (info.cases, layout.length)
    if stored.dtype != np.float32 or stored.shape != shape:
        raise _damaged(array, f"float32 {list(shape)}", f"{stored.dtype} {list(stored.shape)}")
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))  # of the process: it is 131,072 at first
    seen: set[str] = set()
    with _whole(table), table.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        if (columns := next(reader, [])) != _COLUMNS:
            raise _damaged(table, ",".join(_COLUMNS), f"{','.join(columns):.80}")
        while lines := [(reader.line_num, row) for row in islice(reader, BATCH)]:
            done = len(seen)
            records = [
                _record(table, line, [cell.removeprefix(ESCAPE) for cell in row], seen) for line, row in lines
            ]
            descriptors = np.array(stored[done : done + len(records)])
            if not (right := layout.well_formed(descriptors)).all():
                expected = "finite numbers in six unit vectors, then distributions"
                raise _damaged(array, expected, f"others in row {done + int(np.argmin(right))}")
            if len(descriptors) == len(records):
                yield records, descriptors
        if len(seen) != info.cases:
            raise _damaged(table, f"{info.cases} cases", f"{len(seen)}")


def _escaped(cell: str) -> str:
    return ESCAPE + cell if cell.startswith(_FORMULA) else cell


def _record(table: Path, line: int, row: list[str], seen: set[str]) -> Record:
    """Read a record of the table, which ends in a line, and note its case id."""
    where = f"line {line}: "
    if len(row) != len(_COLUMNS):
        raise _damaged(table, f"{len(_COLUMNS)} cells", f"{where}{len(row)}")
    case_id, diagnosis, group, confirmed_by, said, image_ref, image_sha256 = row
    try:
        attributes = json.loads(said)
        Case(
            case_id,
            b"",
            diagnosis=diagnosis,
            attributes=attributes,
            group=group,
            confirmed_by=confirmed_by,
            image_ref=image_ref,
        )  # checks what can be kept
        if not is_storable(image_sha256):
            raise ValueError(f"image_sha256 {image_sha256!r:.80}")
    except (ValueError, RecursionError, InputError) as error:
        raise _damaged(table, "a case that can be kept", f"{where}{error}") from None
    if case_id in seen:
        raise _damaged(table, "each case once", f"{where}case id {case_id!r:.80} again")
    seen.add(case_id)
    return Record(case_id, diagnosis, group, confirmed_by, attributes, image_ref, image_sha256)


def _add(
    archive: Archive, records: Sequence[Record], descriptors: Vector, on_duplicate: str, report: AddReport
) -> None:
    there = archive.get_with_descriptors([record.case_id for record in records])
    new = []
    for n, (record, descriptor) in enumerate(zip(records, descriptors, strict=True)):
        if record.case_id in there:
            old, known = there[record.case_id]
            same = known.tobytes() == descriptor.tobytes()
            differences = old.differences(record) + ([] if same else ["descriptor"])
            if keeps_old(record.case_id, differences, on_duplicate):
                report.unchanged.append(record.case_id)
                continue
        new.append(n)
    if new:
        archive.write([records[n] for n in new], descriptors[new])
        for n in new:
            case_id = records[n].case_id
            (report.replaced if case_id in there else report.added).append(case_id)


def _check_new(folder: Path) -> None:
    if "\0" in str(folder):
        raise OSError("a NUL in the name")
    if folder.exists() or folder.is_symlink():
        raise ArchiveError(
            f"{folder} is there already",
            code="exchange-exists",
            expected="a name that no file or folder has",
            cure="give another name, or move it away",
        )


def _damaged(path: Path, expected: str, found: str) -> ArchiveError:
    return ArchiveError(
        f"{path} is not what an export wrote",
        code="exchange-damaged",
        expected=expected,
        found=found,
        cure="copy the folder again, whole, or export the archive again",
    )


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what reading a file of an exported folder raises into an ArchiveError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise ArchiveError(
            f"{path} does not exist",
            code="exchange-missing",
            expected=f"a folder with {TABLE}, {ARRAY} and {INFO}",
            cure="name a folder that `skinret archive export` made, or copy it again, whole",
        ) from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise _damaged(path, "a file that can be read", str(error)) from None


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turn what writing a folder raises into an ArchiveError."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(
            f"{folder} cannot be written",
            code="exchange-io",
            expected="a writable folder with room",
            found=str(error),
            cure="check the path, its permissions and the free disk space",
        ) from None
