"""The main job on the real Derm7pt: train, export, index the training folds, query with the held-out fold.

    SKINRET_DERM7PT=release_v0 SKINRET_VISION=dinov2-small SKINRET_TEXT=minilm \\
        .venv/bin/python -m pytest benchmarks/test_derm7pt.py -s

SKINRET_FOLD chooses the held-out fold (0); SKINRET_CACHE keeps maps from run to run. The protocol: 888 cases,
5 stratified folds, seed 0; archive = the other four folds; the model is chosen on a part of them.
"""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from skinret_export.cli import main as export
from skinret_infer.cli.main import main as skinret
from skinret_training.cli import main as train

NEEDED = ("SKINRET_DERM7PT", "SKINRET_VISION", "SKINRET_TEXT")

pytestmark = [
    pytest.mark.derm7pt,
    pytest.mark.skipif(not all(map(os.environ.get, NEEDED)), reason=f"{', '.join(NEEDED)} are not all set"),
]


def test_the_bundle_reaches_map_80_and_acc_79_and_agrees_with_pytorch(tmp_path: Path) -> None:
    data, vision, text = (os.environ[name] for name in NEEDED)
    cache = Path(os.environ.get("SKINRET_CACHE", tmp_path / "maps"))

    def run(command, *arguments: object) -> str:
        result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        print(result.stderr)
        return result.stdout

    ckpt, bundle, archive = tmp_path / "ckpt.pt", tmp_path / "bundle", tmp_path / "cases.skinret"
    options = ["--vision", vision, "--text", text, "--fold", os.environ.get("SKINRET_FOLD", "0"), "--bf16"]
    by_torch = json.loads(run(train, data, "--out", ckpt, "--cache", cache, "--json", *options))["held_out"]
    run(export, ckpt, "--out", bundle)
    run(skinret, "index", bundle, archive, data, "--ids", tmp_path / "ckpt.archive.txt")
    queries = tmp_path / "ckpt.queries.txt"
    by_bundle = json.loads(run(skinret, "evaluate", bundle, archive, data, "--ids", queries, "--json"))
    for kind in ("image_words", "image_only"):
        print(kind, {k: (by_bundle[kind][k], by_torch[kind][k]) for k in ("mAP", "Acc@1", "Acc@2", "Acc@4")})
        for figure in ("mAP", "Acc@1"):
            assert abs(by_bundle[kind][figure] - by_torch[kind][figure]) <= 0.2
    assert by_bundle["image_words"]["mAP"] >= 80
    assert by_bundle["image_words"]["Acc@1"] >= 79
