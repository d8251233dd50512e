"""Write a bundle from a checkpoint. Only a complete and proven bundle appears on the disk."""

import contextlib
import dataclasses
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from skinret_infer._files import atomic_folder, atomic_write, file_sha256, pictures_below
from skinret_infer.bundle import (
    CONCEPT_HEAD,
    FILES,
    GRAPHS,
    SCHEMA,
    Bundle,
    Calibration,
    Level,
    Manifest,
    graph_file,
)
from skinret_infer.cases import Case
from skinret_infer.engines.cpus import available_cpus
from skinret_infer.engines.registry import RUNTIMES, open_engine, precisions, why_not
from skinret_infer.errors import InputError, ParityError
from skinret_infer.evaluation.precision import (
    MIN_QUERIES,
    ValidationSet,
    format_record,
    make_validation_set,
    validate_precision,
)
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import preprocess
from skinret_infer.text import TextEncoderInput
from skinret_infer.trust.signing import SIGNATURE
from skinret_infer.words.checklist import Checklist
from skinret_infer.words.reading import reader_of
from skinret_training.checkpoint import Checkpoint
from skinret_training.model import Skinret
from skinret_training.synthetic import random_lesions

from .fp16 import write_fp16
from .graphs import OPSET, check_graph, graph_specs, write_graph
from .parity import judge, measure
from .portable import check_portable

MIN_IMAGES = 64
_FP16_FILES = tuple(graph_file(name, "fp16") for name in GRAPHS)
_BUNDLE_FILES = {*FILES, *_FP16_FILES, CONCEPT_HEAD, "manifest.json", SIGNATURE}
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # file managers write these
_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy")


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    cases: Sequence[Case] = (),
    checklist: Checklist | None = None,
    fp16: bool = False,
    check_precision: bool = True,
    overwrite: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a checkpoint to a bundle folder and prove it against PyTorch.

    images : a folder of at least 64 images to prove the bundle on; None draws them.
    cases : at least 200 cases with words, to measure lower precisions on; without any, cases are drawn.
    checklist : other words for the criteria and values that the model was trained with.
    fp16 : also write the graphs in fp16, for graphics cards; the bundle then takes half as much again.
    check_precision : measure the lower precisions of the runtimes that are installed here.
    overwrite : replace an old bundle, once the new one is proven; nothing but a bundle is replaced.
    notify : called with a line about each step.

    Raises ParityError if a graph breaks the contract or disagrees with PyTorch. The report is then
    `OUT.parity.json`, and `out` stays as it was. Raises InputError before the work if the checkpoint or `out`
    cannot be used, and later if the disk is full.
    """
    out = Path(out)
    _check_out(out, overwrite)
    out = out.resolve() if out.is_symlink() else out  # the folder is replaced, and the link stays
    torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))  # torch ignores CPU quotas
    loaded = Checkpoint.load(checkpoint)
    if checklist is not None:
        loaded = _with_words(loaded, checklist)
    probe = make_probe(loaded, images)
    model = loaded.model()
    report_path = out.with_name(out.name + ".parity.json")
    report: dict[str, Any] = {}
    with _can_write(out), atomic_folder(out) as folder:
        try:
            _write_files(loaded, model, folder, fp16, notify)
            manifest = _manifest(loaded, model, file_sha256(checkpoint))
            notify(f"parity on {len(probe.pixels)} {probe.source}")
            report = measure(model, open_engine(Bundle(folder, manifest), "onnxruntime-cpu"), probe)
            judge(report)
        except ParityError as error:
            _write_failure(report_path, report, error)
            raise
        hashes = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
        manifest = dataclasses.replace(manifest, files=hashes, parity=report | {"passed": True})
        if check_precision:
            queries = _validation_set(loaded, manifest, cases)
            records = measure_precisions(Bundle(folder, manifest), queries, notify)
            manifest = dataclasses.replace(manifest, precision_checks=records)
        (folder / "manifest.json").write_text(manifest.to_json(), "utf-8")
        _check_out(out, overwrite)  # another export may have come first
    report_path.unlink(missing_ok=True)
    return Bundle.unverified(out)


def _with_words(checkpoint: Checkpoint, checklist: Checklist) -> Checkpoint:
    """Return a checkpoint with the words of a checklist that has the same criteria. Raises InputError."""
    reader_of(checklist)  # checks that every canonical phrase can be read
    if checklist.criteria != checkpoint.checklist.criteria:
        raise InputError(
            f"the checklist {checklist.name!r} has other criteria than the model",
            code="checklist-criteria",
            expected=f"the phrases and values of {', '.join(checkpoint.checklist.criteria)}",
            found=", ".join(checklist.criteria),
            cure="change only languages and ways, or train with this checklist",
        )
    return dataclasses.replace(checkpoint, checklist=checklist)


def _write_files(
    checkpoint: Checkpoint, model: Skinret, folder: Path, fp16: bool, notify: Callable[[str], None]
) -> None:
    """Write and check the graphs, and write tokenizer and concept head: all but the manifest."""
    for name, spec in graph_specs(model, checkpoint.text.length).items():
        notify(f"{name}.onnx")
        write_graph(spec, folder / f"{name}.onnx")
        check_graph(folder / f"{name}.onnx", spec)
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer, "utf-8")
    if model.config.concepts:
        np.save(folder / CONCEPT_HEAD, model.similarity_head.concept_heads().detach().numpy())
    if fp16:
        notify("fp16")
        write_fp16(folder)
        for file in _FP16_FILES:
            check_portable(onnx.load(folder / file), file)


def _write_failure(path: Path, report: dict[str, Any], error: ParityError) -> None:
    """Write the report of a failed export, and name the file in a note of the error."""
    failure = report | {"passed": False, "code": error.code, "error": str(error)}
    strict = json.loads(json.dumps(failure), parse_constant=str)  # JSON has no NaN
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(strict, indent=2) + "\n", "utf-8")
    error.add_note(f"The report is {path}; no bundle was written.")


def _check_out(out: Path, overwrite: bool) -> None:
    """Raise InputError unless a bundle may be written at a path. Leaves nothing behind."""
    with _can_write(out):
        if out.exists() or out.is_symlink():
            obstacle = _describe_obstacle(out)
            if obstacle or not overwrite:
                raise InputError(
                    f"{out} exists",
                    code="exists",
                    expected="a new folder",
                    found=f"{obstacle}, which is left as it is" if obstacle else "a bundle",
                    cure="give another --out" if obstacle else "give another --out, or --overwrite",
                )
        parent = next(folder for folder in out.absolute().parents if folder.exists())
        with tempfile.TemporaryDirectory(prefix=".skinret-", dir=parent):
            return


def _describe_obstacle(path: Path) -> str:
    """Return what is at a path, or "" for a bundle, intact or damaged, without foreign files."""
    if not path.is_dir():
        return "a file, not a bundle"
    names = {file.name for file in path.iterdir()}
    if "manifest.json" not in names or not names & {*FILES}:
        return "a folder that is not a bundle"
    foreign = names - _BUNDLE_FILES - _LITTER
    return f"a bundle's folder with the foreign file {min(foreign)}" if foreign else ""


@contextlib.contextmanager
def _can_write(out: Path) -> Iterator[None]:
    """Turn an error of the system, such as a full disk or a missing permission, into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out} cannot be written",
            code="out-path",
            expected="a folder that can be written, with enough free space for a bundle",
            found=str(error),
            cure="free some space, or give another --out",
        ) from error


def measure_precisions(
    bundle: Bundle, queries: ValidationSet, notify: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Check every lower precision that runs here, except those of TensorRT.

    Returns the records by "runtime/precision". A precision that fails is no fault of the bundle, but it is
    refused on every machine.
    """
    records = {}
    runtimes = [name for name in RUNTIMES if not name.startswith("tensorrt") and not why_not(name)]
    with tempfile.TemporaryDirectory(dir=bundle.path.parent, prefix=".precision.") as cache:
        reference = open_engine(bundle, "onnxruntime-cpu", precision="fp32")
        for name in runtimes:
            for precision in precisions(name, bundle):
                if precision != "fp32":
                    notify(f"ranks of {name} in {precision} on {len(queries)} {queries.source}")
                    engine = open_engine(bundle, name, precision=precision, cache=cache, check=False)
                    record = validate_precision(bundle, reference, engine, queries)
                    engine.close()
                    records[f"{name}/{precision}"] = record
                    notify(format_record(record))
    return records


def _validation_set(checkpoint: Checkpoint, manifest: Manifest, cases: Sequence[Case]) -> ValidationSet:
    if cases:
        return make_validation_set(manifest, checkpoint.tokenizer, cases, "cases of the table")
    size = checkpoint.image.size
    drawn_cases = [
        Case(str(n), picture, attributes=row)
        for n, (row, picture) in enumerate(
            random_lesions(MIN_QUERIES, seed=20261122, size=(3 * size // 2, size))
        )
    ]
    return make_validation_set(manifest, checkpoint.tokenizer, drawn_cases, "drawn images")


def make_probe(checkpoint: Checkpoint, images: str | Path | None, count: int = MIN_IMAGES) -> ValidationSet:
    """Gather images, from a folder or drawn by a program, and words, to query PyTorch and the graphs with."""
    lesions = list(
        random_lesions(count, seed=20261121, size=(3 * checkpoint.image.size // 2, checkpoint.image.size))
    )
    if images is None:
        pixels, source = [np.asarray(picture) for _, picture in lesions], "drawn images"
    else:
        files = pictures_below(Path(images))
        if len(files) < count:
            raise InputError(
                f"{images} has too few images to prove ranks on",
                code="probe-images",
                expected=f"at least {count}",
                found=str(len(files)),
                cure="name a folder with more images, or leave --images out",
            )
        step = len(files) // count
        pixels, source = [decode(path) for path in files[: step * count : step]], "images of the folder"
    words = [Checklist.seven_point().text_of(row) for row, _ in lesions]
    ids, mask, _ = TextEncoderInput(checkpoint.tokenizer, checkpoint.text)(words)
    return ValidationSet(np.stack([preprocess(p, checkpoint.image) for p in pixels]), ids, mask, source)


def _manifest(checkpoint: Checkpoint, model: Skinret, sha256: str) -> Manifest:
    low, mid, high = (Level(height=h, width=w, channels=d) for h, w, d in model.visual_encoder.shapes)
    library = checkpoint.config.vision.get("library", "transformers")
    packages = {name: importlib.metadata.version(name) for name in dict.fromkeys((*_PACKAGES, library))}
    return Manifest(
        schema=SCHEMA,
        model=checkpoint.name,
        version=checkpoint.version,
        image=checkpoint.image,
        text=checkpoint.text,
        checklist=checkpoint.checklist,
        levels=(low, mid, high),
        layout=model.similarity_head.layout,
        regions=checkpoint.config.regions,
        aggregation=checkpoint.config.aggregation,
        beta=float(checkpoint.config.beta),
        gamma=float(checkpoint.config.gamma),
        group_weight=float(checkpoint.config.group_weight),
        concepts={name: list(values) for name, values in checkpoint.config.concepts.items()},
        precision="fp32",
        opset=OPSET,
        origin={"checkpoint_sha256": sha256, "packages": packages, **checkpoint.origin},
        metrics=checkpoint.metrics,
        files=dict.fromkeys((f"{g}.onnx" for g in GRAPHS), ""),
        calibration=Calibration(**checkpoint.calibration) if checkpoint.calibration else None,
    )
