"""skinret-train: a Derm7pt-style folder in, ckpt.pt out."""

import json
import logging
from pathlib import Path
from typing import Any

import click

from skinret_infer.cases import read_cases
from skinret_infer.cli import report_errors
from skinret_infer.files import whole_file

from .model import AGGREGATIONS
from .train import TrainConfig, train

_D = TrainConfig()


@click.command(
    "skinret-train", context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder of the images of a CASES.csv.  [default: its own]",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The checkpoint to write, such as ckpt.pt."
)
@click.option(
    "--vision",
    default=_D.vision,
    help="Vision backbone: a hub name or a local folder (Swin, ResNet, DINOv2 ...).",
)
@click.option(
    "--text", default=_D.text, help="Text encoder of the BERT family: a hub name or a local folder."
)
@click.option(
    "--tune-vision/--freeze-vision",
    default=_D.tune_vision,
    help="Tune the backbone, or keep its maps, computed once.",
)
@click.option(
    "--tune-text/--freeze-text", default=_D.tune_text, help="Tune the text encoder, or keep its tokens."
)
@click.option(
    "--image-size", default=_D.image_size, help="Side of the square that the encoder sees, in pixels."
)
@click.option(
    "--fit",
    default=_D.fit,
    type=click.Choice(["crop", "squash"]),
    help="The central square, or the whole picture.",
)
@click.option("--tokens", default=_D.tokens, help="Text length in tokens.")
@click.option(
    "--width",
    type=click.IntRange(1),
    help="Width of the maps.  [default: 256 if frozen, the backbone's own if tuned]",
)
@click.option("--map-side", default=_D.map_side, help="Pool larger maps to at most this side.")
@click.option("--layers", default=_D.layers, help="Cross-modal layers a level.")
@click.option("--regions", default=_D.regions, help="Region masks k.")
@click.option(
    "--aggregation",
    default=_D.aggregation,
    type=click.Choice(AGGREGATIONS),
    help="How the k regions become one.",
)
@click.option(
    "--beta", default=_D.beta, type=click.FloatRange(0, 1), help="Weight of the local term (Eq. 9)."
)
@click.option(
    "--dropout", default=_D.dropout, type=click.FloatRange(0, 1, max_open=True), help="In the composer."
)
@click.option("--epochs", default=_D.epochs, type=click.IntRange(1), help="At most.")
@click.option(
    "--patience", default=_D.patience, type=click.IntRange(1), help="Epochs without a better validation mAP."
)
@click.option("--batch", default=_D.batch, type=click.IntRange(2), help="Queries a step.")
@click.option(
    "--bf16/--fp32", default=_D.bf16, help="Train the composer in bfloat16: faster where the hardware has it."
)
@click.option("--lr", default=_D.lr, help="Adam's learning rate.")
@click.option("--weight-decay", default=_D.weight_decay, help="Adam's.")
@click.option("--temperature", default=_D.temperature, help="Of S/3 at the start; it is learned.")
@click.option(
    "--text-dropout",
    default=_D.text_dropout,
    type=click.FloatRange(0, 1),
    help="How often a query is the image alone.",
)
@click.option("--text-views", default=_D.text_views, type=click.IntRange(1), help="Ways to say a case.")
@click.option(
    "--symmetries",
    default=str(_D.symmetries),
    type=click.Choice(["1", "2", "4", "8"]),
    help="Of the square, as augmentation.",
)
@click.option(
    "--validation",
    default=_D.validation,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Part of the training data.",
)
@click.option(
    "--folds", default=_D.folds, type=click.IntRange(2), help="Stratified folds, of which --fold is held out."
)
@click.option(
    "--fold",
    type=click.IntRange(0),
    help="Hold this fold out and report on it once.  [default: train on everything]",
)
@click.option("--seed", default=_D.seed, type=click.IntRange(0), help="Of all that is random.")
@click.option("--name", default=_D.name, help="The model's name, for the manifest.")
@click.option("--version", "version", default=_D.version, help="The model's version, for the manifest.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Where frozen maps are kept.  [default: skinret-cache beside --out]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
@report_errors
def main(
    data: Path, images: Path | None, out: Path, cache: Path | None, as_json: bool, **options: Any
) -> None:
    """Train on DATA, a Derm7pt release_v0 folder or a CASES.csv (case_id, image, diagnosis, attributes ...).

    With --fold, ckpt.archive.txt and ckpt.queries.txt beside ckpt.pt list the case ids of the training folds
    and of the held-out one, for `skinret index --ids` and `skinret evaluate --ids`. A killed run goes
    on where it was when the same command is given again.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("skinret_training").setLevel(logging.INFO)
    config = TrainConfig(**{**options, "symmetries": int(options["symmetries"])})
    table = read_cases(data, images)
    for note in table.notes:
        click.echo(note, err=True)
    resume = out.with_name(out.name + ".resume")
    trained = train(table, config, cache=cache or out.parent / "skinret-cache", resume=resume)
    trained.checkpoint.save(out)
    resume.unlink(missing_ok=True)
    if trained.query_ids:
        for role, ids in (("archive", trained.archive_ids), ("queries", trained.query_ids)):
            with whole_file(out.with_name(f"{out.stem}.{role}.txt")) as temporary:
                temporary.write_text("\n".join(ids) + "\n", "utf-8")
    click.echo(
        "{}: {epochs} epochs, {minutes} minutes".format(out, **trained.checkpoint.metrics),
        err=True,
    )
    if as_json:
        click.echo(json.dumps(trained.checkpoint.metrics, indent=2))
    else:
        held = trained.checkpoint.metrics.get(
            "held_out", {"validation": trained.checkpoint.metrics["validation"]}
        )
        for kind, figures in held.items():
            said = ", ".join(f"{k} {v:.1f}" for k, v in figures.items() if isinstance(v, float))
            click.echo(f"{kind.replace('_', ' ')}: {said} ({figures['queries']} queries)", err=True)


if __name__ == "__main__":
    main()
