"""skinret-export: write a proven bundle from a checkpoint, and TensorRT engines where they can be built."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from skinret_infer.cli.common import report_errors
from skinret_infer.engines import tensorrt
from skinret_infer.engines.build import build_engines
from skinret_infer.errors import SkinretError, printable
from skinret_infer.tables import read_cases
from skinret_infer.trust.signing import KEY
from skinret_infer.words.checklist import Checklist

from .export import export_bundle

_PATH = click.Path(path_type=Path)


@click.command(
    "skinret-export", context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.argument("checkpoint", type=_PATH)
@click.option(
    "--out",
    type=_PATH,
    help="The bundle folder to write.  [default: beside CHECKPOINT: ckpt for ckpt.pt, ckpt.bundle for ckpt]",
)
@click.option(
    "--images", type=_PATH, help="Folder of at least 64 images to prove the bundle on.  [default: drawn ones]"
)
@click.option(
    "--cases",
    type=_PATH,
    help="CASES.csv or Derm7pt folder of at least 200 cases, to measure lower precisions on.  "
    "[default: drawn ones]",
)
@click.option(
    "--checklist",
    type=_PATH,
    help="A TOML file with other words for the criteria and values of the model.  [default: the model's]",
)
@click.option("--fp16", is_flag=True, help="Also write the graphs in fp16, for graphics cards.")
@click.option(
    "--check-precision/--no-check-precision",
    default=True,
    help="Measure how lower precisions change the ranks.",
)
@click.option("--overwrite", is_flag=True, help="Replace an old bundle, once the new one is proven.")
@click.option(
    "--engines/--no-engines",
    default=True,
    help="Build TensorRT engines, if TensorRT and a graphics card are present.",
)
@report_errors
def main(
    checkpoint: Path,
    out: Path | None,
    images: Path | None,
    cases: Path | None,
    checklist: Path | None,
    fp16: bool,
    check_precision: bool,
    overwrite: bool,
    engines: bool,
) -> None:
    """Export CHECKPOINT to four ONNX graphs and prove them against PyTorch: shapes, NaN, values, ranks.

    The bundle is written beside CHECKPOINT unless --out names another place. TensorRT engines are built too,
    if TensorRT and a graphics card are present. Exit code 3 if the graphs disagree with PyTorch: a report
    then names the graphs and their errors, and no bundle is written.
    """
    if (checkpoint / "manifest.json").is_file():
        raise click.UsageError(
            f"{checkpoint} is a bundle already; to build its engines: "
            f"skinret engines build {_quote(checkpoint)}"
        )
    out = out or _default_out(checkpoint)
    table = read_cases(cases, None) if cases else None
    bundle = export_bundle(
        checkpoint,
        out,
        images=images,
        cases=table.cases if table else (),
        checklist=Checklist.read(checklist) if checklist else None,
        fp16=fp16,
        check_precision=check_precision,
        overwrite=overwrite,
        notify=_say,
    )
    parity = bundle.manifest.parity
    _say(
        f"{out}: proven on {parity['images']} {parity['source']}; "
        f"largest difference of a score {parity['max_score_error']:.1e}; equal top-{parity['top']} lists: "
        f"{parity['lists_equal_up_to_ties']} up to ties, {parity['lists_identical']} exactly"
    )
    if engines:
        _build_engines(out, ["fp32", "fp16"] if fp16 else ["fp32"])
    _say(f"the bundle is {out}; next, on the machine that will use it:")
    if KEY in os.environ:
        _say(f"  skinret bundle sign {_quote(out)} --key PRIVATE.pem")
    _say(f"  skinret doctor {_quote(out)}")
    _say(f"  skinret index {_quote(out)} cases.skinret CASES.csv")
    _say(f"  skinret query {_quote(out)} cases.skinret --image PICTURE --text WORDS")


def _default_out(checkpoint: Path) -> Path:
    """Return the default folder of a checkpoint's bundle."""
    has_suffix = checkpoint.suffix in (".pt", ".pth", ".ckpt")  # the .2 of skin-0.2 is no suffix
    return checkpoint.parent / (checkpoint.stem if has_suffix else f"{checkpoint.name}.bundle")


def _build_engines(bundle: Path, precisions: Sequence[str]) -> None:
    """Build engines if TensorRT runs here. A failure is a warning only: the first query tries again."""
    name = next((name for name in tensorrt.MODULES if not tensorrt.why_not(name)), None)
    if name is None:
        return
    try:
        for precision in precisions:
            for path in build_engines(bundle, name, precision, notify=_say):
                click.echo(path)
    except SkinretError as error:
        _say(f"warning: no engines for {name}: {printable(str(error))} [{error.code}]")


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
