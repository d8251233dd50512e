"""skinret-train: train on a Derm7pt-style folder and write ckpt.pt, or cross-validate with --folds."""

import itertools
import json
import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from skinret_infer._files import atomic_write, remove_partial
from skinret_infer.cli.common import GroupedCommand, report_errors
from skinret_infer.errors import InputError
from skinret_infer.tables import CaseTable, read_cases

from .crossval import METHODS, Experiment, check_name, cross_validate
from .crossval_report import overview
from .model import AGGREGATIONS, FUSIONS, NECKS
from .systems import MODELS
from .train import FINETUNE, OPTIMIZERS, PAPER, SCHEDULES, TrainConfig, train

_D = TrainConfig()
_PATH = click.Path(path_type=Path)
_ALL = "all"
_GROUPS = {
    "Data": ("images", "checklist", "unlike", "image_size", "fit", "tokens", "cache"),
    "Model": (
        "vision", "text", "finetune_vision", "finetune_text", "neck", "width", "max_map_size", "fusion",
        "layers", "regions", "aggregation", "beta", "gamma", "group_weight",
        "dropout", "tta",
    ),
    "Optimization": (
        "epochs", "patience", "batch", "bf16", "lr", "encoder_lr", "schedule", "optimizer", "weight_decay",
        "temperature",
        "validation", "calibration", "seed",
    ),
    "Loss and augmentation": (
        "contrastive_weight", "image_only_loss_weight", "words_only_loss_weight", "words_only_start",
        "group_loss_weight", "criteria_loss_weight", "smoothing", "text_views", "augment_dihedral",
    ),
    "Cross-validation": (
        "folds", "fold", "seeds", "systems", "experiment", "external", "external_images", "keep_artifacts",
    ),
}  # fmt: skip


def _take_recipe(context: click.Context, _: click.Parameter, recipe: str) -> None:
    """Take a recipe's settings as defaults. The settings of --config override them."""
    settings = PAPER if recipe == "paper" else {}
    context.default_map = {**settings, **(context.default_map or {})}


def _take_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Take the settings of a TOML file as defaults."""
    if path is None:
        return
    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path} is not a TOML file: {error}", context, parameter) from None
    settings = {name.replace("-", "_"): value for name, value in settings.items()}
    known = {str(option.name) for option in context.command.params} - {"config", "recipe", "data", "out"}
    if unknown := sorted(settings.keys() - known):
        raise click.BadParameter(f"{path} has unknown settings: {', '.join(unknown)}", context, parameter)
    context.default_map = {**(context.default_map or {}), **settings}


@click.command(
    "skinret-train",
    cls=GroupedCommand,
    groups=_GROUPS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("data", type=_PATH)
@click.option(
    "--out",
    required=True,
    type=_PATH,
    help="The checkpoint to write, such as ckpt.pt; for a cross-validation, the folder of results.",
)
@click.option(
    "--recipe",
    default="skinret",
    type=click.Choice(["skinret", "paper"]),
    is_eager=True,
    expose_value=False,
    callback=_take_recipe,
    help="The defaults of the options: the best on Derm7pt, or the paper's settings.",
)
@click.option(
    "--config",
    type=_PATH,
    is_eager=True,
    expose_value=False,
    callback=_take_config,
    help="A TOML file of options, such as `epochs = 20`. Options of the command line override it.",
)
@click.option("--images", type=_PATH, help="Folder of the images of a CASES.csv.  [default: its own]")
@click.option(
    "--checklist",
    default=_D.checklist,
    help="A TOML file of criteria, values and the words for them.  [default: the seven-point checklist]",
)
@click.option(
    "--unlike",
    default=_D.unlike,
    help="Pictures that are no dermoscopy, which sharpen the warning of them: a folder, or a Derm7pt "
    "release_v0 folder, for its clinical photographs.",
)
@click.option(
    "--vision",
    default=_D.vision,
    help="Vision backbone: a hub name or a local folder (DINOv2, Swin, ResNet, CLIP ...), or timm:NAME.",
)
@click.option(
    "--text", default=_D.text, help="Text encoder of the BERT family: a hub name or a local folder."
)
@click.option(
    "--finetune-vision",
    default=_D.finetune_vision,
    type=click.Choice(FINETUNE),
    help="Which layers of the backbone are trained. The maps of frozen layers are computed once.",
)
@click.option(
    "--finetune-text/--freeze-text",
    default=_D.finetune_text,
    help="Train the text encoder, or compute its token vectors once.",
)
@click.option("--image-size", default=_D.image_size, help="Side of the model's input, in pixels.")
@click.option(
    "--fit",
    default=_D.fit,
    type=click.Choice(["crop", "squash"]),
    help="Take the central square, or squash the full picture.",
)
@click.option("--tokens", default=_D.tokens, help="Text length in tokens.")
@click.option(
    "--tta",
    default=str(_D.tta),
    type=click.Choice(["1", "2", "4", "8"]),
    help="Orientations of a picture that a search averages. The work grows with their number.",
)
@click.option(
    "--neck",
    default=_D.neck,
    type=click.Choice(NECKS),
    help="Input of each level's projection: its own map, or the maps of all three.",
)
@click.option("--width", default=_D.width, type=click.IntRange(1), help="Channels of the maps.")
@click.option("--max-map-size", default=_D.max_map_size, help="Larger maps are pooled to this size.")
@click.option(
    "--fusion", default=_D.fusion, type=click.Choice(FUSIONS), help="How the text changes the maps."
)
@click.option("--layers", default=_D.layers, help="Cross-attention layers a level.")
@click.option("--regions", default=_D.regions, help="Number k of region masks.")
@click.option(
    "--aggregation",
    default=_D.aggregation,
    type=click.Choice(AGGREGATIONS),
    help="How the k region descriptors become one.",
)
@click.option(
    "--beta",
    default=_D.beta,
    type=click.FloatRange(0, 1),
    help="Weight of local against global similarity (Eq. 9).",
)
@click.option(
    "--gamma",
    default=_D.gamma,
    type=click.FloatRange(0, 1),
    help="Weight of concept against visual similarity.",
)
@click.option(
    "--group-weight",
    default=_D.group_weight,
    type=click.FloatRange(0, 1),
    help="Weight of the group among the concepts; the criteria share the rest.",
)
@click.option(
    "--dropout",
    default=_D.dropout,
    type=click.FloatRange(0, 1, max_open=True),
    help="In the composer, and of the channels of a fused neck.",
)
@click.option("--epochs", default=_D.epochs, type=click.IntRange(1), help="Largest number of epochs.")
@click.option(
    "--patience",
    default=_D.patience,
    type=click.IntRange(1),
    help="Epochs without a better validation mAP after which training ends.",
)
@click.option("--batch", default=_D.batch, type=click.IntRange(2), help="Cases in a step.")
@click.option("--bf16/--fp32", default=_D.bf16, help="Train in bfloat16: faster if the hardware has it.")
@click.option("--lr", default=_D.lr, help="Learning rate of AdamW.")
@click.option("--encoder-lr", default=_D.encoder_lr, help="Learning rate of trained encoders.")
@click.option(
    "--schedule", default=_D.schedule, type=click.Choice(SCHEDULES), help="Schedule of the learning rate."
)
@click.option(
    "--optimizer",
    default=_D.optimizer,
    type=click.Choice(OPTIMIZERS),
    help="AdamW, or Adam, which adds the weight decay to the gradient.",
)
@click.option("--weight-decay", default=_D.weight_decay, help="Weight decay of AdamW, for matrices.")
@click.option("--temperature", default=_D.temperature, help="Temperature of S/3 at the start; it is learned.")
@click.option(
    "--image-only-loss-weight",
    default=_D.image_only_loss_weight,
    help="Weight of the loss of queries by image alone.",
)
@click.option(
    "--words-only-loss-weight",
    default=_D.words_only_loss_weight,
    help="Weight of the loss of queries by words alone.",
)
@click.option(
    "--words-only-start",
    default=_D.words_only_start,
    type=click.FloatRange(0, 1),
    help="Share of the epochs before the loss of queries by words alone.",
)
@click.option(
    "--contrastive-weight", default=_D.contrastive_weight, help="Weight of the contrastive loss on S."
)
@click.option(
    "--group-loss-weight",
    default=_D.group_loss_weight,
    help="Weight of the loss of the diagnosis group. 0 trains a model without concepts.",
)
@click.option("--smoothing", default=_D.smoothing, help="Label smoothing of the group.")
@click.option(
    "--group-balance",
    default=_D.group_balance,
    type=click.FloatRange(0, 1),
    help="Weight of rare groups in the group's loss: with 0 all cases count alike, with 1 all groups.",
)
@click.option(
    "--criteria-loss-weight",
    default=_D.criteria_loss_weight,
    help="Weight of the loss of the seven criteria.",
)
@click.option(
    "--text-views", default=_D.text_views, type=click.IntRange(1), help="Number of texts of each case."
)
@click.option(
    "--augment-dihedral",
    default=str(_D.augment_dihedral),
    type=click.Choice(["1", "2", "4", "8"]),
    help="Symmetries of the square for augmentation.",
)
@click.option(
    "--validation",
    default=_D.validation,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the training data that chooses the epoch. 0 trains on all of it.",
)
@click.option(
    "--calibration",
    default=_D.calibration,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the training cases for the limits of first hits: a second model is trained without "
    "them. 0 sets no limits. A cross-validation sets none.",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    help="Cross-validate over this number of stratified folds. With --fold: the number of folds.  "
    f"[default: with --fold {_D.folds}]",
)
@click.option(
    "--fold",
    type=click.IntRange(0),
    help="Hold this fold out and report on it once.  [default: train on everything]",
)
@click.option("--seed", type=click.IntRange(0), help=f"Random seed of one training.  [default: {_D.seed}]")
@click.option("--seeds", metavar="N,N...", help="Seeds of a cross-validation.  [default: 0,1]")
@click.option(
    "--system",
    "systems",
    multiple=True,
    type=click.Choice((*METHODS, _ALL), case_sensitive=True),
    help="What is cross-validated: the model, systems that it is compared with, or all of them. Repeatable."
    "  [default: skinret, the model]",
)
@click.option("--experiment", help="Name of the cross-validation.  [default: that of the system]")
@click.option(
    "--external",
    multiple=True,
    type=_PATH,
    help="CASES.csv of another source, which queries a model that is trained on all of DATA. Repeatable.",
)
@click.option(
    "--external-images",
    multiple=True,
    type=_PATH,
    help="Folder of the images of each --external, in the same order.  [default: the table's own]",
)
@click.option(
    "--keep-artifacts", is_flag=True, help="Keep a cross-validation's checkpoints, bundles and archives."
)
@click.option("--name", default=_D.name, help="The model's name, for the manifest.")
@click.option("--version", "version", default=_D.version, help="The model's version, for the manifest.")
@click.option("--cache", type=_PATH, help="Folder of frozen maps.  [default: skinret-cache beside --out]")
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
    systems: tuple[str, ...],
    experiment: str | None,
    external: tuple[Path, ...],
    external_images: tuple[Path, ...],
    keep_artifacts: bool,
    cache: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train on DATA, a Derm7pt release_v0 folder or a CASES.csv (case_id, image, diagnosis, attributes ...).

    With --fold, ckpt.archive.txt and ckpt.queries.txt beside ckpt.pt list the case ids of the training folds
    and of the held-out one, for `skinret index --ids` and `skinret evaluate --ids`. A killed run continues
    when the same command is given again.

    With --folds and no --fold, every fold of every seed is trained, exported and evaluated. OUT gets
    EXPERIMENT.json, EXPERIMENT.md, and README.md with a line for each experiment that was ever written
    there. --external adds the figures of other sources of cases, which train nothing.
    """
    is_crossval = folds is not None and fold is None
    _check_usage(
        is_crossval,
        seed=seed,
        seeds=seeds,
        system=systems or None,
        experiment=experiment,
        external=external or None,
        external_images=external_images or None,
        keep_artifacts=keep_artifacts or None,
    )
    if external_images and len(external_images) != len(external):
        raise click.UsageError("--external-images: give one for each --external, or none.")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("skinret_training").setLevel(logging.INFO)
    config = TrainConfig(
        **{**options, **{name: int(options[name]) for name in ("augment_dihedral", "tta")}},
        folds=folds or _D.folds,
        fold=fold,
        seed=_D.seed if seed is None else seed,
    )
    cache = cache or out.parent / "skinret-cache"
    plans = []
    if is_crossval:
        chosen = METHODS if _ALL in systems else systems or METHODS[:1]
        if experiment and len(chosen) > 1:
            raise click.UsageError("--experiment names one cross-validation. Give one --system.")
        plans = [
            Experiment(
                name=experiment or name,
                method=name,
                config=replace(config, **MODELS[name].settings) if name in MODELS else config,
                seeds=_numbers(seeds or "0,1"),
            )
            for name in chosen
        ]
    table = _read(data, images)
    if not plans:
        _train_one(table, config, out, cache, as_json)
        return
    sources = _read_sources(external, external_images)
    results = []
    for plan in plans:
        plan.check(table)
    for plan in plans:
        results.append(cross_validate(table, plan, out, cache=cache, external=sources, keep=keep_artifacts))
        click.echo(f"{out / plan.name}.md written", err=True)
    if as_json:
        summaries = {result["experiment"]: _summary(result) for result in results}
        click.echo(json.dumps(summaries if len(summaries) > 1 else _summary(results[0]), indent=2))
    else:
        click.echo(overview(results))


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    others = {name: source["summary"] for name, source in result["external"].items()}
    return {**result["summary"], **({"external": others} if others else {})}


def _read(source: Path, images: Path | None) -> CaseTable:
    table = read_cases(source, images)
    for note in table.notes:
        click.echo(note, err=True)
    return table


def _read_sources(tables: Sequence[Path], images: Sequence[Path]) -> dict[str, CaseTable]:
    """Return the tables of other sources by the name of their file. Raises InputError."""
    sources: dict[str, CaseTable] = {}
    for path, folder in itertools.zip_longest(tables, images):
        name = path.resolve().stem
        check_name("external source", name)
        if name in sources:
            raise InputError(
                f"two external sources have the name {name}",
                code="option",
                expected="tables whose files have different names",
                found=", ".join(map(str, tables)),
                cure="rename one: its name stands in the results",
            )
        sources[name] = _read(path, folder)
    return sources


def _train_one(table: CaseTable, config: TrainConfig, out: Path, cache: Path, as_json: bool) -> None:
    resume = out.with_name(out.name + ".resume")
    remove_partial(resume)
    trained = train(table, config, cache=cache, resume=resume)
    metrics = trained.checkpoint.metrics
    trained.checkpoint.save(out)
    resume.unlink(missing_ok=True)
    if trained.query_ids:
        for role, ids in (("archive", trained.archive_ids), ("queries", trained.query_ids)):
            with atomic_write(out.with_name(f"{out.stem}.{role}.txt")) as temporary:
                temporary.write_text("\n".join(ids) + "\n", "utf-8")
    click.echo(f"{out}: {metrics['epochs']} epochs, {metrics['minutes']} minutes", err=True)
    if as_json:
        click.echo(json.dumps(metrics, indent=2))
    else:
        validation = {"validation": metrics["validation"]} if "validation" in metrics else {}
        for kind, figures in metrics.get("held_out", validation).items():
            text = ", ".join(f"{k} {v:.1f}" for k, v in figures.items() if isinstance(v, float))
            click.echo(f"{kind.replace('_', ' ')}: {text} ({figures['queries']} queries)", err=True)


def _check_usage(is_crossval: bool, *, seed: int | None, **crossval_options: Any) -> None:
    if is_crossval and seed is not None:
        raise click.UsageError("--seed is for one training. A cross-validation takes --seeds, such as 0,1.")
    names = [f"--{name.replace('_', '-')}" for name, value in crossval_options.items() if value is not None]
    if names and not is_crossval:
        raise click.UsageError(
            f"{', '.join(names)}: only for a cross-validation, which is --folds without --fold."
        )


def _numbers(seeds: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise click.UsageError(f"--seeds {seeds!r} is not a list of numbers such as 0,1.") from None


if __name__ == "__main__":
    main()
