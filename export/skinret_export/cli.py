"""skinret-export: ckpt.pt in, a proven bundle out; or a bundle in, TensorRT engines out."""

from pathlib import Path

import click

from skinret_infer.cases import read_cases
from skinret_infer.console import report_errors

from .bundle_writer import export_bundle
from .engines import build_engines

_PATH = click.Path(path_type=Path)


@click.command(
    "skinret-export", context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.argument("checkpoint", type=_PATH)
@click.option("--out", type=_PATH, help="The bundle folder to write.")
@click.option(
    "--images", type=_PATH, help="Folder of at least 64 images to prove the bundle on.  [default: drawn ones]"
)
@click.option(
    "--cases",
    type=_PATH,
    help="CASES.csv or Derm7pt folder of at least 200 cases, to measure lower precisions on.  "
    "[default: drawn ones]",
)
@click.option("--fp16", is_flag=True, help="Also write the graphs in fp16, for graphics cards.")
@click.option("--gate/--no-gate", default=True, help="Measure what lower precisions do to the ranks.")
@click.option(
    "--overwrite", is_flag=True, help="Put the new bundle in the place of an old one, once it is proven."
)
@click.option(
    "--engine",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="Build engines for this runtime; CHECKPOINT may be a bundle then.",
)
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "fp16"]), help="Of the engines.")
@click.option(
    "--capability",
    multiple=True,
    metavar="X.Y",
    help="Compute capability to build for, by tensorrt-rtx, without a card; may be repeated.  "
    "[default: that of the card here]",
)
@click.option(
    "--cache", type=_PATH, help="Folder of the engines.  [default: SKINRET_CACHE or the user's cache folder]"
)
@report_errors
def main(
    checkpoint: Path,
    out: Path | None,
    images: Path | None,
    cases: Path | None,
    fp16: bool,
    gate: bool,
    overwrite: bool,
    engine: str | None,
    precision: str,
    capability: tuple[str, ...],
    cache: Path | None,
) -> None:
    """Export CHECKPOINT to four ONNX graphs and prove them against PyTorch: shapes, NaN, values, ranks.

    Exit code 3 if they disagree; a report then says which graph and how far off, and no bundle is written.
    """
    bundle = checkpoint
    if not (engine and (checkpoint / "manifest.json").is_file()):
        if out is None:
            raise click.UsageError("Missing option '--out'.")
        bundle = out
        table = read_cases(cases, None) if cases else None
        written = export_bundle(
            checkpoint,
            out,
            images=images,
            cases=table.cases if table else (),
            fp16=fp16,
            gates=gate,
            overwrite=overwrite,
            say=_say,
        )
        parity = written.manifest.parity
        _say(
            f"{out}: proven on {parity['images']} {parity['source']}; "
            f"largest difference of S {parity['max_score_error']:.1e}; top-{parity['top']} lists equal: "
            f"{parity['lists_equal_up_to_ties']} ({parity['lists_identical']} to the letter)"
        )
    if engine:
        for path in build_engines(bundle, engine, precision, capabilities=capability, cache=cache, say=_say):
            click.echo(path)


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
