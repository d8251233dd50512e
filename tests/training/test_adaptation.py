"""Adaptation: what is tuned and what is not, what counts as a label, and what must not be in the pile."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import BERT, SWIN
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
from skinret_infer.imaging.decode import decode
from skinret_infer.imaging.recipe import ImageRecipe, Pixels, pixel_sha256
from skinret_infer.tables import CaseTable
from skinret_training.adaptation import AdaptConfig, adapt, cli, run, states
from skinret_training.adaptation import average as averaging
from skinret_training.adaptation.augment import augment
from skinret_training.adaptation.duplicates import find_pairs, fingerprints
from skinret_training.adaptation.heads import Heads
from skinret_training.adaptation.pile import read_pile
from skinret_training.adaptation.states import PLAIN, States
from skinret_training.backbones import State, load_backbone
from skinret_training.loss import UNKNOWN, balancing_weights
from skinret_training.origin import read_adaptation
from skinret_training.train import TrainConfig, train

VISION = ("swin", "resnet", "dinov2")
QUICK = {"image_size": 64, "batch": 8, "passes": 2, "validation": 0.2, "bf16": False, "balance": 1.0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local folders of a tiny Swin, ResNet and DINOv2."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    swin = SwinConfig(**{k: v for k, v in SWIN.items() if k != "model_type"})
    resnet = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic"
    )
    dinov2 = Dinov2Config(
        hidden_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=64, patch_size=8
    )
    SwinBackbone(swin).save_pretrained(folder / "swin")
    ResNetBackbone(resnet).save_pretrained(folder / "resnet")
    Dinov2Backbone(dinov2).save_pretrained(folder / "dinov2")
    return folder


@pytest.fixture(scope="module")
def some(cases: list[Case]) -> list[Case]:
    """24 drawn cases, of which two show one lesion each."""
    return [with_facts(case, lesion_id=f"lesion {n // 2}") for n, case in enumerate(cases[:24])]


def with_facts(case: Case, **facts: str) -> Case:
    return replace(case, attributes={**case.attributes, **facts})


def config(weights: Path, vision: str = "dinov2", **options: Any) -> AdaptConfig:
    return AdaptConfig(**{"vision": str(weights / vision), **QUICK, **options})


def adapted(cases: list[Case], options: AdaptConfig, folder: Path, **more: Any) -> dict[str, Any]:
    return adapt(
        [CaseTable(cases, [])], options, folder / "backbone", cache=folder / "cache", quiet=True, **more
    )


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_backbone(str(folder), 64)[0].named_parameters())


@pytest.mark.parametrize("vision", VISION)
def test_the_last_blocks_are_tuned_and_the_others_keep_their_weights(
    weights: Path, some: list[Case], vision: str, tmp_path: Path
) -> None:
    report = adapted(some, config(weights, vision, blocks=2, passes=1), tmp_path)
    before, after = parameters(weights / vision), parameters(tmp_path / "backbone")
    moved = {name for name, p in before.items() if not torch.equal(p, after[name])}
    record = read_adaptation(str(tmp_path / "backbone"))
    assert record is not None and record.sha256 == report["data"]["sha256"]
    assert record.seen == {pixel_sha256(decode(case.image)) for case in some}
    backbone = load_backbone(str(weights / vision), 64)[0]
    tuned = {id(p) for block in backbone.blocks[-2:] for p in block.parameters()}
    assert moved and moved <= {name for name, p in backbone.named_parameters() if id(p) in tuned}
    assert report == json.loads((tmp_path / "backbone" / "adaptation.json").read_text("utf-8"))
    assert report["options"]["blocks"] == 2 and report["data"]["lesions"] == {"train": 10, "validation": 2}
    assert str(weights) not in str(report)


def test_skinret_train_takes_the_adapted_folder(
    weights: Path, some: list[Case], cases: list[Case], tmp_path: Path
) -> None:
    (weights / "dinov2" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1]})
    )
    adapted(some, config(weights, passes=1), tmp_path)
    bert = {k: v for k, v in BERT.items() if k not in ("model_type", "vocab_size")}
    vocabulary = write_small_tokenizer(tmp_path / "bert", cases)
    BertModel(BertConfig(**bert, vocab_size=vocabulary)).save_pretrained(tmp_path / "bert")
    options = {
        "image_size": 64, "width": 8, "epochs": 1, "text_views": 2, "augment_dihedral": 1, "calibration": 0.0,
    }  # fmt: skip
    plan = TrainConfig(vision=str(tmp_path / "backbone"), text=str(tmp_path / "bert"), **options)
    checkpoint = train(CaseTable(some, []), plan, cache=tmp_path, quiet=True).checkpoint
    assert (checkpoint.config.mean, checkpoint.config.std) == ((0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
    for name, p in parameters(tmp_path / "backbone").items():
        assert torch.equal(checkpoint.state[f"visual_encoder.backbone.{name}"], p), name


def test_a_missing_label_has_no_part_in_the_loss() -> None:
    concepts = {"group": ["mel", "nevus"], "streaks": ["absent", "irregular"]}
    heads = Heads(4, concepts, {name: torch.tensor([1.0, 2.0]) for name in concepts})
    torch.nn.init.normal_(heads.labels["streaks"].weight)
    features = torch.randn(3, 4, requires_grad=True)
    targets = torch.tensor([[0, 1], [1, UNKNOWN], [1, 0]])
    losses = heads.label_losses(features, targets, 0.1)
    known = heads.label_losses(features[[0, 2]], targets[[0, 2]], 0.1)
    torch.testing.assert_close(losses["streaks"], known["streaks"])
    losses["streaks"].backward()
    assert features.grad is not None
    assert (features.grad[1] == 0).all() and (features.grad[[0, 2]] != 0).any(1).all()


def test_rare_values_weigh_more_by_the_root_of_their_frequency() -> None:
    weights = balancing_weights(torch.tensor([0] * 9 + [1] + [UNKNOWN] * 5), 2, 0.5)
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(3.0))
    torch.testing.assert_close((9 * weights[0] + weights[1]) / 10, torch.tensor(1.0))


def test_a_lesion_is_in_one_part_and_equal_pictures_are_of_one_lesion(some: list[Case]) -> None:
    twin = replace(some[0], case_id="twin", attributes={})
    pile = read_pile([CaseTable(some, []), CaseTable([twin], [])], validation=0.3, quiet=True)
    assert sorted(np.concatenate(pile.lesions)) == list(range(25)) and len(pile.lesions) == 12
    assert pile.lesions[0].tolist() == [0, 1, 24]
    assert {"train", "validation"} == set(pile.parts)
    again = read_pile([CaseTable(some, []), CaseTable([twin], [])], validation=0.3, quiet=True)
    assert again.parts == pile.parts and again.digest == pile.digest


def test_a_column_split_gives_the_parts(some: list[Case]) -> None:
    given = [with_facts(case, split="validation" if n < 4 else "") for n, case in enumerate(some)]
    pile = read_pile([CaseTable(given, [])], quiet=True)
    assert pile.parts == ["validation"] * 2 + ["train"] * 10


def _changed(pixels: Pixels, turns: int, mirror: bool) -> Pixels:
    """Return a smaller copy of a picture, squashed, turned, and saved as a poor JPEG."""
    image = Image.fromarray(np.rot90(pixels[:, ::-1] if mirror else pixels, turns)).resize((70, 70))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return decode(file.getvalue())


def test_a_copy_of_a_picture_is_found_and_another_picture_is_not(some: list[Case]) -> None:
    pictures = [decode(case.image) for case in some]
    originals = fingerprints(pictures[:8])
    copies = fingerprints(_changed(x, n % 4, n >= 4) for n, x in enumerate(pictures[:8]))
    pairs = find_pairs(copies, originals)
    assert [(pair.first, pair.second, pair.equal) for pair in pairs] == [(n, n, False) for n in range(8)]
    assert not find_pairs(fingerprints(pictures[8:]), originals)
    assert [p.equal for p in find_pairs(originals, originals)] == [True] * 8


def test_pictures_of_the_evaluation_are_refused_or_left_out_and_reported(
    weights: Path, some: list[Case], tmp_path: Path
) -> None:
    pixels = np.array(Image.open(str(some[3].image)).convert("RGB"))
    held_out = [replace(some[5], case_id="same"), replace(some[3], case_id="turned", image=pixels[::-1])]
    exclude = {str(tmp_path / "evaluation.csv"): CaseTable(held_out, [])}
    with pytest.raises(InputError, match="--drop-duplicates") as caught:
        adapted(some, config(weights), tmp_path, exclude=exclude)
    assert caught.value.code == "data-overlap"
    assert some[3].case_id in caught.value.found and some[5].case_id in caught.value.found
    report = adapted(some, config(weights, passes=1), tmp_path, exclude=exclude, drop_duplicates=True)
    assert report["data"]["pictures"] == 22 and report["excluded"] == {"evaluation.csv": 2}
    found = {d["case_id"]: (d["same_as"], d["of"], d["equal"]) for d in report["duplicates"]}
    assert found == {
        some[5].case_id: ("same", "evaluation.csv", True),
        some[3].case_id: ("turned", "evaluation.csv", False),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"contrastive_weight": 0.5, "self_distillation": 0.5, "patches": 0.3, "teacher": "swin"},
        {"views": 0, "self_distillation": 0.5, "teacher": "swin", "blocks": 6},
    ],
    ids=["plain", "every loss", "views that are not kept"],
)
def test_a_killed_run_continues_to_the_same_weights(
    weights: Path, some: list[Case], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_LOG", 2)
    monkeypatch.setattr(run, "_SAVE", 0.0)
    if "teacher" in options:
        options = options | {"teacher": str(weights / options["teacher"])}
    plan = config(weights, batch=2, **options)
    adapted(some[:14], plan, tmp_path / "whole")
    for steps in (3, 4):  # between two states, and behind the pass
        adapted(some[:14], plan, tmp_path / "killed", stop=lambda step, last=steps: step == last)
        assert (tmp_path / "killed" / "backbone.resume").is_file()
    report = adapted(some[:14], plan, tmp_path / "killed")
    assert report["passes"] == 2 and not (tmp_path / "killed" / "backbone.resume").exists()
    whole, killed = (parameters(tmp_path / name / "backbone") for name in ("whole", "killed"))
    assert all(torch.equal(p, killed[name]) for name, p in whole.items())
    adapted(some[:14], plan, tmp_path / "killed", stop=lambda step: step == 2)
    with pytest.raises(InputError, match="another lr") as caught:
        adapted(some[:14], replace(plan, lr=1.0), tmp_path / "killed")
    assert caught.value.code == "resume"


def test_states_that_a_killed_run_computed_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "_CHUNK", 2)
    monkeypatch.setattr(states, "_NOTE", 4)
    rendered: list[int] = []

    def opened(fails_at: int | None) -> States:
        def render(lesion: int, view: int) -> Pixels:
            if lesion == fails_at:
                raise KeyboardInterrupt
            rendered.append(lesion)
            return np.full((2, 2, 3), lesion, np.uint8)

        def encode(pixels: Pixels) -> State:
            x = torch.from_numpy(pixels).float()
            return x, x.mean((1, 2))

        return States(np.arange(11), render, encode, tmp_path, "key", quiet=True)

    with pytest.raises(KeyboardInterrupt):
        opened(7).get(np.array([0]), PLAIN)
    assert rendered == [0, 1, 2, 3, 4, 5, 6]
    first, second = opened(None).get(np.array([10, 1]), PLAIN)
    assert rendered[7:] == [4, 5, 6, 7, 8, 9, 10]
    assert first.shape == (2, 2, 2, 3) and second[:, 0].tolist() == [10, 1]


def test_without_labels_a_backbone_is_adapted_by_self_distillation_alone(
    weights: Path, some: list[Case], tmp_path: Path
) -> None:
    bare = [Case(case.case_id, case.image) for case in some]
    report = adapted(bare, config(weights, passes=1, self_distillation=1.0), tmp_path)
    assert report["history"][0]["loss"] > 0 and report["data"]["labels"] == {"group": {}}
    before, after = parameters(weights / "dinov2"), parameters(tmp_path / "backbone")
    assert any(not torch.equal(p, after[name]) for name, p in before.items())


def test_a_small_backbone_learns_from_a_teacher_without_labels(
    weights: Path, some: list[Case], tmp_path: Path
) -> None:
    bare = [Case(case.case_id, case.image) for case in some]
    options = {"teacher": str(weights / "swin"), "passes": 6, "views": 1, "validation": 0.0, "lr": 1e-2}
    history = adapted(bare, config(weights, **options), tmp_path)["history"]
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    report = json.loads((tmp_path / "backbone" / "adaptation.json").read_text("utf-8"))
    assert report["options"]["teacher"] == "swin" and report["options"]["distillation"] == 1.0


@pytest.mark.parametrize("role", ["vision", "teacher"])
def test_what_an_earlier_backbone_has_seen_is_not_forgotten(
    weights: Path, some: list[Case], role: str, tmp_path: Path
) -> None:
    adapted(some[:12], config(weights, passes=1), tmp_path / "first")
    options = config(weights, passes=1, **{role: str(tmp_path / "first" / "backbone")})
    adapted(some[12:], options, tmp_path / "second")
    record = read_adaptation(str(tmp_path / "second" / "backbone"))
    assert record is not None
    assert record.seen == {pixel_sha256(decode(case.image)) for case in some}


def test_the_mean_of_two_runs_has_seen_the_pictures_of_both(
    weights: Path, some: list[Case], tmp_path: Path
) -> None:
    adapted(some[:12], config(weights), tmp_path / "a")
    adapted(some[12:], config(weights), tmp_path / "b")
    folders = [tmp_path / name / "backbone" for name in ("a", "b")]
    done = CliRunner().invoke(averaging.main, [*map(str, folders), "--out", str(tmp_path / "mean")])
    assert done.exit_code == 0, done.stderr
    first, second, mean = (parameters(folder) for folder in (*folders, tmp_path / "mean"))
    assert all(torch.allclose(p, (first[name] + second[name]) / 2) for name, p in mean.items())
    assert any(not torch.equal(p, first[name]) for name, p in mean.items())
    record = read_adaptation(str(tmp_path / "mean"))
    assert record is not None and record.pictures == 24
    assert record.seen == {pixel_sha256(decode(case.image)) for case in some}


def test_backbones_that_have_no_mean_are_refused(weights: Path, some: list[Case], tmp_path: Path) -> None:
    adapted(some, config(weights, passes=1), tmp_path / "a")
    adapted(some, config(weights, "resnet", passes=1), tmp_path / "b")
    first, second = (tmp_path / name / "backbone" for name in ("a", "b"))
    for folders, message in (
        ([first], "at least two folders.*found backbone"),
        ([first, weights / "dinov2"], "at least two folders.*found backbone"),
        ([first, second], "the same first weights.*found others in backbone"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            averaging.average(folders, tmp_path / "mean")
        assert caught.value.code == "option" and not (tmp_path / "mean").exists()


def test_a_pass_takes_fewer_lesions_of_the_most_common_group(
    weights: Path, some: list[Case], tmp_path: Path
) -> None:
    names = ["mel"] * 4 + ["bkl"] * 2 + ["nevus"] * 16 + [""] * 2
    groups = [Case(c.case_id, c.image, group=name) for c, name in zip(some, names, strict=True)]
    for balance, lesions in ((1.0, 22), (0.5, 14), (0.0, 10)):
        options = config(weights, passes=1, validation=0.0, balance=balance, findings=(), batch=3)
        report = adapted(groups, options, tmp_path / str(balance))
        assert report["data"]["lesions_in_a_pass"] == lesions


def test_an_augmented_view_depends_on_its_seed_alone(some: list[Case]) -> None:
    pixels, recipe = decode(some[0].image), ImageRecipe(size=64)
    views = [augment(pixels, recipe, np.random.default_rng(seed)) for seed in (1, 1, *range(2, 30))]
    assert np.array_equal(views[0], views[1])
    assert len({view.tobytes() for view in views}) == 29
    assert all(view.shape == (64, 64, 3) and view.dtype == np.uint8 for view in views)


def _one_group(cases: list[Case]) -> list[Case]:
    return [Case(c.case_id, c.image, group="mel") for c in cases]


def _no_label(cases: list[Case]) -> list[Case]:
    return [Case(c.case_id, c.image) for c in cases]


def _divided(cases: list[Case]) -> list[Case]:
    return [with_facts(c, split="validation" if n == 0 else "train") for n, c in enumerate(cases)]


@pytest.mark.parametrize(
    ("change", "options", "code", "message"),
    [
        (_one_group, {}, "data-groups", "one group only.*found mel"),
        (_no_label, {}, "data-groups", "no picture has a label.*--self-distillation"),
        (_divided, {}, "data-split", "1 lesions into both parts"),
        (lambda cases: [with_facts(c, split="dev") for c in cases], {}, "table-value", "dev"),
        (lambda cases: cases[:2], {"validation": 0.0}, "data-split", "at least two lesions"),
        (lambda cases: cases, {"findings": ("colour",)}, "option", "colour: no value"),
        (lambda cases: cases, {"blocks": 7}, "option", "1 to 6"),
    ],
)
def test_what_cannot_be_used_is_named(
    weights: Path,
    some: list[Case],
    change: Callable[[list[Case]], list[Case]],
    options: dict[str, Any],
    code: str,
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        adapted(change(some), config(weights, **options), tmp_path)
    assert caught.value.code == code


def test_no_other_folder_is_replaced(weights: Path, some: list[Case], tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not written by skinret-adapt") as caught:
        adapted(some, config(weights), tmp_path)
    assert caught.value.code == "exists" and (tmp_path / "backbone" / "thesis.txt").is_file()


def test_the_command_reads_tables_and_names_missing_pictures(
    weights: Path, some: list[Case], tmp_path: Path
) -> None:
    def table(name: str, cases: list[Case], folder: str = "") -> Path:
        rows = [f"{c.case_id},{folder}{Path(str(c.image)).name},,{c.group}" for c in cases]
        path = tmp_path / name
        path.write_text("\n".join(["case_id,image,diagnosis,group", *rows]) + "\n", "utf-8")
        return path

    images = Path(str(some[0].image)).parent
    tables = [str(table("a.csv", some[:12])), str(table("b.csv", some[12:]))]
    options = ["--vision", str(weights / "dinov2"), "--image-size", "64", "--passes", "1"]
    out = ["--images", str(images), "--out", str(tmp_path / "backbone")]
    done = CliRunner().invoke(cli.main, [*tables, *out, *options])
    assert done.exit_code == 0, done.stderr
    assert f"{tmp_path / 'backbone'}: 1 passes" in done.stderr
    assert (tmp_path / "backbone" / "model.safetensors").is_file()
    done = CliRunner().invoke(cli.main, [str(table("c.csv", some, "no-")), *out, *options])
    assert done.exit_code == 1 and "24 image files that do not exist" in done.stderr
    done = CliRunner().invoke(cli.main, [*tables, tables[0], *out, *out[:2], *options])
    assert done.exit_code == 2 and "2 times for 3 tables" in done.stderr
