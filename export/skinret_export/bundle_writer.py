"""Write a bundle from a checkpoint: whole and proven, or not at all."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skinret_infer.bundle import FILES, GRAPHS, SCHEMA, Bundle, Level, Manifest, file_sha256
from skinret_infer.engines import open_engine
from skinret_infer.errors import InputError, ParityError
from skinret_infer.files import whole_file, whole_folder
from skinret_infer.image import decode, prepare
from skinret_infer.text import TextEncoderInput, describe
from skinret_training.checkpoint import Checkpoint
from skinret_training.model import Skinret
from skinret_training.synthetic import random_lesions

from .graphs import OPSET, check_graph, graph_specs, write_graph
from .parity import Probe, judge, measure

MIN_IMAGES = 64
_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy")


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a checkpoint to a bundle folder and prove it against PyTorch.

    images : a folder of at least 64 images to prove it on; None draws them.
    say : told of each step.

    Raises ParityError if any graph is not what the contract says or disagrees with PyTorch; the report is
    then `OUT.parity.json`, and nothing stands at `out` that did not stand there before.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise InputError(
            f"{out} exists", code="exists", expected="a new folder", cure="give another --out, or --overwrite"
        )
    loaded = Checkpoint.load(checkpoint)
    probe = make_probe(loaded, images)
    model = loaded.model()
    report_path = out.with_name(out.name + ".parity.json")
    report: dict[str, Any] = {}
    with whole_folder(out) as folder:
        try:
            for name, spec in graph_specs(model, loaded.text.length).items():
                say(f"{name}.onnx")
                write_graph(spec, folder / f"{name}.onnx")
                check_graph(folder / f"{name}.onnx", spec)
            (folder / "tokenizer.json").write_text(loaded.tokenizer, "utf-8")
            manifest = _manifest(loaded, model, file_sha256(checkpoint))
            say(f"parity on {len(probe.pixels)} {probe.source}")
            report = measure(model, open_engine(Bundle(folder, manifest), "onnxruntime-cpu"), probe)
            judge(report)
        except ParityError as error:
            failed = report | {"passed": False, "code": error.code, "error": str(error)}
            strict = json.loads(json.dumps(failed), parse_constant=str)  # JSON has no NaN
            with whole_file(report_path) as temporary:
                temporary.write_text(json.dumps(strict, indent=2) + "\n", "utf-8")
            error.add_note(f"The report is {report_path}; no bundle was written.")
            raise
        hashes = {name: file_sha256(folder / name) for name in FILES}
        manifest = dataclasses.replace(manifest, files=hashes, parity=report | {"passed": True})
        (folder / "manifest.json").write_text(manifest.to_json(), "utf-8")
    report_path.unlink(missing_ok=True)
    return Bundle.load(out)


def make_probe(checkpoint: Checkpoint, images: str | Path | None, count: int = MIN_IMAGES) -> Probe:
    """Gather images, from a folder or drawn by a program, and words to ask both sides with."""
    lesions = list(
        random_lesions(count, seed=20261121, size=(3 * checkpoint.image.size // 2, checkpoint.image.size))
    )
    if images is None:
        pixels, source = [np.asarray(picture) for _, picture in lesions], "drawn images"
    else:
        files = sorted(
            p
            for p in Path(images).rglob("*")
            if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
        )
        if len(files) < count:
            raise InputError(
                f"{images} has too few images to prove ranks on",
                code="probe-images",
                expected=f"at least {count}",
                found=str(len(files)),
                cure="name a folder of more, or leave --images out",
            )
        step = len(files) // count
        pixels, source = [decode(p) for p in files[: step * count : step]], "images of the given folder"
    words = [describe(row, checkpoint.text.phrases) for row, _ in lesions]
    ids, mask, _ = TextEncoderInput(checkpoint.tokenizer, checkpoint.text)(words)
    return Probe(np.stack([prepare(p, checkpoint.image) for p in pixels]), ids, mask, source)


def _manifest(checkpoint: Checkpoint, model: Skinret, sha256: str) -> Manifest:
    low, mid, high = (Level(height=h, width=w, channels=d) for h, w, d in model.visual_encoder.shapes)
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return Manifest(
        schema=SCHEMA,
        model=checkpoint.name,
        version=checkpoint.version,
        image=checkpoint.image,
        text=checkpoint.text,
        levels=(low, mid, high),
        layout=model.similarity_head.layout,
        regions=checkpoint.config.regions,
        aggregation=checkpoint.config.aggregation,
        beta=float(checkpoint.config.beta),
        precision="fp32",
        opset=OPSET,
        origin={"checkpoint_sha256": sha256, "packages": packages, **checkpoint.origin},
        metrics=checkpoint.metrics,
        files=dict.fromkeys((f"{g}.onnx" for g in GRAPHS), ""),
    )
