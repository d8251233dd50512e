"""Shared by the commands: messages and exit codes of errors, progress bars, and a few options."""

import contextlib
import errno
import functools
import importlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from .._extras import missing_extra
from ..errors import SkinretError, printable
from ..trust.signing import KEY

P = ParamSpec("P")
R = TypeVar("R")
PATH = click.Path(path_type=Path)

key_option = click.option(
    "--key",
    type=PATH,
    help=f"PEM file of trusted public keys: one must have signed the bundle.  [default: {KEY}]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
replace_option = click.option(
    "--replace",
    "duplicate",
    flag_value="replace",
    help="Replace a case that the archive holds with other facts.",
)
skip_option = click.option(
    "--skip", "duplicate", flag_value="skip", help="Skip a case that the archive holds with other facts."
)


def report_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a SkinretError into its message on stderr and its exit code; print in any encoding."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for stream in (sys.stdout, sys.stderr):  # a character that one cannot encode must not end the command
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return command(*args, **kwargs)
        except SkinretError as error:
            click.echo(f"error: {printable(str(error))}", err=True)
            for note in getattr(error, "__notes__", ()):
                click.echo(f"       {printable(note)}", err=True)
            click.echo(f"       [{error.code}]", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            click.echo(f"error: the output cannot be written; found {error.strerror}.", err=True)
            sys.exit(1)

    return wrapped


def load_command(module: str, name: str, extra: str) -> click.Command:
    """Return the command `main` of a module, or one that says which extra it lacks, with exit code 4."""
    try:
        command: click.Command = importlib.import_module(module).main
    except (ImportError, OSError) as error:  # a library that is not found is an OSError
        if isinstance(error, ImportError) and (error.name or "").startswith("skinret"):
            raise  # a fault of this package
        return unable(name, missing_extra(f"`{name}` cannot run here", error, extra))
    return command


def unable(name: str, why: SkinretError) -> click.Command:
    """Return a command that only reports why it cannot run here."""

    @click.command(
        name,
        short_help=f"Cannot run here: expected {why.expected}.",
        add_help_option=False,  # a call for help gets the reason too
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    @report_errors
    def refuse() -> None:
        raise why

    return refuse


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on stderr if that is a terminal, and yield the function that moves it."""
    hidden = sys.stderr is None or not sys.stderr.isatty()  # pythonw has no stderr
    with click.progressbar(length=1, label=label, file=sys.stderr, hidden=hidden) as bar:

        def move(done: int, total: int | None) -> None:
            bar.length = total or done
            bar.update(done - bar.pos)

        yield move


class GroupedCommand(click.Command):
    """A command whose help shows its options in groups.

    groups : the title of each group with the names of its parameters; the others are listed under "Options".
    """

    def __init__(self, *arguments: Any, groups: Mapping[str, Sequence[str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        records = {str(p.name): p.get_help_record(ctx) for p in self.get_params(ctx)}
        grouped = {name for names in self.groups.values() for name in names}
        rest = [name for name in records if name not in grouped]
        for title, names in (*self.groups.items(), ("Options", rest)):
            rows = [record for name in names if (record := records[name])]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
