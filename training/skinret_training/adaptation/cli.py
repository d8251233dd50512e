"""skinret-adapt: take a vision backbone to dermoscopy with labelled and unlabelled pictures."""

import logging
from pathlib import Path
from typing import Any

import click

from skinret_infer._files import remove_partial
from skinret_infer.cli.common import GroupedCommand, report_errors
from skinret_infer.tables import CaseTable, read_cases

from .run import AdaptConfig, adapt

_D = AdaptConfig()
_PATH = click.Path(path_type=Path)
_SHARE = click.FloatRange(0, 1)
_GROUPS = {
    "Data": ("images", "findings", "exclude", "drop_duplicates", "image_size", "fit", "validation", "cache"),
    "Backbone": ("vision", "blocks"),
    "Optimization": (
        "passes", "views", "balance", "patches", "batch", "lr", "decay", "head_lr", "weight_decay", "bf16",
        "seed",
    ),
    "Loss": (
        "smoothing", "findings_weight", "contrastive_weight", "self_distillation", "teacher", "distillation",
    ),
}  # fmt: skip


@click.command(
    "skinret-adapt",
    cls=GroupedCommand,
    groups=_GROUPS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("tables", metavar="CASES...", type=_PATH, nargs=-1, required=True)
@click.option("--out", required=True, type=_PATH, help="Folder of the adapted backbone.")
@click.option(
    "--images",
    type=_PATH,
    multiple=True,
    help="Folder of the images of a CASES.csv: one for all tables, or one for each.  [default: their own]",
)
@click.option(
    "--findings",
    metavar="NAME,NAME...",
    help="Columns that are labels beside the group.  [default: the seven-point criteria that are columns]",
)
@click.option(
    "--exclude",
    type=_PATH,
    multiple=True,
    help="A CASES.csv or Derm7pt folder that will be measured on. None of its pictures may be in CASES.",
)
@click.option(
    "--drop-duplicates", is_flag=True, help="Leave out the pictures that --exclude finds, without an error."
)
@click.option("--image-size", default=_D.image_size, help="Side of the backbone's input, in pixels.")
@click.option(
    "--fit",
    default=_D.fit,
    type=click.Choice(["crop", "squash"]),
    help="Take the central square, or squash the full picture.",
)
@click.option(
    "--validation",
    default=_D.validation,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the lesions that is measured after each pass. It chooses nothing.",
)
@click.option("--cache", type=_PATH, help="Folder of frozen states.  [default: skinret-cache beside --out]")
@click.option("--vision", default=_D.vision, help="Vision backbone: a hub name or a local folder.")
@click.option(
    "--blocks",
    type=click.IntRange(1),
    help="How many of the last blocks are tuned: layers of a ViT, or blocks within the stages.  "
    "[default: half]",
)
@click.option("--passes", default=_D.passes, type=click.IntRange(1), help="Passes over the lesions.")
@click.option(
    "--views",
    default=_D.views,
    type=click.IntRange(0),
    help="Augmented views of the lesions that are kept. A pass takes one, in turn. 0: each pass makes new "
    "ones, for a graphics card.",
)
@click.option(
    "--balance",
    default=_D.balance,
    type=_SHARE,
    help="Lesions of the most common group in a pass: 0 as many as of the second, 1 all of them.",
)
@click.option(
    "--patches",
    default=_D.patches,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of a plain ViT's patches that a step draws and sees. Less is faster.",
)
@click.option("--batch", default=_D.batch, type=click.IntRange(2), help="Lesions in a step.")
@click.option("--lr", default=_D.lr, help="Learning rate of the last block.")
@click.option(
    "--decay",
    default=_D.decay,
    type=click.FloatRange(0, 1, min_open=True),
    help="Factor of the learning rate from each block to the one before it.",
)
@click.option("--head-lr", default=_D.head_lr, help="Learning rate of the heads.")
@click.option("--weight-decay", default=_D.weight_decay, help="Weight decay of AdamW, for matrices.")
@click.option("--bf16/--fp32", default=_D.bf16, help="Compute in bfloat16: faster if the hardware has it.")
@click.option("--seed", default=_D.seed, type=click.IntRange(0), help="Random seed.")
@click.option(
    "--smoothing",
    default=_D.smoothing,
    type=click.FloatRange(0, 1, max_open=True),
    help="Label smoothing.",
)
@click.option("--findings-weight", default=_D.findings_weight, help="Weight of the findings' cross-entropy.")
@click.option(
    "--contrastive-weight",
    default=_D.contrastive_weight,
    help="Weight of the contrastive loss on two views of each lesion. It doubles the work.",
)
@click.option(
    "--self-distillation",
    default=_D.self_distillation,
    help="Weight of the agreement with a slow copy, which needs no labels. It doubles the work.",
)
@click.option(
    "--teacher",
    default=_D.teacher,
    help="Larger backbone whose features are imitated, which needs no labels: a hub name or a local folder.",
)
@click.option("--distillation", default=_D.distillation, help="Weight of the imitation of --teacher.")
@report_errors
def main(
    tables: tuple[Path, ...],
    out: Path,
    images: tuple[Path, ...],
    findings: str | None,
    exclude: tuple[Path, ...],
    drop_duplicates: bool,
    cache: Path | None,
    **options: Any,
) -> None:
    """Tune the last blocks of a vision backbone on the pictures of CASES, tables as skinret-train takes them.

    A table may have the columns `group`, `lesion_id` and `split` (train or validation), and cells without a
    label. OUT is a transformers folder for `skinret-train --vision`, with the report adaptation.json. It is
    written after every pass. A killed run continues when the same command is given again.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("skinret_training").setLevel(logging.INFO)
    config = AdaptConfig(**options, findings=None if findings is None else tuple(findings.split(",")))
    remove_partial(out.with_name(out.name + ".resume"))
    report = adapt(
        _read(tables, images),
        config,
        out,
        exclude={str(path): read_cases(path) for path in exclude},
        drop_duplicates=drop_duplicates,
        cache=cache or out.parent / "skinret-cache",
    )
    for found in report["duplicates"]:
        click.echo(f"left out: {found['case_id']}, which is {found['same_as']} of {found['of']}", err=True)
    click.echo(f"{out}: {report['passes']} passes, {report['history'][-1]['minutes']} minutes", err=True)


def _read(tables: tuple[Path, ...], images: tuple[Path, ...]) -> list[CaseTable]:
    if len(images) not in (0, 1, len(tables)):
        raise click.UsageError(f"--images is given {len(images)} times for {len(tables)} tables.")
    folders = images * (len(tables) // len(images)) if images else (None,) * len(tables)
    read = [read_cases(path, folder) for path, folder in zip(tables, folders, strict=True)]
    for note in (note for table in read for note in table.notes):
        click.echo(note, err=True)
    return read


if __name__ == "__main__":
    main()
