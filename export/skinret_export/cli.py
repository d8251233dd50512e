"""skinret-export: ckpt.pt in, a proven bundle out."""

from pathlib import Path

import click

from skinret_infer.cli import report_errors

from .bundle_writer import export_bundle

_PATH = click.Path(path_type=Path)


@click.command(
    "skinret-export", context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.argument("checkpoint", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The bundle folder to write.")
@click.option(
    "--images", type=_PATH, help="Folder of at least 64 images to prove the bundle on.  [default: drawn ones]"
)
@click.option(
    "--overwrite", is_flag=True, help="Put the new bundle in the place of an old one, once it is proven."
)
@report_errors
def main(checkpoint: Path, out: Path, images: Path | None, overwrite: bool) -> None:
    """Export CHECKPOINT to four ONNX graphs and prove them against PyTorch: shapes, NaN, values, ranks.

    Exit code 3 if they disagree; a report then says which graph and how far off, and no bundle is written.
    """
    bundle = export_bundle(
        checkpoint, out, images=images, overwrite=overwrite, say=lambda step: click.echo(step, err=True)
    )
    parity = bundle.manifest.parity
    click.echo(
        f"{out}: proven on {parity['images']} {parity['source']}; "
        f"largest difference of S {parity['max_score_error']:.1e}; top-{parity['top']} lists equal: "
        f"{parity['lists_equal_up_to_ties']} ({parity['lists_identical']} to the letter)",
        err=True,
    )


if __name__ == "__main__":
    main()
