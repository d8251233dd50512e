"""`skinret archive`: the care of an archive. None of it needs a bundle."""

import contextlib
import json
import sys
from pathlib import Path

import click

from ..archive import maintenance
from ..archive.archive import Archive
from ..archive.exchange import archive_for, export_archive, import_archive
from ..errors import ArchiveError, printable
from .common import PATH, json_option, progress, replace_option, report_errors, skip_option


@click.group(short_help="Check, back up, compact, export or import an archive.")
def archive() -> None:
    """Take care of an archive; no bundle is needed."""


@archive.command(short_help="Read everything and say what is wrong.")
@click.argument("archive", type=PATH)
@click.option("--repair", is_flag=True, help="Make anew what follows from the cases, if something is wrong.")
@json_option
@report_errors
def check(archive: Path, repair: bool, as_json: bool) -> None:
    """Read everything in ARCHIVE and what is derived from it, and say what is wrong.

    Exit code 1 if something is wrong, or still is after --repair.
    """
    with contextlib.closing(Archive.open(archive)) as opened:
        with progress("checking") as bar:
            faults = found = maintenance.check(opened, bar)
        if found and repair:
            try:
                maintenance.repair(opened)
            except ArchiveError as error:
                if error.code != "archive-damaged":  # else the next check says what is left
                    raise
            with progress("checking again") as bar:
                faults = maintenance.check(opened, bar)
        cases = None if faults else len(opened)
        repaired = [fault for fault in found if fault not in faults]
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


@archive.command(short_help="Give back the room of removed cases.")
@click.argument("archive", type=PATH)
@report_errors
def compact(archive: Path) -> None:
    """Give back the room of removed cases, and fit what speeds a search to those that ARCHIVE holds now."""
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

    FOLDER may not be there yet. A text that begins like a formula gets an apostrophe before it, which an
    import takes away again.
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
    """Add the cases of FOLDER, which `skinret archive export` made, to ARCHIVE, which is made if need be.

    An import that was interrupted can simply be run again. A case that is there already, unchanged, is left;
    one with other facts is an error.
    """
    with contextlib.closing(archive_for(folder, archive)) as opened:
        with progress("importing") as bar:
            report = import_archive(opened, folder, bar, on_duplicate=duplicate or "error")
        total = len(opened)
    if as_json:
        click.echo(json.dumps(report.to_dict() | {"cases": total}))
    click.echo(f"{report}; {archive} holds {total}", err=True)
