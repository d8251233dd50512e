"""skinret-train: a Derm7pt-style folder in, ckpt.pt out; or, with --folds, a cross-validation."""

import glob
import json
import logging
from pathlib import Path
from typing import Any

import click

from skinret_infer._files import atomic_write
from skinret_infer.cli.common import report_errors
from skinret_infer.tables import CaseTable, read_cases

from .crossval import SYSTEMS, Row, cross_validate
from .crossval_report import overview
from .model import AGGREGATIONS, NECKS, WORDS
from .train import PAPER, SCHEDULES, TUNED, TrainConfig, train

_D = TrainConfig()


def _take_recipe(context: click.Context, _: click.Parameter, recipe: str) -> None:
    """Let a recipe's settings stand where the command line says nothing."""
    context.default_map = PAPER if recipe == "paper" else {}


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
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The checkpoint to write, such as ckpt.pt; of a cross-validation, the folder of results.",
)
@click.option(
    "--recipe",
    default="skinret",
    type=click.Choice(["skinret", "paper"]),
    is_eager=True,
    expose_value=False,
    callback=_take_recipe,
    help="Where the options begin: what won on Derm7pt, or the paper's settings.",
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
    "--tune-vision",
    default=_D.tune_vision,
    type=click.Choice(TUNED),
    help="Tune the backbone, its last depth alone, or nothing; the maps of the rest are computed once.",
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
    "--orientations",
    default=str(_D.orientations),
    type=click.Choice(["1", "2", "4", "8"]),
    help="Of each picture when it is searched: better, for as many times the work.",
)
@click.option("--neck", default=_D.neck, type=click.Choice(NECKS), help="What a level's maps are made from.")
@click.option("--width", default=_D.width, type=click.IntRange(1), help="Width of the maps.")
@click.option("--map-side", default=_D.map_side, help="Pool larger maps to at most this side.")
@click.option("--words", default=_D.words, type=click.Choice(WORDS), help="How words change the maps.")
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
    "--gamma",
    default=_D.gamma,
    type=click.FloatRange(0, 1),
    help="Weight of the agreement of what is read off both, beside S / 3.",
)
@click.option(
    "--dropout",
    default=_D.dropout,
    type=click.FloatRange(0, 1, max_open=True),
    help="In the composer, and of the channels of a fused neck.",
)
@click.option("--epochs", default=_D.epochs, type=click.IntRange(1), help="At most.")
@click.option(
    "--patience", default=_D.patience, type=click.IntRange(1), help="Epochs without a better validation mAP."
)
@click.option("--batch", default=_D.batch, type=click.IntRange(2), help="Queries a step.")
@click.option("--bf16/--fp32", default=_D.bf16, help="Train in bfloat16: faster where the hardware has it.")
@click.option("--lr", default=_D.lr, help="AdamW's learning rate.")
@click.option("--encoder-lr", default=_D.encoder_lr, help="Of encoders that are tuned.")
@click.option("--schedule", default=_D.schedule, type=click.Choice(SCHEDULES), help="Of the learning rate.")
@click.option("--weight-decay", default=_D.weight_decay, help="AdamW's, of matrices.")
@click.option("--temperature", default=_D.temperature, help="Of S/3 at the start; it is learned.")
@click.option(
    "--image-weight", default=_D.image_weight, help="Of the query by image alone, beside image and words."
)
@click.option("--pair-weight", default=_D.pair_weight, help="Of the contrast of pairs of cases.")
@click.option("--group-weight", default=_D.group_weight, help="Of reading the group; 0 reads nothing.")
@click.option("--smoothing", default=_D.smoothing, help="Of the groups that are read.")
@click.option("--criteria-weight", default=_D.criteria_weight, help="Of reading the seven criteria.")
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
    type=click.FloatRange(0, 1, max_open=True),
    help="Part of the training data that chooses the epoch; 0 trains on all of it.",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    help="Cross-validate over so many stratified folds; with --fold, how many there are.  "
    f"[default: with --fold {_D.folds}]",
)
@click.option(
    "--fold",
    type=click.IntRange(0),
    help="Hold this fold out and report on it once.  [default: train on everything]",
)
@click.option(
    "--seed", type=click.IntRange(0), help=f"Of all that is random, for one training.  [default: {_D.seed}]"
)
@click.option("--seeds", metavar="N,N...", help="Of a cross-validation: all folds with each.  [default: 0,1]")
@click.option(
    "--system", type=click.Choice(SYSTEMS), help="What is cross-validated.  [default: skinret, the model]"
)
@click.option("--row", help="Name of the cross-validation's row.  [default: that of the system]")
@click.option("--keep", is_flag=True, help="Keep a cross-validation's checkpoints, bundles and archives.")
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
    data: Path,
    images: Path | None,
    out: Path,
    folds: int | None,
    fold: int | None,
    seed: int | None,
    seeds: str | None,
    system: str | None,
    row: str | None,
    keep: bool,
    cache: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train on DATA, a Derm7pt release_v0 folder or a CASES.csv (case_id, image, diagnosis, attributes ...).

    With --fold, ckpt.archive.txt and ckpt.queries.txt beside ckpt.pt list the case ids of the training folds
    and of the held-out one, for `skinret index --ids` and `skinret evaluate --ids`. A killed run goes
    on where it was when the same command is given again.

    With --folds and no --fold, every fold of every seed is trained, exported and searched with, and OUT gets
    ROW.json, ROW.md, and README.md with a line for each row that was ever written there.
    """
    crossing = folds is not None and fold is None
    _check_usage(crossing, seed=seed, seeds=seeds, system=system, row=row, keep=keep or None)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("skinret_training").setLevel(logging.INFO)
    config = TrainConfig(
        **{**options, **{name: int(options[name]) for name in ("symmetries", "orientations")}},
        folds=folds or _D.folds,
        fold=fold,
        seed=_D.seed if seed is None else seed,
    )
    cache = cache or out.parent / "skinret-cache"
    wanted = None
    if crossing:
        system = system or SYSTEMS[0]
        wanted = Row(name=row or system, system=system, config=config, seeds=_numbers(seeds or "0,1"))
    table = read_cases(data, images)
    for note in table.notes:
        click.echo(note, err=True)
    if wanted:
        result = cross_validate(table, wanted, out, cache=cache, keep=keep)
        click.echo(json.dumps(result["summary"], indent=2) if as_json else overview([result]))
        click.echo(f"{out / wanted.name}.md written", err=True)
    else:
        _train_one(table, config, out, cache, as_json)


def _train_one(table: CaseTable, config: TrainConfig, out: Path, cache: Path, as_json: bool) -> None:
    resume = out.with_name(out.name + ".resume")
    for left in out.parent.glob(f".{glob.escape(resume.name)}.*.partial"):  # by a run killed as it wrote
        left.unlink(missing_ok=True)
    trained = train(table, config, cache=cache, resume=resume)
    trained.checkpoint.save(out)
    resume.unlink(missing_ok=True)
    if trained.query_ids:
        for role, ids in (("archive", trained.archive_ids), ("queries", trained.query_ids)):
            with atomic_write(out.with_name(f"{out.stem}.{role}.txt")) as temporary:
                temporary.write_text("\n".join(ids) + "\n", "utf-8")
    click.echo(
        "{}: {epochs} epochs, {minutes} minutes".format(out, **trained.checkpoint.metrics),
        err=True,
    )
    if as_json:
        click.echo(json.dumps(trained.checkpoint.metrics, indent=2))
    else:
        metrics = trained.checkpoint.metrics
        measured = {"validation": metrics["validation"]} if "validation" in metrics else {}
        for kind, figures in metrics.get("held_out", measured).items():
            said = ", ".join(f"{k} {v:.1f}" for k, v in figures.items() if isinstance(v, float))
            click.echo(f"{kind.replace('_', ' ')}: {said} ({figures['queries']} queries)", err=True)


def _check_usage(crossing: bool, *, seed: int | None, **of_crossing: Any) -> None:
    if crossing and seed is not None:
        raise click.UsageError("--seed is of one training; a cross-validation takes --seeds, such as 0,1.")
    given = [f"--{name}" for name, value in of_crossing.items() if value is not None]
    if given and not crossing:
        raise click.UsageError(
            f"{', '.join(given)}: only of a cross-validation, which is --folds without --fold."
        )


def _numbers(seeds: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in seeds.split(","))
    except ValueError:
        raise click.UsageError(f"--seeds {seeds!r} is no list of numbers, such as 0,1.") from None


if __name__ == "__main__":
    main()
