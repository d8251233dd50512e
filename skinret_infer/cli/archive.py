"""`skinret archive`: look after an archive. No command needs a bundle."""

import contextlib
import json
import sys
from pathlib import Path

import click

from .._values import nfc
from ..archive import maintenance
from ..archive.archive import Archive
from ..archive.database import SCHEMA
from ..archive.exchange import archive_for, export_archive, import_archive
from ..errors import ArchiveError, printable
from .common import PATH, json_option, progress, replace_option, report_errors, skip_option


@click.group(short_help="Look after an archive: info, check, remove cases, back up, export.")
def archive() -> None:
    """Look after an archive; no bundle is needed."""


@archive.command(short_help="Say what an archive holds and which model wrote it.")
@click.argument("archive", type=PATH)
@json_option
@report_errors
def info(archive: Path, as_json: bool) -> None:
    """Say how many cases ARCHIVE holds, which model wrote it, and how large it is."""
    with contextlib.closing(Archive.open(archive)) as opened:
        report = {
            "archive": str(archive),
            "cases": len(opened),
            "model": opened.model,
            "fingerprint": opened.fingerprint,
            "descriptor": opened.layout.length,
            "schema": SCHEMA,
            "state": opened.state,
            "bytes": archive.stat().st_size,
        }
    if as_json:
        click.echo(json.dumps(report))
    else:
        for name, value in report.items():
            click.echo(f"{name:<12}{printable(str(value))}")


@archive.command("list", short_help="Print the ids of all cases.")
@click.argument("archive", type=PATH)
@json_option
@report_errors
def list_command(archive: Path, as_json: bool) -> None:
    """Print the id of every case of ARCHIVE, one a line."""
    with contextlib.closing(Archive.open(archive)) as opened:
        case_ids = opened.case_ids()
    if as_json:
        click.echo(json.dumps(case_ids))
        return
    for case_id in case_ids:
        click.echo(printable(case_id))


@archive.command(short_help="Remove cases, as when a patient withdraws.")
@click.argument("archive", type=PATH)
@click.argument("case_ids", metavar="CASE_ID...", nargs=-1, required=True)
@json_option
@report_errors
def remove(archive: Path, case_ids: tuple[str, ...], as_json: bool) -> None:
    """Remove the cases with these ids from ARCHIVE and overwrite their bytes in the file.

    Backups and exports keep them. Exit code 1 if an id is not in the archive; the others are removed.
    """
    wanted = [nfc(case_id) for case_id in case_ids]
    with contextlib.closing(Archive.open(archive)) as opened:
        unknown = sorted(set(wanted) - opened.get(wanted).keys())
        removed = opened.remove(wanted)
        cases = len(opened)
    if as_json:
        click.echo(json.dumps({"removed": removed, "unknown": unknown, "cases": cases}))
    click.echo(f"{removed} cases removed; {archive} holds {cases}", err=True)
    if unknown:
        click.echo(f"not in the archive: {printable(', '.join(unknown))}", err=True)
        sys.exit(1)


@archive.command(short_help="Read everything and say what is wrong.")
@click.argument("archive", type=PATH)
@click.option(
    "--repair", is_flag=True, help="Make the counts and the pruning index again, if something is wrong."
)
@json_option
@report_errors
def check(archive: Path, repair: bool, as_json: bool) -> None:
    """Read everything in ARCHIVE and in its pruning index, and say what is wrong.

    Exit code 1 if something is wrong, or still is after --repair.
    """
    with contextlib.closing(Archive.open(archive)) as opened:
        with progress("checking") as bar:
            faults = first_faults = maintenance.check(opened, bar)
        if faults and repair:
            try:
                maintenance.repair(opened)
            except ArchiveError as error:
                if error.code != "archive-damaged":  # otherwise the next check finds the remaining faults
                    raise
            with progress("checking again") as bar:
                faults = maintenance.check(opened, bar)
        cases = None if faults else len(opened)
        repaired = [fault for fault in first_faults if fault not in faults]
        report = {
            "archive": str(archive),
            "model": opened.model,
            "fingerprint": opened.fingerprint,
            "cases": cases,
            "faults": faults,
            "repaired": repaired,
        }
    if as_json:
        click.echo(json.dumps(report))
    for fault in repaired:
        click.echo(f"repaired: {printable(fault)}", err=True)
    for fault in faults:
        click.echo(f"fault: {printable(fault)}", err=True)
    if faults:
        cure = "restore it from a backup" if repair else "try --repair, or restore it from a backup"
        click.echo(f"{archive} is not whole; {cure}", err=True)
        sys.exit(1)
    click.echo(f"{archive} is whole; it holds {cases} cases of {opened.model}", err=True)


@archive.command(short_help="Copy an archive while it is in use.")
@click.argument("archive", type=PATH)
@click.argument("target", type=PATH)
@report_errors
def backup(archive: Path, target: Path) -> None:
    """Copy ARCHIVE, while it is in use, to TARGET, a file that does not exist yet."""
    with contextlib.closing(Archive.open(archive)) as opened, progress("copying") as bar:
        maintenance.backup(opened, target, bar)
    click.echo(f"{target} written", err=True)


@archive.command(short_help="Give back the space of removed cases.")
@click.argument("archive", type=PATH)
@report_errors
def compact(archive: Path) -> None:
    """Give back the space of removed cases, and fit the pruning index to the cases that ARCHIVE holds now."""
    with contextlib.closing(Archive.open(archive)) as opened:
        before = archive.stat().st_size
        maintenance.compact(opened)
        after = archive.stat().st_size
    click.echo(f"{archive}: {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB now", err=True)


@archive.command("export", short_help="Write an archive to a folder that other programs can read.")
@click.argument("archive", type=PATH)
@click.argument("folder", type=PATH)
@report_errors
def export_command(archive: Path, folder: Path) -> None:
    """Write the cases of ARCHIVE to FOLDER: cases.csv, descriptors.npy, and archive.json that describes them.

    FOLDER may not exist yet. A text that begins like a formula gets an apostrophe before it, which an
    import removes again.
    """
    with contextlib.closing(Archive.open(archive)) as opened, progress("exporting") as bar:
        count = export_archive(opened, folder, bar)
    click.echo(f"{count} cases written to {folder}", err=True)


@archive.command("import", short_help="Add the cases of an exported folder.")
@click.argument("archive", type=PATH)
@click.argument("folder", type=PATH)
@replace_option
@skip_option
@json_option
@report_errors
def import_command(archive: Path, folder: Path, duplicate: str | None, as_json: bool) -> None:
    """Add the cases of FOLDER, which `skinret archive export` made, to ARCHIVE, or to a new archive.

    An import that was interrupted can simply be run again. A case that ARCHIVE holds with the same facts
    stays as it is. A case that it holds with other facts is an error.
    """
    with contextlib.closing(archive_for(folder, archive)) as opened:
        with progress("importing") as bar:
            report = import_archive(opened, folder, bar, on_duplicate=duplicate or "error")
        total = len(opened)
    if as_json:
        click.echo(json.dumps(report.to_dict() | {"cases": total}))
    click.echo(f"{report}; {archive} holds {total}", err=True)
