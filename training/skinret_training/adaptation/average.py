"""skinret-average: one backbone with the mean weights of several that were adapted from the same one.

Runs that start from the same weights often end in one basin of the loss, where the mean of their weights is
better than each of them, at the cost of one (model soups; Wortsman et al. 2022, arXiv:2203.05482).
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from skinret_infer._files import atomic_folder
from skinret_infer.cli.common import report_errors
from skinret_infer.errors import InputError

from ..backbones import load_backbone
from ..origin import PICTURES, RECORD, read_adaptation
from .run import PREPROCESSOR, check_out


def average(backbones: Sequence[Path], out: Path) -> None:
    """Write the mean of some adapted backbones as a folder of transformers, with the records of all.

    Raises InputError for folders that skinret-adapt has not written, or not from the same weights.
    """
    check_out(out)
    adaptations = [read_adaptation(str(folder)) for folder in backbones]
    seen = [adaptation.seen for adaptation in adaptations if adaptation]
    if len(seen) < 2 or len(seen) < len(backbones):
        raise InputError(
            "these backbones cannot be averaged",
            code="option",
            expected="at least two folders that skinret-adapt has written",
            found=", ".join(f.name for f, a in zip(backbones, adaptations, strict=True) if a) or "none",
        )
    records = [json.loads((folder / RECORD).read_text("utf-8")) for folder in backbones]
    origins = [_origin(folder, record) for folder, record in zip(backbones, records, strict=True)]
    if others := [f.name for f, origin in zip(backbones, origins, strict=True) if origin != origins[0]]:
        raise InputError(
            "these backbones cannot be averaged",
            code="option",
            expected=f"the same first weights, image size and preprocessor as {backbones[0].name}",
            found=f"others in {', '.join(others)}",
        )
    size = records[0]["options"]["image_size"]
    models = [load_backbone(str(folder), size)[0].model for folder in backbones]
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
    models[0].load_state_dict(mean)
    pictures = sorted(frozenset[str]().union(*seen))
    data = hashlib.sha256("".join(record["data"]["sha256"] for record in records).encode()).hexdigest()
    record = {
        "average_of": records,
        "backbone_sha256": records[0]["backbone_sha256"],
        "options": {"image_size": size},
        "data": {"sha256": data, "pictures": len(pictures)},
    }
    with atomic_folder(out) as folder:
        models[0].save_pretrained(folder)
        shutil.copy(backbones[0] / PREPROCESSOR, folder)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        (folder / PICTURES).write_text("\n".join(pictures) + "\n", "ascii")


def _origin(folder: Path, record: Mapping[str, Any]) -> tuple[str, int, str]:
    """Return what backbones must have in common."""
    preprocessor = (folder / PREPROCESSOR).read_text("utf-8")
    return record["backbone_sha256"], record["options"]["image_size"], preprocessor


@click.command("skinret-average", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("backbones", metavar="BACKBONE...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the mean.")
@report_errors
def main(backbones: tuple[Path, ...], out: Path) -> None:
    """Write the mean of several backbones that skinret-adapt made from the same one, as one backbone.

    It costs a search no more than each of them, and is often better than the best of them.
    """
    average(backbones, out)
    click.echo(f"{out}: the mean of {len(backbones)} backbones", err=True)


if __name__ == "__main__":
    main()
