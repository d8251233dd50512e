"""The whole pipeline in one command: data, training, export, index, queries, and a page to look at."""

import csv
import dataclasses
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, SwinBackbone, SwinConfig

from skinret_infer import Case, InputError, Searcher
from skinret_infer._files import atomic_write
from skinret_infer.cli.common import report_errors
from skinret_infer.evaluation.evaluate import evaluate, table
from skinret_infer.report.figure import draw_results
from skinret_infer.tables import CaseTable, derm7pt_root, read_cases
from skinret_infer.words.checklist import Checklist
from skinret_training.synthetic import write_dataset
from skinret_training.train import TrainConfig, Trained, train

from .export import export_bundle

CASES = 400
# A Swin and a BERT that learn the drawn cases from random weights in about two minutes on two cores.
SMALL: Mapping[str, Any] = {
    "image_size": 128,
    "finetune_vision": "full",
    "finetune_text": True,
    "epochs": 32,
    "patience": 32,
    "encoder_lr": 5e-4,
    "batch": 32,
    "augment_dihedral": 8,
    "dropout": 0.0,
    "max_map_size": 8,
    "name": "skinret-demo",
}


@click.command(
    short_help="Train, export, index and query on drawn cases.",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option("--out", default=Path("demo"), type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--data", type=click.Path(path_type=Path), help="A Derm7pt folder.  [default: drawn cases]")
@click.option("--vision", default=TrainConfig().vision, help="With --data: a vision backbone.")
@click.option("--text", default=TrainConfig().text, help="With --data: a text encoder, by name or folder.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of training; few give a quick look.")
@report_errors
def demo(out: Path, data: Path | None, vision: str, text: str, epochs: int | None) -> None:
    """Train, export, index and query; write checkpoint, bundle, archive, figure and report page to OUT.

    Without --data the cases are drawn by a program and a small model is trained from random weights: the
    figures show that every step runs, not how well the method does.
    """
    logging.basicConfig(format="  %(message)s")
    logging.getLogger("skinret_training").setLevel(logging.INFO)
    _claim_folder(out)
    options: dict[str, Any] = {"fold": 0, "vision": vision, "text": text, "calibration": 0.0}
    if data:
        case_table = read_cases(data)
    else:
        case_table = _draw_cases(out / "data")
        weights = out / "weights"
        write_small_weights(weights, case_table)
        options |= {**SMALL, "vision": str(weights / "vision"), "text": str(weights / "text")}
    for note in case_table.notes:
        _say(note)
    if epochs:
        options["epochs"] = epochs
    trained = _train_model(case_table, TrainConfig(**options), out)
    export_bundle(
        out / "ckpt.pt", out / "bundle", overwrite=True, notify=lambda line: _say(f"exporting: {line}")
    )
    by_id = {case.case_id: case for case in case_table.cases}
    archive_cases = [by_id[case_id] for case_id in trained.archive_ids]
    held_out = [by_id[case_id] for case_id in trained.query_ids]
    images = derm7pt_root(data or out / "data") / "images"
    first_query = _search(out, images, archive_cases, held_out)
    _say(f"the bundle is {out / 'bundle'}, the archive {out / 'cases.skinret'}")
    if data:
        command = f"skinret query {out / 'bundle'} {out / 'cases.skinret'} --image PICTURE --text WORDS"
        _say(f"next: {command}")
    else:
        _write_inputs(out, images, archive_cases, first_query)
        _say(f"next: cd {out}, and type the commands of docs/guide/quickstart.md")


def _claim_folder(out: Path) -> None:
    """Take a folder for the demo, which overwrites the files of an earlier demo and nothing else."""
    mark = out / ".skinret-demo"
    if out.exists() and not mark.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} is not a folder of the demo",
            code="exists",
            expected="a new folder, an empty one, or the folder of an earlier demo",
            cure="give another --out",
        )
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _draw_cases(folder: Path) -> CaseTable:
    """Draw the cases unless an earlier demo did, and read them."""
    if not folder.exists():
        _say(f"drawing {CASES} cases to {folder}")
        write_dataset(folder, CASES)
    case_table = read_cases(folder)
    cases = [dataclasses.replace(case, confirmed_by="drawn by a program") for case in case_table.cases]
    return dataclasses.replace(case_table, cases=cases)


def _train_model(case_table: CaseTable, config: TrainConfig, out: Path) -> Trained:
    """Train a model and save its checkpoint."""
    _say(f"training on {len(case_table.cases)} cases, of which one fold in five is held out")
    trained = train(case_table, config, cache=out / "skinret-cache")
    trained.checkpoint.save(out / "ckpt.pt")
    metrics = trained.checkpoint.metrics
    _say(f"{out / 'ckpt.pt'}: {metrics['epochs']} epochs in {metrics['minutes']:.1f} minutes")
    return trained


def _search(out: Path, images: Path, archive_cases: list[Case], held_out: list[Case]) -> Case:
    """Index the archive cases, query with the held-out ones and write report page and figure.

    Returns the case of the first query, the one of the report page.
    """
    archive = out / "cases.skinret"
    archive.unlink(missing_ok=True)
    queries = _choose_one_per_group(held_out)
    with Searcher(out / "bundle", archive) as searcher:
        _say(f"indexing: {searcher.add(archive_cases)}")
        _say("querying with the held-out fold, through the bundle")
        click.echo(table(evaluate(searcher, held_out)))
        texts = [Checklist.seven_point().text_of(_findings(case)) for case in queries]
        rows = [
            (case.image, searcher.query(case.image, text, k=5))
            for case, text in zip(queries, texts, strict=True)
        ]
        first = rows[0][1]
        click.echo(f"\nquery: case {queries[0].case_id}, {queries[0].group}: {first.text}\n{first}")
        first.to_html(out / "report.html", image_folder=images)
    draw_results(rows, images, out / "results.png", groups=[case.group for case in queries])
    _say(f"the report page of this query is {out / 'report.html'}, the figure of all {out / 'results.png'}")
    return queries[0]


def _write_inputs(out: Path, images: Path, cases: list[Case], query: Case) -> None:
    """Write the files of the quickstart: CASES.csv with the cases of the archive, images/, lesion.jpg."""
    shutil.copytree(images, out / "images", dirs_exist_ok=True)
    shutil.copy(str(query.image), out / "lesion.jpg")
    attributes = list(dict.fromkeys(name for case in cases for name in case.attributes))
    with atomic_write(out / "CASES.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "image", "diagnosis", "group", "confirmed_by", *attributes])
        for case in cases:
            fields = [case.case_id, case.image_ref, case.diagnosis, case.group, case.confirmed_by]
            writer.writerow([*fields, *(case.attributes.get(name, "") for name in attributes)])


def write_small_weights(folder: Path, cases: CaseTable) -> None:
    """Write local Hugging Face folders of a small Swin and a small BERT with random weights."""
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=SMALL["image_size"],
        embed_dim=24,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage2", "stage3", "stage4"],
    )
    SwinBackbone(swin).save_pretrained(folder / "vision")
    vocabulary = write_small_tokenizer(folder / "text", cases.cases)
    bert = BertConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=64,
    )
    BertModel(bert).save_pretrained(folder / "text")


def write_small_tokenizer(folder: Path, cases: Iterable[Case]) -> int:
    """Write a WordPiece tokenizer of the words of the cases as a Hugging Face folder; return its size."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1000, special_tokens=special, show_progress=False)
    words.train_from_iterator((Checklist.seven_point().text_of(case.attributes) for case in cases), trainer)
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    tokenizer.save_pretrained(folder)
    return words.get_vocab_size()


def _choose_one_per_group(cases: list[Case]) -> list[Case]:
    """Return the first case of each group with at least three findings, or else its first case; mel first."""
    chosen: dict[str, Case] = {}
    for case in sorted(cases, key=lambda c: len(_findings(c)) < 3):
        chosen.setdefault(case.group, case)
    return [chosen[group] for group in sorted(chosen, key=lambda g: (g != "mel", g))]


def _findings(case: Case) -> dict[str, Any]:
    """Return the criteria that a clinician would mention: those that are not absent."""
    return {
        name: case.attributes[name]
        for name in Checklist.seven_point().from_image
        if case.attributes.get(name, "absent") != "absent"
    }


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    demo()
