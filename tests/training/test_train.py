"""Training: what the checkpoint holds, that it learns, and that a killed run goes on to the same end."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import BERT, CHECKLIST, SWIN, tiny_config
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Backbone,
    Dinov2Config,
    ResNetBackbone,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
)

from skinret_export.demo import write_small_tokenizer
from skinret_infer import Case, InputError
from skinret_infer.bundle import QUERY_KINDS
from skinret_infer.imaging.recipe import ImageRecipe
from skinret_infer.tables import CaseTable
from skinret_infer.words.reading import reader_of
from skinret_training import cli
from skinret_training.checkpoint import Checkpoint
from skinret_training.data import Dataset, hold_out, load_dataset, split, text_views
from skinret_training.loss import UNKNOWN, concept_loss
from skinret_training.model import Skinret, apply_dihedral, invert_dihedral, load_pretrained
from skinret_training.train import PAPER, TrainConfig, _figures, train

QUICK = {
    "image_size": 64, "max_map_size": 8, "width": 16, "epochs": 3, "batch": 16, "text_views": 3,
    "augment_dihedral": 2,
    "validation": 0.2, "folds": 4, "lr": 1e-3, "calibration": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local folders of a tiny Swin, ResNet, DINOv2 and BERT."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    SwinBackbone(SwinConfig(**{k: v for k, v in SWIN.items() if k != "model_type"})).save_pretrained(
        folder / "swin"
    )
    resnet = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic"
    )
    ResNetBackbone(resnet).save_pretrained(folder / "resnet")
    dinov2 = Dinov2Config(
        hidden_size=32, num_hidden_layers=8, num_attention_heads=2, image_size=112, patch_size=8
    )
    Dinov2Backbone(dinov2).save_pretrained(folder / "dinov2")
    vocabulary = write_small_tokenizer(folder / "bert", cases)
    bert = BertConfig(
        **{k: v for k, v in BERT.items() if k not in ("model_type", "vocab_size")}, vocab_size=vocabulary
    )
    BertModel(bert).save_pretrained(folder / "bert")
    return folder


def config(weights: Path, vision: str = "swin", **options: object) -> TrainConfig:
    return TrainConfig(**{"vision": str(weights / vision), "text": str(weights / "bert"), **QUICK, **options})


@pytest.mark.parametrize("vision", ["swin", "resnet", "dinov2"])
def test_any_backbone_with_maps_at_three_depths_trains_and_its_checkpoint_stands_alone(
    weights: Path, cases: list[Case], vision: str, tmp_path: Path
) -> None:
    trained = train(
        CaseTable(cases, []), config(weights, vision, fold=0), cache=tmp_path / "maps", quiet=True
    )
    path = tmp_path / "ckpt.pt"
    trained.checkpoint.save(path)
    plain = torch.load(path, weights_only=True)
    assert plain["format"] == "skinret-checkpoint-4"
    loaded = Checkpoint.load(path)
    pixels = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    with torch.no_grad():
        d = loaded.model()(pixels)
    assert d.shape == (2, loaded.model().similarity_head.layout.length)
    assert set(trained.archive_ids).isdisjoint(trained.query_ids)
    assert len(trained.archive_ids) + len(trained.query_ids) == len(cases)
    assert loaded.metrics["held_out"]["image_words"]["queries"] == len(trained.query_ids)
    assert "machine" not in str(loaded.origin) and str(weights) not in str(loaded.origin)


def test_frozen_encoders_keep_their_weights_and_tuned_ones_do_not(
    weights: Path, cases: list[Case], tmp_path: Path
) -> None:
    for tuned in (False, True):
        options = {"finetune_vision": "full" if tuned else "none", "finetune_text": tuned, "epochs": 1}
        trained = train(CaseTable(cases, []), config(weights, **options), cache=tmp_path, quiet=True)
        source, _ = load_pretrained(str(weights / "swin"), str(weights / "bert"), image_size=64)
        for part in ("visual_encoder.backbone", "text_encoder"):
            same = [
                torch.equal(p, trained.checkpoint.state[f"{part}.{name}"])
                for name, p in source.get_submodule(part).named_parameters()
            ]
            assert all(same) is not tuned


@pytest.mark.parametrize("vision", ["swin", "resnet", "dinov2"])
def test_of_a_backbone_the_last_depth_can_be_tuned_alone(
    weights: Path, cases: list[Case], vision: str, tmp_path: Path
) -> None:
    source, _ = load_pretrained(str(weights / vision), str(weights / "bert"), image_size=64)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        *_, high, state = source.visual_encoder.maps_and_state(pixels)
        torch.testing.assert_close(source.visual_encoder.last_map(state), high)
    table, options = CaseTable(cases, []), {"finetune_vision": "last-stage", "epochs": 1, "bf16": True}
    state = train(table, config(weights, vision, **options), cache=tmp_path, quiet=True).checkpoint.state
    moved = {
        name
        for name, p in source.visual_encoder.backbone.named_parameters()
        if not torch.equal(p, state[f"visual_encoder.backbone.{name}"])
    }
    blocks = source.visual_encoder.last_stage()
    names = {id(p): name for name, p in source.visual_encoder.backbone.named_parameters()}
    assert moved and moved <= {names[id(p)] for block in blocks for p in block.parameters()}


def test_training_takes_no_more_threads_than_the_process_may_use(
    weights: Path, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("skinret_training.train.available_cpus", lambda: 1)
    torch.set_num_threads(2)
    try:
        train(CaseTable(cases, []), config(weights, epochs=1), cache=tmp_path, quiet=True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_training_learns_what_is_in_the_pictures_and_the_words(
    weights: Path, cases: list[Case], tmp_path: Path
) -> None:
    options = {"epochs": 25, "width": 32, "text_views": 4, "finetune_text": True, "lr": 3e-3}
    trained = train(CaseTable(cases, []), config(weights, **options), cache=tmp_path, quiet=True)
    losses = [epoch["loss"] for epoch in trained.history]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2


def test_kept_maps_are_used_again_and_never_for_other_data(
    weights: Path, cases: list[Case], tmp_path: Path
) -> None:
    first = train(CaseTable(cases, []), config(weights), cache=tmp_path, quiet=True)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob("maps-*.npy")}
    assert len(files) == 2 * 3
    second = train(CaseTable(cases, []), config(weights), cache=tmp_path, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("maps-*.npy")} == files
    assert first.history == second.history
    train(CaseTable(cases[:-1], []), config(weights), cache=tmp_path, quiet=True)
    assert len(list(tmp_path.glob("maps-*.npy"))) == 4 * 3


def test_a_stopped_run_goes_on_to_the_same_end(weights: Path, cases: list[Case], tmp_path: Path) -> None:
    table, wanted = CaseTable(cases, []), config(weights, epochs=4, finetune_vision="last-stage")
    whole = train(table, wanted, cache=tmp_path, quiet=True)
    state = tmp_path / "run.resume"
    for last in (0, 2):
        stop = train(
            table,
            wanted,
            cache=tmp_path,
            resume=state,
            quiet=True,
            stop=lambda epoch, last=last: epoch == last,
        )
        assert len(stop.history) == last + 1
    resumed = train(table, wanted, cache=tmp_path, resume=state, quiet=True)
    assert resumed.history == whole.history
    for name, tensor in whole.checkpoint.state.items():
        assert torch.equal(tensor, resumed.checkpoint.state[name]), name
    with pytest.raises(InputError, match="another lr"):
        train(table, dataclasses.replace(wanted, lr=0.5), cache=tmp_path, resume=state, quiet=True)


def test_a_killed_command_resumes(weights: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "ckpt.pt"
    command = [
        sys.executable, "-m", "skinret_training.cli", data, "--out", out, "--vision", weights / "swin",
        "--text", weights / "bert",
        "--image-size", "64", "--width", "16", "--batch", "16", "--augment-dihedral", "1",
        "--text-views", "2", "--schedule", "constant",
    ]  # fmt: skip
    running = subprocess.Popen(
        [*command, "--epochs", "500"], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    state = tmp_path / "ckpt.pt.resume"
    deadline = time.monotonic() + 60
    while not state.is_file() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert state.is_file() and not out.exists()
    (tmp_path / ".ckpt.pt.resume.1.partial").write_bytes(b"half")  # as a kill in the midst of writing leaves
    saved = torch.load(state, weights_only=True)
    done = subprocess.run(
        [*command, "--epochs", str(len(saved["history"]) + 1)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"resumed after epoch {len(saved['history']) - 1}" in done.stderr
    assert out.is_file() and not state.exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_the_held_out_fold_is_never_trained_or_chosen_on(cases: list[Case]) -> None:
    dataset = load_dataset(CaseTable(cases, []), ImageRecipe(size=64), CHECKLIST, quiet=True)
    seen = []
    for fold in range(4):
        parts = split(dataset, folds=4, fold=fold, validation=0.2, seed=3)
        together = np.concatenate([parts.train, parts.validation, parts.test])
        assert sorted(together) == list(range(len(cases)))
        assert sorted(parts.archive) == sorted([*parts.train, *parts.validation])
        seen += parts.test.tolist()
    assert sorted(seen) == list(range(len(cases)))


def test_a_lesion_is_in_one_part_and_so_are_equal_pictures(cases: list[Case]) -> None:
    several = [
        dataclasses.replace(
            case, attributes={**case.attributes, "lesion_id": f"{group} {n // 3}"}, group=group
        )
        for group in ("mel", "nevus")
        for n, case in enumerate([case for case in cases if case.group == group][:18])
    ]
    twin = dataclasses.replace(several[0], case_id="twin", attributes={})
    dataset = load_dataset(CaseTable([*several, twin], []), ImageRecipe(size=64), CHECKLIST, quiet=True)
    assert sorted(map(len, dataset.lesions)) == [3] * 11 + [4]
    seen = []
    for fold in range(2):
        parts = split(dataset, folds=2, fold=fold, validation=0.25, seed=0)
        inner = hold_out(dataset, parts, 0.4, seed=0)
        assert sorted([*inner.train, *inner.test]) == parts.train.tolist() and len(inner.test)
        for part in (parts.train, parts.validation, parts.test, inner.train, inner.test):
            inside = set(part.tolist())
            assert all(inside >= {*lesion} or not inside & {*lesion} for lesion in dataset.lesions)
        seen += parts.test.tolist()
    assert sorted(seen) == list(range(len(dataset.case_ids)))


def test_a_model_that_tells_nothing_apart_measures_a_random_order() -> None:
    """The table is sorted by group, and so are the case ids and the columns of the product."""
    groups = ["bkl"] * 49 + ["mel"] * 202 + ["nevus"] * 460
    dataset = Dataset(
        [f"{n:03}" for n in range(711)], groups, {}, np.zeros((711, 1), np.int64), CHECKLIST, [{}] * 711,
        [""] * 711, [], np.zeros((711, 1, 1, 3), np.uint8),
    )  # fmt: skip
    torch.manual_seed(0)
    same, everything = torch.randn(402).expand(711, -1), np.arange(711)
    found = _figures(dataset, same, same, everything, everything, torch.ones(402))
    assert found["tied"] == 711
    assert all(found[name] == value for name, value in found["random_order"].items())


def test_a_model_that_diverged_is_not_measured() -> None:
    dataset = Dataset(
        ["a", "b"], ["mel", "nevus"], {}, np.zeros((2, 1), np.int64), CHECKLIST, [{}, {}], ["", ""], [],
        np.zeros((2, 1, 1, 3), np.uint8),
    )  # fmt: skip
    rows, both = torch.full((2, 4), float("nan")), np.arange(2)
    with pytest.raises(InputError, match="whose training diverged"):
        _figures(dataset, rows, rows, both, both, torch.ones(4))


def test_eight_symmetries_are_eight_and_the_first_is_the_picture() -> None:
    pixels = torch.arange(2 * 5 * 5 * 3, dtype=torch.uint8).reshape(2, 5, 5, 3)
    views = [apply_dihedral(pixels, view) for view in range(8)]
    assert torch.equal(views[0], pixels)
    assert len({v.numpy().tobytes() for v in views}) == 8
    assert all(v.shape == pixels.shape for v in views)
    assert all(torch.equal(invert_dihedral(v, n), pixels) for n, v in enumerate(views))


def test_the_first_view_says_all_and_the_others_a_part_or_less_exactly_and_nothing_false() -> None:
    findings = {
        "streaks": "irregular", "pigmentation": "diffuse irregular", "dots_and_globules": "absent",
        "blue_whitish_veil": "present", "elevation": "flat", "location": "back",
    }  # fmt: skip
    views = text_views(findings, CHECKLIST, 60, np.random.default_rng(0))
    assert views[0] == CHECKLIST.text_of(findings)
    assert len(set(views)) > 30
    for view in views:
        for name, allowed in reader_of(CHECKLIST).read(view).allowed.items():
            assert findings[name] in allowed, view
    assert any("not " in view for view in views) and any("absent" not in view for view in views)
    assert views == text_views(findings, CHECKLIST, 60, np.random.default_rng(0))
    assert text_views({}, CHECKLIST, 3, np.random.default_rng(0)) == ["", "", ""]


def test_bad_data_and_options_are_named(weights: Path, cases: list[Case], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(Path(str(cases[0].image)).read_bytes()[:300])
    with pytest.raises(InputError, match="damaged") as caught:
        train(
            CaseTable([Case("x7", bad, group="mel"), *cases], []), config(weights), cache=tmp_path, quiet=True
        )
    assert "x7" in caught.value.__notes__[0]
    nevi = [case for case in cases if case.group == "nevus"]
    with pytest.raises(InputError, match="fewer than two groups"):
        train(CaseTable(nevi, []), config(weights), cache=tmp_path, quiet=True)
    few = nevi + [case for case in cases if case.group == "bkl"][:2]
    with pytest.raises(InputError, match="2 of bkl"):
        train(CaseTable(few, []), config(weights, fold=0), cache=tmp_path, quiet=True)
    with pytest.raises(InputError, match="does not exist"):
        config(weights, fold=4)
    with pytest.raises(InputError, match="pooled evenly"):
        load_pretrained(str(weights / "swin"), str(weights / "bert"), image_size=64, max_map_size=3)
    with pytest.raises(InputError, match="local folder"):
        load_pretrained(str(tmp_path / "nothing"), str(weights / "bert"))
    with pytest.raises(InputError, match="does not give maps"):
        load_pretrained(str(weights / "bert"), str(weights / "bert"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short", b"\x80\x04N."])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a skinret checkpoint") as caught:
        Checkpoint.load(path)
    assert caught.value.code == "checkpoint-format"
    with pytest.raises(InputError, match="does not exist"):
        Checkpoint.load(tmp_path / "none.pt")


def test_a_checkpoint_of_another_make_or_with_code_in_it_is_refused(tmp_path: Path) -> None:
    for number, data in enumerate(
        ({"state_dict": {}}, [1, 2], {"format": "skinret-checkpoint-4"}, {"f": Path("x")})
    ):
        path = tmp_path / f"{number}.pt"
        torch.save(data, path)
        with pytest.raises(InputError) as caught:
            Checkpoint.load(path)
        assert caught.value.code == "checkpoint-format"


def test_a_backbones_own_normalisation_is_kept(weights: Path) -> None:
    plain, _ = load_pretrained(str(weights / "swin"), str(weights / "bert"), image_size=64)
    assert plain.config.mean == (0.485, 0.456, 0.406)
    said = weights / "swin" / "preprocessor_config.json"
    said.write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}')
    try:
        model, _ = load_pretrained(str(weights / "swin"), str(weights / "bert"), image_size=64)
    finally:
        said.unlink()
    assert model.config.mean == (0.5, 0.5, 0.5)
    white = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    seen = []
    model.visual_encoder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.visual_encoder(white)
    assert torch.allclose(seen[0], torch.full((1, 3, 64, 64), 2.5))


def test_a_case_without_words_is_asked_by_its_image(weights: Path, cases: list[Case]) -> None:
    model, _ = load_pretrained(str(weights / "swin"), str(weights / "bert"), image_size=64, max_map_size=8)
    model.eval()
    pixels = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8)
    maps = model.visual_encoder(pixels)
    ids, mask = torch.full((2, 6), 7), torch.ones(2, 6, dtype=torch.int64)
    composed = model.compose(maps, model.text_encoder(ids, mask), mask, torch.tensor([True, False]))
    for before, after in zip(maps, composed, strict=True):
        assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_a_fused_neck_sees_all_three_depths_on_the_grid_of_each() -> None:
    encoder = Skinret(tiny_config(neck="fused", width=12)).visual_encoder.eval()
    maps = tuple(torch.randn(40, side, side, d) for side, d in ((8, 32), (4, 64), (2, 128)))
    seen = encoder.projection_inputs(maps)
    assert [tuple(x.shape) for x in seen] == [(40, side, side, 32 + 64 + 128) for side in (8, 4, 2)]
    normed = [torch.nn.functional.layer_norm(x, x.shape[-1:]) for x in maps]
    assert torch.equal(seen[1][..., 32:96], normed[1])
    assert torch.allclose(seen[2][:, 0, 1, :32], normed[0][:, :4, 4:].mean((1, 2)), atol=1e-6)  # averaged
    assert torch.equal(seen[0][:, 5, 2, 96:], normed[2][:, 1, 0])  # repeated
    encoder.standardize(maps)
    means = encoder.projection_inputs(maps)[2].mean((1, 2))
    assert means.mean(0).abs().max() < 1e-3 and (means.std(0) - 1).abs().max() < 0.05
    encoder.train()
    dropped = [(x == 0).all((1, 2)) for x in encoder.projection_inputs(maps)]
    assert 0.02 < dropped[0].float().mean() < 0.3  # whole channels, the same at every depth
    assert torch.equal(dropped[0], dropped[1]) and torch.equal(dropped[0], dropped[2])
    with pytest.raises(InputError, match="needs a width"):
        tiny_config(neck="fused")


def test_words_shift_every_position_alike_and_padding_says_nothing() -> None:
    model = Skinret(tiny_config(fusion="additive"))
    maps = model.visual_encoder(torch.randint(0, 255, (3, 64, 64, 3), dtype=torch.uint8))
    tokens, mask = torch.randn(3, 6, 32), torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])
    assert all(torch.equal(x, y) for x, y in zip(maps, model.composer(*maps, tokens, mask), strict=True))
    for linear in model.composer.shift.project:
        torch.nn.init.normal_(linear.weight)
    composed = model.composer(*maps, tokens, mask)
    for x, y in zip(maps, composed, strict=True):
        shift = y - x
        assert shift.abs().max() > 0.1 and torch.allclose(shift, shift[:, :1, :1], atol=1e-5)
    tokens[1, 4:] = 9.0
    again = model.composer(*maps, tokens, mask)
    assert all(torch.equal(x, y) for x, y in zip(composed, again, strict=True))


@pytest.mark.parametrize(("tta", "unseen"), [(2, 1), (4, 3), (8, 6)])
def test_orientations_make_the_descriptor_blind_to_them(tta: int, unseen: int) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8)
    for count, alike in ((1, False), (tta, True)):
        model = Skinret(tiny_config(tta=count)).eval()
        with torch.no_grad():
            d, turned = model(pixels), model(apply_dihedral(pixels, unseen))
        assert torch.allclose(d, turned, atol=1e-4) is alike
    with pytest.raises(InputError, match="1, 2, 4 or 8"):
        tiny_config(tta=3)


def test_labels_that_are_not_known_are_not_asked() -> None:
    logits = [torch.randn(4, 3), torch.randn(4, 2)]
    known = torch.tensor([[0, 1], [2, 0], [1, UNKNOWN], [0, UNKNOWN]])
    first = logits[0].log_softmax(1)[range(4), known[:, 0]].mean()
    second = logits[1][:2].log_softmax(1)[[0, 1], [1, 0]].mean()
    assert torch.isclose(concept_loss(logits, known), -(first + second) / 2)
    assert concept_loss(logits, torch.full((4, 2), UNKNOWN)) == 0


def test_a_model_reads_the_group_and_the_criteria_that_tell_cases_apart(
    weights: Path, cases: list[Case], tmp_path: Path
) -> None:
    alike = [dataclasses.replace(case, attributes={**case.attributes, "streaks": "absent"}) for case in cases]
    alike[0] = dataclasses.replace(alike[0], attributes={})
    table = CaseTable(alike, [])
    options = {"epochs": 1, "fold": 0, "gamma": 0.4}
    trained = train(table, config(weights, **options), cache=tmp_path, quiet=True).checkpoint
    names = list(trained.config.concepts)
    assert names[0] == "group" and "streaks" not in names and "pigment_network" in names
    assert trained.config.concepts["group"] == ["bkl", "mel", "nevus"]
    assert trained.config.gamma == 0.4
    layout = trained.model().similarity_head.layout
    assert layout.concepts == tuple(len(values) for values in trained.config.concepts.values())
    mute = train(
        table, config(weights, **options, group_loss_weight=0.0), cache=tmp_path, quiet=True
    ).checkpoint
    assert mute.config.concepts == {} and mute.config.gamma == 0


def test_the_papers_settings_are_one_flag_away_and_each_can_still_be_given(
    weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def remember(table: CaseTable, config: TrainConfig, **_: object) -> None:
        taken.append(config)
        raise InputError("enough", code="test")

    monkeypatch.setattr(cli, "train", remember)
    common = [str(data), "--out", str(tmp_path / "ckpt.pt")]
    for options in ([], ["--recipe", "paper"], ["--lr", "0.5", "--recipe", "paper"]):
        assert CliRunner().invoke(cli.main, [*common, *options]).exit_code == 1
    assert taken[0] == TrainConfig()
    assert taken[1] == TrainConfig(**PAPER)
    assert taken[2] == TrainConfig(**{**PAPER, "lr": 0.5})


def test_without_a_validation_part_all_training_folds_train(
    weights: Path, cases: list[Case], tmp_path: Path
) -> None:
    options = {"validation": 0.0, "fold": 1, "epochs": 2}
    trained = train(CaseTable(cases, []), config(weights, **options), cache=tmp_path, quiet=True)
    assert "validation" not in trained.checkpoint.metrics
    assert "to the last epoch" in trained.checkpoint.metrics["protocol"]
    assert [set(epoch) for epoch in trained.history] == [{"epoch", "loss"}] * 2


def test_each_recipe_learns(weights: Path, cases: list[Case], tmp_path: Path) -> None:
    for recipe in ({}, PAPER):
        options = {**recipe, "epochs": 12, "batch": 16, "width": 16, "lr": 3e-3, "validation": 0.0}
        trained = train(CaseTable(cases, []), config(weights, **options), cache=tmp_path, quiet=True)
        losses = [epoch["loss"] for epoch in trained.history]
        assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1


def test_a_file_of_options_stands_between_recipe_and_command_line(tmp_path: Path) -> None:
    config_file = tmp_path / "recipe.toml"

    def taken(*options: str) -> dict[str, object]:
        context = cli.main.make_context("skinret-train", ["data", "--out", "ckpt.pt", *options])
        return context.params

    config_file.write_text('epochs = 7\nmax-map-size = 4\nfusion = "both"\nfinetune-text = true\n')
    given = taken("--recipe", "paper", "--config", str(config_file), "--epochs", "9")
    assert (given["epochs"], given["max_map_size"], given["fusion"], given["finetune_text"]) == (
        9,
        4,
        "both",
        True,
    )
    assert given["width"] == PAPER["width"] and taken("--config", str(config_file))["epochs"] == 7
    for text, said in (
        ("epoch = 7", "epoch"),
        ("epochs = ", "TOML"),
        ("epochs = 0", "x>=1"),
        ("out = 1", "out"),
    ):
        config_file.write_text(text)
        with pytest.raises(click.UsageError, match=said):
            taken("--config", str(config_file))


# -- calibration --


def test_a_training_measures_what_is_usual_and_the_model_is_the_same_without(
    weights: Path, cases: list[Case], tmp_path: Path
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for n in range(3):
        noise = np.random.default_rng(n).integers(0, 256, (70, 70, 3), np.uint8)
        Image.fromarray(noise).save(others / f"{n}.png")
    options = {"validation": 0.0, "fold": 0, "epochs": 2}
    more = {"calibration": 0.3, "unlike": str(others)}
    configs = [config(weights, **options), *[config(weights, **options, **more)] * 2]
    table, cache = CaseTable(cases, []), tmp_path / "maps"
    plain, measured, again = (
        train(table, each, cache=cache, measure=False, quiet=True).checkpoint for each in configs
    )
    assert plain.calibration == {"pictures": 45, "first_hits": {}}
    assert measured.calibration == again.calibration
    assert set(measured.calibration["first_hits"]) == set(QUERY_KINDS)
    assert all(-1 < limit < 1 for limit in measured.calibration["first_hits"].values())
    changed = [name for name, x in plain.state.items() if not torch.equal(x, measured.state[name])]
    assert changed and all(".typicality." in name for name in changed)
    assert measured.origin["training"]["unlike"] == "others"
    measured.save(tmp_path / "ckpt.pt")
    loaded = Checkpoint.load(tmp_path / "ckpt.pt")
    assert loaded.calibration == measured.calibration and loaded.config.typicality
    black = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    with torch.inference_mode():
        assert loaded.model().visual_encoder.with_distance(black)[-1] > 1


def test_a_share_that_leaves_a_group_without_cases_is_an_error(cases: list[Case]) -> None:
    few = [case for case in cases if case.group != "bkl"]
    few.append(next(case for case in cases if case.group == "bkl"))
    dataset = load_dataset(CaseTable(few, []), ImageRecipe(size=64), CHECKLIST, quiet=True)
    everything = split(dataset, folds=4, fold=None, validation=0.0, seed=0)
    with pytest.raises(InputError, match="--calibration 0") as caught:
        hold_out(dataset, everything, 0.3, 0)
    assert caught.value.code == "data-split"
