"""`skinret audit`: verify the log of queries."""

import json
import sys
from pathlib import Path

import click

from ..trust.audit import verify
from .common import PATH, json_option, report_errors


@click.group(short_help="Verify the log of queries.")
def audit() -> None:
    """Verify the log of queries."""


@audit.command("verify", short_help="Read the whole log and say whether it is unchanged.")
@click.argument("file", type=PATH)
@click.option(
    "--removed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="How many records, the first ones, were removed on purpose.",
)
@click.option(
    "--head", metavar="HASH", help="A hash that you stored earlier; one of the records must have it."
)
@json_option
@report_errors
def verify_command(file: Path, removed: int, head: str | None, as_json: bool) -> None:
    """Read the log FILE and the older files beside it, and say whether they are unchanged.

    Exit code 1 if they are not. Store the head hash elsewhere: with --head, verify also detects that the
    whole log was replaced.
    """
    report = verify(file, removed=removed, head=head)
    click.echo(json.dumps(report.to_dict()) if as_json else str(report))
    if report.faults:
        sys.exit(1)
